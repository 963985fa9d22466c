"""Axes of `make costs` with more of something: connections, channels, consumers, queues, or held messages.

What one of them costs should not depend on how many there are.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from contextlib import AsyncExitStack, contextmanager
from itertools import cycle, islice, repeat
from typing import TYPE_CHECKING, Any, Final

from asv_bench.compare import wire
from asv_bench.cost_points import BATCH, EXCHANGE, KIBIBYTE, MEBIBYTE, PATIENCE, SMALL, Stopwatch

import leveret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.synchronize import Semaphore

    from asv_bench.compare.job import Address
    from asv_bench.cost_points import Point

#: The queue that consumers share.
QUEUE: Final = "leveret.costs"
#: Unconfirmed messages where queues take turns.
_WINDOW: Final = 1000
#: Messages for each consumer that are not counted.
_FIRST: Final = 20


def producer_of(client: leveret.Client, **options: Any) -> leveret.Producer:
    """Makes a producer whose messages the broker drops."""
    chosen: dict[str, Any] = {"confirm_timeout": PATIENCE, "publish_timeout": PATIENCE, **options}
    return client.producer(exchange=EXCHANGE, mandatory=False, serializer="bytes", **chosen)


async def share(url: str, point: Point, watch: Stopwatch) -> None:
    """`point.value` producers, each with a task, publish batches until all are confirmed.

    Each has a channel of one connection, or a connection.
    """
    body = bytes(KIBIBYTE)
    batches = iter(range(point.count // BATCH))
    async with AsyncExitStack() as stack:
        connections = point.value if point.axis == "connections" else 1
        clients = [await stack.enter_async_context(leveret.connect(url)) for _ in range(connections)]
        producers = [
            await stack.enter_async_context(producer_of(client, batch_size=BATCH))
            for client in islice(cycle(clients), point.value)
        ]

        async def work(producer: leveret.Producer) -> None:
            for _ in batches:
                (await producer.publish_batch(repeat(body, BATCH), "costs")).raise_for_failures()

        # A first batch, because costs that a producer has only once, such as memory for its window, do not count.
        for producer in producers:
            await producer.publish_batch(repeat(body, BATCH), "costs")
        with watch.running():
            async with asyncio.TaskGroup() as group:
                for producer in producers:
                    group.create_task(work(producer))


async def consume(url: str, point: Point, watch: Stopwatch, address: Address) -> None:
    """`point.value` consumers of one queue, each with a channel, handle and acknowledge what a process publishes."""
    left = 0
    done = asyncio.Event()

    async def handler(body: bytes, message: leveret.Message) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.set()

    # First some for each consumer: what one costs only once does not count.
    counts = (_FIRST * point.value, point.count)
    # The process is forked before there is much memory, which both write to then.
    async with AsyncExitStack() as stack:
        go_on = stack.enter_context(feeding(address, counts))
        client = await stack.enter_async_context(leveret.connect(url))
        await client.declare(leveret.Topology().queue(QUEUE, auto_delete=True))
        tasks = []
        for _ in range(point.value):
            consumer = client.consumer(QUEUE, bytes)
            await consumer.subscribe()
            tasks.append(asyncio.create_task(consumer.run(handler)))
        for count in counts:
            left = count
            done.clear()
            with (watch if count == point.count else Stopwatch()).running():
                go_on()
                await done.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _feed(address: Address, counts: tuple[int, ...], turns: Semaphore) -> None:
    with wire.Connection(address.host, address.port) as connection:
        for count in counts:
            channel = connection.open_channel(confirms=True)
            turns.acquire()
            wire.publish(connection, channel, QUEUE, bytes(KIBIBYTE), count, 10 * BATCH)


@contextmanager
def feeding(address: Address, counts: tuple[int, ...]) -> Iterator[Callable[[], None]]:
    """A process that publishes so many messages of 1 KiB to `QUEUE`. Its CPU time is not the client's.

    Returns:
        What lets it publish the next of the counts.
    """
    context = multiprocessing.get_context("fork")
    turns = context.Semaphore(0)
    process = context.Process(target=_feed, args=(address, counts, turns), daemon=True)
    process.start()
    try:
        yield turns.release
        process.join()
    finally:
        process.terminate()
        process.join()


async def address_queues(url: str, point: Point, watch: Stopwatch) -> None:
    """Publishes to `point.value` queues in turn: each has its routing key."""
    body = bytes(SMALL)
    keys = [f"leveret.costs.{number}" for number in range(point.value)]
    async with leveret.connect(url) as client, producer_of(client, max_buffered=_WINDOW) as producer:
        publish = producer.publish_nowait
        for key in keys[:_WINDOW]:
            publish(body, key)
        await producer.flush()
        turns = islice(cycle(keys), point.count)
        with watch.running():
            while part := list(islice(turns, _WINDOW)):
                for key in part:
                    publish(body, key)
                await producer.flush()


async def lose(url: str, point: Point, watch: Stopwatch) -> None:
    """Loses the connection with half of `point.value` messages unconfirmed; the other half comes during the outage.

    An outage with nothing to send again costs as much for any number of messages, so as many of them are subtracted.
    """
    body = bytes(SMALL)
    settings = f"{url}?write_high_watermark={1024 * MEBIBYTE}&recovery_initial_delay=0.02&recovery_max_delay=0.02"
    async with (
        leveret.connect(settings) as client,
        producer_of(
            client,
            max_outstanding=2 * point.value,
            max_buffered=2 * point.value,
            max_outstanding_bytes=1024 * MEBIBYTE,
        ) as producer,
    ):

        async def outage(count: int) -> None:
            for _ in range(count):
                producer.publish_nowait(body, "costs")
            connection = client.connection
            connection.transport.abort()
            # The loop tells of it in its next turn.
            for _ in range(2):
                await asyncio.sleep(0)
            if connection.is_open:
                raise RuntimeError("the connection is not lost")
            # One at least: its confirm says that the outage is over.
            for _ in range(count or 1):
                producer.publish_nowait(body, "costs")
            await producer.flush()

        await outage(point.value // 2)
        with watch.running():
            for _ in range(point.count // point.value):
                await outage(point.value // 2)
        with watch.running(-1):
            for _ in range(point.count // point.value):
                await outage(0)
