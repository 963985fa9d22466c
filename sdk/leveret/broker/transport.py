"""The broker's side of a socket."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from leveret.transport.frame_transport import FrameTransport

if TYPE_CHECKING:
    from leveret.broker.session import BrokerSession
    from leveret.wire.reader import FrameReader

__all__ = ["BrokerTransport"]


class BrokerTransport(FrameTransport):
    """A frame transport that tells its session when the client reads again."""

    session: BrokerSession | None

    def __init__(self, session: BrokerSession, reader: FrameReader) -> None:
        super().__init__(session, reader)

    def resume_writing(self) -> None:
        """Tells the session that the client has read what was sent. asyncio calls this."""
        super().resume_writing()
        if self.session is not None:
            self.session.resumed()

    def discard_input(self) -> None:
        """Reads and drops all further input, because no frame can be found after corrupt bytes.

        Closing a socket with unread input resets it, and the client would lose the connection.close that tells it why.
        """
        if self._transport is not None and not self.closed:
            self._transport.set_protocol(_Sink(self))


class _Sink(asyncio.BufferedProtocol):
    """The protocol that drops the input of a transport. No byte is read, so all transports share the memory."""

    _memory: Final = bytearray(65536)

    def __init__(self, transport: BrokerTransport) -> None:
        self._transport = transport

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._memory

    def buffer_updated(self, nbytes: int) -> None:
        pass

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport.connection_lost(exc)
