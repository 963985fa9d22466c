"""Ready-made frames from a plain socket: nothing is encoded per message, and deliveries are counted by their bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asv_bench.compare import wire
from asv_bench.compare.job import CONFIRMED, CONSUME, ONE_BY_ONE, PUBLISH, TASKS, Entry

if TYPE_CHECKING:
    from asv_bench.compare.job import Address, Job

TITLE = "ready-made frames"
DISTRIBUTIONS: tuple[str, ...] = ()


def connect(address: Address) -> wire.Connection:
    return wire.Connection(address.host, address.port)


def publish(connection: wire.Connection, job: Job) -> None:
    channel = connection.open_channel()
    with job.measured():
        wire.publish(connection, channel, job.queue, job.body, job.count, 0)
        connection.close_channel(channel)


def confirmed(connection: wire.Connection, job: Job) -> None:
    channel = connection.open_channel(confirms=True)
    with job.measured():
        wire.publish(connection, channel, job.queue, job.body, job.count, job.task.window)
    connection.close_channel(channel)


def one_by_one(connection: wire.Connection, job: Job) -> None:
    channel = connection.open_channel(confirms=True)
    with job.measured():
        job.latencies = wire.publish_one_by_one(connection, channel, job.queue, job.body, job.count)
    connection.close_channel(channel)


def consume(connection: wire.Connection, job: Job) -> None:
    channel, task = connection.open_channel(), job.task
    with job.measured():
        received = wire.consume(connection, channel, job.queue, task.size, job.count, task.prefetch, task.ack_every)
        connection.close_channel(channel)
    each = wire.delivery_size(job.queue, task.size, connection.frame_max)
    job.check(messages=received // each, size=received // each * task.size + received % each)


ENTRIES = (
    Entry(PUBLISH, publish, "64 KiB writes"),
    Entry(CONFIRMED, confirmed, "64 KiB writes, basic.ack counted"),
    Entry(TASKS, confirmed, "64 KiB writes, basic.ack counted"),
    Entry(ONE_BY_ONE, one_by_one, "one write and one read each"),
    Entry(CONSUME, consume, "256 KiB reads, multiple basic.ack"),
)
NOT_POSSIBLE: dict[str, str] = {}
