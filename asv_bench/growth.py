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
from asv_bench.cost_points import BATCH, EXCHANGE, KIBIBYTE, MEBIBYTE, PATIENCE, SMALL

import leveret

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.synchronize import Event

    from asv_bench.compare.job import Address
    from asv_bench.cost_points import Point, Stopwatch

#: The queue that consumers share.
QUEUE: Final = "leveret.costs"
#: Unconfirmed messages where queues take turns.
_WINDOW: Final = 1000


def producer_of(client: leveret.Client, **options: Any) -> leveret.Producer[bytes]:
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

        async def work(producer: leveret.Producer[bytes]) -> None:
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
    left = point.count
    done = asyncio.get_running_loop().create_future()

    async def handler(body: bytes, message: leveret.Message) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            done.set_result(None)

    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(leveret.connect(url))
        await client.declare(leveret.Topology().queue(QUEUE, auto_delete=True))
        tasks = []
        for _ in range(point.value):
            consumer = client.consumer(QUEUE, bytes)
            await consumer.subscribe()
            tasks.append(asyncio.create_task(consumer.run(handler)))
        await asyncio.sleep(0)
        with feeding(address, point.count) as begin, watch.running():
            begin()
            await done
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _feed(address: Address, count: int, begin: Event) -> None:
    with wire.Connection(address.host, address.port) as connection:
        channel = connection.open_channel(confirms=True)
        begin.wait()
        wire.publish(connection, channel, QUEUE, bytes(KIBIBYTE), count, 10 * BATCH)


@contextmanager
def feeding(address: Address, count: int) -> Iterator[Callable[[], None]]:
    """A process that publishes messages of 1 KiB to `QUEUE`. Its CPU time is not the client's.

    Returns:
        What lets it begin.
    """
    context = multiprocessing.get_context("fork")
    begin = context.Event()
    process = context.Process(target=_feed, args=(address, count, begin), daemon=True)
    process.start()
    try:
        yield begin.set
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
