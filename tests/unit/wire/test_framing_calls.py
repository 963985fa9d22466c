"""A read makes a fixed number of Python calls. Unlike a timing, the bound does not drift with the machine."""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.corpus import frames

from leveret.consuming.acks import AckWindow
from leveret.consuming.channel_deliveries import ChannelDeliveries
from leveret.publishing.confirms import ConfirmWindow
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.publishing import Ticket
from leveret.publishing.template import PublishTemplate
from leveret.wire.buffers import SendBuffer
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable

#: The call itself, what `sys.setprofile` counts of its own switching off, and a margin of two.
BOUND = 5
COUNT = 1000


def calls_of(function: Callable[..., Any], *args: object) -> tuple[int, Any]:
    """Counts the Python and C calls that the interpreter sees while `function` runs."""
    seen: list[str] = []
    gc.disable()
    sys.setprofile(lambda frame, event, arg: seen.append(event) if event in {"call", "c_call"} else None)
    try:
        result = function(*args)
    finally:
        sys.setprofile(None)
        gc.enable()
    return len(seen), result


DELIVERIES = b"".join(frames.delivery(1, tag, b"small body", exchange="e") for tag in range(1, COUNT + 1))
SETTLEMENTS = b"".join(frames.ack(1, tag) for tag in range(1, COUNT + 1))
PUBLISHINGS = b"".join(frames.publish(1) + frames.header(1, 3) + frames.body(1, b"abc") for _ in range(COUNT))


@pytest.mark.parametrize(
    ("data", "server"),
    [(DELIVERIES, False), (SETTLEMENTS, False), (PUBLISHINGS, True), (SETTLEMENTS, True)],
    ids=["deliveries", "confirms", "publishings", "acks"],
)
def test_calls_do_not_grow_with_the_messages_when_a_read_holds_a_thousand(data: bytes, server: bool) -> None:
    reader = FrameReader(server=server)
    count, (run,) = calls_of(reader.feed, data)
    assert len(getattr(run, "messages", run)) == COUNT
    assert count <= BOUND
    reader.get_buffer(-1)[: len(data)] = data
    count, (run,) = calls_of(reader.received, len(data))
    assert len(getattr(run, "messages", run)) == COUNT
    assert count <= BOUND


class Owner:
    """The decoder and the settler of a consumer."""

    def decode(self, message: object) -> object:
        return message

    def plain(self, message: object) -> None:
        return None

    async def settle(self, deliveries: object, message: object, verb: str, detail: object) -> bool:
        return True


def test_calls_do_not_grow_with_the_messages_when_a_run_is_taken_up_and_acknowledged_at_once() -> None:
    (run,) = FrameReader().feed(DELIVERIES)
    window = AckWindow(1)
    assert calls_of(window.delivered, run)[0] <= BOUND
    owner = Owner()
    deliveries = ChannelDeliveries("orders", 1, SendBuffer(lambda: None, lambda: None), owner, owner.settle)
    assert calls_of(deliveries.adopt, run, 1.0)[0] <= BOUND
    for tag in range(1, COUNT + 1):
        window.ack(tag)
    assert calls_of(window.flush, SendBuffer(lambda: None, lambda: None))[0] <= BOUND + 1  # it schedules a flush


def test_calls_do_not_grow_with_the_messages_when_a_thousand_publishings_are_confirmed() -> None:
    window, ticket = ConfirmWindow(), Ticket()
    batch = PublishBatch(SendBuffer(lambda: None, lambda: None), window)
    for _ in range(COUNT):
        batch.add(PublishTemplate("", "q"), b"small body", ticket)
    (confirms,) = FrameReader().feed(SETTLEMENTS)
    assert calls_of(window.settle, confirms)[0] <= BOUND
    assert ticket.confirmed == COUNT
