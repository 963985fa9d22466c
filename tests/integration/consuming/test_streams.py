"""Streams over AMQP 0-9-1: they take nothing back, and a consumer goes on where it was."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.brokers import RabbitMQ
from tests.support.handling import Held, running, until
from tests.support.queues import taken
from tests.support.servers import ON_EVERY_SERVER, node_of

import leveret
from leveret import Classic, Topology
from leveret.errors import ConfigurationError, ConnectionClosed, LeveretError
from leveret.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.brokers import Broker

    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")

STREAM = Classic(arguments={"x-queue-type": "stream"})
#: Each way in which a consumer says that it did not handle a message.
FAILURES = ["raises", "refuses", "requeues", "releases", "dead-letters", "retries"]


@pytest.fixture(params=ON_EVERY_SERVER)
def broker(request: pytest.FixtureRequest) -> Broker:
    """Every RabbitMQ: the embedded broker has no streams."""
    return RabbitMQ(node_of(request))


@pytest.fixture
async def stream(client: leveret.Client, name: Callable[[str], str]) -> AsyncIterator[str]:
    """An empty stream, which the client has declared."""
    made = name("stream")
    await client.declare(Topology().queue(made, STREAM))
    yield made
    await client.delete_queue(f"{made}.parked")


@pytest.fixture
async def stranger(broker: Broker, stream: str) -> AsyncIterator[leveret.Client]:
    """A client that has not declared the stream, and comes back soon when its connection is lost."""
    async with leveret.connect(broker.url, recovery_initial_delay=0.02, recovery_max_delay=0.1) as client:
        yield client


async def publish(client: leveret.Client, stream: str, *values: Any) -> None:
    async with client.producer() as producer:
        (await producer.publish_batch(values, stream)).raise_for_failures()


async def test_a_consumer_begins_where_its_setting_says(client: leveret.Client, stream: str) -> None:
    await publish(client, stream, *range(20))
    for offset, expected in ((0, 0), ("first", 0), (7, 7), (19, 19)):
        async with client.consumer(stream, stream_offset=offset) as consumer, asyncio.timeout(5):
            message = await anext(consumer)
            assert message.value == expected
            assert message.headers["x-stream-offset"] == expected
            message.ack()
    async with client.consumer(stream, stream_offset="next") as consumer:
        await consumer.subscribe()
        await publish(client, stream, "new")
        async with asyncio.timeout(5):
            assert (await anext(consumer)).value == "new"


@pytest.mark.parametrize("offset", [-1, 2**63, "later", True, 1.5])
def test_an_offset_that_is_none_is_refused(offset: Any) -> None:
    with pytest.raises(ConfigurationError, match="stream_offset") as refused:
        leveret.ConsumerSettings(stream_offset=offset)
    assert refused.value.option == "stream_offset"


async def test_nothing_is_sent_when_a_declared_stream_is_consumed_without_acknowledgements(
    client: leveret.Client, stream: str
) -> None:
    async with client.consumer(stream, ack="none") as consumer:
        with pytest.raises(ConfigurationError, match="is a stream") as refused:
            await consumer.subscribe()
        assert refused.value.option == "ack"
    async with client.consumer(stream) as consumer:
        with pytest.raises(ConfigurationError, match="is a stream"):
            await consumer.get()
    with pytest.raises(ConfigurationError, match="stream_offset"):
        client.consumer(stream, ack="none", stream_offset="first")
    assert client.connection.is_open


async def test_a_consumer_without_acknowledgements_ends_the_connection_of_an_unknown_stream_only_once(
    stranger: leveret.Client, stream: str, name: Callable[[str], str]
) -> None:
    work = name("work")
    await stranger.declare(Topology().queue(work))
    bystander = stranger.consumer(work)
    seen: list[Any] = []

    async def handler(value: Any, message: leveret.Message) -> None:
        seen.append(value)

    async with running(bystander, handler):
        await until(lambda: bystander.health().live)
        consumer = stranger.consumer(stream, ack="none")
        with pytest.raises((ConfigurationError, ConnectionClosed)):
            await consumer.run(lambda value, message: None)
        with pytest.raises(ConfigurationError, match=stream):
            await consumer.subscribe()
        await publish(stranger, work, 1)
        await until(lambda: seen == [1])
        connection = bystander._connection
        await asyncio.sleep(0.5)
        assert connection.is_open, "no second attempt"


@pytest.mark.parametrize("how", FAILURES)
@pytest.mark.parametrize("who", ["client", "stranger"])
async def test_a_message_that_fails_is_parked_and_the_connection_stays(
    client: leveret.Client, stranger: leveret.Client, stream: str, how: str, who: str
) -> None:
    client = client if who == "client" else stranger
    await publish(client, stream, *range(10))
    consumer = client.consumer(stream, stream_offset="first" if who == "client" else 0)
    seen: list[Any] = []

    async def handler(value: Any, message: leveret.Message) -> Any:
        seen.append(value)
        if value != 3:
            return None
        if how == "refuses":
            return False
        if how == "requeues":
            message.requeue()
        elif how == "releases":
            message.release()
        elif how == "dead-letters":
            message.dead_letter()
        elif how == "retries":
            message.retry(1)
        raise ValueError("it fails")

    async with running(consumer, handler) as task:
        await until(lambda: seen == list(range(10)))
        connection = consumer._connection
        await until(lambda: consumer.counters()["parked"] == 1)
        assert await taken(client, f"{stream}.parked") == [3]
        await publish(client, stream, "more")
        await until(lambda: seen[-1] == "more")
        assert connection.is_open
        assert not task.done()
        assert await consumer.drain(5)
        await task


async def test_unfinished_messages_of_a_stream_come_again_to_the_next_subscription(
    client: leveret.Client, stream: str
) -> None:
    await publish(client, stream, *range(50))
    consumer = client.consumer(stream, stream_offset="first", ack="manual", prefetch=20)
    got: list[int] = []
    async with consumer, asyncio.timeout(20):
        for _ in range(5):
            message = await anext(consumer)
            got.append(message.value)
            message.ack()
        # The others wait here, and are dropped; the broker gets no basic.nack for them.
        await consumer.pause()
        await consumer.resume()
        while len(got) < 50:
            message = await anext(consumer)
            got.append(message.value)
            message.ack()
        assert got == list(range(50))
        assert client.connection.is_open


async def test_deliveries_go_on_behind_those_that_are_here_with_another_prefetch(
    client: leveret.Client, stream: str
) -> None:
    await publish(client, stream, *range(300))
    consumer = client.consumer(stream, stream_offset="first", prefetch=10)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)
        await asyncio.sleep(0)

    async with running(consumer, handler) as task:
        for prefetch in (20, 5, 100, 1, 50):
            await consumer.set_prefetch(prefetch)
            consumer._subscription.withhold("a test")
            await until(lambda: not consumer.health().live)
            consumer._subscription.allow("a test")
        await until(lambda: len(seen) >= 300)
        assert seen == list(range(300))
        assert await consumer.drain(5)
        await task


@pytest.mark.parametrize("offset", [None, "next", "first"])
async def test_a_consumer_misses_nothing_of_what_is_published_while_it_is_away(
    broker: Broker, client: leveret.Client, stream: str, offset: str | None
) -> None:
    async with (
        FaultProxy(broker.url) as proxy,
        leveret.connect(proxy.url, recovery_initial_delay=0.02, recovery_max_delay=0.1) as away,
    ):
        consumer = away.consumer(stream, stream_offset=offset)
        seen: list[int] = []

        async def handler(value: int, message: leveret.Message) -> None:
            seen.append(value)

        async with running(consumer, handler):
            await until(lambda: consumer.health().live)
            await publish(client, stream, *range(10))
            await until(lambda: len(seen) == 10)
            for first in range(10, 300, 10):
                proxy.reset()
                await publish(client, stream, *range(first, first + 10))
                await until(partial(lambda first: not consumer.health().live or len(seen) > first, first))
            await until(lambda: len(set(seen)) == 300)
            # At least once: what was handled and not yet counted may come again.
            assert sorted(set(seen)) == list(range(300))


async def test_a_stream_misses_nothing_when_its_consumer_is_away_before_the_first_message(
    broker: Broker, client: leveret.Client, stream: str
) -> None:
    await publish(client, stream, "old")
    async with client.producer() as producer, FaultProxy(broker.url) as proxy, leveret.connect(proxy.url) as away:
        await producer.publish("old", stream)
        consumer = away.consumer(stream, stream_offset="next")
        seen: list[Any] = []

        async def handler(value: Any, message: leveret.Message) -> None:
            seen.append(value)

        async with running(consumer, handler):
            await until(lambda: consumer.health().live)
            await asyncio.sleep(1.1)  # RabbitMQ takes an offset in whole seconds
            proxy.refuse()
            proxy.reset()
            await until(lambda: not consumer.health().live)
            await producer.publish("while away", stream)
            proxy.accept()
            await until(lambda: "while away" in seen)


async def test_handlers_in_any_order_lose_nothing_over_many_losses(
    broker: Broker, client: leveret.Client, stream: str
) -> None:
    chance = random.Random(7)
    async with (
        FaultProxy(broker.url) as proxy,
        leveret.connect(proxy.url, recovery_initial_delay=0.02, recovery_max_delay=0.1) as away,
    ):
        consumer = away.consumer(stream, stream_offset="first", concurrency=8, prefetch=30)
        handled: Counter[int] = Counter()

        async def handler(value: int, message: leveret.Message) -> None:
            await asyncio.sleep(chance.choice([0, 0.001, 0.02]))
            handled[value] += 1

        async with running(consumer, handler):
            await publish(client, stream, *range(2_000))
            for _ in range(15):
                await until(partial(lambda least: len(handled) >= least, min(len(handled) + 60, 2_000)))
                proxy.reset()
            await until(lambda: len(handled) == 2_000, seconds=30)
        # What was in hand or not yet behind a finished prefix came again, and no more than that.
        assert max(handled.values()) <= 16
        assert sum(handled.values()) <= 2_000 + 15 * (30 + 8 + 30)


async def test_a_header_that_a_publisher_wrote_makes_no_stream_of_a_queue(
    broker: Broker, client: leveret.Client, name: Callable[[str], str]
) -> None:
    work = name("work")
    await client.declare(Topology().queue(work))
    async with client.producer() as producer:
        await producer.publish_batch(range(20), work, headers={"x-stream-offset": 5})
    consumer = client.consumer(work, prefetch=5)
    handler = Held()
    async with running(consumer, handler):
        await handler.began.wait()
        await consumer.pause()
        await consumer.resume()
        handler.go.set()
        await until(lambda: set(handler.seen) == set(range(20)))
        await until(lambda: consumer.health().live)


async def test_an_offset_for_a_queue_that_is_no_stream_is_an_error(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    work = name("work")
    await client.declare(Topology().queue(work))
    consumer = client.consumer(work, stream_offset="first")
    with pytest.raises(LeveretError, match="stream"):
        await consumer.run(lambda value, message: None)
    with pytest.raises(ConfigurationError, match="no stream"):
        await consumer.subscribe()


async def test_the_embedded_broker_says_that_it_has_no_streams(embedded: EmbeddedBroker) -> None:
    async with leveret.connect(embedded.url) as client:
        with pytest.raises(ConnectionClosed, match="stream") as refused:
            await client.declare(Topology().queue("s", STREAM))
        assert refused.value.reply_code == 540
