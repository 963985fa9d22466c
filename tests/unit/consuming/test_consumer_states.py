"""The states of a consumer and its workers: which may follow which, and what each change tells the compiled part."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.corpus import frames
from tests.support.unconnected import made, worker_of

import leveret
from leveret.consuming.states import (
    CONSUMER_TRANSITIONS,
    ConsumerLife,
    ConsumerState,
    WorkerCancellation,
    WorkerState,
)
from leveret.errors import ChannelClosed
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from leveret.consuming.consumer import Consumer
    from leveret.consuming.worker import Worker
    from leveret.wire.message import Message

S = ConsumerState


@pytest.mark.parametrize("old", S)
@pytest.mark.parametrize("new", S)
def test_a_change_happens_only_when_the_table_has_it(old: ConsumerState, new: ConsumerState) -> None:
    changes: list[ConsumerState] = []
    life = ConsumerLife(lambda: changes.append(life.state))
    life.state = old
    allowed = new in CONSUMER_TRANSITIONS[old]
    assert life.become(new) is allowed
    assert (life.state, changes) == ((new, [new]) if allowed else (old, []))


@pytest.mark.parametrize("state", [S.NEW, S.CONSUMING, S.PAUSED, S.DRAINING])
def test_a_consumer_can_be_ended_in_every_way_while_it_is_not_over(state: ConsumerState) -> None:
    assert {S.ENDING, S.LOST, S.STOPPING, S.FAILED, S.CLOSED} <= CONSUMER_TRANSITIONS[state]


def test_no_way_leads_back_from_an_end() -> None:
    reached = {S.ENDING}
    while new := {each for state in reached for each in CONSUMER_TRANSITIONS[state]} - reached:
        reached |= new
    assert reached == {S.ENDING, S.LOST, S.STOPPING, S.FAILED, S.CLOSED}


def test_the_first_error_is_kept_and_stays_when_the_state_cannot_change() -> None:
    life = ConsumerLife(lambda: None)
    life.become(S.STOPPING)
    first, second = ChannelClosed("first", reply_code=404), ChannelClosed("second", reply_code=404)
    life.fail(first, S.LOST)
    life.fail(second, S.CLOSED)
    assert (life.state, life.error) == (S.CLOSED, first)
    with pytest.raises(ChannelClosed, match="first"):
        life.check()


@pytest.mark.parametrize(
    ("changes", "over", "stopping", "expected"),
    [
        ([], False, False, True),
        ([S.PAUSED], False, False, False),
        ([S.DRAINING], False, False, False),
        ([S.ENDING], True, False, False),
        ([S.LOST], True, False, True),
        ([S.STOPPING], True, True, False),
        ([S.LOST, S.STOPPING], True, True, False),
        ([S.FAILED], True, True, False),
        ([S.CLOSED], True, True, False),
    ],
    ids=str,
)
async def test_the_caches_follow_the_state(
    changes: list[ConsumerState], over: bool, stopping: bool, expected: bool
) -> None:
    consumer = made()
    assert consumer.state is S.CONSUMING
    for state in changes:
        assert consumer._life.become(state)
    assert (consumer._over, consumer._stopping, consumer.meter.expected) == (over, stopping, expected)
    assert consumer.health().expected is expected


# ---------------------------------------------------------------------- workers


def deliver(consumer: Consumer[Any], *tags: int) -> None:
    run = frames.run_of(FrameReader().feed(b"".join(frames.delivery(1, tag, b"x") for tag in tags)))
    consumer.delivered(run)


class Cancellable:
    """A task that can be cancelled, as a worker uses it."""

    def __init__(self) -> None:
        self.requests = 0

    def cancelling(self) -> int:
        return self.requests

    def cancel(self) -> None:
        self.requests += 1

    def uncancel(self) -> None:
        self.requests -= 1


def state_of(worker: Worker) -> WorkerState:
    """A call, so that mypy does not take the state for what it was before the worker went on."""
    return worker.state


async def test_a_worker_waits_handles_and_ends() -> None:
    consumer = made()
    seen: list[WorkerState] = []
    go = asyncio.get_running_loop().create_future()

    async def handler(value: bytes, message: Message) -> None:
        seen.append(worker.state)
        if message.delivery_tag == 2:
            await go

    worker = worker_of(consumer, handler)
    assert state_of(worker) is WorkerState.READY
    worker.send(None)
    assert state_of(worker) is WorkerState.IDLE
    deliver(consumer, 1)
    worker.send(None)
    assert state_of(worker) is WorkerState.IDLE
    deliver(consumer, 2)
    worker.send(None)
    assert (worker.state, worker.is_handling) == (WorkerState.HANDLING, True)
    go.set_result(None)
    consumer.stop()
    with pytest.raises(StopIteration):
        worker.send(None)
    assert state_of(worker) is WorkerState.ENDED
    assert seen == [WorkerState.HANDLING, WorkerState.HANDLING]
    with pytest.raises(StopIteration):
        worker.send(None)
    consumer._acks.stop()


async def test_a_worker_acts_when_a_failure_needs_time() -> None:
    consumer = made(on_error=leveret.Park())

    async def handler(value: bytes, message: Message) -> None:
        raise ValueError

    worker = worker_of(consumer, handler)
    deliver(consumer, 1)
    worker.send(None)  # connects, to publish a copy
    assert state_of(worker) is WorkerState.ACTING
    assert not worker.is_handling
    with pytest.raises(asyncio.CancelledError):
        worker.throw(asyncio.CancelledError())
    assert state_of(worker) is WorkerState.ENDED
    assert consumer.health().working == 0


@pytest.mark.parametrize("passes", [True, False], ids=["the handler lets it pass", "the handler catches it"])
async def test_a_late_handler_fails_unless_it_returns_all_the_same(passes: bool) -> None:
    consumer = made(processing_timeout=60)
    task = Cancellable()
    loop = asyncio.get_running_loop()

    async def handler(value: bytes, message: Message) -> None:
        try:
            await loop.create_future()
        except asyncio.CancelledError:
            states.append(worker.cancellation)
            if passes:
                raise

    states: list[WorkerCancellation] = []
    worker = worker_of(consumer, handler, task)
    deliver(consumer, 1)
    worker.send(None)
    states.append(worker.cancellation)
    worker.time_out()
    states.append(worker.cancellation)
    worker.throw(asyncio.CancelledError())
    states.append(worker.cancellation)
    C = WorkerCancellation
    assert states == [C.NONE, C.TIMING_OUT, C.LATE, C.NONE]
    assert (worker.state, task.requests) == (WorkerState.IDLE, 0)
    counters = consumer.counters()
    assert (counters["handler_errors"], counters["acked"]) == ((1, 0) if passes else (0, 1))
    consumer._acks.stop()


@pytest.mark.parametrize("where", ["idle", "handling", "between two messages"])
async def test_a_cancelled_worker_ends_wherever_it_is(where: str) -> None:
    consumer = made(prefetch=1000)
    task = Cancellable()

    async def handler(value: bytes, message: Message) -> None:
        if where == "handling":
            await asyncio.get_running_loop().create_future()

    worker = worker_of(consumer, handler, task)
    if where == "handling":
        deliver(consumer, 1)
    elif where == "between two messages":
        deliver(consumer, *range(1, 301))  # it lets others run after 256
    worker.send(None)
    expected = {"idle": "IDLE", "handling": "HANDLING", "between two messages": "READY"}[where]
    assert worker.state is WorkerState[expected]
    consumer.stop()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        worker.throw(asyncio.CancelledError())
    assert state_of(worker) is WorkerState.ENDED
    assert consumer.health().working == 0
    consumer._acks.stop()
