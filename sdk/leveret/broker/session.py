"""The server's side of a connection: handshake, channels, heartbeats, flow control, and how it ends.

A session belongs to one socket and never raises towards it: whatever a client sends ends at worst in connection.close
for that client (AMQP 0-9-1 section 2.2.4).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import platform
from typing import TYPE_CHECKING, Any, Final

from leveret.broker.channel import Channel
from leveret.broker.refusals import Refusal
from leveret.errors import IncompatibleProtocol, RemoteProtocolError, printable
from leveret.protocol.commands import PROTOCOL_HEADER, Connection, Method, decode, encode, make
from leveret.protocol.commands import Channel as Channels
from leveret.transport.frame_transport import FrameTransport
from leveret.wire.numbers import (
    BASIC,
    BASIC_ACK,
    CHANNEL,
    CHANNEL_OPEN,
    CONNECTION,
    CONNECTION_TUNE,
    FRAME_MIN_SIZE,
    HEARTBEAT_FRAME,
    REPLY_CODES,
)
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun, MethodFrame, SettlementRun

if TYPE_CHECKING:
    from leveret.broker.queues import Queue
    from leveret.broker.server import EmbeddedBroker
    from leveret.broker.virtual_host import VirtualHost
    from leveret.errors import ProtocolError
    from leveret.wire.buffers import SendBuffer
    from leveret.wire.reader import FrameReader

__all__ = ["BrokerTransport", "Session"]

logger = logging.getLogger("leveret.broker")

#: With this much unsent, requests wait: a client that does not read its answers gets no further ones.
HOLD_BYTES: Final = 4 * 1024 * 1024
#: How long a client may take to answer connection.close, in seconds.
CLOSE_TIMEOUT: Final = 5.0
#: Heartbeats are looked after this often in an interval; a peer is gone after two silent intervals.
TICKS: Final = 2

# What a session waits for, or is.
_HEADER: Final = "starting"
_START_OK: Final = "securing"
_TUNE_OK: Final = "tuning"
_OPEN: Final = "opening"
_RUNNING: Final = "running"
_CLOSING: Final = "closing"
_CLOSED: Final = "closed"


class BrokerTransport(FrameTransport):
    """A frame transport that tells its session when the client has read on."""

    def __init__(self, session: Session, reader: FrameReader) -> None:
        super().__init__(session, reader)
        self._owner = session

    def resume_writing(self) -> None:
        """The client has read what was sent (asyncio calls this)."""
        super().resume_writing()
        self._owner.resumed()

    def discard_input(self) -> None:
        """Reads on and drops everything: after corrupt input no frame can be found any more.

        Not reading would be simpler, but closing a socket with unread input resets it, and the client would lose
        the connection.close that tells it why.
        """
        if self._transport is not None and not self.closed:
            self._transport.set_protocol(_Sink(self))


class _Sink(asyncio.BufferedProtocol):
    """Takes the place of a transport whose input means nothing any more."""

    def __init__(self, transport: BrokerTransport) -> None:
        self._transport = transport
        self._buffer = bytearray(65536)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        pass

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport.connection_lost(exc)


class Session:
    """One client.

    Args:
        broker: Where it is connected.

    Attributes:
        broker: Where it is connected.
        vhost: Its virtual host, once it is open.
        user: Its user, once it is known.
        frame_max: The negotiated frame size.
        exclusive_queues: Queues that end with it.
        confirming: Channels with confirms to be written at the end of the read.
        transport: Its socket.
    """

    transport: FrameTransport
    vhost: VirtualHost
    out: SendBuffer

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.broker = broker
        self.user = ""
        self.frame_max = FRAME_MIN_SIZE
        self.exclusive_queues: dict[Queue, None] = {}
        self.confirming: dict[Channel, None] = {}
        self._state = _HEADER
        self._channels: dict[int, Channel] = {}
        self._channel_max = 0
        self._capabilities: dict[str, Any] = {}
        # One timer: first the handshake's deadline, then heartbeats, at last the deadline of closing.
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._tick_s = 0.0
        self._silent_ticks = 0
        self._seen_bytes = 0
        self._sent_bytes = 0
        # Events that wait because the client does not read, or because publishers are blocked.
        self._held: list[Any] = []
        self._reading = True
        self._blocked = False

    def __repr__(self) -> str:
        return f"<Session {self._state} user={self.user!r} channels={len(self._channels)}>"

    @property
    def is_blocked(self) -> bool:
        """True while it is not read because it published to a blocked broker."""
        return self._blocked

    def capable(self, capability: str) -> bool:
        """Whether the client said that it understands an extension (RabbitMQ: capabilities)."""
        return self._capabilities.get(capability) is True

    # ------------------------------------------------------------------ the transport calls these

    def connected(self, transport: FrameTransport) -> None:
        """Starts the handshake's deadline."""
        self.transport = transport
        self.out = transport.out
        self.broker.sessions[self] = None
        if self.broker.stopping:
            # asyncio had accepted it already.
            self.abort()
            return
        self._timer = self._loop.call_later(self.broker.handshake_timeout, self._too_slow)

    def events_received(self, events: list[Any]) -> None:
        """Does what one read asks for."""
        if self._held:
            # Reading is paused, but this was on its way.
            self._held += events
        else:
            self._handle(events)

    def stream_failed(self, error: ProtocolError) -> None:
        """Ends the connection after bytes that make no sense."""
        if isinstance(error, IncompatibleProtocol):
            self._refuse_version()
        elif self._state in (_OPEN, _RUNNING):
            self._close_connection(error.reply_code, _coded(error.reply_code, str(error)))
            self._discard_input()
        else:
            self._drop(f"sent {error}")

    def transport_lost(self, error: Exception | None) -> None:
        """Cleans up after the socket."""
        if self._state in (_OPEN, _RUNNING):
            logger.info("%s: the client closed the socket without connection.close", self)
        self._state = _CLOSED
        self._set_timer(None)
        self._release()
        self.broker.session_ended(self)

    def resumed(self) -> None:
        """The client has read on: deliveries and requests go on."""
        if self._state == _RUNNING:
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
                # A mistake of ours; the client must not wait for an answer that never comes.
                logger.exception("%s: the embedded broker failed", self)
                self._refuse(Refusal(541, "the embedded broker failed; see its log"), event)
        confirming = self.confirming
        if confirming:
            for channel in confirming:
                channel.flush()
            confirming.clear()
        self.broker.scheduler.run()

    def _must_wait(self, event: Any) -> bool:
        if self._state != _RUNNING:
            return False
        if self.broker.blocked_reason is not None and type(event) is ContentRun:
            self._block(self.broker.blocked_reason)
        return self._blocked or self._is_stuffed()

    def _is_stuffed(self) -> bool:
        return self.transport.paused and self.transport.pending_bytes > HOLD_BYTES

    def _event(self, event: Any) -> None:
        if self._state == _RUNNING:
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
                # Also while it is closing: its number is free when channel.close-ok was seen.
                raise Refusal(504, "second 'channel.open' seen")
            elif channel.closing:
                self._closing_channel(channel, event)
            else:
                channel.method(event)
        elif self._state in (_CLOSING, _CLOSED):
            self._farewell(event)
        else:
            self._handshake(event)

    # ------------------------------------------------------------------ handshake

    def _handshake(self, event: Any) -> None:
        if self._state == _HEADER:
            if event == PROTOCOL_HEADER:
                self._state = _START_OK
                self._send(Connection.Start, **self._start())
            else:
                self._refuse_version()
            return
        if type(event) is not MethodFrame or event.channel != 0:
            raise Refusal(505, f"expected a method on channel 0 in connection state {self._state}")
        method = decode(event)
        if isinstance(method, Connection.StartOk) and self._state == _START_OK:
            self._authenticate(method)
        elif isinstance(method, Connection.TuneOk) and self._state == _TUNE_OK:
            self._tune(method)
        elif isinstance(method, Connection.Open) and self._state == _OPEN:
            self._open(method)
        else:
            raise Refusal(504, f"unexpected method in connection state {self._state}")

    def _start(self) -> dict[str, object]:
        from leveret import __version__

        return {
            "mechanisms": "PLAIN",
            "locales": "en_US",
            "server_properties": {
                "product": "Leveret embedded broker",
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
            raise Refusal(503, f"unknown authentication mechanism '{method.mechanism}'")
        # PLAIN: an empty authorization identity, the user and the password (RFC 4616).
        parts = method.response.split("\0")
        if len(parts) != 3 or parts[0]:
            raise Refusal(502, "the response is not one of mechanism PLAIN")
        _, user, password = parts
        expected = self.broker.users.get(user)
        given = password.encode("utf-8", "surrogateescape")
        # Compared also for unknown users, so that the time does not tell which users exist.
        same = hmac.compare_digest(given, (expected or "").encode())
        if expected is None or not same:
            logger.info("%s: login refused for user %r", self, printable(user))
            if self.capable("authentication_failure_close"):
                text = (
                    "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN. "
                    "For details see the broker logfile."
                )
                self._close_connection(403, text)
            else:
                # RabbitMQ: clients without that capability see the socket close.
                self._drop("used a wrong user or password")
            return
        self.user = user
        self._state = _TUNE_OK
        broker = self.broker
        self._send(
            Connection.Tune, channel_max=broker.channel_max, frame_max=broker.frame_max, heartbeat=int(broker.heartbeat)
        )

    def _tune(self, method: Connection.TuneOk) -> None:
        _check_negotiated("frame_max", method.frame_max, 4096, self.broker.frame_max)
        _check_negotiated("channel_max", method.channel_max, 1, self.broker.channel_max)
        self.frame_max = method.frame_max
        # RabbitMQ takes 8 bytes more, for clients that do not count a frame's own (rabbit_reader: FRAME_SIZE_FUDGE).
        self.transport.reader.frame_max = method.frame_max + 8
        self._channel_max = method.channel_max
        self._tick_s = method.heartbeat / TICKS
        self._state = _OPEN

    def _open(self, method: Connection.Open) -> None:
        vhost = self.broker.vhosts.get(method.virtual_host)
        if vhost is None:
            raise Refusal(530, f"vhost {method.virtual_host} not found")
        self.vhost = vhost
        self._state = _RUNNING
        self._send(Connection.OpenOk)
        if self._tick_s:
            self._set_timer(self._tick_s, self._tick)
        else:
            self._set_timer(None)

    def _refuse_version(self) -> None:
        # AMQP 0-9-1 section 4.2.2: answer with the version that is spoken, then close.
        self.out.append(PROTOCOL_HEADER)
        self._drop("did not begin with the protocol header of AMQP 0-9-1")

    def _too_slow(self) -> None:
        self._timer = None
        logger.info("%s: the handshake took longer than %g s", self, self.broker.handshake_timeout)
        self._state = _CLOSED
        self.transport.abort()

    # ------------------------------------------------------------------ the open connection

    def _connection_method(self, event: Any) -> None:
        method = decode(event) if type(event) is MethodFrame else None
        if isinstance(method, Connection.Close):
            self._release()
            self._send(Connection.CloseOk)
            self._end()
        elif isinstance(method, Connection.UpdateSecret):
            # Credentials that do not expire need no update; a client that rotates them goes on.
            self._send(Connection.UpdateSecretOk)
        else:
            raise Refusal(504, "unexpected method in connection state running")

    def _open_channel(self, event: Any) -> None:
        number = event.channel
        if len(self._channels) >= self._channel_max:
            raise Refusal(
                530,
                f"number of channels opened ({len(self._channels)}) has reached the negotiated channel_max "
                f"({self._channel_max})",
                cause=(0, 0),
            )
        if type(event) is not MethodFrame or not isinstance(decode(event), Channels.Open):
            raise Refusal(504, "expected 'channel.open'")
        self._channels[number] = Channel(self, number)
        self.out.append(encode(number, make(Channels.OpenOk, channel_id="")))

    def _closing_channel(self, channel: Channel, event: MethodFrame) -> None:
        method = decode(event)
        if isinstance(method, Channels.CloseOk):
            self.forget(channel)
        elif isinstance(method, Channels.Close):
            # Both sides closed at once: each answers the other.
            self.out.append(encode(channel.number, make(Channels.CloseOk)))

    def forget(self, channel: Channel) -> None:
        """The channel's number may be opened again."""
        self._channels.pop(channel.number, None)
        self.confirming.pop(channel, None)
        self.transport.reader.forget(channel.number)

    def _refuse(self, refusal: Refusal, event: Any) -> None:
        class_id, method_id = refusal.cause or _identity(event)
        if self._state not in (_OPEN, _RUNNING):
            # Until then a peer that detects an error closes without a word: AMQP 0-9-1 section 2.2.4, and section
            # 1.4.2.6 for a tune-ok that asks for more than was offered.
            if self._state != _CLOSED:
                self._drop(f"was refused in the handshake: {refusal.reply_text}")
            return
        channel = self._channels.get(getattr(event, "channel", 0))
        if refusal.closes_connection or channel is None:
            self._close_connection(refusal.reply_code, refusal.reply_text, class_id, method_id)
            return
        logger.info("%s: channel %d: %s", self, channel.number, printable(refusal.reply_text))
        channel.flush()
        channel.release()
        close = make(
            Channels.Close,
            reply_code=refusal.reply_code,
            reply_text=refusal.reply_text,
            class_id=class_id,
            method_id=method_id,
        )
        self.out.append(encode(channel.number, close))

    # ------------------------------------------------------------------ heartbeats

    def _tick(self) -> None:
        """Keeps the connection alive and ends it when the peer is gone (AMQP 0-9-1 section 4.2.7)."""
        self._timer = self._loop.call_later(self._tick_s, self._tick)
        transport = self.transport
        sent = self.out.sent_bytes
        if sent == self._sent_bytes and not transport.paused:
            self.out.append(HEARTBEAT_FRAME)
            transport.flush()
            sent = self.out.sent_bytes
        self._sent_bytes = sent
        # While we do not read, only what the peer takes from us shows that it lives. A blocked publisher shows
        # nothing at all, and RabbitMQ does not watch it either.
        seen = transport.reader.received_bytes if self._reading else -transport.pending_bytes
        if seen != self._seen_bytes or self._blocked:
            self._seen_bytes = seen
            self._silent_ticks = 0
            return
        self._silent_ticks += 1
        if self._silent_ticks >= 2 * TICKS:
            logger.info("%s: missed heartbeats for %g s", self, 2 * TICKS * self._tick_s)
            self._state = _CLOSED
            transport.abort()

    # ------------------------------------------------------------------ flow control

    def _block(self, reason: str) -> None:
        if not self._blocked:
            self._blocked = True
            if self.capable("connection.blocked"):
                self._send(Connection.Blocked, reason=reason)

    def unblock(self) -> None:
        """Goes on reading from a publisher that was blocked."""
        if self._blocked:
            self._blocked = False
            if self._state == _RUNNING:
                if self.capable("connection.blocked"):
                    self._send(Connection.Unblocked)
                self._go_on()

    def _pause(self) -> None:
        if self._reading:
            self._reading = False
            self.transport.pause_reading()

    def _go_on(self) -> None:
        """Handles what was held, and reads again when nothing is left."""
        if self._blocked or self._is_stuffed():
            return
        held, self._held = self._held, []
        if held:
            self._handle(held)
        if not self._held and not self._reading and self._state == _RUNNING:
            self._reading = True
            self.transport.resume_reading()

    # ------------------------------------------------------------------ ends

    def close(self, reply_code: int, reply_text: str) -> None:
        """Closes the connection from this side; the client has `CLOSE_TIMEOUT` seconds to answer.

        Args:
            reply_code: Why.
            reply_text: Why, without the code's name.
        """
        if self._state == _RUNNING:
            self._close_connection(reply_code, _coded(reply_code, reply_text))
        elif self._state not in (_CLOSING, _CLOSED):
            self._drop("is still in the handshake")

    def abort(self) -> None:
        """Ends the connection at once."""
        self._state = _CLOSED
        self.transport.abort()

    def _close_connection(self, reply_code: int, reply_text: str, class_id: int = 0, method_id: int = 0) -> None:
        logger.info("%s: closing: %s", self, printable(reply_text))
        for channel in self._channels.values():
            channel.flush()
        self._release()
        self._send(
            Connection.Close, reply_code=reply_code, reply_text=reply_text, class_id=class_id, method_id=method_id
        )
        self._state = _CLOSING
        self._set_timer(CLOSE_TIMEOUT, self.abort)
        self._held.clear()
        if not self._reading:
            # The answer has to be read.
            self._reading = True
            self.transport.resume_reading()

    def _farewell(self, event: Any) -> None:
        """Everything but close and close-ok is ignored now (AMQP 0-9-1 section 1.4.2.8)."""
        if self._state == _CLOSING and type(event) is MethodFrame and event.class_id == CONNECTION:
            identity = event.class_id << 16 | event.method_id
            if identity == Connection.CloseOk.index:
                self._end()
            elif identity == Connection.Close.index:
                self._send(Connection.CloseOk)

    def _drop(self, why: str) -> None:
        logger.info("%s: closing the socket: the client %s", self, printable(why))
        self._end()

    def _end(self) -> None:
        self._state = _CLOSED
        self._held.clear()
        # A client that does not read may keep us from sending the rest.
        self._set_timer(CLOSE_TIMEOUT, self.transport.abort)
        self._discard_input()
        self.transport.close()

    def _discard_input(self) -> None:
        if isinstance(self.transport, BrokerTransport):
            self.transport.discard_input()

    def _release(self) -> None:
        """Gives back what the connection holds: deliveries, consumers, exclusive queues."""
        channels, self._channels = self._channels, {}
        self.confirming.clear()
        for channel in channels.values():
            channel.release()
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
    """Class and method to blame for an event."""
    if type(event) is MethodFrame:
        return event.class_id, event.method_id
    if type(event) is ContentRun:
        return 60, event.method_id
    return (BASIC, BASIC_ACK) if type(event) is SettlementRun else (0, 0)


def _check_negotiated(name: str, value: int, least: int, most: int) -> None:
    """Refuses what tune-ok may not say: less than the protocol's minimum, more than tune offered, or no limit."""
    if value != 0 and value < least:
        word, limit = "lower than the minimum", least
    elif value == 0 or value > most:
        word, limit = "higher than the maximum", most
    else:
        return
    detail = " (no limit)" if name == "channel_max" and value == 0 else ""
    raise Refusal(
        530,
        f"negotiated {name} = {value}{detail} is {word} allowed value ({limit})",
        cause=(CONNECTION, CONNECTION_TUNE),
    )
