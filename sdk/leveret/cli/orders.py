"""The workload: the performance guide's order, in its own size or padded to a given size."""

from __future__ import annotations

import random
import string
import uuid
from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Order", "OrderItem", "encode", "least_size", "orders"]


class OrderItem(msgspec.Struct, rename="pascal"):
    """A line of an order."""

    product_name: str
    quantity: int
    price: int


class Order(msgspec.Struct, rename="pascal", omit_defaults=True):
    """The guide's order. The field `filler` is an addition; bodies have it only when they are padded."""

    id: uuid.UUID
    customer_name: str
    amount: int
    items: list[OrderItem]
    filler: str = ""


#: The compact JSON that Leveret's own serializer writes.
encode: Final = msgspec.json.Encoder().encode

_FILLER_KEY_BYTES: Final = len(b',"Filler":""')


def least_size(count: int) -> int:
    """Returns the smallest size in bytes that orders can be padded to.

    Args:
        count: The number of orders; the last one has the longest names.

    Returns:
        The bytes of the longest order with a filler of one letter (JSON leaves out an empty one).
    """
    last = count - 1
    longest = Order(uuid.UUID(int=0), f"Customer {last}", 999, [OrderItem(f"Product {last}", 1, 99)])
    return len(encode(longest)) + _FILLER_KEY_BYTES + 1


def orders(count: int, size: int = 0, *, first_id: int | None = None) -> Iterator[Order]:
    """Makes the guide's orders. Apart from their UUIDs they are the same at each call.

    Args:
        count: The number of orders, at least 1.
        size: Bytes of each order in JSON; 0 for the guide's order without padding.
        first_id: The integer of the first UUID, from which they count up; None for random UUIDs.

    Yields:
        The orders.

    Raises:
        ValueError: The size is less than `least_size`. The text names both.
    """
    least = least_size(count)
    if size and size < least:
        raise ValueError(
            f"{count} orders cannot have {size} bytes each; the least is {least} bytes, or 0 for no padding"
        )
    chance = random.Random(2025)  # noqa: S311 - a workload, not a secret
    letters = "".join(chance.choices(string.ascii_letters, k=size))
    # Orders of the same length share one filler, so that many large orders fit into memory.
    fillers: dict[int, str] = {}
    for i in range(count):
        order = Order(
            uuid.uuid4() if first_id is None else uuid.UUID(int=first_id + i),
            f"Customer {i}",
            chance.randrange(10, 1000),
            [OrderItem(f"Product {i}", 1, chance.randrange(10, 100))],
        )
        if size:
            length = size - len(encode(order)) - _FILLER_KEY_BYTES
            order.filler = fillers.setdefault(length, letters[:length])
        yield order
