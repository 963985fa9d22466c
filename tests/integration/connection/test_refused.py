"""A client that was connected before is not ended by a refusal: it tries again, seldom, and says what it waits for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.brokers import Embedded
from tests.support.handling import until
from tests.support.loops import every_loop
from tests.support.secrets import assert_not_shown

import leveret
from leveret import Topology
from leveret.broker import EmbeddedBroker
from leveret.errors import AuthenticationError, ConnectionClosed, ConnectionLost, OperationTimeout, PublishError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.brokers import Broker

    from leveret.connection.link import Link

pytestmark = pytest.mark.usefixtures("no_leftovers")

QUICK: dict[str, Any] = {"recovery_initial_delay": 0.001, "recovery_max_delay": 0.05}
PASSWORD = "sentinel-password"


class Account:
    """A user and a virtual host of a broker, which refuses one or the other when the test says so."""

    def __init__(self, broker: Broker, user: str, vhost: str) -> None:
        self._broker = broker
        self.user = user
        self.vhost = vhost
        self._kept: Any = None

    async def ctl(self, *arguments: str) -> None:
        await asyncio.to_thread(self._broker.node.ctl, *arguments)  # type: ignore[attr-defined]

    @property
    def url(self) -> str:
        """Of the broker, with these."""
        address = self._broker.url.rpartition("@")[2].partition("/")[0]
        return f"amqp://{self.user}:{PASSWORD}@{address}/{self.vhost}"

    async def make(self) -> None:
        if isinstance(self._broker, Embedded):
            broker = self._broker.broker
            broker.users[self.user] = PASSWORD
            # A broker of the test's own: its queues may have another name as well.
            broker.vhosts[self.vhost] = broker.vhosts["/"]
            return
        await self.ctl("add_user", self.user, PASSWORD)
        await self.ctl("add_vhost", self.vhost)
        await self.permit()

    async def permit(self) -> None:
        await self.ctl("set_permissions", "--vhost", self.vhost, self.user, ".*", ".*", ".*")

    async def refuse(self, what: str) -> None:
        """Refuses the "login" or the "virtual host", and cuts all connections."""
        if isinstance(self._broker, Embedded):
            if what == "login":
                self._broker.broker.users[self.user] = "another"
            else:
                self._kept = self._broker.broker.vhosts.pop(self.vhost)
            await self._broker.close_connections()
        elif what == "login":
            await self.ctl("change_password", self.user, "another")
            await self.ctl("close_all_connections", "--vhost", self.vhost, "asked to by a test")
        else:
            # As a virtual host whose definitions are not imported yet: RabbitMQ answers 530 to both.
            await self.ctl("clear_permissions", "--vhost", self.vhost, self.user)
            await self.ctl("close_all_connections", "--vhost", self.vhost, "asked to by a test")

    async def accept(self, what: str) -> None:
        if isinstance(self._broker, Embedded):
            if what == "login":
                self._broker.broker.users[self.user] = PASSWORD
            else:
                self._broker.broker.vhosts[self.vhost] = self._kept
        elif what == "login":
            await self.ctl("change_password", self.user, PASSWORD)
        else:
            await self.permit()

    async def delete(self) -> None:
        if not isinstance(self._broker, Embedded):
            await self.ctl("delete_user", self.user)
            await self.ctl("delete_vhost", self.vhost)


@pytest.fixture
async def account(broker: Broker, unique_name: Callable[[str], str]) -> AsyncIterator[Account]:
    made = Account(broker, unique_name("user"), unique_name("vhost"))
    await made.make()
    yield made
    await made.delete()


REASONS = {"login": (AuthenticationError, 403), "virtual host": (ConnectionClosed, 530)}


def refused(link: Link, what: str) -> bool:
    kind, code = REASONS[what]
    failure = link.failure
    return type(failure) is kind and isinstance(failure, ConnectionClosed) and failure.reply_code == code


@pytest.mark.time_limit(120)  # rabbitmqctl runs up to eight times, a second or more each
@pytest.mark.parametrize("what", ["login", "virtual host"])
async def test_producers_and_consumers_go_on_after_a_refusal_is_over(account: Account, what: str) -> None:
    async with leveret.connect(account.url, **QUICK) as client:
        await client.declare(Topology().queue("q"))
        seen: list[object] = []

        async def handler(value: object, message: leveret.Message) -> None:
            seen.append(value)

        consumer = client.consumer("q")
        running = asyncio.create_task(consumer.run(handler))
        async with client.producer(publish_timeout=100) as producer:
            await producer.publish("before", "q")
            await until(lambda: "before" in seen)
            await account.refuse(what)
            await until(lambda: refused(client.publishing_link, what) and refused(client.consuming_link, what))
            publishing = asyncio.create_task(producer.publish("meanwhile", "q"))
            await account.accept(what)
            assert await publishing
            assert producer.is_open
            await until(lambda: "meanwhile" in seen)
            assert client.publishing_link.failure is None
        await consumer.drain()
        await running


@pytest.mark.time_limit(120)
@pytest.mark.parametrize("what", ["login", "virtual host"])
async def test_the_error_of_a_call_that_waited_names_code_and_cause(account: Account, what: str) -> None:
    async with leveret.connect(account.url, operation_timeout=0.5, close_timeout=0.5, **QUICK) as client:
        await account.refuse(what)
        await until(lambda: client.connection.error is not None)
        waiting = asyncio.create_task(client.publishing_link.recovered())
        await until(lambda: refused(client.publishing_link, what))
        with pytest.raises(OperationTimeout, match=rf"operation_timeout of 0\.3 s; .*{REASONS[what][1]} ") as caught:
            await client.publishing_link.within(0.3, "operation_timeout", "a call")
        cause = caught.value.__cause__
        assert isinstance(cause, REASONS[what][0])
        assert cause.reply_code == REASONS[what][1]
        assert_not_shown(caught.value, PASSWORD, in_locals=False)
        await account.accept(what)
        assert (await waiting).is_open


async def test_the_next_attempt_after_a_refusal_comes_at_the_long_end_of_the_backoff(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spans: list[tuple[float, float]] = []

    def uniform(least: float, most: float) -> float:
        spans.append((least, most))
        return 0.0

    monkeypatch.setattr("leveret.protocol.recovery.random.uniform", uniform)
    async with (
        EmbeddedBroker(users={"svc": "first"}) as broker,
        leveret.connect(f"amqp://svc:first@127.0.0.1:{broker.port}") as client,
    ):
        broker.users["svc"] = "second"
        broker.close_connections()
        await until(lambda: client.connection.error is not None)
        waiting = asyncio.create_task(client.publishing_link.recovered())
        await until(lambda: len(spans) >= 4)
        broker.users["svc"] = "first"
        await waiting
    assert spans[0] == (0.0, 0.1)
    assert set(spans[1:]) == {(15.0, 30.0)}


@every_loop
async def test_the_first_consumer_of_a_client_waits_when_the_login_is_refused_meanwhile() -> None:
    async with EmbeddedBroker(users={"svc": "first"}) as broker:
        url = f"amqp://svc:first@127.0.0.1:{broker.port}"
        async with leveret.connect(url, **QUICK) as client:
            await client.declare(Topology().queue("q"))
            # The client is connected, and its second connection is refused.
            broker.users["svc"] = "second"
            waiting = asyncio.create_task(client.consuming_link.recovered())
            await until(lambda: refused(client.consuming_link, "login"))
            assert not waiting.done()
            broker.users["svc"] = "first"
            assert (await waiting).is_open


async def test_a_dedicated_connection_waits_for_a_broker_that_is_away() -> None:
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, **QUICK) as client:
        await broker.stop()
        opening = asyncio.ensure_future(_opened(client))
        link = (await until_there(client)).publishing_link
        await until(lambda: link.failure)
        await broker.start()
        async with await opening as own:
            assert own.connection.is_open


async def _opened(client: leveret.Client) -> leveret.DedicatedConnection:
    return await client.dedicated_connection("own")


async def until_there(client: leveret.Client) -> leveret.DedicatedConnection:
    await until(lambda: "own" in client._dedicated)
    return client._dedicated["own"]


async def test_a_dedicated_connection_gives_up_after_connect_timeout_and_says_why() -> None:
    async with EmbeddedBroker(users={"svc": "first"}) as broker:
        url = f"amqp://svc:first@127.0.0.1:{broker.port}"
        async with leveret.connect(url, connect_timeout=0.4, **QUICK) as client:
            broker.users["svc"] = "second"
            started = time.monotonic()
            with pytest.raises(
                OperationTimeout, match=r"dedicated_connection\('own'\).*connect_timeout of 0\.4 s.*403"
            ):
                await client.dedicated_connection("own")
            assert 0.3 < time.monotonic() - started < 3
            broker.users["svc"] = "first"
            async with client.dedicated_connection("own") as own:
                assert own.connection.is_open


@pytest.mark.parametrize("auto_recovery", [True, False])
async def test_a_call_that_dials_ends_when_the_client_is_closed(auto_recovery: bool) -> None:
    gate = asyncio.Event()

    async def provider() -> tuple[str, str]:
        if gate.is_set():
            await asyncio.Event().wait()
        return "guest", "guest"

    async with EmbeddedBroker() as broker:
        client = await leveret.connect(broker.url, credentials=provider, auto_recovery=auto_recovery)
        gate.set()
        dialing = [asyncio.create_task(client.consuming_link()) for _ in range(3)]
        await asyncio.sleep(0.01)
        async with asyncio.timeout(2):
            await client.close()
            for error in await asyncio.gather(*dialing, return_exceptions=True):
                assert type(error) is ConnectionClosed
                assert "was closed by this side" in str(error)


async def test_a_producer_ends_with_what_only_another_program_can_mend() -> None:
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, auto_recovery=False, **QUICK) as client:
        producer = await client.producer().open()
        broker.close_connections()
        await until(lambda: client.connection.error is not None)
        with pytest.raises(PublishError):
            await producer.publish(1, "q")
        assert not producer.is_open
        with contextlib.suppress(ConnectionClosed, ConnectionLost):
            await client.publishing_link.recovered()


@pytest.mark.parametrize("call", ["declare", "channel", "purge", "pool"])
async def test_a_call_waits_for_a_connection_that_is_away(call: str) -> None:
    async def pooled(client: leveret.Client) -> None:
        async with client.channels.acquire() as channel:
            await channel.queue_declare("q")

    calls: dict[str, Callable[[leveret.Client], Any]] = {
        "declare": lambda client: client.declare(Topology().queue("q")),
        "channel": lambda client: client.channel(),
        "purge": lambda client: client.purge("q"),
        "pool": pooled,
    }
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, **QUICK) as client:
        await client.declare(Topology().queue("q"))
        await broker.stop()
        await until(lambda: client.connection.error is not None)
        calling = asyncio.ensure_future(calls[call](client))
        await until(lambda: client.publishing_link.failure)
        assert not calling.done()
        await broker.start()
        async with asyncio.timeout(10):
            await calling


async def test_a_call_that_waits_in_vain_says_for_what_how_long_and_why() -> None:
    options: dict[str, Any] = {"operation_timeout": 0.3, **QUICK}
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, **options) as client:
        await broker.stop()
        await until(lambda: client.connection.error is not None)
        started = time.monotonic()
        with pytest.raises(OperationTimeout) as caught:
            await client.declare(Topology().queue("q"))
        assert time.monotonic() - started < 2
        text = str(caught.value)
        assert text.startswith("a channel: connection 'leveret (publish)' was not there within operation_timeout of 0.")
        assert "; the last attempt failed: cannot connect to 127.0.0.1:" in text
        assert text.endswith("Connection refused")
