"""The orders of the performance guide."""

from __future__ import annotations

import msgspec


class OrderItem(msgspec.Struct, rename="camel"):
    """The guide's order, with its members."""

    product_name: str
    quantity: int
    price: float


class Order(msgspec.Struct, rename="camel"):
    id: int
    customer_name: str
    amount: float
    items: list[OrderItem]


def orders(count: int) -> list[Order]:
    return [Order(n, f"Customer {n}", n % 990 + 10, [OrderItem(f"Product {n}", 1, 9.5)]) for n in range(count)]
