"""Consumes without and with a `GcPolicy`, in turns, and compares CPU and the longest pauses of the event loop.

The broker is the embedded one in a process of its own. The client holds objects, as a service does, and its handler
keeps a record of each of the latest orders. In the scenario `cycles` each record refers to itself, so that only the
collector frees it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from msgspec import Struct
from rich import box
from rich.console import Console
from rich.table import Table

import leveret
from leveret.cli.process import BrokerProcess

if TYPE_CHECKING:
    from collections.abc import Sequence

QUEUE: Final = "gc-policy"
#: The latest orders that the handler keeps.
KEPT: Final = 2000
#: Seconds between two looks at how late the event loop is.
TICK: Final = 0.001
#: Seconds without work before the measurement, so that the publishing does not count.
REST: Final = 0.2
SCENARIOS: Final = ("plain", "cycles")


class Line(Struct):
    """A line of an order."""

    sku: str
    count: int


class Order(Struct):
    """An order: the value of a message."""

    id: int
    customer: str
    lines: list[Line]


class Record:
    """The object that the handler makes of an order."""

    def __init__(self, order: Order, *, cycle: bool) -> None:
        self.order = order
        self.totals = {line.sku: line.count for line in order.lines}
        self.me = self if cycle else None


@dataclass(frozen=True, slots=True)
class Round:
    """The measurements of one round.

    Attributes:
        cpu_us: User and system time of the client per message.
        pause_ms: The longest time for which the event loop came late.
        gc_ms: Time in garbage collections.
        gc_longest_ms: The longest collection.
        collections: The number of collections, by generation.
    """

    cpu_us: float
    pause_ms: float
    gc_ms: float
    gc_longest_ms: float
    collections: tuple[int, ...]


class Collections:
    """Times collections, whether a policy is active or not."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.counts = [0, 0, 0]
        self._began = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.seconds.append(time.perf_counter() - self._began)
            self.counts[info["generation"]] += 1


class Lateness:
    """Measures every millisecond how late the event loop is."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._loop = asyncio.get_running_loop()
        self._due = time.perf_counter() + TICK
        self._timer = self._loop.call_later(TICK, self._look)

    def _look(self) -> None:
        now = time.perf_counter()
        self.longest = max(self.longest, now - self._due)
        self._due = now + TICK
        self._timer = self._loop.call_later(TICK, self._look)

    def stop(self) -> None:
        self._timer.cancel()


async def consume(client: leveret.Client, count: int, scenario: str, policy: leveret.GcPolicy | None) -> Round:
    """Runs one round: fills the queue, then consumes and measures."""
    lines = [Line(f"sku-{number}", number) for number in range(4)]
    async with client.producer() as producer:
        orders = (Order(number, "somebody", lines) for number in range(count))
        (await producer.publish_batch(orders, QUEUE)).raise_for_failures()
    consumer = client.consumer(QUEUE, Order, prefetch=500)
    latest: deque[Record] = deque(maxlen=KEPT)
    seen = 0
    cycle = scenario == "cycles"

    async def handle(order: Order, message: leveret.Message) -> None:
        nonlocal seen
        latest.append(Record(order, cycle=cycle))
        seen += 1
        if seen == count:
            consumer.stop()

    watched = Collections()
    gc.collect()
    async with contextlib.AsyncExitStack() as stack:
        if policy is not None:
            await stack.enter_async_context(policy)
        await asyncio.sleep(REST)
        gc.callbacks.append(watched)
        stack.callback(gc.callbacks.remove, watched)
        lateness = Lateness()
        cpu = time.process_time()
        await consumer.run(handle)
        cpu = time.process_time() - cpu
        lateness.stop()
    return Round(
        cpu * 1e6 / count,
        lateness.longest * 1000,
        sum(watched.seconds) * 1000,
        max(watched.seconds, default=0) * 1000,
        tuple(watched.counts),
    )


async def measure(url: str, count: int, rounds: int, freeze: bool) -> dict[tuple[str, bool], list[Round]]:
    """Runs all rounds. The first of each scenario does not count. Off and on take turns at being first."""
    found: dict[tuple[str, bool], list[Round]] = {(name, on): [] for name in SCENARIOS for on in (False, True)}
    async with leveret.connect(url) as client:
        await client.declare(leveret.Topology().queue(QUEUE))
        for scenario in SCENARIOS:
            for number in range(rounds + 1):
                for on in (False, True) if number % 2 else (True, False):
                    policy = leveret.GcPolicy(freeze=freeze) if on else None
                    result = await consume(client, count, scenario, policy)
                    if number:
                        found[scenario, on].append(result)
        await client.delete_queue(QUEUE)
    return found


def median_ratio(off: Sequence[Round], on: Sequence[Round], name: str) -> str:
    """The median of the ratios within a round, with the lowest and highest."""
    ratios = [getattr(b, name) / max(1e-9, getattr(a, name)) for a, b in zip(off, on, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def show(found: dict[tuple[str, bool], list[Round]], console: Console) -> None:
    """Prints medians and ratios."""
    table = Table(box=box.MARKDOWN)
    for heading in ("orders", "policy", "CPU us/message", "longest pause ms", "in GC ms", "longest GC ms", "gen 0/1/2"):
        table.add_column(heading, justify="left" if heading in {"orders", "policy"} else "right")
    for scenario in SCENARIOS:
        for policy in (False, True):
            rounds = found[scenario, policy]

            def median(name: str, rounds: list[Round] = rounds) -> str:
                return f"{statistics.median(getattr(one, name) for one in rounds):.2f}"

            counts: list[Any] = [
                round(statistics.median(one.collections[generation] for one in rounds)) for generation in range(3)
            ]
            table.add_row(
                scenario,
                "on" if policy else "off",
                *(median(name) for name in ("cpu_us", "pause_ms", "gc_ms", "gc_longest_ms")),
                "/".join(map(str, counts)),
            )
    console.print(table)
    for scenario in SCENARIOS:
        off, on = found[scenario, False], found[scenario, True]
        console.print(
            f"{scenario}, on / off: CPU {median_ratio(off, on, 'cpu_us')}, "
            f"longest pause {median_ratio(off, on, 'pause_ms')}"
        )


def main() -> None:
    """Reads the options, runs, prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000, help="messages in a round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds, at least 5 (default %(default)s)")
    parser.add_argument("--heap", type=int, default=200_000, help="objects the client holds (default %(default)s)")
    parser.add_argument("--no-freeze", action="store_true", help="the policy freezes nothing")
    options = parser.parse_args()
    if options.rounds < 5:
        parser.error("--rounds is at least 5")
    held = [{"id": number, "tags": [number]} for number in range(options.heap // 2)]
    with BrokerProcess() as broker:
        found = leveret.run(measure(broker.url, options.count, options.rounds, not options.no_freeze))
    console = Console(width=120)
    console.print(f"{options.count:,} messages, {options.rounds} rounds of each, {len(held) * 2:,} objects held")
    console.print("medians, and medians of the ratios within a round (lowest to highest)")
    show(found, console)


if __name__ == "__main__":
    main()
