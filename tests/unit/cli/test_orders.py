"""The orders of `leveret demo`, and the ledger that accounts for them."""

from __future__ import annotations

import json
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leveret.cli.demo import Ledger
from leveret.cli.orders import Order, OrderItem, encode, least_size, orders
from leveret.plugins.builtin import JSONSerializer


@given(count=st.integers(1, 300), more=st.integers(0, 3000))
def test_padded_orders_are_exactly_so_many_bytes(count: int, more: int) -> None:
    size = least_size(count) + more
    bodies = [encode(order) for order in orders(count, size)]
    assert len(bodies) == count
    assert {len(body) for body in bodies} == {size}


@given(count=st.integers(1, 300), size=st.integers(1, 200))
def test_padded_orders_need_at_least_the_least_size(count: int, size: int) -> None:
    if size < least_size(count):
        with pytest.raises(ValueError, match=f"the least is {least_size(count)} bytes"):
            next(orders(count, size))
    else:
        assert len(encode(next(orders(count, size)))) == size


def test_orders_are_the_guide_s() -> None:
    made = list(orders(10_000))
    sizes = [len(encode(order)) for order in made]
    # 147 has an amount of two digits and an index of one; the guide's arithmetic says 148 to 154.
    assert min(sizes) in (147, 148)
    assert max(sizes) == 154
    assert len({order.id for order in made}) == 10_000
    assert all(10 <= order.amount < 1000 and 10 <= order.items[0].price < 100 for order in made)
    plain = json.loads(encode(made[7]))
    assert plain == {
        "Id": str(made[7].id),
        "CustomerName": "Customer 7",
        "Amount": made[7].amount,
        "Items": [{"ProductName": "Product 7", "Quantity": 1, "Price": made[7].items[0].price}],
    }
    assert JSONSerializer().decoder(Order)(encode(made[7])) == made[7]
    assert JSONSerializer().encode(made[7]) == encode(made[7])


def test_orders_are_the_same_each_time_but_for_their_identities() -> None:
    first, second = list(orders(20, 300)), list(orders(20, 300))
    assert [order.amount for order in first] == [order.amount for order in second]
    assert first[0].id != second[0].id
    assert [order.id.int for order in orders(3, first_id=5)] == [5, 6, 7]


def account(count: int) -> tuple[Ledger, list[Order]]:
    ledger = Ledger(count)
    return ledger, list(ledger.outgoing(orders(count, first_id=ledger.first_id)))


def test_ledger_agrees_when_every_order_came_once() -> None:
    ledger, sent = account(1000)
    for order in reversed(sent):
        ledger.incoming(order)
    assert ledger.errors() == []
    assert all(order.id.version == 4 and order.id.variant == uuid.RFC_4122 for order in sent)


def test_ledger_names_what_is_missing_twice_or_strange() -> None:
    ledger, sent = account(1000)
    for order in [*sent[:-2], *[sent[0]] * 300]:
        ledger.incoming(order)
    ledger.incoming(Order(uuid.UUID(int=ledger.first_id - 1), "", 0, [OrderItem("", 1, 1)]))
    ledger.incoming(Order(uuid.UUID(int=ledger.first_id + 1000), "", 0, []))
    errors = "; ".join(ledger.errors())
    assert "orders missing: 2" in errors
    assert "orders delivered more than once: 1" in errors
    assert "orders delivered but not published: 2" in errors
    assert "amounts add up to" in errors


def test_ledger_notices_an_order_in_another_s_place_by_its_amount() -> None:
    ledger, sent = account(2)
    sent[0].amount += 1
    for order in sent:
        ledger.incoming(order)
    assert len(ledger.errors()) == 1
