"""The client side of an AMQP connection as a state machine (AMQP 0-9-1 section 2.2, RabbitMQ's extensions).

Bytes go into a `SendBuffer`, which is only memory; method frames come in, events come out, and time is an argument.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

from leveret.errors import (
    AuthenticationError,
    ConnectionClosed,
    ConnectionLost,
    HeartbeatTimeout,
    IncompatibleProtocol,
    LeveretError,
    LocalProtocolError,
    RemoteProtocolError,
    printable,
)
from leveret.protocol import commands
from leveret.protocol.commands import Connection
from leveret.protocol.transitions import moved
from leveret.records import dataclass
from leveret.wire.numbers import ACCESS_REFUSED, FRAME_MIN_SIZE, HEARTBEAT_FRAME, REPLY_SUCCESS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from leveret.wire.buffers import SendBuffer
    from leveret.wire.runs import MethodFrame


#: Seconds by which a heartbeat may be early: half of the time between two calls of `tick`.
_EARLY: Final = 0.25
#: Seconds in which an event loop that is not blocked reads what waits in the kernel, and after which a look is late.
_READ: Final = 0.05
_LATE: Final = 0.2


class ConnectionPhase(enum.Enum):
    """The phase of the conversation."""

    IDLE = "idle"
    START = "waiting for connection.start"
    TUNE = "waiting for connection.tune"
    OPEN_OK = "waiting for connection.open-ok"
    OPEN = "open"
    CLOSING = "waiting for connection.close-ok"
    CLOSED = "closed"


#: Which phase may follow which. A peer in START has not shown that it speaks AMQP: connection.close is not sent then.
CONNECTION_TRANSITIONS: Final[Mapping[ConnectionPhase, frozenset[ConnectionPhase]]] = {
    ConnectionPhase.IDLE: frozenset({ConnectionPhase.START, ConnectionPhase.CLOSED}),
    ConnectionPhase.START: frozenset({ConnectionPhase.TUNE, ConnectionPhase.CLOSED}),
    ConnectionPhase.TUNE: frozenset({ConnectionPhase.OPEN_OK, ConnectionPhase.CLOSING, ConnectionPhase.CLOSED}),
    ConnectionPhase.OPEN_OK: frozenset({ConnectionPhase.OPEN, ConnectionPhase.CLOSING, ConnectionPhase.CLOSED}),
    ConnectionPhase.OPEN: frozenset({ConnectionPhase.CLOSING, ConnectionPhase.CLOSED}),
    ConnectionPhase.CLOSING: frozenset({ConnectionPhase.CLOSED}),
    ConnectionPhase.CLOSED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Negotiated:
    """The limits that both sides agreed on.

    Attributes:
        frame_max: The largest frame in bytes.
        channel_max: The highest channel number.
        heartbeat: Seconds between heartbeats; 0 for none.
        server_properties: What the server says of itself.
    """

    frame_max: int
    channel_max: int
    heartbeat: int
    server_properties: Mapping[str, Any]

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """The server's capabilities table."""
        value = self.server_properties.get("capabilities")
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class Tuned:
    """connection.tune was answered: frames up to the negotiated size may come from here on."""

    negotiated: Negotiated


@dataclass(frozen=True, slots=True)
class Opened:
    """The connection is open."""


