"""A server that sends content where none can be ends the connection, before it takes memory."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Channel, Connection, Queue
from tests.corpus.frames import NO_PROPERTIES, body, deliver, header
from tests.support.outcomes import refusal
from tests.support.peers import FakeServer, Peer

import leveret
from leveret.errors import RemoteProtocolError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.usefixtures("no_leftovers")

CONTENT = deliver(1, 1) + header(1, 10) + body(1, b"x")


async def _before_start(peer: Peer) -> None:
    await peer.read(8)


async def _before_tune(peer: Peer) -> None:
    await peer.read(8)
    peer.send(Connection.Start(server_properties={}))
    await peer.expect(Connection.StartOk)


async def _before_open_ok(peer: Peer) -> None:
    await _before_tune(peer)
    peer.send(Connection.Tune(2047, 131_072, 0))
    await peer.expect(Connection.TuneOk, Connection.Open)


@pytest.mark.parametrize("until", [_before_start, _before_tune, _before_open_ok])
async def test_content_before_the_connection_is_open_ends_it(until: Callable[[Peer], Awaitable[None]]) -> None:
    async def script(peer: Peer) -> None:
        await until(peer)
        peer.send_bytes(CONTENT)

    async with FakeServer(script) as server:
        error = await refusal(asyncio.ensure_future(_connect(server.url)), within=5)
    assert isinstance(error, RemoteProtocolError), repr(error)
    assert error.reply_code == 505


async def _connect(url: str) -> leveret.Client:
    return await leveret.connect(url, close_timeout=0.5, auto_recovery=False)


async def test_content_on_a_channel_that_is_still_being_opened_ends_the_connection() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.expect(Channel.Open)
        peer.send_bytes(CONTENT)
        close = await peer.expect(Connection.Close)
        assert close.reply_code == 504

    async with FakeServer(script) as server, leveret.connect(server.url, auto_recovery=False, close_timeout=0.5) as one:
        error = await refusal(asyncio.ensure_future(one.channel()), within=5)
        assert isinstance(error, RemoteProtocolError), repr(error)
        assert error.reply_code == 504


@pytest.mark.parametrize("beyond", [-1, 0, 1])
async def test_incomplete_contents_of_all_channels_have_one_limit(beyond: int) -> None:
    # One message with the largest body and the largest header frame fits.
    limit = 1000 + 4096
    taken = 4000 + 100 + len(NO_PROPERTIES)
    first = deliver(1, 1) + header(1, 1000, NO_PROPERTIES + bytes(4000)) + body(1, bytes(100))
    rest = limit - taken - len(NO_PROPERTIES) + beyond
    second = deliver(2, 1) + header(2, 1000) + body(2, bytes(rest))

    async def script(peer: Peer) -> None:
        await peer.handshake(frame_max=4096)
        await peer.answer(Channel.Open, Channel.Open, Channel.Open)
        await peer.expect(Queue.Declare)
        peer.send_bytes(first + second)
        if beyond <= 0:
            peer.send(Queue.DeclareOk("q", 0, 0), 3)
        await peer.linger()

    options: dict[str, Any] = {"max_body_size": 1000, "auto_recovery": False, "close_timeout": 0.5}
    async with FakeServer(script) as server, leveret.connect(server.url, **options) as client:
        channels = [await client.channel() for _ in range(3)]
        declaring = asyncio.ensure_future(channels[2].queue_declare("q"))
        if beyond <= 0:
            async with asyncio.timeout(5):
                await declaring
        else:
            error = await refusal(declaring, within=5)
            assert isinstance(error, RemoteProtocolError), repr(error)
            assert error.reply_code == 506
            assert f"{limit + 1} bytes, more than the limit of {limit}" in str(error)
