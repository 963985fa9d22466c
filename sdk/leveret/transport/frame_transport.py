"""The event loop's transports: frames in, frames out, on a socket that is connected (`dialing` connects it).

`FrameTransport` joins a frame reader, a send buffer and an asyncio transport. What a read brings about leaves in one
write at its end, all other frames of one loop turn in another, or as soon as 64 KiB have come together: uvloop 0.23
and asyncio both make one system call for each `transport.write`, so collecting is ours to do. Large bodies leave as
pieces of the same write, without being copied.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from bisect import bisect_left, insort
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

from leveret.transport.stream import Stream
from leveret.wire.buffers import SendBuffer

if TYPE_CHECKING:
    from leveret.errors import ProtocolError
    from leveret.wire.reader import FrameReader

__all__ = ["FrameReceiver", "FrameTransport"]

#: The most bytes that are waited for. The kernel's own limit is half of the receive buffer.
_MOST_COLLECTED = 64 * 1024

# How the kernel calls what the settings call by these names. macOS has another word for the idle time.
_SOCKET_OPTIONS = {
    "socket_receive_buffer_size": (socket.SOL_SOCKET, "SO_RCVBUF"),
    "socket_send_buffer_size": (socket.SOL_SOCKET, "SO_SNDBUF"),
    "tcp_nodelay": (socket.IPPROTO_TCP, "TCP_NODELAY"),
    "tcp_keepalive": (socket.SOL_SOCKET, "SO_KEEPALIVE"),
    "tcp_keepalive_time": (socket.IPPROTO_TCP, "TCP_KEEPIDLE" if hasattr(socket, "TCP_KEEPIDLE") else "TCP_KEEPALIVE"),
    "tcp_keepalive_interval": (socket.IPPROTO_TCP, "TCP_KEEPINTVL"),
}


class FrameReceiver(Protocol):
    """Gets a transport's events: a client's connection or a broker's session. No method blocks or raises."""

    def connected(self, transport: FrameTransport) -> None:
        """The transport is ready for frames."""

    def events_received(self, events: list[Any]) -> None:
        """The reader's events of one read, in order; never empty."""

    def stream_failed(self, error: ProtocolError) -> None:
        """The bytes stopped making sense; no more events will come."""

    def transport_lost(self, error: Exception | None) -> None:
        """The transport is closed, by whichever side; called once. `error` is None after a clean end of stream."""


