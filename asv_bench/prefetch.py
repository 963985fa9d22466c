"""Compares "auto" with fixed prefetches, by rate and unfinished deliveries: `make prefetch`; see docs/prefetch.md.

The broker is a private RabbitMQ node on the same machine. Handlers only sleep, so CPU time does not matter.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asv_bench.compare import chart
from asv_bench.compare.broker import Queues, rabbitmq
from asv_bench.outputs import Outputs, markdown_page
from asv_bench.programs import choose, execute, facts, progress_bars, screen, versions
from rich.table import Table

import leveret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROUNDS: Final = 5
CONCURRENCY: Final = 10
SIZE: Final = 1024
AUTO: Final = "auto"
FIXED: Final = (1, 5, 10, 20, 50, 100, 200, 1000)
#: Seconds that a handler sleeps; it chooses at random among several.
HANDLERS: Final[dict[str, tuple[float, ...]]] = {
    "1ms": (0.001,),
    "20ms": (0.02,),
    "100ms": (0.1,),
    "mix": (0.001, 0.02, 0.1),
}
#: Seconds that are measured. Handlers of 100 ms finish ten at a time, so one second would be off by a tenth.
MEASURED: Final = {"1ms": 1.0, "20ms": 1.0, "100ms": 2.0, "mix": 2.0}
#: Seconds before the measurement, for a fixed prefetch and for "auto", which must find its size.
WARM: Final = 0.3
WARM_AUTO: Final = 4.0
#: Seconds between two looks at the unfinished deliveries.
LOOK: Final = 0.005
#: A prefetch that reaches this share of the best rate counts as good.
GOOD: Final = 0.9
OUTPUTS: Final = Outputs("prefetch", "unfinished deliveries")


@dataclass(frozen=True, slots=True)
class Point:
    """A measurement: a handler and a prefetch."""

    handler: str
    prefetch: int | str

    @property
    def warm(self) -> float:
        """Seconds that are not measured."""
        return WARM_AUTO if self.prefetch == AUTO else WARM

    @property
    def messages(self) -> int:
        """Messages in the queue: more than a run can finish."""
        seconds = self.warm + MEASURED[self.handler]
        unfinished = 1000 if self.prefetch == AUTO else int(self.prefetch)
        return round(1.1 * seconds * CONCURRENCY / statistics.fmean(HANDLERS[self.handler])) + unfinished


@dataclass(frozen=True, slots=True)
class Sample:
    """The result of one run.

    Attributes:
        rate: Messages finished per second.
        held: Deliveries that were not finished, on average over time.
        prefetch: The prefetch at the end.
    """

    rate: float
    held: float
    prefetch: int


@dataclass(frozen=True, slots=True)
class Row:
    """The result of a point: medians of its runs.

    Attributes:
        point: The point.
        rate: Messages finished per second.
        share: The rate as a share of the best fixed prefetch's.
        held: Deliveries that were not finished, on average over time.
        prefetch: The prefetch at the end.
        samples: Each run.
    """

    point: Point
    rate: float
    share: float
    held: float
    prefetch: int
    samples: tuple[Sample, ...]


# ---------------------------------------------------------------------- measuring


async def consume(url: str, queue: str, point: Point) -> Sample:
    """Runs a consumer, and measures after the warm-up."""
    loop = asyncio.get_running_loop()
    # Every run meets the same messages in the same order.
    chance = random.Random(1)
    times = HANDLERS[point.handler]
    finished = 0

    async def handle(body: bytes, message: leveret.Message) -> None:
        nonlocal finished
        await asyncio.sleep(chance.choice(times))
        finished += 1

    async with leveret.connect(url) as client:
        consumer = client.consumer(queue, prefetch=point.prefetch, concurrency=CONCURRENCY, serializer="bytes")
        running = asyncio.create_task(consumer.run(handle))
        try:
            await asyncio.wait({running}, timeout=point.warm)
            began = last = loop.time()
            before, held = finished, 0.0
            while not running.done() and last < began + MEASURED[point.handler]:
                await asyncio.sleep(LOOK)
                now = loop.time()
                held += consumer.counters()["unsettled"] * (now - last)
                last = now
            rate, held = (finished - before) / (last - began), held / (last - began)
            prefetch = point.prefetch if isinstance(point.prefetch, int) else consumer.prefetch
        finally:
            consumer.stop()
            await running
    if finished + prefetch > point.messages:
        raise RuntimeError(f"{point} has finished {finished} of {point.messages} messages: the queue was empty")
    return Sample(rate, held, prefetch)


def measure(
    points: Sequence[Point], rounds: int, progress: Callable[[Point], None]
) -> tuple[str, dict[Point, list[Sample]]]:
    """Runs all points in turn, round by round, each with a full queue of its own.

    Args:
        points: The points to measure.
        rounds: The number of rounds.
        progress: Called before each run.

    Returns:
        The broker's product and version, and the samples by point and round.
    """
    found: dict[Point, list[Sample]] = {point: [] for point in points}
    with rabbitmq() as address, Queues(address) as queues:
        for _ in range(rounds):
            for point in points:
                progress(point)
                queue = queues.make()
                queues.fill(queue, SIZE, point.messages)
                found[point].append(leveret.run(consume(address.url + "/%2F", queue, point)))
                queues.remove()
        return queues.identity, found


# ---------------------------------------------------------------------- showing


def summarize(found: Mapping[Point, Sequence[Sample]]) -> list[Row]:
    """Medians, and shares of the best fixed prefetch of the same handler."""
    rates = {point: statistics.median(sample.rate for sample in samples) for point, samples in found.items()}
    rows = []
    for point, samples in found.items():
        alike = [other for other in found if other.handler == point.handler]
        best = max(rates[other] for other in [other for other in alike if other.prefetch != AUTO] or alike)
        held = statistics.median(sample.held for sample in samples)
        prefetch = statistics.median_low([sample.prefetch for sample in samples])
        rows.append(Row(point, rates[point], rates[point] / best, held, prefetch, tuple(samples)))
    return rows


def verdicts(rows: Sequence[Row]) -> list[str]:
    """Returns a sentence about the figures of each handler."""
    said = []
    for auto in (row for row in rows if row.point.prefetch == AUTO):
        fixed = [row for row in rows if row.point.handler == auto.point.handler and row.point.prefetch != AUTO]
        good = [row for row in fixed if row.share >= GOOD]
        if good:
            smallest = min(good, key=lambda row: row.prefetch)
            said.append(
                f'Handlers of {text(auto.point)}: "auto" comes to a prefetch of {auto.prefetch:,} and {auto.share:.0%} '
                f"of the best rate, and holds {auto.held:.1f} unfinished deliveries: {auto.held / smallest.held:.2f} "
                f"times as many as {smallest.prefetch:,}, the smallest fixed prefetch that reaches {GOOD:.0%}."
            )
    return said


def text(point: Point) -> str:
    """The handler in words."""
    shown = ", ".join(f"{1000 * seconds:g}" for seconds in HANDLERS[point.handler])
    return f"{shown} ms by chance" if "," in shown else f"{shown} ms"


HEADINGS: Final = ("handler", "prefetch", "messages/s", "lowest to highest", "of the best", "unfinished")


def cells(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """The table's lines."""
    for row in rows:
        auto = row.point.prefetch == AUTO
        rates = [sample.rate for sample in row.samples]
        yield (
            text(row.point),
            f"auto: {row.prefetch:,}" if auto else f"{row.prefetch:,}",
            f"{row.rate:,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            f"{row.share:.2f}",
            f"{row.held:,.1f}",
        )


