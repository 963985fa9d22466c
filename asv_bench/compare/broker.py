"""Starts the broker that all clients use in turn, and checks its queues.

The checks go through pika and a plain socket, so that they do not depend on the client that is measured.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import pika
import pika.exceptions
from asv_bench.compare import wire
from asv_bench.compare.job import Address, order

from leveret.cli.process import BrokerProcess

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from types import TracebackType
    from typing import Self

    from pika.adapters.blocking_connection import BlockingChannel

#: Seconds in which published messages must arrive in their queue.
ARRIVAL: Final = 15.0
_LOOK_AGAIN: Final = 0.02
_FILL_WINDOW: Final = 1000
_FILL_BYTES: Final = 16 * 1024 * 1024


class WrongCountError(Exception):
    """The broker does not have the messages that it should have."""


@contextlib.contextmanager
def rabbitmq() -> Iterator[Address]:
    """Starts a private RabbitMQ node. It ends with this process."""
    from tests.support.rabbitmq import RabbitMQNode, RabbitMQUnavailableError

    with contextlib.ExitStack() as stack:
        try:
            node = stack.enter_context(RabbitMQNode())
        except RabbitMQUnavailableError as error:
            raise SystemExit(str(error)) from None
        yield Address("127.0.0.1", node.port)


@contextlib.contextmanager
def embedded() -> Iterator[Address]:
    """Starts the embedded broker in its own process."""
    with BrokerProcess() as process:
        url = urlsplit(process.url)
        assert url.hostname is not None
        assert url.port is not None
        yield Address(url.hostname, url.port)


BROKERS: Final = {"rabbitmq": rabbitmq, "embedded": embedded}


#: Errors of a run that the client or the broker caused. The next run may succeed.
FAILURES: Final = (WrongCountError, wire.WireError, pika.exceptions.AMQPError, OSError)


class Queues:
    """Declares the queues of the runs, fills them, counts their messages, and deletes them. Use it with `with`.

    Args:
        address: The broker.

    Attributes:
        identity: The broker's product and version, as it names them.
    """

    def __init__(self, address: Address) -> None:
        logging.getLogger("pika").setLevel(logging.CRITICAL)  # pika raises its errors as well as logging them
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
        """Declares a durable classic queue with a new name; returns the name."""
        if not self._channel.is_open:
            self._close()
            self._channel = self._open()
        # The process's number separates comparisons on one broker. Names, and so frames, have the same size.
        name = f"compare-{os.getpid() % 10**7:07}-{next(self._numbers):05}"
        self._channel.queue_declare(name, durable=True)
        self._made.append(name)
        return name

    def remove(self) -> None:
        """Deletes all queues that `make` declared."""
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
        """Waits until a queue holds exactly `count` messages and has no consumer.

        Raises:
            WrongCountError: The queue has another count, or a consumer, after `ARRIVAL` seconds.
        """
        deadline = time.monotonic() + ARRIVAL
        while True:
            # Unacknowledged messages return to the queue when their consumer ends, so both are checked together.
            found = self._channel.queue_declare(queue, passive=True).method
            if found.message_count == count and found.consumer_count == 0:
                return
            if time.monotonic() > deadline:
                raise WrongCountError(
                    f"the queue holds {found.message_count} messages where {count} are due, "
                    f"and has {found.consumer_count} consumers"
                )
            time.sleep(_LOOK_AGAIN)

    def check_sample(self, queue: str, size: int, headers: Collection[str] = ()) -> None:
        """Gets one message and checks its size, its delivery mode and the names of its headers.

        Raises:
            WrongCountError: The body has another size, the message is not persistent, or it has other headers.
        """
        found, properties, body = self._channel.basic_get(queue, auto_ack=True)
        if found is None or properties is None or body is None:
            raise WrongCountError("the queue is empty")
        if len(body) != size:
            raise WrongCountError(f"a body has {len(body)} bytes where {size} are due")
        if properties.delivery_mode != 2:
            raise WrongCountError(f"a message has delivery mode {properties.delivery_mode}, and is not persistent")
        if set(properties.headers or ()) != set(headers):
            raise WrongCountError(
                f"a message has the headers {sorted(properties.headers or ())}, not {sorted(headers)}"
            )