class FrameTransport(Stream, asyncio.BufferedProtocol):
    """Frames in, frames out, on one socket.

    Args:
        session: Receives the events.
        reader: Parses what is received.
        write_high_watermark: Unsent bytes from which `paused` is true.
        write_low_watermark: Unsent bytes from which it is false again.

    Attributes:
        out: Where frames are appended; a flush is scheduled by itself.
        reader: The frame reader.
        closed: The connection is lost or was closed.
    """

    def __init__(
        self,
        session: FrameReceiver,
        reader: FrameReader,
        *,
        write_high_watermark: int = 1024 * 1024,
        write_low_watermark: int = 256 * 1024,
    ) -> None:
        self.out = SendBuffer(self._schedule_flush, self.flush)
        # Calls of `pause_reading` that were not taken back.
        self._reading_pauses = 0
        # The reader's own method, so that a read costs one Python-level call and not two.
        self.get_buffer = reader.get_buffer  # type: ignore[method-assign]
        self._watermarks = (write_high_watermark, write_low_watermark)
        self._loop = asyncio.get_running_loop()
        self._least_bytes = 1
        # Calls of `drain` by their turns: (turn, future).
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._turns = count()
        self._group = 1
        self._wake_scheduled = False

    # ------------------------------------------------------------------ asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The socket is connected."""
        self._transport = transport  # type: ignore[assignment]
        high, low = self._watermarks
        # Both: uvloop's own low-water mark is 16 bytes, which would resume only when everything is sent.
        self._transport.set_write_buffer_limits(high=high, low=low)  # type: ignore[union-attr]
        self.session.connected(self)

    def eof_received(self) -> bool:
        """The peer will send nothing more: close."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is closed: tells the session, and frees the memory of both directions.

        It also lets go of the session, which has a reference to this transport: a lost connection is freed when its
        last user lets go of it, and not by the collector of cycles.
        """
        self.closed = True
        self._wake()
        session, self.session = self.session, None
        session.transport_lost(exc)
        self.channels = {}
        self._stop_timers()
        self.reader.release()
        self.out.close()

    def pause_writing(self) -> None:
        """More than the high watermark is unsent."""
        self.out.paused = True

    def resume_writing(self) -> None:
        """Less than the low watermark is unsent."""
        self.out.paused = False
        self._group = 1
        self._wake()

    # ------------------------------------------------------------------ sessions call these

    def _wake(self) -> None:
        """Wakes some waiters, and more in the next turns of the loop for as long as there is room.

        Waking all at once would run a thousand waiting publishers for the few that find room.
        """
        self._wake_scheduled = False
        group = len(self._waiting) if self.closed else 0 if self.paused else self._group
        self._group *= 2
        woken = self._waiting[:group]
        del self._waiting[:group]
        for _, future in woken:
            if not future.done():
                future.set_result(None)
        if self._waiting and not self.paused and not self._wake_scheduled:
            # The waiters that were woken now run first, and write.
            self._wake_scheduled = True
            self._loop.call_soon(self._wake)

    async def drain(self) -> None:
        """Waits until `paused` is false or the transport is closed. The caller sets the deadline.

        First come, first served: a caller that was woken and finds the socket full again keeps its turn.
        """
        turn = -1
        while self.paused and not self.closed:
            if turn < 0:
                turn = next(self._turns)
            waiting = (turn, self._loop.create_future())
            insort(self._waiting, waiting)
            try:
                await waiting[1]
            except BaseException:
                index = bisect_left(self._waiting, waiting)
                if self._waiting[index : index + 1] == [waiting]:
                    del self._waiting[index]
                raise

    @property
    def reading(self) -> bool:
        """False after `pause_reading`: what the peer sends waits in its socket and ours."""
        return not self._reading_pauses

    def pause_reading(self) -> None:
        """Stops reading from the socket, so that the peer's writes come to a halt."""
        self._reading_pauses += 1
        if self._reading_pauses == 1 and self._transport is not None and not self.closed:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Takes back one `pause_reading`; goes on reading when it was the last one."""
        self._reading_pauses -= 1
        if self.reading and self._transport is not None and not self.closed:
            self._transport.resume_reading()

    def collect(self, least_bytes: int) -> None:
        """Has the kernel report nothing to read before so many bytes are there (SO_RCVLOWAT, man 7 socket).

        A caller that asks for more than 1 has to ask for 1 again when the bytes do not come, because the kernel waits
        for them for ever. The last call counts.

        Args:
            least_bytes: 1 reads at once. More than 64 KiB are not waited for: the receive buffer has to hold them.
        """
        least_bytes = max(1, min(least_bytes, _MOST_COLLECTED))
        if least_bytes != self._least_bytes and self._transport is not None and not self.closed:
            self._least_bytes = least_bytes
            with contextlib.suppress(OSError):  # some kinds of sockets do not know it, and read at once
                self.extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, least_bytes)

    def close(self) -> None:
        """Sends what was appended, then closes; `transport_lost` follows."""
        self.flush()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Closes at once and drops what was not sent; `transport_lost` follows."""
        self.out.take_pieces()
        if self._transport is not None:
            self._transport.abort()

    @property
    def paused(self) -> bool:
        """The peer reads more slowly than we write.

        Publishers wait while it is true; acknowledgements, heartbeats and close do not.
        """
        return self.out.paused

    @property
    def pending_bytes(self) -> int:
        """Bytes that the kernel has not taken yet."""
        return self._queued_bytes + len(self.out)

    @property
    def progress(self) -> tuple[int, int]:
        """How many bytes were appended so far, and how many of them do not wait for the socket."""
        appended = self.out.sent_bytes + len(self.out)
        queued = self._queued_bytes
        return appended, self.out.sent_bytes - queued if queued else appended

    @property
    def _queued_bytes(self) -> int:
        return 0 if self._transport is None or self.closed else self._transport.get_write_buffer_size()

    def socket_options(self) -> dict[str, int]:
        """Asks the kernel for the options of the socket, by the names of `ConnectionSettings`."""
        sock = self.extra_info("socket")
        found = {}
        for name, (level, option) in _SOCKET_OPTIONS.items():
            if hasattr(socket, option) and (level == socket.SOL_SOCKET or sock.family != socket.AF_UNIX):
                found[name] = sock.getsockopt(level, getattr(socket, option))
        return found

    def extra_info(self, name: str) -> Any:
        """Returns what asyncio knows of the transport, for example `sockname`, `peername` or `ssl_object`."""
        return None if self._transport is None else self._transport.get_extra_info(name)
