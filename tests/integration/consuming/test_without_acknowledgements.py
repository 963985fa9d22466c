"""Consumers without acknowledgements, for which the broker knows no limit: a slow one holds up nobody else."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import Held, Queues, running, until
from tests.support.queues import consumer_count, taken

import leveret
from leveret.consuming.states import ConsumerState

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")

BODY = "x" * 10_000
#: How many such messages a broker may have sent before it answers basic.cancel: RabbitMQ sends 200 ahead of the writer
#: of a channel, and the rest is what the sockets of both sides hold, which is up to 10 MB on Linux.
ON_THE_WAY = 1_500


async def withheld(consumer: leveret.Consumer[Any]) -> int:
    """Waits until the broker has answered basic.cancel; returns how many messages wait then."""
    await until(lambda: consumer._subscription.is_withheld)
    await until(lambda: not consumer._subscription.tags and consumer._subscription._adjusting is None)
    return consumer.health().waiting


async def test_a_slow_consumer_holds_up_no_other_on_its_connection_and_its_memory_is_bounded(
    queues: Queues, name: Callable[[str], str]
) -> None:
    count, prefetch = 5_000, 20
    other = await Queues(queues.client, name).declare()
    await queues.publish(*[f"{number} {BODY}" for number in range(count)])
    slow = queues.client.consumer(queues.work, ack="none", prefetch=prefetch)
    quick = queues.client.consumer(other.work)
    handler = Held()
    quick_seen: list[Any] = []

    async def quick_handler(value: Any, message: leveret.Message) -> None:
        quick_seen.append(value)

    async with running(slow, handler) as task, running(quick, quick_handler) as quick_task:
        await handler.began.wait()
        # Its subscription is taken back, and what came meanwhile is kept.
        waiting = await withheld(slow)
        assert 10 * prefetch < waiting <= 10 * prefetch + ON_THE_WAY
        assert await consumer_count(queues.client, queues.work) == 0
        assert slow.health(), "it is slow, and nothing is wrong with it"
        assert slow.state is ConsumerState.CONSUMING
        assert slow._connection is quick._connection
        assert slow._connection.transport.reading
        await other.publish(*range(500))
        await until(lambda: quick_seen == list(range(500)))
        assert slow.health().waiting == waiting

        most = 0

        def look() -> bool:
            nonlocal most
            most = max(most, slow.health().waiting)
            return len(handler.seen) == count

        handler.go.set()
        await until(look, seconds=60)
        assert [value.partition(" ")[0] for value in handler.seen] == [str(number) for number in range(count)]
        assert most <= 10 * prefetch + ON_THE_WAY
        await until(lambda: slow.health().live)
        assert await slow.drain(5)
        assert await quick.drain(5)
        await asyncio.gather(task, quick_task)
    assert await queues.remaining() == []


async def test_messages_that_wait_for_the_key_of_another_count_as_well(queues: Queues) -> None:
    await queues.publish(*[f"{number} {BODY}" for number in range(2_500)])
    consumer = queues.client.consumer(queues.work, ack="none", prefetch=5, concurrency=2, ordered_by="routing_key")
    handler = Held()
    async with running(consumer, handler):
        await withheld(consumer)
        # All have one key, so they left the buffer and wait for the first of them.
        assert consumer.health().waiting <= 50 + ON_THE_WAY
        handler.go.set()
        await until(lambda: len(handler.seen) == 2_500, seconds=60)
        assert [int(value.partition(" ")[0]) for value in handler.seen] == list(range(2_500))


async def test_a_slow_consumer_handles_what_it_has_when_its_connection_is_lost_and_goes_on(
    broker: Broker, queues: Queues
) -> None:
    await queues.publish(*range(3_000))
    async with leveret.connect(broker.url, recovery_max_delay=0.2) as client:
        consumer = client.consumer(queues.work, ack="none", prefetch=5)
        handler = Held()
        async with running(consumer, handler):
            here = await withheld(consumer)
            before = consumer._subscription.channel
            await broker.close_connections()
            await until(lambda: consumer._subscription.channel not in (before, None))
            assert consumer.health().waiting == here
            assert not consumer.health().live, "it has no room yet"
            handler.go.set()
            await until(lambda: len(set(handler.seen)) == 3_000, seconds=60)
            # This client has not declared the queue, so a stand-in kept it; the message of that may come again.
            assert [*dict.fromkeys(handler.seen)] == list(range(3_000))
            assert len(handler.seen) <= 3_001


@pytest.mark.parametrize("end", ["drain", "cancel"])
async def test_a_slow_consumer_that_ends_handles_what_it_has(queues: Queues, end: str) -> None:
    await queues.publish(*range(3_000))
    consumer = queues.client.consumer(queues.work, ack="none", prefetch=5)
    handler = Held()
    async with running(consumer, handler) as task:
        await withheld(consumer)
        ending = asyncio.create_task(getattr(consumer, end)())
        await asyncio.sleep(0)
        handler.go.set()
        async with asyncio.timeout(20):
            await ending
            await task
    assert handler.seen + await queues.remaining() == list(range(3_000))


@pytest.mark.parametrize("declared_by", ["itself", "another"])
async def test_an_auto_delete_queue_stays_when_its_only_consumer_is_slow(
    client: leveret.Client, other: leveret.Client, unique_name: Callable[[str], str], declared_by: str
) -> None:
    count, queue = 3_000, unique_name("auto")
    declaring = client if declared_by == "itself" else other
    await declaring.declare(leveret.Topology().queue(queue, auto_delete=True))
    consumer = client.consumer(queue, ack="none", prefetch=5)
    handler = Held()
    async with running(consumer, handler) as task:
        await until(lambda: consumer.health().live)
        async with other.producer() as producer:
            (await producer.publish_batch(range(count), queue)).raise_for_failures()
        await withheld(consumer)
        # The stand-in, which keeps the next message and takes no other.
        await until(lambda: consumer._subscription._stand_in is not None)
        assert await consumer_count(other, queue) == 1
        handler.go.set()
        await until(lambda: len(handler.seen) >= count, seconds=60)
        assert handler.seen == list(range(count))
        await until(lambda: consumer.health().live)
        # The consumer comes back before the stand-in goes.
        async with asyncio.timeout(10):
            while await consumer_count(other, queue) != 1:  # noqa: ASYNC110 - what is looked at has no event
                await asyncio.sleep(0.01)
        assert await consumer.drain(5)
        await task


@pytest.mark.parametrize("end", ["pause", "drain", "loss"])
async def test_the_message_of_a_stand_in_is_handled_in_its_place_however_the_standing_in_ends(
    broker: Broker, other: leveret.Client, name: Callable[[str], str], end: str
) -> None:
    count, queue = 3_000, name("expiring")
    await other.declare(leveret.Topology().queue(queue, leveret.Classic(expires=600)))
    async with leveret.connect(broker.url, recovery_max_delay=0.1) as client, other.producer() as producer:
        consumer = client.consumer(queue, ack="none", prefetch=5)
        handler = Held()
        async with running(consumer, handler) as task:
            await until(lambda: consumer.health().live)
            (await producer.publish_batch(range(count), queue)).raise_for_failures()
            await until(lambda: consumer._subscription._stand_in is not None)
            if end == "loss":
                await broker.close_connections()
                await until(lambda: consumer._subscription._stand_in is None)
                handler.go.set()
            elif end == "pause":
                await consumer.pause()
                assert await consumer_count(other, queue) == 0
                handler.go.set()
                await consumer.resume()
            if end == "drain":
                handler.go.set()
                assert await consumer.drain(20)
                await task
                rest = await taken(other, queue)
                assert handler.seen + rest == list(range(count))
                assert consumer.counters()["delivered"] == len(handler.seen)
            else:
                await until(lambda: len(set(handler.seen)) == count, seconds=60)
                assert sorted(set(handler.seen)) == list(range(count))
