"""Measures the cost of handling messages in the order of their keys: `make ordered`; see docs/long-runs.md.

The broker is the embedded one, in a process of its own. One queue gets all messages of a fanout exchange. Messages
with the same routing key keep their order. Consumers with and without `ordered_by` take turns. Fails when messages of a
key were handled out of order or two at once, or when the throughput with `ordered_by` is below 0.75 of that without.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import random
import statistics
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asv_bench.programs import advance, execute, judge, progress_bars, screen
from rich.table import Table

import leveret
from leveret.cli.process import BrokerProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

KEYS: Final = 1000
WORKERS: Final = 64
PREFETCH: Final = 500
#: The lowest ratio of the throughput with an order to that without.
BOUND: Final = 0.75
EXCHANGE: Final = "leveret.ordered"
#: The key's number, and the message's number among the messages of its key.
BODY: Final = struct.Struct("!II")
#: Seconds in which a part must be handled.
DEADLINE: Final = 120.0


class Witness:
    """A handler that counts messages out of order, and calls that overlap.

    Attributes:
        handled: Messages so far.
        most: The most calls that ran at once.
        disorder: Messages that were finished out of the order of their key.
        overlaps: Messages whose call began while another message of the same key was being handled.
    """

    def __init__(self) -> None:
        self.handled = self.most = self.disorder = self.overlaps = 0
        self._next = [0] * KEYS
        self._busy = [0] * KEYS
        self._working = 0
        self._due = 0
        self._done = asyncio.Event()

    def expect(self, count: int) -> asyncio.Event:
        """Returns an event that is set when `count` more messages are handled."""
        self._due = self.handled + count
        self._done.clear()
        return self._done

    async def handle(self, body: bytes, message: leveret.Message) -> None:
        """The handler. It waits for one turn of the loop or for two, so that handlers overtake each other."""
        key, number = BODY.unpack(body)
        self._working += 1
        if self._working > self.most:
            self.most = self._working
        if self._busy[key]:
            self.overlaps += 1
        self._busy[key] += 1
        await asyncio.sleep(0)
        if number & 1:
            await asyncio.sleep(0)
        self._busy[key] -= 1
        self._working -= 1
        if number != self._next[key]:
            self.disorder += 1
        self._next[key] = number + 1
        self.handled += 1
        if self.handled == self._due:
            self._done.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The measurements of one consumer.

    Attributes:
        handled: The number of messages.
        seconds: The time that this took, without the time in which the queue was filled.
        cpu: User and system time of this process, in seconds.
        most: The most handlers that were at work at once.
        disorder: Messages out of the order of their key.
        overlaps: Messages that were handled at the same time as another of their key.
    """

    handled: int
    seconds: float
    cpu: float
    most: int
    disorder: int
    overlaps: int

    @property
    def rate(self) -> float:
        """Messages per second."""
        return self.handled / self.seconds

    @property
    def cpu_us(self) -> float:
        """Microseconds of CPU per message."""
        return 1e6 * self.cpu / self.handled


class Source:
    """Fills a queue with messages of random keys, the same for every consumer."""

    def __init__(self, producer: leveret.Producer) -> None:
        self._producer = producer
        self._chance = random.Random(1)
        self._next = [0] * KEYS

    async def fill(self, count: int) -> None:
        """Publishes `count` messages; returns when all are confirmed."""
        for _ in range(count):
            key = self._chance.randrange(KEYS)
            body = BODY.pack(key, self._next[key])
            self._next[key] += 1
            try:
                self._producer.publish_nowait(body, f"key-{key}")
            except leveret.BackpressureError:
                await self._producer.flush()
                self._producer.publish_nowait(body, f"key-{key}")
        await self._producer.flush()


@contextlib.asynccontextmanager
async def new_queue(client: leveret.Client) -> AsyncIterator[str]:
    """Declares a queue that gets every message of the exchange, and deletes it at the end."""
    name = "ordered"
    await client.declare(leveret.Topology().exchange(EXCHANGE, "fanout").queue(name).bind(name, EXCHANGE))
    try:
        yield name
    finally:
        await client.delete_queue(name)


async def measure(client: leveret.Client, ordered: bool, count: int, part: int, progress: Callable[[], None]) -> Result:
    """Runs one consumer. It is paused while the next part is published, which is not measured.

    Args:
        client: Makes the consumer.
        ordered: Whether it keeps the order of each routing key.
        count: Messages in all.
        part: The most messages in the queue.
        progress: Called after each part.
    """
    witness = Witness()
    seconds = cpu = 0.0
    async with contextlib.AsyncExitStack() as stack:
        queue = await stack.enter_async_context(new_queue(client))
        producer = await stack.enter_async_context(client.producer(exchange=EXCHANGE, serializer="bytes"))
        source = Source(producer)
        consumer = client.consumer(
            queue,
            prefetch=PREFETCH,
            concurrency=WORKERS,
            serializer="bytes",
            ordered_by="routing_key" if ordered else None,
        )
        group = await stack.enter_async_context(asyncio.TaskGroup())
        await consumer.subscribe()
        await consumer.pause()
        group.create_task(consumer.run(witness.handle))
        for begin in range(0, count, part):
            size = min(part, count - begin)
            await source.fill(size)
            done = witness.expect(size)
            before, cpu_before = time.perf_counter(), time.process_time()
            await consumer.resume()
            async with asyncio.timeout(DEADLINE):
                await done.wait()
            seconds += time.perf_counter() - before
            cpu += time.process_time() - cpu_before
            await consumer.pause()
            progress()
        consumer.stop()
    return Result(
        handled=witness.handled,
        seconds=seconds,
        cpu=cpu,
        most=witness.most,
        disorder=witness.disorder,
        overlaps=witness.overlaps,
    )


