"""The client of `make faults`, with default settings: two producers and three consumers of one client, in a process.

Reports go to stdout (see `ledger`), the log goes to stderr, and commands come from stdin, one on a line:

* `outage SECONDS`: every handler fails for so long;
* `slow SECONDS`: the next handler of `orders` takes so long;
* `lost`: a message is published to an exchange that is not there;
* `quiet QUEUE` and `loud QUEUE`: nothing is published to a queue any more, and again;
* `end`: the consumers are drained, and the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import random
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from asv_bench.faults.ledger import DURABLE, EVENTS, as_json
from msgspec import Struct

import leveret

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

T = TypeVar("T")

logger = logging.getLogger("faults")

#: The share of handlers that fail.
FAILING: Final = 0.01
#: One message of so many has a body that does not fit its model.
UNREADABLE: Final = 400
#: Seconds that a call may take beyond its deadline: the machine is busy, and the process gets its turn late.
MARGIN: Final = 2.0
#: Seconds between publishings of one task.
PAUSE: Final = 0.03
DRAIN: Final = 20.0


class Order(Struct):
    """The messages of both producers and of all three consumers."""

    id: int


class UnavailableError(Exception):
    """Raised by every handler during an outage, as if a database that handlers need were away."""


def report(*words: object) -> None:
    """Tells the ledger. The bytes are in the pipe when this returns, so they outlive this process."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Formatter(logging.Formatter):
    """Leaves the tracebacks of handlers that failed on purpose out of the log."""

    def formatException(
        self, ei: tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
    ) -> str:
        return "(a failure on purpose)" if isinstance(ei[1], UnavailableError) else super().formatException(ei)


