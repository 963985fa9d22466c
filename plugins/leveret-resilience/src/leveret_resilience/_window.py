"""Counts calls in a sliding window of constant size in memory."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Window"]

#: The number of steps in which the window slides. More would be more exact and slower to add up.
BUCKETS: Final = 10


class Window:
    """Successes and failures of the last `seconds`, exact to a tenth of that time.

    Args:
        seconds: The length of the window.
    """

    def __init__(self, seconds: float) -> None:
        self._width = seconds / BUCKETS
        #: Bucket `n` counts the calls from `n * width` on. It has the index `n % BUCKETS`.
        self._newest = 0
        self._successes = [0.0] * BUCKETS
        self._failures = [0] * BUCKETS

    def add(self, now: float, successes: int, failures: int, seconds: float = 0.0) -> None:
        """Adds results.

        Args:
            now: The time.
            successes: How many calls succeeded in the last `seconds`. They are spread evenly over that time.
            failures: How many calls failed now.
            seconds: The time of the successes; 0 for now.
        """
        self._slide(math.floor(now / self._width))
        self._failures[self._newest % BUCKETS] += failures
        if seconds <= 0:
            self._successes[self._newest % BUCKETS] += successes
            return
        for number in range(self._newest - BUCKETS + 1, self._newest + 1):
            start, end = number * self._width, (number + 1) * self._width
            shared = min(end, now) - max(start, now - seconds)
            if shared > 0:
                self._successes[number % BUCKETS] += successes * shared / seconds

    def totals(self) -> tuple[float, int]:
        """Returns how many calls the window had at the last `add`, and how many of them failed."""
        failures = sum(self._failures)
        # Rounded, because fractions of successes do not add up exactly.
        return round(sum(self._successes) + failures, 6), failures

    def clear(self) -> None:
        """Clears all counts."""
        self._successes = [0.0] * BUCKETS
        self._failures = [0] * BUCKETS

    def _slide(self, number: int) -> None:
        for bucket in range(max(self._newest + 1, number - BUCKETS + 1), number + 1):
            self._successes[bucket % BUCKETS] = 0.0
            self._failures[bucket % BUCKETS] = 0
        self._newest = max(self._newest, number)
