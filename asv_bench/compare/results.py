"""Figures of runs, their medians, and ratios of runs that were made in the same round."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from asv_bench.compare.plan import Case, Cell, Runner

#: Names of the peers that ratios refer to.
REFERENCES: Final = {"rabbitmq_c": "rabbitmq-c", "ceiling": "ready-made"}


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of one run.

    Attributes:
        rate: Messages per second.
        cpu_us: User and system CPU time of the client's process, microseconds per message.
        peak_rss_bytes: The peak of the process's resident memory.
        latency_p50_s: Median seconds from publishing, or from when a message was due, to its confirm or its handler;
            None where it is not measured.
        latency_p99_s: The same, but the 99th percentile.
    """

    rate: float
    cpu_us: float
    peak_rss_bytes: int
    latency_p50_s: float | None = None
    latency_p99_s: float | None = None

    @classmethod
    def of(cls, figures: Mapping[str, Any], count: int) -> Sample:
        """Reads the figures of a driver.

        Raises:
            ValueError: The number of messages is not `count`, or a figure is impossible.
            KeyError: A figure is missing.
        """
        if figures["messages"] != count:
            raise ValueError(f"{figures['messages']} messages were measured where {count} were due")
        seconds, cpu = float(figures["seconds"]), float(figures["cpu_seconds"])
        if seconds <= 0 or cpu < 0:
            raise ValueError(f"{seconds} s and {cpu} s of CPU time were measured")
        return cls(
            count / seconds,
            1e6 * cpu / count,
            int(figures["peak_rss_bytes"]),
            figures.get("latency_p50_s"),
            figures.get("latency_p99_s"),
        )


@dataclass(slots=True)
class Series:
    """The runs of one runner in one cell.

    Attributes:
        runner: The runner.
        samples: The samples by round, without the warm-up.
        problem: The reason for missing samples; None when no sample is missing.
    """

    runner: Runner
    samples: dict[int, Sample] = field(default_factory=dict)
    problem: str | None = None

    def median(self, figure: Callable[[Sample], float | None]) -> float | None:
        """The median of a figure over the rounds, or None when there is none."""
        values = [value for sample in self.samples.values() if (value := figure(sample)) is not None]
        return statistics.median(values) if values else None

    def bounds(self, figure: Callable[[Sample], float]) -> tuple[float, float] | None:
        """The lowest and the highest value of a figure, or None when there is none."""
        values = [figure(sample) for sample in self.samples.values()]
        return (min(values), max(values)) if values else None


def ratio(ours: Series, theirs: Series, figure: Callable[[Sample], float]) -> float | None:
    """The median of a figure's ratio within each round that both took part in; None when there is none."""
    pairs = [
        figure(ours.samples[turn]) / base
        for turn in ours.samples.keys() & theirs.samples.keys()
        if (base := figure(theirs.samples[turn]))
    ]
    return statistics.median(pairs) if pairs else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of a table, and of the JSON report. Figures are medians, or None if unknown.

    Attributes:
        case: The case's name.
        title: The case's title.
        size: Bytes of each body.
        peer: The peer's name.
        label: The row's name.
        how: The parts of the client's API that it uses.
        best: Whether it is its client's best way.
        problem: Why there are no figures; None when there are.
        rounds: How many runs were counted.
        rate: Messages per second; None where the case says it.
        cpu_us: CPU microseconds per message.
        cpu_us_low: The lowest of the rounds.
        cpu_us_high: The highest of the rounds.
        peak_rss_bytes: Peak of the resident memory.
        latency_p50_s: Seconds; see `Sample`.
        latency_p99_s: Seconds.
        cpu_to_rabbitmq_c: `cpu_us` to that of rabbitmq-c, in the same rounds; the others likewise.
        rate_to_rabbitmq_c: See above.
        cpu_to_ceiling: See above.
        rate_to_ceiling: See above.
        samples: The rounds.
    """

    case: str
    title: str
    size: int
    peer: str
    label: str
    how: str
    best: bool
    problem: str | None
    rounds: int
    rate: float | None
    cpu_us: float | None
    cpu_us_low: float | None
    cpu_us_high: float | None
    peak_rss_bytes: float | None
    latency_p50_s: float | None
    latency_p99_s: float | None
    cpu_to_rabbitmq_c: float | None
    rate_to_rabbitmq_c: float | None
    cpu_to_ceiling: float | None
    rate_to_ceiling: float | None
    samples: tuple[Sample, ...] = ()


def summarize(cell: Cell, found: Sequence[Series]) -> list[Row]:
    """The rows of a cell, in the order of its runners. The row of a failed runner has its problem and no figures."""
    references = {
        key: series
        for key, name in REFERENCES.items()
        for series in found
        if series.runner.peer.name == name and series.runner.way and series.runner.way.best and not series.problem
    }
    return [_row(cell.case, cell.size, series, references) for series in found]


def _row(case: Case, size: int, series: Series, references: Mapping[str, Series]) -> Row:
    runner = series.runner
    # Figures of a part of the rounds would not be comparable, so a failed runner has none.
    counted = Series(runner) if series.problem is not None else series
    ratios = {
        f"{figure}_to_{key}": ratio(counted, references[key], read) if key in references else None
        for key in REFERENCES
        for figure, read in (("cpu", _cpu_us), ("rate", _rate))
    }
    low, high = counted.bounds(_cpu_us) or (None, None)
    return Row(
        case=case.name,
        title=case.title,
        size=size,
        peer=runner.peer.name,
        label=runner.label,
        how=runner.way.how if runner.way else "",
        best=runner.way is None or runner.way.best,
        problem=series.problem,
        rounds=len(counted.samples),
        rate=None if case.rate else counted.median(_rate),
        cpu_us=counted.median(_cpu_us),
        cpu_us_low=low,
        cpu_us_high=high,
        peak_rss_bytes=counted.median(lambda sample: sample.peak_rss_bytes),
        latency_p50_s=counted.median(lambda sample: sample.latency_p50_s),
        latency_p99_s=counted.median(lambda sample: sample.latency_p99_s),
        cpu_to_rabbitmq_c=ratios["cpu_to_rabbitmq_c"],
        rate_to_rabbitmq_c=None if case.rate else ratios["rate_to_rabbitmq_c"],
        cpu_to_ceiling=ratios["cpu_to_ceiling"],
        rate_to_ceiling=None if case.rate else ratios["rate_to_ceiling"],
        samples=tuple(series.samples[turn] for turn in sorted(series.samples)),
    )


def _rate(sample: Sample) -> float:
    return sample.rate


def _cpu_us(sample: Sample) -> float:
    return sample.cpu_us
