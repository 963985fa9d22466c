"""A client waits for a broker that is not there yet for as long as it is told, and says so in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import until
from tests.support.loops import every_loop
from tests.support.peers import FakeServer, Peer, silent_address

import leveret
from leveret import ConnectionSettings, Topology
from leveret.broker import EmbeddedBroker
from leveret.connection.connection import Connection
from leveret.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectFailed,
    ConnectionClosed,
    OperationTimeout,
    PluginError,
)
from leveret.protocol.recovery import SparseLog
from leveret.settings import Endpoint

if TYPE_CHECKING:
    from pathlib import Path

    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


@every_loop
async def test_connect_waits_for_a_broker_and_says_so_once_in_a_while(
    proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="leveret.client")
    proxy.refuse()
    opening = asyncio.ensure_future(_connected(proxy.url, wait=20, recovery_initial_delay=0.01))
    await until(lambda: said(caplog, "waiting for the broker"))
    await asyncio.sleep(0.5)  # a few attempts more
    proxy.accept()
    client = await opening
    assert client.connection.is_open
    assert counted(client)["connections_failed"] >= 3
    # The first attempt is logged; the next ten seconds are not.
    (text,) = said(caplog, "waiting for the broker")
    assert text.startswith("connection 'leveret (publish)': waiting for the broker for up to 20 s (wait), 0.")
    assert "Connection refused" in text
    assert len(said(caplog, "the broker is there after")) == 1
    await client.close()


async def _connected(url: str, **options: Any) -> leveret.Client:
    return await leveret.connect(url, **options)


def counted(client: leveret.Client) -> dict[str, int]:
    return {sample.metric.name: sample.value for sample in client.metrics() if sample.labels[1] == "publish"}


@pytest.mark.parametrize("wait", [None, 0])
async def test_without_wait_the_first_connect_fails_at_once(proxy: FaultProxy, wait: float | None) -> None:
    proxy.refuse()
    started = time.monotonic()
    with pytest.raises(ConnectFailed):
        await leveret.connect(proxy.url, wait=wait)
    assert time.monotonic() - started < 2


async def test_the_error_after_the_wait_is_that_of_the_last_attempt(proxy: FaultProxy) -> None:
    proxy.refuse()
    started = time.monotonic()
    with pytest.raises(ConnectFailed, match=r"Connection refused; the broker was waited for 0\.5 s \(wait\)") as caught:
        await leveret.connect(proxy.url, wait=0.5)
    assert 0.4 < time.monotonic() - started < 2.5
    assert type(caught.value.__cause__) is ConnectFailed


async def test_a_broker_that_does_not_even_refuse_is_given_up_after_the_wait() -> None:
    with silent_address() as port:
        started = time.monotonic()
        with pytest.raises(OperationTimeout, match=r"no broker answered within wait of 0\.5 s"):
            await leveret.connect(f"amqp://127.0.0.1:{port}", wait=0.5)
        assert 0.4 < time.monotonic() - started < 2.5


@pytest.mark.parametrize("what", ["login", "virtual host"])
async def test_a_refused_login_or_virtual_host_is_tried_again_within_the_wait(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    # As while a broker imports its definitions.
    broker = EmbeddedBroker(virtual_hosts=["/", "shop"])
    async with broker:
        shop = broker.vhosts.pop("shop")
        if what == "virtual host":
            broker.users["svc"] = "secret"
        url = f"amqp://svc:secret@127.0.0.1:{broker.port}/shop"
        opening = asyncio.ensure_future(_connected(url, wait=20))
        await until(lambda: said(caplog, "waiting for the broker"))
        assert ("403" if what == "login" else "530") in said(caplog, "waiting for the broker")[0]
        broker.users["svc"] = "secret"
        broker.vhosts["shop"] = shop
        async with asyncio.timeout(15):
            client = await opening
        assert client.connection.is_open
        await client.close()


async def test_the_error_after_the_wait_for_a_login_names_code_and_cause() -> None:
    async with EmbeddedBroker() as broker:
        with pytest.raises(AuthenticationError, match=r"403 ACCESS_REFUSED.*waited for 0\.5 s") as caught:
            await leveret.connect(f"amqp://svc:secret@127.0.0.1:{broker.port}", wait=0.5)
    assert caught.value.reply_code == 403
    assert "secret" not in str(caught.value)


async def test_what_only_another_program_can_mend_is_not_waited_for() -> None:
    async with EmbeddedBroker() as broker:
        started = time.monotonic()
        with pytest.raises((ConfigurationError, PluginError)):
            await leveret.connect(broker.url, wait=20, recovery_backoff="nosuch")
        with pytest.raises(ConfigurationError, match="credential provider returned"):
            await leveret.connect(broker.url, wait=20, credentials=lambda: "svc")  # type: ignore[arg-type, return-value]
        assert time.monotonic() - started < 5


async def test_a_wait_that_is_cancelled_leaves_nothing(proxy: FaultProxy) -> None:
    proxy.refuse()
    opening = asyncio.ensure_future(_connected(proxy.url, wait=20))
    await asyncio.sleep(0.05)
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening


def test_wait_has_the_same_name_in_every_source(tmp_path: Path) -> None:
    file = tmp_path / "service.toml"
    file.write_text("[leveret.connection]\nwait = 30\n")
    assert ConnectionSettings().wait is None
    assert ConnectionSettings.from_url("amqp://localhost?wait=30").wait == 30.0
    assert ConnectionSettings.from_env({"LEVERET_WAIT": "30"}).wait == 30.0
    assert leveret.settings.load(str(file)).connection.wait == 30.0
    with pytest.raises(ConfigurationError, match="wait is 86401 s; it must be 0 to 86400"):
        ConnectionSettings(wait=86_401)


def test_the_log_has_the_first_failure_each_other_reason_and_one_in_ten_seconds() -> None:
    log = SparseLog()
    refused, away = ConnectionClosed("refused", reply_code=530), ConnectFailed("away")
    due = [(0.0, away), (1.0, away), (2.0, refused), (3.0, refused), (4.0, away), (13.9, away), (14.0, away)]
    assert [log.is_due(error, now) for now, error in due] == [True, False, True, False, True, False, True]


# ---------------------------------------------------------------------- App


async def test_an_app_waits_for_a_broker_without_being_told(
    proxy: FaultProxy, queue: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leveret.app.supervision.FIRST_DELAY", 0.05)
    app = leveret.App(proxy.url, name="shop")
    handled = asyncio.Event()

    @app.consumer(queue)
    async def handle(value: object, message: leveret.Message) -> None:
        handled.set()

    proxy.refuse()
    serving = asyncio.create_task(app.serve())
    await until(lambda: said(caplog, "shop: cannot start, and goes on trying"))
    await asyncio.sleep(0.5)
    proxy.accept()
    await until(lambda: app._run is not None and app._run.client is not None)
    async with app.client.producer() as producer:
        await producer.publish(1, queue)
    async with asyncio.timeout(10):
        await handled.wait()
    assert len(said(caplog, "cannot start, and goes on trying")) == 1
    app.stop()
    assert await serving


@pytest.mark.parametrize("wait", [None, 0.5])
async def test_an_app_ends_when_its_first_login_is_refused_for_as_long_as_it_may_be(wait: float | None) -> None:
    async with EmbeddedBroker() as broker:
        app = leveret.App(f"amqp://svc:secret@127.0.0.1:{broker.port}", wait=wait)
        app.consumer("q")(_handler)
        started = time.monotonic()
        with pytest.raises(AuthenticationError):
            await app.serve()
        assert time.monotonic() - started < 3
        assert wait is None or time.monotonic() - started > 0.4


async def _handler(value: object, message: leveret.Message) -> None:
    """Does nothing."""


async def test_an_app_goes_on_when_its_login_is_refused_for_a_while_later() -> None:
    async with EmbeddedBroker(users={"svc": "first"}) as broker:
        quick: Any = {"recovery_initial_delay": 0.01, "recovery_max_delay": 0.05}
        app = leveret.App(f"amqp://svc:first@127.0.0.1:{broker.port}", **quick)
        app.topology = Topology().queue("q")
        app.consumer("q")(_handler)
        serving = asyncio.create_task(app.serve())
        queues = broker.vhosts["/"].queues
        await until(lambda: "q" in queues and queues["q"].consumer_count)
        broker.users["svc"] = "second"
        broker.close_connections()
        link = app.client.consuming_link
        await until(lambda: isinstance(link.failure, AuthenticationError))
        broker.users["svc"] = "first"
        await until(lambda: queues["q"].consumer_count)
        assert not serving.done()
        app.stop()
        assert await serving


async def test_an_attempt_has_one_deadline_for_all_hosts_that_are_silent_in_the_handshake() -> None:
    async def silent(peer: Peer) -> None:
        await peer.read(8)

    async with contextlib.AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(FakeServer(silent)) for _ in range(5)]
        endpoints = [Endpoint("127.0.0.1", server.port) for server in servers]
        settings = ConnectionSettings(endpoints=tuple(endpoints), connect_timeout=0.3, handshake_timeout=0.5)
        started = time.monotonic()
        with pytest.raises(ConnectFailed, match=r"was silent in the AMQP handshake.*together, 0\.8 s"):
            await Connection.open(settings)
        assert time.monotonic() - started < 0.8 + 1
