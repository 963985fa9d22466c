"""A producer whose confirms come when the test says so."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Confirm
from pamqp.header import ContentHeader

import leveret
from tests.support.peers import FakeServer, Peer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class Server:
    """The other end of a producer's socket; it confirms what it is told to, when it is told to.

    Attributes:
        message_ids: The ids of what `publishings` returned so far.
    """

    def __init__(self, peer: Peer, client: leveret.Client) -> None:
        self.message_ids: list[str | None] = []
        self._peer = peer
        self._client = client
        self._last = 0

    async def publishings(self) -> list[bytes]:
        """The bodies of everything that the client wrote by now."""
        # What is written now comes behind it.
        marker = asyncio.create_task(self._client.channel())
        bodies: list[bytes] = []
        while True:
            channel, value = await self._peer.receive()
            if isinstance(value, Channel.Open):
                self._peer.send(Channel.OpenOk(), channel)
                await marker
                return bodies
            assert isinstance(value, Basic.Publish)
            _, header = await self._peer.receive()
            assert isinstance(header, ContentHeader)
            self.message_ids.append(header.properties.message_id)
            body = b""
            while len(body) < header.body_size:
                _, part = await self._peer.receive()
                assert isinstance(part, ContentBody)
                body += part.value
            bodies.append(body)

    def ack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        self._peer.send(Basic.Ack(delivery_tag, multiple), 1)

    def nack(self, delivery_tag: int, *, multiple: bool = False) -> None:
        self._peer.send(Basic.Nack(delivery_tag, multiple), 1)


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[Server, leveret.Producer]]:
    """A producer, and a server that does nothing by itself until the block ends."""
    ready: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        ready.set_result(peer)
        await over.wait()
        await peer.linger()

    async with (
        FakeServer(script) as server,
        leveret.connect(server.url) as client,
        client.producer(**options) as producer,
    ):
        try:
            yield Server(await ready, client), producer
        finally:
            over.set()


async def mute(peer: Peer) -> None:
    """A server that takes publishings and never confirms."""
    await peer.handshake()
    await peer.answer(Channel.Open, Confirm.Select)
    await peer.linger()


@asynccontextmanager
async def producing(script: Callable[[Peer], Awaitable[None]], **options: Any) -> AsyncIterator[leveret.Producer]:
    """A producer of the default exchange on a server with this script."""
    async with (
        FakeServer(script) as server,
        leveret.connect(server.url) as client,
        client.producer(serializer="bytes", **options) as producer,
    ):
        yield producer
