"""An app of two consumers: orders are billed, and billed orders are shipped.

Run it for ever with `leveret run examples.app:app --processes 2`, or once:

    python examples/app.py [amqp://guest:guest@localhost]
"""

from __future__ import annotations

import sys

from msgspec import Struct

import leveret

URL = sys.argv[1] if __name__ == "__main__" and len(sys.argv) > 1 else "amqp://guest:guest@localhost"

app = leveret.App(URL, name="shop", drain_timeout=10)
app.topology = leveret.Topology().queue("shop.billing").queue("shop.shipping")


class Order(Struct):
    """An order to bill."""

    id: int
    amount: float


class Parcel(Struct):
    """A parcel to ship."""

    order_id: int


@app.consumer("shop.billing", concurrency=8, prefetch=50)
async def bill(order: Order, message: leveret.Message) -> bool:
    """Publishes the parcel before the order is acknowledged: a crash in between bills twice, and loses no order."""
    if order.amount <= 0:
        return False  # its queue has no dead-letter exchange, so it goes to shop.billing.parked
    await app.client.message(Parcel(order.id)).routing_key("shop.shipping").publish()
    return True


shipped: list[int] = []


@app.consumer("shop.shipping")
async def ship(parcel: Parcel, message: leveret.Message) -> None:
    """Ends the program with the last parcel."""
    shipped.append(parcel.order_id)
    if __name__ == "__main__" and len(shipped) == 9:
        app.stop()


if __name__ == "__main__":

    @app.on_startup
    async def sell(client: leveret.Client) -> None:
        async with client.producer() as producer:
            result = await producer.publish_batch((Order(i, float(i)) for i in range(10)), "shop.billing")
            result.raise_for_failures()

    @app.on_shutdown
    async def clean_up(client: leveret.Client) -> None:
        for queue in ("shop.billing", "shop.billing.parked", "shop.shipping"):
            await client.delete_queue(queue)

    app.run()
    counters = app.counters()
    print(f"{len(shipped)} parcels; {counters['acked']} acknowledged, {counters['parked']} parked")
