"""The life of a producer: its states, and opening another channel when one is lost."""

from __future__ import annotations

import asyncio
import enum
import logging
from typing import TYPE_CHECKING, Final

from leveret.errors import ChannelClosed, ConfigurationError, LeveretError, OperationTimeout, again
from leveret.publishing.outcomes import not_sent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from leveret.connection.channel import Channel
    from leveret.connection.connection import Connection
    from leveret.connection.link import Link
    from leveret.protocol.recovery import Backoff
    from leveret.settings import ProducerSettings

__all__ = [
    "PRODUCER_TRANSITIONS",
    "ProducerLife",
    "ProducerState",
    "Reopening",
    "first_channel",
    "idle_channel",
    "publishing_channel",
]

logger = logging.getLogger("leveret.publishing")


class ProducerState(enum.Enum):
    """What a producer can do. The page docs/states.md draws the transitions."""

    NEW = enum.auto()
    """It was never opened, or opening failed; `open` may be called."""
    OPENING = enum.auto()
    """`open` waits for the connection and the channel."""
    OPEN = enum.auto()
    """Messages can be written."""
    REOPENING = enum.auto()
    """The channel is lost and another one is being opened. `publish` waits, `publish_nowait` keeps messages for it."""
    DRAINING = enum.auto()
    """`close` waits for the outcomes of what was published. What waits for room is written. No new call may publish."""
    CLOSING = enum.auto()
    """As DRAINING without a channel, or the time of `close` is over. Nothing is written."""
    CLOSED = enum.auto()
    """The end."""
    LOST = enum.auto()
    """There will be no other channel. No call may publish; `close` is still to come."""


#: The states that may follow each state.
PRODUCER_TRANSITIONS: Final[dict[ProducerState, frozenset[ProducerState]]] = {
    ProducerState.NEW: frozenset({ProducerState.OPENING, ProducerState.CLOSING}),
    ProducerState.OPENING: frozenset({ProducerState.NEW, ProducerState.OPEN, ProducerState.CLOSING}),
    ProducerState.OPEN: frozenset({ProducerState.REOPENING, ProducerState.LOST, ProducerState.DRAINING}),
    ProducerState.REOPENING: frozenset({ProducerState.OPEN, ProducerState.LOST, ProducerState.CLOSING}),
    ProducerState.LOST: frozenset({ProducerState.CLOSING}),
    ProducerState.DRAINING: frozenset({ProducerState.CLOSING}),
    ProducerState.CLOSING: frozenset({ProducerState.DRAINING, ProducerState.CLOSED}),
    ProducerState.CLOSED: frozenset(),
}


class ProducerLife:
    """The state of a producer.

    Attributes:
        state: The state.
        error: Why it will never publish again, or None.
    """

    def __init__(self) -> None:
        self.state = ProducerState.NEW
        self.error: LeveretError | None = None

    def move(self, state: ProducerState) -> None:
        """Goes over to another state."""
        assert state in PRODUCER_TRANSITIONS[self.state], f"{self.state.name} -> {state.name}"
        self.state = state

    def at(self, *states: ProducerState) -> bool:
        """Whether it is in one of these states."""
        return self.state in states

    def check_may_open(self) -> None:
        """Refuses to open a producer that is not NEW.

        Raises:
            ConfigurationError: The text says why, and what to do.
        """
        if self.state is ProducerState.OPENING:
            raise ConfigurationError("the producer is being opened by another task")
        if self.state is not ProducerState.NEW:
            raise ConfigurationError(
                "the producer was closed, or lost for good; a producer can be opened once: make another one with "
                "`client.producer(...)`"
            )

    @property
    def writable(self) -> bool:
        """Whether there is a channel to write new messages to."""
        return self.state is ProducerState.OPEN

    @property
    def writes(self) -> bool:
        """Whether there is a channel to write messages to that were published before."""
        return self.error is None and self.at(ProducerState.OPEN, ProducerState.DRAINING)

    @property
    def usable(self) -> bool:
        """Whether it publishes now or may do so later without another call of `open`."""
        return self.error is None and self.at(ProducerState.OPEN, ProducerState.REOPENING)

    @property
    def over(self) -> bool:
        """Whether it takes no new message any more."""
        return self.error is not None or self.at(
            ProducerState.DRAINING, ProducerState.CLOSING, ProducerState.CLOSED, ProducerState.LOST
        )

    @property
    def ended(self) -> bool:
        """Whether it will never write again."""
        return self.error is not None or self.at(ProducerState.CLOSED, ProducerState.LOST)