class Service:
    """Publishes and handles.

    Args:
        client: The client.
        seed: Of the random numbers.
    """

    def __init__(self, client: leveret.Client, seed: int) -> None:
        self._client = client
        self._chance = random.Random(seed)
        self._numbers = itertools.count(1)
        self._quiet: set[str] = set()
        self._outage_until = 0.0
        self._slow = 0.0
        self._publish_limit = leveret.ProducerSettings().publish_timeout + MARGIN
        # Each message of a batch has its deadline from when it is taken: one first, then ten, then the others.
        self._batch_limit = 3 * leveret.ProducerSettings().publish_timeout + MARGIN
        self._call_limit = client.settings.operation_timeout + MARGIN
        self._background: set[asyncio.Task[None]] = set()
        self.ending = asyncio.Event()

    # ------------------------------------------------------------------ commands

    def command(self, line: str) -> None:
        """Does what a command says."""
        word, _, rest = line.strip().partition(" ")
        if word == "outage":
            self._outage_until = time.monotonic() + float(rest)
        elif word == "slow":
            self._slow = float(rest)
        elif word == "quiet":
            self._quiet.add(rest)
        elif word == "loud":
            self._quiet.discard(rest)
        elif word == "lost":
            self._start(self._publish_into_nowhere())
        else:
            self.ending.set()

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _publish_into_nowhere(self) -> None:
        try:
            await self._first.publish(Order(0), "key", exchange="nowhere")
        except leveret.PublishError:
            return
        report("!", "a_message_to_an_exchange_that_is_not_there_was_confirmed", "")

    # ------------------------------------------------------------------ publishing

    async def timed(self, what: str, limit: float, call: Awaitable[T]) -> T:
        """Awaits a call, and reports it when it takes longer than it may."""
        started = time.monotonic()
        try:
            return await call
        finally:
            if (took := time.monotonic() - started) > limit:
                report(
                    "!", "a_call_took_longer_than_its_deadline", f"{what} {took:.1f} s, {limit - MARGIN:g} s allowed"
                )

    def _next(self) -> tuple[int, Any]:
        number = next(self._numbers)
        return number, {"id": f"unreadable {number}"} if number % UNREADABLE == 0 else Order(number)

    async def singles(self, producer: leveret.Producer, queue: str) -> None:
        """Publishes one message after the other."""
        while not self.ending.is_set():
            await asyncio.sleep(PAUSE)
            if queue not in self._quiet:
                number, value = self._next()
                report("P", queue, 1)
                await self._outcome(queue, number, "publish", producer.publish(value, queue))

    async def events(self, producer: leveret.Producer) -> None:
        """Publishes what may have no subscriber."""
        while not self.ending.is_set():
            await asyncio.sleep(PAUSE)
            number = next(self._numbers)
            report("P", EVENTS, 1)
            call = producer.publish(Order(number), exchange=EVENTS, mandatory=False)
            await self._outcome(EVENTS, number, "publish", call)

    async def batches(self, producer: leveret.Producer, queue: str) -> None:
        """Publishes batches, and tickets."""
        while not self.ending.is_set():
            await asyncio.sleep(20 * PAUSE)
            if queue in self._quiet:
                continue
            numbered = [self._next() for _ in range(20)]
            report("P", queue, len(numbered))
            batch = producer.publish_batch([value for _, value in numbered], queue)
            result = await self.timed("publish_batch", self._batch_limit, batch)
            confirmed = []
            for index, (number, _) in enumerate(numbered):
                if result.outcome(index) is leveret.Outcome.CONFIRMED:
                    confirmed.append(number)
                else:
                    report("X", queue, result.outcome(index).name, type(result.failures[index]).__name__)
            if confirmed:
                report("C", queue, ",".join(map(str, confirmed)))
            number, value = self._next()
            try:
                ticket = producer.publish_nowait(value, queue)
            except leveret.errors.BackpressureError:
                continue
            report("P", queue, 1)
            await self._outcome(queue, number, "a ticket", ticket)

    async def _outcome(self, queue: str, number: int, what: str, call: Awaitable[leveret.Receipt]) -> None:
        try:
            await self.timed(what, self._publish_limit, call)
        except leveret.PublishError as error:
            report("X", queue, error.outcome.name, type(error).__name__)
        except Exception as error:
            report("!", "publish_raised_another_error", repr(error))
        else:
            report("C", queue, number)

    async def calls(self) -> None:
        """Makes other calls, which have to end in time, whatever they end with."""
        topology = leveret.Topology().exchange("calls", "topic").queue("calls").bind("calls", "calls", "#")
        while not self.ending.is_set():
            await asyncio.sleep(1.0)
            calls: dict[str, Callable[[], Awaitable[Any]]] = {
                "declare": lambda: self._client.declare(topology),
                "purge": lambda: self._client.purge("calls"),
            }
            for what, call in calls.items():
                try:
                    await self.timed(what, self._call_limit, call())
                except leveret.LeveretError:
                    pass
                except Exception as error:
                    report("!", f"{what}_raised_another_error", repr(error))

    # ------------------------------------------------------------------ consuming

    def handler(self, queue: str) -> Callable[[Order, leveret.Message], Awaitable[None]]:
        """Makes the handler of a queue."""

        async def handle(order: Order, message: leveret.Message) -> None:
            if queue == "orders" and self._slow:
                seconds, self._slow = self._slow, 0.0
                await asyncio.sleep(seconds)
            if time.monotonic() < self._outage_until or self._chance.random() < FAILING:
                report("F", queue)
                logger.info("%s %d fails on purpose: %s", queue, order.id, message.headers)
                raise UnavailableError
            await asyncio.sleep(self._chance.uniform(0, 0.003))
            report("H", queue, order.id)

        return handle

    async def consume(self, consumer: leveret.Consumer[Order], queue: str) -> None:
        """Runs a consumer, which ends only when it is told to."""
        try:
            await consumer.run(self.handler(queue))
        except Exception as error:
            report("!", "a_consumer_ended", f"{queue}: {error!r}")
        else:
            if not self.ending.is_set():
                report("!", "a_consumer_ended", f"{queue}: without an error")

    async def run(self) -> None:
        """Runs until it is told to end."""
        durable = leveret.Topology().queue("orders", leveret.Quorum()).queue("audit")
        await self._client.declare(durable)
        events = leveret.Topology().exchange(EVENTS, "fanout").queue("", exclusive=True).bind("", EVENTS)
        declared = await self._client.declare(events)
        queues: dict[str, Any] = {queue: queue for queue in DURABLE} | {EVENTS: declared.queues[""]}
        consumers = {queue: self._client.consumer(source, Order) for queue, source in queues.items()}
        async with (
            self._client.producer() as self._first,
            self._client.producer() as second,
            asyncio.TaskGroup() as group,
        ):
            for queue, consumer in consumers.items():
                group.create_task(self.consume(consumer, queue))
            for _ in range(3):
                group.create_task(self.singles(self._first, "orders"))
            group.create_task(self.batches(self._first, "orders"))
            group.create_task(self.singles(second, "audit"))
            group.create_task(self.batches(second, "audit"))
            group.create_task(self.events(second))
            group.create_task(self.calls())
            report("B")
            await self.ending.wait()
            for queue, consumer in consumers.items():
                if not await consumer.drain(DRAIN):
                    report("!", "a_consumer_could_not_be_drained", queue)
        report("Z", as_json({queue: dict(consumer.counters()) for queue, consumer in consumers.items()}))


async def main(url: str, seed: int) -> None:
    """Connects and runs."""
    async with leveret.connect(url) as client:
        service = Service(client, seed)
        loop = asyncio.get_running_loop()

        def listen() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                for line in sys.stdin:
                    loop.call_soon_threadsafe(service.command, line)
                loop.call_soon_threadsafe(service.command, "end")

        threading.Thread(target=listen, daemon=True).start()
        await service.run()


if __name__ == "__main__":
    logs = logging.StreamHandler()
    logs.setFormatter(Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[logs])
    leveret.run(main(sys.argv[1], int(sys.argv[2])))
