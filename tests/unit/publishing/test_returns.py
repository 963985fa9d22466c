"""Returned messages without a caller are logged, and not one by one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from tests.corpus import frames

from leveret.publishing.returns import ReturnLog
from leveret.wire.properties import Properties
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    import pytest

    from leveret.wire.message import Message


def returned(raw_properties: bytes) -> Message:
    names = frames.shortstr("NO_ROUTE") + frames.shortstr("events") + frames.shortstr("user.gone")
    data = frames.method(1, 60, frames.RETURN, (312).to_bytes(2) + names) + frames.header(1, 0, raw_properties)
    return frames.run_of(FrameReader().feed(data)).messages[0]


MESSAGE = returned(Properties(message_id="m-7").encode())


def test_the_first_is_logged_with_what_identifies_it(caplog: pytest.LogCaptureFixture) -> None:
    ReturnLog().add(0.0, MESSAGE)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    text = record.getMessage()
    assert "312 NO_ROUTE (exchange 'events', routing key 'user.gone', message id 'm-7')" in text
    assert "mandatory=False" in text


def test_one_record_in_ten_seconds_counts_the_others(caplog: pytest.LogCaptureFixture) -> None:
    log = ReturnLog()
    for number in range(1000):
        log.add(number / 1000, MESSAGE)
    assert len(caplog.records) == 1
    log.add(10.0, MESSAGE)
    assert "and 999 others since the last record" in caplog.records[1].getMessage()
    log.add(20.0, MESSAGE)
    assert "others" not in caplog.records[2].getMessage()


def test_a_message_with_malformed_properties_is_logged_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    # headers of 255 bytes, of which there are none
    ReturnLog().add(0.0, returned(b"\x20\x00\x00\x00\x00\xff"))
    assert "message id None" in caplog.records[0].getMessage()
