"""Messages that a consumer holds: each comes back when it is due, and no others come while too many are held."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import frames

from leveret.consuming.acks import AckWindow
from leveret.consuming.channel_deliveries import ChannelDeliveries, reserve, restore
from leveret.consuming.failing import held_messages
from leveret.consuming.failing.held_messages import LONGEST_HOLD, HeldMessages, Intake, hold_delay
from leveret.monitoring.meters import ConsumerMeter
from leveret.wire.buffers import SendBuffer
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.wire.message import Message


class Loop:
    """A clock and one timer, which the test sets off."""

    def __init__(self) -> None:
        self.now = 0.0
        self.timers: list[tuple[float, Any, list[bool]]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, function: Callable[[], None]) -> Any:
        cancelled: list[bool] = []
        self.timers.append((when, function, cancelled))

        class Handle:
            def cancel(self) -> None:
                cancelled.append(True)

        return Handle()

    def call_later(self, delay: float, function: Callable[[], None]) -> Any:
        return self.call_at(self.now + delay, function)

    def go_to(self, when: float) -> None:
        """Lets time pass, with every timer at its time."""
        while due := [timer for timer in self.timers if not timer[2] and timer[0] <= when]:
            first = min(due, key=lambda timer: timer[0])
            self.timers.remove(first)
            self.now = max(self.now, first[0])
            first[1]()
        self.now = when


class Decoder:
    """Decodes and settles nothing."""

    def decode(self, message: Message) -> None: ...

    def plain(self, message: Message) -> None: ...


class Consumer:
    """What holds messages, and what it does to the rest of a consumer."""

    def __init__(self, count: int, share: int, body: bytes = b"x") -> None:
        self.loop = Loop()
        self.meter = ConsumerMeter(AckWindow(0))
        self.given: list[tuple[float, int]] = []
        self.unstarted = 0
        # What was asked of the renewal: None to look, or whether to withhold.
        self.asked: list[bool | None] = []
        self.held = HeldMessages(
            self.loop,  # type: ignore[arg-type]
            self.meter,
            share=lambda: share,
            unstarted=lambda: self.unstarted,
            give=self._give,
            renewal=lambda: self,  # type: ignore[arg-type, return-value]
        )
        decoder = Decoder()
        self.deliveries = ChannelDeliveries(
            "orders",
            1,
            SendBuffer(lambda: None, lambda: None),
            decoder,
            lambda *_: None,  # type: ignore[arg-type]
        )
        run = frames.run_of(FrameReader().feed(b"".join(frames.delivery(1, tag, body) for tag in range(1, count + 1))))
        self.deliveries.acks.delivered(run)
        self.deliveries.adopt(run, 0.0)
        self.messages = run.messages

    def look(self) -> None:
        self.asked.append(None)

    def withhold(self, is_withheld: bool) -> None:
        self.asked.append(is_withheld)

    @property
    def withheld(self) -> list[bool]:
        """What was asked, without the looks."""
        return [what for what in self.asked if what is not None]

    def _give(self, messages: list[Message]) -> None:
        self.given += [(self.loop.now, message.delivery_tag) for message in messages]


def test_each_message_comes_back_when_it_is_due_and_can_be_settled_then() -> None:
    consumer = Consumer(3, share=10)
    one, two, three = consumer.messages
    for message, delay in ((one, 5.0), (two, 1.0), (three, 1.0)):
        consumer.held.hold(message, delay)
        assert message.is_settled, "nothing else settles a held message"
    assert (len(consumer.held), consumer.meter.held) == (3, 3)
    consumer.loop.go_to(0.9)
    assert consumer.given == []
    consumer.loop.go_to(10)
    assert consumer.given == [(1.0, 2), (1.0, 3), (5.0, 1)]
    assert not any(message.is_settled for message in consumer.messages)
    assert consumer.meter.held == 0
    assert all(cancelled for _, _, cancelled in consumer.loop.timers)


def test_no_hold_is_longer_than_ten_minutes() -> None:
    consumer = Consumer(1, share=10)
    consumer.held.hold(consumer.messages[0], 10_000_000)
    consumer.loop.go_to(LONGEST_HOLD)
    assert LONGEST_HOLD == 600
    assert consumer.given == [(600.0, 1)]


@pytest.fixture
def two_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_messages, "MOST_HELD", 2)


@pytest.mark.usefixtures("two_at_most")
def test_deliveries_are_withheld_until_fewer_are_held_and_none_waits() -> None:
    consumer = Consumer(3, share=1)
    one, two, three = consumer.messages
    consumer.held.hold(one, 1)
    assert (consumer.held.intake, consumer.asked) == (Intake.OPEN, [None])
    consumer.unstarted = 1
    consumer.held.hold(two, 3)
    assert (consumer.held.intake, consumer.asked) == (Intake.FULL, [None, True])
    # What is here is handled and may be held as well; what is due comes back.
    consumer.held.hold(three, 5)
    consumer.loop.go_to(4)
    assert (consumer.given, consumer.held.intake) == ([(1.0, 1), (3.0, 2)], Intake.FULL)
    consumer.unstarted = 0
    consumer.loop.go_to(4.1)
    assert (consumer.held.intake, consumer.asked) == (Intake.OPEN, [None, True, False, None])
    assert len(consumer.held) == 1


@pytest.mark.usefixtures("two_at_most")
def test_half_of_a_large_prefetch_is_held_in_any_case() -> None:
    consumer = Consumer(3, share=3)
    for message in consumer.messages[:2]:
        consumer.held.hold(message, 1)
    assert consumer.withheld == []
    consumer.held.hold(consumer.messages[2], 1)
    assert (consumer.held.intake, consumer.withheld) == (Intake.FULL, [True])


def test_large_bodies_are_held_up_to_a_number_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_messages, "MOST_BYTES", 2000)
    consumer = Consumer(3, share=1, body=bytes(999))
    one, two, three = consumer.messages
    consumer.held.hold(one, 1)
    assert consumer.withheld == []
    consumer.held.hold(two, 5)
    assert consumer.withheld == [True]
    consumer.loop.go_to(2)
    assert consumer.withheld == [True, False]
    consumer.held.hold(three, 5)
    assert consumer.withheld == [True, False, True]
    consumer.deliveries.end()
    consumer.held.forget(lambda messages: messages[:1])
    assert consumer.withheld == [True, False, True, False]


@pytest.mark.usefixtures("two_at_most")
def test_all_messages_are_taken_and_the_consumer_takes_others_again() -> None:
    consumer = Consumer(3, share=1)
    for message, delay in zip(consumer.messages, (3, 2, 1), strict=True):
        consumer.held.hold(message, delay)
    assert consumer.held.intake is Intake.FULL
    assert [message.delivery_tag for message in consumer.held.take()] == [1, 2, 3]
    assert (consumer.held.intake, consumer.withheld) == (Intake.OPEN, [True, False])
    assert not any(message.is_settled for message in consumer.messages)
    consumer.loop.go_to(10)
    assert consumer.given == []


@pytest.mark.usefixtures("two_at_most")
def test_messages_of_a_lost_channel_are_forgotten_but_for_those_that_the_broker_has_forgotten() -> None:
    consumer = Consumer(3, share=1)
    for message, delay in zip(consumer.messages, (1, 2, 3), strict=True):
        consumer.held.hold(message, delay)
    consumer.deliveries.end()
    consumer.held.forget(lambda messages: messages[1:2])
    assert consumer.held.intake is Intake.OPEN
    consumer.loop.go_to(3)
    assert consumer.given == [(2.0, 2)]


def test_a_message_is_reserved_once_and_restored_once() -> None:
    consumer = Consumer(2, share=1)
    one, two = consumer.messages
    acks = consumer.deliveries.acks
    assert reserve(one)
    assert not reserve(one)
    assert acks.is_pending(1)
    assert (acks.finish(1), acks.ack(1), acks.reject(1)) == (0, False, False)
    assert acks.finish(2) == 1
    out = SendBuffer(lambda: None, lambda: None)
    assert acks.flush(out) == 0, "the prefix ends before a reserved delivery"
    assert acks.unsettled == 1
    assert acks.first_unhandled() == 1
    assert restore(one)
    assert not restore(one)
    assert not restore(two), "it is acknowledged"
    assert acks.ack(1)
    assert acks.flush(out) == 1
    consumer.deliveries.end()
    assert not reserve(one)
    assert not restore(one)


def test_a_message_without_a_consumer_cannot_be_reserved() -> None:
    (message,) = frames.run_of(FrameReader().feed(frames.delivery(1, 1, b"one"))).messages
    assert not reserve(message)
    assert not restore(message)


@pytest.mark.parametrize(
    ("delays", "expected"),
    [
        ((1.0, 5.0, 30.0, 60.0), [1, 5, 30, 60, 120, 240, 480, 600, 600]),
        ((0.1,), [0.1, 0.2, 0.4, 0.8]),
        ((700.0, 5.0), [600, 5, 10, 20]),
    ],
)
def test_a_delay_grows_beyond_the_last_retry_up_to_ten_minutes(
    delays: tuple[float, ...], expected: list[float]
) -> None:
    assert [hold_delay(delays, attempts) for attempts in range(len(expected))] == expected


@given(st.integers(0, 10**9))
def test_a_delay_is_one_of_at_most_ten_minutes_however_often_a_message_has_failed(attempts: int) -> None:
    assert 0 < hold_delay((0.1, 5.0), attempts) <= LONGEST_HOLD


def test_the_real_loop_has_what_is_used_of_it() -> None:
    loop = asyncio.new_event_loop()
    try:
        assert all(callable(getattr(loop, name)) for name in ("time", "call_at", "call_later"))
    finally:
        loop.close()
