"""Leveret, as docs/publishing.md and docs/consuming.md show it: with default settings, and tuned beside it.

With default settings nothing is set but what the messages are: `serializer="bytes"` where the values are ready bytes.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from itertools import cycle, islice, repeat
from typing import TYPE_CHECKING, Any

import msgspec
from asv_bench.compare import steady
from asv_bench.compare.job import (
    CONFIRMED,
    CONSUME,
    HEADER,
    HEADER_TABLE,
    HEADERS,
    ONE_BY_ONE,
    PUBLISH,
    STEADY_CONFIRM,
    STEADY_CONSUME,
    TASKS,
    TUNED,
    Entry,
    headers,
)

import leveret

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from asv_bench.compare.job import Address, Job

TITLE = "leveret"
DISTRIBUTIONS = ("leveret", "uvloop")
run = leveret.run
#: Seconds for a confirm: the broker may have hundreds of MiB to write first.
PATIENCE = 60.0
#: Publishings of one `asyncio.gather`.
GATHERED = 1000


def connect(address: Address) -> Any:
    return leveret.connect(address.url)


def producer(client: leveret.Client) -> leveret.Producer:
    return client.producer(serializer="bytes")


async def publish(client: leveret.Client, job: Job) -> None:
    async with client.producer(serializer="bytes", confirms=False) as producer:
        with job.measured():
            result = await producer.publish_batch(repeat(job.body, job.count), job.queue)
            await producer.close()
    result.raise_for_failures()


async def batch(job: Job, publisher: leveret.Producer, values: Iterable[object]) -> None:
    async with publisher:
        with job.measured():
            result = await publisher.publish_batch(values, job.queue)
    result.raise_for_failures()
    job.check(messages=result.confirmed)


async def confirmed(client: leveret.Client, job: Job) -> None:
    await batch(job, producer(client), repeat(job.body, job.count))


async def confirmed_window(client: leveret.Client, job: Job) -> None:
    window = job.task.window
    publisher = client.producer(
        serializer="bytes",
        batch_size=max(1, window // 2),  # two chunks are in flight
        max_outstanding=window,
        max_buffered=window,
    )
    await batch(job, publisher, repeat(job.body, job.count))


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
    await batch(job, client.producer(), islice(cycle(orders(job.task.size)), job.count))


async def nowait(client: leveret.Client, job: Job) -> None:
    async with producer(client) as publisher:
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


async def side_by_side(
    job: Job, publisher: leveret.Producer, tasks: int, send: Callable[[int], Awaitable[Any]]
) -> None:
    """Calls `send` with the number of each message from tasks that run side by side."""
    numbers = iter(range(job.count))

    async def work() -> None:
        for number in numbers:
            await send(number)

    with job.measured():
        async with asyncio.TaskGroup() as group:
            for _ in range(min(tasks, job.count)):
                group.create_task(work())
    job.check(messages=publisher.counters()["confirmed"])


async def tasks(client: leveret.Client, job: Job, number: int = 0) -> None:
    async with producer(client) as publisher:
        publish, body, queue = publisher.publish, job.body, job.queue
        await side_by_side(job, publisher, number or job.task.window, lambda _: publish(body, queue))


async def gather(client: leveret.Client, job: Job) -> None:
    async with producer(client) as publisher:
        publish, body, queue = publisher.publish, job.body, job.queue
        left = job.count
        with job.measured():
            while left:
                n = min(left, GATHERED)
                await asyncio.gather(*[publish(body, queue) for _ in range(n)])
                left -= n
        job.check(messages=publisher.counters()["confirmed"])


async def header(client: leveret.Client, job: Job) -> None:
    async with producer(client) as publisher:
        publish, body, queue = publisher.publish, job.body, job.queue
        await side_by_side(job, publisher, job.task.window, lambda _: publish(body, queue, headers=HEADER_TABLE))


async def template(client: leveret.Client, job: Job) -> None:
    async with producer(client) as publisher:
        publish, body = publisher.publish, job.body
        made = publisher.template(job.queue, headers=HEADER_TABLE)
        await side_by_side(job, publisher, job.task.window, lambda _: publish(body, made))


async def differing(client: leveret.Client, job: Job) -> None:
    async with producer(client) as publisher:
        publish, body, queue = publisher.publish, job.body, job.queue
        await side_by_side(
            job, publisher, job.task.window, lambda number: publish(body, queue, headers=headers(number))
        )


async def one_by_one(client: leveret.Client, job: Job) -> None:
    now = time.perf_counter
    async with producer(client) as publisher:
        with job.measured():
            for _ in range(job.count):
                start = now()
                await publisher.publish(job.body, job.queue)
                job.latencies.append(now() - start)
        job.check(messages=publisher.counters()["confirmed"])


async def steady_confirm(client: leveret.Client, job: Job) -> None:
    async with producer(client) as publisher:

        async def send(due: int) -> None:
            await publisher.publish(job.body, job.queue)
            steady.note(job, due)

        with steady.Ticks(job) as ticks, job.measured():
            await steady.publish(ticks, send)
        job.check(messages=publisher.counters()["confirmed"])


async def steady_consume(client: leveret.Client, job: Job) -> None:
    consumer = client.consumer(job.queue)

    async def handler(body: bytes, message: leveret.Message) -> None:
        steady.note_body(job, body)
        if len(job.latencies) == job.count:
            consumer.stop()

    async with producer(client) as publisher:

        async def send(due: int) -> None:
            await publisher.publish(steady.stamped(job, due), job.queue)

        with steady.Ticks(job) as ticks, job.measured():
            async with asyncio.TaskGroup() as group:
                group.create_task(consumer.run(handler))
                await steady.publish(ticks, send)
    job.check(messages=len(job.latencies))


async def consume(client: leveret.Client, job: Job, **settings: Any) -> None:
    consumer = client.consumer(job.queue, **settings)
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


async def consume_tuned(client: leveret.Client, job: Job) -> None:
    await consume(client, job, prefetch=job.task.prefetch)


async def consume_typed(client: leveret.Client, job: Job) -> None:
    # The queue's messages say that they are bytes, so the serializer has to be named.
    consumer = client.consumer(job.queue, Order, serializer="json")
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


async def consume_plain(client: leveret.Client, job: Job) -> None:
    consumer = client.consumer(job.queue)
    loop = asyncio.get_running_loop()
    seen = size = 0
    count = job.count

    def handler(value: bytes, message: leveret.Message) -> None:
        nonlocal seen, size
        seen += 1
        size += len(value)
        if seen == count:
            loop.call_soon_threadsafe(consumer.stop)

    with job.measured():
        await consumer.run(handler)
    job.check(messages=seen, size=size)


ENTRIES = (
    Entry(PUBLISH, publish, "publish_batch"),
    Entry(CONFIRMED, confirmed, "publish_batch"),
    Entry(CONFIRMED, confirmed_window, "a window of 1,000"),
    Entry(CONFIRMED, typed, "typed orders as JSON"),
    Entry(CONFIRMED, nowait, "publish_nowait and flush"),
    Entry(TASKS, tasks, "await publish"),
    Entry(TASKS, partial(tasks, number=1000), "1,000 tasks"),
    Entry(TASKS, gather, "gather of 1,000"),
    Entry(HEADER, header, "await publish with headers"),
    Entry(HEADER, template, "a template"),
    Entry(HEADERS, differing, "await publish with headers"),
    Entry(ONE_BY_ONE, one_by_one, "await publish"),
    Entry(CONSUME, consume, "run with an async handler"),
    Entry(CONSUME, consume_tuned, TUNED, cases=("consume-500",)),  # 100 is the default
    Entry(CONSUME, consume_typed, "typed orders from JSON", cases=("consume-100",)),
    Entry(CONSUME, consume_plain, "a plain function as handler", cases=("consume-100",)),
    Entry(STEADY_CONFIRM, steady_confirm, "a task for each message awaits publish"),
    Entry(STEADY_CONSUME, steady_consume, "a task for each message awaits publish, run with an async handler"),
)
NOT_POSSIBLE: dict[str, str] = {}
