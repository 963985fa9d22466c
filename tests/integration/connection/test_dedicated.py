"""A dedicated connection has a name and a limit of channels of its own."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.brokers import open_channels
from tests.support.loops import every_loop
from tests.support.rabbitmq import RabbitMQNode, listed

import leveret
from leveret import Topology
from leveret.broker import EmbeddedBroker
from leveret.errors import ConfigurationError, ConnectionClosed, OperationTimeout
from leveret.protocol import commands
from leveret.protocol.commands import Channel as ChannelMethods
from leveret.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.brokers import Broker

    from leveret.client.dedicated_connection import DedicatedConnection
    from leveret.connection.channel import Channel

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.mark.integration
async def test_s8_dedicated_connections_have_their_names_and_50_and_100_channels(
    rabbitmq: RabbitMQNode, unique_name: Callable[[str], str]
) -> None:
    queue = unique_name("queue")
    async with leveret.connect(rabbitmq.url) as client:
        publishing = await client.dedicated_connection("HighThroughputProducer", max_channels=50)
        consuming = await client.dedicated_connection("HighThroughputConsumer", max_channels=100)
        await client.declare(Topology().queue(queue))

        producers = [await publishing.producer().open() for _ in range(50)]
        consumers = [consuming.consumer(queue, prefetch=1) for _ in range(100)]
        for consumer in consumers:
            await consumer.subscribe()
        for one_more, limit in ((publishing.producer().open(), 50), (consuming.consumer(queue).subscribe(), 100)):
            with pytest.raises(ConfigurationError, match=rf"all {limit} channels of connection 'HighThroughput"):
                await one_more
        await asyncio.gather(*(producer.publish_batch(range(10), queue) for producer in producers))

        async def work(number: int) -> None:
            message = await anext(consumers[number])
            message.ack()

        await asyncio.gather(*(work(number) for number in range(100)))

        for name, channel_max in (("HighThroughputProducer", "50"), ("HighThroughputConsumer", "100")):
            assert await listed(rabbitmq, name, "channels", "channel_max") == [[channel_max, channel_max]]
        counted = {(sample.metric.name, sample.labels[1]): sample.value for sample in client.metrics()}
        assert counted["connections_open", "HighThroughputProducer"] == 1
        assert counted["connections_open", "HighThroughputConsumer"] == 1
        await client.delete_queue(queue)
    assert not publishing.connection.is_open
    assert not consuming.connection.is_open
    for name in ("HighThroughputProducer", "HighThroughputConsumer"):
        while await listed(rabbitmq, name):
            pass


async def test_producers_and_consumers_share_one_connection_when_it_is_dedicated(
    broker: Broker, client: leveret.Client, dedicated: DedicatedConnection, queue: str, name: Callable[[str], str]
) -> None:
    own = name("queue")
    await dedicated.declare(Topology().queue(own))
    async with dedicated.producer() as producer, dedicated.consumer(own) as consumer:
        await producer.publish("mine", own)
        message = await anext(consumer)
        assert message.value == "mine"
        assert producer._connection is consumer._connection is dedicated.connection
        assert dedicated.connection is not client.connection
        # The pool's, the producer's and the consumer's.
        assert await open_channels(broker, dedicated.connection) == 3
        message.ack()
    assert (dedicated.name, dedicated.connection.name) == ("dedicated", "dedicated")
    assert await dedicated.purge(own) == 0
    assert await dedicated.delete_queue(own) == 0
    assert "'dedicated'" in repr(dedicated)
    assert "guest:guest" not in repr(dedicated)


async def test_it_can_be_awaited_and_closed_when_no_block_fits(client: leveret.Client) -> None:
    opening = client.dedicated_connection("awaited")
    dedicated = await opening
    with pytest.raises(ConfigurationError, match=r"dedicated_connection\('awaited'\) was opened already"):
        await opening
    assert dedicated.connection.is_open
    assert dedicated.connection.negotiated.channel_max == client.connection.negotiated.channel_max
    await dedicated.close()
    await dedicated.close()  # again is no error
    assert not dedicated.connection.is_open
    for call in (dedicated.channel(), dedicated.declare(Topology().queue("q")), dedicated.producer().open()):
        with pytest.raises(ConnectionClosed, match=r"connection 'awaited' was closed by this side"):
            await call


async def test_both_sides_refuse_a_channel_when_all_are_in_use(broker: Broker, dedicated: DedicatedConnection) -> None:
    connection = dedicated.connection
    assert connection.negotiated.channel_max == 3
    channels = [await dedicated.channel() for _ in range(3)]
    for call in (dedicated.channel, dedicated.producer().open, dedicated.consumer("q").get):
        with pytest.raises(ConfigurationError, match=r"all 3 channels of connection 'dedicated' are in use") as caught:
            await call()
        assert caught.value.option == "channel_max"
    with pytest.raises(ConfigurationError, match=r"all 3 channels"):
        await dedicated.declare(Topology().queue("q"))
    assert all(channel.is_open for channel in channels)

    # The broker keeps the limit as well, for a client that would not.
    connection.transport.out.append(commands.encode(4, commands.make(ChannelMethods.Open, out_of_band="")))
    with pytest.raises(ConnectionClosed, match=r"number of channels opened \(3\) has reached") as closed:
        await channels[0].queue_declare("q", passive=True)
    assert closed.value.reply_code == 530


@pytest.mark.parametrize(
    ("arguments", "option", "text"),
    [
        ({"name": ""}, "name", "name has 0 bytes in UTF-8; it must have 1 to 200"),
        ({"name": "é" * 101}, "name", "name has 202 bytes in UTF-8; it must have 1 to 200"),
        ({"name": "a\0b"}, "name", "name has a NUL or is not Unicode text"),
        ({"name": None}, "name", "name is of type NoneType; it must be text"),
        ({"name": "n", "max_channels": 0}, "max_channels", "max_channels is 0; it must be 1 to 65535"),
        ({"name": "n", "max_channels": 65_536}, "max_channels", "max_channels is 65536; it must be 1 to 65535"),
        (
            {"name": "n", "max_channels": True},
            "max_channels",
            "max_channels is of type bool; it must be a whole number",
        ),
        ({"name": "n", "max_channels": "50"}, "max_channels", "max_channels is of type str; it must be a whole number"),
    ],
    ids=str,
)
async def test_an_argument_is_named_when_it_is_refused(arguments: Any, option: str, text: str) -> None:
    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
        with pytest.raises(ConfigurationError) as caught:
            client.dedicated_connection(**arguments)
        assert (str(caught.value), caught.value.option) == (text, option)
        assert len(broker.sessions) == 1


async def test_a_name_is_refused_as_long_as_it_is_in_use(client: leveret.Client) -> None:
    async with client.dedicated_connection("x" * 200, max_channels=1) as first:
        with pytest.raises(ConfigurationError, match=r"has a dedicated connection named 'xxx") as caught:
            await client.dedicated_connection("x" * 200)
        assert caught.value.option == "name"
        assert first.connection.is_open
        assert client._dedicated == {"x" * 200: first}
    async with client.dedicated_connection("x" * 200):
        pass
    # Two at once: one of them has it.
    both = await asyncio.gather(
        *(client.dedicated_connection("x") for _ in range(2)),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in both) == ["ConfigurationError", "DedicatedConnection"]


async def test_a_name_is_free_again_when_its_connection_could_not_be_opened(broker: Broker) -> None:
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, connect_timeout=0.3) as client:
        proxy.close()
        opening = client.dedicated_connection("late")
        for _ in range(2):
            with pytest.raises(OperationTimeout, match="Connection refused"):
                await opening  # the same object may be tried again
        assert client._dedicated == {}


@pytest.mark.parametrize("turns", [*range(12), 20, 40])
async def test_nothing_is_left_when_opening_is_cancelled(broker: Broker, client: leveret.Client, turns: int) -> None:
    async def opened() -> DedicatedConnection:
        return await client.dedicated_connection("cancelled")

    task = asyncio.create_task(opened())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await task).close()
    assert client._dedicated == {}


@every_loop
async def test_it_is_closed_with_its_client_and_nothing_is_lost(
    broker: Broker, queue: str, client: leveret.Client
) -> None:
    async with leveret.connect(broker.url) as owner:
        dedicated = await owner.dedicated_connection("with its client")
        producer = await dedicated.producer().open()
        tickets = [producer.publish_nowait(number, queue) for number in range(100)]
    assert [(await ticket).delivery_tag for ticket in tickets] == list(range(1, 101))
    assert not dedicated.connection.is_open
    assert dedicated.connection.transport.closed
    assert await client.purge(queue) == 100
    with pytest.raises(ConnectionClosed, match=r"client is closed"):
        await owner.dedicated_connection("too late")


async def test_nothing_is_left_when_the_client_is_closed_while_it_opens(broker: Broker) -> None:
    client = await leveret.connect(broker.url)

    async def opened() -> DedicatedConnection:
        return await client.dedicated_connection("too late")

    task = asyncio.create_task(opened())
    for _ in range(3):
        await asyncio.sleep(0)  # it is being made
    await client.close()
    async with asyncio.timeout(5):
        with pytest.raises(leveret.LeveretError):
            await task
    assert client._dedicated == {}


async def test_it_is_counted_under_its_name(client: leveret.Client, dedicated: DedicatedConnection) -> None:
    def counted() -> dict[tuple[str, str], int]:
        return {(sample.metric.name, sample.labels[1]): sample.value for sample in client.metrics()}

    before = counted()
    assert before["connections_opened", "dedicated"] == before["connections_open", "dedicated"] == 1
    assert before["sent", "dedicated"] > 100
    await dedicated.close()
    after = counted()
    assert after["connections_opened", "dedicated"] == 1
    assert after["connections_open", "dedicated"] == 0
    assert after["sent", "dedicated"] > before["sent", "dedicated"]


async def declare_for_ever(channel: Channel, queue: str) -> None:
    while True:
        await channel.queue_declare(queue, passive=True)


async def test_new_producers_get_a_new_connection_of_the_same_name_when_it_was_lost(
    broker: Broker, client: leveret.Client, dedicated: DedicatedConnection, queue: str
) -> None:
    lost = dedicated.connection
    async with dedicated.channels.acquire() as channel:
        await broker.close_connections()
        with pytest.raises(ConnectionClosed):
            await declare_for_ever(channel, queue)
    async with dedicated.producer() as producer:
        await producer.publish(1, queue)
    assert await dedicated.purge(queue) == 1
    assert dedicated.connection is not lost
    assert (dedicated.connection.name, dedicated.connection.negotiated.channel_max) == ("dedicated", 3)
