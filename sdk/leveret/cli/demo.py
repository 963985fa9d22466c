"""`leveret demo`: publishes typed orders in confirmed batches, consumes them, checks that each came exactly once."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Final

from leveret.cli.orders import Order, orders
from leveret.cli.progress import supervise
from leveret.cli.stage import STALL, Stage, together

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import leveret
    from leveret.cli.measure import Clocks, Span
    from leveret.cli.progress import Bars
    from leveret.cli.stage import Target

__all__ = ["DemoResult", "Ledger", "run_demo"]

#: While one batch waits for its confirms, the next is made and sent.
_BATCHES_IN_FLIGHT: Final = 2
_KEY: Final = "order.created"
#: Messages of a batch.
_BATCH_SIZE: Final = 1000
#: Handlers that run at once.
_CONCURRENCY: Final = 8
_PREFETCH: Final = 500


class Ledger:
    """Records each order that is published and received, with one byte for each.

    Args:
        count: The number of orders.

    Attributes:
        count: The number of orders.
        first_id: The integer of the first order's UUID; the others follow.
        published: Orders made so far.
        received: Orders received so far.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        # A random identity (RFC 9562, version 4) whose last 62 bits are free to count.
        self.first_id = uuid.uuid4().int >> 62 << 62
        self.published = 0
        self.received = 0
        self._strangers = 0
        self._amount_out = 0
        self._amount_in = 0
        self._seen = bytearray(count)

    def outgoing(self, made: Iterable[Order]) -> Iterator[Order]:
        """Yields the orders and records them as published."""
        for order in made:
            self.published += 1
            self._amount_out += order.amount
            yield order

    def incoming(self, order: Order) -> None:
        """Records a received order."""
        self.received += 1
        self._amount_in += order.amount
        index = order.id.int - self.first_id
        if 0 <= index < self.count:
            # Counts up to 2, because a byte holds no more than 255.
            self._seen[index] = min(2, self._seen[index] + 1)
        else:
            self._strangers += 1

    def errors(self) -> list[str]:
        """Returns the discrepancies; the list is empty when every order came exactly once."""
        missing, twice = self._seen.count(0), self._seen.count(2)
        found = {
            "orders not published": self.count - self.published,
            "orders missing": missing,
            "orders delivered more than once": twice,
            "orders delivered but not published": self._strangers,
        }
        errors = [f"{text}: {number}" for text, number in found.items() if number]
        if self._amount_in != self._amount_out:
            errors.append(f"the received amounts add up to {self._amount_in}, the published ones to {self._amount_out}")
        return errors


@dataclass(frozen=True, slots=True)
class DemoResult:
    """The result of the demo.

    Attributes:
        publishing: From the first order to the last confirm.
        consuming: From the first order to the end of the consumer, which follows its last acknowledgement.
        producer: The producer's counters.
        consumer: The consumer's counters.
        errors: The discrepancies; empty when every order was confirmed, came exactly once and was acknowledged.
    """

    publishing: Span
    consuming: Span
    producer: dict[str, int]
    consumer: dict[str, int]
    errors: list[str]


async def run_demo(target: Target, clocks: Clocks, bars: Bars) -> DemoResult:
    """Publishes and consumes `target.count` orders at the same time.

    Raises:
        Incomplete: There was no progress for `STALL` seconds.
        LeveretError: The broker refused something, or the connection was lost.
    """
    count = target.count
    ledger = Ledger(count)
    async with Stage(target, "demo-orders", _KEY) as stage, stage.producer() as producer:
        consumer = stage.consumer(Order, concurrency=_CONCURRENCY, prefetch=_PREFETCH)
        start = publishing = clocks.now()

        async def handle(order: Order, message: leveret.Message) -> None:
            ledger.incoming(order)
            if ledger.received == count:
                consumer.stop()

        made = ledger.outgoing(orders(count, first_id=ledger.first_id))

        async def publish_batches() -> None:
            nonlocal publishing
            while batch := list(islice(made, _BATCH_SIZE)):
                (await producer.publish_batch(batch, _KEY)).raise_for_failures()
            publishing = clocks.since(start)

        with (
            bars.bar("published and confirmed", count, lambda: producer.counters()["confirmed"]),
            bars.bar("consumed and acknowledged", count, lambda: consumer.counters()["acked"]),
        ):
            works = [publish_batches() for _ in range(_BATCHES_IN_FLIGHT)]
            await supervise(together(*works, consumer.run(handle)), bars, name="demo", stall=STALL)
        consuming = clocks.since(start)
        await stage.expect(0, consumers=0)
        sent, taken = producer.counters(), consumer.counters()
    errors = ledger.errors()
    errors += [f"publishings {name}: {sent[name]}" for name in ("returned", "nacked", "unknown") if sent[name]]
    done = {"confirmed": sent["confirmed"], "acknowledged": taken["acked"]}
    errors += [f"orders not {verb}: {count - number}" for verb, number in done.items() if number != count]
    return DemoResult(publishing, consuming, sent, taken, errors)
