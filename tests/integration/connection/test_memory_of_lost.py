"""What a lost connection held is freed at once, without the collector of cycles, on client and embedded broker."""

from __future__ import annotations

import asyncio
import gc
from typing import TYPE_CHECKING

import pytest
from pamqp.commands import Channel
from tests.corpus.frames import body, deliver, header
from tests.support.peers import FakeServer, Peer

from leveret.broker import EmbeddedBroker
from leveret.broker.session import BrokerSession
from leveret.broker.transport import BrokerTransport
from leveret.connection.channel import Channel as ClientChannel
from leveret.connection.connection import Connection
from leveret.errors import LeveretError
from leveret.settings import ConnectionSettings
from leveret.transport.frame_transport import FrameTransport
from leveret.wire.buffers import RecvBuffer, SendBuffer
from leveret.wire.message import Message
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator

pytestmark = pytest.mark.usefixtures("no_leftovers")

KINDS = [BrokerSession, BrokerTransport, ClientChannel, Connection, FrameTransport, FrameReader, Message, RecvBuffer]
KINDS += [SendBuffer]


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive() -> dict[str, int]:
    """How many objects of each kind there are."""
    counts: dict[str, int] = {}
    for one in gc.get_objects():
        if type(one) in KINDS:
            counts[type(one).__name__] = counts.get(type(one).__name__, 0) + 1
    return counts


async def nothing_more_than(before: dict[str, int]) -> None:
    """Waits until all that was made since is freed."""
    for _ in range(500):
        if all(count <= before.get(name, 0) for name, count in alive().items()):
            return
        await asyncio.sleep(0.01)
    assert alive() == before


async def failed(awaitable: Awaitable[object]) -> None:
    """Awaits what has to fail. `pytest.raises` would keep the error and all that its traceback refers to."""
    try:
        await awaitable
    except LeveretError:
        return
    raise AssertionError("it did not fail")


@pytest.mark.parametrize("ending", ["reset", "frame of 4 GiB", "close"])
async def test_client_frees_a_lost_connection(ending: str) -> None:
    done = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open)
        peer.send_bytes(deliver(1, 1) + header(1, 1_000_000) + body(1, bytes(100_000)))
        if ending == "reset":
            peer.hang_up()
        elif ending == "close":
            await peer.linger()
        else:
            peer.send_bytes(b"\3\0\1\xff\xff\xff\xff")
        await done.wait()

    async def use(url: str) -> None:
        connection = await Connection.open(ConnectionSettings.from_url(url, close_timeout=0.5))
        channel = await connection.channel()
        if ending == "close":
            await connection.close()
        else:
            await failed(_until_closed(channel))
            assert connection.error is not None

    async with FakeServer(script) as server:
        before = alive()
        await use(server.url)
        await nothing_more_than(before)
        done.set()


async def _until_closed(channel: ClientChannel) -> None:
    while True:
        await channel.queue_declare("q")


async def test_client_frees_a_connection_that_was_not_opened() -> None:
    async def script(peer: Peer) -> None:
        await peer.read(8)
        peer.hang_up()

    async with FakeServer(script) as server:
        before = alive()
        await failed(Connection.open(ConnectionSettings.from_url(server.url)))
        await nothing_more_than(before)


async def test_broker_frees_a_connection_that_the_client_has_reset() -> None:
    async with EmbeddedBroker() as broker:
        before = alive()
        client = await Connection.open(ConnectionSettings.from_url(broker.url))
        channel = await client.channel()
        await channel.queue_declare("q", exclusive=True)
        client.transport.out.append(deliver(1, 1)[:7])
        client.transport.abort()
        del client, channel
        await nothing_more_than(before)
        assert broker.sessions == {}


async def test_broker_frees_a_socket_that_never_logged_in() -> None:
    async with EmbeddedBroker() as broker:
        before = alive()
        _, writer = await asyncio.open_connection("127.0.0.1", broker.port)
        writer.write(b"AMQP\0\0\x09\x01\1\0\0")
        await writer.drain()
        while not broker.sessions:  # noqa: ASYNC110 - the broker has no event for it
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        await nothing_more_than(before)
