"""Each message that leaves without being handled is counted, and named in the log, however many there are."""

from __future__ import annotations

import asyncio
import logging
import re
from typing import TYPE_CHECKING, Any

import pytest
from tests.corpus import frames

from leveret.consuming.acks import AckWindow
from leveret.consuming.failing.departures import Departures
from leveret.monitoring.meters import ConsumerMeter
from leveret.wire.properties import Properties
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from leveret.wire.message import Message


def delivery(properties: bytes, body: bytes) -> bytes:
    """The frames of a delivery with these packed properties."""
    return frames.deliver(1, 1) + frames.header(1, len(body), properties) + frames.body(1, body)


def message(message_id: str | None, body: bytes = b"12345") -> Message:
    raw = Properties(message_id=message_id).encode()
    (made,) = frames.run_of(FrameReader().feed(delivery(raw, body))).messages
    return made


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    return [record.getMessage() for record in caplog.records]


@pytest.fixture
async def meter() -> ConsumerMeter:
    return ConsumerMeter(AckWindow(0))


async def test_each_kind_is_counted_and_said_with_queue_id_size_and_reason(
    meter: ConsumerMeter, caplog: pytest.LogCaptureFixture
) -> None:
    departures = Departures("orders", meter, asyncio.get_running_loop())
    departures.parked(message("a"), "orders.parked", "ValueError")
    departures.rejected(message("b", b"1"), "refused")
    departures.dropped(message(None), "KeyError")
    departures.flush()
    assert said(caplog) == [
        "queue 'orders': message 'a' (5 bytes) parked in 'orders.parked': ValueError",
        "queue 'orders': message 'b' (1 bytes) rejected; lost unless the queue has a dead-letter exchange: refused",
        "queue 'orders': message None (5 bytes) dropped: KeyError",
    ]
    counted = meter.read()
    assert (counted["parked"], counted["rejected"], counted["dropped"]) == (1, 1, 1)


async def test_no_id_is_missing_when_thousands_leave_in_a_second(
    meter: ConsumerMeter, caplog: pytest.LogCaptureFixture
) -> None:
    departures = Departures("orders", meter, asyncio.get_running_loop())
    for number in range(2000):
        departures.dropped(message(f"id-{number}"), "ValueError")
    departures.flush()
    records = said(caplog)
    assert len(records) == 20 + 20
    assert sorted(map(int, re.findall(r"'id-(\d+)'", " ".join(records)))) == list(range(2000))
    assert max(map(len, records)) < 5000
    assert meter.dropped == 2000


async def test_what_waits_to_be_said_is_said_a_second_later(
    meter: ConsumerMeter, caplog: pytest.LogCaptureFixture
) -> None:
    timers: list[tuple[float, Any]] = []

    class Loop:
        def call_later(self, delay: float, function: Any) -> asyncio.TimerHandle:
            timers.append((delay, function))
            return asyncio.get_running_loop().call_later(3600, lambda: None)

    departures = Departures("orders", meter, Loop())  # type: ignore[arg-type]
    for number in range(25):
        departures.dropped(message(str(number)), "ValueError")
    assert len(said(caplog)) == 20
    ((delay, second_ended),) = timers
    assert delay == 1.0
    second_ended()
    assert said(caplog)[-1] == (
        "queue 'orders': 5 messages dropped: ValueError: '20' (5 bytes), '21' (5 bytes), '22' (5 bytes), "
        "'23' (5 bytes), '24' (5 bytes)"
    )


async def test_messages_that_are_lost_together_share_records(
    meter: ConsumerMeter, caplog: pytest.LogCaptureFixture
) -> None:
    departures = Departures("orders", meter, asyncio.get_running_loop())
    departures.all_dropped([message(f"id-{number}") for number in range(250)], "the consumer ended")
    assert [len(re.findall("'id-", text)) for text in said(caplog)] == [100, 100, 50]
    assert meter.dropped == 250


async def test_an_id_that_cannot_be_read_does_not_keep_a_message_out_of_the_log(
    meter: ConsumerMeter, caplog: pytest.LogCaptureFixture
) -> None:
    departures = Departures("orders", meter, asyncio.get_running_loop())
    (broken,) = frames.run_of(FrameReader().feed(delivery(b"\x20\0\xff\xff\xff\xff", b"x"))).messages
    departures.dropped(broken, "DecodeFailed")
    departures.flush()
    assert said(caplog) == ["queue 'orders': message with an unreadable id (1 bytes) dropped: DecodeFailed"]
