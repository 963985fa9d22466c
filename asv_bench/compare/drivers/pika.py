"""pika: SelectConnection where callbacks cost less, BlockingConnection where they do not.

On a SelectConnection a function works in callbacks; the loop runs until the connection is closed.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import pika
from asv_bench.compare.job import CONFIRMED, CONSUME, CONTENT_TYPE, ONE_BY_ONE, PUBLISH, Entry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asv_bench.compare.job import Address, Job
    from pika.channel import Channel

TITLE = "pika"
DISTRIBUTIONS = ("pika",)
PROPERTIES = pika.BasicProperties(content_type=CONTENT_TYPE, delivery_mode=2)
#: Messages of one turn of the loop without confirms: pika's buffer has no other limit.
TURN_COUNT, TURN_BYTES = 64, 256 * 1024


@contextlib.contextmanager
def connect(address: Address) -> Iterator[pika.ConnectionParameters]:
    """Returns the address. The functions make their connections, because there are two kinds."""
    yield pika.ConnectionParameters(address.host, address.port, heartbeat=0)


def work(parameters: pika.ConnectionParameters, begin: Callable[[Channel], None]) -> None:
    """Opens a SelectConnection with a channel, calls `begin`, and returns when the connection is closed."""
    failures: list[BaseException] = []

    def closed(connection: pika.SelectConnection, error: BaseException) -> None:
        if getattr(error, "reply_code", None) != 200:
            failures.append(error)
        connection.ioloop.stop()

    connection = pika.SelectConnection(
        parameters,
        on_open_callback=lambda connection: connection.channel(on_open_callback=begin),
        on_open_error_callback=closed,
        on_close_callback=closed,
    )
    connection.ioloop.start()
    if failures:
        raise failures[0]


class Stopwatch:
    """Begins and ends the measurement in different callbacks."""

    def __init__(self, job: Job) -> None:
        self._stack = contextlib.ExitStack()
        self._job = job

    def start(self) -> None:
        self._stack.enter_context(self._job.measured())

    def stop(self) -> None:
        self._stack.close()


def publish(parameters: pika.ConnectionParameters, job: Job) -> None:
    watch = Stopwatch(job)

    def begin(channel: Channel) -> None:
        left = job.count
        at_once = max(1, min(TURN_COUNT, TURN_BYTES // max(1, len(job.body))))

        def turn() -> None:
            nonlocal left
            n = min(left, at_once)
            for _ in range(n):
                channel.basic_publish("", job.queue, job.body, PROPERTIES)
            left -= n
            if left:
                channel.connection.ioloop.call_later(0, turn)
            else:
                channel.add_on_close_callback(closed)
                channel.close()

        watch.start()
        turn()

    def closed(channel: Channel, _: BaseException) -> None:
        watch.stop()
        channel.connection.close()

    work(parameters, begin)


def publish_blocking(parameters: pika.ConnectionParameters, job: Job) -> None:
    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        with job.measured():
            for _ in range(job.count):
                channel.basic_publish("", job.queue, job.body, PROPERTIES)
            channel.close()


def confirmed(parameters: pika.ConnectionParameters, job: Job) -> None:
    watch = Stopwatch(job)
    sent = settled = 0
    beyond: set[int] = set()

    def begin(channel: Channel) -> None:
        def more(_: Any = None) -> None:
            nonlocal sent
            while sent < job.count and sent - settled < job.task.window:
                channel.basic_publish("", job.queue, job.body, PROPERTIES)
                sent += 1

        def confirm(frame: Any) -> None:
            nonlocal settled
            method = frame.method
            if not isinstance(method, pika.spec.Basic.Ack):
                raise RuntimeError(f"the broker refused publishing {method.delivery_tag}")
            if method.multiple:
                settled = max(settled, method.delivery_tag)
            else:
                beyond.add(method.delivery_tag)
            while settled + 1 in beyond:
                settled += 1
                beyond.discard(settled)
            if settled < job.count:
                more()
            else:
                watch.stop()
                channel.connection.close()

        def selected(_: Any) -> None:
            watch.start()
            more()

        channel.confirm_delivery(confirm, selected)

    work(parameters, begin)
    job.check(messages=settled)


def one_by_one(parameters: pika.ConnectionParameters, job: Job) -> None:
    watch = Stopwatch(job)
    now = time.perf_counter
    start = 0.0

    def begin(channel: Channel) -> None:
        def send() -> None:
            nonlocal start
            start = now()
            channel.basic_publish("", job.queue, job.body, PROPERTIES)

        def confirm(frame: Any) -> None:
            if not isinstance(frame.method, pika.spec.Basic.Ack):
                raise RuntimeError(f"the broker refused publishing {frame.method.delivery_tag}")
            job.latencies.append(now() - start)
            if len(job.latencies) < job.count:
                send()
            else:
                watch.stop()
                channel.connection.close()

        def selected(_: Any) -> None:
            watch.start()
            send()

        channel.confirm_delivery(confirm, selected)

    work(parameters, begin)
    job.check(messages=len(job.latencies))


def consume(parameters: pika.ConnectionParameters, job: Job) -> None:
    seen = size = 0
    count, ack_every = job.count, job.task.ack_every

    def on_message(channel: Any, method: Any, _: pika.BasicProperties, body: bytes) -> None:
        nonlocal seen, size
        seen += 1
        size += len(body)
        if seen % ack_every == 0 or seen == count:
            channel.basic_ack(method.delivery_tag, multiple=True)
            if seen == count:
                channel.stop_consuming()

    with pika.BlockingConnection(parameters) as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=job.task.prefetch)
        with job.measured():
            channel.basic_consume(job.queue, on_message)
            channel.start_consuming()
            channel.close()
    job.check(messages=seen, size=size)


ENTRIES = (
    Entry(PUBLISH, publish, "SelectConnection, 64 in each turn of its loop"),
    Entry(PUBLISH, publish_blocking, "BlockingConnection"),
    Entry(CONFIRMED, confirmed, "SelectConnection, confirms in a callback"),
    Entry(ONE_BY_ONE, one_by_one, "SelectConnection, confirms in a callback"),
    Entry(CONSUME, consume, "BlockingConnection, callback, multiple basic.ack"),
)
NOT_POSSIBLE: dict[str, str] = {}
