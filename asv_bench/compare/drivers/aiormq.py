"""aiormq on uvloop: `basic_publish(wait=False)`, which does not wait for the socket, with one `Basic.Properties`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING

import aiormq
import uvloop
from asv_bench.compare.job import CONFIRMED, CONSUME, CONTENT_TYPE, ONE_BY_ONE, PUBLISH, Entry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from aiormq.abc import AbstractConnection, DeliveredMessage
    from asv_bench.compare.job import Address, Job

TITLE = "aiormq"
DISTRIBUTIONS = ("aiormq", "uvloop")
run = uvloop.run


@contextlib.asynccontextmanager
async def connect(address: Address) -> AsyncIterator[AbstractConnection]:
    connection = await aiormq.connect(address.url)
    try:
        yield connection
    finally:
        await connection.close()


def properties() -> aiormq.spec.Basic.Properties:
    """The properties of all publishings of a job, so that aiormq makes a message_id only once."""
    return aiormq.spec.Basic.Properties(content_type=CONTENT_TYPE, delivery_mode=2)


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


async def confirmed(connection: AbstractConnection, job: Job) -> None:
    channel = await open_channel(connection, confirms=True)
    send, body, queue, content = channel.basic_publish, job.body, job.queue, properties()
    numbers = iter(range(job.count))
    done = 0

    async def work() -> None:
        nonlocal done
        for _ in numbers:
            await send(body, routing_key=queue, properties=content, wait=False)
            done += 1

    with job.measured():
        await asyncio.gather(*(work() for _ in range(min(job.task.window, job.count))))
    job.check(messages=done)
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
    Entry(ONE_BY_ONE, one_by_one, "await basic_publish(wait=False)"),
    Entry(CONSUME, consume, "basic_consume with a coroutine function, multiple basic.ack"),
)
NOT_POSSIBLE: dict[str, str] = {}