async def first_channel(
    link: Link, open_channel: Callable[[Connection], Awaitable[Channel]], settings: ProducerSettings, what: str
) -> Channel:
    """Opens a channel; before, it waits for a lost connection to come back, and while the broker blocks publishers.

    Args:
        link: Gives the connection. Without `auto_recovery` a lost one is dialed once.
        open_channel: Opens a channel on a connection.
        settings: All of it may take `publish_timeout`.
        what: What the channel is for; the error says it.

    Raises:
        PublishError: It took longer; the outcome is NOT_SENT, the stage "blocked" while the broker blocks publishers,
            and "connection" otherwise.
        LeveretError: No connection or channel could be opened.
    """
    seconds = settings.publish_timeout
    deadline = asyncio.timeout(seconds)
    lost: LeveretError | None = None
    try:
        async with deadline:
            while True:
                last = link.connection
                dials = last is not None and not last.settings.auto_recovery
                connection = await (link() if dials else link.recovered())
                try:
                    # A blocked broker reads nothing from this connection.
                    await connection.wait_unblocked()
                    return await open_channel(connection)
                except OperationTimeout:
                    if connection.blocked is None:
                        raise
                except LeveretError as error:
                    if connection.error is None or not connection.settings.auto_recovery:
                        raise
                    lost = error
    except TimeoutError:
        # A request has a deadline of its own.
        if not deadline.expired():
            raise
        if link.blocked is not None:
            raise not_sent(
                f"{what} was not open within publish_timeout of {seconds:g} s: the broker blocks publishers: "
                f"{link.blocked}",
                "blocked",
            ) from None
        cause = link.no_connection or lost
        raise not_sent(
            f"{what} had no connection within publish_timeout of {seconds:g} s{f': {cause}' if cause else ''}",
            "connection",
            cause,
        ) from cause


def idle_channel(link: Link, *, confirms: bool) -> Channel | None:
    """Returns a channel that a closed producer has left, when messages can be written to it at once."""
    connection = link.connection
    if not confirms or connection is None or connection.error is not None or connection.blocked is not None:
        return None
    connection.check_loop()
    return connection.confirm_channels.take()


async def publishing_channel(connection: Connection, *, confirms: bool) -> Channel:
    """Opens a channel for a producer."""
    channel = await connection.channel()
    try:
        if confirms:
            await channel.confirm_select()
        if channel.error is not None:
            # Lost right behind the answer; the channel tells its publisher, and has none yet.
            raise again(channel.error)
    except BaseException:
        channel.abandon()
        raise
    return channel


class Reopening:
    """Opens another channel for a producer that lost its channel, in a task of its own.

    Args:
        link: Gives the connection, or the next one when that is lost.
        open_channel: Opens a channel on a connection.
        take_over: Goes on with the channel.
        give_up: Called when there will be no other channel, with the reason.
    """

    def __init__(
        self,
        link: Link,
        open_channel: Callable[[Connection], Awaitable[Channel]],
        take_over: Callable[[Channel], Awaitable[None]],
        give_up: Callable[[LeveretError], None],
    ) -> None:
        self._link = link
        self._open_channel = open_channel
        self._take_over = take_over
        self._give_up = give_up
        self._task: asyncio.Task[None] | None = None
        # Made with the first loss; when the last attempt began, by the loop's clock.
        self._backoff: Backoff | None = None
        self._tried_at = 0.0

    @property
    def task(self) -> asyncio.Task[None] | None:
        """The task that opens another channel, while there is one."""
        return self._task

    def begin(self, *, paced: bool) -> None:
        """Starts to open another channel; an attempt that is under way is cancelled.

        Args:
            paced: Something else sets the pace of repeated losses: the link, for a lost connection, or the caller, who
                published what the broker closed the channel for. Otherwise a channel that is closed right after it
                was opened is opened again after a growing delay, as a connection is.
        """
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.get_running_loop().create_task(self._run(paced), name="leveret producer: reopen")

    def cancel(self) -> None:
        """Ends the attempt, unless it is the caller."""
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()

    def end(self) -> None:
        """Notes that the channel is taken over."""
        self._task = None

    async def _run(self, paced: bool) -> None:
        channel = None
        if not paced:
            await self._wait_for_turn()
        while channel is None:
            connection: Connection | None = None
            try:
                connection = await self._link.recovered()
                channel = await self._open_channel(connection)
            except OperationTimeout as error:
                # A blocked broker does not answer. The request's own deadline paces the attempts.
                logger.warning("a producer tries again to open a channel: %s", error)
            except LeveretError as error:
                if connection is None:
                    self._give_up(error)
                    return
                if connection.error is None:
                    logger.warning("a producer tries again to open a channel: %s", error)
                    await self._wait_for_turn()
                # Otherwise the connection was lost again; `recovered` waits for the next one.
            except Exception as error:
                # A defect in this code must not leave callers waiting.
                logger.exception("a producer could not open another channel")
                self._give_up(ChannelClosed(f"no other channel could be opened: {type(error).__name__}"))
                return
        try:
            await self._take_over(channel)
        except Exception as error:
            logger.exception("a producer could not go on with another channel")
            channel.abandon()
            self._give_up(ChannelClosed(f"no other channel could be used: {type(error).__name__}"))

    async def _wait_for_turn(self) -> None:
        """Waits when the channel before was lost right after it was opened; the first loss costs no time."""
        clock = asyncio.get_running_loop().time
        if self._backoff is None:
            self._backoff = self._link.new_backoff()
        else:
            self._backoff.ran_for(clock() - self._tried_at)
        if self._backoff.attempts:
            await asyncio.sleep(self._backoff.delay())
        self._backoff.count_attempt()
        self._tried_at = clock()
