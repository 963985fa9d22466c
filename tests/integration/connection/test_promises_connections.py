"""What the performance guide promises of connections, by the numbers of its rows and with its values."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.brokers import Embedded, RabbitMQ
from tests.support.loops import every_loop
from tests.support.plugins import plugin
from tests.support.proxy import Proxy
from tests.support.rabbitmq import RabbitMQNode, listed
from tests.support.servers import ON_EVERY_SERVER, server_of

import leveret
from leveret import Topology
from leveret.broker import EmbeddedBroker
from leveret.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectFailed,
    ConnectionClosed,
    ConnectionLost,
)
from leveret.plugins import MetricsSpec, PluginRegistry
from leveret.settings import ConnectionSettings, Endpoint, MonitoringSettings, Secret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads options as Linux has them")

FRAME_MAX = 1_048_576


# ---------------------------------------------------------------------- the client


@pytest.mark.integration
async def test_s3_client_name_is_what_the_broker_lists(rabbitmq: RabbitMQNode) -> None:
    async with leveret.connect(rabbitmq.url, client_name="High Performance Application"):
        ((properties,),) = await listed(rabbitmq, "High Performance Application (publish)")
        assert '{"product","Leveret"}' in properties
        assert f'{{"version","{leveret.__version__}"}}' in properties
        for capability in ("publisher_confirms", "consumer_cancel_notify", "connection.blocked", "basic.nack"):
            assert f'{{"{capability}",true}}' in properties


@every_loop
@pytest.mark.parametrize("auto_recovery", [True, False])
async def test_s4_a_lost_connection_is_dialed_again_unless_auto_recovery_is_off(
    broker: Broker, auto_recovery: bool
) -> None:
    assert ConnectionSettings().auto_recovery is True
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url, auto_recovery=auto_recovery) as client:
        link, lost = client.publishing_link, client.connection
        assert await link.recovered() is lost
        proxy.reset()
        await lost._ended
        if auto_recovery:
            assert (await link.recovered()).is_open
            assert client.connection is not lost
        else:
            for _ in range(2):
                with pytest.raises(ConnectionLost) as caught:
                    await link.recovered()
                assert str(caught.value) == str(lost.error)
            assert client.connection is lost
        # What is asked for anew is no recovery: it has a connection in any case.
        assert (await client.channel()).is_open


@pytest.mark.integration
async def test_s5_heartbeats_are_every_30_s_unless_they_are_off(rabbitmq: RabbitMQNode) -> None:
    assert ConnectionSettings().heartbeat == 30.0
    async with leveret.connect(rabbitmq.url, client_name="s5") as client:  # RabbitMQ asks for 60
        assert client.connection.negotiated.heartbeat == 30
        assert await listed(rabbitmq, "s5 (publish)", "timeout") == [["30"]]
    async with leveret.connect(rabbitmq.url, heartbeat=0, client_name="s5 off") as client:
        assert client.connection.negotiated.heartbeat == 0
        assert await listed(rabbitmq, "s5 off (publish)", "timeout") == [["0"]]


@pytest.mark.parametrize(("ours", "theirs", "agreed"), [(30, 5, 5), (5, 30, 5), (30, 0, 30), (0, 30, 0)])
async def test_s5_heartbeats_follow_both_sides_when_they_differ(ours: int, theirs: int, agreed: int) -> None:
    async with EmbeddedBroker(heartbeat=theirs) as broker, leveret.connect(broker.url, heartbeat=ours) as client:
        assert client.connection.negotiated.heartbeat == agreed


async def test_s6_endpoint_options_say_where_and_as_whom_a_client_connects(broker: Broker) -> None:
    default = ConnectionSettings()
    assert default.endpoints == (Endpoint("localhost", 5672),)
    assert (default.username, default.password, default.virtual_host) == ("guest", Secret("guest"), "/")
    assert default.connect_timeout == 30.0

    port = ConnectionSettings.from_url(broker.url).endpoints[0].port
    given: dict[str, Any] = {"endpoints": [Endpoint("localhost", port)], "username": "guest", "password": "guest"}
    settings = default.replace(**given, virtual_host="/", connect_timeout=30)
    async with leveret.connect(settings) as client:
        assert client.connection.transport.extra_info("peername")[1] == port
    for wrong, error in (
        ({"password": "wrong"}, AuthenticationError),
        ({"username": "nobody"}, AuthenticationError),
        ({"virtual_host": "missing"}, ConnectionClosed),
        ({"endpoints": [Endpoint("localhost", 1)]}, ConnectFailed),
    ):
        with pytest.raises(error):
            await leveret.connect(settings, **wrong)


# ---------------------------------------------------------------------- pools and dedicated connections


async def test_s7_a_connection_is_shared_and_its_channels_are_pooled(
    broker: Broker, client: leveret.Client, queue: str
) -> None:
    limit = ConnectionSettings().max_pooled_channels
    dedicated = await client.dedicated_connection("s7")
    connection = dedicated.connection

    async def ask() -> int:
        async with dedicated.channels.acquire() as channel:
            await channel.queue_declare(queue, passive=True)
            return channel.number

    for _ in range(10):
        numbers = await asyncio.gather(*(ask() for _ in range(200)))
        assert set(numbers) == set(range(1, limit + 1))
    assert dedicated.connection is connection
    if isinstance(broker, RabbitMQ):
        assert await listed(broker.node, "s7", "channels") == [[str(limit)]]
    else:
        assert isinstance(broker, Embedded)
        assert max(len(session._channels) for session in broker.broker.sessions) == limit


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

        for name, limit in (("HighThroughputProducer", "50"), ("HighThroughputConsumer", "100")):
            assert await listed(rabbitmq, name, "channels", "channel_max") == [[limit, limit]]
        counted = {(sample.metric.name, sample.labels[1]): sample.value for sample in client.metrics()}
        assert counted["connections_open", "HighThroughputProducer"] == 1
        assert counted["connections_open", "HighThroughputConsumer"] == 1
        await client.delete_queue(queue)
    assert not publishing.connection.is_open
    assert not consuming.connection.is_open
    for name in ("HighThroughputProducer", "HighThroughputConsumer"):
        while await listed(rabbitmq, name):
            pass


class Sink:
    """Counts how often it is started."""

    def __init__(self) -> None:
        self.started = 0

    def start(self, source: object) -> None:
        self.started += 1

    def close(self) -> None: ...


async def test_s9_opening_twice_is_harmless_or_a_typed_error(broker: Broker, queue: str) -> None:
    sink = Sink()
    registry = PluginRegistry.from_plugins(plugin("gauges", metrics=[MetricsSpec(name="test", factory=lambda: sink)]))
    connecting = leveret.connect(broker.url, plugins=registry, monitoring=MonitoringSettings(sinks=["test"]))
    async with connecting as client:
        connection = client.connection
        # A client: harmless, also many at once.
        assert set(await asyncio.gather(*(client.open() for _ in range(10)))) == {client}
        assert client.connection is connection
        assert sink.started == 1
        # What `connect` returned, and a producer: a typed error, and nothing is harmed.
        with pytest.raises(ConfigurationError, match=r"connect\(\.\.\.\) was opened already"):
            await connecting
        async with client.producer() as producer:
            with pytest.raises(ConfigurationError, match=r"can be opened once"):
                await producer.open()
            await producer.publish(1, queue)
        # A consumer: harmless.
        async with client.consumer(queue) as consumer:
            for _ in range(2):
                await consumer.subscribe()
            (await anext(consumer)).ack()
    with pytest.raises(ConnectionClosed, match=r"was closed by this side"):
        await client.open()
    async with connecting as another:
        assert another is not client


# ---------------------------------------------------------------------- the network


async def test_s34_a_frame_max_of_1_mib_is_lowered_when_the_server_allows_less(
    broker: Broker, name: Callable[[str], str]
) -> None:
    async with leveret.connect(broker.url, frame_max=FRAME_MAX) as client:
        assert client.connection.negotiated.frame_max == 131_072


@pytest.fixture(params=ON_EVERY_SERVER)
def large_frames(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RabbitMQNode]:
    """A RabbitMQ that allows the guide's frames."""
    with RabbitMQNode(tmp_path, server=server_of(request), config=f"frame_max = {FRAME_MAX}") as node:
        yield node


