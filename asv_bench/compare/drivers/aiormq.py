"""aiormq on uvloop: `basic_publish(wait=False)`, which does not wait for the socket, with one `Basic.Properties`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import aiormq
import uvloop
from asv_bench.compare.job import (
    CONFIRMED,
    CONSUME,
    CONTENT_TYPE,
    HEADER,
    HEADER_TABLE,
    HEADERS,
    ONE_BY_ONE,
    PUBLISH,
    TASKS,
    Entry,
    headers,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aiormq.abc import AbstractConnection, DeliveredMessage
    from asv_bench.compare.job import Address, Job

TITLE = "aiormq"
DISTRIBUTIONS = ("aiormq", "uvloop")
run = uvloop.run
#: Publishings of one `asyncio.gather`.
GATHERED = 1000


@contextlib.asynccontextmanager
async def connect(address: Address) -> AsyncIterator[AbstractConnection]:
    connection = await aiormq.connect(address.url)
    try:
        yield connection
    finally:
        await connection.close()


def properties(table: Any = None) -> aiormq.spec.Basic.Properties:
    """Properties. One object serves all messages that have the same, so that aiormq makes a message_id only once."""
    return aiormq.spec.Basic.Properties(content_type=CONTENT_TYPE, delivery_mode=2, headers=table)


async def open_channel(connection: AbstractConnection, *, confirms: bool) -> aiormq.Channel:
    channel = await connection.channel(publisher_confirms=confirms)
    assert isinstance(channel, aiormq.Channel)  # the abstract one has no `wait`
    return channel


async def publish(connection: AbstractConnection, job: Job) -> None:
    channel = await open_channel(connection, confirms=False)
    send, body, queue, content = channel.basic_publish, job.body, job.queue, properties()
    with job.measured():
        for _ in range(job.count):
            await send(body, routing_key=queue, properties=content, wait=False)
        await channel.close()


async def side_by_side(
    connection: AbstractConnection, job: Job, tasks: int, content: Callable[[int], aiormq.spec.Basic.Properties]
) -> None:
    """Publishes from tasks that run side by side; `content` gets the number of each message."""
    channel = await open_channel(connection, confirms=True)
    send, body, queue = channel.basic_publish, job.body, job.queue
    numbers = iter(range(job.count))
    done = 0

    async def work() -> None:
        nonlocal done
        for number in numbers:
            await send(body, routing_key=queue, properties=content(number), wait=False)
            done += 1

    with job.measured():
        await asyncio.gather(*(work() for _ in range(min(tasks, job.count))))
    job.check(messages=done)
    await channel.close()


async def confirmed(connection: AbstractConnection, job: Job, tasks: int = 0, table: Any = None) -> None:
    content = properties(table)
    await side_by_side(connection, job, tasks or job.task.window, lambda _: content)


async def differing(connection: AbstractConnection, job: Job) -> None:
    await side_by_side(connection, job, job.task.window, lambda number: properties(headers(number)))


async def gather(connection: AbstractConnection, job: Job) -> None:
    channel = await open_channel(connection, confirms=True)
    content, left = properties(), job.count

    def send() -> Awaitable[Any]:
        return channel.basic_publish(job.body, routing_key=job.queue, properties=content, wait=False)

    with job.measured():
        while left:
            n = min(left, GATHERED)
            await asyncio.gather(*[send() for _ in range(n)])
            left -= n
    await channel.close()


async def one_by_one(connection: AbstractConnection, job: Job) -> None:
    now = time.perf_counter
    channel = await open_channel(connection, confirms=True)
    send, body, queue, content = channel.basic_publish, job.body, job.queue, properties()
    with job.measured():
        for _ in range(job.count):
            start = now()
            await send(body, routing_key=queue, properties=content, wait=False)
            job.latencies.append(now() - start)
    await channel.close()


async def consume(connection: AbstractConnection, job: Job) -> None:
    channel = await connection.channel()
    await channel.basic_qos(prefetch_count=job.task.prefetch)
    seen = size = 0
    count, ack_every = job.count, job.task.ack_every
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def handler(received: DeliveredMessage) -> None:
        nonlocal seen, size
        seen += 1
        size += len(received.body)
        if seen % ack_every == 0 or seen == count:
            tag = received.delivery_tag
            assert tag is not None
            await channel.basic_ack(tag, multiple=True, wait=False)
            if seen == count:
                done.set_result(None)

    with job.measured():
        await channel.basic_consume(job.queue, handler)
        await done
        await channel.close()
    job.check(messages=seen, size=size)


ENTRIES = (
    Entry(PUBLISH, publish, "basic_publish(wait=False)"),
    Entry(CONFIRMED, confirmed, "as many tasks as the window, which await basic_publish(wait=False)"),
    Entry(TASKS, confirmed, "await basic_publish(wait=False)"),
    Entry(TASKS, partial(confirmed, tasks=1000), "1,000 tasks"),
    Entry(TASKS, gather, "gather of 1,000"),
    Entry(HEADER, partial(confirmed, table=HEADER_TABLE), "await basic_publish, one Properties with headers"),
    Entry(HEADERS, differing, "await basic_publish, Properties with headers each"),
    Entry(ONE_BY_ONE, one_by_one, "await basic_publish(wait=False)"),
    Entry(CONSUME, consume, "basic_consume with a coroutine function, multiple basic.ack"),
)
NOT_POSSIBLE: dict[str, str] = {}
