"""Waiting for room: what keeps a message from being written now, and the queue of callers that wait for its end."""

from __future__ import annotations

import asyncio
import math
from bisect import insort
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from leveret.publishing.lifecycle import ProducerState
from leveret.publishing.outcomes import NO_CHANNEL, held_too_long, not_sent
from leveret.publishing.publishing import Publishing

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.connection.connection import Connection
    from leveret.connection.link import Link
    from leveret.errors import PublishError
    from leveret.monitoring.meters import ProducerMeter
    from leveret.publishing.confirms import ConfirmWindow
    from leveret.publishing.lifecycle import ProducerLife
    from leveret.settings import ProducerSettings
    from leveret.transport.waiting import Waiter, Waiters

__all__ = ["Room", "max_span"]

#: How many times more publishings than unconfirmed ones a window spans at most, from its oldest unconfirmed one.
_SPAN: Final = 8


def max_span(settings: ProducerSettings) -> int:
    """The most publishings from the oldest unconfirmed one to the newest.

    Each of them has a place in the confirm window, confirmed or not. Without a limit one publishing that is not
    confirmed for long would let the window grow with every later one.
    """
    outstanding = 0 if settings.max_outstanding == "auto" else settings.max_outstanding
    return _SPAN * max(settings.max_buffered, outstanding)


