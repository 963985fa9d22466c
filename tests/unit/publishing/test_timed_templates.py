"""Publishings that tell when they were sent: one header more, which each write fills in."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import strategies

from leveret.errors import EncodeFailed
from leveret.publishing.confirms import ConfirmWindow
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.publishing import Ticket
from leveret.publishing.template import PublishTemplate
from leveret.wire.buffers import SendBuffer
from leveret.wire.encoding import FieldValue
from leveret.wire.properties import Properties
from leveret.wire.reader import FrameReader

assert strategies  # its import loads the hypothesis profile

HEADER = "x-leveret-sent-at"
HEADERS = st.none() | st.dictionaries(
    st.sampled_from(["a", HEADER, "x-leveret-sent-au", "x-leveret-sent-a", "é"]),
    st.integers(-(2**63), 2**63 - 1) | st.text(max_size=20) | st.lists(st.booleans(), max_size=3),
    max_size=4,
)


def timed(key: str = "key", **values: Any) -> PublishTemplate:
    return PublishTemplate("x", key, Properties(**values).encode(), timed=True)


class Publisher:
    """A batch whose buffer is read as a broker reads it."""

    def __init__(self, window: ConfirmWindow | None = None) -> None:
        self.out = SendBuffer(lambda: None, lambda: None)
        self.batch = PublishBatch(self.out, window, held=window)

    def written(self) -> list[Any]:
        runs: list[Any] = FrameReader(server=True, frame_max=131072).feed(self.out.take())
        return [message for run in runs for message in run.messages]


@given(HEADERS, st.booleans(), st.booleans())
def test_a_timed_template_has_one_header_more_and_nothing_else_changes(
    headers: dict[str, Any] | None, typed: bool, encoded: bool
) -> None:
    values: dict[str, Any] = {"priority": 3, "message_id": "m", "app_id": "a"}
    if typed:
        values["content_type"] = "application/json"
    if encoded:
        values["content_encoding"] = "gzip"
    after = Properties(**values, headers={**(headers or {}), HEADER: FieldValue("l", 0)}).encode()
    assert timed(headers=headers, **values).raw_properties == after


@pytest.mark.parametrize("confirms", [True, False])
def test_messages_of_one_write_have_its_time_whatever_their_size(confirms: bool) -> None:
    publisher = Publisher(ConfirmWindow() if confirms else None)
    template = timed(headers={"tenant": 7}, message_id="m")
    times = []
    for _ in range(2):
        before = time.time()
        for body in (b"", b"x" * 100, b"y" * 200_000, b"z"):
            publisher.batch.add(template, body)
        assert publisher.batch.add_run(template, [b"in", b"a", b"run"], 0, None, 0, 1000) == 3
        after = time.time()
        found = publisher.written()
        assert [len(message.body) for message in found] == [0, 100, 200_000, 1, 2, 1, 3]
        (sent,) = {message.headers[HEADER] for message in found}
        assert found[0].headers["tenant"] == 7
        assert found[0].message_id == "m"
        assert before * 1e6 - 1 <= sent <= after * 1e6
        times.append(sent)
    assert times == sorted(times)


@pytest.mark.parametrize("size", [10, 20_000])
def test_what_is_sent_again_keeps_the_time_of_its_call(size: int) -> None:
    window = ConfirmWindow()
    publisher = Publisher(window)
    before = time.time()
    publisher.batch.add(timed(), b"x" * size)
    publisher.batch.add(PublishTemplate("x", "other"), b"untimed")
    (first, _) = publisher.written()
    publisher.batch.hold(timed("held"), b"x" * size)
    held_by = time.time()
    time.sleep(0.05)
    window.renumber()
    publisher.batch.attach(publisher.out, 1, 131072)
    assert publisher.batch.resend(10)
    publisher.batch.add(timed("new"), b"x")
    again, other, held, new = publisher.written()
    assert [message.routing_key for message in (again, other, held, new)] == ["key", "other", "held", "new"]
    assert again.headers["x-leveret-resent"] == 1
    assert before * 1e6 - 1 <= first.headers[HEADER]
    assert before * 1e6 - 1e6 <= again.headers[HEADER] <= first.headers[HEADER] + 1
    assert again.headers[HEADER] <= held.headers[HEADER] <= held_by * 1e6 + 1
    assert other.headers == {"x-leveret-resent": 1}
    assert new.headers[HEADER] >= held_by * 1e6 + 45_000


def test_a_returned_message_is_tied_to_its_publishing_by_its_other_properties() -> None:
    window = ConfirmWindow()
    publisher = Publisher(window)
    tickets = [Ticket(), Ticket()]
    for ticket, tenant in zip(tickets, (1, 2), strict=True):
        template = PublishTemplate(
            "x", "key", Properties(headers={"tenant": tenant}).encode(), mandatory=True, timed=True
        )
        publisher.batch.add(template, b"body", ticket)
    _, second = publisher.written()
    assert second.headers["tenant"] == 2
    assert window.tie_return(second) == 2
    assert tickets[1].failures == {0: second}
    assert second.headers[HEADER] > 0


def test_a_timed_template_that_is_too_large_or_malformed_is_refused() -> None:
    fits = Properties(headers={"a": b"x" * 4045}).encode()
    assert PublishTemplate("x", "key", fits, frame_max=4096)
    with pytest.raises(EncodeFailed, match="frame_max is 4096"):
        PublishTemplate("x", "key", fits, frame_max=4096, timed=True)
    with pytest.raises(EncodeFailed, match="malformed"):
        PublishTemplate("x", "key", b"\x20\x00\x00\x00\x00\xff", timed=True)
