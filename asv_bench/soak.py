"""Publishes and consumes millions of messages and watches the memory of both processes: `make soak`.

The broker is the embedded one, in its own process; see docs/long-runs.md. Fails when the client's resident memory is
more than 5 % + 4 MiB higher at the end than after the first tenth, and when anything is left at the end that should not
be: a task, a message in memory or in the queue, an unsettled delivery, a counter that does not add up.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from msgspec import Struct
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import leveret

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from leveret.consuming.acks import AckWindow

#: How far the publisher may be ahead of the consumer, so that the queue stays short.
LEAD: Final = 50_000
BATCH: Final = 1000
PREFETCH: Final = 500
#: So often it looks at memory.
SAMPLES: Final = 20
#: Columns of tables that go to a file.
WIDTH: Final = 120


class Order(Struct):
    """What is sent."""

    id: int
    customer: str


@dataclass(frozen=True, slots=True)
class Sample:
    """What was seen on the way, in a handler.

    Attributes:
        seen: Messages so far.
        client_mib: Resident memory of this process.
        broker_mib: That of the broker.
        objects: Objects of this process that the garbage collector knows.
        alive: How many of them are messages. The handler has one in hand, so 0 means that they cannot be counted.
    """

    seen: int
    client_mib: float
    broker_mib: float
    objects: int
    alive: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """What is left at the end.

    Attributes:
        counters: The consumer's.
        first: The lowest delivery tag that is not settled.
        next_delivery_tag: The tag of the delivery that did not come any more.
        queued: Messages that the broker has: what was not acknowledged came back when the consumer closed its channel.
        alive: Messages in this process once the consumer has ended.
        tasks: Tasks once the client is closed that were not there before it was opened.
    """

    counters: Mapping[str, int]
    first: int
    next_delivery_tag: int
    queued: int
    alive: int
    tasks: Sequence[str]


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def count_messages(objects: Sequence[object]) -> int:
    """How many of some objects are messages."""
    return sum(type(one) is leveret.Message for one in objects)


async def soak(url: str, broker_pid: int, count: int, console: Console) -> tuple[list[Sample], Remains]:
    """Sends `count` orders through the broker; returns what it saw after each twentieth, and what was left."""
    samples: list[Sample] = []
    seen = 0
    acks: AckWindow | None = None
    ahead = asyncio.Semaphore(LEAD // BATCH)
    tasks = asyncio.all_tasks()
    async with leveret.connect(url) as client, client.producer() as producer:
        await client.declare(leveret.Topology().queue("soak"))
        consumer = client.consumer("soak", Order, prefetch=PREFETCH)

        async def handler(order: Order, message: leveret.Message) -> None:
            nonlocal seen, acks
            if order.id != seen:
                raise SystemExit(f"order {order.id} came where {seen} was due")
            seen += 1
            if seen % BATCH == 0:
                ahead.release()
            if seen % (count // SAMPLES) == 0:
                objects = gc.get_objects()
                memory = resident_mib(os.getpid()), resident_mib(broker_pid)
                samples.append(Sample(seen, *memory, len(objects), count_messages(objects)))
            if seen == count:
                acks = consumer.meter.acks  # at its end the consumer has none
                consumer.stop()

        with Progress(console=console, speed_estimate_period=1) as progress:  # it keeps an object for each update
            task = progress.add_task("messages", total=count)
            running = asyncio.create_task(consumer.run(handler))
            for start in range(0, count, BATCH):
                await ahead.acquire()
                result = await producer.publish_batch(
                    [Order(i, "somebody") for i in range(start, min(start + BATCH, count))], "soak"
                )
                result.raise_for_failures()
                if start % 20_000 == 0:
                    progress.update(task, completed=seen)
            await running
            progress.update(task, completed=seen)
        alive = count_messages(gc.get_objects())  # without a collection: nothing waits for one
        queued = await client.delete_queue("soak")
    await asyncio.sleep(0)  # what only needs its turn to end is not left behind
    assert acks is not None
    return samples, Remains(
        counters=consumer.counters(),
        first=acks.first,
        next_delivery_tag=acks.next_delivery_tag,
        queued=queued,
        alive=alive,
        tasks=[repr(task) for task in asyncio.all_tasks() - tasks],
    )


def problems(count: int, samples: Sequence[Sample], remains: Remains) -> list[str]:
    """Says what does not hold."""
    found = []
    early, late = samples[1].client_mib, samples[-1].client_mib
    if late > early * 1.05 + 4:
        found.append(f"the client grew from {early:.1f} to {late:.1f} MiB")
    alive = [sample.alive for sample in samples]
    if not all(0 < number <= PREFETCH for number in alive):
        found.append(f"{min(alive)} to {max(alive)} messages were alive on the way, where 1 to {PREFETCH} are due")
    due = dict.fromkeys(remains.counters, 0) | {"delivered": count, "acked": count}
    found += [
        f"the counter {name} is {number:,}, where {due[name]:,} is due"
        for name, number in remains.counters.items()
        if number != due[name]
    ]
    if not remains.first == remains.next_delivery_tag == count + 1:
        found.append(
            f"delivery tags are settled below {remains.first:,} and expected from {remains.next_delivery_tag:,} on, "
            f"where both should be {count + 1:,}"
        )
    if remains.queued:
        found.append(f"the broker still has {remains.queued:,} messages")
    if remains.alive:
        found.append(f"{remains.alive:,} messages are alive after the consumer's end")
    found += [f"a task is left: {task}" for task in remains.tasks]
    return found


def show(samples: Sequence[Sample], count: int, seconds: float) -> Table:
    """For the console."""
    shown = Table(title=f"{count:,} messages, published, confirmed, consumed, acknowledged in {seconds:,.0f} s")
    for heading in ("messages", "client RSS MiB", "broker RSS MiB", "client's tracked objects", "of them messages"):
        shown.add_column(heading, justify="right")
    for sample in samples:
        shown.add_row(
            f"{sample.seen:,}",
            f"{sample.client_mib:.1f}",
            f"{sample.broker_mib:.1f}",
            f"{sample.objects:,}",
            f"{sample.alive:,}",
        )
    return shown


def main(arguments: Sequence[str]) -> int:
    """Reads the options, runs, prints, judges.

    Returns:
        The exit status: 1 when memory grew or something was left.
    """
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--count", type=int, default=5_000_000, help="messages, 20 or more (default 5000000)")
    options = parser.parse_args(arguments)
    if options.count < SAMPLES:
        parser.error(f"--count is at least {SAMPLES}, not {options.count}")
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    command = [sys.executable, "-m", "leveret.broker", "--port", "0"]
    broker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert broker.stdout is not None
        url = broker.stdout.readline().strip()
        began = time.monotonic()
        samples, remains = leveret.run(soak(url, broker.pid, options.count, console))
        seconds = time.monotonic() - began
    finally:
        broker.terminate()
        broker.wait(10)
    console.print(show(samples, options.count, seconds))
    found = problems(options.count, samples, remains)
    for problem in found:
        console.print(problem, style="red", markup=False)
    if found:
        return 1
    early, late = samples[1].client_mib, samples[-1].client_mib
    console.print(f"the client's memory is flat: {early:.1f} MiB after a tenth, {late:.1f} MiB at the end")
    console.print(
        f"delivered {remains.counters['delivered']:,}, acknowledged {remains.counters['acked']:,}, all other counters "
        f"0; delivery tags settled below {remains.first:,}, the next one is {remains.next_delivery_tag:,}; "
        f"left: {remains.queued} messages in the queue, {remains.alive} in memory, {len(remains.tasks)} tasks"
    )
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
