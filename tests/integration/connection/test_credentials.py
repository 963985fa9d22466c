"""What a client logs in with: a credential provider is asked at each connect, and a new secret reaches the next one."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.brokers import Embedded
from tests.support.handling import until
from tests.support.loops import every_loop
from tests.support.secrets import PASSWORD, assert_not_shown

import leveret
from leveret import ConnectionSettings
from leveret.broker import EmbeddedBroker
from leveret.connection.credentials import Credentials
from leveret.errors import AuthenticationError, ConfigurationError, ConnectFailed, ConnectionClosed, OperationTimeout
from leveret.settings import Secret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")

QUICK: dict[str, Any] = {"recovery_initial_delay": 0.001, "recovery_max_delay": 0.02}


class Accounts:
    """A user of a broker, whose password the test changes."""

    def __init__(self, broker: Broker, user: str) -> None:
        self._broker = broker
        self.user = user

    async def ctl(self, *arguments: str) -> None:
        assert not isinstance(self._broker, Embedded)
        await asyncio.to_thread(self._broker.node.ctl, *arguments)  # type: ignore[attr-defined]

    @property
    def url(self) -> str:
        """Of the broker, without credentials."""
        return "amqp://" + self._broker.url.rpartition("@")[2]

    async def set_password(self, password: str) -> None:
        if isinstance(self._broker, Embedded):
            self._broker.broker.users[self.user] = password
        else:
            await self.ctl("change_password", self.user, password)

    async def cut(self) -> None:
        await self._broker.close_connections()


@pytest.fixture
async def accounts(broker: Broker, unique_name: Callable[[str], str]) -> AsyncIterator[Accounts]:
    made = Accounts(broker, unique_name("user"))
    if isinstance(broker, Embedded):
        await made.set_password("first")
        yield made
        return
    await made.ctl("add_user", made.user, "first")
    try:
        await made.ctl("set_permissions", made.user, ".*", ".*", ".*")
        yield made
    finally:
        await made.ctl("delete_user", made.user)


async def lost(client: leveret.Client) -> None:
    async with asyncio.timeout(10):
        await client.connection._ended


@pytest.mark.time_limit(60)
@pytest.mark.parametrize("kind", ["async", "plain", "partial of async", "lambda"])
async def test_a_provider_is_asked_at_each_connect(accounts: Accounts, kind: str) -> None:
    password = "first"
    asked: list[threading.Thread] = []

    async def from_a_vault(answer: Callable[[], str] = lambda: password) -> tuple[str, str]:
        asked.append(threading.current_thread())
        await asyncio.sleep(0)
        return accounts.user, answer()

    def from_a_file() -> tuple[str, str]:
        asked.append(threading.current_thread())
        return accounts.user, password

    providers: dict[str, Callable[[], Any]] = {
        "async": from_a_vault,
        "plain": from_a_file,
        "partial of async": functools.partial(from_a_vault, lambda: password),
        "lambda": lambda: from_a_vault(lambda: password),
    }
    provider = providers[kind]
    async with leveret.connect(accounts.url, credentials=provider, **QUICK) as client:
        assert len(asked) == 1
        password = "second"
        await accounts.set_password(password)
        cut = client.connection
        await accounts.cut()
        await lost(client)
        assert (await client.publishing_link.recovered()) is not cut
        assert len(asked) >= 2
        # All connections of the client ask it, and none of them blocks the loop for it.
        before = len(asked)
        await client.consuming_link()
        async with client.dedicated_connection("own"):
            assert len(asked) == before + 2
        in_loop = [thread is threading.main_thread() for thread in asked]
        assert all(in_loop) if kind != "plain" else not any(in_loop)


async def test_a_provider_wins_over_the_user_and_password_of_the_url() -> None:
    async with EmbeddedBroker(users={"svc": PASSWORD}) as broker:
        url = f"amqp://guest:wrong@127.0.0.1:{broker.port}"
        async with leveret.connect(url, credentials=lambda: ("svc", Secret(PASSWORD))) as client:
            assert client.connection.is_open
            assert "guest" not in repr(client)


@every_loop
async def test_a_provider_that_fails_is_an_error_that_names_only_its_class() -> None:
    async def failing() -> tuple[str, str]:
        raise RuntimeError(f"the vault refused {PASSWORD}")

    async with EmbeddedBroker() as broker:
        with pytest.raises(ConnectFailed) as caught:
            await leveret.connect(broker.url, credentials=failing)
    assert str(caught.value) == "the credential provider failed: RuntimeError"
    assert isinstance(caught.value.__cause__, RuntimeError)


async def test_a_provider_that_does_not_answer_has_a_deadline() -> None:
    gate = threading.Event()

    async def never() -> tuple[str, str]:
        await asyncio.Event().wait()
        raise AssertionError

    def blocks() -> tuple[str, str]:
        gate.wait(20)
        return "", ""

    async with EmbeddedBroker() as broker:
        for provider in (never, blocks):
            with pytest.raises(OperationTimeout, match=r"credential provider .*connect_timeout of 0\.2 s"):
                async with asyncio.timeout(5):
                    await leveret.connect(broker.url, credentials=provider, connect_timeout=0.2)
    gate.set()


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (None, "returned a NoneType; it must return"),
        ("svc:password", "returned a str; it must return"),
        (("svc", PASSWORD, "more"), "returned a tuple; it must return"),
        ((7, PASSWORD), "username is of type int"),
        (("svc", None), "password is of type NoneType"),
        (("svc", f"{PASSWORD}\0"), "has a NUL"),
    ],
)
async def test_an_answer_that_is_no_login_is_refused_and_not_shown(answer: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as caught:
        await Credentials(ConnectionSettings(credentials=lambda: answer)).ask()
    assert caught.value.option == "credentials"
    assert_not_shown(caught.value)


@pytest.mark.parametrize("raised", [StopIteration, SystemExit, KeyboardInterrupt])
async def test_a_provider_that_raises_what_no_task_may_raise_has_failed(raised: type[BaseException]) -> None:
    def provider() -> tuple[str, str]:
        raise raised

    with pytest.raises(ConnectFailed, match="the credential provider failed: RuntimeError"):
        await Credentials(ConnectionSettings(credentials=provider)).ask()


async def test_recovery_goes_on_when_the_provider_fails_for_a_while() -> None:
    answers: list[Any] = []

    def provider() -> Any:
        answer = answers.pop(0) if answers else ("guest", "guest")
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with EmbeddedBroker() as broker, leveret.connect(broker.url, credentials=provider, **QUICK) as client:
        answers += [OSError("the file is being replaced"), None, ("guest", None), ("guest", "wrong")]
        broker.close_connections()
        await lost(client)
        async with asyncio.timeout(10):
            assert (await client.publishing_link.recovered()).is_open
        assert answers == []


def test_a_provider_is_not_shown_and_cannot_come_from_outside(tmp_path: Path) -> None:
    def fetch(token: str) -> tuple[str, str]:
        return "svc", token

    settings = ConnectionSettings(credentials=functools.partial(fetch, PASSWORD))
    assert PASSWORD not in repr(settings)
    assert settings.redacted_url == "amqp://localhost:5672/%2F"
    with pytest.raises(ConfigurationError, match="credentials can be set from code only"):
        ConnectionSettings.from_url("amqp://localhost?credentials=x")
    with pytest.raises(ConfigurationError, match="credentials can be set from code only"):
        ConnectionSettings.from_env({"LEVERET_CREDENTIALS": "x"})
    with pytest.raises(ConfigurationError, match="credentials is of type str"):
        ConnectionSettings(credentials="svc:password")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="of no use with the mechanism EXTERNAL"):
        ConnectionSettings(credentials=lambda: ("a", "b"), mechanism="EXTERNAL")


# ---------------------------------------------------------------------- update_secret


@pytest.mark.time_limit(60)
async def test_a_new_secret_reaches_open_connections_and_the_next_ones(accounts: Accounts) -> None:
    url = accounts.url.replace("amqp://", f"amqp://{accounts.user}:first@")
    async with leveret.connect(url, **QUICK) as client, client.dedicated_connection("own") as own:
        await accounts.set_password("second")
        await client.update_secret("second", "rotation")
        # Connections that were open, one that is opened later, and one that replaces another.
        assert client.connection.is_open
        assert own.connection.is_open
        assert (await client.consuming_link()).is_open
        await accounts.cut()
        await lost(client)
        assert (await client.publishing_link.recovered()).is_open
        assert (await own.publishing_link.recovered()).is_open


@pytest.mark.time_limit(60)
async def test_a_secret_that_one_connection_took_is_used_by_the_next_of_the_client(accounts: Accounts) -> None:
    url = accounts.url.replace("amqp://", f"amqp://{accounts.user}:first@")
    async with leveret.connect(url, **QUICK) as client:
        await accounts.set_password("second")
        await client.connection.update_secret("second")
        await accounts.cut()
        await lost(client)
        assert (await client.publishing_link.recovered()).is_open


async def test_callers_that_wait_try_at_once_with_a_new_secret() -> None:
    async with EmbeddedBroker(users={"svc": "first"}) as broker:
        url = f"amqp://svc:first@127.0.0.1:{broker.port}"
        options: dict[str, Any] = {"recovery_initial_delay": 0.001, "recovery_max_delay": 86_400}
        async with leveret.connect(url, **options) as client:
            broker.users["svc"] = "second"
            broker.close_connections()
            await lost(client)
            waiting = asyncio.create_task(client.publishing_link.recovered())
            await until(lambda: client.publishing_link.failure)
            assert isinstance(client.publishing_link.failure, AuthenticationError)
            # The next attempt would be hours away.
            await client.update_secret("second")
            async with asyncio.timeout(10):
                assert (await waiting).is_open
            assert client.publishing_link.failure is None


async def test_a_secret_that_amqp_cannot_carry_is_refused_and_not_shown() -> None:
    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
        for call in (client.update_secret, client.connection.update_secret):
            with pytest.raises(ConfigurationError) as caught:
                await call(f"{PASSWORD}\0")
            assert PASSWORD not in str(caught.value)
        await client.update_secret("guest")
        assert client.connection.is_open


async def test_a_closed_connection_takes_no_secret() -> None:
    async with EmbeddedBroker() as broker:
        client = await leveret.connect(broker.url)
        connection = client.connection
        await client.close()
        with pytest.raises(ConnectionClosed):
            await connection.update_secret("guest")
