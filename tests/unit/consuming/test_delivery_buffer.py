"""The delivery buffer and its workers, without a broker: each message is handled once or given back, in order."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpus import frames
from tests.support.unconnected import begin, made, worker_of

import leveret
from leveret.consuming.states import WorkerState
from leveret.wire.reader import FrameReader
from leveret.wire.runs import SettlementRun

if TYPE_CHECKING:
    from leveret.consuming.consumer import Consumer
    from leveret.consuming.worker import Worker
    from leveret.wire.message import Message


class Turns:
    """Runs workers by hand: each that does not wait goes on, in an order of the test's choosing."""

    def __init__(self, workers: list[Worker]) -> None:
        self.waiting: dict[Worker, Any] = dict.fromkeys(workers)
        self.ended: set[Worker] = set()

    def ready(self) -> list[Worker]:
        return [worker for worker, future in self.waiting.items() if future is None or future.done()]

    def step(self, worker: Worker) -> None:
        try:
            self.waiting[worker] = worker.send(None)
        except StopIteration:
            del self.waiting[worker]
            self.ended.add(worker)


OUTCOMES = ["returns", "waits", "raises", "refuses", "acks itself", "releases itself", "waits and raises"]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_message_waits_while_a_worker_is_idle_and_each_is_handled_once(data: st.DataObject) -> None:
    async def play() -> None:
        draw = data.draw
        concurrency = draw(st.integers(1, 4))
        ack = draw(st.sampled_from(["coalesced", "each", "handoff", "none", "manual"]))
        is_ordered = draw(st.booleans())
        consumer = made(
            concurrency=concurrency,
            prefetch=draw(st.integers(1, 6)),
            ack=ack,
            handoff_size=draw(st.integers(1, 4)),
            ordered_by=(lambda message: message.body[:1]) if is_ordered else None,
        )
        loop = asyncio.get_running_loop()
        begun: list[int] = []
        ended: list[int] = []
        at_work: dict[bytes, int] = {}
        pending: deque[asyncio.Future[None]] = deque()
        tags = iter(range(1, 1000))
        delivered: dict[int, bytes] = {}
        # On the channel that there is now.
        delivered_now: list[int] = []

        async def handler(value: bytes, message: Message) -> bool | None:
            number, key = message.delivery_tag, value[:1]
            begun.append(number)
            if is_ordered:
                assert key not in at_work, "two of one key at once"
                at_work[key] = number
            outcome = draw(st.sampled_from(OUTCOMES))
            if "waits" in outcome:
                future: asyncio.Future[None] = loop.create_future()
                pending.append(future)
                await future
            if is_ordered:
                del at_work[key]
            ended.append(number)
            if "itself" in outcome:
                getattr(message, outcome.split()[0][:-1])()
            if "raises" in outcome:
                raise ValueError
            return outcome != "refuses"

        settled: set[int] = set()

        def check_settlements() -> None:
            """Each message is settled once, and none is acknowledged while a worker is at it."""
            transport = consumer._connection.transport
            for run in FrameReader(server=True).feed(transport.out.take()):
                assert isinstance(run, SettlementRun)
                for tag, multiple, is_refused, _ in run:
                    among = delivered_now if multiple else [tag]
                    covered = {each for each in among if each <= tag} - settled
                    assert covered, "settled twice"
                    settled.update(covered)
                    if ack in ("coalesced", "each"):
                        assert is_refused or covered <= set(ended), "acknowledged before it was done"

        turns = Turns([worker_of(consumer, handler) for _ in range(concurrency)])
        given_back: list[int] = []
        for _ in range(draw(st.integers(1, 25))):
            match draw(st.sampled_from(["deliver", "step", "finish", "step", "finish", "pause", "lose"])):
                case "deliver":
                    bodies = draw(st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=5))
                    numbered = [(next(tags), body) for body in bodies]
                    delivered.update(numbered)
                    delivered_now += [tag for tag, _ in numbered]
                    run = frames.run_of(
                        FrameReader().feed(b"".join(frames.delivery(1, tag, body) for tag, body in numbered))
                    )
                    consumer.delivered(run)
                case "step" if turns.ready():
                    turns.step(draw(st.sampled_from(turns.ready())))
                case "finish" if pending:
                    index = draw(st.integers(0, len(pending) - 1))
                    pending[index].set_result(None)
                    del pending[index]
                case "pause":
                    unstarted = consumer._unstarted
                    before = consumer.meter.released
                    consumer._give_back_unstarted()
                    if ack not in ("none", "handoff"):
                        assert consumer.meter.released - before == unstarted
                        given_back += [tag for tag in delivered if tag not in begun and tag not in given_back]
                case "lose" if draw(st.booleans()):
                    subscription = consumer._subscription
                    subscription._reopening = asyncio.ensure_future(asyncio.sleep(0))
                    consumer.channel_lost(leveret.errors.ConnectionLost("lost"))
                    subscription._reopening = None
                    # The broker has forgotten what was acknowledged, or was sent without acknowledgements.
                    forgotten = set(delivered) if ack == "none" else settled
                    given_back += [tag for tag in delivered if tag not in {*begun, *given_back, *forgotten}]
                    begin(consumer)
                    delivered_now.clear()
            check_settlements()
            if consumer._buffered and not turns.ready():
                assert all(worker.state is not WorkerState.IDLE for worker in turns.waiting), (
                    "a message waits, and a worker is idle"
                )
        # To the end: all that is left is done.
        while turns.ready() or pending:
            if pending:
                pending.popleft().set_result(None)
            for worker in turns.ready():
                turns.step(worker)
        assert consumer._unstarted == 0
        assert sorted(begun + given_back) == sorted(delivered)
        assert sorted(begun) == sorted(ended)
        if is_ordered:
            for key in (b"a", b"b", b"c"):
                of_key = [tag for tag in begun if delivered[tag][:1] == key]
                assert of_key == sorted(of_key)
        if ack in ("coalesced", "each", "none"):
            assert consumer.counters()["unsettled"] == 0
        if ack == "handoff":
            assert consumer.counters()["unsettled"] == 0, "all that was taken over is acknowledged"
        consumer._acks.flush(stragglers=True)
        check_settlements()
        if ack in ("coalesced", "each", "handoff"):
            assert set(delivered_now) <= settled
        consumer.stop()
        consumer._acks.stop()

    asyncio.run(play())


