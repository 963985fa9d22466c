"""aio-pika on uvloop: `connect` (the robust connection costs more), one `Message` that is published again and again."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import aio_pika
import uvloop
from asv_bench.compare.job import CONFIRMED, CONSUME, CONTENT_TYPE, ONE_BY_ONE, PUBLISH, Entry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aio_pika.abc import AbstractConnection, AbstractIncomingMessage
    from asv_bench.compare.job import Address, Job

TITLE = "aio-pika"
DISTRIBUTIONS = ("aio-pika", "aiormq", "uvloop")
run = uvloop.run


@contextlib.asynccontextmanager
async def connect(address: Address) -> AsyncIterator[AbstractConnection]:
    async with await aio_pika.connect(address.url) as connection:
        yield connection


def message(job: Job) -> aio_pika.Message:
    return aio_pika.Message(job.body, content_type=CONTENT_TYPE, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)


async def publish(connection: AbstractConnection, job: Job) -> None:
    channel = await connection.channel(publisher_confirms=False)
    send, content = channel.default_exchange.publish, message(job)
    with job.measured():
        for _ in range(job.count):
            await send(content, job.queue, mandatory=False)
        await channel.close()


async def confirmed(connection: AbstractConnection, job: Job) -> None:
    async with connection.channel() as channel:
        send, content = channel.default_exchange.publish, message(job)
        numbers = iter(range(job.count))
        done = 0

        async def work() -> None:
            nonlocal done
            for _ in numbers:
                await send(content, job.queue, mandatory=False)
                done += 1

        with job.measured():
            await asyncio.gather(*(work() for _ in range(min(job.task.window, job.count))))
        job.check(messages=done)


async def one_by_one(connection: AbstractConnection, job: Job) -> None:
    now = time.perf_counter
    async with connection.channel() as channel:
        send, content = channel.default_exchange.publish, message(job)
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
    Entry(ONE_BY_ONE, one_by_one, "await Exchange.publish"),
    Entry(CONSUME, consume, "Queue.consume with a coroutine function, multiple basic.ack"),
)
NOT_POSSIBLE: dict[str, str] = {}