@pytest.mark.integration
async def test_s34_a_frame_max_of_1_mib_is_negotiated_when_the_server_allows_it(large_frames: RabbitMQNode) -> None:
    async with leveret.connect(large_frames.url, frame_max=FRAME_MAX) as client:
        assert client.connection.negotiated.frame_max == FRAME_MAX
        assert await listed(large_frames, "leveret (publish)", "frame_max") == [[str(FRAME_MAX)]]
        await round_trip_in_frames_of(client, FRAME_MAX)


@pytest.mark.parametrize(
    ("ours", "theirs", "agreed"), [(FRAME_MAX, FRAME_MAX, FRAME_MAX), (FRAME_MAX, 8192, 8192), (4096, FRAME_MAX, 4096)]
)
async def test_s34_bodies_are_split_by_the_frame_max_when_it_was_negotiated(
    ours: int, theirs: int, agreed: int
) -> None:
    async with EmbeddedBroker(frame_max=theirs) as broker, leveret.connect(broker.url, frame_max=ours) as client:
        assert client.connection.negotiated.frame_max == agreed
        await round_trip_in_frames_of(client, agreed)


async def round_trip_in_frames_of(client: leveret.Client, frame_max: int) -> None:
    """Publishes 3 MiB and gets them back."""
    body = bytes(range(256)) * 12_288
    await client.declare(Topology().queue("large"))
    async with client.producer(serializer="bytes") as producer:
        await producer.publish(body, "large")
    async with client.consumer("large") as consumer:
        message = await consumer.get()
        assert message is not None
        assert message.body == body
        assert client.consuming_link.connection is not None
        frames = client.consuming_link.connection.transport.reader.received_frames
    # The body in as few frames as fit, and fewer than ten of the connection, the channel and the header.
    in_body = -(-len(body) // (frame_max - 8))
    assert in_body <= frames < in_body + 10


#: What the kernel begins with and how far it goes when it adapts a buffer, to receive and to send (man 7 tcp).
KERNELS_OWN_SIZES = [
    tuple(map(int, path.read_text().split()[1:])) if path.exists() else (0, 0)
    for path in (Path("/proc/sys/net/ipv4/tcp_rmem"), Path("/proc/sys/net/ipv4/tcp_wmem"))
]


async def socket_options(broker: Broker, **options: Any) -> dict[str, int]:
    """What the kernel says of the socket of a client with these options."""
    async with leveret.connect(broker.url, **options) as client:
        return client.connection.socket_options()


@linux_only
@every_loop
async def test_s35_socket_buffers_are_as_large_as_the_settings_say_and_else_the_kernels_own(broker: Broker) -> None:
    def sizes(found: dict[str, int]) -> tuple[int, int]:
        return found["socket_receive_buffer_size"], found["socket_send_buffer_size"]

    # Linux doubles what it is given, for its own bookkeeping (man 7 socket).
    guides = {"socket_receive_buffer_size": 65_536, "socket_send_buffer_size": 65_536}
    assert sizes(await socket_options(broker, **guides)) == (2 * 65_536, 2 * 65_536)
    asked = {"socket_receive_buffer_size": 16_384, "socket_send_buffer_size": 32_768}
    assert sizes(await socket_options(broker, **asked)) == (2 * 16_384, 2 * 32_768)
    for found, (begins, most) in zip(sizes(await socket_options(broker)), KERNELS_OWN_SIZES, strict=True):
        assert begins <= found <= most


@linux_only
@every_loop
async def test_s36_keepalive_probes_begin_after_60_s_and_come_every_10_s(broker: Broker) -> None:
    def keepalive(found: dict[str, int]) -> tuple[int, int, int]:
        return found["tcp_keepalive"], found["tcp_keepalive_time"], found["tcp_keepalive_interval"]

    assert keepalive(await socket_options(broker)) == (1, 60, 10)
    assert keepalive(await socket_options(broker, tcp_keepalive_time=33, tcp_keepalive_interval=7)) == (1, 33, 7)
    assert keepalive(await socket_options(broker, tcp_keepalive=False))[0] == 0


@linux_only
@every_loop
async def test_s37_small_writes_are_sent_at_once_unless_tcp_nodelay_is_off(broker: Broker) -> None:
    assert (await socket_options(broker))["tcp_nodelay"] == 1
    # asyncio and uvloop turn it on for every TCP connection; the option must win.
    assert (await socket_options(broker, tcp_nodelay=False))["tcp_nodelay"] == 0
