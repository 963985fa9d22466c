"""Latencies: figures and percentile curves, from samples or from a histogram of Leveret's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from leveret.cli.bench.results import Curve
from leveret.cli.measure import percentile

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leveret.cli.bench.results import Between
    from leveret.cli.measure import Figures
    from leveret.plugins.distributions import Distribution

__all__ = ["Counted", "Latencies", "Sampled", "curve_of", "figures_of"]

#: The percentiles that are reported.
_REPORTED: Final = {"p50": 50.0, "p99": 99.0, "p99_9": 99.9, "max": 100.0}
#: Points of a curve from each power of ten to the next: 0 %, 20.6 %, ... 90 %, 92.1 %, ... 99 %.
_POINTS: Final = 10


class Latencies(Protocol):
    """Latencies of one run."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def percentile(self, percent: float) -> float:
        """Returns the milliseconds that so many per cent do not exceed."""
        ...


class Sampled:
    """Latencies that are known one by one. Percentiles are exact, by nearest rank.

    Args:
        samples: Nanoseconds.
    """

    def __init__(self, samples: Iterable[int]) -> None:
        self._ordered = sorted(samples)
        self.count = len(self._ordered)

    def percentile(self, percent: float) -> float:
        """Returns one of the samples, in milliseconds; nothing is interpolated."""
        return percentile(self._ordered, percent) / 1e6


class Counted:
    """Latencies that a histogram counted. Percentiles are right within 3.2 %.

    Args:
        distribution: The histogram's values, in seconds.
    """

    def __init__(self, distribution: Distribution) -> None:
        self._distribution = distribution
        self.count = distribution.count

    def percentile(self, percent: float) -> float:
        """Returns milliseconds."""
        return self._distribution.percentile(percent) * 1e3


def figures_of(latencies: Latencies, measured: Between) -> Figures:
    """Returns the figures of a report, in milliseconds, under names that begin with what was measured."""
    prefix = measured.replace(" ", "_")
    return {f"{prefix}_samples": latencies.count} | {
        f"{prefix}_{name}_ms": latencies.percentile(percent) for name, percent in _REPORTED.items()
    }


def curve_of(latencies: Latencies, measured: Between) -> Curve:
    """Returns the distribution: more points towards the highest, up to the share that a single sample has."""
    percents = []
    point = 0
    while (share := 10 ** (-point / _POINTS)) * latencies.count > 1:
        percents.append(100 * (1 - share))
        point += 1
    percents.append(100.0)
    return Curve(
        measured=measured,
        samples=latencies.count,
        percent=[round(percent, 6) for percent in percents],
        ms=[latencies.percentile(percent) for percent in percents],
    )
