"""The publishings of a channel against a plain model of publisher confirms."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.corpus import frames, strategies

from leveret._batching import ConfirmWindow, PublishBatch, PublishTemplate, Ticket
from leveret._buffers import SendBuffer
from leveret._framing import FrameReader, Message, SettlementRun
from leveret.message import Outcome

assert strategies  # its import loads the hypothesis profile


def run(*entries: tuple[int, bool, bool]) -> SettlementRun:
    return SettlementRun.of(1, [(tag, multiple, nack, False) for tag, multiple, nack in entries])


def ack(tag: int, *, multiple: bool = False) -> SettlementRun:
    return run((tag, multiple, False))


def nack(tag: int, *, multiple: bool = False) -> SettlementRun:
    return run((tag, multiple, True))


def returned_message() -> Message:
    data = frames.method(1, 60, frames.RETURN, (312).to_bytes(2) + b"\x00\x00\x00") + frames.header(1, 0)
    return FrameReader().feed(data)[0].messages[0]


MESSAGE = returned_message()


class TicketModel:
    """What a ticket should say."""

    def __init__(self) -> None:
        self.ticket = Ticket()
        self.first_tag = 0
        self.count = self.pending = self.confirmed = 0
        self.failures: dict[int, object] = {}


class ConfirmModel(RuleBasedStateMachine):
    """Publishes with and without tickets, confirms, refuses, returns and expires, in any order."""

    @initialize()
    def start(self) -> None:
        self.window = ConfirmWindow()
        self.out = SendBuffer(lambda: None, lambda: None)
        self.batch = PublishBatch(self.out, self.window)
        self.template = PublishTemplate("", "q")
        self.next_tag = 1
        # tag -> (ticket or None, index, size, returned)
        self.open: dict[int, tuple[TicketModel | None, int, int, bool]] = {}
        self.tickets: list[TicketModel] = []
        self.finished: list[Ticket] = []
        self.counts = dict.fromkeys(["confirmed", "returned", "nacked", "unknown", "ignored"], 0)

    # -------------------------------------------------------------- publishing

    def opened(self, model: TicketModel | None, index: int, size: int) -> None:
        if model is not None:
            if model.count == 0:
                model.first_tag = self.next_tag
            model.count += 1
            model.pending += 1
        self.open[self.next_tag] = (model, index, size, False)
        self.next_tag += 1

    def ticket(self, data: st.DataObject) -> TicketModel | None:
        choice = data.draw(st.sampled_from(["none", "new", "new", "old"]))
        if choice == "none":
            return None
        if choice == "old" and self.tickets:
            return data.draw(st.sampled_from(self.tickets))
        model = TicketModel()
        model.ticket.observed = data.draw(st.booleans())
        model.ticket.future = data.draw(st.sampled_from([None, "somebody waits"]))
        self.tickets.append(model)
        return model

    @rule(data=st.data(), size=st.sampled_from([0, 1, 100, 10_000]))
    def publish_one(self, data: st.DataObject, size: int) -> None:
        model = self.ticket(data)
        # Indices in a ticket need not follow each other.
        index = data.draw(st.integers(0, 1000))
        tag = self.batch.add(self.template, bytes(size), model.ticket if model else None, index)
        assert tag == self.next_tag
        self.opened(model, index, size)
        self.out.take()

    @rule(data=st.data(), count=st.sampled_from([1, 3, 7, 7, 200, 700]))
    def publish_many(self, data: st.DataObject, count: int) -> None:
        model = self.ticket(data)
        bodies = [bytes(i % 5) for i in range(count)]
        assert self.batch.add_many(self.template, bodies, model.ticket if model else None, 5000) == count
        for i, body in enumerate(bodies):
            self.opened(model, 5000 + i, len(body))
        self.out.take()

    @rule(data=st.data(), size=st.integers(0, 50))
    def track(self, data: st.DataObject, size: int) -> None:
        model = self.ticket(data)
        assert self.window.track(model.ticket if model else None, size) == self.next_tag
        self.opened(model, 0, size)

    # -------------------------------------------------------------- outcomes

    def ended(self, tag: int, outcome: Outcome) -> None:
        model, index, _, returned = self.open.pop(tag)
        if returned:
            outcome = Outcome.RETURNED
        self.counts[outcome.name.lower()] += 1
        if model is None:
            return
        model.pending -= 1
        if outcome == Outcome.CONFIRMED:
            model.confirmed += 1
        elif outcome != Outcome.RETURNED:
            model.failures[index] = int(outcome)
        waited_for = model.ticket.future is not None or (model.failures and not model.ticket.observed)
        if model.pending == 0 and waited_for:
            self.finished.append(model.ticket)

    @property
    def first(self) -> int:
        return min(self.open, default=self.next_tag)

    def check_finished(self, tickets: list[Ticket] | None) -> None:
        assert [id(t) for t in tickets or []] == [id(t) for t in self.finished]
        assert tickets is None or tickets
        self.finished = []

    def tags(self) -> st.SearchStrategy[int]:
        """Tags near the lowest open one, most of them open."""
        low = max(0, self.first - 2)
        anything = st.integers(low, self.next_tag + 2)
        if not self.open:
            return anything
        near = st.sampled_from(sorted(self.open)[:12])
        return st.one_of(near, near, near, st.integers(low, low + 12), anything)

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        one = st.tuples(self.tags(), st.just(False), st.booleans())
        several = st.tuples(self.tags() | st.just(0), st.just(True), st.booleans())
        entries = data.draw(st.lists(st.one_of(one, one, several), min_size=1, max_size=6))
        for tag, multiple, refused in entries:
            outcome = Outcome.NACKED if refused else Outcome.CONFIRMED
            if multiple:
                upto = tag or self.next_tag - 1  # 0 stands for all so far
                if not self.first <= upto < self.next_tag:
                    self.counts["ignored"] += 1
                for one in sorted(t for t in self.open if t <= upto) if upto < self.next_tag else []:
                    self.ended(one, outcome)
            elif tag in self.open:
                self.ended(tag, outcome)
            else:
                self.counts["ignored"] += 1
        self.check_finished(self.window.settle(run(*entries)))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), refused=st.booleans())
    def settle_out_of_order(self, data: st.DataObject, refused: bool) -> None:
        near = st.sampled_from(sorted(self.open)[:8])
        for tag in data.draw(st.lists(near, min_size=1, max_size=5, unique=True)):
            self.ended(tag, Outcome.NACKED if refused else Outcome.CONFIRMED)
            self.check_finished(self.window.settle(run((tag, False, refused))))

    @rule(tag=st.just(2**64 - 1), multiple=st.booleans(), refused=st.booleans())
    def a_confirm_of_what_was_never_published_is_ignored(self, tag: int, multiple: bool, refused: bool) -> None:
        self.counts["ignored"] += 1
        assert self.window.settle(run((tag, multiple, refused))) is None

    @rule(data=st.data())
    def broker_returns(self, data: st.DataObject) -> None:
        tag = data.draw(self.tags())
        assert self.window.mark_returned(tag, MESSAGE) is (tag in self.open)
        if tag in self.open:
            model, index, size, _ = self.open[tag]
            self.open[tag] = (model, index, size, True)
            if model is not None:
                model.failures[index] = MESSAGE

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        near = st.sampled_from(sorted(self.open)[:6])
        upto = data.draw(st.one_of(near, near, near, st.integers(0, self.next_tag + 2)))
        for one in sorted(t for t in self.open if t <= upto):
            self.ended(one, Outcome.UNKNOWN)
        self.check_finished(self.window.expire(upto))

    @precondition(lambda self: len(self.open) > 1000)
    @rule()
    def the_channel_is_lost(self) -> None:
        for one in sorted(self.open):
            self.ended(one, Outcome.UNKNOWN)
        self.check_finished(self.window.expire(2**64 - 1))

    # -------------------------------------------------------------- what always holds

    @invariant()
    def window_agrees(self) -> None:
        window = self.window
        assert window.next_delivery_tag == self.next_tag
        assert window.first == self.first
        assert window.outstanding == len(self.open)
        assert window.outstanding_bytes == sum(size for _, _, size, _ in self.open.values())
        assert {name: getattr(window, name) for name in self.counts} == self.counts
        for tag in {
            0,
            self.first - 1,
            self.first,
            self.first + 1,
            self.next_tag - 1,
            self.next_tag,
            self.next_tag + 256,
        }:
            assert window.is_open(max(tag, 0)) is (tag in self.open)

    @invariant()
    def tickets_agree(self) -> None:
        for model in self.tickets:
            ticket = model.ticket
            assert (ticket.count, ticket.pending, ticket.confirmed) == (model.count, model.pending, model.confirmed)
            assert (ticket.failures or {}) == model.failures
            assert ticket.delivery_tag == model.first_tag
            assert ticket.done is (model.pending == 0)


ConfirmModel.TestCase.settings = settings(stateful_step_count=40)
test_every_publishing_has_one_outcome_when_anything_happens_in_any_order = ConfirmModel.TestCase


# ---------------------------------------------------------------------------------------------- by example


def test_a_range_is_settled_when_the_ack_is_multiple() -> None:
    window = ConfirmWindow()
    for _ in range(10):
        window.track()
    assert window.settle(ack(7, multiple=True)) is None
    assert (window.first, window.outstanding, window.confirmed) == (8, 3, 7)


def test_everything_is_settled_when_the_tag_is_zero_and_multiple() -> None:
    # AMQP 0-9-1 section 1.8.3.13: zero stands for all outstanding messages.
    window = ConfirmWindow()
    for _ in range(1000):
        window.track()
    window.settle(ack(0, multiple=True))
    assert (window.outstanding, window.confirmed, window.ignored) == (0, 1000, 0)
    window.settle(ack(0, multiple=True))
    assert window.ignored == 1


def test_first_skips_what_is_settled_already_when_confirms_come_out_of_order() -> None:
    window = ConfirmWindow()
    for _ in range(4):
        window.track()
    window.settle(run((2, False, False), (4, False, False)))
    assert window.first == 1
    window.settle(ack(1))
    assert window.first == 3
    window.settle(nack(3))
    assert window.first == 5
    assert (window.confirmed, window.nacked) == (3, 1)


def test_ticket_is_handed_out_once_when_the_last_of_its_batch_is_settled() -> None:
    window, ticket = ConfirmWindow(), Ticket()
    ticket.future = "somebody waits"
    for _ in range(3):
        window.track(ticket)
    assert window.settle(ack(2, multiple=True)) is None
    assert window.settle(ack(3)) == [ticket]
    assert window.settle(ack(3)) is None
    assert (ticket.done, ticket.confirmed, ticket.failures) == (True, 3, None)


def test_ticket_is_handed_out_without_a_future_when_it_failed_and_nobody_looked() -> None:
    window = ConfirmWindow()
    failed, observed, fine = Ticket(), Ticket(), Ticket()
    observed.observed = True
    for ticket in (failed, observed, fine):
        window.track(ticket)
    assert window.settle(run((1, False, True), (2, False, True), (3, False, False))) == [failed]
    assert failed.failures == observed.failures == {0: Outcome.NACKED}


def test_outcome_is_returned_when_the_ack_follows_a_return() -> None:
    window, ticket = ConfirmWindow(), Ticket()
    window.track(ticket)
    assert window.mark_returned(1, MESSAGE)
    assert window.is_open(1)
    window.settle(ack(1))
    assert ticket.failures == {0: MESSAGE}
    assert (window.returned, window.confirmed, ticket.confirmed) == (1, 0, 0)


@pytest.mark.parametrize("how", ["nacked", "expired"])
def test_outcome_is_returned_whatever_follows_a_return(how: str) -> None:
    window, ticket = ConfirmWindow(), Ticket()
    window.track(ticket)
    window.mark_returned(1, MESSAGE)
    finished = window.settle(run((1, False, True))) if how == "nacked" else window.expire(1)
    assert finished == [ticket]
    assert ticket.failures == {0: MESSAGE}
    assert (window.returned, window.nacked, window.unknown) == (1, 0, 0)


def test_nothing_is_outstanding_when_everything_expired() -> None:
    window, ticket = ConfirmWindow(), Ticket()
    ticket.future = "somebody waits"
    for size in range(300):
        window.track(ticket, size)
    assert window.expire(300) == [ticket]
    assert (window.outstanding, window.outstanding_bytes, window.unknown) == (0, 0, 300)
    assert ticket.failures == {0: Outcome.UNKNOWN}
    # A confirm that comes too late changes nothing.
    assert window.settle(ack(300, multiple=True)) is None
    assert (window.ignored, window.confirmed) == (1, 0)


def test_tags_below_are_untouched_when_an_expired_range_ends_in_the_middle() -> None:
    window = ConfirmWindow()
    for _ in range(5):
        window.track()
    window.settle(ack(3))
    window.expire(2)
    assert window.first == 4, "tag 3 had its outcome already"
    assert window.unknown == 2


@pytest.mark.parametrize("count", [255, 256, 257, 512, 513, 5000])
def test_every_tag_is_found_when_the_ring_grew_and_wrapped(count: int) -> None:
    window = ConfirmWindow()
    for _ in range(200):  # so that the ring does not begin at slot 0
        window.track()
    window.settle(ack(200, multiple=True))
    tickets = [Ticket() for _ in range(count)]
    for ticket in tickets:
        window.track(ticket)
    for i in reversed(range(count)):
        assert window.is_open(201 + i)
        window.settle(ack(201 + i))
        assert tickets[i].confirmed == 1
    assert (window.first, window.outstanding) == (201 + count, 0)


def test_tickets_are_released_when_settled_or_when_the_window_goes() -> None:
    class Owner:
        pass

    def tracked(window: ConfirmWindow) -> weakref.ref:
        owner = Owner()
        window.track(Ticket(owner))
        return weakref.ref(owner)

    window = ConfirmWindow()
    settled, kept = tracked(window), tracked(window)
    assert settled() is not None, "the window holds the ticket, and the ticket its owner"
    window.settle(ack(1))
    assert settled() is None
    assert kept() is not None
    del window
    assert kept() is None


def test_a_cycle_is_collected_when_a_producer_is_dropped_with_publishings_outstanding() -> None:
    class Producer:
        def __init__(self) -> None:
            self.window = ConfirmWindow()

    producer = Producer()
    for _ in range(300):
        producer.window.track(Ticket(producer))
    gone = weakref.ref(producer)
    del producer
    gc.collect()
    assert gone() is None, "producer -> window -> ticket -> producer must be visible to the garbage collector"


def test_ticket_says_what_it_waits_for_when_printed() -> None:
    window, ticket = ConfirmWindow(), Ticket()
    window.track()
    window.track(ticket)
    assert repr(ticket) == "<Ticket delivery_tag=2 pending=1 of 1>"


async def test_ticket_asks_its_owner_when_awaited() -> None:
    class Owner:
        async def wait_for(self, ticket: Ticket) -> tuple:
            return ("waited for", ticket)

    ticket = Ticket(Owner())
    assert await ticket == ("waited for", ticket)
