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
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asv_bench.programs import execute, judge, resident_mib, screen
from msgspec import Struct
from rich.progress import Progress
from rich.table import Table

import leveret
from leveret.cli.process import BrokerProcess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from leveret.consuming.acks import AckWindow

#: How far the publisher may be ahead of the consumer, so that the queue stays short.
LEAD: Final = 50_000
BATCH: Final = 1000
PREFETCH: Final = 500
#: Samples of the memory in a run.
SAMPLES: Final = 20


class Order(Struct):
    """An order: the value of a message."""

    id: int
    customer: str


@dataclass(frozen=True, slots=True)
class Sample:
    """A sample that the handler takes during the run.

    Attributes:
        seen: Messages so far.
        client_mib: Resident memory of this process.
        broker_mib: Resident memory of the broker's process.
        objects: Objects of this process that the garbage collector knows.
        alive: Messages among these objects. The handler holds one, so 0 means that messages cannot be counted.
    """

    seen: int
    client_mib: float
    broker_mib: float
    objects: int
    alive: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Remains:
    """The state at the end.

    Attributes:
        counters: The consumer's counters.
        first: The lowest delivery tag that is not settled.
        next_delivery_tag: The tag of the delivery that did not come any more.
        queued: Messages in the queue. Unacknowledged ones came back when the consumer closed its channel.
        alive: Messages in this process once the consumer has ended.
        tasks: Tasks that exist after the client is closed, and did not exist before it was opened.
    """

    counters: Mapping[str, int]
    first: int
    next_delivery_tag: int
    queued: int
    alive: int
    tasks: Sequence[str]


def count_messages(objects: Sequence[object]) -> int:
    """Returns the number of messages among some objects."""
    return sum(type(one) is leveret.Message for one in objects)


async def soak(url: str, broker_pid: int, count: int, console: Console) -> tuple[list[Sample], Remains]:
    """Sends `count` orders through the broker; returns a sample after each twentieth, and the state at the end."""
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
                acks = consumer.meter.acks  # a consumer that has ended has no ack window
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
        alive = count_messages(gc.get_objects())  # no collection before: messages must be freed without one
        queued = await client.delete_queue("soak")
    await asyncio.sleep(0)  # lets tasks end that need only one more turn of the loop
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
    """Returns a sentence for each rule that was broken."""
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
    """Makes the table for the console."""
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
    console = screen()
    with BrokerProcess() as broker:
        began = time.monotonic()
        samples, remains = leveret.run(soak(broker.url, broker.pid, options.count, console))
        seconds = time.monotonic() - began
    console.print(show(samples, options.count, seconds))
    early, late = samples[1].client_mib, samples[-1].client_mib
    return judge(
        console,
        problems(options.count, samples, remains),
        f"the client's memory is flat: {early:.1f} MiB after a tenth, {late:.1f} MiB at the end\n"
        f"delivered {remains.counters['delivered']:,}, acknowledged {remains.counters['acked']:,}, all other counters "
        f"0; delivery tags settled below {remains.first:,}, the next one is {remains.next_delivery_tag:,}; "
        f"left: {remains.queued} messages in the queue, {remains.alive} in memory, {len(remains.tasks)} tasks",
    )


if __name__ == "__main__":
    execute(main)
