"""A connection: what is negotiated, what the broker and the kernel see of it, and whose it is."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.brokers import Embedded, RabbitMQ
from tests.support.loops import every_loop
from tests.support.plugins import plugin
from tests.support.proxy import Proxy
from tests.support.servers import ON_EVERY_SERVER

import leveret
from leveret import Topology
from leveret.broker import EmbeddedBroker
from leveret.connection.connection import Connection
from leveret.connection.link import LINK_TRANSITIONS, LinkState
from leveret.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectFailed,
    ConnectionClosed,
    ConnectionLost,
    EncodeFailed,
    OperationTimeout,
    PluginError,
    TLSVerificationError,
    WrongLoopError,
)
from leveret.plugins import ConnectionEvent, ConnectionEventKind, PluginRegistry, PolicySpec
from leveret.protocol.recovery import may_mend
from leveret.settings import ConnectionSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from tests.support.brokers import Broker
    from tests.support.rabbitmq import RabbitMQNode

pytestmark = pytest.mark.usefixtures("no_leftovers")


# ---------------------------------------------------------------------- what the broker sees


async def test_publishing_and_consuming_have_their_own_connections_when_both_are_used(
    client: leveret.Client, queue: str
) -> None:
    async with client.consumer(queue) as consumer:
        await consumer.get()
        publishing, consuming = client.connection, client.consuming_link.connection
        assert consuming is not None
        assert consuming is not publishing
        assert (publishing.name, consuming.name) == ("leveret (publish)", "leveret (consume)")
        assert repr(publishing).startswith("<Connection 'leveret (publish)' open")


async def test_what_the_server_is_can_be_read_when_the_connection_is_open(client: leveret.Client) -> None:
    negotiated = client.connection.negotiated
    assert negotiated.channel_max >= 100
    assert negotiated.server_properties["product"]
    assert negotiated.server_properties["version"]
    assert negotiated.capabilities["publisher_confirms"] is True


async def test_everything_works_when_the_broker_listens_on_a_unix_socket(tmp_path: Any) -> None:
    async with EmbeddedBroker(path=tmp_path / "broker") as broker, leveret.connect(broker.url) as client:
        # It has no options of TCP.
        assert {"tcp_nodelay", "tcp_keepalive_time"}.isdisjoint(client.connection.socket_options())
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


@pytest.mark.parametrize("broker", ON_EVERY_SERVER, indirect=True)
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
    await asyncio.sleep(0)  # until its next turn the loop may hold what ended a wait, and frames with it
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
    with pytest.raises(ConnectionClosed):
        client.connection.socket_options()


async def test_nothing_can_be_done_when_the_client_is_closed(broker: Broker, name: Callable[[str], str]) -> None:
    async with leveret.connect(broker.url) as client:
        producer = client.producer()
        consumer = client.consumer(name())
    for call in (client.channel(), client.declare(Topology()), producer.open(), client.purge("q")):
        with pytest.raises((ConnectionClosed, leveret.LeveretError)):
            await call
    with pytest.raises(leveret.LeveretError):
        await consumer.get()


# ---------------------------------------------------------------------- lost connections that somebody waits for


class Warnings(logging.Handler):
    """What the clients warn of, to be awaited."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self._came = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        self._came.set()

    async def more(self, count: int) -> None:
        """Waits until there are so many more than now."""
        wanted = len(self.texts) + count
        while len(self.texts) < wanted:
            self._came.clear()
            await self._came.wait()


@pytest.fixture
async def warnings() -> AsyncIterator[Warnings]:
    handler, logger = Warnings(), logging.getLogger("leveret.client")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


@contextlib.asynccontextmanager
async def stopped(broker: Broker) -> AsyncIterator[None]:
    """Takes a broker out of service; clients are refused at its port."""
    if isinstance(broker, RabbitMQ):
        await asyncio.to_thread(broker.node.ctl, "stop_app")
    else:
        assert isinstance(broker, Embedded)
        await broker.broker.stop()
    try:
        yield
    finally:
        if isinstance(broker, RabbitMQ):
            await asyncio.to_thread(broker.node.ctl, "start_app")
        else:
            assert isinstance(broker, Embedded)
            await broker.broker.start()


async def loss(connection: leveret.Connection) -> leveret.LeveretError:
    """Waits until a connection is lost."""
    await connection._ended
    assert connection.error is not None
    return connection.error


def counted(client: leveret.Client, name: str = "publish") -> dict[str, int]:
    return {sample.metric.name: sample.value for sample in client.metrics() if sample.labels[1] == name}


QUICK: dict[str, Any] = {"recovery_initial_delay": 0.001, "recovery_max_delay": 0.02}
SELDOM: dict[str, Any] = {"recovery_initial_delay": 86_400, "recovery_max_delay": 86_400}


