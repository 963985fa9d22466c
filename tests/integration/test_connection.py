"""A connection: what is negotiated, what the broker and the kernel see of it, and whose it is."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.loops import every_loop

import leveret
from leveret import Topology
from leveret.broker import EmbeddedBroker
from leveret.errors import ConfigurationError, ConnectionClosed, WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.support.brokers import Broker
    from tests.support.rabbitmq import RabbitMQNode

pytestmark = pytest.mark.usefixtures("no_leftovers")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads options as Linux has them")


# ---------------------------------------------------------------------- what the broker sees


@pytest.mark.integration
async def test_s3_the_broker_lists_the_connection_by_its_name_when_it_has_one(rabbitmq: RabbitMQNode) -> None:
    async with leveret.connect(rabbitmq.url, client_name="High Performance Application") as client:
        await client.consumer("amq.nothing").close()
        listed = await asyncio.to_thread(rabbitmq.ctl, "list_connections", "client_properties")
        assert '{"connection_name","High Performance Application (publish)"}' in listed
        assert '{"product","Leveret"}' in listed
        assert f'{{"version","{leveret.__version__}"}}' in listed
        for capability in ("publisher_confirms", "consumer_cancel_notify", "connection.blocked", "basic.nack"):
            assert f'{{"{capability}",true}}' in listed


async def test_publishing_and_consuming_have_their_own_connections_when_both_are_used(
    client: leveret.Client, queue: str
) -> None:
    async with client.consumer(queue) as consumer:
        await consumer.get()
        publishing, consuming = client.connection, client._consuming.connection
        assert consuming is not None
        assert consuming is not publishing
        assert (publishing.name, consuming.name) == ("leveret (publish)", "leveret (consume)")
        assert repr(publishing).startswith("<Connection 'leveret (publish)' open")


@pytest.mark.integration
async def test_s5_the_smaller_heartbeat_is_used_when_both_sides_have_one(rabbitmq: RabbitMQNode) -> None:
    assert leveret.ConnectionSettings().heartbeat == 30.0
    async with leveret.connect(rabbitmq.url, client_name="s5") as client:  # RabbitMQ asks for 60
        assert client.connection.negotiated.heartbeat == 30
        listed = await asyncio.to_thread(rabbitmq.ctl, "list_connections", "timeout", "client_properties")
        assert [line.split("\t")[0] for line in listed.splitlines() if "s5 (publish)" in line] == ["30"]


@pytest.mark.parametrize(("ours", "theirs", "agreed"), [(30, 5, 5), (5, 30, 5), (30, 0, 30), (0, 30, 0)])
async def test_s5_heartbeats_follow_both_sides_when_they_differ(ours: int, theirs: int, agreed: int) -> None:
    async with EmbeddedBroker(heartbeat=theirs) as broker, leveret.connect(broker.url, heartbeat=ours) as client:
        assert client.connection.negotiated.heartbeat == agreed


async def test_s34_the_smaller_frame_max_is_used_when_the_client_asks_for_more(
    broker: Broker, name: Callable[[str], str]
) -> None:
    async with leveret.connect(broker.url, frame_max=1_048_576) as client:
        assert client.connection.negotiated.frame_max == 131_072


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"), [(1_048_576, 1_048_576, 1_048_576), (1_048_576, 8192, 8192), (4096, 1_048_576, 4096)]
)
async def test_s34_bodies_are_split_by_the_frame_max_when_it_was_negotiated(
    ours: int, theirs: int, agreed: int
) -> None:
    body = bytes(range(256)) * 12_288  # 3 MiB
    async with EmbeddedBroker(frame_max=theirs) as broker, leveret.connect(broker.url, frame_max=ours) as client:
        assert client.connection.negotiated.frame_max == agreed
        await client.declare(Topology().queue("q"))
        async with client.producer(serializer="bytes") as producer:
            await producer.publish(body, "q")
        async with client.consumer("q") as consumer:
            frames = consumer_frames(client)
            message = await consumer.get()
            assert message is not None
            assert message.body == body
            # channel.open-ok, get-ok, header, and the body in as few frames as fit.
            assert consumer_frames(client) - frames >= len(body) // (agreed - 8)


def consumer_frames(client: leveret.Client) -> int:
    connection = client._consuming.connection
    return connection.transport.reader.received_frames if connection else 0


async def test_what_the_server_is_can_be_read_when_the_connection_is_open(client: leveret.Client) -> None:
    negotiated = client.connection.negotiated
    assert negotiated.channel_max >= 100
    assert negotiated.server_properties["product"]
    assert negotiated.server_properties["version"]
    assert negotiated.capabilities["publisher_confirms"] is True


# ---------------------------------------------------------------------- what the kernel sees


def options(client: leveret.Client) -> dict[str, int]:
    """The options of the live socket."""
    sock: socket.socket = client.connection.transport.extra_info("socket")
    tcp, level = socket.IPPROTO_TCP, socket.SOL_SOCKET
    return {
        "receive_buffer": sock.getsockopt(level, socket.SO_RCVBUF),
        "send_buffer": sock.getsockopt(level, socket.SO_SNDBUF),
        "keepalive": sock.getsockopt(level, socket.SO_KEEPALIVE),
        "keepalive_time": sock.getsockopt(tcp, socket.TCP_KEEPIDLE),
        "keepalive_interval": sock.getsockopt(tcp, socket.TCP_KEEPINTVL),
        "nodelay": sock.getsockopt(tcp, socket.TCP_NODELAY),
    }


@linux_only
@every_loop
async def test_s35_s36_s37_the_socket_has_the_guides_options_when_nothing_else_was_asked_for(
    client: leveret.Client,
) -> None:
    assert options(client) == {
        "receive_buffer": 2 * 65_536,  # Linux doubles what it is given, for its own bookkeeping (man 7 socket)
        "send_buffer": 2 * 65_536,
        "keepalive": 1,
        "keepalive_time": 60,
        "keepalive_interval": 10,
        "nodelay": 1,
    }


@linux_only
async def test_s35_s36_s37_the_socket_has_the_options_that_were_asked_for(broker: Broker) -> None:
    asked = {
        "socket_receive_buffer_size": 16_384,
        "socket_send_buffer_size": 32_768,
        "tcp_keepalive_time": 33,
        "tcp_keepalive_interval": 7,
    }
    async with leveret.connect(broker.url, **asked) as client:
        read = options(client)
        assert (read["receive_buffer"], read["send_buffer"]) == (32_768, 65_536)
        assert (read["keepalive_time"], read["keepalive_interval"]) == (33, 7)
    async with leveret.connect(broker.url, tcp_keepalive=False, socket_send_buffer_size=0) as client:
        assert options(client)["keepalive"] == 0
    async with leveret.connect(broker.url, tcp_nodelay=False) as client:
        # asyncio and uvloop turn it on for every TCP connection; the option must win.
        assert options(client)["nodelay"] == 0


async def test_everything_works_when_the_broker_listens_on_a_unix_socket(tmp_path: Any) -> None:
    async with EmbeddedBroker(path=tmp_path / "broker") as broker, leveret.connect(broker.url) as client:
        await client.declare(Topology().queue("q"))
        async with client.producer() as producer:
            await producer.publish("local", "q")
        async with client.consumer("q") as consumer:
            message = await consumer.get()
            assert message is not None
            assert message.value == "local"


# ---------------------------------------------------------------------- channels


async def test_channel_numbers_are_used_again_when_channels_are_closed(broker: Broker) -> None:
    async with leveret.connect(broker.url, channel_max=3) as client:
        for _ in range(5):
            channels = [await client.channel() for _ in range(3)]
            assert sorted(channel.number for channel in channels) == [1, 2, 3]
            with pytest.raises(ConfigurationError, match="all 3 channels") as refused:
                await client.channel()
            assert refused.value.option == "channel_max"
            await asyncio.gather(*(channel.close() for channel in channels))
            await channels[0].close()  # again is no error
        with pytest.raises(leveret.errors.ChannelClosed):
            await channels[0].queue_declare("q")


@pytest.mark.parametrize("broker", [pytest.param("rabbitmq", marks=pytest.mark.integration)], indirect=True)
async def test_every_method_of_a_channel_is_answered_when_the_broker_knows_it(
    client: leveret.Client, queue: str
) -> None:
    channel = await client.channel()
    await channel.tx_select()
    await channel.tx_commit()
    await channel.tx_rollback()
    await channel.basic_qos(10, global_=True)
    assert await channel.basic_get(queue) is None
    await channel.basic_recover()
    assert await channel.flow(True) is True
    await channel.close()


async def test_a_new_secret_is_taken_when_the_broker_knows_them(client: leveret.Client) -> None:
    await client.connection.update_secret("guest", "rotation")
    assert client.connection.is_open


# ---------------------------------------------------------------------- whose it is


@every_loop
async def test_every_call_is_refused_when_it_comes_from_another_threads_loop(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer, client.consumer(queue) as consumer:
        await producer.publish(1, queue)
        message = await consumer.get()
        assert message is not None
        ticket = producer.publish_nowait(2, queue)

        async def nowait() -> None:
            producer.publish_nowait(3, queue)

        async def ack() -> None:
            message.ack()

        async def await_ticket() -> None:
            await ticket

        calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "publish": lambda: producer.publish(3, queue),
            "publish_nowait": nowait,
            "publish_batch": lambda: producer.publish_batch([3], queue),
            "flush": producer.flush,
            "ticket": await_ticket,
            "close producer": producer.close,
            "declare": lambda: client.declare(Topology().queue(queue)),
            "channel": client.channel,
            "purge": lambda: client.purge(queue),
            "get": consumer.get,
            "ack": ack,
            "update_secret": lambda: client.connection.update_secret("guest"),
        }
        for name, call in calls.items():
            with pytest.raises(WrongLoopError, match=r"run_coroutine_threadsafe"):
                await asyncio.to_thread(asyncio.run, call())
            assert client.connection.is_open, name
        # Nothing was sent, and nothing was harmed.
        assert (await ticket).delivery_tag == 2
        assert producer.next_delivery_tag == 3
        assert message.ack()
        assert (await producer.publish(3, queue)).delivery_tag == 3
    assert await client.purge(queue) == 2


@pytest.mark.parametrize("turns", [*range(12), 20, 40])
async def test_nothing_is_left_when_connecting_is_cancelled(broker: Broker, turns: int) -> None:
    async def connect() -> leveret.Client:
        return await leveret.connect(broker.url)

    task = asyncio.create_task(connect())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await task).close()


async def test_producers_and_consumers_are_forgotten_when_they_were_closed(client: leveret.Client, queue: str) -> None:
    for _ in range(20):
        async with client.producer() as producer, client.consumer(queue) as consumer:
            await producer.publish(1, queue)
            message = await consumer.get()
            assert message is not None
            message.ack()
    del producer, consumer, message
    gc.collect()
    assert len(client._producers) == len(client._consumers) == 0
    # What is open lies in the pool: the queue was declared there.
    assert set(client.connection._channels.values()) == client.channels._channels


@every_loop
async def test_the_socket_is_closed_when_the_client_was_closed(broker: Broker, queue: str) -> None:
    async with leveret.connect(broker.url) as client:
        async with client.consumer(queue) as consumer:
            await consumer.get()
        transports = [client.connection.transport, consumer._connection.transport]
        assert not any(transport.closed for transport in transports)
    assert all(transport.closed for transport in transports)


async def test_nothing_can_be_done_when_the_client_is_closed(broker: Broker, name: Callable[[str], str]) -> None:
    async with leveret.connect(broker.url) as client:
        producer = client.producer()
        consumer = client.consumer(name())
    for call in (client.channel(), client.declare(Topology()), producer.open(), client.purge("q")):
        with pytest.raises((ConnectionClosed, leveret.LeveretError)):
            await call
    with pytest.raises(leveret.LeveretError):
        await consumer.get()
