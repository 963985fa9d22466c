"""How many publishings may be unconfirmed at once, with `max_outstanding="auto"`."""

from __future__ import annotations

from typing import Final

__all__ = ["AdaptiveWindow"]

#: A rate is measured for at least so many seconds, and over so many windows of confirms.
_LEAST_SECONDS: Final = 0.1
_LEAST_WINDOWS: Final = 2
#: How often each of two windows is measured, in turns, before one is chosen.
_TURNS: Final = 3
#: The larger one is chosen when its rate is higher by this factor.
_WORTH: Final = 1.05
#: With this factor it is chosen at once: no broker swings that much.
_CLEAR: Final = 1.5
#: Seconds after a trial that brought nothing until the next; twice as many after each, up to the longest.
_HOLD: Final = 10.0
_LONGEST_HOLD: Final = 320.0


class AdaptiveWindow:
    """A confirm window that grows while that brings a higher rate.

    A window that is too small leaves the broker idle for a part of each confirm latency; one that is too large only
    makes confirms come later. While publishers wait for the window, it is compared with one of twice the size: both are
    used in turns, so that a broker whose rate swings does not decide by chance. The larger one is kept when it was
    faster each time, by a factor of at least 1.05 in total. It never grows so far that the confirm latency, which is
    window / rate while the window is full (Little's law), would exceed a limit. A window that grew is later compared
    with one of half the size in the same way. Comparisons that change nothing become rare.

    It reads no clock: time is passed in.

    Args:
        minimum: Its first size, and the smallest.
        maximum: Its largest size.
        max_latency: The longest confirm latency in seconds that it grows into.

    Attributes:
        limit: The window now.
        latency: The last measured confirm latency in seconds, or 0.
    """

    def __init__(self, minimum: int, maximum: int, max_latency: float) -> None:
        self.limit = minimum
        self.latency = 0.0
        self._minimum = minimum
        self._maximum = maximum
        self._max_latency = max_latency
        self._since: float | None = None
        self._confirmed = 0
        # Publishings of the window before this one are still unconfirmed.
        self._settling = False
        # While two windows are compared: the one before, both sizes, and the rates measured with each.
        self._was = self._small = self._large = 0
        self._rates: dict[int, list[float]] = {}
        self._down = False
        self._hold = _HOLD
        self._hold_until = 0.0

    def update(self, now: float, confirmed: int, *, limited: bool) -> int:
        """Takes the number of confirms; called when some came.

        Args:
            now: Seconds of a monotonic clock.
            confirmed: How many were confirmed so far.
            limited: Whether publishers wait for the window.

        Returns:
            The window from now on.
        """
        if self._since is None or not limited:
            # A rate says something about the window only when nothing else limits it.
            self._begin(now, confirmed)
            return self.limit
        seconds, count = now - self._since, confirmed - self._confirmed
        if self._settling:
            if count >= self.limit:
                self._settling = False
                self._begin(now, confirmed)
            return self.limit
        if seconds < _LEAST_SECONDS or count < _LEAST_WINDOWS * self.limit:
            return self.limit
        before = self.limit
        rate = count / seconds
        self.latency = self.limit / rate
        if not self._rates and now >= self._hold_until:
            self._compare(rate)
        if self._rates:
            self._rates[self.limit].append(rate)
            self.limit = self._small if self.limit == self._large else self._large
            small, large = self._rates[self._small], self._rates[self._large]
            if small and large and min(large) >= _CLEAR * max(small):
                self._choose(now, larger=True)
            elif min(len(small), len(large)) == _TURNS:
                self._choose(now, larger=min(large) > max(small) and sum(large) >= _WORTH * sum(small))
        self._settling = self.limit != before
        self._begin(now, confirmed)
        return self.limit

    def _compare(self, rate: float) -> None:
        """Begins to compare the window with a larger one, or every other time with a smaller one."""
        larger = min(2 * self.limit, self._maximum, int(rate * self._max_latency))
        smaller = max(self._minimum, self.limit // 2)
        self._down = smaller < self.limit and (self._down or larger <= self.limit)
        if self._down:
            self._small, self._large = smaller, self.limit
        elif larger > self.limit:
            self._small, self._large = self.limit, larger
        else:
            return
        self._was = self.limit
        self._rates = {self._small: [], self._large: []}

    def _choose(self, now: float, *, larger: bool) -> None:
        """Ends the comparison."""
        chosen = self._large if larger else self._small
        moved = chosen != self._was
        self.limit = chosen
        self._rates = {}
        if moved:
            self._hold = _HOLD  # and the next one in this direction at once
            return
        self._down = not self._down
        self._hold_until = now + self._hold
        self._hold = min(2 * self._hold, _LONGEST_HOLD)

    def _begin(self, now: float, confirmed: int) -> None:
        self._since, self._confirmed = now, confirmed
