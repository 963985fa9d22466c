"""Publishings that are written again on another channel, or for the first time after they were kept for it."""

from __future__ import annotations

from tests.support.settlements import ORDERS, SOMEBODY_WAITS, ack, run

from leveret.errors import EncodeFailed, LeveretError
from leveret.publishing.confirms import ConfirmWindow
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.publishing import Ticket
from leveret.publishing.template import PublishTemplate
from leveret.wire.buffers import SendBuffer
from leveret.wire.properties import Properties


def moved(*bodies: bytes) -> tuple[ConfirmWindow, PublishBatch]:
    """A window whose publishings were all sent again on a second channel."""
    window = ConfirmWindow()
    batch = PublishBatch(SendBuffer(lambda: None, lambda: None), window)
    for body in bodies:
        batch.add(ORDERS, body)
    window.renumber()
    assert batch.resend(len(bodies) + 1)
    return window, batch


def test_confirms_find_the_old_and_the_new_when_some_were_sent_again() -> None:
    window, batch = moved(b"1", b"2", b"3")
    assert batch.add(ORDERS, b"4") == 4
    window.settle(ack(2))
    assert [window.is_open(tag) for tag in (1, 2, 3, 4)] == [True, False, True, True]
    window.settle(ack(4))  # the first one of the new channel's own
    assert [window.is_open(tag) for tag in (1, 3, 4)] == [True, True, False]
    window.settle(ack(3, multiple=True))
    assert (window.confirmed, window.outstanding, window.ignored) == (4, 0, 0)


def test_tags_differ_by_what_was_settled_before_when_another_channel_took_over() -> None:
    window = ConfirmWindow()
    batch = PublishBatch(SendBuffer(lambda: None, lambda: None), window)
    for _ in range(10):
        batch.add(ORDERS, b"x")
    window.settle(run((7, True, False), (9, False, False)))
    window.renumber()  # 8 and 10 are left
    assert batch.resend(100)
    told: list[tuple[int, bool, bool]] = []
    assert batch.add(ORDERS, b"x") == 11
    window.settle(run((2, True, False), (3, False, True)), told)
    assert told == [(8, False, False), (10, False, False), (11, False, True)]
    assert (window.confirmed, window.nacked, window.outstanding) == (10, 1, 0)


def test_a_confirm_is_not_told_again_when_a_later_one_covers_it() -> None:
    window, _ = moved(b"1", b"2", b"3")
    told: list[tuple[int, bool, bool]] = []
    window.settle(run((2, False, False), (3, True, True)), told)
    assert told == [(2, False, False), (1, False, True), (3, False, True)]
    assert (window.confirmed, window.nacked) == (1, 2)


def test_confirms_end_only_what_was_sent_again_when_they_come_in_the_middle_of_that() -> None:
    window = ConfirmWindow()
    batch = PublishBatch(SendBuffer(lambda: None, lambda: None), window)
    for number in range(5):
        batch.add(ORDERS, bytes([number]))
    window.renumber()
    assert batch.resend(2) is False
    told: list[tuple[int, bool, bool]] = []
    window.settle(run((0, True, False), (3, False, False), (5, True, False)), told)
    assert told == [(1, False, False), (2, False, False)]
    assert (window.confirmed, window.outstanding, window.ignored) == (2, 3, 2)
    assert batch.resend(10)
    window.settle(ack(5, multiple=True))
    assert window.outstanding == 0


def test_one_that_does_not_fit_ends_unknown_when_the_next_connection_has_smaller_frames() -> None:
    window = ConfirmWindow()
    batch = PublishBatch(out := SendBuffer(lambda: None, lambda: None), window)
    large = PublishTemplate("orders", "q", Properties(headers={"large": "x" * 5000}).encode())
    before, unlucky, behind = Ticket(), Ticket(), Ticket()
    for template, ticket in ((ORDERS, before), (large, unlucky), (ORDERS, behind)):
        batch.add(template, b"x", ticket)
    out.take()
    window.renumber()
    batch.attach(out, 1, 4096)
    assert batch.resend(10)
    assert window.expire(0) == [unlucky]
    assert unlucky.failures is not None
    assert isinstance(unlucky.failures[0], EncodeFailed)
    window.settle(ack(2, multiple=True))
    assert (before.confirmed, behind.confirmed, window.unknown, window.outstanding) == (1, 1, 1, 0)


def test_confirms_cost_one_step_for_each_publishing_when_ever_more_are_confirmed_at_once() -> None:
    # A broker that confirms 50,000 resent publishings one range after the other must not make us go through all of
    # them each time.
    count = 50_000
    window, _ = moved(*([b"x"] * count))
    told: list[tuple[int, bool, bool]] = []
    window.settle(run(*((tag, True, False) for tag in range(1, count + 1))), told)
    assert (window.confirmed, len(told)) == (count, count)


def test_large_frames_count_among_the_bytes_that_are_kept_until_they_are_let_go() -> None:
    window = ConfirmWindow()
    batch = PublishBatch(out := SendBuffer(lambda: None, lambda: None), window)
    large = PublishTemplate("orders", "q", Properties(headers={"large": "x" * 5000}).encode())
    batch.add(ORDERS, b"12345")
    batch.add(large, b"12345")
    assert window.outstanding_bytes - 10 in range(5000, 5100)
    window.renumber()
    batch.hold(large, b"12345")
    assert window.outstanding_bytes - 15 in range(10_000, 10_200)
    before = window.outstanding_bytes
    assert batch.resend(10)
    assert window.outstanding_bytes == before + 22, "the header of the one that was sent again"
    assert len(out) > 15_000
    window.settle(ack(3, multiple=True))
    assert (window.outstanding, window.outstanding_bytes) == (0, 0)


def test_what_is_written_without_confirms_is_let_go_once_it_is_written() -> None:
    held = ConfirmWindow()
    batch = PublishBatch(out := SendBuffer(lambda: None, lambda: None), None, held=held)
    ticket = Ticket()
    ticket.future = SOMEBODY_WAITS
    assert (batch.hold(ORDERS, b"1", ticket), batch.hold(ORDERS, b"2", ticket, 1)) == (1, 2)
    assert (held.outstanding, held.held, batch.published) == (2, 2, 0)
    held.renumber()
    assert batch.resend(10)
    assert held.expire(0) == [ticket]
    assert (ticket.pending, ticket.failures) == (0, None)
    assert (held.outstanding, held.held, batch.published) == (0, 0, 2)
    assert batch.add(ORDERS, b"3") == 0
    assert len(out) > 0


def test_what_was_never_written_ends_as_not_sent() -> None:
    window, ticket = ConfirmWindow(), Ticket()
    batch = PublishBatch(SendBuffer(lambda: None, lambda: None), window)
    batch.add(ORDERS, b"written", ticket)
    batch.hold(ORDERS, b"held", ticket, 1)
    reason, unsent = LeveretError("lost"), LeveretError("not sent")
    window.give_up_written(reason)
    assert (window.unknown, window.not_sent, window.outstanding) == (1, 0, 1)
    window.expire(2, reason, unsent)
    assert (window.unknown, window.not_sent, window.outstanding) == (1, 1, 0)
    assert ticket.failures == {0: reason, 1: unsent}
