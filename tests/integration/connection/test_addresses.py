"""An address that cannot be used is named, and the next one is tried."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.loops import every_loop
from tests.support.outcomes import refusal
from tests.support.peers import FakeServer, Peer, silent_address
from tests.support.rabbitmq import free_ports
from tests.support.secrets import PASSWORD, assert_not_shown

import leveret
from leveret.errors import AuthenticationError, ConfigurationError, ConnectFailed, ConnectionClosed
from leveret.settings import ConnectionSettings, Endpoint, Secret

if TYPE_CHECKING:
    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


GOOD_URL = f"amqp://guest:{PASSWORD}@localhost"


WRONG_URLS = {
    "scheme": (f"http://guest:{PASSWORD}@localhost", "url"),
    "no scheme": (f"guest:{PASSWORD}@localhost", "url"),
    "no host": (f"amqp://guest:{PASSWORD}@", "endpoints"),
    "port": (f"{GOOD_URL}:70000", "endpoints"),
    "virtual host": (f"{GOOD_URL}/a/b", "virtual_host"),
    "unknown option": (f"{GOOD_URL}?heartbeet=5", "heartbeet"),
    "option of another type": (f"{GOOD_URL}?heartbeat=often", "heartbeat"),
    "option below its range": (f"{GOOD_URL}?frame_max=100", "frame_max"),
    "option above its range": (f"{GOOD_URL}?frame_max=1048577", "frame_max"),
    "at sign in the password": (f"amqp://guest:@{PASSWORD}@localhost", "url"),
}


@pytest.mark.parametrize(("url", "option"), WRONG_URLS.values(), ids=WRONG_URLS)
def test_the_option_is_named_when_a_url_is_wrong(url: str, option: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        leveret.connect(url)
    assert refused.value.option == option
    assert_not_shown(refused.value, in_locals=False)


def test_the_option_is_named_when_a_keyword_is_wrong() -> None:
    for options in ({"heartbeet": 5}, {"heartbeat": "often"}, {"heartbeat": -1}, {"frame_max": 4095}, {"tls": True}):
        with pytest.raises(ConfigurationError) as refused:
            leveret.connect(GOOD_URL, **options)
        assert refused.value.option in options
        assert_not_shown(refused.value, in_locals=False)
    with pytest.raises(ConfigurationError, match="not int"):
        leveret.connect(5)  # type: ignore[arg-type]


@every_loop
@pytest.mark.parametrize(
    "host", ["no-such-host.invalid", "a..b", "x" * 64, "é" * 70], ids=["unknown", "empty_label", "long_label", "idna"]
)
async def test_the_host_is_named_when_it_has_no_address(host: str) -> None:
    error = await refusal(leveret.connect(f"amqp://guest:{PASSWORD}@{host}:5672"), within=20)
    assert type(error) is ConnectFailed
    assert f"{host}:5672" in str(error)


@every_loop
async def test_the_address_is_named_when_nobody_listens_there() -> None:
    (port,) = free_ports(1)
    error = await refusal(leveret.connect(f"amqp://guest:{PASSWORD}@127.0.0.1:{port}"))
    assert type(error) is ConnectFailed
    assert f"127.0.0.1:{port}" in str(error)
    assert "refused" in str(error).lower()


async def test_each_endpoint_is_named_when_none_answers() -> None:
    ports = free_ports(3)
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    error = await refusal(leveret.connect(f"amqp://guest:{PASSWORD}@{hosts}"))
    assert type(error) is ConnectFailed
    assert all(f"127.0.0.1:{port}" in str(error) for port in ports)


async def test_the_next_endpoint_is_used_when_the_first_is_out_of_order(broker: Broker) -> None:
    async def wrong(peer: Peer) -> None:
        peer.send_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    (closed,) = free_ports(1)
    settings = leveret.ConnectionSettings.from_url(broker.url)
    async with FakeServer(wrong) as server:
        endpoints = (
            leveret.settings.Endpoint("127.0.0.1", closed),
            leveret.settings.Endpoint("127.0.0.1", server.port),
            *settings.endpoints,
        )
        async with leveret.connect(settings, endpoints=endpoints) as client:
            assert client.connection.is_open


async def test_the_path_is_named_when_there_is_no_unix_socket(tmp_path: Any) -> None:
    error = await refusal(leveret.connect(f"amqp+unix://guest:{PASSWORD}@/?unix_socket={tmp_path}/none"))
    assert type(error) is ConnectFailed
    assert f"{tmp_path}/none" in str(error)


async def test_s6_the_attempt_ends_when_the_network_swallows_it() -> None:
    assert leveret.ConnectionSettings().connect_timeout == 30.0
    assert str(leveret.ConnectionSettings().endpoints[0]) == "localhost:5672"
    with silent_address() as port:
        url = f"amqp://guest:{PASSWORD}@127.0.0.1:{port}"
        error = await refusal(leveret.connect(url, connect_timeout=0.2), within=1)
        assert type(error) is ConnectFailed
        assert "connect_timeout of 0.2 s" in str(error)


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
