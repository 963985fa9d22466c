"""A connection that is lost is dialed again, once for all who wait, as long as that may help."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.brokers import Embedded, RabbitMQ
from tests.support.handling import until
from tests.support.loops import every_loop
from tests.support.outcomes import failure_at_once
from tests.support.plugins import plugin

import leveret
from leveret import Topology
from leveret.broker import EmbeddedBroker
from leveret.connection.connection import Connection
from leveret.connection.link import LINK_TRANSITIONS, Link, LinkState
from leveret.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectFailed,
    ConnectionClosed,
    ConnectionLost,
    EncodeFailed,
    IncompatibleProtocol,
    OperationTimeout,
    PluginError,
    TLSVerificationError,
    WrongLoopError,
)
from leveret.plugins import ConnectionEvent, ConnectionEventKind, PluginRegistry, PolicySpec
from leveret.protocol.recovery import Prospect, may_mend, prospect_of
from leveret.settings import ConnectionSettings
from leveret.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.brokers import Broker
    from tests.support.rabbitmq import RabbitMQNode

pytestmark = pytest.mark.usefixtures("no_leftovers")


@every_loop
@pytest.mark.parametrize("auto_recovery", [True, False])
async def test_s4_a_lost_connection_is_dialed_again_unless_auto_recovery_is_off(
    broker: Broker, auto_recovery: bool
) -> None:
    assert ConnectionSettings().auto_recovery is True
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, auto_recovery=auto_recovery) as client:
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


async def test_new_producers_and_consumers_get_a_new_connection_when_the_old_one_was_lost(
    proxy: FaultProxy, proxied: leveret.Client, queue: str
) -> None:
    lost = proxied.connection
    channel = await proxied.channel()
    proxy.reset()
    assert type(await failure_at_once(channel.basic_qos(1))) is ConnectionLost

    async with proxied.producer() as producer:
        assert await producer.publish("after the loss", queue)
    message = await proxied.consumer(queue).get()

    assert message is not None
    assert message.value == "after the loss"
    assert proxied.connection is not lost
    counted = {(s.metric.name, s.labels[1]): s.value for s in proxied.metrics()}
    assert counted["connections_opened", "publish"] == 2
    assert counted["connections_lost", "publish"] == 1
    assert counted["connections_open", "publish"] == 1


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
        # A broker that is starting may take a connection and close it.
        assert after["connections_opened"] == after["connections_lost"] + 1 >= 2
        assert after["connections_open"] == 1
        assert after["connections_failed"] == len(warnings.texts)
        assert warnings.texts[1].startswith(
            "connection 'leveret (publish)': attempt 2 to recover it failed: cannot con"
        )
        assert events[:2] == [ConnectionEventKind.OPENED, ConnectionEventKind.CLOSED]
        assert events[-2:] == [ConnectionEventKind.OPENED, ConnectionEventKind.RECOVERED]
        await client.declare(Topology())


@pytest.mark.parametrize("how", ["reset", "half_close", "close_connections"])
async def test_a_connection_is_dialed_again_when_it_is_cut(broker: Broker, how: str, warnings: Warnings) -> None:
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, **QUICK) as client:
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
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, **QUICK) as client:
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


SELDOM: dict[str, Any] = {"recovery_initial_delay": 86_400, "recovery_max_delay": 86_400}


async def test_those_who_wait_are_told_when_the_client_is_closed_long_before_the_next_attempt(broker: Broker) -> None:
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, **SELDOM) as client:
        proxy.reset()
        await loss(client.connection)
        waiting = asyncio.create_task(client.publishing_link.recovered())
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(ConnectionClosed, match=r"was closed by this side"):
            await waiting


async def fails_for_good(connection: leveret.Connection, lost: leveret.Connection | None) -> None:
    raise PluginError("no attempt can mend this")


async def test_no_error_is_left_unread_when_those_who_wait_are_cancelled_as_it_comes() -> None:
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, **QUICK) as client:
        link = client.publishing_link
        link.prepare = fails_for_good
        broker.close_connections()
        await loss(client.connection)
        waiting = asyncio.create_task(link.recovered())
        await asyncio.sleep(0)
        assert link._recovery is not None
        link._recovery.add_done_callback(lambda _: waiting.cancel())
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert counted(client)["connections_failed"] == 1


async def test_recovery_ends_with_an_error_that_no_attempt_mends_and_begins_again_when_asked_again() -> None:
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, **QUICK) as client:
        link = client.publishing_link
        usual, link.prepare = link.prepare, fails_for_good
        broker.close_connections()
        await loss(client.connection)
        for error in await asyncio.gather(*(link.recovered() for _ in range(3)), return_exceptions=True):
            assert type(error) is PluginError
        assert counted(client)["connections_failed"] == 1
        link.prepare = usual
        assert (await link.recovered()).is_open


@pytest.mark.parametrize("started", [True, False])
async def test_those_who_wait_have_the_connection_at_once_when_somebody_else_makes_one(
    broker: Broker, started: bool
) -> None:
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, **SELDOM) as client:
        proxy.reset()
        await loss(client.connection)
        waiting = asyncio.create_task(client.publishing_link.recovered())
        if started:
            # Time enough for an attempt, if it were made.
            async with leveret.connect(broker.url) as other:
                for _ in range(50):
                    await other.channel()
                assert counted(client)["connections_opened"] == 1
        await client.publishing_link()
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


def state_of(link: Link) -> LinkState:
    """A call, so that mypy does not take the state for what it was before."""
    return link.state


async def test_a_link_says_what_it_has(broker: Broker, warnings: Warnings) -> None:
    async with leveret.connect(broker.url, **QUICK) as client:
        link = client.publishing_link
        assert state_of(client.consuming_link) is LinkState.IDLE
        assert state_of(link) is LinkState.OPEN
        async with stopped(broker):
            await loss(client.connection)
            assert state_of(link) is LinkState.LOST
            waiting = asyncio.create_task(link.recovered())
            await warnings.more(1)
            assert state_of(link) is LinkState.RECOVERING
            waiting.cancel()
            await asyncio.wait([waiting])
            assert link.state is LinkState.LOST
        await link.recovered()
        assert repr(link) == "<Link 'leveret (publish)' OPEN>"
    assert state_of(link) is LinkState.CLOSED
    assert state_of(client.consuming_link) is LinkState.CLOSED
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
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, **options) as client:
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
            await until(lambda: isinstance(client.publishing_link.failure, AuthenticationError))
            await warnings.more(2)
            waiting.cancel()
            await asyncio.wait([waiting])
            for text in (*warnings.texts, str(client.publishing_link.failure), repr(client)):
                assert "sentinel" not in text


_SOON, _LATER, _NEVER = Prospect


@pytest.mark.parametrize(
    ("error", "prospect"),
    [
        (ConnectFailed("refused"), _SOON),
        (ConnectionLost("cut in the handshake"), _SOON),
        (OperationTimeout("silent"), _SOON),
        (ConnectionClosed("shutdown", reply_code=320), _SOON),
        (ConnectionClosed("vhost is down", reply_code=541), _SOON),
        # Gone while it checked the credentials: so does a node that stops.
        (AuthenticationError("hung up", reply_code=403), _SOON),
        (ConnectionClosed("vhost not found", reply_code=530), _LATER),
        (ConnectionClosed("no right", reply_code=403), _LATER),
        (AuthenticationError("refused", reply_code=403, reply_text="ACCESS_REFUSED"), _LATER),
        (AuthenticationError("no such mechanism"), _LATER),
        (IncompatibleProtocol("it speaks HTTP"), _LATER),
        (TLSVerificationError("expired"), _NEVER),
        (ConfigurationError("no such option"), _NEVER),
        (EncodeFailed("an argument is too long"), _NEVER),
        (PluginError("no serializer"), _NEVER),
        (WrongLoopError("another loop"), _NEVER),
    ],
    ids=str,
)
def test_another_attempt_may_help_soon_or_later_or_never(error: leveret.LeveretError, prospect: Prospect) -> None:
    assert prospect_of(error) is prospect
    assert may_mend(error) is (prospect is not Prospect.NEVER)


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
