"""The clock of a producer: each message is given up at its deadline, at most a twentieth late, and never before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpus import strategies

from leveret.errors import ConfirmTimeout
from leveret.message import Outcome
from leveret.publishing.confirms import ConfirmWindow
from leveret.publishing.deadlines import CLOCK_STEPS, Deadlines
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.publishing import Ticket
from leveret.publishing.template import PublishTemplate
from leveret.wire.buffers import SendBuffer
from leveret.wire.runs import SettlementRun

assert strategies  # its import loads the hypothesis profile


@dataclass
class Clock:
    """Publishings of one producer, with a time that the test moves."""

    publish_timeout: float
    confirm_timeout: float
    now: float = 1000.0
    tickets: list[Ticket] = field(default_factory=list)
    given_up: dict[int, tuple[float, ConfirmTimeout]] = field(default_factory=dict)
    connected: bool = True
    #: Bytes that were appended, and those that wait for the socket; a message has one.
    appended: int = 0
    queued: int = 0

    def __post_init__(self) -> None:
        self.window = ConfirmWindow()
        self.batch = PublishBatch(SendBuffer(lambda: None, lambda: None), self.window)
        self.template = PublishTemplate("", "q")
        self.deadlines = Deadlines(self.publish_timeout, self.confirm_timeout)

    def publish(self, deadline: float | None = None) -> int:
        ticket = Ticket()
        tag = self.batch.add(self.template, b"x", ticket)
        self.tickets.append(ticket)
        self.appended += 1
        if deadline is not None:
            self.deadlines.limit(deadline, tag, tag)
        return tag

    def advance(self, ticks: int = 1) -> None:
        for _ in range(ticks):
            self.now += self.deadlines.step
            last = self.window.next_delivery_tag - 1
            sent = (self.appended, self.appended - self.queued) if self.connected else None
            self.deadlines.tick(self.now, self.window.first, last, sent)
            for finished in self.deadlines.expire(self.now, self.window, connected=self.connected):
                for ticket in finished:
                    (error,) = ticket.failures.values() if ticket.failures else [None]
                    assert isinstance(error, ConfirmTimeout)
                    self.given_up[ticket.delivery_tag] = (self.now, error)


def test_ticks_are_fine_enough_for_a_twentieth() -> None:
    assert CLOCK_STEPS >= 40


@pytest.mark.parametrize(
    ("publish", "confirm", "option"), [(1.0, 5.0, "publish_timeout"), (5.0, 1.0, "confirm_timeout")]
)
def test_the_shorter_timeout_ends_a_message_that_was_written_at_once(
    publish: float, confirm: float, option: str
) -> None:
    clock = Clock(publish, confirm)
    tag = clock.publish()
    clock.advance(3 * CLOCK_STEPS)
    when, error = clock.given_up[tag]
    assert 1.0 <= when - 1000.0 <= 1.05 + 1e-6
    assert (error.outcome, error.stage) == (Outcome.UNKNOWN, "confirm")
    assert f"{option} of 1 s" in str(error)


def test_confirm_timeout_stands_still_without_a_channel_and_begins_anew() -> None:
    clock = Clock(20.0, 1.0)
    tag = clock.publish()
    clock.advance(CLOCK_STEPS // 2)
    clock.deadlines.lost()
    clock.connected = False
    clock.advance(5 * CLOCK_STEPS)
    assert not clock.given_up
    clock.deadlines.resent(clock.now)
    clock.connected = True
    resent = clock.now
    clock.advance(2 * CLOCK_STEPS)
    assert 1.0 <= clock.given_up[tag][0] - resent <= 1.05 + 1e-6


def test_confirm_timeout_begins_when_the_socket_took_the_message() -> None:
    clock = Clock(20.0, 1.0)
    clock.queued = 2
    first, second = clock.publish(), clock.publish()
    clock.advance(2 * CLOCK_STEPS)
    assert not clock.given_up
    clock.queued = 0
    taken = clock.now
    clock.advance(CLOCK_STEPS // 2)
    clock.queued = 1
    third = clock.publish()
    clock.advance(3 * CLOCK_STEPS)
    assert clock.given_up.keys() == {first, second}
    assert all(1.0 <= when - taken <= 1.05 + 1e-6 for when, _ in clock.given_up.values())
    clock.queued, taken = 0, clock.now
    clock.advance(2 * CLOCK_STEPS)
    assert 1.0 <= clock.given_up[third][0] - taken <= 1.05 + 1e-6


def test_publish_timeout_goes_on_without_a_channel() -> None:
    clock = Clock(2.0, 1.0)
    tag = clock.publish()
    clock.advance()
    clock.deadlines.lost()
    clock.connected = False
    clock.advance(3 * CLOCK_STEPS)
    when, error = clock.given_up[tag]
    assert 2.0 <= when - 1000.0 <= 2.05
    assert (error.outcome, error.stage) == (Outcome.UNKNOWN, "connection")


actions = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 5)),
        st.tuples(st.just("waited"), st.floats(0.0, 1.0)),
        st.tuples(st.just("confirm"), st.integers(1, 100)),
        st.tuples(st.just("advance"), st.integers(1, 30)),
        st.tuples(st.just("between"), st.floats(0.0, 0.9)),
    ),
    max_size=40,
)


@settings(max_examples=300)
@given(publish=st.sampled_from([0.5, 1.0, 3.0]), confirm=st.sampled_from([0.5, 1.0, 3.0]), asked=actions)
def test_each_message_is_given_up_at_its_deadline_and_not_before(publish: float, confirm: float, asked: Any) -> None:
    clock = Clock(publish, confirm)
    deadlines: dict[int, float] = {}
    confirmed: set[int] = set()
    for what, value in asked:
        if what == "publish":
            for _ in range(value):
                deadlines[clock.publish()] = clock.now + min(publish, confirm)
        elif what == "waited":
            deadline = clock.now + publish * (1 - value)  # it was called that long ago
            deadlines[clock.publish(deadline)] = min(deadline, clock.now + confirm)
        elif what == "confirm" and value in deadlines:
            clock.window.settle(SettlementRun.of(1, [(value, False, False, False)]))
            confirmed |= {value} - clock.given_up.keys()
        elif what == "advance":
            clock.advance(value)
        elif what == "between":
            clock.now += value * clock.deadlines.step  # a tick may come late, and calls come at any time
    clock.advance(4 * CLOCK_STEPS * 6)
    assert clock.given_up.keys() == deadlines.keys() - confirmed
    late = (2 + len(asked)) * clock.deadlines.step
    for tag, (when, _) in clock.given_up.items():
        assert deadlines[tag] - 1e-6 <= when <= deadlines[tag] + late, tag


def test_nothing_is_kept_of_messages_that_have_their_outcome() -> None:
    clock = Clock(30.0, 5.0)
    for _ in range(2000):
        first = clock.publish(clock.now + 29.0)
        clock.publish()
        clock.window.settle(SettlementRun.of(1, [(first + 1, True, False, False)]))
        clock.advance()
    kept = clock.deadlines
    assert len(kept._called) + len(kept._written) + len(kept._unwritten) + len(kept._waited) <= 3
