"""The event loop and threads hand each other messages and results in runs; states of workers follow their table."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from tests.corpus import frames
from tests.support.handling import until
from tests.support.unconnected import made

from leveret.consuming.handler_threads import HandlerThreads
from leveret.consuming.states import THREAD_WORKER_TRANSITIONS, ThreadWorkerState
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leveret.consuming.consumer import Consumer
    from leveret.wire.message import Message

S = ThreadWorkerState


def deliver(consumer: Consumer[Any], *tags: int, body: bytes = b"x") -> None:
    data = b"".join(frames.delivery(1, tag, body) for tag in tags)
    consumer.delivered(frames.run_of(FrameReader(frame_max=131_072).feed(data)))


class Loop:
    """An event loop that counts how often other threads call it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_soon_threadsafe(self, *arguments: Any) -> None:
        self.calls += 1
        self._loop.call_soon_threadsafe(*arguments)


class Threads:
    """Has each call made by a new thread."""

    def __init__(self) -> None:
        self._made: list[threading.Thread] = []

    def submit(self, *call: Any) -> None:
        thread = threading.Thread(target=call[0], args=call[1:])
        self._made.append(thread)
        thread.start()

    @property
    def count(self) -> int:
        return len(self._made)

    def join(self) -> None:
        for thread in self._made:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads()
    yield threads
    threads.join()


def handler_threads(
    consumer: Consumer[Any], handler: Callable[[Any, Message], object], threads: Threads, loop: Any = None
) -> HandlerThreads:
    return HandlerThreads(
        handler,
        threads.submit,
        True,
        True,
        consumer,
        consumer._acks,
        consumer._failures,
        consumer._workers,
        loop or asyncio.get_running_loop(),
    )


async def test_a_run_of_deliveries_wakes_one_thread_and_the_loop_once(threads: Threads) -> None:
    consumer, loop = made(), Loop()
    seen: list[int] = []
    shared = handler_threads(consumer, lambda value, message: seen.append(message.delivery_tag), threads, loop)
    worker = shared.worker()
    for turn in range(3):
        deliver(consumer, *range(100 * turn + 1, 100 * turn + 101))
        while len(seen) < 100 * turn + 100:
            time.sleep(0.001)  # noqa: ASYNC251 - the loop is at other work, and takes no result meanwhile
        await until(lambda turn=turn: consumer.counters()["acked"] == 100 * turn + 100)  # type: ignore[misc]
        assert loop.calls == turn + 1
    assert seen == list(range(1, 301))
    shared.leave(worker, stops=True)
    assert worker.state is S.ENDED


async def test_a_thread_leaves_when_no_message_comes_and_another_takes_its_place(threads: Threads) -> None:
    consumer = made()
    shared = handler_threads(consumer, lambda value, message: None, threads)
    worker = shared.worker()
    for tag in (1, 2):
        deliver(consumer, tag)
        await until(lambda tag=tag: consumer.counters()["acked"] == tag)  # type: ignore[misc]
        await until(lambda: worker.state is S.FREE)
        assert threads.count == tag
    shared.leave(worker, stops=True)


async def test_what_is_handed_on_is_bounded_in_messages_and_bytes(threads: Threads) -> None:
    for count, body, ahead in ((300, b"x", 256), (80, bytes(32 * 1024), 32)):
        consumer = made(prefetch=1000)
        shared = handler_threads(consumer, lambda value, message: None, threads)  # without a worker
        for tag in range(1, count + 1):
            deliver(consumer, tag, body=body)
        assert shared.counts() == (ahead, 0)
        assert consumer._buffered == count - ahead
        assert consumer.health().waiting == count
        assert [message.delivery_tag for message in consumer._take_unstarted()] == list(range(1, count + 1))
        assert shared.counts() == (0, 0)


async def test_a_worker_goes_through_the_states_of_its_table(threads: Threads) -> None:
    consumer = made(processing_timeout=60)
    go = threading.Event()

    def handler(value: bytes, message: Message) -> None:
        go.wait(10)
        if message.delivery_tag == 1:
            raise ValueError

    shared = handler_threads(consumer, handler, threads)
    worker = shared.worker()
    seen = [worker.state]

    async def reaches(state: ThreadWorkerState) -> None:
        await until(lambda: worker.state is state)
        seen.append(state)

    deliver(consumer, 1)
    await reaches(S.HANDLING)
    assert (worker.is_handling, worker.sequence) == (True, 1)
    go.set()
    assert await shared.report(worker)
    await reaches(S.REPORTING)
    assert shared.action(worker) is None
    assert consumer.counters()["handler_errors"] == 1
    shared.go_on(worker)
    await reaches(S.FREE)
    go.clear()
    deliver(consumer, 2)
    await reaches(S.HANDLING)
    worker.time_out(1)
    assert worker.is_handling, "it is at another message"
    worker.time_out(2)
    await reaches(S.LATE)
    assert await shared.report(worker)
    assert shared.action(worker) is None
    shared.go_on(worker)
    assert worker.message is not None, "its thread is not back"
    go.set()
    assert await shared.report(worker)
    await reaches(S.REPORTING)
    assert shared.action(worker) is None
    shared.go_on(worker)
    await reaches(S.FREE)
    assert consumer.counters()["handler_errors"] == 2
    consumer.stop()
    assert not await shared.report(worker)
    shared.leave(worker, stops=True)
    await reaches(S.ENDED)
    reachable = {state: set(after) for state, after in THREAD_WORKER_TRANSITIONS.items()}
    for state in (S.WOKEN, S.RESTING):  # the test may not have seen them
        for after in reachable.values():
            if state in after:
                after |= THREAD_WORKER_TRANSITIONS[state]
    for old, new in pairwise(seen):
        assert new in reachable[old], (old, new)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
async def test_what_ends_the_program_is_raised_by_the_task(threads: Threads, kind: type[BaseException]) -> None:
    consumer = made()

    def handler(value: bytes, message: Message) -> None:
        raise kind

    shared = handler_threads(consumer, handler, threads)
    worker = shared.worker()
    deliver(consumer, 1, 2)
    assert await shared.report(worker)
    with pytest.raises(kind):
        shared.action(worker)
    shared.leave(worker, stops=True)
    assert consumer.health().working == 0
    assert consumer.health().waiting == 1
    assert consumer.counters()["acked"] == 0


async def test_a_message_near_the_limit_of_its_queue_is_looked_at_first(
    threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer = made()
    asked: list[int] = []
    monkeypatch.setattr(consumer._failures, "redelivered", lambda message: asked.append(message.delivery_tag))
    monkeypatch.setattr(consumer._failures, "nears_limit", lambda message: message.delivery_tag == 2)
    seen: list[int] = []
    shared = handler_threads(consumer, lambda value, message: seen.append(message.delivery_tag), threads)
    worker = shared.worker()
    data = b"".join(frames.delivery(1, tag, b"x", redelivered=True) for tag in (1, 2, 3))
    consumer.delivered(frames.run_of(FrameReader().feed(data)))
    assert await shared.report(worker)
    assert seen == [1]
    assert shared.action(worker) is None
    assert asked == [2]
    shared.go_on(worker)
    await until(lambda: consumer.counters()["acked"] == 3)
    assert seen == [1, 2, 3]
    shared.leave(worker, stops=True)
