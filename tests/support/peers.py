"""Servers that misbehave: the other end of a socket, speaking AMQP through pamqp until the test says otherwise."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any, Self

from pamqp import base, body, frame, header, heartbeat
from pamqp.commands import Basic, Channel, Confirm, Connection, Queue

from tests.support.conversation import PROTOCOL_HEADER, raw_method
from tests.support.secrets import PASSWORD

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterator
    from types import TracebackType

#: How an obliging server answers.
ANSWERS: dict[str, Callable[[Any], base.Frame]] = {
    "Connection.Close": lambda _: Connection.CloseOk(),
    "Channel.Open": lambda _: Channel.OpenOk(),
    "Channel.Close": lambda _: Channel.CloseOk(),
    "Confirm.Select": lambda _: Confirm.SelectOk(),
    "Basic.Qos": lambda _: Basic.QosOk(),
    "Basic.Consume": lambda consume: Basic.ConsumeOk(consume.consumer_tag),
    "Queue.Declare": lambda declare: Queue.DeclareOk(declare.queue, 0, 0),
}


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send_bytes(self, data: bytes) -> None:
        """Sends anything at all."""
        self._writer.write(data)

    def send(self, value: base.Frame, channel: int = 0) -> None:
        """Sends a method."""
        self.send_bytes(frame.marshal(value, channel))

    def hang_up(self) -> None:
        """Closes the socket."""
        self._writer.close()

    async def read(self, count: int) -> bytes:
        """Reads so many bytes."""
        return await self._reader.readexactly(count)

    async def receive(self) -> tuple[int, Any]:
        """The channel and value of the next frame that is not a heartbeat."""
        while True:
            start = await self.read(7)
            _, channel, size = struct.unpack(">BHI", start)
            _, _, value = frame.unmarshal(start + await self.read(size + 1))
            if not isinstance(value, heartbeat.Heartbeat):
                return channel, value

    async def expect(self, *kinds: type[base.Frame | header.ContentHeader | body.ContentBody]) -> Any:
        """Receives these methods in this order, and nothing else; returns the last."""
        value = None
        for kind in kinds:
            _, value = await self.receive()
            assert isinstance(value, kind), f"{value.name} came where {kind.name} was due"
        return value

    async def answer(self, *kinds: type[base.Frame]) -> Any:
        """Receives these methods in this order and answers each obligingly; returns the last."""
        value = None
        for kind in kinds:
            channel, value = await self.receive()
            assert isinstance(value, kind), f"{value.name} came where {kind.name} was due"
            self.send(ANSWERS[value.name](value), channel)
        return value

    async def handshake(self, *, frame_max: int = 131_072, channel_max: int = 2047, heartbeat: int = 0) -> None:
        """Opens the connection in the way a good server does."""
        assert await self.read(8) == PROTOCOL_HEADER
        self.send(Connection.Start(server_properties={"product": "a server of the tests"}))
        await self.expect(Connection.StartOk)
        self.send(Connection.Tune(channel_max, frame_max, heartbeat))
        await self.expect(Connection.TuneOk, Connection.Open)
        self.send(Connection.OpenOk())

    async def linger(self) -> None:
        """Goes on answering what an obliging server answers, until the client is gone; ignores the rest."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                channel, value = await self.receive()
                answer = ANSWERS.get(value.name)
                if answer is not None:
                    self.send(answer(value), channel)


class FakeServer:
    """Runs a script against each client that connects.

    Example::

        async def silent(peer: Peer) -> None:
            await peer.read(8)

        async with FakeServer(silent) as server:
            await leveret.connect(server.url)

    Args:
        script: What the server does; it may end before the client does, and the socket stays open then.
        tls: Speaks TLS first.
    """

    def __init__(self, script: Callable[[Peer], Awaitable[None]], *, tls: ssl.SSLContext | None = None) -> None:
        self._script = script
        self._tls = tls
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._failures: list[BaseException] = []

    @property
    def port(self) -> int:
        """Where it listens, on 127.0.0.1."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Its URL, with a password that no error may show."""
        return f"{'amqps' if self._tls else 'amqp'}://app:{PASSWORD}@127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._failures and error is None:
            raise self._failures[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        task.add_done_callback(self._tasks.discard)
        try:
            # The client may be gone before the script is over; that is the test's affair.
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                await self._script(Peer(reader, writer))
                while await reader.read(65_536):
                    pass
        except BaseException as failure:
            self._failures.append(failure)
        finally:
            self._writers.discard(writer)
            writer.close()


@contextlib.contextmanager
def silent_address(host: str = "127.0.0.1", port: int = 0) -> Iterator[int]:
    """An address that does not even refuse: a queue of connections that nobody accepts. Gives its port.

    When that queue is full, Linux drops what comes, as a firewall would.
    """
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.socket())
        listening.bind((host, port))
        listening.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listening.getsockname())
        yield listening.getsockname()[1]


def start_with(properties: bytes) -> bytes:
    """connection.start with these bytes for the table of server properties."""
    return raw_method(0, 10, 10, b"\0\x09" + properties + b"\0\0\0\5PLAIN\0\0\0\5en_US")


@contextlib.asynccontextmanager
async def two_connections(consuming: Callable[[Peer], Awaitable[None]]) -> Any:
    """A server whose first connection, for publishing, is a good one; the second runs the script."""
    count = 0

    async def script(peer: Peer) -> None:
        nonlocal count
        count += 1
        if count == 1:
            await peer.handshake()
            await peer.linger()
        else:
            await consuming(peer)

    async with FakeServer(script) as server:
        yield server.url