@every_loop
async def test_all_who_wait_get_the_same_new_connection_when_the_broker_is_back(
    broker: Broker, warnings: Warnings
) -> None:
    events: list[ConnectionEventKind] = []
    registry = PluginRegistry.from_plugins(plugin("events", connection_event=lambda event: events.append(event.kind)))
    async with leveret.connect(broker.url, plugins=registry, **QUICK) as client:
        link = client.publishing_link
        first = client.connection
        assert await link.recovered() is first
        async with stopped(broker):
            await loss(first)
            waiting = [asyncio.create_task(link.recovered()) for _ in range(100)]
            await warnings.more(3)
            assert not any(task.done() for task in waiting)
        connections = set(await asyncio.gather(*waiting))
        assert connections == {client.connection}
        assert client.connection is not first
        assert await link.recovered() is client.connection
        after = counted(client)
        assert (after["connections_opened"], after["connections_lost"], after["connections_open"]) == (2, 1, 1)
        assert after["connections_failed"] == len(warnings.texts)
        assert warnings.texts[1].startswith(
            "connection 'leveret (publish)': attempt 2 to recover it failed: cannot con"
        )
        assert events == [
            ConnectionEventKind.OPENED,
            ConnectionEventKind.CLOSED,
            ConnectionEventKind.OPENED,
            ConnectionEventKind.RECOVERED,
        ]
        await client.declare(Topology())


@pytest.mark.parametrize("how", ["reset", "hang_up", "close_connections"])
async def test_a_connection_is_dialed_again_when_it_is_cut(broker: Broker, how: str, warnings: Warnings) -> None:
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url, **QUICK) as client:
        for _ in range(3):
            lost = client.connection
            if how == "close_connections":
                await broker.close_connections()
            else:
                getattr(proxy, how)()
            await loss(lost)
            assert await client.publishing_link.recovered() is not lost
        assert counted(client)["connections_opened"] == 4
        assert warnings.texts == []


async def test_waiting_goes_on_when_others_who_wait_are_cancelled(broker: Broker, warnings: Warnings) -> None:
    async with leveret.connect(broker.url, **QUICK) as client:
        link = client.publishing_link
        async with stopped(broker):
            await loss(client.connection)
            waiting = [asyncio.create_task(link.recovered()) for _ in range(10)]
            await warnings.more(1)
            for task in waiting[:9]:
                task.cancel()
            await warnings.more(2)
            assert [task.cancelled() for task in waiting] == [True] * 9 + [False]
            # Nobody waits: nobody dials.
            waiting[9].cancel()
            await asyncio.wait(waiting)
            assert link._recovery is None
            await asyncio.gather(*link._recoveries, return_exceptions=True)
            assert link._recoveries == set()
            again = asyncio.create_task(link.recovered())
            await warnings.more(1)
        assert (await again).is_open


@pytest.mark.parametrize("turns", [*range(16), 20, 40])
async def test_nothing_is_left_when_waiting_is_cancelled(broker: Broker, turns: int) -> None:
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url, **QUICK) as client:
        proxy.reset()
        await loss(client.connection)
        waiting = asyncio.create_task(client.publishing_link.recovered())
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert (await client.publishing_link.recovered()).is_open
        assert counted(client)["connections_open"] == 1


async def test_those_who_wait_are_told_when_the_client_is_closed(broker: Broker, warnings: Warnings) -> None:
    async with leveret.connect(broker.url, **QUICK) as client:
        link = client.publishing_link
        async with stopped(broker):
            await loss(client.connection)
            waiting = [asyncio.create_task(link.recovered()) for _ in range(10)]
            await warnings.more(1)
            await client.close()
            for error in await asyncio.gather(*waiting, return_exceptions=True):
                assert type(error) is ConnectionClosed
                assert str(error) == "connection 'leveret (publish)' was closed by this side"
        assert link._recoveries == set()
        with pytest.raises(ConnectionClosed):
            await link.recovered()


async def test_those_who_wait_are_told_when_the_client_is_closed_long_before_the_next_attempt(broker: Broker) -> None:
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url, **SELDOM) as client:
        proxy.reset()
        await loss(client.connection)
        waiting = asyncio.create_task(client.publishing_link.recovered())
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(ConnectionClosed, match=r"was closed by this side"):
            await waiting


async def test_no_error_is_left_unread_when_those_who_wait_are_cancelled_as_it_comes() -> None:
    async with EmbeddedBroker(users={"svc": "before"}) as broker:
        url = f"amqp://svc:before@127.0.0.1:{broker.port}"
        async with leveret.connect(url, **QUICK) as client:
            link = client.publishing_link
            broker.users["svc"] = "after"
            broker.close_connections()
            await loss(client.connection)
            waiting = asyncio.create_task(link.recovered())
            await asyncio.sleep(0)
            assert link._recovery is not None
            link._recovery.add_done_callback(lambda _: waiting.cancel())
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert counted(client)["connections_failed"] == 1


