"""Messages may be taken one by one, with `async for` and `get`, by one task or several."""

from __future__ import annotations

import asyncio
import itertools
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

import leveret
from leveret import Outcome

if TYPE_CHECKING:
    from tests.support.handling import Queues

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_the_next_message_comes_when_waiting_for_it_was_cancelled_before(queues: Queues) -> None:
    async with queues.client.consumer(queues.work) as consumer:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(consumer)
        waiting = asyncio.create_task(anext(consumer))
        await asyncio.sleep(0)
        await queues.publish("at last")
        async with asyncio.timeout(5):
            message = await waiting
        assert message.value == "at last"
        message.ack()


async def test_the_next_task_gets_the_message_when_the_one_that_was_woken_for_it_is_cancelled(queues: Queues) -> None:
    await queues.publish("for one of them")
    async with queues.client.consumer(queues.work) as consumer:
        message = await anext(consumer)
        first = asyncio.create_task(anext(consumer))
        second = asyncio.create_task(anext(consumer))
        await asyncio.sleep(0)  # now both wait
        consumer._put_back([message])
        consumer._wake_more()
        first.cancel()  # its turn has come, and it has not run yet
        async with asyncio.timeout(5):
            assert await second is message
        message.ack()
        assert first.cancelled()


@pytest.mark.parametrize("turns", range(0, 16, 3))
async def test_the_next_message_comes_when_starting_was_cancelled(queues: Queues, turns: int) -> None:
    await queues.publish("here")
    async with queues.client.consumer(queues.work) as consumer:
        task = asyncio.create_task(anext(consumer))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(5):
            message = await anext(consumer) if task.cancelled() else task.result()
        assert message.value == "here"
        message.ack()
    assert await queues.remaining() == []


async def test_each_message_goes_to_one_of_them_when_several_tasks_take_from_a_consumer(queues: Queues) -> None:
    await queues.publish(*range(100))
    async with queues.client.consumer(queues.work, prefetch=10) as consumer:

        async def take() -> list[int]:
            values: list[int] = []
            while len(values) < 25:
                message = await anext(consumer)
                values.append(message.value)
                assert message.ack()
            return values

        async with asyncio.timeout(10):
            taken = await asyncio.gather(*(take() for _ in range(4)))
    assert sorted(itertools.chain.from_iterable(taken)) == list(range(100))
    assert await queues.remaining() == []


async def test_no_message_is_lost_when_a_get_is_cancelled(queues: Queues) -> None:
    # basic.get cannot be taken back: its message has no taker, and must not be acknowledged with the next ones.
    await queues.publish(*range(4))
    async with queues.client.consumer(queues.work) as consumer:
        first = await consumer.get()
        assert first is not None
        first.ack()
        task = asyncio.create_task(consumer.get())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(5):
            rest: list[tuple[Any, bool]] = []
            while len(rest) < 3:
                if message := await consumer.get():
                    rest.append((message.value, message.redelivered))
                    assert message.ack()
    assert sorted(rest) == [(1, True), (2, False), (3, False)]
    assert await queues.remaining() == []


async def test_a_message_of_get_says_how_many_follow_when_there_are_more(queues: Queues) -> None:
    await queues.publish("a", "b", "c")
    async with queues.client.consumer(queues.work) as consumer:
        left = []
        while message := await consumer.get():
            left.append(message.message_count)
            message.ack()
    assert left == [2, 1, 0]


async def test_waiting_leaves_nothing_behind_when_it_is_cancelled(queues: Queues) -> None:
    async with queues.client.consumer(queues.work) as consumer:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(consumer)
        assert consumer._idle_count == 0


async def test_get_is_refused_when_deliveries_come(queues: Queues) -> None:
    async with queues.client.consumer(queues.work) as consumer:
        await consumer.subscribe()
        with pytest.raises(leveret.errors.ConfigurationError, match="get is of no use"):
            await consumer.get()


