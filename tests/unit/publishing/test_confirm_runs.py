"""Publishings that are opened together, and end together or one by one; the model is in test_confirm_window.py."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.settlements import ORDERS, SOMEBODY_WAITS, ack, run

from leveret.message import Outcome
from leveret.publishing.confirms import ConfirmWindow
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.publishing import Ticket
from leveret.wire.buffers import SendBuffer

#: Stands for a returned message.
MESSAGE: Any = object()


def publish_run(batch: PublishBatch, bodies: list[bytes], ticket: Ticket | None, index: int = 0) -> None:
    """Publishes bodies in few runs: each ends with the block of the send buffer."""
    done = 0
    while done < len(bodies):
        more = batch.add_run(ORDERS, bodies, done, ticket, index + done, 2**40)
        assert more > 0
        done += more


@pytest.mark.parametrize("ticketed", [True, False])
def test_a_run_is_split_where_an_outcome_hits_it(ticketed: bool) -> None:
    window, ticket = ConfirmWindow(), Ticket() if ticketed else None
    batch = PublishBatch(SendBuffer(lambda: None, lambda: None), window)
    publish_run(batch, [bytes(i) for i in range(10)], ticket, 100)
    window.mark_returned(3, MESSAGE)
    window.settle(run((5, False, True), (7, False, False)))
    window.give_up(8)
    window.settle(ack(9, multiple=True))
    assert (window.first, window.outstanding, window.outstanding_bytes) == (10, 1, 9)
    assert (window.confirmed, window.returned, window.nacked, window.unknown) == (6, 1, 1, 1)
    window.settle(ack(10, multiple=True))
    assert (window.outstanding, window.outstanding_bytes, window.ignored) == (0, 0, 0)
    if ticket is not None:
        assert ticket.failures == {102: MESSAGE, 104: Outcome.NACKED, 107: Outcome.UNKNOWN}
        assert (ticket.delivery_tag, ticket.count, ticket.pending, ticket.confirmed) == (1, 10, 0, 7)


def test_tickets_are_handed_out_each_when_one_confirm_ends_several_runs() -> None:
    window = ConfirmWindow()
    batch = PublishBatch(SendBuffer(lambda: None, lambda: None), window)
    tickets = [Ticket() for _ in range(3)]
    for ticket in tickets:
        ticket.future = SOMEBODY_WAITS
        publish_run(batch, [b"x"] * 50, ticket)
    assert window.settle(ack(149, multiple=True)) == tickets[:2]
    assert window.settle(ack(150, multiple=True)) == tickets[2:]
