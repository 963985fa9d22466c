"""A consumer that pauses, drains or ends finishes what it began, and gives the rest back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.support.handling import Held, Queues, broken_off, running, until
from tests.support.loops import every_loop
from tests.support.queues import taken

import leveret
from leveret.broker import EmbeddedBroker

if TYPE_CHECKING:
    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_others_get_the_messages_when_a_consumer_is_paused(queues: Queues) -> None:
    await queues.publish(*range(20))
    consumer = queues.client.consumer(queues.work, prefetch=10)
    handler = Held()
    async with running(consumer, handler) as task:
        await handler.began.wait()
        await consumer.pause()
        assert consumer.health()
        assert not consumer.health().expected
        assert await taken(queues.client, queues.work) == list(range(1, 20))
        handler.go.set()
        await until(lambda: consumer.counters()["acked"] == 1)
        await queues.publish("while paused")
        await asyncio.sleep(0.05)
        assert handler.seen == [0]
        await consumer.resume()
        await until(lambda: handler.seen == [0, "while paused"])
        assert await consumer.drain(5)
        await task
    assert await queues.remaining() == []


async def test_run_returns_when_everything_delivered_is_handled_after_cancel(queues: Queues) -> None:
    await queues.publish(*range(30))
    consumer = queues.client.consumer(queues.work, prefetch=10)
    handler = Held()
    async with running(consumer, handler) as task:
        await handler.began.wait()
        await consumer.cancel()
        delivered = consumer.counters()["delivered"]
        handler.go.set()
        async with asyncio.timeout(5):
            await task
    assert handler.seen == list(range(delivered))
    assert delivered < 30
    assert await queues.remaining() == list(range(delivered, 30))


@pytest.mark.parametrize("concurrency", [1, 5])
async def test_handlers_end_and_the_rest_goes_back_when_a_consumer_is_drained(queues: Queues, concurrency: int) -> None:
    await queues.publish(*range(40))
    consumer = queues.client.consumer(queues.work, prefetch=20, concurrency=concurrency)
    began = asyncio.Event()
    done: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        began.set()
        await asyncio.sleep(0.05)
        done.append(value)

    async with running(consumer, handler) as task:
        await began.wait()
        assert await consumer.drain(5)
        async with asyncio.timeout(5):
            await task
    assert len(done) == concurrency
    remaining = await queues.remaining()
    assert sorted([*done, *remaining]) == list(range(40))
    assert consumer.counters()["acked"] == concurrency


async def test_draining_says_so_when_a_handler_had_to_be_cut_off(queues: Queues) -> None:
    await queues.publish("hangs", "waits")
    consumer = queues.client.consumer(queues.work)
    began = asyncio.Event()

    async def handler(value: str, message: leveret.Message) -> None:
        began.set()
        await asyncio.Event().wait()

    async with running(consumer, handler) as task:
        await began.wait()
        assert not await consumer.drain(0.1)
        async with asyncio.timeout(5):
            await task
    assert await queues.remaining() == ["hangs", "waits"]


@pytest.mark.parametrize("turns", range(4))
async def test_messages_come_again_after_a_pause_that_was_broken_off(queues: Queues, turns: int) -> None:
    consumer = queues.client.consumer(queues.work)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)

    async with running(consumer, handler):
        await until(lambda: consumer.health().live)
        await broken_off(consumer.pause(), turns)
        await consumer.resume()
        await queues.publish(1)
        await until(lambda: seen == [1])
        assert consumer.health()


async def test_resume_may_be_called_again_when_it_was_cancelled() -> None:
    got = asyncio.Event()

    async def handle(body: bytes, message: leveret.Message) -> None:
        got.set()

    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
        await client.declare(leveret.Topology().queue("q"))
        async with client.consumer("q", serializer="bytes") as consumer:
            running = asyncio.create_task(consumer.run(handle))
            await consumer.subscribe()
            await consumer.pause()
            resuming = asyncio.create_task(consumer.resume())
            await asyncio.sleep(0)
            resuming.cancel()
            await asyncio.wait([resuming])
            await consumer.resume()
            async with client.producer(serializer="bytes") as producer:
                await producer.publish(b"", "q")
            await asyncio.wait_for(got.wait(), 5)
            await consumer.cancel()
            await running


async def test_the_rest_goes_back_when_a_consumer_is_stopped(queues: Queues) -> None:
    await queues.publish(*range(20))
    consumer = queues.client.consumer(queues.work, prefetch=10)

    async def handler(value: int, message: leveret.Message) -> None:
        if value == 4:
            consumer.stop()

    await consumer.run(handler)
    assert await queues.remaining() == list(range(5, 20))


async def test_the_rest_goes_back_when_a_loop_is_stopped(queues: Queues) -> None:
    await queues.publish(*range(20))
    seen = []
    async with queues.client.consumer(queues.work) as consumer:
        async for message in consumer:
            seen.append(message.value)
            message.ack()
            if message.value == 4:
                consumer.stop()
    assert seen == list(range(5))
    assert await queues.remaining() == list(range(5, 20))


@every_loop
async def test_what_was_not_done_goes_back_when_run_is_cancelled(queues: Queues) -> None:
    await queues.publish(*range(10))
    consumer = queues.client.consumer(queues.work, concurrency=2)
    others_are_done = asyncio.Event()

    async def handler(value: int, message: leveret.Message) -> None:
        if value == 5:
            await asyncio.Event().wait()
        if value == 9:
            others_are_done.set()

    async with running(consumer, handler) as task:
        await others_are_done.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert consumer.counters()["acked"] == 9
    assert await queues.remaining() == [5]


async def test_run_ends_when_the_client_is_closed_elsewhere(broker: Broker, queues: Queues) -> None:
    await queues.publish("unfinished")
    started = asyncio.Event()
    finish = asyncio.Event()

    async def handler(value: str, message: leveret.Message) -> None:
        started.set()
        await finish.wait()

    async with leveret.connect(broker.url) as other:
        task = asyncio.create_task(other.consumer(queues.work).run(handler))
        await started.wait()
    finish.set()
    async with asyncio.timeout(5):
        await task
    assert await queues.remaining() == ["unfinished"]


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), 1e6])
async def test_draining_is_refused_when_its_timeout_is_out_of_range(queues: Queues, timeout: float) -> None:
    async with queues.client.consumer(queues.work) as consumer:
        with pytest.raises(leveret.errors.ConfigurationError, match=r"timeout is .* 0 to 86400"):
            await consumer.drain(timeout)
        assert await consumer.drain(5)
        assert await consumer.drain(5)


async def test_closing_goes_quickly_when_a_consumer_without_acknowledgements_is_far_behind(queues: Queues) -> None:
    await queues.publish(*["x" * 1000] * 20_000)
    consumer = queues.client.consumer(queues.work, ack="none", prefetch=1)

    async def handler(value: str, message: leveret.Message) -> None:
        await asyncio.sleep(0.05)
        consumer.stop()

    async with asyncio.timeout(4):
        await consumer.run(handler)
        assert consumer._connection.transport.reading
        # The connection is shared: others still hear from the broker.
        assert await queues.ready() >= 0
    await queues.client.purge(queues.work)
