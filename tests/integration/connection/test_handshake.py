"""A handshake that fails, stalls or makes no sense ends with a typed error, within its deadline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from pamqp.commands import Connection
from tests.support.conversation import nested_table, raw_method
from tests.support.loops import every_loop
from tests.support.outcomes import refusal
from tests.support.peers import FakeServer, Peer, start_with
from tests.support.secrets import PASSWORD

import leveret
from leveret.errors import (
    AuthenticationError,
    ConnectionClosed,
    ConnectionLost,
    FrameError,
    IncompatibleProtocol,
    LeveretError,
    OperationTimeout,
    RemoteProtocolError,
    TableSyntaxError,
)
from leveret.settings import ConnectionSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


def with_credentials(url: str, user: str = "guest", password: str = PASSWORD) -> str:
    return url.replace("guest:guest@", f"{user}:{password}@")


def where(broker: Broker) -> str:
    (endpoint,) = ConnectionSettings.from_url(broker.url).endpoints
    return str(endpoint)


@every_loop
async def test_the_credentials_are_refused_when_the_password_is_wrong(broker: Broker) -> None:
    for user in ("guest", "nobody"):
        error = await refusal(leveret.connect(with_credentials(broker.url, user)))
        assert type(error) is AuthenticationError
        assert error.reply_code == 403
        assert "ACCESS_REFUSED" in error.reply_text
        assert f"connecting to {where(broker)} as user {user!r}, virtual host '/', failed: " in str(error)


async def test_the_mechanism_is_named_when_the_broker_does_not_offer_it(broker: Broker) -> None:
    error = await refusal(leveret.connect(with_credentials(broker.url), mechanism="EXTERNAL"))
    assert type(error) is AuthenticationError
    assert "EXTERNAL" in str(error)
    assert "PLAIN" in str(error)


async def test_the_virtual_host_is_named_when_there_is_none(broker: Broker) -> None:
    error = await refusal(leveret.connect(broker.url, virtual_host="nowhere", password="guest"))
    assert type(error) is ConnectionClosed
    assert error.reply_code == 530
    assert "nowhere" in error.reply_text
    assert f"connecting to {where(broker)} as user 'guest', virtual host 'nowhere', failed: " in str(error)


async def http(peer: Peer) -> None:
    await peer.read(8)
    peer.send_bytes(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    peer.hang_up()


async def banner(peer: Peer) -> None:
    peer.send_bytes(b"SSH-2.0-OpenSSH_9.2\r\n")


async def amqp_1_0(peer: Peer) -> None:
    await peer.read(8)
    peer.send_bytes(b"AMQP\x00\x01\x00\x00")
    peer.hang_up()


async def amqp_0_8(peer: Peer) -> None:
    await peer.read(8)
    peer.send(Connection.Start(0, 8))


@every_loop
@pytest.mark.parametrize(
    ("script", "words"),
    [(http, "HTTP/1.1"), (banner, "SSH-2.0"), (amqp_1_0, "1-0-0"), (amqp_0_8, "0-8")],
    ids=["http", "ssh", "amqp_1_0", "amqp_0_8"],
)
async def test_the_peer_is_described_when_it_does_not_speak_this_protocol(
    script: Callable[[Peer], Awaitable[None]], words: str
) -> None:
    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url))
    assert isinstance(error, IncompatibleProtocol)
    assert words in str(error)


async def silent(peer: Peer) -> None:
    await peer.read(8)


async def silent_after_start(peer: Peer) -> None:
    await peer.read(8)
    peer.send(Connection.Start())
    await peer.expect(Connection.StartOk)


async def silent_after_tune(peer: Peer) -> None:
    await silent_after_start(peer)
    peer.send(Connection.Tune(0, 131_072, 0))
    await peer.expect(Connection.TuneOk, Connection.Open)


async def trickling(peer: Peer) -> None:
    from pamqp import frame

    for byte in frame.marshal(Connection.Start(), 0):
        peer.send_bytes(bytes([byte]))
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("script", "phase"),
    [
        (silent, "connection.start"),
        (silent_after_start, "connection.tune"),
        (silent_after_tune, "connection.open-ok"),
        (trickling, "connection.start"),
    ],
    ids=["after_header", "after_start", "after_tune", "trickling"],
)
async def test_the_attempt_ends_when_the_server_is_silent_in_the_handshake(
    script: Callable[[Peer], Awaitable[None]], phase: str
) -> None:
    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url, handshake_timeout=0.3), within=1)
        assert type(error) is OperationTimeout
        assert f"127.0.0.1:{server.port}" in str(error)
        assert phase in str(error)
        assert "0.3 s" in str(error)


async def hangs_up_at_once(peer: Peer) -> None:
    peer.hang_up()


async def hangs_up_after_header(peer: Peer) -> None:
    await peer.read(8)
    peer.hang_up()


async def hangs_up_after_credentials(peer: Peer) -> None:
    await silent_after_start(peer)
    peer.hang_up()


async def hangs_up_after_open(peer: Peer) -> None:
    await silent_after_tune(peer)
    peer.hang_up()


@every_loop
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (hangs_up_at_once, ConnectionLost),
        (hangs_up_after_header, ConnectionLost),
        (hangs_up_after_credentials, AuthenticationError),
        (hangs_up_after_open, ConnectionLost),
    ],
    ids=["at_once", "after_header", "after_credentials", "after_open"],
)
async def test_the_attempt_ends_when_the_server_hangs_up_in_the_handshake(
    script: Callable[[Peer], Awaitable[None]], kind: type[LeveretError]
) -> None:
    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url), within=1)
    assert type(error) is kind


NONSENSE = {
    "table nested 600 deep": (start_with(nested_table(600)), TableSyntaxError, ["connection.start", "32"]),
    # 1,000 levels do not fit the frames that may come before tune, and are refused for that.
    "table nested 1000 deep": (start_with(nested_table(1000)), FrameError, ["4096"]),
    "table longer than its frame": (start_with(b"\0\0\xff\xff\1ax"), TableSyntaxError, ["connection.start"]),
    "text longer than its table": (
        start_with(b"\0\0\0\x07\1aS\xff\xff\xff\xff"),
        TableSyntaxError,
        ["connection.start"],
    ),
    "unknown field type": (start_with(b"\0\0\0\4\1aZ\0"), TableSyntaxError, ["connection.start"]),
    "key longer than its table": (start_with(b"\0\0\0\1\5"), TableSyntaxError, ["connection.start"]),
    "no arguments": (raw_method(0, 10, 10), TableSyntaxError, ["connection.start"]),
    "unknown method": (raw_method(0, 10, 9999), RemoteProtocolError, ["10.9999"]),
    "tune before start": (
        raw_method(0, 10, 30, b"\0\0\0\2\0\0\0\0"),
        RemoteProtocolError,
        ["connection.tune", "connection.start"],
    ),
    "a channel's method": (raw_method(1, 20, 11), RemoteProtocolError, ["channel 1"]),
    "frame of 4 GiB": (b"\1\0\0\xff\xff\xff\xff", FrameError, ["4294967303", "4096"]),
    "frame over the limit before tune": (b"\1\0\0\0\0\x10\0", FrameError, ["4104", "4096"]),
    "wrong frame end": (b"\1\0\0\0\0\0\4\0\x0a\0\x0aX", FrameError, ["0x58", "0xce"]),
    "method of two bytes": (b"\1\0\0\0\0\0\2\0\x0a\xce", FrameError, ["2 bytes"]),
    "heartbeat on a channel": (b"\x08\0\1\0\0\0\0\xce", FrameError, ["heartbeat", "channel 1"]),
    "content header": (b"\2\0\1\0\0\0\x0e" + bytes(14) + b"\xce", RemoteProtocolError, ["channel 1"]),
}


@pytest.mark.parametrize(("data", "kind", "words"), NONSENSE.values(), ids=NONSENSE)
async def test_the_attempt_ends_when_the_server_begins_with_nonsense(
    data: bytes, kind: type[LeveretError], words: list[str]
) -> None:
    async def script(peer: Peer) -> None:
        await peer.read(8)
        peer.send_bytes(data)

    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url), within=1)
    assert type(error) is kind
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize("frame_max", [1, 4095])
async def test_the_attempt_ends_when_the_server_wants_frames_that_are_too_small(frame_max: int) -> None:
    async def script(peer: Peer) -> None:
        await silent_after_start(peer)
        peer.send(Connection.Tune(0, frame_max, 0))

    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url), within=1)
    assert type(error) is RemoteProtocolError
    assert str(frame_max) in str(error)
    assert "4096" in str(error)


async def test_a_challenge_is_refused_when_the_server_sends_one() -> None:
    async def script(peer: Peer) -> None:
        await silent_after_start(peer)
        peer.send(Connection.Secure("sentinel"))

    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url), within=1)
    assert type(error) is RemoteProtocolError
    assert "PLAIN" in str(error)


async def test_a_server_text_cannot_forge_a_log_line_when_it_refuses() -> None:
    async def script(peer: Peer) -> None:
        await silent_after_start(peer)
        peer.send(Connection.Close(403, "no\nINFO all is well\x1b[2J", 0, 0))
        await peer.expect(Connection.CloseOk)

    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url), within=1)
    assert isinstance(error, AuthenticationError)
    assert "\n" not in str(error)
    assert "\x1b" not in str(error)
    assert r"no\nINFO all is well" in error.reply_text