async def test_s45_a_message_tells_where_and_when_it_came_from(queues: Queues) -> None:
    async with queues.client.producer() as producer:
        receipt = await producer.publish({"id": 1}, queues.work, headers={"tenant": 7}, message_id="m-1")
        assert receipt.outcome is Outcome.CONFIRMED
    consumer = queues.client.consumer(queues.work, consumer_tag="who")
    before = time.monotonic()

    async def handler(value: dict[str, int], message: leveret.Message) -> None:
        assert value == message.value == {"id": 1}
        assert (message.queue, message.exchange, message.routing_key) == (queues.work, "", queues.work)
        assert (message.consumer_tag, message.delivery_tag, message.redelivered) == ("who", 1, False)
        assert (message.headers, message.message_id) == ({"tenant": 7}, "m-1")
        assert before <= message.received_at <= time.monotonic()
        assert message.received_time is not None
        assert abs(datetime.now(UTC) - message.received_time) < timedelta(seconds=time.monotonic() - before + 0.1)
        assert not message.is_settled
        consumer.stop()

    await consumer.run(handler)
    assert consumer.counters()["handler_errors"] == 0


@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_s24_a_message_tells_how_long_it_waited_and_how_long_it_is_handled(queues: Queues, kind: str) -> None:
    await queues.publish(1, 2)
    consumer = queues.client.consumer(queues.work)
    seen: list[tuple[float, float, float]] = []

    def note(message: leveret.Message) -> None:
        waited, handled, total = message.waiting_time, message.handler_time, message.total_time
        assert waited is not None
        assert handled is not None
        assert total is not None
        seen.append((waited, handled, total))
        assert message.waiting_time == waited, "it ended when the handler began"
        later = message.handler_time
        assert later is not None
        assert later >= handled

    async def handler(value: int, message: leveret.Message) -> None:
        while consumer.counters()["delivered"] < 2:  # noqa: ASYNC110 - there is no event for this
            await asyncio.sleep(0.001)
        note(message)
        await asyncio.sleep(0.05)
        note(message)
        if value == 2:
            consumer.stop()

    def plain(value: int, message: leveret.Message) -> None:
        while consumer.counters()["delivered"] < 2:
            time.sleep(0.001)
        note(message)
        time.sleep(0.05)
        note(message)
        if value == 2:
            loop.call_soon_threadsafe(consumer.stop)

    loop = asyncio.get_running_loop()
    await consumer.run(handler if kind == "async" else plain)
    assert consumer.counters()["handler_errors"] == 0
    for waited, handled, total in seen:
        assert waited >= 0
        assert handled >= 0
        assert waited + handled <= total + 1e-6
    (_, begun, _), (_, ended, _), (waited, *_), _ = seen
    # Sleeps may end a little early by the loop's clock, which counts milliseconds.
    assert ended - begun > 0.045
    assert waited > 0.045, "the first was handled meanwhile"
    # They are the histograms' own.
    times = {sample.metric.name: sample.distribution for sample in queues.client.metrics()}
    for name, at in (("deliveries_waiting_time", 0), ("handler_time", 1)):
        distribution = times[name]
        assert distribution is not None
        assert distribution.count == 2
        assert distribution.highest >= max(each[at] for each in seen) * 15 / 16


async def test_s24_messages_without_a_handler_have_the_time_since_they_were_received(queues: Queues) -> None:
    await queues.publish(1, 2)
    async with queues.client.consumer(queues.work) as consumer:
        first = await consumer.get()
        assert first is not None
        first.ack()
    async with queues.client.consumer(queues.work) as consumer:
        second = await anext(consumer)
        second.ack()
    for message in (first, second):
        assert message.total_time is not None
        assert 0 <= message.total_time <= time.monotonic() - message.received_at
        assert message.received_time == message.received_time
        assert (message.waiting_time, message.handler_time) == (None, None)
