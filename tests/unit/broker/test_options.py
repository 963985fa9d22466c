"""The options and addresses of the embedded broker: what is refused, and by which name."""

from __future__ import annotations

from typing import Any

import pytest

from leveret.broker import EmbeddedBroker
from leveret.errors import ConfigurationError


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("port", "5672"),
        ("port", True),
        ("heartbeat", -1),
        ("heartbeat", 65536),
        ("heartbeat", 0.5),
        ("heartbeat", "60"),
        ("frame_max", 4095),
        ("frame_max", 1 << 31),
        ("channel_max", 0),
        ("channel_max", 65536),
        ("max_message_size", 0),
        ("max_message_size", 1 << 30),
        ("handshake_timeout", 0),
        ("handshake_timeout", float("nan")),
        ("backlog", 0),
        ("users", {}),
        ("users", {"": "secret"}),
        ("users", {"guest": None}),
        ("virtual_hosts", ()),
        ("virtual_hosts", ""),
        ("virtual_hosts", "/"),
        ("virtual_hosts", ("",)),
        ("virtual_hosts", ("v" * 256,)),
        ("virtual_hosts", (5,)),
        ("host", "0.0.0.0"),
        ("host", "::"),
        ("host", "192.0.2.1"),
        ("host", "example.org"),
    ],
)
def test_option_out_of_range_is_refused_by_name(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=option) as raised:
        EmbeddedBroker(**{option: value})
    assert raised.value.option == option
    assert "secret" not in str(raised.value)


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="prefetch"):
        EmbeddedBroker(prefetch=5)  # type: ignore[call-arg]


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.7", "localhost", "::1"])
def test_loopback_addresses_need_no_permission(host: str) -> None:
    EmbeddedBroker(host=host)


def test_other_addresses_need_permission() -> None:
    EmbeddedBroker(host="192.0.2.1", allow_remote=True)


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ({"port": 5672}, "amqp://guest:guest@127.0.0.1:5672/%2F"),
        ({"port": 1, "host": "::1"}, "amqp://guest:guest@[::1]:1/%2F"),
        ({"port": 1, "users": {"a@b": "p/w:"}}, "amqp://a%40b:p%2Fw%3A@127.0.0.1:1/%2F"),
        ({"port": 1, "virtual_hosts": ("orders", "/")}, "amqp://guest:guest@127.0.0.1:1/orders"),
        ({"path": "/run/a b.sock"}, "amqp+unix://guest:guest@/%2F?unix_socket=/run/a%20b.sock"),
    ],
)
def test_url_names_everything_that_a_client_needs(options: dict[str, Any], url: str) -> None:
    broker = EmbeddedBroker(**options)
    assert broker.url == url
    assert "guest:guest" not in repr(broker)
