"""A connection on an event loop: dialing, handshake, heartbeats, channels, and one place where everything ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from leveret.connection.channel import Channel
from leveret.connection.client_properties import client_properties
from leveret.connection.confirm_channels import ConfirmChannels
from leveret.connection.credentials import Credentials, name_who, secret_of
from leveret.connection.stages import CONNECTION_STAGES, ConnectionStage
from leveret.errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionClosed,
    ConnectionLost,
    LeveretError,
    OperationTimeout,
    ProtocolError,
    RemoteProtocolError,
    TransportError,
    WrongLoopError,
    again,
    printable,
)
from leveret.plugins.interfaces import ConnectionEvent, ConnectionEventKind
from leveret.protocol import connection as protocol
from leveret.protocol.connection import ConnectionPhase, ConnectionState
from leveret.protocol.transitions import moved
from leveret.runtime.loop_watch import LoopWatch
from leveret.settings.functions import plain_function
from leveret.transport.dialing import Dialing, joined
from leveret.transport.frame_transport import FrameTransport
from leveret.wire.numbers import (
    CHANNEL,
    CHANNEL_CLOSE_OK,
    CHANNEL_ERROR,
    CONNECTION_FORCED,
    INTERNAL_ERROR,
    REPLY_SUCCESS,
    UNEXPECTED_FRAME,
)
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun, MethodFrame, SettlementRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.protocol.commands import Method
    from leveret.settings import ConnectionSettings, Endpoint, Secret
    from leveret.transport.frame_transport import FrameReceiver

    EventListener = Callable[[ConnectionEvent], None]

__all__ = ["Connection"]

logger = logging.getLogger("leveret.connection")


class Connection:
    """One AMQP connection. Use `await Connection.open(settings)`.

    Attributes:
        settings: What it was made with.
        name: The name that the broker lists (RabbitMQ: connection_name).
        endpoint: The host that it is connected to; None for a unix socket.
        transport: The socket's side.
        error: Why it is closed, or None while it is open.
        blocked: The broker's reason for blocking publishers, or None.
        blocked_at: When it began to block them, the last time, by the loop's clock.
        opened_at: When the handshake was over, by the loop's clock; 0 before.
        ended_at: When it ended, by the loop's clock; 0 before.
        confirm_channels: Idle channels in confirm mode.
        spare_channel: Called when no channel number is free; gives up an idle open channel. Set by a channel pool.
        undeclared: Called with each method that has deleted or unbound something. Set by the client, which forgets it.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        name: str,
        credentials: Credentials,
        login: tuple[str, Secret],
        on_event: EventListener | None = None,
    ) -> None:
        self.settings = settings
        self.name = name
        self._credentials = credentials
        self._on_event = on_event
        self.error: LeveretError | None = None
        self.blocked: str | None = None
        self.blocked_at = 0.0
        self.endpoint: Endpoint | None = None
        self.opened_at = 0.0
        self.ended_at = 0.0
        self.confirm_channels = ConfirmChannels(settings.max_pooled_channels)
        self.spare_channel: Callable[[], Channel | None] | None = None
        self.undeclared: Callable[[Method], object] | None = None
        self.transport: FrameTransport
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._channels: dict[int, Channel] = {}
        self._free_numbers: list[int] = []
        self._crossed: dict[int, Channel] = {}
        # Numbers of channels that the server has closed, the oldest first. Frames may still come that it sent before it
        # read channel.close-ok, so other numbers are used before these.
        self._closed_by_server: dict[int, None] = {}
        self._highest_number = 0
        self._stage = ConnectionStage.OPENING
        self._opened: asyncio.Future[None] | None = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._unblocked: asyncio.Future[None] | None = None
        # Per connection.update-secret that has no answer yet: its caller's future, and the secret.
        self._secret_updates: list[tuple[asyncio.Future[None], Secret]] = []
        self._watch = LoopWatch.of(self._loop)
        self._timer: asyncio.TimerHandle | None = None
        self._username, secret = login
        self._state = ConnectionState(
            mechanism=settings.mechanism,
            response="" if settings.mechanism == "EXTERNAL" else f"\0{self._username}\0{secret.reveal()}",
            virtual_host=settings.virtual_host,
            frame_max=settings.frame_max,
            channel_max=settings.channel_max,
            heartbeat=int(settings.heartbeat),
            client_properties=client_properties(name),
            max_table_depth=settings.max_table_depth,
            max_table_entries=settings.max_table_entries,
        )

    # ------------------------------------------------------------------ opening

    @classmethod
    async def open(
        cls,
        settings: ConnectionSettings,
        *,
        name: str | None = None,
        credentials: Credentials | None = None,
        on_event: EventListener | None = None,
        first: Endpoint | None = None,
    ) -> Connection:
        """Connects to a host of the settings: the addresses of all of them are tried, a new one each 0.25 s.

        Args:
            settings: Endpoints, credentials, deadlines and limits.
            name: The connection's name; the settings' `client_name` by default.
            credentials: Asked for what to log in with; those of the settings by default.
            on_event: Called when the connection was opened, blocked, unblocked or closed; it does not raise.
            first: The host to begin with; the others come in random order.

        Returns:
            The open connection.

        Raises:
            ConnectFailed: No host could be reached; with several, the text tells each one's reason. Or the credential
                provider failed.
            TLSVerificationError: The certificate was refused; with several hosts, every one's.
            AuthenticationError: The credentials or the mechanism were refused.
            ConnectionClosed: The server refused, for example the virtual host (reply code 530).
            IncompatibleProtocol: The peer does not speak AMQP 0-9-1.
            OperationTimeout: The handshake was not over within `handshake_timeout` seconds, or the credential provider
                did not answer within `connect_timeout`. Several hosts take no longer than both together.
        """
        if on_event is not None:
            plain_function("on_event", on_event, "when something happens to the connection")
        dialing = Dialing(settings, first)
        credentials = credentials or Credentials(settings)
        login = await credentials.ask()
        failures: list[LeveretError] = []
        seconds = settings.connect_timeout + settings.handshake_timeout
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                while dialing:
                    connection = cls(settings, name or settings.client_name, credentials, login, on_event)
                    failure = await connection._attempt(dialing)
                    if failure is None:
                        return connection
                    failures.append(failure)
                    del connection, failure
        except TimeoutError:
            if not deadline.expired():
                raise
            text = f"connecting took longer than connect_timeout and handshake_timeout together, {seconds:g} s"
            failures.append(OperationTimeout(text))
        try:
            raise joined(failures)
        finally:
            failures.clear()  # the traceback of the error refers to this list

    async def _attempt(self, dialing: Dialing) -> LeveretError | None:
        """Dials, and returns why that failed; raises what every other host would answer, too."""
        try:
            await self._dial(dialing)
        except (ConnectFailed, OperationTimeout) as error:
            return error.with_traceback(None)
        except (TransportError, ProtocolError) as error:
            name_who(error, self.settings, self._username, self.endpoint)
            return error.with_traceback(None)
        except ConnectionClosed as error:
            name_who(error, self.settings, self._username, self.endpoint)
            # A node that is starting or stopping says so.
            if error.reply_code not in (CONNECTION_FORCED, INTERNAL_ERROR):
                raise
            return error.with_traceback(None)
        return None

    async def _dial(self, dialing: Dialing) -> None:
        settings = self.settings
        try:
            self.endpoint = await dialing.reach(self, self._make_transport)
        except BaseException:
            if self._state.phase is not ConnectionPhase.IDLE:
                # Cancelled after the socket was connected.
                self._give_up()
            raise
        try:
            async with asyncio.timeout(settings.handshake_timeout):
                assert self._opened is not None
                await self._opened
        except TimeoutError:
            phase = self._state.phase.value
            self._give_up()
            dialing.forget(self.endpoint)
            where = self.endpoint or settings.unix_socket
            raise OperationTimeout(
                f"{where} was silent in the AMQP handshake ({phase}) for handshake_timeout of "
                f"{settings.handshake_timeout:g} s"
            ) from None
        except BaseException:
            self._give_up()
            raise
        finally:
            self._opened = None  # its error refers to this frame, and so to this object

    def _give_up(self) -> None:
        """Ends a connection that its caller will not get, also when it was opened in this very turn of the loop."""
        self._end(None, abort=True)
        # Also when it had ended already: uvloop closes the socket of a cancelled connect without `connection_lost`, and
        # what was appended must not be written.
        self.transport.abort()

    def _make_transport(self, receiver: FrameReceiver) -> FrameTransport:
        settings = self.settings
        reader = FrameReader(
            handshake=True,
            max_body_size=settings.max_body_size,
            max_table_depth=settings.max_table_depth,
            max_table_entries=settings.max_table_entries,
        )
        return FrameTransport(
            receiver,
            reader,
            write_high_watermark=settings.write_high_watermark,
            write_low_watermark=settings.write_low_watermark,
        )

    # ------------------------------------------------------------------ what users of a connection ask

    def __repr__(self) -> str:
        return f"<Connection {self.name!r} {self._state.phase.value}, {len(self._channels)} channels>"

    @property
    def is_open(self) -> bool:
        """True when channels can be opened and messages published."""
        return self.error is None and self._state.phase is ConnectionPhase.OPEN

    @property
    def negotiated(self) -> protocol.Negotiated:
        """frame_max, channel_max, heartbeat and the server's properties."""
        negotiated = self._state.negotiated
        if negotiated is None:
            raise ConnectionClosed("the connection was never open")
        return negotiated

    @property
    def received_bytes(self) -> int:
        """Bytes read from the socket so far."""
        return self.transport.reader.received_bytes

    @property
    def sent_bytes(self) -> int:
        """Bytes given to the socket so far."""
        return self.transport.out.sent_bytes

    def socket_options(self) -> dict[str, int]:
        """Asks the kernel which options the connection's socket has.

        Returns:
            Values by the names of `ConnectionSettings`: sizes in bytes (Linux shows twice what was asked for), times in
            seconds, switches as 0 or something else. What the kernel or a unix socket does not have is left out.

        Raises:
            ConnectionClosed, TransportError: The connection is closed, and its socket with it.
        """
        if self.error is not None:
            raise again(self.error)
        return self.transport.socket_options()

    @property
    def is_of_this_process(self) -> bool:
        """False in a forked child."""
        return os.getpid() == self._process

    def check_loop(self) -> None:
        """Refuses use from another event loop, thread or process, where nothing would wake this connection's.

        Raises:
            WrongLoopError: Called from outside the event loop that the connection was opened in, or in a forked child.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not self._loop:
            if not self.is_of_this_process:
                raise WrongLoopError(
                    f"connection {self.name!r} was opened before this process was forked (by process {self._process}); "
                    "its socket belongs to the parent. Connect in the child, after the fork"
                )
            raise WrongLoopError(
                f"connection {self.name!r} belongs to another event loop; use asyncio.run_coroutine_threadsafe or "
                "loop.call_soon_threadsafe to reach it"
            )

    async def wait_unblocked(self) -> None:
        """Waits until publishers are not blocked or the connection is lost. The caller sets the deadline."""
        while self.blocked is not None and self.error is None:
            if self._unblocked is None:
                self._unblocked = self._loop.create_future()
            await asyncio.shield(self._unblocked)

    def obstacle(self) -> tuple[str, str] | None:
        """Returns why publishers may not write now, as the `stage` of a `PublishError` and a text, or None."""
        if self.blocked is not None:
            return "blocked", f"the broker blocks publishers: {self.blocked}"
        if self.transport.paused:
            return "buffer", f"{self.transport.pending_bytes} bytes wait for the socket"
        return None

    async def wait_flowing(self) -> None:
        """Waits for the end of what `obstacle` tells; another may come after it. The caller sets the deadline."""
        if self.blocked is not None:
            await self.wait_unblocked()
        else:
            await self.transport.drain()

    async def channel(self) -> Channel:
        """Opens a channel. When no number is free, it takes over an idle channel of the channel pool, or its number.

        Raises:
            ConfigurationError: All `channel_max` channels are in use.
            ConnectionClosed, TransportError: The connection is lost.
        """
        while True:
            try:
                channel = self.new_channel()
            except ConfigurationError:
                spare = None if self.spare_channel is None else self.spare_channel()
                if spare is not None:
                    return spare
                if not await self.confirm_channels.free_number(self.settings.operation_timeout):
                    raise
            else:
                await channel.open()
                return channel

    def new_channel(self) -> Channel:
        """Gives a free number to a channel, which its caller opens at once. Raises what `channel` does."""
        self.check_loop()
        if self.error is not None:
            raise again(self.error)
        if self._free_numbers:
            number = self._free_numbers.pop()
        elif self._highest_number < self.negotiated.channel_max:
            number = self._highest_number = self._highest_number + 1
        elif number := next((number for number in self._closed_by_server if number not in self._crossed), 0):
            del self._closed_by_server[number]
        else:
            raise ConfigurationError(
                f"all {self.negotiated.channel_max} channels of connection {self.name!r} are in use (channel_max)",
                option="channel_max",
            )
        channel = self._channels[number] = Channel(self, number)
        return channel

    def forget_channel(self, channel: Channel, *, by_server: bool = False, crossed: bool = False) -> None:
        """The channel is closed on both sides; its number may be used again.

        Args:
            channel: The channel.
            by_server: The server has closed it: frames that it sent before may still come, and are dropped.
            crossed: Both sides closed at once: the number is free when the server has answered this side's close.
        """
        if self._channels.pop(channel.number, None) is not None:
            if by_server:
                self.transport.reader.drop_content(channel.number)
                self._closed_by_server[channel.number] = None
            else:
                self.transport.reader.forget(channel.number)
            if crossed:
                self._crossed[channel.number] = channel
            else:
                self._free_number(channel)

    def _free_number(self, channel: Channel) -> None:
        if channel.number not in self._closed_by_server:
            self._free_numbers.append(channel.number)
        if channel.on_end is not None:
            channel.on_end(channel)

    async def update_secret(self, secret: str | Secret, reason: str = "") -> None:
        """Gives the broker a new password or token (RabbitMQ: connection.update-secret).

        Once the broker took it, the client's next connections log in with it; `Client.update_secret` gives it to all
        connections that are open.

        Args:
            secret: The new secret, 0 to 2**32 - 1 bytes.
            reason: Goes into the broker's log, at most 255 bytes.

        Raises:
            OperationTimeout: No answer within `operation_timeout` seconds.
            ConnectionClosed: The broker refused it, and closed the connection (reply code 530).
            ConfigurationError: The secret is no text that AMQP can carry; nothing was sent.
        """
        self.check_loop()
        if self.error is not None:
            raise again(self.error)
        future: asyncio.Future[None] = self._loop.create_future()
        checked = secret_of(secret)
        self._state.update_secret(checked.reveal(), reason)
        self._secret_updates.append((future, checked))
        try:
            async with asyncio.timeout(self.settings.operation_timeout):
                await future
        except TimeoutError:
            raise OperationTimeout(
                f"connection.update-secret was not answered within {self.settings.operation_timeout:g} s"
            ) from None

    async def close(self, timeout: float | None = None) -> None:
        """Closes the connection (connection.close).

        What was appended before is sent before. When this returns the socket is closed, too.

        Args:
            timeout: Seconds for all of it; `close_timeout` by default. Without an answer the socket is just closed.
        """
        self.check_loop()
        deadline = self._loop.time() + (self.settings.close_timeout if timeout is None else timeout)
        if self.error is None:
            self._say_goodbye()
            try:
                async with asyncio.timeout_at(deadline):
                    await asyncio.shield(self._ended)
            except TimeoutError:
                # A blocked broker does not read, so it cannot answer.
                self._end(
                    ConnectionClosed("connection.close was not answered in time", reply_code=REPLY_SUCCESS), abort=True
                )
            except BaseException:
                self._end(ConnectionClosed("the connection was closed by this side", reply_code=REPLY_SUCCESS))
                raise
        # TLS takes leave of the peer first; a program that ends its loop meanwhile would leave the socket open.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(deadline):
                await asyncio.shield(self._gone)
        self.transport.abort()

    def drop(self) -> None:
        """Closes the connection without waiting for the broker's answer; raises as `check_loop`."""
        if self.error is None:
            self.check_loop()
            self._say_goodbye()
        self._give_up()

    def _say_goodbye(self) -> None:
        self._state.close(REPLY_SUCCESS, "closed by the application")
        # At once: without time to wait for the answer, the broker should hear of it all the same.
        self.transport.flush()

    # ------------------------------------------------------------------ transport.FrameReceiver

    def connected(self, transport: FrameTransport) -> None:
        """The socket is connected: begin the handshake."""
        self.transport = transport
        transport.channels = self._channels
        self._state.start(transport.out)
        transport.flush()

    def events_received(self, events: list[Any]) -> None:
        """Hands the events of one read to their channels."""
        try:
            for event in events:
                kind = type(event)
                if kind is MethodFrame and event.channel == 0:
                    self._handle(self._state.receive(event))
                    continue
                channel = self._channels.get(event.channel)
                if channel is None:
                    self._unknown_channel(event)
                elif kind is ContentRun:
                    channel.content_received(event)
                elif kind is SettlementRun:
                    channel.settled(event)
                else:
                    channel.method_received(event)
        except Exception as error:
            self.event_failed(error)

    def event_failed(self, error: Exception) -> None:
        """Ends the connection: an event was wrong, or could not be handled."""
        if isinstance(error, RemoteProtocolError):
            self.stream_failed(error)
        elif isinstance(error, LeveretError):
            self._end(error)
        else:
            # A defect of Leveret: end the connection, so that no caller waits for ever.
            logger.error("connection %r: an event could not be handled", self.name, exc_info=error)
            failure = ConnectionClosed(
                f"an event could not be handled: {type(error).__name__}", reply_code=INTERNAL_ERROR
            )
            failure.__cause__ = error
            self._end(failure)

    def stream_failed(self, error: ProtocolError) -> None:
        """The peer broke the protocol: say so, and end."""
        self._state.close(error.reply_code, str(error))
        self.transport.flush()
        self._end(error)

    def transport_lost(self, error: Exception | None) -> None:
        """The socket is closed."""
        if self.error is None:
            self._handle(self._state.lost(error))
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._gone.done():
            self._gone.set_result(None)

    # ------------------------------------------------------------------ inside

    def _unknown_channel(self, event: Any) -> None:
        if self._state.phase in (ConnectionPhase.CLOSING, ConnectionPhase.CLOSED):
            return
        closed = isinstance(event, MethodFrame) and (event.class_id, event.method_id) == (CHANNEL, CHANNEL_CLOSE_OK)
        if closed and event.channel in self._crossed:
            # Both sides closed at once, and this answers ours.
            self._free_number(self._crossed.pop(event.channel))
            return
        if event.channel in self._closed_by_server:
            # Another channel.close as well: a second channel.close-ok would make RabbitMQ end the connection (504).
            return
        if self._stage is ConnectionStage.OPENING:
            raise RemoteProtocolError(
                f"a frame on channel {event.channel} while {self._state.phase.value}", reply_code=UNEXPECTED_FRAME
            )
        raise RemoteProtocolError(f"a frame on channel {event.channel}, which is not open", reply_code=CHANNEL_ERROR)

    def _handle(self, event: protocol.Event | None) -> None:
        if event is None:
            return
        if isinstance(event, protocol.Tuned):
            self.transport.reader.tune(event.negotiated.frame_max, event.negotiated.channel_max)
        elif isinstance(event, protocol.Opened):
            self._stage = moved(CONNECTION_STAGES, self._stage, ConnectionStage.OPEN)
            self.opened_at = self._loop.time()
            # Not in `_dial`, which resumes later: the connection may have ended by then.
            self._watch.add(self._tick)
            if self._opened is not None and not self._opened.done():
                self._opened.set_result(None)
            self._tell(ConnectionEventKind.OPENED)
        elif isinstance(event, protocol.Blocked):
            self.blocked, self.blocked_at = event.reason, self._loop.time()
            self.transport.out.blocked = True
            logger.warning("connection %r: the broker blocks publishers: %s", self.name, event.reason)
            self._tell(ConnectionEventKind.BLOCKED, event.reason)
        elif isinstance(event, protocol.Unblocked):
            self.blocked = None
            self.transport.out.blocked = False
            logger.info("connection %r: the broker takes publishings again", self.name)
            self._wake_unblocked()
            self._tell(ConnectionEventKind.UNBLOCKED)
        elif isinstance(event, protocol.SecretUpdated):
            if self._secret_updates:
                future, secret = self._secret_updates.pop(0)
                self._credentials.update(secret)
                if not future.done():
                    future.set_result(None)
        else:
            self._end(event.error)

    def _wake_unblocked(self) -> None:
        future, self._unblocked = self._unblocked, None
        if future is not None and not future.done():
            future.set_result(None)

    def _end(self, error: LeveretError | None, *, abort: bool = False) -> None:
        """Ends the connection and tells everything that waits on it; no other method does."""
        if self._stage is ConnectionStage.ENDED:
            return
        was_open = self._stage is ConnectionStage.OPEN
        self._stage = moved(CONNECTION_STAGES, self._stage, ConnectionStage.ENDED)
        self.ended_at = self._loop.time()
        self.error = error or ConnectionClosed("the connection was closed by this side", reply_code=REPLY_SUCCESS)
        # The frames of a traceback refer to this object.
        self.error.__traceback__ = None
        self._watch.remove(self._tick)
        if self._timer is not None:
            self._timer.cancel()
        if error is not None and was_open:
            logger.warning("connection %r is lost: %s", self.name, error)
        self._wake_unblocked()
        for channel in list(self._channels.values()):
            channel.lost(self.error)
        while self._crossed:
            self._free_number(self._crossed.popitem()[1])
        for future in (self._opened, *(future for future, _ in self._secret_updates)):
            if future is not None and not future.done():
                future.set_exception(again(self.error))
                future.exception()  # marks it as retrieved: its caller may have given up
        if not self._ended.done():
            self._ended.set_result(None)
        # A peer that is gone, or did not answer connection.close, does not read: what is unsent can only be dropped.
        if abort or isinstance(error, ConnectionLost):
            self.transport.abort()
        else:
            self.transport.close()
            self._timer = self._loop.call_later(self.settings.close_timeout, self.transport.abort)
        if was_open:
            self._tell(ConnectionEventKind.CLOSED, "" if error is None else str(error), error)

    def _tell(self, kind: ConnectionEventKind, reason: str = "", error: LeveretError | None = None) -> None:
        if self._on_event is not None:
            self._on_event(ConnectionEvent(kind=kind, connection_name=self.name, reason=printable(reason), error=error))

    def _tick(self, now: float, *, again: bool = False) -> None:
        """Keeps the heartbeat; the loop's watch calls it twice a second."""
        transport = self.transport
        received, sent = transport.reader.received_bytes, transport.out.sent_bytes
        event = self._state.tick(now, received, sent, listening=transport.reading, again=again)
        if event is not None:
            self._handle(event)
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        seconds = self._state.look_again(now)
        if seconds is not None:
            self._timer = self._loop.call_later(seconds, self._tick_again)

    def _tick_again(self) -> None:
        self._tick(time.monotonic(), again=True)
