"""py-amqp: one `Message` that is published again and again; confirms as events, as `confirm_publish` waits for each."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import amqp
from asv_bench.compare.job import CONFIRMED, CONSUME, CONTENT_TYPE, ONE_BY_ONE, PUBLISH, Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asv_bench.compare.job import Address, Job

TITLE = "py-amqp"
DISTRIBUTIONS = ("amqp",)


@contextlib.contextmanager
def connect(address: Address) -> Iterator[Address]:
    """Returns the address. The functions make their connections, because confirms are an option of a connection."""
    yield address


def connection(address: Address, *, confirms: bool = False) -> amqp.Connection:
    return amqp.Connection(f"{address.host}:{address.port}", "guest", "guest", confirm_publish=confirms)


def message(job: Job) -> amqp.Message:
    return amqp.Message(job.body, content_type=CONTENT_TYPE, delivery_mode=2)


def publish(address: Address, job: Job) -> None:
    with connection(address) as connected:
        channel, content = connected.channel(), message(job)
        with job.measured():
            for _ in range(job.count):
                channel.basic_publish(content, routing_key=job.queue)
            channel.close()


def confirmed(address: Address, job: Job) -> None:
    settled = 0
    beyond: set[int] = set()

    def on_ack(delivery_tag: int, multiple: bool) -> None:
        nonlocal settled
        if multiple:
            settled = max(settled, delivery_tag)
        else:
            beyond.add(delivery_tag)
        while settled + 1 in beyond:
            settled += 1
            beyond.discard(settled)

    def on_nack(delivery_tag: int, multiple: bool) -> None:
        raise RuntimeError(f"the broker refused publishing {delivery_tag}")

    with connection(address) as connected:
        channel, content, window = connected.channel(), message(job), job.task.window
        channel.confirm_select()
        channel.events["basic_ack"].add(on_ack)
        channel.events["basic_nack"].add(on_nack)
        with job.measured():
            for sent in range(job.count):
                while sent - settled >= window:
                    connected.drain_events()
                channel.basic_publish(content, routing_key=job.queue)
            while settled < job.count:
                connected.drain_events()
    job.check(messages=settled)


def one_by_one(address: Address, job: Job) -> None:
    now = time.perf_counter
    with connection(address, confirms=True) as connected:
        channel, content = connected.channel(), message(job)
        with job.measured():
            for _ in range(job.count):
                start = now()
                channel.basic_publish(content, routing_key=job.queue)
                job.latencies.append(now() - start)


def consume(address: Address, job: Job) -> None:
    seen = size = 0
    count, ack_every = job.count, job.task.ack_every

    with connection(address) as connected:
        channel = connected.channel()

        def on_message(received: amqp.Message) -> None:
            nonlocal seen, size
            seen += 1
            size += len(received.body)
            if seen % ack_every == 0 or seen == count:
                channel.basic_ack(received.delivery_tag, multiple=True)

        channel.basic_qos(0, job.task.prefetch, False)
        with job.measured():
            channel.basic_consume(job.queue, callback=on_message)
            while seen < count:
                connected.drain_events()
            channel.close()
    job.check(messages=seen, size=size)


ENTRIES = (
    Entry(PUBLISH, publish, "basic_publish"),
    Entry(CONFIRMED, confirmed, "confirm_select, basic_ack events"),
    Entry(ONE_BY_ONE, one_by_one, "confirm_publish, basic_publish"),
    Entry(CONSUME, consume, "basic_consume, drain_events, multiple basic.ack"),
)
NOT_POSSIBLE: dict[str, str] = {}
