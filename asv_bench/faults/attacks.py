"""Makes the faults of a run, and looks into the queues with another client (pika) than the one under test."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import time
from typing import TYPE_CHECKING, Final

import pika
import pika.exceptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asv_bench.faults.ledger import Ledger
    from asv_bench.faults.plan import Step
    from pika.adapters.blocking_connection import BlockingChannel
    from tests.support.rabbitmq import RabbitMQNode

    from leveret.testing import FaultProxy

#: The user of the client under test, whose password is changed.
USER: Final = "shop"
PASSWORD: Final = "s3cret"
#: How often the broker looks for deliveries that were not acknowledged in time, in milliseconds.
SETTINGS: Final = "-rabbit channel_tick_interval 1000"
#: How long it waits for an acknowledgement, and how long while a delivery timeout is made, in milliseconds. A channel
#: reads it when it begins.
ACKNOWLEDGED: Final = 1_800_000
ACKNOWLEDGED_SOON: Final = 4_000
#: Seconds that a handler takes for a delivery timeout.
SLOW: Final = 9.0
#: Seconds in which a fault that needs the client to be connected waits for that.
_GO_ON: Final = 60.0
#: Seconds in which a queue has to become empty that is to be deleted.
_EMPTY: Final = 60.0
_NUMBER: Final = re.compile(rb"\d+")
_DELETED: Final = "audit"
#: `list_queues` counts quorum queues every five seconds, and without the messages that a target queue did not take yet.
_COUNTS: Final = """[{element(4, amqqueue:get_name(Q)), case amqqueue:get_type(Q) of
    rabbit_quorum_queue ->
        {ok, {_, #{num_messages := N}}, _} = ra:local_query(amqqueue:get_pid(Q), fun rabbit_fifo:overview/1), N;
    _ -> proplists:get_value(messages, rabbit_amqqueue:info(Q, [messages]))
end} || Q <- rabbit_amqqueue:list()]."""
_COUNTED: Final = re.compile(r'\{<<"([^"]+)">>,\s*(\d+)\}')


class CannotAttackError(Exception):
    """A fault could not be made."""


class Attacks:
    """Makes faults on a broker and on the way to it.

    Args:
        node: The broker.
        proxy: What the client connects to.
        ledger: What the client reports.
        command: Sends the client's process a command.
    """

    def __init__(self, node: RabbitMQNode, proxy: FaultProxy, ledger: Ledger, command: Callable[[str], None]) -> None:
        logging.getLogger("pika").setLevel(logging.CRITICAL)
        self._node = node
        self._proxy = proxy
        self._ledger = ledger
        self._command = command
        self._makers: dict[str, Callable[[Step], None]] = {
            "reset": lambda step: self._connected(proxy.reset),
            "half-close": lambda step: self._connected(lambda: proxy.half_close(step.direction)),  # type: ignore[arg-type]
            "stall": self._stall,
            "kill": lambda step: self._restart(node.kill, step),
            "stop": lambda step: self._restart(node.stop, step),
            "alarm": self._alarm,
            "refused login": self._refuse_login,
            "queue deleted": self._delete_queue,
            "channel 404": lambda step: command("lost"),
            "delivery timeout": self._time_out,
            "outage": self._outage,
        }

    def make(self, step: Step) -> None:
        """Makes a fault, and returns when it is over.

        Raises:
            CannotAttackError: It could not be made.
        """
        try:
            self._makers[step.kind](step)
        except (RuntimeError, OSError, pika.exceptions.AMQPError) as error:
            raise CannotAttackError(f"{step.kind}: {error!r}") from error

    # ------------------------------------------------------------------ on the way

    def _connected(self, attack: Callable[[], int]) -> None:
        """Attacks connections: waits for one to attack."""
        deadline = time.monotonic() + _GO_ON
        while not attack():
            if time.monotonic() > deadline:
                raise CannotAttackError(f"the client had no connection for {_GO_ON:g} s")
            time.sleep(0.05)

    def _stall(self, step: Step) -> None:
        self._proxy.stall(step.direction)  # type: ignore[arg-type]
        time.sleep(step.seconds)
        self._proxy.resume()

    # ------------------------------------------------------------------ on the broker

    def _restart(self, end: Callable[[], None], step: Step) -> None:
        end()
        time.sleep(step.seconds)
        self._node.start()

    def _alarm(self, step: Step) -> None:
        self._node.ctl("set_vm_memory_high_watermark", "0.00001")
        try:
            time.sleep(step.seconds)
        finally:
            self._node.ctl("set_vm_memory_high_watermark", "0.4")

    def prepare(self) -> None:
        """Makes the user of the client."""
        self._node.ctl("add_user", USER, PASSWORD)
        self._node.ctl("set_permissions", USER, ".*", ".*", ".*")

    def _refuse_login(self, step: Step) -> None:
        self._node.ctl("change_password", USER, "another one")
        try:
            self._node.ctl("close_all_connections", "the password was changed")
            time.sleep(step.seconds)
        finally:
            self._node.ctl("change_password", USER, PASSWORD)

    def _delete_queue(self, step: Step) -> None:
        self._command(f"quiet {_DELETED}")
        try:
            self._wait_until_empty()
            with self.channel() as channel:
                channel.queue_delete(_DELETED, if_empty=True)
                self._command(f"loud {_DELETED}")  # its messages are returned now
                time.sleep(step.seconds)
                channel.queue_declare(_DELETED, durable=True)
        finally:
            self._command(f"loud {_DELETED}")
            # It was not forgotten, but left alone.
            self._ledger.confirmed_at[_DELETED] = self._ledger.handled_at[_DELETED] = time.monotonic()

    def _wait_until_empty(self) -> None:
        """Waits until nothing of the queue is ready, unacknowledged, waiting for a retry, or on its way."""
        deadline, calm = time.monotonic() + _EMPTY, 0
        while calm < 2:
            if time.monotonic() > deadline:
                raise CannotAttackError(f"{_DELETED} was not empty within {_EMPTY:g} s")
            time.sleep(0.5)
            counts = {name: count for name, count in self.counts().items() if name.startswith(_DELETED)}
            calm = calm + 1 if not any(count for name, count in counts.items() if not name.endswith(".parked")) else 0

    # ------------------------------------------------------------------ in the client

    def _time_out(self, step: Step) -> None:
        try:
            self._limit(ACKNOWLEDGED_SOON)
            self._command(f"slow {SLOW:g}")
            time.sleep(SLOW)
        finally:
            self._limit(ACKNOWLEDGED)

    def _limit(self, milliseconds: int) -> None:
        """Changes how long the broker waits for acknowledgements; has the client open its channels again."""
        self._node.ctl("eval", f"application:set_env(rabbit, consumer_timeout, {milliseconds}).")
        moment = time.monotonic()
        self._proxy.reset()
        while self._ledger.handled_at["orders"] <= moment + 0.5:  # what was handled before the reset may come late
            if time.monotonic() > moment + _GO_ON:
                raise CannotAttackError(f"the consumer of orders did not go on within {_GO_ON:g} s")
            time.sleep(0.05)

    def _outage(self, step: Step) -> None:
        self._command(f"outage {step.seconds:g}")
        time.sleep(step.seconds)

    # ------------------------------------------------------------------ looking

    def counts(self) -> dict[str, int]:
        """Returns how many messages each queue has, with those that are unacknowledged or wait to be dead-lettered."""
        table = self._node.ctl("eval", _COUNTS)
        return {name: int(count) for name, count in _COUNTED.findall(table)}

    @contextlib.contextmanager
    def channel(self) -> Iterator[BlockingChannel]:
        """A channel of the other client."""
        connection = pika.BlockingConnection(pika.ConnectionParameters("127.0.0.1", self._node.port, heartbeat=0))
        try:
            yield connection.channel()
        finally:
            with contextlib.suppress(pika.exceptions.AMQPError):
                connection.close()

    def take_all(self) -> dict[str, list[int]]:
        """Takes everything out of all queues; returns the numbers of the messages, by queue."""
        found: dict[str, list[int]] = {}
        for queue in [queue for queue, count in self.counts().items() if count]:
            try:
                with self.channel() as channel:
                    while (body := channel.basic_get(queue, auto_ack=True)[2]) is not None:
                        found.setdefault(queue, []).append(number_of(body))
            except pika.exceptions.AMQPError as error:
                raise CannotAttackError(f"queue {queue} could not be read: {error!r}") from error
        return found


def number_of(body: bytes) -> int:
    """The number of a message, readable or not."""
    found = _NUMBER.search(json.dumps(json.loads(body)["id"]).encode())
    return int(found[0]) if found else 0
