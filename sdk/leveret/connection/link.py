"""A link: one place in a client that has a connection, opened when it is first needed and again when it was lost."""

from __future__ import annotations

import asyncio
import enum
import logging
import random
from typing import TYPE_CHECKING, Final

from leveret.connection.channel_pool import ChannelPool
from leveret.connection.connection import Connection
from leveret.errors import ConnectionClosed, LeveretError, again
from leveret.monitoring.meters import ConnectionMeter
from leveret.plugins.interfaces import ConnectionEvent, ConnectionEventKind
from leveret.protocol.recovery import Backoff, may_mend
from leveret.protocol.transitions import moved
from leveret.runtime.tasks import set_within
from leveret.wire.numbers import REPLY_SUCCESS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import ConnectionSettings, Endpoint

__all__ = ["Link", "LinkState"]

logger = logging.getLogger("leveret.client")


class LinkState(enum.Enum):
    """The connection that a link has."""

    IDLE = "no connection was asked for yet"
    OPEN = "an open connection"
    LOST = "a lost connection that no caller waits for"
    RECOVERING = "a lost connection, and a task that dials because callers wait"
    CLOSED = "closed by this side"


#: Which state may follow which. LOST and RECOVERING become OPEN, too, when a caller dials at once (`Link.__call__`).
LINK_TRANSITIONS: Final[Mapping[LinkState, frozenset[LinkState]]] = {
    LinkState.IDLE: frozenset({LinkState.OPEN, LinkState.CLOSED}),
    LinkState.OPEN: frozenset({LinkState.LOST, LinkState.CLOSED}),
    LinkState.LOST: frozenset({LinkState.OPEN, LinkState.RECOVERING, LinkState.CLOSED}),
    LinkState.RECOVERING: frozenset({LinkState.OPEN, LinkState.LOST, LinkState.CLOSED}),
    LinkState.CLOSED: frozenset(),
}


class Link:
    """Gives producers, consumers and channel pools their connection.

    Args:
        settings: How to connect, and how to recover.
        name: The name of its connections, which the broker lists.
        registry: Told of connection events; it makes the backoff policy that the settings name.

    Attributes:
        name: See above.
        meter: Counts its connections.
        connection: The last connection, open or not; None before the first.
        channels: The pool of its connection's channels.

    Raises:
        ConfigurationError, PluginError: There is no backoff policy of this name, or it could not be made.
    """

    def __init__(self, settings: ConnectionSettings, name: str, registry: PluginRegistry) -> None:
        self.name = name
        self.meter = ConnectionMeter()
        self.connection: Connection | None = None
        self.channels = ChannelPool(self, settings)
        self._settings = settings
        self._registry = registry
        policy = settings.recovery_backoff
        self._policy = None if policy is None else registry.backoff_policy(policy).delay
        self._backoff = self.new_backoff()
        self._state = LinkState.IDLE
        self._lock = asyncio.Lock()
        # Wakes the recovery task when another caller has opened a connection.
        self._opened = asyncio.Event()
        # The task that dials now, and cancelled ones that are still finishing.
        self._recovery: asyncio.Task[Connection] | None = None
        self._recoveries: set[asyncio.Task[Connection]] = set()
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
            connection = await self._dial(self._first_endpoint(lost))
            if self.state is LinkState.CLOSED:
                # Closed while it was dialing: `close` has not seen this connection.
                await connection.close()
                self._check_not_closed()
            self.connection = connection
            self._move(LinkState.OPEN)
            self.meter.replace(connection)
            self._opened.set()
            if lost is not None:
                recovered = ConnectionEvent(kind=ConnectionEventKind.RECOVERED, connection_name=self.name)
                self._registry.connection_event(recovered)
            return connection

    async def recovered(self) -> Connection:
        """Returns the open connection, or the one that replaces a lost one, however long that takes.

        All callers wait for the same attempts, which go on until one succeeds or the last caller stops waiting. The
        caller sets the deadline. Cancelling one caller does not disturb the others.

        Raises:
            ConnectionClosed: The link is closed, or the server's refusal is final (reply code 530).
            AuthenticationError, TLSVerificationError, ConfigurationError: Further attempts would end the same way.
            LeveretError: Why the connection was lost, without `auto_recovery`; or why the first connection, which is
                tried once, could not be opened.
        """
        while True:
            self._check_not_closed()
            connection = self.connection
            if connection is None:
                return await self()
            connection.check_loop()
            if self.state is LinkState.OPEN:
                return connection
            if not self._settings.auto_recovery:
                assert connection.error is not None
                raise again(connection.error)
            await self._wait_for_recovery()

    @property
    def has_other_nodes(self) -> bool:
        """Whether there is another host to connect to."""
        return len(self._settings.endpoints) > 1

    def change_node(self, connection: Connection) -> None:
        """Drops a connection, so that recovery begins with another host. All that uses it goes on there."""
        if connection is self.connection and self.state is LinkState.OPEN:
            self._left = connection.endpoint
            connection.transport.abort()

    async def close(self) -> None:
        """Closes the link and its connection. Callers that wait for a connection get `ConnectionClosed`."""
        if self._state is not LinkState.CLOSED:
            self._move(LinkState.CLOSED)
        recoveries = list(self._recoveries)
        for task in recoveries:
            task.cancel()
        try:
            if recoveries:
                await asyncio.wait(recoveries)
        finally:
            if self.connection is not None:
                await self.connection.close()

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

    async def _dial(self, first: Endpoint | None) -> Connection:
        try:
            return await Connection.open(self._settings, name=self.name, on_event=self._on_event, first=first)
        except LeveretError:
            self.meter.failed += 1
            raise
        finally:
            self._tried_at = asyncio.get_running_loop().time()

    async def _wait_for_recovery(self) -> None:
        task = self._recovery
        if task is None:
            self._opened.clear()
            task = self._recovery = asyncio.create_task(self._recover())
            self._recoveries.add(task)
            task.add_done_callback(self._recovery_ended)
        if self.state is LinkState.LOST:
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
        while True:
            # The wait ends early when another caller has opened a connection meanwhile.
            await set_within(self._opened, backoff.delay())
            self._opened.clear()
            backoff.count_attempt()
            try:
                return await self()
            except LeveretError as error:
                if self._state is LinkState.CLOSED:
                    raise
                logger.warning("connection %r: attempt %d to recover it failed: %s", self.name, backoff.attempts, error)
                if not may_mend(error):
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
            self._move(LinkState.LOST)

    def _on_event(self, event: ConnectionEvent) -> None:
        if event.error is not None:
            self.meter.lost += 1
        self._registry.connection_event(event)
