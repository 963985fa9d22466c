"""How many publishings may be unconfirmed at once, when nobody says a number."""

from __future__ import annotations

from typing import Final

__all__ = ["AdaptiveWindow"]

#: A rate is measured for at least so many seconds, and over so many windows of confirms.
_LEAST_SECONDS: Final = 0.1
_LEAST_WINDOWS: Final = 2
#: A larger window is kept when the rate rose by this factor.
_WORTH: Final = 1.05
#: Seconds after a window that was of no use until a larger one is tried again.
_HOLD: Final = 10.0


class AdaptiveWindow:
    """A confirm window that grows while that brings a higher rate.

    A window that is too small leaves the broker idle for a part of each confirm latency; one that is too large only
    makes confirms come later. While publishers wait for the window it is doubled on trial, and kept when the rate of
    confirms rose by a twentieth. It never grows so far that the confirm latency, which is window / rate while the
    window is full (Little's law), would come over a limit.

    It reads no clock: time is passed in.

    Args:
        minimum: What it begins with, and never falls below.
        maximum: What it never exceeds.
        max_latency: The longest confirm latency in seconds that it grows into.

    Attributes:
        limit: The window now.
        latency: The confirm latency in seconds as it was measured last, or 0.
    """

    def __init__(self, minimum: int, maximum: int, max_latency: float) -> None:
        self.limit = minimum
        self.latency = 0.0
        self._maximum = maximum
        self._max_latency = max_latency
        self._since: float | None = None
        self._confirmed = 0
        # While a larger window is on trial: the one before, and its rate.
        self._before = 0
        self._rate = 0.0
        self._hold_until = 0.0

    def update(self, now: float, confirmed: int, *, limited: bool) -> int:
        """Tells how far confirms have come; called when some came.

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
        if seconds < _LEAST_SECONDS or count < _LEAST_WINDOWS * self.limit:
            return self.limit
        rate = count / seconds
        self.latency = self.limit / rate
        if self._before and rate < _WORTH * self._rate:
            self.limit, self._before = self._before, 0
            self._hold_until = now + _HOLD
        elif now >= self._hold_until:
            larger = min(2 * self.limit, self._maximum, int(rate * self._max_latency))
            if larger > self.limit:
                self._before, self._rate, self.limit = self.limit, rate, larger
            else:
                self._before = 0
        self._begin(now, confirmed)
        return self.limit

    def _begin(self, now: float, confirmed: int) -> None:
        self._since, self._confirmed = now, confirmed
