"""The two ways of a connection through a `FaultProxy`: bytes are read, held up as told, and handed on.

Everything here runs in the event loop of the proxy's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections import deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from leveret.testing.frames import FrameSplitter, Part

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Conditions", "Cut", "How", "Route", "Watcher", "Way"]

#: How many bytes one way holds back, for example while they are delayed; then it does not read on.
MOST_HELD: Final = 1 << 20
_READ: Final = 65_536
#: Throttled bytes leave in pieces that take so many seconds.
_TICK: Final = 0.02
#: How long a cut waits for the bytes before it to arrive, in seconds.
_ARRIVAL: Final = 1.0
_RESET: Final = struct.pack("ii", 1, 0)

How = Literal["reset", "half_close", "stall"]


@dataclass(frozen=True, slots=True)
class Terms:
    """How bytes travel in one direction.

    Attributes:
        stall: Whether nothing travels.
        swallow: Whether frames are thrown away.
        rate: Bytes per second, or None.
        size: The most bytes in one piece, or None.
        pause: Seconds between pieces.
        delay: Seconds from reading to handing on.
    """

    stall: bool = False
    swallow: bool = False
    rate: float | None = None
    size: int | None = None
    pause: float = 0.0
    delay: float = 0.0


class Conditions:
    """The terms of one direction of all connections, and waiting for them to change.

    Attributes:
        terms: The terms now.
    """

    def __init__(self) -> None:
        self.terms = Terms()
        self._changed = asyncio.Event()

    def change(self, **values: Any) -> None:
        """Changes fields of the terms, and wakes who waits."""
        self.put(replace(self.terms, **values))

    def put(self, terms: Terms) -> None:
        """Takes other terms, and wakes who waits."""
        self.terms = terms
        self._changed.set()
        self._changed = asyncio.Event()

    def clear(self) -> None:
        """Bytes travel freely again."""
        self.put(Terms())

    async def changed(self, seconds: float | None = None) -> None:
        """Waits until the terms change, for at most so many seconds."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)

    async def flowing(self) -> None:
        """Waits while the direction is stalled."""
        while self.terms.stall:
            await self.changed()


@dataclass(frozen=True, slots=True)
class Cut:
    """A cut that is due.

    Attributes:
        how: What is done.
        forward: Whether the frame is handed on before.
        watch: What waited for the frame.
    """

    how: How
    forward: bool
    watch: Any


class Watcher(Protocol):
    """Sees each frame that is handed on."""

    def seen(self, way: Way, kind: str) -> Cut | None:
        """Counts a frame; returns the cut that is due at it, if one is."""

    def cut(self, way: Way, cut: Cut) -> None:
        """Does what a cut says."""


