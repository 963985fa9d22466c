"""Counts over a sliding window, in memory that does not grow."""

from __future__ import annotations

import math
from typing import Final

__all__ = ["Window"]

#: How many steps the window slides in. More would be finer and slower to add up.
BUCKETS: Final = 10


class Window:
    """Successes and failures of the last `seconds`, to a tenth of them.

    Args:
        seconds: How long they count.
    """

    def __init__(self, seconds: float) -> None:
        self._width = seconds / BUCKETS
        #: Bucket `n` holds what happened from `n * width` on, in place `n % BUCKETS`.
        self._newest = 0
        self._successes = [0.0] * BUCKETS
        self._failures = [0] * BUCKETS

    def add(self, now: float, successes: int, failures: int, seconds: float = 0.0) -> None:
        """Adds results.

        Args:
            now: The time.
            successes: How many calls succeeded, evenly over the last `seconds`.
            failures: How many failed just now.
            seconds: See `successes`; 0 for just now.
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
        """How many calls there were as of the last `add`, and how many of them failed."""
        failures = sum(self._failures)
        # Parts of successes do not add up exactly, and 4.9999999999 calls are 5.
        return round(sum(self._successes) + failures, 6), failures

    def clear(self) -> None:
        """Forgets everything."""
        self._successes = [0.0] * BUCKETS
        self._failures = [0] * BUCKETS

    def _slide(self, number: int) -> None:
        for bucket in range(max(self._newest + 1, number - BUCKETS + 1), number + 1):
            self._successes[bucket % BUCKETS] = 0.0
            self._failures[bucket % BUCKETS] = 0
        self._newest = max(self._newest, number)
