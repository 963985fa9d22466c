"""A TCP proxy between a client and a broker, which can cut the connection or swallow what is said."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from types import TracebackType


class Proxy:
    """Listens on loopback and hands bytes on, both ways, until it is told otherwise.

    Args:
        broker_url: Where to.
        delay: How many seconds later the client hears what the broker says, however much it is.

    Attributes:
        deaf: While true, what the broker says is swallowed: the client sends into a working connection and hears
            nothing, as behind a firewall that forgot it.
        connections: How many connections are open now.
    """

    def __init__(self, broker_url: str, *, delay: float = 0.0) -> None:
        self._delay = delay
        self._target = urlsplit(broker_url)
        self._server: asyncio.Server
        self._pairs: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.deaf = False

    @property
    def url(self) -> str:
        """The broker's URL, by way of this proxy."""
        port = self._server.sockets[0].getsockname()[1]
        credentials = f"{self._target.username}:{self._target.password}@" if self._target.username else ""
        return f"amqp://{credentials}127.0.0.1:{port}{self._target.path}"

    @property
    def connections(self) -> int:
        return len(self._pairs)

    def reset(self) -> None:
        """Resets every client's connection (RST), in the middle of whatever is under way."""
        for writer in self._pairs:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def hang_up(self) -> None:
        """Ends every client's connection (FIN) without a word of AMQP."""
        for writer in self._pairs:
            writer.close()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Ends every client's connection, and takes no more."""
        self._server.close()
        for writer in [*self._pairs, *self._pairs.values()]:
            writer.transport.abort()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        from_broker, to_broker = await asyncio.open_connection(self._target.hostname, self._target.port)
        self._pairs[to_client] = to_broker
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(from_client, to_broker, to_client))
                group.create_task(self._pump(from_broker, to_client, to_broker, replies=True))
        finally:
            del self._pairs[to_client]

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        other: asyncio.StreamWriter,
        *,
        replies: bool = False,
    ) -> None:
        delay = self._delay if replies else 0.0
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ConnectionError):
            while data := await source.read(65_536):
                if replies and self.deaf:
                    continue
                if delay:
                    loop.call_later(delay, _write, sink, data)
                else:
                    _write(sink, data)
                    await sink.drain()
        # One side is gone: so is the other, behind what is still under way.
        await asyncio.sleep(delay)
        sink.close()
        other.close()


def _write(sink: asyncio.StreamWriter, data: bytes) -> None:
    # One that was reset has no other side any more, and uvloop raises RuntimeError.
    if not sink.transport.is_closing():
        sink.write(data)