class Room:
    """What a producer may write now, and the callers that wait until they may; first come, first served.

    Args:
        life: The producer's state.
        window: Its publishings without an outcome.
        settings: Its options.
        waiters: Make what callers wait for.
        start_clock: Starts the producer's clock, which calls `expire`, unless it runs.
        meter: Counts the messages that get no room.
        write: Appends a message that waited, with the deadline it has.
        link: Knows why there is no connection.

    Attributes:
        limit: How many publishings may be unconfirmed before `publish` waits.
        waiting: The callers that wait for the window: (number of the call, outstanding publishings from which it goes
            on or -1 for the limit at that time, deadline, waiter; its result is False when the deadline came first).
    """

    def __init__(
        self,
        life: ProducerLife,
        window: ConfirmWindow,
        settings: ProducerSettings,
        waiters: Waiters,
        start_clock: Callable[[], None],
        meter: ProducerMeter,
        write: Callable[[Publishing[Any], float], None],
        link: Link,
    ) -> None:
        self.limit = 1
        self.waiting: deque[tuple[int, int, float, Waiter]] = deque()
        self._life = life
        self._window = window
        self._waiters = waiters
        self._start_clock = start_clock
        self._meter = meter
        self._write = write
        self._link = link
        # What waits for the socket or the broker, in the place of all publishings that do.
        self._watching: asyncio.Task[None] | None = None
        self._timeout = settings.publish_timeout
        self._max_bytes = settings.max_outstanding_bytes
        self._max_span = max_span(settings)
        self._confirms = settings.confirms
        self._calls = 0
        self._connection: Connection
        # Unconfirmed publishings and their bytes when the last callers were given up.
        self._at_deadline = (0, 0)
        # Calls of `passed`, with the last call that was in line then.
        self._passing: list[tuple[int, asyncio.Future[None]]] = []
        # The deadlines of callers that wait for the broker or the socket.
        self._flows: set[asyncio.Timeout] = set()

    def use(self, connection: Connection) -> None:
        """Tells the connection that messages are written to."""
        self._connection = connection

    def is_writable(self) -> bool:
        """Whether there is a channel, and neither the broker nor the socket holds publishers up."""
        return self._life.writes and self._connection.obstacle() is None

    def is_full(self, limit: int, *, waits: bool = True) -> bool:
        """Whether there is no room for a message.

        Args:
            limit: The most unconfirmed publishings.
            waits: Its caller waits for the socket too. Others fill the send buffer, which `max_outstanding_bytes`
                limits.
        """
        if self._window.outstanding >= limit or self.has_too_much() or not self._life.writes:
            return True
        return self._connection.obstacle() is not None if waits else self._connection.blocked is not None

    def may_hold(self, limit: int) -> bool:
        """Whether a message may be kept until there is a channel again, with at most `limit` without an outcome."""
        return self._life.at(ProducerState.REOPENING) and self._window.outstanding < limit and not self.has_too_much()

    def has_too_much(self) -> bool:
        """Whether what has no outcome has `max_outstanding_bytes`, or began too many publishings ago."""
        window = self._window
        return window.outstanding_bytes >= self._max_bytes or window.next_delivery_tag - window.first >= self._max_span

    def obstacle(self, limit: int, held_up_by: tuple[int, int] | None = None) -> tuple[str, str]:
        """The stage in which a message is held up, and a text. The stage is empty when it will never be written.

        Args:
            limit: The most unconfirmed publishings, for the text.
            held_up_by: Unconfirmed publishings and their bytes when the wait ended; those of now by default.
        """
        life = self._life
        if life.over:
            return "", "the producer is closed"
        if life.at(ProducerState.NEW, ProducerState.OPENING):
            return "", "the producer is not open"
        if not life.writes:
            return "connection", NO_CHANNEL
        obstacle = self._connection.obstacle()
        if obstacle is not None:
            return obstacle
        return "buffer", self._backlog(limit, held_up_by)

    def overflow(self, limit: int) -> str:
        """Why a message cannot be written or kept now, while the producer may publish again."""
        _, text = self.obstacle(limit)
        return f"{text}; {self._backlog(limit)}" if not self._life.writes else text

    def _backlog(self, limit: int, held_up_by: tuple[int, int] | None = None) -> str:
        window = self._window
        count, size = held_up_by or (window.outstanding, window.outstanding_bytes)
        text = f"{count} publishings of {size} bytes wait for confirms (limit {limit})"
        span = window.next_delivery_tag - window.first
        return text if span < self._max_span else f"{text}, the oldest of them {span} publishings ago"

    def refusal(self) -> PublishError:
        """The error of a message when the producer will never publish again."""
        return not_sent(self.obstacle(0)[1], cause=self._life.error)

    def queue(self, publishing: Publishing[Any], low: int, deadline: float) -> None:
        """Has a message wait that keeps its frames and body; `wake` writes it.

        Args:
            publishing: The message.
            low: As for `wait`.
            deadline: As for `wait`.
        """
        if self._life.ended:
            self._meter.unwritten += 1
            raise self.refusal()
        self._calls += 1
        self.waiting.append((self._calls, low, deadline, publishing))
        self._start_clock()
        self._watch()

    def _watch(self) -> None:
        """Has `wake` called when the socket and the broker take messages again."""
        if self._watching is None and self._life.writes and self._connection.obstacle() is not None:
            self._watching = asyncio.get_running_loop().create_task(self._watch_flow(), name="leveret: waits for room")

    async def _watch_flow(self) -> None:
        try:
            while self.waiting and self._life.writes and self._connection.obstacle() is not None:
                await self._connection.wait_flowing()
        finally:
            self._watching = None
        self.wake()

    async def wait(self, limit: int, low: int, deadline: float) -> None:
        """Waits until the next message may be written.

        A caller that comes while others wait goes behind them. A caller that was woken and finds the room taken goes
        back to its place.

        Args:
            limit: The most unconfirmed publishings, for the error's text.
            low: Unconfirmed publishings from which the caller goes on; -1 for what the window allows by then.
            deadline: When to give up.

        Raises:
            PublishError: The deadline came first, or the producer was closed or lost; the outcome is NOT_SENT.
        """
        life = self._life
        in_time = True
        held_up_by = None
        self._calls += 1
        number = self._calls
        try:
            while in_time:
                if life.ended:
                    self._meter.unwritten += 1
                    raise self.refusal()
                if life.writes and self._connection.obstacle() is not None:
                    in_time = await self._wait_flowing(deadline)
                elif (
                    not life.writes
                    or self._window.outstanding > (low if low >= 0 else self.limit - 1)
                    or self.has_too_much()
                    or (self.waiting and self.waiting[0][0] < number)
                ):
                    waiter = self._waiters.new()
                    insort(self.waiting, (number, low, deadline, waiter))
                    self._start_clock()
                    in_time = await waiter
                    held_up_by = self._at_deadline
                else:
                    return
        except BaseException:
            # It may have been this caller's turn, which passes to the next.
            self.wake()
            raise
        self.wake()
        raise self._late(limit, held_up_by)

    async def _wait_flowing(self, deadline: float) -> bool:
        """Waits for the end of the broker's or the socket's obstacle; returns False when the deadline came first."""
        try:
            async with asyncio.timeout_at(deadline) as flow:
                self._flows.add(flow)
                try:
                    await self._connection.wait_flowing()
                finally:
                    self._flows.discard(flow)
        except TimeoutError:
            return self._life.ended  # then `close` ended the wait
        return True

    def close(self, now: float) -> None:
        """Ends the waits for the broker and the socket."""
        for flow in self._flows:
            if not flow.expired():
                flow.reschedule(now)
        if self._watching is not None:
            self._watching.cancel()
        self.wake()

    def wake(self) -> None:
        """Wakes the callers that may write now, and all of them when the producer will never write again."""
        life, window = self._life, self._window
        over = life.ended
        waiting = self.waiting
        # Callers that are about to add a publishing; without confirms that takes no room.
        turns = 0
        woken = False
        while waiting and (over or life.writes):
            _, low, deadline, waiter = waiting[0]
            if not waiter.done():
                outstanding = window.outstanding + turns
                if not over and (
                    outstanding > (low if low >= 0 else self.limit - 1) or (outstanding and self.has_too_much())
                ):
                    break
                if not isinstance(waiter, Publishing):
                    waiter.set_result(True)
                    turns += self._confirms
                    woken = True
                elif over:
                    self._meter.unwritten += 1
                    waiter.fail(self.refusal())
                elif woken:
                    # The tasks that were woken write first.
                    asyncio.get_running_loop().call_soon(self.wake)
                    break
                elif self._is_held_up(waiter):
                    self._watch()
                    break
                else:
                    self._write(waiter, deadline)
            waiting.popleft()
        self._tell_passed()

    async def passed(self) -> None:
        """Waits until all messages that wait for room now have got it, or have ended without.

        The callers that have several messages, or wait in a task of theirs, are not waited for.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._passing.append((self._calls, future))
        self._tell_passed()
        try:
            await future
        finally:
            self._passing = [entry for entry in self._passing if not entry[1].done()]

    def _tell_passed(self) -> None:
        if self._passing:
            first = next((number for number, *_, waiter in self.waiting if isinstance(waiter, Publishing)), math.inf)
            for number, future in self._passing:
                if number < first and not future.done():
                    future.set_result(None)

    def _is_held_up(self, publishing: Publishing[Any]) -> bool:
        connection = self._connection
        return (connection.blocked if publishing.gives_ticket else connection.obstacle()) is not None

    def expire(self, now: float) -> None:
        """Ends the waits whose deadline has passed, or whose caller was cancelled."""
        waiting = self.waiting
        # Calls come in the order of their deadlines, but for those of further attempts.
        if any(deadline <= now or waiter.done() for _, _, deadline, waiter in waiting):
            ended = [entry for entry in waiting if entry[2] <= now or entry[3].done()]
            left = [entry for entry in waiting if not (entry[2] <= now or entry[3].done())]
            # In place: the compiled publisher looks at this deque.
            waiting.clear()
            waiting.extend(left)
            # What holds them up now: the same tick of the clock may end it, and they go on after that.
            self._at_deadline = (self._window.outstanding, self._window.outstanding_bytes)
            for _, low, _, waiter in ended:
                if isinstance(waiter, Publishing):
                    if not waiter.done():
                        waiter.fail(self._late(low + 1 if low >= 0 else self.limit, self._at_deadline))
                elif not waiter.done():
                    waiter.set_result(False)
            self._tell_passed()

    def _late(self, limit: int, held_up_by: tuple[int, int] | None) -> PublishError:
        """The error of a message whose deadline came while it waited."""
        stage, text = self.obstacle(limit, held_up_by)
        self._meter.unwritten += 1
        if stage == "connection":
            return held_too_long("publish_timeout", self._timeout, self._link.no_connection)
        return not_sent(f"{text}; waited publish_timeout of {self._timeout:g} s", stage, self._life.error)