class Way:
    """One direction of a connection.

    Args:
        route: The connection.
        to: `to_client` or `to_broker`.
        source: The socket to read.
        sink: The socket to write to.
        conditions: How bytes travel.
        watcher: Sees the frames; None when they cannot be seen, because of TLS.

    Attributes:
        route: The connection.
        to: `to_client` or `to_broker`.
    """

    def __init__(
        self,
        route: Route,
        to: Literal["to_client", "to_broker"],
        source: socket.socket,
        sink: socket.socket,
        conditions: Conditions,
        watcher: Watcher | None,
    ) -> None:
        self.route = route
        self.to = to
        self._source = source
        self._sink = sink
        self._conditions = conditions
        self._watcher = watcher
        self._splitter = FrameSplitter()
        self._loop = asyncio.get_running_loop()
        #: When bytes were read, and which. None is the end of the stream, an error its reset.
        self._held: deque[tuple[float, bytes | OSError | None]] = deque()
        self._bytes_held = 0
        self._moved = asyncio.Event()
        self._is_swallowing = False
        self._is_shut = False
        self._free_at = 0.0

    def half_close(self) -> None:
        """Sends FIN to the sink. What comes from now on is thrown away."""
        self._is_shut = True
        with contextlib.suppress(OSError):
            self._sink.shutdown(socket.SHUT_WR)

    def stop(self) -> None:
        """Hands on nothing more; the connection is about to end."""
        self._is_shut = True

    async def read(self) -> None:
        """Reads until the source ends."""
        while True:
            await self._conditions.flowing()
            while self._bytes_held >= MOST_HELD:
                self._moved.clear()
                await self._moved.wait()
            data: bytes | OSError | None
            try:
                data = await self._loop.sock_recv(self._source, _READ) or None
            except OSError as error:
                data = error
            self._held.append((self._loop.time(), data))
            self._moved.set()
            if not isinstance(data, bytes):
                return
            self._bytes_held += len(data)

    async def write(self) -> None:
        """Hands on until the source ends.

        Raises:
            OSError: The source was reset.
        """
        while True:
            while not self._held:
                self._moved.clear()
                await self._moved.wait()
            came, data = self._held[0]
            await self._due(came)
            if isinstance(data, OSError):
                raise data
            if data is None:
                self.half_close()
                return
            await self._hand_on(data)
            self._held.popleft()
            self._bytes_held -= len(data)
            self._moved.set()

    async def _due(self, came: float) -> None:
        while not self._is_shut:
            terms = self._conditions.terms
            early = came + terms.delay - self._loop.time()
            if terms.stall:
                await self._conditions.changed()
            elif early > 0:
                await self._conditions.changed(early)
            else:
                return

    async def _hand_on(self, data: bytes) -> None:
        keep: list[memoryview] = []
        for part in self._parts(data):
            if part.begins:
                self._is_swallowing = self._conditions.terms.swallow
            if self._is_swallowing or self._is_shut:
                continue
            cut = self._watcher.seen(self, part.kind) if self._watcher and part.kind else None
            if cut is None or cut.forward:
                keep.append(part.data)
            if cut is not None and self._watcher is not None:
                await self._send(b"".join(keep))
                keep.clear()
                await self._arrived()
                self._watcher.cut(self, cut)
                await self._conditions.flowing()
        await self._send(b"".join(keep))

    def _parts(self, data: bytes) -> Iterator[Part]:
        if self._watcher is None:
            return iter([Part(memoryview(data), True, None)])
        return self._splitter.split(data)

    async def _send(self, data: bytes) -> None:
        view = memoryview(data)
        while view and not self._is_shut:
            await self._conditions.flowing()
            await self._paced()
            terms = self._conditions.terms
            most = len(view) if terms.size is None else terms.size
            if terms.rate is not None:
                most = min(most, max(1, int(terms.rate * _TICK)))
            piece, view = view[:most], view[most:]
            try:
                await self._loop.sock_sendall(self._sink, piece)
            except OSError:
                # Who does not take bytes may have sent some: the other way ends the connection behind them.
                self._is_shut = True
            if terms.rate is not None:
                self._free_at = max(self._loop.time(), self._free_at) + len(piece) / terms.rate
            elif view and terms.size is not None:
                await self._conditions.changed(terms.pause)

    async def _paced(self) -> None:
        """Waits until throttled bytes may leave."""
        while self._conditions.terms.rate is not None and (early := self._free_at - self._loop.time()) > 0:
            await self._conditions.changed(early)

    async def _arrived(self) -> None:
        """Waits until the sink's kernel has all bytes, where the system tells: a reset throws away the others."""
        if sys.platform != "linux":
            return
        import fcntl
        import termios

        deadline = self._loop.time() + _ARRIVAL
        with contextlib.suppress(OSError):
            while self._loop.time() < deadline:
                unsent = fcntl.ioctl(self._sink, termios.TIOCOUTQ, b"\0\0\0\0")
                if not int.from_bytes(unsent, sys.byteorder):
                    return
                await asyncio.sleep(0.001)


class Route:
    """A client's connection to the broker through the proxy.

    Args:
        client: The socket of the client.
        addresses: Where the broker may be: family and address.
        conditions: How bytes travel, by direction.
        watcher: Sees the frames; None when they cannot be seen.

    Attributes:
        ways: The two ways; none until the broker was reached.
        task: Carries the bytes, and ends with the connection.
    """

    def __init__(
        self,
        client: socket.socket,
        addresses: Sequence[tuple[int, Any]],
        conditions: dict[str, Conditions],
        watcher: Watcher | None,
    ) -> None:
        self.ways: tuple[Way, ...] = ()
        self._client = client
        self._addresses = addresses
        self._conditions = conditions
        self._watcher = watcher
        self._broker: socket.socket | None = None
        self._is_reset = False
        self.task = asyncio.create_task(self._run())
        # Not at the end of the task's function: a task that is cancelled before it began does not run it.
        self.task.add_done_callback(self._close)

    def half_close(self, to: Sequence[str]) -> None:
        """Sends FIN in these directions; a broker that was not reached yet is not waited for."""
        if not self.ways:
            self.task.cancel()
        for way in self.ways:
            if way.to in to:
                way.half_close()

    def end(self, *, reset: bool) -> None:
        """Ends both connections, with RST or FIN. That is done when `task` is."""
        self._is_reset = self._is_reset or reset
        for way in self.ways:
            way.stop()
        self.task.cancel()

    async def _run(self) -> None:
        try:
            broker = await self._dial()
            self.ways = (
                Way(self, "to_broker", self._client, broker, self._conditions["to_broker"], self._watcher),
                Way(self, "to_client", broker, self._client, self._conditions["to_client"], self._watcher),
            )
            await self._carry()
        except OSError:
            self._is_reset = True
        except asyncio.CancelledError:
            pass  # by `end` or `half_close`

    def _close(self, task: asyncio.Task[None]) -> None:
        for sock in (self._client, self._broker):
            if sock is not None:
                with contextlib.suppress(OSError):
                    if self._is_reset:
                        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                sock.close()

    async def _carry(self) -> None:
        tasks = [asyncio.create_task(each) for way in self.ways for each in (way.read(), way.write())]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _dial(self) -> socket.socket:
        loop = asyncio.get_running_loop()
        failure = OSError("the broker's host has no address")
        for family, address in self._addresses:
            # `_close` closes it, and resets it when this is cancelled: it may be connected by then.
            self._broker = sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_connect(sock, address)
                return sock
            except OSError as error:
                sock.close()
                failure = error
        raise failure
