"""pika: SelectConnection where callbacks cost less, BlockingConnection where they do not.

On a SelectConnection a function works in callbacks; the loop runs until the connection is closed.
"""

from __future__ import annotations

import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pika
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
    from collections.abc import Callable, Iterator

    from asv_bench.compare.job import Address, Job
    from pika.channel import Channel

TITLE = "pika"
DISTRIBUTIONS = ("pika",)
PROPERTIES = pika.BasicProperties(content_type=CONTENT_TYPE, delivery_mode=2)
WITH_HEADER = pika.BasicProperties(content_type=CONTENT_TYPE, delivery_mode=2, headers=HEADER_TABLE)
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

    def ticks(self) -> steady.Ticks:
        """The times at which messages are due; they end with the measurement."""
        return self._stack.enter_context(steady.Ticks(self._job))

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


class Confirms:
    """Counts confirms.

    Attributes:
        settled: All publishings up to this one are confirmed.
    """

    def __init__(self) -> None:
        self.settled = 0
        self._beyond: set[int] = set()

    def feed(self, method: Any) -> None:
        """Takes a confirm.

        Raises:
            RuntimeError: The broker refused the message.
        """
        if not isinstance(method, pika.spec.Basic.Ack):
            raise RuntimeError(f"the broker refused publishing {method.delivery_tag}")
        if method.multiple:
            self.settled = max(self.settled, method.delivery_tag)
        else:
            self._beyond.add(method.delivery_tag)
        while self.settled + 1 in self._beyond:
            self.settled += 1
            self._beyond.discard(self.settled)


def confirmed(
    parameters: pika.ConnectionParameters, job: Job, properties: Callable[[int], pika.BasicProperties]
) -> None:
    watch, confirms = Stopwatch(job), Confirms()
    sent = 0

    def begin(channel: Channel) -> None:
        def more() -> None:
            nonlocal sent
            while sent < job.count and sent - confirms.settled < job.task.window:
                channel.basic_publish("", job.queue, job.body, properties(sent))
                sent += 1

        def confirm(frame: Any) -> None:
            confirms.feed(frame.method)
            if confirms.settled < job.count:
                more()
            else:
                watch.stop()
                channel.connection.close()

        def selected(_: Any) -> None:
            watch.start()
            more()

        channel.confirm_delivery(confirm, selected)

    work(parameters, begin)
    job.check(messages=confirms.settled)


def differing(number: int) -> pika.BasicProperties:
    return pika.BasicProperties(content_type=CONTENT_TYPE, delivery_mode=2, headers=headers(number))


def each_due(channel: Channel, watch: Stopwatch, count: int, send: Callable[[int], None]) -> None:
    """Has the loop call `send(due)` for each of `count` messages when it is due, and starts the watch."""
    ioloop, ticks = channel.connection.ioloop, watch.ticks()
    left = count

    def readable(descriptor: int, _: int) -> None:
        nonlocal left
        for due in ticks.read():
            send(due)
            left -= 1
        if not left:
            ioloop.remove_handler(descriptor)

    ioloop.add_handler(ticks.fileno(), readable, ioloop.READ)
    watch.start()


def steady_confirm(parameters: pika.ConnectionParameters, job: Job) -> None:
    watch, confirms = Stopwatch(job), Confirms()
    waiting: list[int] = []

    def begin(channel: Channel) -> None:
        def send(due: int) -> None:
            waiting.append(due)
            channel.basic_publish("", job.queue, job.body, PROPERTIES)

        def confirm(frame: Any) -> None:
            before = confirms.settled
            confirms.feed(frame.method)
            for due in waiting[before : confirms.settled]:
                steady.note(job, due)
            if confirms.settled == job.count:
                watch.stop()
                channel.connection.close()

        def selected(_: Any) -> None:
            each_due(channel, watch, job.count, send)

        channel.confirm_delivery(confirm, selected)

    work(parameters, begin)
    job.check(messages=len(job.latencies))


def steady_consume(parameters: pika.ConnectionParameters, job: Job) -> None:
    watch, confirms = Stopwatch(job), Confirms()

    def begin(channel: Channel) -> None:
        def send(due: int) -> None:
            channel.basic_publish("", job.queue, steady.stamped(job, due), PROPERTIES)

        def finish() -> None:
            if len(job.latencies) == confirms.settled == job.count:
                watch.stop()
                channel.connection.close()

        def on_message(_: Channel, method: Any, properties: pika.BasicProperties, body: bytes) -> None:
            steady.note_body(job, body)
            seen = len(job.latencies)
            if seen % job.task.ack_every == 0 or seen == job.count:
                channel.basic_ack(method.delivery_tag, multiple=True)
            finish()

        def confirm(frame: Any) -> None:
            confirms.feed(frame.method)
            finish()

        def selected(_: Any) -> None:
            channel.basic_qos(prefetch_count=job.task.prefetch)
            channel.basic_consume(job.queue, on_message)
            each_due(channel, watch, job.count, send)

        channel.confirm_delivery(confirm, selected)

    work(parameters, begin)
    job.check(messages=len(job.latencies))


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
    Entry(CONFIRMED, partial(confirmed, properties=lambda _: PROPERTIES), "SelectConnection, confirms in a callback"),
    Entry(TASKS, partial(confirmed, properties=lambda _: PROPERTIES), "SelectConnection, confirms in a callback"),
    Entry(HEADER, partial(confirmed, properties=lambda _: WITH_HEADER), "the same, one BasicProperties with headers"),
    Entry(HEADERS, partial(confirmed, properties=differing), "the same, BasicProperties with headers each"),
    Entry(ONE_BY_ONE, one_by_one, "SelectConnection, confirms in a callback"),
    Entry(CONSUME, consume, "BlockingConnection, callback, multiple basic.ack"),
    Entry(STEADY_CONFIRM, steady_confirm, "SelectConnection, confirms in a callback"),
    Entry(STEADY_CONSUME, steady_consume, "SelectConnection, confirms and deliveries in callbacks"),
)
NOT_POSSIBLE: dict[str, str] = {}
