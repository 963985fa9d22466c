"""When publishings are given up: the deadlines of all messages of a producer, without a timer for each."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from leveret.publishing.outcomes import held_too_long, late

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leveret.errors import LeveretError
    from leveret.publishing.confirms import ConfirmWindow
    from leveret.publishing.publishing import Ticket

__all__ = ["CLOCK_STEPS", "Deadlines"]

#: The clock ticks this many times in the shorter one of the two timeouts. A message is given up at most two ticks late:
#: its call is noted at the tick that follows, and the end of its time is seen at a tick.
CLOCK_STEPS: Final = 40


class Deadlines:
    """The deadlines of the publishings of one producer, by ranges of delivery tags.

    A message has `publish_timeout` from its call to its outcome, and `confirm_timeout` from the moment when the socket
    took it to its confirm, not counting the time without a channel. Most messages are appended during their call and
    get tags in the order of their calls, so it is enough to note at each tick of the producer's clock which tag was the
    highest by then, and behind how many bytes the socket will have taken it. Only messages that waited before they were
    appended have their deadline noted themselves.

    It reads no clock: time is passed in.

    Args:
        publish_timeout: Seconds from the call to the outcome.
        confirm_timeout: Seconds from the writing to the confirm.

    Attributes:
        step: Seconds between two ticks of the clock.
    """

    def __init__(self, publish_timeout: float, confirm_timeout: float) -> None:
        self.step = min(publish_timeout, confirm_timeout) / CLOCK_STEPS
        # When the broker could begin to confirm on this channel, by the loop's clock; None while there is no channel.
        self.confirming_since: float | None = 0.0
        self._publish_timeout = publish_timeout
        # Of each: (time, the highest tag that was called or written by then).
        self._called: deque[tuple[float, int]] = deque()
        self._written: deque[tuple[float, int]] = deque()
        # What waits for the socket: (the bytes that it has to take first, the highest tag among them).
        self._unwritten: deque[tuple[int, int]] = deque()
        self._timeouts = [
            ("publish_timeout", publish_timeout, self._called),
            ("confirm_timeout", confirm_timeout, self._written),
        ]
        # The option with the shorter timeout is the one that the error names.
        self._timeouts.sort(key=lambda timeout: timeout[1])
        # (earliest deadline, latest deadline, first tag, last tag) of messages that waited before they were written.
        self._waited: deque[tuple[float, float, int, int]] = deque()

    def tick(self, now: float, first: int, last: int, sent: tuple[int, int] | None) -> None:
        """Notes the time of a tick.

        Args:
            now: Seconds of a monotonic clock.
            first: The lowest delivery tag without an outcome.
            last: The highest delivery tag.
            sent: `FrameTransport.progress`; None while there is no channel that may bring confirms.
        """
        called, written, unwritten = self._called, self._written, self._unwritten
        for marks in (called, written):
            while marks and marks[0][1] < first:
                marks.popleft()
        if last >= first and (not called or called[-1][1] < last):
            called.append((now, last))
        if sent is not None:
            newest = unwritten or written
            if last >= first and (not newest or newest[-1][1] < last):
                unwritten.append((sent[0], last))
            tag = 0
            while unwritten and unwritten[0][0] <= sent[1]:
                _, tag = unwritten.popleft()
            if tag >= first:
                written.append((now, tag))
        while self._waited and self._waited[0][3] < first:
            self._waited.popleft()

    def limit(self, deadline: float, first: int, last: int) -> None:
        """Notes the deadline of messages that were called some time before they were written.

        Args:
            deadline: When they are given up.
            first: Their first delivery tag.
            last: Their last delivery tag.
        """
        if self._waited:
            earliest, latest, start, end = self._waited[-1]
            low, high = min(earliest, deadline), max(latest, deadline)
            if first == end + 1 and high - low <= self.step:
                self._waited[-1] = (low, high, start, last)
                return
        self._waited.append((deadline, deadline, first, last))

    def lost(self) -> None:
        """Stops `confirm_timeout` until `resent`, because the channel is lost."""
        self.confirming_since = None
        self._written.clear()
        self._unwritten.clear()

    def resent(self, now: float) -> None:
        """Starts `confirm_timeout` anew: all publishings without an outcome were appended for another channel."""
        self.confirming_since = now

    def expire(
        self, now: float, window: ConfirmWindow, *, connected: bool, outage: LeveretError | None = None
    ) -> Iterator[list[Ticket]]:
        """Ends the publishings whose deadline has passed as UNKNOWN, or as NOT_SENT if they were not written yet.

        Args:
            now: As for `tick`.
            window: The publishings without an outcome.
            connected: Whether there is a channel that may bring confirms; the errors say it.
            outage: Why there is no connection, if there is none.

        Yields:
            The finished tickets, as `ConfirmWindow.settle` returns them.
        """
        for option, seconds, marks in self._timeouts:
            last = 0
            while marks and now - marks[0][0] >= seconds:
                _, last = marks.popleft()
            if last >= window.first:
                error = late(option, seconds, connected=connected)
                yield window.expire(last, error, held_too_long(option, seconds, outage)) or []
        passed = [entry for entry in self._waited if entry[1] <= now]
        if passed:
            self._waited = deque(entry for entry in self._waited if entry[1] > now)
            error = late("publish_timeout", self._publish_timeout, connected=connected)
            unsent = held_too_long("publish_timeout", self._publish_timeout, outage)
            for _, _, first, last in passed:
                for tag in range(max(first, window.first), last + 1):
                    yield window.give_up(tag, error, unsent) or []

    def clear(self) -> None:
        """Forgets all deadlines: nothing is in flight."""
        self._called.clear()
        self._written.clear()
        self._unwritten.clear()
        self._waited.clear()
