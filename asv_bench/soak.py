"""Publishes and consumes millions of messages and watches the memory of both processes: `make soak`.

The broker is the embedded one, in its own process. Fails when the client's resident memory is more than 5 % + 4 MiB
higher at the end than after the first tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import subprocess
import sys
from pathlib import Path

from msgspec import Struct
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import leveret

#: How far the publisher may be ahead of the consumer, so that the queue stays short.
LEAD = 50_000
BATCH = 1000


class Order(Struct):
    """What is sent."""

    id: int
    customer: str


def resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


async def soak(url: str, broker_pid: int, count: int, console: Console) -> list[tuple[int, float, float, int]]:
    """Sends `count` orders through the broker.

    Returns (messages, client MiB, broker MiB, the client's tracked objects) after each twentieth.
    """
    samples: list[tuple[int, float, float, int]] = []
    seen = 0
    ahead = asyncio.Semaphore(LEAD // BATCH)
    async with leveret.connect(url) as client, client.producer() as producer:
        await client.declare(leveret.Topology().queue("soak"))
        consumer = client.consumer("soak", Order, prefetch=500)

        async def handler(order: Order, message: leveret.Message) -> None:
            nonlocal seen
            if order.id != seen:
                raise SystemExit(f"order {order.id} came where {seen} was due")
            seen += 1
            if seen % BATCH == 0:
                ahead.release()
            if seen % (count // 20) == 0:
                samples.append((seen, resident_mib(os.getpid()), resident_mib(broker_pid), len(gc.get_objects())))
            if seen == count:
                consumer.stop()

        with Progress(console=console) as progress:
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
        await client.delete_queue("soak")
    return samples


def main() -> None:
    """Reads the options, runs, prints, judges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5_000_000, help="messages (default 5000000)")
    options = parser.parse_args()
    console = Console()
    command = [sys.executable, "-m", "leveret.broker", "--port", "0"]
    broker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert broker.stdout is not None
        url = broker.stdout.readline().strip()
        samples = leveret.run(soak(url, broker.pid, options.count, console))
    finally:
        broker.terminate()
        broker.wait(10)
    table = Table(title=f"{options.count:,} messages, published, confirmed, consumed, acknowledged")
    for heading in ("messages", "client RSS MiB", "broker RSS MiB", "client's tracked objects"):
        table.add_column(heading, justify="right")
    for messages, client, server, objects in samples:
        table.add_row(f"{messages:,}", f"{client:.1f}", f"{server:.1f}", f"{objects:,}")
    console.print(table)
    early, late = samples[1][1], samples[-1][1]
    if late > early * 1.05 + 4:
        raise SystemExit(f"the client grew from {early:.1f} to {late:.1f} MiB")
    console.print(f"the client's memory is flat: {early:.1f} MiB after a tenth, {late:.1f} MiB at the end")


if __name__ == "__main__":
    main()
