"""The benchmarks, each with the ways of doing it, and the loop that runs them."""

from __future__ import annotations

import gc
import statistics
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from leveret.cli.bench import consuming, publishing, serializing
from leveret.cli.bench.baseline import BASELINE
from leveret.cli.bench.plan import Way
from leveret.cli.bench.results import Row
from leveret.cli.measure import peak_rss_bytes, reset_peak_rss
from leveret.errors import ConfigurationError
from leveret.settings import ConsumerSettings, ProducerSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

    from leveret.cli.bench.plan import Measured, Plan
    from leveret.cli.measure import Figures

    Benchmark = Callable[[Plan, Way], Awaitable[Measured]]

__all__ = ["BENCHMARKS", "NEEDS_NO_BROKER", "Entry", "entries", "medians", "run_benchmarks"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A benchmark and a way of doing it.

    Attributes:
        name: The benchmark's name.
        run: What does it.
        way: The way.
    """

    name: str
    run: Benchmark
    way: Way


def _entry(name: str, run: Benchmark, variant: str, how: str, **options: object) -> Entry:
    return Entry(name, run, Way(variant, how, options))


_PRODUCER: Final = ProducerSettings()
_CONSUMER: Final = ConsumerSettings()
#: In the guide's order, each with default settings first and then tuned; concurrent-publish is an addition.
_ENTRIES: Final = (
    _entry("basic-publish", publishing.basic, "default", "await publish() for each message"),
    _entry(
        *("basic-publish", publishing.enqueued, "tuned", "await enqueue() for each message, and flush() at the end"),
        max_buffered=2000,
    ),
    _entry(
        *("batch-publish", publishing.batches, "default", "publish_batch() for each batch, all started at once"),
        batch_size=_PRODUCER.batch_size,
    ),
    _entry(
        *("batch-publish", publishing.one_batch, "tuned", "one publish_batch() for all messages"),
        batches_in_flight=4,
    ),
    _entry(
        *("concurrent-publish", publishing.by_tasks(200), "default", "200 tasks that await publish()"),
        max_outstanding=_PRODUCER.max_outstanding,
    ),
    _entry(
        *("concurrent-publish", publishing.by_tasks(500), "tuned", "500 tasks that await publish()"),
        max_outstanding=500,
    ),
    _entry("basic-consume", consuming.basic, "default", "one consumer, run()", prefetch=_CONSUMER.prefetch),
    _entry("basic-consume", consuming.basic, "tuned", "one consumer, run()", prefetch=500),
    _entry(
        *("concurrent-consume", consuming.concurrent, "default", "several consumers, run()"),
        prefetch=_CONSUMER.prefetch,
    ),
    _entry("concurrent-consume", consuming.concurrent, "tuned", "several consumers, run()", prefetch=500),
    _entry("serialization", serializing.serialization, "json", "encode and decode with the serializer json"),
    _entry("serialization", serializing.serialization, "msgpack", "encode and decode with the serializer msgpack"),
)

#: The names of the benchmarks.
BENCHMARKS: Final = tuple(dict.fromkeys(entry.name for entry in _ENTRIES))
NEEDS_NO_BROKER: Final = frozenset({"serialization"})


def entries(names: Iterable[str], settings: str, given: Mapping[str, int | None]) -> list[Entry]:
    """Returns what is to be run.

    Args:
        names: Names in `BENCHMARKS`.
        settings: "default", "tuned" or "both".
        given: The command's `batch_size` and `prefetch`. A value replaces that of default rows that have the option,
            and these are then called "given".

    Returns:
        The entries, in the guide's order.
    """
    wanted = frozenset(names)
    left_out = {"default": "tuned", "tuned": "default", "both": ""}[settings]
    found = []
    for entry in _ENTRIES:
        if entry.name in wanted and entry.way.variant != left_out:
            options = {
                option: value
                for option, value in given.items()
                if value is not None and option in entry.way.options and entry.way.variant == "default"
            }
            way = (
                replace(entry.way, variant="given", options={**entry.way.options, **options}) if options else entry.way
            )
            found.append(replace(entry, way=way))
    return found


async def run_benchmarks(plan: Plan, wanted: Sequence[Entry], repeat: int) -> list[Row]:
    """Runs the benchmarks one after the other, and repeats that, so that a slow minute affects all of them.

    Args:
        plan: The options and tools.
        wanted: What to run.
        repeat: How often each runs.

    Returns:
        A row for each. One whose serializer is not installed says so.

    Raises:
        Incomplete: A message was lost or came twice.
        LeveretError: The broker refused something, or the connection was lost.
    """
    found: list[list[Measured]] = [[] for _ in wanted]
    skipped = [""] * len(wanted)
    # The garbage collector would traverse the workload again and again; ordinary programs hold no such list.
    gc.collect()
    gc.freeze()
    try:
        for _ in range(repeat):
            for index, entry in enumerate(wanted):
                if skipped[index]:
                    continue
                reset_peak_rss()
                try:
                    measured = await entry.run(plan, entry.way)
                except ConfigurationError as error:
                    if entry.name not in NEEDS_NO_BROKER:
                        raise
                    skipped[index] = str(error)
                    continue
                measured.figures["peak_rss_mib"] = peak_rss_bytes() / 2**20
                found[index].append(measured)
    finally:
        gc.unfreeze()
    return [_row(entry, len(plan.workload), runs, why) for entry, runs, why in zip(wanted, found, skipped, strict=True)]


def _row(entry: Entry, messages: int, runs: Sequence[Measured], skipped: str) -> Row:
    # The run with the middle rate stands for all in charts.
    middle = sorted(runs, key=lambda run: run.figures["rate_msgs_per_s"] or 0)[(len(runs) - 1) // 2] if runs else None
    options = ", ".join(f"{name}={value}" for name, value in entry.way.options.items())
    return Row(
        name=entry.name,
        variant=entry.way.variant,
        how=f"{entry.way.how}; {options}" if options else entry.way.how,
        messages=messages,
        baseline=BASELINE.rates.get(entry.name),
        median=medians([run.figures for run in runs]) if runs else {},
        runs=[run.figures for run in runs],
        series=middle.series if middle else None,
        latency=middle.latency if middle else None,
        skipped=skipped,
    )


def medians(runs: Sequence[Figures]) -> Figures:
    """Returns the median of each figure over the runs; what cannot be measured is left out of it."""
    found: Figures = {}
    for figure in runs[0]:
        values = [value for run in runs if (value := run[figure]) is not None]
        found[figure] = statistics.median(values) if values else None
    return found
