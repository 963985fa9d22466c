"""The broker that all clients use in turn, and an independent look at its queues.

The queues are seen to through pika, so that no client's claims are checked by itself.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import pika
import pika.exceptions
from asv_bench.compare import wire
from asv_bench.compare.job import Address, order

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Self

    from pika.adapters.blocking_connection import BlockingChannel

#: Seconds until messages that were sent have to be in their queue.
ARRIVAL: Final = 15.0
_LOOK_AGAIN: Final = 0.02
_FILL_WINDOW: Final = 1000
_FILL_BYTES: Final = 16 * 1024 * 1024


class WrongCountError(Exception):
    """The broker does not have the messages that it should have."""


@contextlib.contextmanager
def rabbitmq() -> Iterator[Address]:
    """Starts a private RabbitMQ node, which ends with this process."""
    from tests.support.rabbitmq import RabbitMQNode, RabbitMQUnavailableError

    with contextlib.ExitStack() as stack:
        try:
            node = stack.enter_context(RabbitMQNode())
        except RabbitMQUnavailableError as error:
            raise SystemExit(f"comparison: {error}") from None
        yield Address("127.0.0.1", node.port)


@contextlib.contextmanager
def embedded() -> Iterator[Address]:
    """Starts the embedded broker, in a process of its own."""
    process = subprocess.Popen([sys.executable, "-m", "leveret.broker"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = urlsplit(process.stdout.readline().strip())
        if url.hostname is None or url.port is None:
            raise RuntimeError(f"the embedded broker did not start (status {process.poll()})")
        yield Address(url.hostname, url.port)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


BROKERS: Final = {"rabbitmq": rabbitmq, "embedded": embedded}


#: What goes wrong with a run because of its client or the broker. The next run may have more luck.
FAILURES: Final = (WrongCountError, wire.WireError, pika.exceptions.AMQPError, OSError)


class Queues:
    """Makes the queues of the runs, fills them, counts what is in them, and removes them. Use it with `with`.

    Args:
        address: The broker.

    Attributes:
        identity: The product and version that the broker says it is.
    """

    def __init__(self, address: Address) -> None:
        logging.getLogger("pika").setLevel(logging.CRITICAL)  # what goes wrong is raised
        self._address = address
        self._channel = self._open()
        with wire.Connection(address.host, address.port) as connection:
            self.identity = connection.identity
        self._numbers = itertools.count(1)
        self._made: list[str] = []

    def _open(self) -> BlockingChannel:
        parameters = pika.ConnectionParameters(self._address.host, self._address.port, heartbeat=0)
        return pika.BlockingConnection(parameters).channel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(pika.exceptions.AMQPError):
            self.remove()
        self._close()

    def _close(self) -> None:
        with contextlib.suppress(pika.exceptions.AMQPError):
            self._channel.connection.close()

    def make(self) -> str:
        """Declares a durable classic queue of a new name."""
        if not self._channel.is_open:
            self._close()
            self._channel = self._open()
        # The process's number keeps several comparisons on one broker apart; names are equally long, as frames are.
        name = f"compare-{os.getpid() % 10**7:07}-{next(self._numbers):05}"
        self._channel.queue_declare(name, durable=True)
        self._made.append(name)
        return name

    def remove(self) -> None:
        """Deletes all queues that `make` made."""
        while self._made:
            self._channel.queue_delete(self._made.pop())

    def fill(self, queue: str, size: int, count: int) -> None:
        """Publishes persistent messages, orders in JSON, and returns when all are confirmed."""
        window = max(1, min(_FILL_WINDOW, _FILL_BYTES // size))
        with wire.Connection(self._address.host, self._address.port) as connection:
            channel = connection.open_channel(confirms=True)
            wire.publish(connection, channel, queue, order(size), count, window)
            connection.close_channel(channel)
        self.expect(queue, count)

    def expect(self, queue: str, count: int) -> None:
        """Waits until a queue holds exactly so many messages and has no consumer.

        Raises:
            WrongCountError: It does not come to that in time.
        """
        deadline = time.monotonic() + ARRIVAL
        while True:
            # What a consumer did not acknowledge comes back together with its end.
            found = self._channel.queue_declare(queue, passive=True).method
            if found.message_count == count and found.consumer_count == 0:
                return
            if time.monotonic() > deadline:
                raise WrongCountError(
                    f"the queue holds {found.message_count} messages where {count} are due, "
                    f"and has {found.consumer_count} consumers"
                )
            time.sleep(_LOOK_AGAIN)

    def check_sample(self, queue: str, size: int) -> None:
        """Takes one message and looks whether it is what the task asked for.

        Raises:
            WrongCountError: Its body has another size, or it is not persistent.
        """
        found, properties, body = self._channel.basic_get(queue, auto_ack=True)
        if found is None or properties is None or body is None:
            raise WrongCountError("the queue is empty")
        if len(body) != size:
            raise WrongCountError(f"a body has {len(body)} bytes where {size} are due")
        if properties.delivery_mode != 2:
            raise WrongCountError(f"a message has delivery mode {properties.delivery_mode}, and is not persistent")
