"""The main job: typed orders, published in confirmed batches and consumed with acknowledgements, each exactly once."""

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
    from leveret.cli.measure import Meter, Span
    from leveret.cli.progress import Bars
    from leveret.cli.stage import Target

__all__ = ["Ledger", "Outcome", "run_demo"]

#: While one batch waits for its confirms, the next is made and sent.
_BATCHES_IN_FLIGHT: Final = 2
_KEY: Final = "order.created"
#: Handlers that run at once.
_CONCURRENCY: Final = 8


class Ledger:
    """Keeps account of every order on its way out and in, in one byte each.

    Args:
        count: How many orders there will be.

    Attributes:
        count: How many orders there will be.
        first_id: The number of the first identity; the others follow.
        published: Orders made so far.
        received: Orders that came so far.
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
        """Passes orders on, and writes them down."""
        for order in made:
            self.published += 1
            self._amount_out += order.amount
            yield order

    def incoming(self, order: Order) -> None:
        """Writes down an order that came."""
        self.received += 1
        self._amount_in += order.amount
        index = order.id.int - self.first_id
        if 0 <= index < self.count:
            # Three times are as wrong as twice, and a byte holds no more than 255.
            self._seen[index] = min(2, self._seen[index] + 1)
        else:
            self._strangers += 1

    def errors(self) -> list[str]:
        """What does not agree; empty when every order came exactly once."""
        missing, twice = self._seen.count(0), self._seen.count(2)
        found = {
            "orders were not published": self.count - self.published,
            "orders are missing": missing,
            "orders came more than once": twice,
            "orders came that were not sent": self._strangers,
        }
        errors = [f"{number} {text}" for text, number in found.items() if number]
        if self._amount_in != self._amount_out:
            errors.append(f"the sum of amounts is {self._amount_in}, and {self._amount_out} was sent")
        return errors


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the demo found.

    Attributes:
        publishing: From the first order to the last confirm.
        consuming: From the first order to the answer to the last acknowledgement.
        producer: How the publishings ended.
        consumer: What became of the deliveries.
        errors: What is wrong; empty when every order was confirmed, came exactly once and was acknowledged.
    """

    publishing: Span
    consuming: Span
    producer: dict[str, int]
    consumer: dict[str, int]
    errors: list[str]


async def run_demo(target: Target, meter: Meter, bars: Bars) -> Outcome:
    """Publishes and consumes `target.count` orders at the same time.

    Raises:
        Incomplete: Nothing moved any more.
        LeveretError: The broker refused something, or the connection was lost.
    """
    count = target.count
    ledger = Ledger(count)
    async with Stage(target, "demo-orders", _KEY) as stage, stage.producer() as producer:
        consumer = stage.consumer(Order, concurrency=_CONCURRENCY)
        start = publishing = meter.now()

        async def handle(order: Order, message: leveret.Message) -> None:
            ledger.incoming(order)
            if ledger.received == count:
                consumer.stop()

        made = ledger.outgoing(orders(count, first_id=ledger.first_id))

        async def publish_batches() -> None:
            nonlocal publishing
            while batch := list(islice(made, target.batch_size)):
                (await producer.publish_batch(batch, _KEY)).raise_for_failures()
            publishing = meter.since(start)

        with (
            bars.bar("published and confirmed", count, lambda: producer.counters()["confirmed"]),
            bars.bar("consumed and acknowledged", count, lambda: consumer.counters()["acked"]),
        ):
            works = [publish_batches() for _ in range(_BATCHES_IN_FLIGHT)]
            await supervise(together(*works, consumer.run(handle)), bars, name="demo", stall=STALL)
        consuming = meter.since(start)
        await stage.expect(0, consumers=0)
        sent, taken = producer.counters(), consumer.counters()
    errors = ledger.errors()
    errors += [f"{sent[name]} publishings ended {name}" for name in ("returned", "nacked", "unknown") if sent[name]]
    done = {"confirmed": sent["confirmed"], "acknowledged": taken["acked"]}
    errors += [f"{count - number} orders were not {verb}" for verb, number in done.items() if number != count]
    return Outcome(publishing, consuming, sent, taken, errors)
