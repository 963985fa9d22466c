"""The broker sends as many messages as the prefetch allows, which may change or follow the handlers."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

import pytest
from tests.support.handling import Queues, broken_off, running, until
from tests.support.queues import consumer_count, taken

import leveret
from leveret import Quorum, Topology
from leveret.errors import ConfigurationError
from leveret.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.mark.parametrize("prefetch", [1, 7])
async def test_the_broker_keeps_the_rest_when_the_prefetch_is_used_up(queues: Queues, prefetch: int) -> None:
    await queues.publish(*range(30))
    async with queues.client.consumer(queues.work, prefetch=prefetch) as consumer:
        held = [await anext(consumer) for _ in range(prefetch)]
        assert await queues.ready() == 30 - prefetch
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(consumer)
        for message in held:
            message.ack()
        async with asyncio.timeout(5):
            for _ in range(prefetch):
                (await anext(consumer)).ack()


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_s25_the_prefetch_changes_while_messages_are_handled(
    client: leveret.Client, name: Callable[[str], str], kind: str, broker: Broker
) -> None:
    work = name("work")
    await client.declare(Topology().queue(work, Quorum() if kind == "quorum" else None))
    async with client.producer() as producer:
        (await producer.publish_batch(range(3000), work)).raise_for_failures()
    consumer = client.consumer(work, prefetch=5, concurrency=5)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        await asyncio.sleep(0)
        seen.append(value)
        if len(seen) == 3000:
            consumer.stop()

    async with running(consumer, handler) as task:
        for prefetch in (50, 1, 500, 2, 100):
            await consumer.set_prefetch(prefetch)
            assert consumer.prefetch == prefetch
            more = len(seen) + 1
            await until(partial(lambda more: len(seen) >= more or task.done(), more))
        async with asyncio.timeout(20):
            await task
    assert sorted(seen) == list(range(3000)), "none is lost, and none comes twice"
    assert await taken(client, work) == []


@pytest.mark.parametrize("how", ["prefetch", "pause"])
async def test_s25_a_quorum_queue_keeps_delivering_when_a_consumer_begins_again_beside_unsettled_deliveries(
    client: leveret.Client, name: Callable[[str], str], how: str
) -> None:
    work = name("work")
    await client.declare(Topology().queue(work, Quorum()))
    async with client.producer() as producer:
        (await producer.publish_batch(range(40), work)).raise_for_failures()
    async with client.consumer(work, prefetch=5, ack="manual") as consumer:
        held = [await anext(consumer)]
        tags = {held[0].consumer_tag}
        async with asyncio.timeout(20):
            # Each time some deliveries of the consumers before are not settled.
            for number in range(6):
                if how == "prefetch":
                    await consumer.set_prefetch(5 + number % 2)
                else:
                    await consumer.pause()
                    await consumer.resume()
                message = await anext(consumer)
                while message.consumer_tag in tags:
                    held.append(message)
                    message.ack()
                    message = await anext(consumer)
                tags.add(message.consumer_tag)
                held.append(message)
        assert len(tags) == 7, "no tag is used twice"
        assert consumer._subscription.channel is not None
        assert consumer._subscription.channel.is_open


async def test_s25_a_smaller_prefetch_holds_when_handlers_are_slow(queues: Queues) -> None:
    await queues.publish(*range(100))
    consumer = queues.client.consumer(queues.work, prefetch=50)
    allowed = asyncio.Semaphore(0)

    async def handler(value: int, message: leveret.Message) -> None:
        await allowed.acquire()

    def let_through(count: int) -> None:
        for _ in range(count):
            allowed.release()

    async with running(consumer, handler) as task:
        await until(lambda: consumer.counters()["unsettled"] == 50)
        await consumer.set_prefetch(3)
        let_through(50)
        await until(lambda: consumer.counters()["acked"] == 50 and consumer.counters()["unsettled"] == 3)
        consumer.stop()
        let_through(1)
        await task


async def test_s25_the_prefetch_of_an_exclusive_consumer_stays(queues: Queues) -> None:
    async with queues.client.consumer(queues.work, exclusive=True) as consumer:
        await consumer.subscribe()
        with pytest.raises(ConfigurationError, match="exclusive"):
            await consumer.set_prefetch(5)
    for wrong in (0, 70_000):
        with pytest.raises(ConfigurationError, match="prefetch"):
            await queues.client.consumer(queues.work).set_prefetch(wrong)


async def test_s26_the_prefetch_follows_the_handlers_when_it_is_auto(broker: Broker, queues: Queues) -> None:
    await queues.publish(*range(20_000))
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url) as client:
        proxy.delay(0.05)
        consumer = client.consumer(queues.work, prefetch="auto", concurrency=5)
        assert consumer.prefetch == 10
        seconds = 0.005

        async def handler(value: int, message: leveret.Message) -> None:
            await asyncio.sleep(seconds)

        async with running(consumer, handler) as task:
            # Each worker could do ten messages while an acknowledgement is on its way.
            await until(lambda: consumer.prefetch > 35, seconds=20)
            seconds = 0.1
            await until(lambda: consumer.prefetch <= 20, seconds=20)
            consumer.stop()
            await task
    await queues.client.purge(queues.work)


@pytest.mark.parametrize("turns", [*range(8), None], ids=str)
async def test_the_prefetch_can_be_changed_again_when_a_change_was_broken_off(
    queues: Queues, turns: int | None
) -> None:
    consumer = queues.client.consumer(queues.work, prefetch=5)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)

    async with running(consumer, handler):
        await until(lambda: consumer.health().live)
        for prefetch in (10, 20, 30):
            if turns is None:
                change = asyncio.create_task(consumer.set_prefetch(prefetch))
                while len(consumer._subscription.tags) < 2:  # noqa: ASYNC110 - it lasts for a moment only
                    await asyncio.sleep(0)
                change.cancel()
                await asyncio.wait([change])
            else:
                await broken_off(consumer.set_prefetch(prefetch), turns)
        await consumer.set_prefetch(40)
        assert consumer.prefetch == 40
        await queues.publish(*range(5))
        await until(lambda: len(seen) >= 5)
        assert await consumer_count(queues.client, queues.work) == 1


async def test_the_prefetch_stays_as_it_was_when_its_change_was_broken_off(queues: Queues) -> None:
    async with queues.client.consumer(queues.work, prefetch=5) as consumer:
        await consumer.subscribe()
        await broken_off(consumer.set_prefetch(1000), 1)
        assert consumer.prefetch == 5