@pytest.mark.parametrize("started", [True, False])
async def test_those_who_wait_have_the_connection_at_once_when_somebody_else_makes_one(
    broker: Broker, started: bool
) -> None:
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url, **SELDOM) as client:
        proxy.reset()
        await loss(client.connection)
        waiting = asyncio.create_task(client.publishing_link.recovered())
        if started:
            # Time enough for an attempt, if it were made.
            async with leveret.connect(broker.url) as other:
                for _ in range(50):
                    await other.channel()
                assert counted(client)["connections_opened"] == 1
        await client.declare(Topology())
        assert await waiting is client.connection
        assert counted(client)["connections_opened"] == 2


@every_loop
async def test_opening_that_is_cancelled_as_it_succeeds_is_no_loss(caplog: pytest.LogCaptureFixture) -> None:
    events: list[ConnectionEvent] = []

    def told(event: ConnectionEvent) -> None:
        events.append(event)
        if event.kind is ConnectionEventKind.OPENED:
            opening.cancel()

    async with EmbeddedBroker() as broker:
        opening = asyncio.create_task(Connection.open(ConnectionSettings.from_url(broker.url), on_event=told))
        with pytest.raises(asyncio.CancelledError):
            await opening
        for _ in range(10):
            await asyncio.sleep(0)
    assert [(event.kind, event.error) for event in events] == [
        (ConnectionEventKind.OPENED, None),
        (ConnectionEventKind.CLOSED, None),
    ]
    assert "is lost" not in caplog.text


async def test_a_link_says_what_it_has(broker: Broker, warnings: Warnings) -> None:
    async with leveret.connect(broker.url, **QUICK) as client:
        link = client.publishing_link
        assert client.consuming_link.state is LinkState.IDLE
        assert link.state is LinkState.OPEN
        async with stopped(broker):
            await loss(client.connection)
            assert link.state is LinkState.LOST
            waiting = asyncio.create_task(link.recovered())
            await warnings.more(1)
            assert link.state is LinkState.RECOVERING
            waiting.cancel()
            await asyncio.wait([waiting])
            assert link.state is LinkState.LOST
        await link.recovered()
        assert repr(link) == "<Link 'leveret (publish)' OPEN>"
    assert link.state is LinkState.CLOSED
    assert client.consuming_link.state is LinkState.CLOSED
    assert set(LINK_TRANSITIONS) == set(LinkState)


