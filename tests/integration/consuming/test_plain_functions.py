"""Handlers that are plain functions run in threads that take messages by themselves, by the rules of coroutines."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import Queues, ends, running, until

import leveret
from leveret.errors import CodecError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leveret.wire.message import Message

pytestmark = pytest.mark.usefixtures("no_leftovers")


class Gate:
    """A handler that waits for `go` when it gets one value, and notes the values in the order in which it began.

    Attributes:
        began: Set when it waits.
        go: Lets it go on.
        seen: The values, in order.
    """

    def __init__(self, closed_for: object) -> None:
        self.began, self.go = threading.Event(), threading.Event()
        self.seen: list[Any] = []
        self._closed_for = closed_for

    def __call__(self, value: Any, message: Message) -> None:
        self.seen.append(value)
        if value == self._closed_for:
            self.began.set()
            self.go.wait(30)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate("slow")
    yield gate
    gate.go.set()


async def test_one_thread_handles_messages_in_the_order_of_the_queue(queues: Queues) -> None:
    await queues.publish(*range(1000))
    consumer = queues.client.consumer(queues.work)
    seen: list[int] = []

    def handler(value: int, message: Message) -> None:
        seen.append(value)

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["acked"] == 1000)
    assert seen == list(range(1000))
    assert await queues.remaining() == []


async def test_threads_keep_the_order_of_each_key_and_are_no_more_than_concurrency(queues: Queues) -> None:
    await queues.publish(*range(400))
    consumer = queues.client.consumer(queues.work, concurrency=4, ordered_by=lambda message: message.value % 7)
    seen: list[int] = []
    at_work: Counter[int] = Counter()
    crowds: list[int] = []
    guard = threading.Lock()

    def handler(value: int, message: Message) -> None:
        with guard:
            at_work[value % 7] += 1
            crowds.append(at_work.total())
            assert at_work[value % 7] == 1
        time.sleep(0.0005)
        with guard:
            seen.append(value)
            at_work[value % 7] -= 1

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["acked"] == 400)
    assert max(crowds) <= 4
    for key in range(7):
        assert [value for value in seen if value % 7 == key] == list(range(key, 400, 7))
    assert consumer.counters()["handler_errors"] == 0


async def test_what_is_done_is_acknowledged_while_the_next_message_takes_long(queues: Queues, gate: Gate) -> None:
    await queues.publish(*range(5), "slow", 6)
    consumer = queues.client.consumer(queues.work)
    async with running(consumer, gate):
        await asyncio.to_thread(gate.began.wait, 10)
        await until(lambda: consumer.counters()["acked"] == 5)
        assert consumer.health().working == 1
        assert consumer.health().waiting == 1
        gate.go.set()
        await until(lambda: consumer.counters()["acked"] == 7)
    assert gate.seen == [*range(5), "slow", 6]


async def test_other_threads_go_on_while_one_takes_long(queues: Queues, gate: Gate) -> None:
    await queues.publish("slow", *range(300))
    consumer = queues.client.consumer(queues.work, concurrency=2)
    async with running(consumer, gate):
        await until(lambda: consumer.counters()["acked"] == 300)
        assert not gate.go.is_set()
    assert await queues.remaining() == ["slow"]


@pytest.mark.parametrize("how", ["pause", "drain", "stop"])
async def test_what_no_handler_has_begun_with_goes_back(queues: Queues, gate: Gate, how: str) -> None:
    await queues.publish("slow", 1, 2, 3)
    consumer = queues.client.consumer(queues.work)
    async with running(consumer, gate) as task:
        await asyncio.to_thread(gate.began.wait, 10)
        await until(lambda: consumer.counters()["delivered"] == 4)
        if how == "pause":
            await consumer.pause()
            assert await queues.remaining() == [1, 2, 3]
            gate.go.set()
            await until(lambda: consumer.counters()["acked"] == 1)
            await queues.publish(4)
            await consumer.resume()
            await until(lambda: consumer.counters()["acked"] == 2)
            assert gate.seen == ["slow", 4]
            return
        ending: Any = None
        if how == "drain":
            ending = asyncio.create_task(consumer.drain())
            await until(lambda: consumer.health().waiting == 0)
        else:
            consumer.stop()
        gate.go.set()
        await ends(task)
        assert ending is None or await ending
    assert gate.seen == ["slow"]
    assert await queues.remaining() == [1, 2, 3]


async def test_cancel_lets_all_that_was_delivered_be_handled(queues: Queues, gate: Gate) -> None:
    await queues.publish("slow", *range(50))
    consumer = queues.client.consumer(queues.work, concurrency=3)
    async with running(consumer, gate) as task:
        await until(lambda: consumer.counters()["delivered"] == 51)
        await consumer.cancel()
        gate.go.set()
        await ends(task)
    assert consumer.counters()["acked"] == 51


async def test_what_was_handled_is_acknowledged_when_run_is_cancelled(queues: Queues, gate: Gate) -> None:
    await queues.publish(*range(20), "slow", 21)
    consumer = queues.client.consumer(queues.work)
    async with running(consumer, gate) as task:
        await until(gate.began.is_set)
        task.cancel()
        await ends(task)
        assert task.cancelled()
    assert await queues.remaining() == ["slow", 21]


@pytest.mark.parametrize("kind", [ValueError, StopIteration, StopAsyncIteration, asyncio.CancelledError])
async def test_a_worker_takes_no_other_message_before_the_policy_is_done(
    queues: Queues, kind: type[BaseException]
) -> None:
    await queues.publish(1, 2, 3)
    consumer = queues.client.consumer(queues.work, on_error={BaseException: leveret.Retry([0.1])})
    seen: list[object] = []

    def handler(value: int, message: Message) -> None:
        seen.append(value)
        if value == 1 and len(seen) == 1:
            raise kind

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["acked"] == 4)
    assert seen == [1, 2, 3, 1]
    assert consumer.counters()["handler_errors"] == 1


async def test_bodies_that_cannot_be_decoded_are_parked_in_their_turn(queues: Queues) -> None:
    consumer = queues.client.consumer(queues.work, int, on_error={CodecError: leveret.DeadLetter()})
    await queues.publish(*range(10), "no number", *range(10, 20))
    seen: list[int] = []

    def handler(value: int, message: Message) -> None:
        assert message.value is value
        seen.append(value)

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["acked"] == 20)
    assert seen == list(range(20))
    assert consumer.counters()["undecodable"] == 1
    assert await queues.dead_letters(1) == ["no number"]


async def test_run_goes_on_with_the_messages_of_the_next_channel(queues: Queues, gate: Gate) -> None:
    await queues.publish("slow", 1, 2)
    consumer = queues.client.consumer(queues.work)
    async with running(consumer, gate):
        await until(lambda: consumer.counters()["delivered"] == 3)
        await until(gate.began.is_set)
        assert consumer._connection.transport is not None
        consumer._connection.transport.abort()
        await until(lambda: consumer.counters()["delivered"] == 6)
        gate.go.set()
        await until(lambda: consumer.counters()["acked"] == 3)
    assert gate.seen == ["slow", "slow", 1, 2]
    assert consumer.counters()["stale_acks"] == 1


async def test_durations_are_those_of_the_handlers(queues: Queues, caplog: pytest.LogCaptureFixture) -> None:
    await queues.publish(*range(10))
    consumer = queues.client.consumer(queues.work, concurrency=2)
    consumer.report_slow(0.02)

    def handler(value: int, message: Message) -> None:
        assert message.waiting_time is not None
        if value == 4:
            time.sleep(0.03)

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["acked"] == 10)
    meter = consumer.meter
    assert [each.count for each in (meter.waiting_time, meter.handler_time, meter.settled_time)] == [10, 10, 10]
    assert meter.handler_time.highest >= 30_000_000
    assert "s for message" in caplog.text