@dataclass(frozen=True, slots=True)
class Found:
    """The result of a run. Each pair is a result without an order and one with an order.

    Attributes:
        rounds: The pair of each round.
        whole: The pair of the consumers that handled all messages.
    """

    rounds: Sequence[tuple[Result, Result]]
    whole: tuple[Result, Result]

    @property
    def ratio(self) -> float:
        """The median of the rounds' ratios. The speed of a machine drifts less within a round than between rounds."""
        return statistics.median(ordered.rate / plain.rate for plain, ordered in self.rounds)

    def problems(self, bound: float) -> list[str]:
        """Returns a sentence for each rule that was broken."""
        found = []
        pairs = [*self.rounds, self.whole]
        ordered = [pair[1] for pair in pairs]
        if disorder := sum(result.disorder for result in ordered):
            found.append(f"{disorder:,} messages were handled out of the order of their key")
        if overlaps := sum(result.overlaps for result in ordered):
            found.append(f"{overlaps:,} messages were handled at the same time as another of their key")
        if not all(pair[0].disorder and pair[0].overlaps for pair in pairs):
            found.append("without ordered_by everything was in order: this run shows nothing")
        if (most := min(result.most for result in ordered)) < WORKERS:
            found.append(f"no more than {most} handlers were at work at once")
        if self.ratio < bound:
            found.append(f"the throughput with ordered_by is {self.ratio:.2f} of that without; {bound:g} is due")
        return found


async def compare(url: str, count: int, part: int, rounds: int, progress: Callable[[], None]) -> Found:
    """Runs all consumers in turn. A first round does not count; with and without an order take turns at being first."""
    pairs: list[tuple[Result, Result]] = []
    async with leveret.connect(url) as client:
        for number in range(rounds + 1):
            pair = {}
            for ordered in (False, True) if number % 2 else (True, False):
                pair[ordered] = await measure(client, ordered, part, part, progress)
            pairs.append((pair[False], pair[True]))
        whole = tuple([await measure(client, ordered, count, part, progress) for ordered in (False, True)])
        await client.delete_exchange(EXCHANGE)
    return Found(pairs[1:], (whole[0], whole[1]))


def show(found: Found) -> Table:
    """Makes the table for the console."""
    shown = Table(title=f"{KEYS:,} keys, {WORKERS} workers, prefetch {PREFETCH}")
    shown.add_column("ordered_by")
    for heading in ("messages", "messages/s", "lowest to highest", "CPU us/message", "out of order", "two at once"):
        shown.add_column(heading, justify="right")
    rounds = [[pair[which] for pair in found.rounds] for which in (0, 1)]
    for results, name in zip([*rounds, found.whole[:1], found.whole[1:]], ["none", "routing_key"] * 2, strict=True):
        rates = [result.rate for result in results]
        shown.add_row(
            name,
            f"{len(results)} x {results[0].handled:,}" if len(results) > 1 else f"{results[0].handled:,}",
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}" if len(results) > 1 else "",
            f"{statistics.median(result.cpu_us for result in results):.2f}",
            f"{sum(result.disorder for result in results):,}",
            f"{sum(result.overlaps for result in results):,}",
        )
    return shown


# ---------------------------------------------------------------------- running


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(prog="make ordered", description=__doc__)
    add = parser.add_argument
    add("--count", type=int, default=1_000_000, help="messages that one consumer handles (default %(default)s)")
    add("--part", type=int, default=100_000, help="messages of a round, and in the queue at most (default %(default)s)")
    add("--rounds", type=int, default=5, help="counted rounds, at least 3 (default %(default)s)")
    add("--bound", type=float, default=BOUND, help="the lowest ratio of throughputs (default %(default)s)")
    options = parser.parse_args(arguments)
    if options.rounds < 3:
        parser.error(f"--rounds is at least 3, not {options.rounds}")
    if not PREFETCH <= options.part <= options.count:
        parser.error(f"--part is {PREFETCH} to --count, not {options.part}")
    return options


def main(arguments: Sequence[str]) -> int:
    """Reads the options, runs, prints, judges.

    Returns:
        The exit status: 1 when an order was not kept, or cost too much.
    """
    options = parse(arguments)
    console = screen()
    with BrokerProcess() as broker, progress_bars(console) as bars:
        bars.add_task("parts", total=2 * (options.rounds + 1 + math.ceil(options.count / options.part)))
        found = leveret.run(compare(broker.url, options.count, options.part, options.rounds, advance(bars)))
    console.print(show(found))
    plain, ordered = found.whole
    console.print(
        f"throughput with ordered_by / without: {found.ratio:.2f} (median of the rounds), "
        f"{ordered.rate / plain.rate:.2f} ({ordered.handled:,} messages)"
    )
    all_well = "no key was out of order, and no two messages of a key were handled at once"
    return judge(console, found.problems(options.bound), all_well)


if __name__ == "__main__":
    execute(main)