@dataclass(frozen=True, slots=True)
class Blocked:
    """The broker is short of memory or disk and stops reading from publishers (RabbitMQ: blocked connections).

    Attributes:
        reason: The broker's text, made printable.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Unblocked:
    """Publishing may go on."""


@dataclass(frozen=True, slots=True)
class SecretUpdated:
    """The broker took the new secret."""


@dataclass(frozen=True, slots=True)
class ConnectionEnded:
    """The conversation is over.

    Attributes:
        error: Why; None when this side asked for it.
    """

    error: LeveretError | None


Event = Tuned | Opened | Blocked | Unblocked | SecretUpdated | ConnectionEnded


def _negotiate(ours: int, theirs: int) -> int:
    """The smaller of both, where zero means no limit (AMQP 0-9-1 section 4.2.3)."""
    return min(ours, theirs) if theirs else ours


class ConnectionState:
    """Channel 0 of a client.

    Args:
        mechanism: The SASL mechanism: PLAIN or EXTERNAL.
        response: Its response; dropped after it was sent.
        virtual_host: The virtual host to open.
        frame_max: The largest frame this side wants, in bytes.
        channel_max: The highest channel number this side wants.
        heartbeat: Seconds between heartbeats that this side wants; 0 for none.
        client_properties: What this side says of itself.
        max_table_depth: Limit for tables from the server.
        max_table_entries: Limit for tables from the server.
    """

    def __init__(
        self,
        *,
        mechanism: str,
        response: str,
        virtual_host: str,
        frame_max: int,
        channel_max: int,
        heartbeat: int,
        client_properties: Mapping[str, Any],
        max_table_depth: int = 32,
        max_table_entries: int = 16384,
    ) -> None:
        self.phase = ConnectionPhase.IDLE
        self.negotiated: Negotiated | None = None
        self.blocked: str | None = None
        self._out: SendBuffer
        self._mechanism = mechanism
        self._response: str | None = response
        self._virtual_host = virtual_host
        self._wanted = (frame_max, channel_max, heartbeat)
        self._client_properties = client_properties
        self._table_limits = {"max_table_depth": max_table_depth, "max_table_entries": max_table_entries}
        self._server_properties: Mapping[str, Any] = {}
        self._last_received_bytes = 0
        self._last_sent_bytes = 0
        # When bytes were seen last to have come, and to have left.
        self._alive_at = 0.0
        self._sent_at = 0.0
        # When the peer was found silent for too long, until the next look; how often in a row.
        self._doubted_at = 0.0
        self._doubts = 0

    # ------------------------------------------------------------------ what this side does

    def _move(self, phase: ConnectionPhase) -> None:
        self.phase = moved(CONNECTION_TRANSITIONS, self.phase, phase)

    def start(self, out: SendBuffer) -> None:
        """Sends the protocol header.

        Args:
            out: Where this and all further frames are appended.
        """
        self._move(ConnectionPhase.START)
        self._out = out
        out.append(commands.PROTOCOL_HEADER)

    def close(
        self, reply_code: int = REPLY_SUCCESS, reply_text: str = "", class_id: int = 0, method_id: int = 0
    ) -> None:
        """Sends connection.close; `ConnectionEnded` follows.

        It sends nothing once the end has begun, and nothing before the server has sent connection.start.

        Args:
            reply_code: Why (AMQP 0-9-1 section 1.1).
            reply_text: Why, in words; at most 255 bytes are sent.
            class_id: The class of the offending method, if there is one.
            method_id: The offending method, if there is one.
        """
        if ConnectionPhase.CLOSING not in CONNECTION_TRANSITIONS[self.phase]:
            return
        text = reply_text.encode("utf-8", "replace")[:255].decode("utf-8", "ignore")
        self._send(
            commands.make(
                Connection.Close, reply_code=reply_code, reply_text=text, class_id=class_id, method_id=method_id
            )
        )
        self._move(ConnectionPhase.CLOSING)

    def update_secret(self, secret: str, reason: str) -> None:
        """Sends a new password or token (RabbitMQ: connection.update-secret); `SecretUpdated` follows."""
        if self.phase is not ConnectionPhase.OPEN:
            raise LocalProtocolError(f"connection.update-secret was not sent: the connection is {self.phase.value}")
        self._send(commands.make(Connection.UpdateSecret, new_secret=secret, reason=reason))

    def tick(
        self, now: float, received_bytes: int, sent_bytes: int, *, listening: bool = True, again: bool = False
    ) -> Event | None:
        """Keeps the heartbeat; call it twice a second, and in between where `look_again` says so.

        Any traffic counts: bytes received show that the peer is alive, bytes sent show it that we are.

        A peer that was silent for two intervals is not judged at once. If the event loop was blocked, its bytes may
        wait in the kernel, so what is there is read before the next look, which decides.

        Args:
            now: A monotonic time in seconds.
            received_bytes: All bytes received so far.
            sent_bytes: All bytes appended so far.
            listening: False while this side does not read: then silence says nothing of the peer.
            again: This is the call that `look_again` asked for.

        Returns:
            `ConnectionEnded` with `HeartbeatTimeout` when nothing came for two intervals.
        """
        interval = self.negotiated.heartbeat if self.negotiated else 0
        if not interval or self.phase not in (ConnectionPhase.OPEN, ConnectionPhase.CLOSING):
            return None
        if received_bytes != self._last_received_bytes or not self._alive_at or not listening:
            self._last_received_bytes = received_bytes
            self._alive_at = now
            self._doubts = 0
        elif now - self._alive_at >= 2 * interval and (again or not self._doubts):
            # A look that comes late was kept by another block, behind which further bytes may wait.
            if self._doubts and (now - self._doubted_at <= _LATE or self._doubts > 1):
                self._move(ConnectionPhase.CLOSED)
                silence = now - self._alive_at
                return ConnectionEnded(
                    HeartbeatTimeout(f"nothing was received for {silence:.1f} s; the heartbeat is {interval} s")
                )
            self._doubted_at = now
            self._doubts += 1
        if sent_bytes != self._last_sent_bytes:
            self._last_sent_bytes = sent_bytes
            self._sent_at = now
        elif now - self._sent_at >= interval / 2 - _EARLY:
            self._out.append(HEARTBEAT_FRAME)
            self._last_sent_bytes = sent_bytes + len(HEARTBEAT_FRAME)
            self._sent_at = now
        return None

    def look_again(self, now: float) -> float | None:
        """Returns the seconds after which `tick` is due with `again`, or None when its next turn is soon enough.

        Args:
            now: The time that `tick` was called with.
        """
        interval = self.negotiated.heartbeat if self.negotiated else 0
        if not interval or not self._alive_at:
            return None
        if self._doubts:
            return _READ
        left = self._alive_at + 2 * interval - now
        return left if 0 < left < 2 * _EARLY else None

    def lost(self, error: Exception | None) -> ConnectionEnded:
        """The transport is gone.

        Args:
            error: What the transport said.

        Returns:
            The event that ends the conversation.
        """
        phase = self.phase
        if phase is not ConnectionPhase.CLOSED:
            self._move(ConnectionPhase.CLOSED)
        detail = f": {error}" if error else ""
        if phase is ConnectionPhase.CLOSING:
            return ConnectionEnded(None)
        if phase is ConnectionPhase.TUNE and not self._refuses_aloud():
            # A server without authentication_failure_close hangs up instead of saying 403.
            return ConnectionEnded(
                AuthenticationError(
                    f"the server closed the connection while it checked the credentials{detail}",
                    reply_code=ACCESS_REFUSED,
                )
            )
        return ConnectionEnded(ConnectionLost(f"the connection was lost while {phase.value}{detail}"))

    def _refuses_aloud(self) -> bool:
        """Returns whether the server says so when it refuses credentials (RabbitMQ: authentication_failure_close)."""
        capabilities = self._server_properties.get("capabilities")
        return isinstance(capabilities, dict) and capabilities.get("authentication_failure_close") is True

    # ------------------------------------------------------------------ what the server says

    def receive(self, frame: MethodFrame) -> Event | None:
        """Takes a method frame of channel 0.

        Args:
            frame: From the frame reader.

        Returns:
            What happened, if it matters above.

        Raises:
            RemoteProtocolError: The server broke the protocol; close with its `reply_code`.
        """
        if self.phase is ConnectionPhase.CLOSED:
            return None
        method = commands.decode(frame, **self._table_limits)
        if isinstance(method, Connection.Close):
            return self._closed_by_server(method)
        if isinstance(method, Connection.CloseOk):
            if self.phase is not ConnectionPhase.CLOSING:
                raise RemoteProtocolError(f"connection.close-ok while {self.phase.value}")
            self._move(ConnectionPhase.CLOSED)
            return ConnectionEnded(None)
        if self.phase is ConnectionPhase.CLOSING:
            # Everything but close and close-ok is to be dropped (AMQP 0-9-1 section 2.2.4).
            return None
        if isinstance(method, Connection.Start) and self.phase is ConnectionPhase.START:
            self._started(method)
            return None
        if isinstance(method, Connection.Tune) and self.phase is ConnectionPhase.TUNE:
            return self._tuned(method)
        if isinstance(method, Connection.OpenOk) and self.phase is ConnectionPhase.OPEN_OK:
            self._move(ConnectionPhase.OPEN)
            return Opened()
        if isinstance(method, Connection.Blocked) and self.phase is ConnectionPhase.OPEN:
            self.blocked = printable(method.reason or "")
            return Blocked(self.blocked)
        if isinstance(method, Connection.Unblocked) and self.phase is ConnectionPhase.OPEN:
            self.blocked = None
            return Unblocked()
        if isinstance(method, Connection.UpdateSecretOk) and self.phase is ConnectionPhase.OPEN:
            return SecretUpdated()
        if isinstance(method, Connection.Secure):
            raise RemoteProtocolError(f"the server challenges {self._mechanism}, which has no second step")
        name = commands.spec_of(type(method)).name
        raise RemoteProtocolError(f"the server sent {name} on channel 0 while {self.phase.value}")

    def _send(self, method: commands.Method) -> None:
        self._out.append(commands.encode(0, method))

    def _started(self, start: Connection.Start) -> None:
        if (start.version_major, start.version_minor) != (0, 9):
            raise IncompatibleProtocol(f"the server speaks AMQP {start.version_major}-{start.version_minor}, not 0-9-1")
        mechanisms = (start.mechanisms or "").split()
        if self._mechanism not in mechanisms:
            offered = printable(" ".join(mechanisms))
            raise AuthenticationError(f"the server offers the mechanisms {offered}, not {self._mechanism}")
        self._server_properties = start.server_properties or {}
        self._send(
            commands.make(
                Connection.StartOk,
                client_properties=dict(self._client_properties),
                mechanism=self._mechanism,
                response=self._response,
                locale="en_US",
            )
        )
        self._response = None
        self._move(ConnectionPhase.TUNE)

    def _tuned(self, tune: Connection.Tune) -> Tuned:
        frame_max, channel_max, heartbeat = self._wanted
        if tune.frame_max and tune.frame_max < FRAME_MIN_SIZE:
            raise RemoteProtocolError(
                f"the server wants a frame_max of {tune.frame_max}, below the protocol's {FRAME_MIN_SIZE} bytes"
            )
        self.negotiated = Negotiated(
            frame_max=_negotiate(frame_max, tune.frame_max),
            channel_max=_negotiate(channel_max, tune.channel_max),
            heartbeat=_negotiate(heartbeat, tune.heartbeat),
            server_properties=self._server_properties,
        )
        self._send(
            commands.make(
                Connection.TuneOk,
                channel_max=self.negotiated.channel_max,
                frame_max=self.negotiated.frame_max,
                heartbeat=self.negotiated.heartbeat,
            )
        )
        self._send(commands.make(Connection.Open, virtual_host=self._virtual_host))
        self._move(ConnectionPhase.OPEN_OK)
        return Tuned(self.negotiated)

    def _closed_by_server(self, close: Connection.Close) -> ConnectionEnded:
        phase = self.phase
        self._send(commands.make(Connection.CloseOk))
        self._move(ConnectionPhase.CLOSED)
        if phase is ConnectionPhase.CLOSING:
            return ConnectionEnded(None)
        code, text = close.reply_code or 0, printable(close.reply_text or "")
        class_id, method_id = close.class_id or 0, close.method_id or 0
        cls = AuthenticationError if code == ACCESS_REFUSED and phase is ConnectionPhase.TUNE else ConnectionClosed
        by = f" by {commands.method_name(class_id, method_id)}" if class_id else ""
        return ConnectionEnded(
            cls(
                f"the server closed the connection{by}: {code} {text}",
                reply_code=code,
                reply_text=text,
                class_id=class_id,
                method_id=method_id,
            )
        )
