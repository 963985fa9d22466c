"""The broker's side of a connection: handshake, channels, heartbeats, flow control and closing.

A session belongs to one socket and never raises into it. The worst consequence of a client's bytes is connection.close
for that client (AMQP 0-9-1 section 2.2.4).
"""

from __future__ import annotations

import asyncio
import enum
import hmac
import logging
import platform
from typing import TYPE_CHECKING, Any, Final

from leveret.broker.channel import BrokerChannel
from leveret.broker.refusals import Refusal
from leveret.broker.tables import check_arguments
from leveret.broker.transport import BrokerTransport
from leveret.errors import IncompatibleProtocol, RemoteProtocolError, printable
from leveret.protocol.commands import PROTOCOL_HEADER, Channel, Connection, Method, decode, encode, make
from leveret.wire.numbers import (
    ACCESS_REFUSED,
    BASIC,
    BASIC_ACK,
    CHANNEL,
    CHANNEL_ERROR,
    CHANNEL_OPEN,
    COMMAND_INVALID,
    CONNECTION,
    CONNECTION_TUNE,
    FRAME_MIN_SIZE,
    HEARTBEAT_FRAME,
    INTERNAL_ERROR,
    NOT_ALLOWED,
    REPLY_CODES,
    SYNTAX_ERROR,
    UNEXPECTED_FRAME,
)
from leveret.wire.runs import ContentRun, MethodFrame, SettlementRun

if TYPE_CHECKING:
    from leveret.broker.queues import BrokerQueue
    from leveret.broker.server import EmbeddedBroker
    from leveret.broker.virtual_host import VirtualHost
    from leveret.errors import ProtocolError
    from leveret.transport.frame_transport import FrameTransport
    from leveret.wire.buffers import SendBuffer

__all__ = ["PRODUCT", "BrokerSession", "SessionState"]

logger = logging.getLogger("leveret.broker")

#: What the broker calls itself in its server properties.
PRODUCT: Final = "Leveret embedded broker"
#: Unsent bytes above which the session handles no further requests, because the client does not read its answers.
HOLD_BYTES: Final = 4 * 1024 * 1024
#: Seconds that a client may take to answer connection.close.
CLOSE_TIMEOUT: Final = 5.0
#: Heartbeat checks in each interval. A client that is silent for two intervals is considered gone.
TICKS: Final = 2


class SessionState(enum.Enum):
    """The state of a connection on the broker's side. The values are RabbitMQ's words for it."""

    STARTING = "starting"
    """Waits for the protocol header."""
    SECURING = "securing"
    """Waits for connection.start-ok."""
    TUNING = "tuning"
    """Waits for connection.tune-ok."""
    OPENING = "opening"
    """Waits for connection.open."""
    RUNNING = "running"
    """The connection is open."""
    CLOSING = "closing"
    """The broker has sent connection.close and waits for connection.close-ok."""
    CLOSED = "closed"
    """The socket is closed, or will be as soon as its output is written."""


_NEXT: Final = {
    SessionState.STARTING: {SessionState.SECURING, SessionState.CLOSED},
    SessionState.SECURING: {SessionState.TUNING, SessionState.CLOSING, SessionState.CLOSED},
    SessionState.TUNING: {SessionState.OPENING, SessionState.CLOSED},
    SessionState.OPENING: {SessionState.RUNNING, SessionState.CLOSING, SessionState.CLOSED},
    SessionState.RUNNING: {SessionState.CLOSING, SessionState.CLOSED},
    SessionState.CLOSING: {SessionState.CLOSED},
    SessionState.CLOSED: {SessionState.CLOSED},
}

# The one that is compared for each frame; an attribute of an enum takes longer.
_RUNNING: Final = SessionState.RUNNING


