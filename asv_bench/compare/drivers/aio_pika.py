"""aio-pika on uvloop: `connect` (the robust connection costs more), one `Message` that is published again and again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import aio_pika
import uvloop
from asv_bench.compare import steady
from asv_bench.compare.job import (
    CONFIRMED,
    CONSUME,
    CONTENT_TYPE,
    HEADER,
    HEADER_TABLE,
    HEADERS,
    ONE_BY_ONE,
    PUBLISH,
    STEADY_CONFIRM,
    STEADY_CONSUME,
    TASKS,
    Entry,
    headers,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
    from asv_bench.compare.job import Address, Job

TITLE = "aio-pika"
DISTRIBUTIONS = ("aio-pika", "aiormq", "uvloop")
run = uvloop.run
#: Publishings of one `asyncio.gather`.
GATHERED = 1000


@contextlib.asynccontextmanager
async def connect(address: Address) -> AsyncIterator[AbstractConnection]:
    async with await aio_pika.connect(address.url) as connection:
        yield connection


def message(body: bytes, table: Any = None) -> aio_pika.Message:
    return aio_pika.Message(
        body, headers=table, content_type=CONTENT_TYPE, delivery_mode=aio_pika.DeliveryMode.PERSISTENT
    )


async def publish(connection: AbstractConnection, job: Job) -> None:
    channel = await connection.channel(publisher_confirms=False)
    send, content = channel.default_exchange.publish, message(job.body)
    with job.measured():
        for _ in range(job.count):
            await send(content, job.queue, mandatory=False)
        await channel.close()


async def side_by_side(job: Job, tasks: int, send: Callable[[int], Awaitable[Any]]) -> None:
    """Calls `send` with the number of each message from tasks that run side by side."""
    numbers = iter(range(job.count))
    done = 0

    async def work() -> None:
        nonlocal done
        for number in numbers:
            await send(number)
            done += 1

    with job.measured():
        await asyncio.gather(*(work() for _ in range(min(tasks, job.count))))
    job.check(messages=done)


async def confirmed(connection: AbstractConnection, job: Job, tasks: int = 0, table: Any = None) -> None:
    async with connection.channel() as channel:
        publish, content = channel.default_exchange.publish, message(job.body, table)
        await side_by_side(job, tasks or job.task.window, lambda _: publish(content, job.queue, mandatory=False))


async def differing(connection: AbstractConnection, job: Job) -> None:
    async with connection.channel() as channel:
        publish = channel.default_exchange.publish

        def send(number: int) -> Awaitable[Any]:
            return publish(message(job.body, headers(number)), job.queue, mandatory=False)

        await side_by_side(job, job.task.window, send)


async def gather(connection: AbstractConnection, job: Job) -> None:
    async with connection.channel() as channel:
        send, content = channel.default_exchange.publish, message(job.body)
        left = job.count
        with job.measured():
            while left:
                n = min(left, GATHERED)
                await asyncio.gather(*[send(content, job.queue, mandatory=False) for _ in range(n)])
                left -= n


async def steady_confirm(connection: AbstractConnection, job: Job) -> None:
    async with connection.channel() as channel:
        publish, content = channel.default_exchange.publish, message(job.body)

        async def send(due: int) -> None:
            await publish(content, job.queue, mandatory=False)
            steady.note(job, due)

        with steady.Ticks(job) as ticks, job.measured():
            await steady.publish(ticks, send)
    job.check(messages=len(job.latencies))


async def steady_consume(connection: AbstractConnection, job: Job) -> None:
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    consuming = await connection.channel()
    await consuming.set_qos(job.task.prefetch)
    queue = await consuming.get_queue(job.queue, ensure=False)

    async def handler(received: AbstractIncomingMessage) -> None:
        steady.note_body(job, received.body)
        seen = len(job.latencies)
        if seen % job.task.ack_every == 0 or seen == job.count:
            await received.ack(multiple=True)
            if seen == job.count:
                done.set_result(None)

    async with connection.channel() as channel:
        publish = channel.default_exchange.publish

        async def send(due: int) -> None:
            await publish(message(steady.stamped(job, due)), job.queue, mandatory=False)

        with steady.Ticks(job) as ticks, job.measured():
            await queue.consume(handler)
            await steady.publish(ticks, send)
            await done
    await consuming.close()


async def one_by_one(connection: AbstractConnection, job: Job) -> None:
    now = time.perf_counter
    async with connection.channel() as channel:
        send, content = channel.default_exchange.publish, message(job.body)
        with job.measured():
            for _ in range(job.count):
                start = now()
                await send(content, job.queue, mandatory=False)
                job.latencies.append(now() - start)


async def consume(connection: AbstractConnection, job: Job) -> None:
    channel = await connection.channel()
    await channel.set_qos(job.task.prefetch)
    queue = await channel.get_queue(job.queue, ensure=False)
    seen = size = 0
    count, ack_every = job.count, job.task.ack_every
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def handler(received: AbstractIncomingMessage) -> None:
        nonlocal seen, size
        seen += 1
        size += len(received.body)
        if seen % ack_every == 0 or seen == count:
            await received.ack(multiple=True)
            if seen == count:
                done.set_result(None)

    with job.measured():
        await queue.consume(handler)
        await done
        await channel.close()
    job.check(messages=seen, size=size)


ENTRIES = (
    Entry(PUBLISH, publish, "Exchange.publish"),
    Entry(CONFIRMED, confirmed, "as many tasks as the window, which await Exchange.publish"),
    Entry(TASKS, confirmed, "await Exchange.publish"),
    Entry(TASKS, partial(confirmed, tasks=1000), "1,000 tasks"),
    Entry(TASKS, gather, "gather of 1,000"),
    Entry(HEADER, partial(confirmed, table=HEADER_TABLE), "await Exchange.publish, one Message with headers"),
    Entry(HEADERS, differing, "await Exchange.publish, a Message with headers each"),
    Entry(ONE_BY_ONE, one_by_one, "await Exchange.publish"),
    Entry(CONSUME, consume, "Queue.consume with a coroutine function, multiple basic.ack"),
    Entry(STEADY_CONFIRM, steady_confirm, "a task for each message awaits Exchange.publish"),
    Entry(STEADY_CONSUME, steady_consume, "the same, and Queue.consume with a coroutine function"),
)
NOT_POSSIBLE: dict[str, str] = {}