def test_a_worker_that_is_dropped_in_the_middle_ends_its_handler_and_is_freed() -> None:
    async def play() -> None:
        ended: list[str] = []
        consumer = made()
        run = frames.run_of(FrameReader().feed(frames.delivery(1, 1, b"one")))
        consumer.delivered(run)
        del run

        async def handler(value: bytes, message: Message) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("closed")

        async def work(worker: Worker) -> None:
            await worker

        await consumer_never_awaited(consumer, handler)
        coroutine = work(worker_of(consumer, handler))
        coroutine.send(None)
        assert consumer.health().working == 1
        coroutine.close()
        assert ended == ["closed"]
        consumer.stop()
        reference = weakref.ref(consumer)
        del consumer, work, coroutine, handler
        gc.collect()
        assert reference() is None

    async def consumer_never_awaited(consumer: Consumer[Any], handler: Any) -> None:
        worker = worker_of(consumer, handler)
        worker.close()
        with pytest.raises(ValueError, match="thrown"):
            worker.throw(ValueError("thrown"))

    asyncio.run(play())


def test_keys_may_be_anything_that_has_a_hash_and_what_has_none_is_set_aside() -> None:
    async def play() -> None:
        keys: list[Any] = [None, float("nan"), 1, True, [], 1.0, "1"]
        consumer = made(concurrency=10, ordered_by=lambda message: keys[message.delivery_tag - 1])
        run = frames.run_of(FrameReader().feed(b"".join(frames.delivery(1, tag + 1, b"x") for tag in range(len(keys)))))
        consumer.delivered(run)
        begun: list[int] = []
        go = asyncio.Event()

        async def handler(value: bytes, message: Message) -> None:
            begun.append(message.delivery_tag)
            await go.wait()

        turns = Turns([worker_of(consumer, handler) for _ in range(10)])
        while turns.ready():
            turns.step(turns.ready()[0])
        assert begun == [1, 2, 3, 7], "1, True and 1.0 are equal"
        async with asyncio.timeout(5):
            while not consumer.counters()["held"]:  # noqa: ASYNC110 - a counter has no event
                await asyncio.sleep(0)
        go.set()
        while turns.ready():
            turns.step(turns.ready()[0])
        assert begun == [1, 2, 3, 7, 4, 6]
        assert consumer.counters()["acked"] == 6
        consumer._acks.flush(stragglers=True)
        consumer._held.take()

    asyncio.run(play())
