"""amqpstorm: bodies stay bytes (`auto_decode=False`), which saves it an attempt to decode each."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import amqpstorm
from asv_bench.compare.job import CONFIRMED, CONSUME, CONTENT_TYPE, ONE_BY_ONE, PUBLISH, Entry

if TYPE_CHECKING:
    from asv_bench.compare.job import Address, Job

TITLE = "amqpstorm"
DISTRIBUTIONS = ("AMQPStorm", "pamqp")


def connect(address: Address) -> amqpstorm.Connection:
    return amqpstorm.Connection(address.host, "guest", "guest", port=address.port, heartbeat=0)


def properties() -> dict[str, object]:
    return {"content_type": CONTENT_TYPE, "delivery_mode": 2}


def publish(connection: amqpstorm.Connection, job: Job) -> None:
    channel = connection.channel()
    send, content = channel.basic.publish, properties()
    with job.measured():
        for _ in range(job.count):
            send(job.body, job.queue, properties=content)
        channel.close()


def one_by_one(connection: amqpstorm.Connection, job: Job) -> None:
    now = time.perf_counter
    with connection.channel() as channel:
        channel.confirm_deliveries()
        send, content = channel.basic.publish, properties()
        done = 0
        with job.measured():
            for _ in range(job.count):
                start = now()
                done += bool(send(job.body, job.queue, properties=content))
                job.latencies.append(now() - start)
        job.check(messages=done)


def consume(connection: amqpstorm.Connection, job: Job) -> None:
    channel = connection.channel()
    channel.basic.qos(job.task.prefetch)
    seen = size = 0
    with job.measured():
        channel.basic.consume(queue=job.queue)
        for message in channel.build_inbound_messages(auto_decode=False):
            seen += 1
            size += len(message.body)
            if seen % job.task.ack_every == 0 or seen == job.count:
                channel.basic.ack(message.delivery_tag, multiple=True)
                if seen == job.count:
                    break
        channel.close()
    job.check(messages=seen, size=size)


ENTRIES = (
    Entry(PUBLISH, publish, "basic.publish"),
    # It looks for the confirm every 10 ms.
    Entry(ONE_BY_ONE, one_by_one, "confirm_deliveries, basic.publish", share=0.1),
    Entry(CONSUME, consume, "build_inbound_messages, multiple basic.ack"),
)
NOT_POSSIBLE = {CONFIRMED: "its publish waits for each confirm"}
