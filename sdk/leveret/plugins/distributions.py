"""Distributions: what a histogram of the core held at one time, to be read, added up and subtracted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from leveret.records import dataclass, field

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Distribution", "lower_bound"]

#: The first 32 buckets have a value each; from there on, 16 of equal width share each power of two.
_SHARED: Final = 16


def lower_bound(bucket: int) -> int:
    """Returns the least value of a bucket, in the histogram's own unit; buckets are numbered from 0."""
    if bucket < 2 * _SHARED:
        return bucket
    return (bucket % _SHARED + _SHARED) << (bucket // _SHARED - 1)


@dataclass(frozen=True, slots=True)
class Distribution:
    """How often values of each size came: durations in seconds, or sizes.

    Values are known to a sixteenth of their size, so a percentile is right within 3.2 %. `count`, `total` and `mean`
    are exact. Distributions of the same unit may be added up and subtracted: ``later - earlier`` has the values that
    came between the two.

    Attributes:
        count: How many values came.
        total: Their sum.
        highest: The highest of them; of a difference, an upper bound of it.
        buckets: How many values each bucket has, in ascending order and without the empty ones; see `lower_bound`.
        scale: What a bucket's values are to be multiplied with: 1e-9 for durations, which are counted in nanoseconds.
    """

    count: int = 0
    total: float = 0.0
    highest: float = 0.0
    buckets: dict[int, int] = field(default_factory=dict, repr=False)
    scale: float = field(default=1.0, repr=False)

    def __bool__(self) -> bool:
        return self.count > 0

    @property
    def mean(self) -> float:
        """The average; 0 when no value came."""
        return self.total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Returns the value that so many of a hundred do not exceed; 0 when no value came.

        Raises:
            ValueError: `percent` is not from 0 to 100.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"percent is from 0 to 100, not {percent!r}")
        left = max(1, math.ceil(self.count * percent / 100))
        for bucket, count in self.buckets.items():
            left -= count
            if left <= 0:
                return min(self._middle(bucket), self.highest)
        return self.highest

    def at_most(self, bounds: Iterable[float]) -> list[int]:
        """Returns how many values do not exceed each of these bounds, which are in ascending order.

        A bucket belongs to the first bound that its middle does not exceed.
        """
        found: list[int] = []
        counted = 0
        buckets = list(self.buckets.items())
        for bound in bounds:
            while buckets and self._middle(buckets[0][0]) <= bound:
                counted += buckets.pop(0)[1]
            found.append(counted)
        return found

    def _middle(self, bucket: int) -> float:
        return (lower_bound(bucket) + lower_bound(bucket + 1) - 1) / 2 * self.scale

    def __add__(self, other: Distribution | int) -> Distribution:
        if other == 0:  # what sums and counters begin with
            return self
        if not isinstance(other, Distribution):
            return NotImplemented
        if not other.count or not self.count:
            return self if self.count else other
        buckets = dict(self.buckets)
        for bucket, count in other.buckets.items():
            buckets[bucket] = buckets.get(bucket, 0) + count
        return Distribution(
            self.count + other.count,
            self.total + other.total,
            max(self.highest, other.highest),
            dict(sorted(buckets.items())),
            self.scale,
        )

    __radd__ = __add__

    def __sub__(self, other: Distribution) -> Distribution:
        if not isinstance(other, Distribution):
            return NotImplemented
        buckets = {
            bucket: more for bucket, count in self.buckets.items() if (more := count - other.buckets.get(bucket, 0)) > 0
        }
        highest = min(self.highest, (lower_bound(max(buckets) + 1) - 1) * self.scale) if buckets else 0.0
        return Distribution(
            max(0, self.count - other.count), max(0.0, self.total - other.total), highest, buckets, self.scale
        )
