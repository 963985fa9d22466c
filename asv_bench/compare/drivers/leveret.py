"""Leveret, as docs/publishing.md and docs/consuming.md show it."""

from __future__ import annotations

import asyncio
import time
from itertools import cycle, islice, repeat
from typing import TYPE_CHECKING, Any

import msgspec
from asv_bench.compare.job import CONFIRMED, CONSUME, ONE_BY_ONE, PUBLISH, Entry

import leveret

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asv_bench.compare.job import Address, Job

TITLE = "leveret"
DISTRIBUTIONS = ("leveret", "uvloop")
run = leveret.run
#: Seconds for a confirm: the broker may have hundreds of MiB to write first.
PATIENCE = 60.0
#: Tasks that publish side by side.
TASKS = 1000


def connect(address: Address) -> Any:
    return leveret.connect(address.url)


def producer(client: leveret.Client, job: Job, serializer: str = "bytes") -> leveret.Producer:
    """A producer in confirm mode with at most `window` unconfirmed publishings."""
    window = job.task.window
    return client.producer(
        serializer=serializer,
        batch_size=max(1, window // 2),  # two chunks are in flight
        max_outstanding=window,
        max_buffered=window,
        confirm_timeout=PATIENCE,
        publish_timeout=PATIENCE,
    )


async def publish(client: leveret.Client, job: Job) -> None:
    async with client.producer(serializer="bytes", confirms=False) as producer:
        with job.measured():
            result = await producer.publish_batch(repeat(job.body, job.count), job.queue)
            await producer.close()
    result.raise_for_failures()


async def batch(client: leveret.Client, job: Job, values: Iterable[object], serializer: str) -> None:
    async with producer(client, job, serializer) as publisher:
        with job.measured():
            result = await publisher.publish_batch(values, job.queue)
    result.raise_for_failures()
    job.check(messages=result.confirmed)


async def confirmed(client: leveret.Client, job: Job) -> None:
    await batch(client, job, repeat(job.body, job.count), "bytes")


class Order(msgspec.Struct):
    """The value of the typed entries."""

    id: int
    customer: str
    amount: float
    note: str


def orders(size: int) -> list[Order]:
    """A hundred different orders whose JSON has this many bytes each, or more when an order cannot be so short."""
    found = [Order(100_000 + i, f"C{i:02}", 1 + i / 128, "") for i in range(100)]
    for order in found:
        order.note = "n" * (size - len(msgspec.json.encode(order)))
    return found


async def typed(client: leveret.Client, job: Job) -> None:
    await batch(client, job, islice(cycle(orders(job.task.size)), job.count), "json")


async def nowait(client: leveret.Client, job: Job) -> None:
    async with producer(client, job) as publisher:
        publish_nowait, body, queue = publisher.publish_nowait, job.body, job.queue
        left = job.count
        with job.measured():
            while left:
                try:
                    publish_nowait(body, queue)
                except leveret.BackpressureError:
                    await publisher.flush(PATIENCE)
                else:
                    left -= 1
            await publisher.flush(PATIENCE)
        job.check(messages=publisher.counters()["confirmed"])


async def concurrent(client: leveret.Client, job: Job) -> None:
    async with producer(client, job) as publisher:
        numbers = iter(range(job.count))

        async def work() -> None:
            for _ in numbers:
                await publisher.publish(job.body, job.queue)

        with job.measured():
            async with asyncio.TaskGroup() as group:
                for _ in range(min(TASKS, job.count)):
                    group.create_task(work())
        job.check(messages=publisher.counters()["confirmed"])


async def one_by_one(client: leveret.Client, job: Job) -> None:
    now = time.perf_counter
    async with client.producer(serializer="bytes", confirm_timeout=PATIENCE, publish_timeout=PATIENCE) as publisher:
        with job.measured():
            for _ in range(job.count):
                start = now()
                await publisher.publish(job.body, job.queue)
                job.latencies.append(now() - start)
        job.check(messages=publisher.counters()["confirmed"])


async def consume_typed(client: leveret.Client, job: Job) -> None:
    consumer = client.consumer(job.queue, Order, prefetch=job.task.prefetch, serializer="json")
    seen = 0
    count = job.count

    async def handler(order: Order, message: leveret.Message) -> None:
        nonlocal seen
        seen += order.id == 100_000
        if seen == count:
            consumer.stop()

    with job.measured():
        await consumer.run(handler)
    job.check(messages=seen)


async def consume(client: leveret.Client, job: Job) -> None:
    consumer = client.consumer(job.queue, bytes, prefetch=job.task.prefetch, serializer="bytes")
    seen = size = 0
    count = job.count

    async def handler(value: bytes, message: leveret.Message) -> None:
        nonlocal seen, size
        seen += 1
        size += len(value)
        if seen == count:
            consumer.stop()

    with job.measured():
        await consumer.run(handler)
    job.check(messages=seen, size=size)


ENTRIES = (
    Entry(PUBLISH, publish, "publish_batch"),
    Entry(CONFIRMED, confirmed, "publish_batch"),
    Entry(CONFIRMED, typed, "typed orders as JSON"),
    Entry(CONFIRMED, nowait, "publish_nowait and flush"),
    Entry(CONFIRMED, concurrent, "1,000 tasks await publish"),
    Entry(ONE_BY_ONE, one_by_one, "await publish"),
    Entry(CONSUME, consume, "run with an async handler"),
    Entry(CONSUME, consume_typed, "typed orders from JSON"),
)
NOT_POSSIBLE: dict[str, str] = {}