def table(rows: Sequence[Row]) -> Table:
    """Makes the table for the console."""
    shown = Table(title=f"Consumers with {CONCURRENCY} workers")
    for heading in HEADINGS:
        shown.add_column(heading, justify="left" if heading == HEADINGS[0] else "right")
    for line in cells(rows):
        shown.add_row(*line)
    return shown


def panels(rows: Sequence[Row]) -> list[chart.Panel]:
    """Makes the chart's panels: one for each handler. Bars are faint where the rate is not good."""
    found = []
    for handler in HANDLERS:
        bars = [
            chart.Bar(
                f"{row.point.prefetch} ({row.share:.0%} of the best rate)",
                row.held,
                style="leveret" if row.point.prefetch == AUTO else "bar" if row.share >= GOOD else "ceiling",
            )
            for row in rows
            if row.point.handler == handler
        ]
        if bars:
            found.append(chart.Panel(f"handlers of {text(Point(handler, AUTO))}, by prefetch", bars))
    return found


# ---------------------------------------------------------------------- running


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(prog="make prefetch", description=__doc__)
    add = parser.add_argument
    known = [*map(str, FIXED), AUTO]
    add("--handlers", help=f"some of {', '.join(HANDLERS)} (default: all)")
    add("--prefetches", help=f"some of {', '.join(known)} (default: all)")
    add("--rounds", type=int, default=ROUNDS, help="runs of each (default %(default)s)")
    OUTPUTS.add_options(parser)
    options = parser.parse_args(arguments)
    options.handlers = choose(options.handlers, list(HANDLERS), "handler")
    options.prefetches = choose(options.prefetches, known, "prefetch")
    if options.rounds < 1:
        parser.error(f"--rounds is at least 1, not {options.rounds}")
    OUTPUTS.check(parser, options)
    return options


def main(arguments: Sequence[str]) -> int:
    """Reads the options, measures, shows; returns the exit status."""
    options = parse(arguments)
    console = screen()
    points = [
        Point(handler, AUTO if prefetch == AUTO else int(prefetch))
        for handler in options.handlers
        for prefetch in options.prefetches
    ]
    with progress_bars(console, remaining=True) as bars:
        bar = bars.add_task("measuring", total=len(points) * options.rounds)

        def progress(point: Point) -> None:
            bars.update(bar, description=f"{text(point)}, prefetch {point.prefetch}", refresh=True)
            bars.advance(bar)

        identity, found = measure(points, options.rounds, progress)
        bars.update(bar, description="done", refresh=True)
    rows = summarize(found)
    console.print(table(rows))
    for verdict in verdicts(rows):
        console.print(verdict)
    about = facts(identity, versions("leveret", "uvloop"), options.rounds)
    shortest, longest = min(MEASURED.values()), max(MEASURED.values())
    about["Figures"] = f"medians of {options.rounds} runs, each of {shortest:g} to {longest:g} s"
    OUTPUTS.write(
        options,
        rows,
        about,
        title="Unfinished deliveries in the process, on average (logarithmic; shorter is better)",
        panels=panels(rows),
        markdown=markdown_page(about, verdicts(rows), HEADINGS, cells(rows)),
    )
    return 0


if __name__ == "__main__":
    execute(main)