class BrokerSession:
    """The connection of one client.

    Args:
        broker: The broker.

    Attributes:
        broker: The broker.
        vhost: The virtual host, once the connection is open.
        user: The user name, once authenticated.
        frame_max: The negotiated frame size.
        exclusive_queues: Queues that are deleted with the connection.
        confirming: Channels with confirms to be written at the end of the read.
        transport: The socket's transport.
    """

    transport: FrameTransport
    vhost: VirtualHost
    out: SendBuffer

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.broker = broker
        self.user = ""
        self.frame_max = FRAME_MIN_SIZE
        self.exclusive_queues: dict[BrokerQueue, None] = {}
        self.confirming: dict[BrokerChannel, None] = {}
        self._state = SessionState.STARTING
        self._channels: dict[int, BrokerChannel] = {}
        self._channel_max = 0
        self._capabilities: dict[str, Any] = {}
        # One timer for the deadline of the handshake, then for heartbeats, then for the deadline of closing.
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._tick_s = 0.0
        self._silent_ticks = 0
        self._seen_bytes = 0
        self._sent_bytes = 0
        # Events that wait while the client does not read, or while publishers are blocked.
        self._held: list[Any] = []
        self._reading = True
        self._blocked = False

    def _enter(self, state: SessionState) -> None:
        if state not in _NEXT[self._state]:
            raise AssertionError(f"a session cannot go from {self._state.value} to {state.value}")
        self._state = state

    def __repr__(self) -> str:
        return f"<BrokerSession {self._state.value} user={self.user!r} channels={len(self._channels)}>"

    @property
    def is_blocked(self) -> bool:
        """True while the broker does not read from this client, because it published to a blocked broker."""
        return self._blocked

    def capable(self, capability: str) -> bool:
        """Returns whether the client declared that it supports an extension (RabbitMQ: capabilities)."""
        return self._capabilities.get(capability) is True

    # ------------------------------------------------------------------ called by the transport

    def connected(self, transport: FrameTransport) -> None:
        """Keeps the transport and starts the deadline of the handshake."""
        self.transport = transport
        self.out = transport.out
        self.broker.sessions[self] = None
        if self.broker.stopping:
            # asyncio had accepted the connection before the broker began to stop.
            self.abort()
            return
        self._timer = self._loop.call_later(self.broker.handshake_timeout, self._too_slow)

    def events_received(self, events: list[Any]) -> None:
        """Handles the events of one read."""
        if self._held:
            # Reading is paused, but this read had already begun.
            self._held += events
        else:
            self._handle(events)

    def stream_failed(self, error: ProtocolError) -> None:
        """Ends the connection after a protocol error in its input."""
        if isinstance(error, IncompatibleProtocol):
            self._refuse_version()
        elif self._state in (SessionState.OPENING, _RUNNING):
            self._close_connection(error.reply_code, _coded(error.reply_code, str(error)))
            self._discard_input()
        elif self._state is SessionState.CLOSING:
            # The client was told why already, and has the rest of `CLOSE_TIMEOUT` to close the socket.
            self._discard_input()
        else:
            self._drop(f"sent {error}")

    def transport_lost(self, error: Exception | None) -> None:
        """Cleans up after the socket was closed."""
        if self._state in (SessionState.OPENING, _RUNNING):
            logger.info("%s: the client closed the socket without connection.close", self)
        self._enter(SessionState.CLOSED)
        self._set_timer(None)
        self._held.clear()
        self._release()
        self.broker.session_ended(self)

    def resumed(self) -> None:
        """Continues deliveries and requests after the client has read."""
        if self._state is _RUNNING:
            for channel in self._channels.values():
                channel.wake()
            self._go_on()

    # ------------------------------------------------------------------ events

    def _handle(self, events: list[Any]) -> None:
        event: Any
        for index, event in enumerate(events):
            if self._must_wait(event):
                self._held = events[index:]
                self._pause()
                break
            try:
                self._event(event)
            except Refusal as refusal:
                self._refuse(refusal, event)
            except RemoteProtocolError as error:
                self._refuse(Refusal(error.reply_code, printable(str(error))), event)
            except Exception:
                # A bug in the broker. The client gets an answer, or it would wait forever.
                logger.exception("%s: the embedded broker failed", self)
                self._refuse(Refusal(INTERNAL_ERROR, "the embedded broker failed; see its log"), event)
        confirming = self.confirming
        if confirming:
            for channel in confirming:
                channel.flush()
            confirming.clear()
        self.broker.scheduler.run()

    def _must_wait(self, event: Any) -> bool:
        if self._state is not _RUNNING:
            return False
        if self.broker.blocked_reason is not None and type(event) is ContentRun:
            self._block(self.broker.blocked_reason)
        return self._blocked or self._is_stuffed()

    def _is_stuffed(self) -> bool:
        return self.transport.paused and self.transport.pending_bytes > HOLD_BYTES

    def _event(self, event: Any) -> None:
        if self._state is _RUNNING:
            number = 0 if type(event) is bytes else event.channel
            if number == 0:
                self._connection_method(event)
                return
            channel = self._channels.get(number)
            if channel is None:
                self._open_channel(event)
            elif type(event) is ContentRun:
                if not channel.closing:
                    channel.publish(event)
            elif type(event) is SettlementRun:
                if not channel.closing:
                    channel.settle(event)
            elif event.class_id == CHANNEL and event.method_id == CHANNEL_OPEN:
                # Also while the channel is closing: its number is free only after channel.close-ok.
                raise Refusal(CHANNEL_ERROR, "second 'channel.open' seen")
            elif channel.closing:
                self._closing_channel(channel, event)
            else:
                channel.method(event)
        elif self._state in (SessionState.CLOSING, SessionState.CLOSED):
            self._farewell(event)
        else:
            self._handshake(event)

    # ------------------------------------------------------------------ handshake

    def _handshake(self, event: Any) -> None:
        if self._state is SessionState.STARTING:
            if event == PROTOCOL_HEADER:
                self._enter(SessionState.SECURING)
                self._send(Connection.Start, **self._start())
            else:
                self._refuse_version()
            return
        if type(event) is not MethodFrame or event.channel != 0:
            raise Refusal(UNEXPECTED_FRAME, f"expected a method on channel 0 in connection state {self._state.value}")
        method = decode(event)
        check_arguments(method)
        if isinstance(method, Connection.StartOk) and self._state is SessionState.SECURING:
            self._authenticate(method)
        elif isinstance(method, Connection.TuneOk) and self._state is SessionState.TUNING:
            self._tune(method)
        elif isinstance(method, Connection.Open) and self._state is SessionState.OPENING:
            self._open(method)
        else:
            raise Refusal(CHANNEL_ERROR, f"unexpected method in connection state {self._state.value}")

    def _start(self) -> dict[str, object]:
        from leveret import __version__

        return {
            "mechanisms": "PLAIN",
            "locales": "en_US",
            "server_properties": {
                "product": PRODUCT,
                "version": __version__,
                "platform": f"Python {platform.python_version()}",
                "information": "Keeps everything in memory and nothing on disk: durable queues and persistent "
                "messages end with this process.",
                "capabilities": {
                    "publisher_confirms": True,
                    "exchange_exchange_bindings": True,
                    "basic.nack": True,
                    "consumer_cancel_notify": True,
                    "connection.blocked": True,
                    "consumer_priorities": True,
                    "authentication_failure_close": True,
                    "per_consumer_qos": True,
                },
            },
        }

    def _authenticate(self, method: Connection.StartOk) -> None:
        capabilities = (method.client_properties or {}).get("capabilities")
        self._capabilities = capabilities if isinstance(capabilities, dict) else {}
        if method.mechanism != "PLAIN":
            raise Refusal(COMMAND_INVALID, f"unknown authentication mechanism '{method.mechanism}'")
        # PLAIN: an empty authorization identity, the user and the password (RFC 4616).
        parts = method.response.split("\0")
        if len(parts) != 3 or parts[0]:
            raise Refusal(SYNTAX_ERROR, "the response is not one of mechanism PLAIN")
        _, user, password = parts
        expected = self.broker.users.get(user)
        given = password.encode("utf-8", "surrogateescape")
        # Also compared for unknown users, so that the duration does not reveal which users exist.
        same = hmac.compare_digest(given, (expected or "").encode())
        if expected is None or not same:
            logger.info("%s: login refused for user %r", self, printable(user))
            if self.capable("authentication_failure_close"):
                text = (
                    "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. "
                    "For details see the broker logfile."
                )
                self._close_connection(ACCESS_REFUSED, text)
            else:
                # As RabbitMQ does for clients without that capability.
                self._drop("used a wrong user or password")
            return
        self.user = user
        self._enter(SessionState.TUNING)
        broker = self.broker
        self._send(
            Connection.Tune, channel_max=broker.channel_max, frame_max=broker.frame_max, heartbeat=int(broker.heartbeat)
        )

    def _tune(self, method: Connection.TuneOk) -> None:
        _check_negotiated("frame_max", method.frame_max, 4096, self.broker.frame_max)
        _check_negotiated("channel_max", method.channel_max, 1, self.broker.channel_max)
        self.frame_max = method.frame_max
        # RabbitMQ takes 8 bytes more, for clients that do not count a frame's own (rabbit_reader: FRAME_SIZE_FUDGE).
        self.transport.reader.tune(method.frame_max + 8, method.channel_max)
        self._channel_max = method.channel_max
        self._tick_s = method.heartbeat / TICKS
        self._enter(SessionState.OPENING)

    def _open(self, method: Connection.Open) -> None:
        vhost = self.broker.vhosts.get(method.virtual_host)
        if vhost is None:
            raise Refusal(NOT_ALLOWED, f"vhost {method.virtual_host} not found")
        self.vhost = vhost
        self._enter(_RUNNING)
        self._send(Connection.OpenOk)
        if self._tick_s:
            self._set_timer(self._tick_s, self._tick)
        else:
            self._set_timer(None)

    def _refuse_version(self) -> None:
        # AMQP 0-9-1 section 4.2.2: answer with the supported version, then close.
        self.out.append(PROTOCOL_HEADER)
        self._drop("did not begin with the protocol header of AMQP 0-9-1")

    def _too_slow(self) -> None:
        self._timer = None
        logger.info("%s: the handshake took longer than %g s", self, self.broker.handshake_timeout)
        self._enter(SessionState.CLOSED)
        self.transport.abort()

    # ------------------------------------------------------------------ the open connection

    def _connection_method(self, event: Any) -> None:
        method = decode(event) if type(event) is MethodFrame else None
        if isinstance(method, Connection.Close):
            self._release()
            self._send(Connection.CloseOk)
            self._end()
        elif isinstance(method, Connection.UpdateSecret):
            # Credentials do not expire here, so the new one is accepted and dropped.
            self._send(Connection.UpdateSecretOk)
        else:
            raise Refusal(CHANNEL_ERROR, "unexpected method in connection state running")

    def _open_channel(self, event: Any) -> None:
        number = event.channel
        if len(self._channels) >= self._channel_max:
            raise Refusal(
                NOT_ALLOWED,
                f"number of channels opened ({len(self._channels)}) has reached the negotiated channel_max "
                f"({self._channel_max})",
                cause=(0, 0),
            )
        if type(event) is not MethodFrame or not isinstance(decode(event), Channel.Open):
            raise Refusal(CHANNEL_ERROR, "expected 'channel.open'")
        self._channels[number] = BrokerChannel(self, number)
        self.out.append(encode(number, make(Channel.OpenOk, channel_id="")))

    def _closing_channel(self, channel: BrokerChannel, event: MethodFrame) -> None:
        method = decode(event)
        if isinstance(method, Channel.CloseOk):
            self.forget(channel)
        elif isinstance(method, Channel.Close):
            # Both sides sent channel.close, and each answers the other.
            self.out.append(encode(channel.number, make(Channel.CloseOk)))

    def forget(self, channel: BrokerChannel) -> None:
        """Removes a channel, so that its number can be opened again, which the reader has read already."""
        self._channels.pop(channel.number, None)
        self.confirming.pop(channel, None)

    def _refuse(self, refusal: Refusal, event: Any) -> None:
        class_id, method_id = refusal.cause or _identity(event)
        if self._state not in (SessionState.OPENING, _RUNNING):
            # During the handshake a peer that detects an error closes the socket without connection.close: AMQP 0-9-1
            # section 2.2.4, and section 1.4.2.6 for a tune-ok that exceeds the offer.
            if self._state is not SessionState.CLOSED:
                self._drop(f"was refused in the handshake: {refusal.reply_text}")
            return
        channel = self._channels.get(getattr(event, "channel", 0))
        if refusal.closes_connection or channel is None:
            self._close_connection(refusal.reply_code, refusal.reply_text, class_id, method_id)
            return
        logger.info("%s: channel %d: %s", self, channel.number, printable(refusal.reply_text))
        channel.flush()
        channel.release()
        self.transport.reader.drop_content(channel.number)
        close = make(
            Channel.Close,
            reply_code=refusal.reply_code,
            reply_text=refusal.reply_text,
            class_id=class_id,
            method_id=method_id,
        )
        self.out.append(encode(channel.number, close))

    # ------------------------------------------------------------------ heartbeats

    def _tick(self) -> None:
        """Sends heartbeats, and ends the connection of a silent client (AMQP 0-9-1 section 4.2.7)."""
        self._timer = self._loop.call_later(self._tick_s, self._tick)
        transport = self.transport
        sent = self.out.sent_bytes
        if sent == self._sent_bytes and not transport.paused:
            self.out.append(HEARTBEAT_FRAME)
            transport.flush()
            sent = self.out.sent_bytes
        self._sent_bytes = sent
        # While the session does not read, only bytes that the client takes show that it lives. A blocked publisher
        # shows nothing, and RabbitMQ does not check it either.
        seen = transport.reader.received_bytes if self._reading else -transport.pending_bytes
        if seen != self._seen_bytes or self._blocked:
            self._seen_bytes = seen
            self._silent_ticks = 0
            return
        self._silent_ticks += 1
        if self._silent_ticks >= 2 * TICKS:
            logger.info("%s: missed heartbeats for %g s", self, 2 * TICKS * self._tick_s)
            self._enter(SessionState.CLOSED)
            transport.abort()

    # ------------------------------------------------------------------ flow control

    def _block(self, reason: str) -> None:
        if not self._blocked:
            self._blocked = True
            if self.capable("connection.blocked"):
                self._send(Connection.Blocked, reason=reason)

    def unblock(self) -> None:
        """Reads again from a client that was blocked."""
        if self._blocked:
            self._blocked = False
            if self._state is _RUNNING:
                if self.capable("connection.blocked"):
                    self._send(Connection.Unblocked)
                self._go_on()

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def _go_on(self) -> None:
        """Handles the held events, and reads again when none are left."""
        if self._blocked or self._is_stuffed():
            return
        held, self._held = self._held, []
        if held:
            self._handle(held)
        if not self._held and not self._reading and self._state is _RUNNING:
            self._reading = True
            self.transport.resume_reading()

    # ------------------------------------------------------------------ closing

    def close(self, reply_code: int, reply_text: str) -> None:
        """Sends connection.close. The client has `CLOSE_TIMEOUT` seconds to answer.

        Args:
            reply_code: The reply code.
            reply_text: The reply text without the code's name.
        """
        if self._state is _RUNNING:
            self._close_connection(reply_code, _coded(reply_code, reply_text))
        elif self._state not in (SessionState.CLOSING, SessionState.CLOSED):
            self._drop("is still in the handshake")

    def abort(self) -> None:
        """Closes the socket at once."""
        self._enter(SessionState.CLOSED)
        self.transport.abort()

    def _close_connection(self, reply_code: int, reply_text: str, class_id: int = 0, method_id: int = 0) -> None:
        logger.info("%s: closing: %s", self, printable(reply_text))
        for channel in self._channels.values():
            channel.flush()
        self._release()
        self._send(
            Connection.Close, reply_code=reply_code, reply_text=reply_text, class_id=class_id, method_id=method_id
        )
        self._enter(SessionState.CLOSING)
        self._set_timer(CLOSE_TIMEOUT, self.abort)
        self._held.clear()
        if not self._reading:
            # Reads again, to get connection.close-ok.
            self._reading = True
            self.transport.resume_reading()

    def _farewell(self, event: Any) -> None:
        """Handles connection.close and close-ok, and ignores all other input (AMQP 0-9-1 section 1.4.2.8)."""
        if self._state is SessionState.CLOSING and type(event) is MethodFrame and event.class_id == CONNECTION:
            identity = event.class_id << 16 | event.method_id
            if identity == Connection.CloseOk.index:
                self._end()
            elif identity == Connection.Close.index:
                self._send(Connection.CloseOk)

    def _drop(self, why: str) -> None:
        logger.info("%s: closing the socket: the client %s", self, printable(why))
        self._end()

    def _end(self) -> None:
        self._enter(SessionState.CLOSED)
        self._held.clear()
        # The deadline is for a client that does not read the rest of the output.
        self._set_timer(CLOSE_TIMEOUT, self.transport.abort)
        self._discard_input()
        self.transport.close()

    def _discard_input(self) -> None:
        if isinstance(self.transport, BrokerTransport):
            self.transport.discard_input()

    def _release(self) -> None:
        """Releases all channels, and deletes the connection's exclusive queues."""
        channels, self._channels = self._channels, {}
        self.confirming.clear()
        for channel in channels.values():
            channel.release()
            self.transport.reader.drop_content(channel.number)
        queues, self.exclusive_queues = self.exclusive_queues, {}
        for queue in queues:
            self.vhost.delete_queue(queue)

    def _set_timer(self, delay: float | None, callback: Any = None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if delay is not None:
            self._timer = self._loop.call_later(delay, callback)

    def _send(self, cls: type[Method], **values: object) -> None:
        self.out.append(encode(0, make(cls, **values)))


def _coded(reply_code: int, explanation: str) -> str:
    return (
        Refusal(reply_code, printable(explanation)).reply_text if reply_code in REPLY_CODES else printable(explanation)
    )


def _identity(event: Any) -> tuple[int, int]:
    """Returns the class and method ids of an event, for close methods."""
    if type(event) is MethodFrame:
        return event.class_id, event.method_id
    if type(event) is ContentRun:
        return BASIC, event.method_id
    return (BASIC, BASIC_ACK) if type(event) is SettlementRun else (0, 0)


def _check_negotiated(name: str, value: int, least: int, most: int) -> None:
    """Refuses a value of tune-ok below the protocol's minimum or above the offer; 0 means no limit and is above."""
    if value != 0 and value < least:
        word, limit = "lower than the minimum", least
    elif value == 0 or value > most:
        word, limit = "higher than the maximum", most
    else:
        return
    detail = " (no limit)" if name == "channel_max" and value == 0 else ""
    raise Refusal(
        NOT_ALLOWED,
        f"negotiated {name} = {value}{detail} is {word} allowed value ({limit})",
        cause=(CONNECTION, CONNECTION_TUNE),
    )