class Steady:
    """A backoff policy that counts."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def delay(self, attempt: int, /) -> float:
        self.asked.append(attempt)
        return 0.001


async def test_a_backoff_policy_chooses_the_delays_of_recovery(broker: Broker, warnings: Warnings) -> None:
    made: list[Steady] = []

    def make() -> Steady:
        made.append(Steady())
        return made[-1]

    registry = PluginRegistry.from_plugins(
        plugin("waits", policies=[PolicySpec(kind="backoff", name="steady", factory=make)])
    )
    # Without the policy it would be a day to the first attempt.
    async with leveret.connect(broker.url, plugins=registry, recovery_backoff="steady", **SELDOM) as client:
        async with stopped(broker):
            await loss(client.connection)
            waiting = asyncio.create_task(client.publishing_link.recovered())
            await warnings.more(3)
        await waiting
    publishing, consuming = made
    assert publishing.asked[:3] == [1, 2, 3]
    assert consuming.asked == []


async def test_a_backoff_policy_that_is_not_there_is_refused_when_connecting(broker: Broker) -> None:
    with pytest.raises(ConfigurationError, match="nosuch"):
        await leveret.connect(broker.url, recovery_backoff="nosuch")


async def test_attempts_are_spread_over_twice_the_time_after_each_when_they_fail(
    monkeypatch: pytest.MonkeyPatch, warnings: Warnings
) -> None:
    spans: list[tuple[float, float]] = []

    def uniform(least: float, most: float) -> float:
        spans.append((least, most))
        return 0.0

    monkeypatch.setattr("leveret.protocol.recovery.random.uniform", uniform)
    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
        await broker.stop()
        await loss(client.connection)
        waiting = asyncio.create_task(client.publishing_link.recovered())
        await warnings.more(50)
        await broker.start()
        await waiting
    assert [most for _, most in spans[:11]] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0]
    assert {most for _, most in spans[9:]} == {30.0}
    assert {least for least, _ in spans} == {0}


async def test_a_connection_that_is_lost_as_soon_as_it_is_open_is_dialed_more_and_more_seldom(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    spans: list[float] = []

    def uniform(least: float, most: float) -> float:
        spans.append(most)
        return 0.0

    monkeypatch.setattr("leveret.protocol.recovery.random.uniform", uniform)
    options: dict[str, Any] = {"recovery_initial_delay": 1000, "recovery_max_delay": 3000}
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url, **options) as client:
        for _ in range(4):
            proxy.reset()
            await loss(client.connection)
            await client.publishing_link.recovered()
        assert spans == [1000, 2000, 3000, 3000]
        # A while later it is the first attempt again.
        client.publishing_link._tried_at -= 3001
        proxy.reset()
        await loss(client.connection)
        await client.publishing_link.recovered()
        assert spans[4:] == [1000]


async def test_no_credentials_are_logged_when_recovery_fails(warnings: Warnings) -> None:
    async with EmbeddedBroker(users={"svc": "sentinel"}) as broker:
        url = f"amqp://svc:sentinel@127.0.0.1:{broker.port}"
        async with leveret.connect(url, **QUICK) as client:
            await broker.stop()
            await loss(client.connection)
            waiting = asyncio.create_task(client.publishing_link.recovered())
            await warnings.more(3)
            broker.users["svc"] = "another"
            await broker.start()
            with pytest.raises(AuthenticationError) as caught:
                await waiting
            for text in (*warnings.texts, str(caught.value), repr(client)):
                assert "sentinel" not in text


@pytest.mark.integration
async def test_recovery_ends_when_the_password_or_the_virtual_host_is_no_longer_taken(
    rabbitmq: RabbitMQNode, unique_name: Callable[[str], str], warnings: Warnings
) -> None:
    async def ctl(*arguments: str) -> None:
        await asyncio.to_thread(rabbitmq.ctl, *arguments)

    user, vhost = unique_name("user"), unique_name("vhost")
    await ctl("add_user", user, "before")
    await ctl("add_vhost", vhost)
    try:
        await ctl("set_permissions", "--vhost", vhost, user, ".*", ".*", ".*")
        url = f"amqp://{user}:before@127.0.0.1:{rabbitmq.port}/{vhost}"
        async with leveret.connect(url, **QUICK) as client:
            await ctl("change_password", user, "after")
            await ctl("close_all_connections", "--vhost", vhost, "asked to by a test")
            await loss(client.connection)
            waiting = [asyncio.create_task(client.publishing_link.recovered()) for _ in range(3)]
            for error in await asyncio.gather(*waiting, return_exceptions=True):
                assert type(error) is AuthenticationError
            assert counted(client)["connections_failed"] == 1
            # Asked again it tries again: the password may have been put right.
            await ctl("change_password", user, "before")
            assert (await client.publishing_link.recovered()).is_open

            await ctl("delete_vhost", vhost)
            await loss(client.connection)
            with pytest.raises(ConnectionClosed) as caught:
                await client.publishing_link.recovered()
            assert caught.value.reply_code == 530
    finally:
        await ctl("delete_user", user)
    assert ["530" in text for text in warnings.texts] == [False, True]
    assert "before" not in "".join(warnings.texts)


@pytest.mark.parametrize(
    ("error", "mends"),
    [
        (ConnectFailed("refused"), True),
        (ConnectionLost("cut in the handshake"), True),
        (OperationTimeout("silent"), True),
        (ConnectionClosed("shutdown", reply_code=320), True),
        (ConnectionClosed("vhost is down", reply_code=541), True),
        (ConnectionClosed("vhost not found", reply_code=530), False),
        (AuthenticationError("refused", reply_code=403, reply_text="ACCESS_REFUSED"), False),
        (AuthenticationError("no such mechanism"), False),
        # Gone while it checked the credentials: so does a node that stops.
        (AuthenticationError("hung up", reply_code=403), True),
        (TLSVerificationError("expired"), False),
        (ConfigurationError("no such file"), False),
        (EncodeFailed("an argument is too long"), False),
        (PluginError("no serializer"), False),
        (WrongLoopError("another loop"), False),
    ],
    ids=str,
)
def test_dialing_goes_on_only_when_it_may_help(error: leveret.LeveretError, mends: bool) -> None:
    assert may_mend(error) is mends


@pytest.mark.integration
async def test_the_certificates_are_at_fault_when_those_of_all_endpoints_are_refused(rabbitmq: RabbitMQNode) -> None:
    port = rabbitmq.tls_port
    with pytest.raises(TLSVerificationError, match=r"(?=.*certificate of localhost)(?=.*certificate of 127\.0\.0\.1)"):
        await leveret.connect(f"amqps://guest:guest@localhost:{port},127.0.0.1:{port}")
    with pytest.raises(ConnectFailed) as caught:
        await leveret.connect(f"amqps://guest:guest@localhost:{port},127.0.0.1:1")
    assert type(caught.value) is ConnectFailed


async def test_waiting_is_refused_when_it_is_in_another_threads_loop(client: leveret.Client) -> None:
    with pytest.raises(WrongLoopError):
        await asyncio.to_thread(asyncio.run, client.publishing_link.recovered())
