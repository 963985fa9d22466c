"""A link: one place in a client that has a connection, opened when it is first needed and again when it was lost."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import random
from typing import TYPE_CHECKING, Final

from leveret.connection.channel_pool import ChannelPool
from leveret.connection.connection import Connection
from leveret.connection.credentials import Credentials
from leveret.errors import ConfigurationError, ConnectionClosed, LeveretError, OperationTimeout, WrongLoopError, again
from leveret.monitoring.meters import ConnectionMeter
from leveret.plugins.interfaces import ConnectionEvent, ConnectionEventKind
from leveret.protocol.recovery import Backoff, Prospect, prospect_of
from leveret.protocol.transitions import moved
from leveret.records import fields
from leveret.runtime.tasks import set_within
from leveret.settings import ConnectionSettings
from leveret.wire.numbers import REPLY_SUCCESS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import Endpoint

__all__ = ["Link", "LinkState"]

logger = logging.getLogger("leveret.client")

#: Options whose values lie outside of the program, in files and in a credential provider. They were good when the
#: client connected first, so what is wrong now is being changed.
_OUTSIDE: Final = ("tls", "credentials")
#: The options that the broker may lower in the handshake. It may shorten heartbeats, too, which loses nothing.
_NEGOTIATED: Final = [option for option in fields(ConnectionSettings) if option.name in ("frame_max", "channel_max")]


class LinkState(enum.Enum):
    """The connection that a link has."""

    IDLE = "no connection was made yet"
    OPEN = "an open connection"
    LOST = "a lost connection that no caller waits for"
    RECOVERING = "no connection, and a task that dials because callers wait"
    CLOSED = "closed by this side"


#: Which state may follow which. LOST and RECOVERING become OPEN, too, when a caller dials at once (`Link.__call__`).
#: A link that has had no connection goes back to IDLE when the last caller stops waiting.
LINK_TRANSITIONS: Final[Mapping[LinkState, frozenset[LinkState]]] = {
    LinkState.IDLE: frozenset({LinkState.OPEN, LinkState.RECOVERING, LinkState.CLOSED}),
    LinkState.OPEN: frozenset({LinkState.LOST, LinkState.CLOSED}),
    LinkState.LOST: frozenset({LinkState.OPEN, LinkState.RECOVERING, LinkState.CLOSED}),
    LinkState.RECOVERING: frozenset({LinkState.OPEN, LinkState.LOST, LinkState.IDLE, LinkState.CLOSED}),
    LinkState.CLOSED: frozenset(),
}


class Link:
    """Gives producers, consumers and channel pools their connection.

    Args:
        settings: How to connect, and how to recover.
        name: The name of its connections, which the broker lists.
        registry: Told of connection events; it makes the backoff policy that the settings name.
        credentials: Asked for what to log in with; those of the settings by default.
        established: True when the client has been connected before, by another link: then callers wait for the first
            connection of this one, too.

    Attributes:
        name: See above.
        auto_recovery: The setting.
        operation_timeout: The setting, in seconds.
        meter: Counts its connections.
        connection: The last connection, open or not; None before the first.
        channels: The pool of its connection's channels.
        prepare: Called with each new connection and the lost one that it replaces (None for the first), before anybody
            uses the new one. When it raises, the attempt to connect has failed. Set by the client.
        failure: Why the last attempt to connect failed; None after one that succeeded, and before the first.
        last_error: Why a connection was lost or could not be opened, the last time; None when that never was.
        established: See above; set once the client is connected.

    Raises:
        ConfigurationError, PluginError: There is no backoff policy of this name, or it could not be made.
    """

    def __init__(
        self,
        settings: ConnectionSettings,
        name: str,
        registry: PluginRegistry,
        credentials: Credentials | None = None,
        *,
        established: bool = False,
    ) -> None:
        self.name = name
        self.auto_recovery = settings.auto_recovery
        self.operation_timeout = settings.operation_timeout
        self.meter = ConnectionMeter()
        self.connection: Connection | None = None
        self.failure: LeveretError | None = None
        self.last_error: LeveretError | None = None
        self.established = established
        self._credentials = credentials or Credentials(settings)
        self.channels = ChannelPool(self, settings)
        self.prepare: Callable[[Connection, Connection | None], Awaitable[object]] | None = None
        self._settings = settings
        self._registry = registry
        policy = settings.recovery_backoff
        self._policy = None if policy is None else registry.backoff_policy(policy).delay
        self._backoff = self.new_backoff()
        self._state = LinkState.IDLE
        self._lock = asyncio.Lock()
        # Wakes the recovery task when another caller has opened a connection, or an attempt may succeed now.
        self._opened = asyncio.Event()
        # The task that dials now, and cancelled ones that are still finishing.
        self._recovery: asyncio.Task[Connection] | None = None
        self._recoveries: set[asyncio.Task[Connection]] = set()
        # The attempt that is under way, and cancelled ones that are still finishing.
        self._attempts: set[asyncio.Task[Connection]] = set()
        self._waiting = 0
        # The host of a connection that was left for another one.
        self._left: Endpoint | None = None
        # When the last attempt to connect ended, by the loop's clock.
        self._tried_at = 0.0

    def __repr__(self) -> str:
        return f"<Link {self.name!r} {self.state.name}>"

    @property
    def state(self) -> LinkState:
        """The state now; a loss is noticed here."""
        if self._state is LinkState.OPEN and self.connection is not None and self.connection.error is not None:
            self._move(LinkState.LOST)
        return self._state

    @property
    def outage(self) -> LeveretError | None:
        """Why there is no connection while one is being made again or should be; None when there is one or was none."""
        if self.state not in (LinkState.LOST, LinkState.RECOVERING) or self.connection is None:
            return None
        return self.connection.error

    @property
    def no_connection(self) -> LeveretError | None:
        """Why the last attempt failed, or else why the connection was lost; None when there is one or was none."""
        return self.failure or self.outage

    @property
    def blocked(self) -> str | None:
        """The broker's reason for blocking publishers on the open connection, or None."""
        return self.connection.blocked if self.connection is not None and self.connection.error is None else None

    @property
    def may_recover(self) -> bool:
        """True when a lost connection is made again for those who wait: `auto_recovery`, and the link is not closed."""
        return self.auto_recovery and self._state is not LinkState.CLOSED

    def new_backoff(self) -> Backoff:
        """Makes the delays of a sequence of attempts, as the settings and the backoff policy say."""
        settings = self._settings
        return Backoff(settings.recovery_initial_delay, settings.recovery_max_delay, self._policy)

    async def __call__(self) -> Connection:
        """Returns the open connection, or dials once for a new one.

        Raises:
            ConnectionClosed: The link is closed.
            LeveretError: What `Connection.open` raises.
        """
        async with self._lock:
            self._check_not_closed()
            if self.state is LinkState.OPEN:
                assert self.connection is not None
                return self.connection
            lost = self.connection
            connection = await self._dial()
            if self.state is LinkState.CLOSED:
                # Closed as it was opened: `close` has not seen this connection.
                connection.drop()
                self._check_not_closed()
            self.connection = connection
            self.established = True
            self._move(LinkState.OPEN)
            self.meter.replace(connection)
            connection.transport.write_sizes = self.meter.write_sizes
            self._opened.set()
            if lost is not None:
                recovered = ConnectionEvent(kind=ConnectionEventKind.RECOVERED, connection_name=self.name)
                self._registry.connection_event(recovered)
            return connection

    async def recovered(self) -> Connection:
        """Returns the open connection, or the next one, however long that takes.

        All callers wait for the same attempts, which go on until one succeeds or the last caller stops waiting. The
        caller sets the deadline, or uses `within`. Cancelling one caller does not disturb the others.

        A refused login or virtual host does not end the wait: the next attempt comes at the long end of the backoff.

        Raises:
            ConnectionClosed: The link is closed.
            TLSVerificationError, ConfigurationError: Further attempts would end the same way.
            LeveretError: Why the connection was lost, without `auto_recovery`; or why the first connection of a client,
                which is tried once, could not be opened.
        """
        while True:
            self._check_not_closed()
            connection = self.connection
            if connection is None and not (self.established and self._settings.auto_recovery):
                return await self()
            if connection is not None:
                connection.check_loop()
                if self.state is LinkState.OPEN:
                    return connection
                if not self._settings.auto_recovery:
                    assert connection.error is not None
                    raise again(connection.error)
            await self._wait_for_recovery()

    async def within(self, seconds: float, option: str, what: str) -> Connection:
        """Returns what `recovered` returns, within a deadline.

        Args:
            seconds: The deadline.
            option: The option that sets it, for the error's text.
            what: The call that needs the connection, likewise.

        Raises:
            OperationTimeout: There was no connection in time; the text and the cause are why the last attempt failed.
            LeveretError: As `recovered`.
        """
        deadline = asyncio.timeout(seconds)
        try:
            async with deadline:
                return await self.recovered()
        except TimeoutError:
            # An attempt has deadlines of its own.
            if not deadline.expired():
                raise
            raise OperationTimeout(
                f"{what}: connection {self.name!r} was not there within {option} of {seconds:.3g} s{self.reason}"
            ) from self.failure

    async def for_call(self, what: str, seconds: float | None = None) -> Connection:
        """Returns the connection for a call that does not last: while there is none, it waits for the next one.

        The first call after a loss dials at once, and wakes those that wait. When that fails, calls wait as others do.

        Args:
            what: What needs the connection, for the error's text.
            seconds: The deadline; `operation_timeout` by default. Without `auto_recovery` the link dials once instead.

        Raises:
            LeveretError: As `within`, or as a call of the link.
        """
        if not self.auto_recovery:
            return await self()
        seconds = self.operation_timeout if seconds is None else seconds
        clock = asyncio.get_running_loop().time
        until = clock() + seconds
        if self.failure is None:
            with contextlib.suppress(LeveretError, TimeoutError):
                async with asyncio.timeout_at(until):
                    return await self()
            self._check_not_closed()
        return await self.within(max(0.0, until - clock()), "operation_timeout", what)

    @property
    def reason(self) -> str:
        """Why the last attempt to connect failed, as the end of an error's text; empty when it did not."""
        return "" if self.failure is None else f"; the last attempt failed: {self.failure}"

    def hurry(self) -> None:
        """Has callers that wait make the next attempt at once: what the broker refused may have changed."""
        self._opened.set()

    @property
    def has_other_nodes(self) -> bool:
        """Whether there is another host to connect to."""
        return len(self._settings.endpoints) > 1

    def change_node(self, connection: Connection) -> None:
        """Drops a connection, so that recovery begins with another host. All that uses it goes on there."""
        if connection is self.connection and self.state is LinkState.OPEN:
            self._left = connection.endpoint
            connection.transport.abort()

    async def close(self, timeout: float | None = None) -> None:
        """Closes the link and its connection. Callers that wait for a connection get `ConnectionClosed`.

        Args:
            timeout: Seconds for the connection to be closed; `close_timeout` by default.
        """
        if self._state is not LinkState.CLOSED:
            self._move(LinkState.CLOSED)
        tasks = [*self._recoveries, *self._attempts]
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            if self.connection is not None:
                await self.connection.close(timeout)

    def drop(self) -> None:
        """Closes the link and its connection without waiting for anything."""
        if self._state is not LinkState.CLOSED:
            self._move(LinkState.CLOSED)
        for task in (*self._recoveries, *self._attempts):
            task.cancel()
        if self.connection is not None:
            # `close` has raised it already; a forked child must not write to its parent's socket.
            with contextlib.suppress(WrongLoopError):
                self.connection.drop()

    # ------------------------------------------------------------------ inside

    def _move(self, state: LinkState) -> None:
        self._state = moved(LINK_TRANSITIONS, self._state, state)

    def _check_not_closed(self) -> None:
        if self._state is LinkState.CLOSED:
            raise ConnectionClosed(f"connection {self.name!r} was closed by this side", reply_code=REPLY_SUCCESS)

    def _first_endpoint(self, lost: Connection | None) -> Endpoint | None:
        left, self._left = self._left, None
        if left is not None:
            others = [endpoint for endpoint in self._settings.endpoints if endpoint != left]
            if others:
                return random.choice(others)  # noqa: S311 - it keeps no secret
        return None if lost is None else lost.endpoint

    async def _dial(self) -> Connection:
        """Makes one attempt, in a task of its own, so that `close` can end it: the caller may be any task."""
        task = asyncio.create_task(self._connect(), name=f"leveret: connect {self.name}")
        self._attempts.add(task)
        task.add_done_callback(self._attempts.discard)
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            task.cancel()
            # Not here: the caller may be cancelled again before the attempt has ended.
            task.add_done_callback(_drop_result)
            await asyncio.wait([task])
            raise
        finally:
            self._tried_at = asyncio.get_running_loop().time()
        if task.cancelled():
            self._check_not_closed()
        try:
            connection = task.result()
        except LeveretError as error:
            self.meter.failed += 1
            self.failure = self.last_error = error
            raise
        self.failure = None
        return connection

    async def _connect(self) -> Connection:
        """Opens a connection, and makes it ready for its first user."""
        lost = self.connection
        connection = await Connection.open(
            self._settings,
            name=self.name,
            credentials=self._credentials,
            on_event=self._on_event,
            first=self._first_endpoint(lost),
        )
        self._log_lowered_limits(connection)
        if self.prepare is not None:
            try:
                await self.prepare(connection, lost)
                if connection.error is not None:
                    raise again(connection.error)
            except BaseException as error:
                # Whoever cancels this does not wait for the broker.
                await connection.close(0 if isinstance(error, asyncio.CancelledError) else None)
                raise
        return connection

    def _log_lowered_limits(self, connection: Connection) -> None:
        """Logs which limits the broker has lowered; as a warning those that the program has set itself."""
        for option in _NEGOTIATED:
            asked, agreed = getattr(self._settings, option.name), getattr(connection.negotiated, option.name)
            if agreed < asked:
                logger.log(
                    logging.INFO if asked == option.default else logging.WARNING,
                    "connection %r: the broker lowered %s from %d to %d",
                    self.name,
                    option.name,
                    asked,
                    agreed,
                )

    async def _wait_for_recovery(self) -> None:
        task = self._recovery
        if task is None:
            self._opened.clear()
            task = self._recovery = asyncio.create_task(self._recover())
            self._recoveries.add(task)
            task.add_done_callback(self._recovery_ended)
        if self.state in (LinkState.LOST, LinkState.IDLE):
            self._move(LinkState.RECOVERING)
        self._waiting += 1
        try:
            # `wait` does not raise the task's error, and does not cancel the task when this caller is cancelled.
            await asyncio.wait([task])
        finally:
            self._waiting -= 1
            if not self._waiting and self._recovery is not None:
                self._recovery.cancel()
                self._forget_recovery()
        if not task.cancelled() and (error := task.exception()) is not None:
            raise again(error) if isinstance(error, LeveretError) else error

    async def _recover(self) -> Connection:
        # A connection that is lost right after it was opened, or wanted again soon after the last caller gave up,
        # continues the sequence: a broker that closes each new connection is not dialed as fast as it does so.
        backoff = self._backoff
        backoff.ran_for(asyncio.get_running_loop().time() - self._tried_at)
        prospect = Prospect.SOON if self.failure is None else prospect_of(self.failure)
        while True:
            if self.connection is not None or self.failure is not None:
                # The wait ends early when another caller has opened a connection meanwhile.
                await set_within(self._opened, backoff.delay(prospect))
            self._opened.clear()
            backoff.count_attempt()
            try:
                lost = self.connection is not None
                connection = await self()
                if lost:
                    logger.info("connection %r is open again, at attempt %d", self.name, backoff.attempts)
                return connection
            except LeveretError as error:
                if self._state is LinkState.CLOSED:
                    raise
                logger.warning("connection %r: attempt %d to recover it failed: %s", self.name, backoff.attempts, error)
                prospect = prospect_of(error)
                if isinstance(error, ConfigurationError) and error.option in _OUTSIDE:
                    prospect = Prospect.SOON
                if prospect is Prospect.NEVER:
                    raise

    def _recovery_ended(self, task: asyncio.Task[Connection]) -> None:
        self._recoveries.discard(task)
        if self._recovery is task:
            self._forget_recovery()
        if not task.cancelled():
            # Marks the exception as retrieved: all callers may have been cancelled in the same turn of the loop.
            task.exception()

    def _forget_recovery(self) -> None:
        self._recovery = None
        if self._state is LinkState.RECOVERING:
            self._move(LinkState.IDLE if self.connection is None else LinkState.LOST)

    def _on_event(self, event: ConnectionEvent) -> None:
        if event.error is not None:
            self.meter.lost += 1
            self.last_error = event.error
        self._registry.connection_event(event)


def _drop_result(attempt: asyncio.Task[Connection]) -> None:
    """Drops the connection of an attempt whose caller is gone."""
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().drop()
