"""The publishings of a channel against a plain model of publisher confirms."""

from __future__ import annotations

import gc
import sys
import time
import weakref
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.corpus import frames, strategies
from tests.support.settlements import ORDERS, SOMEBODY_WAITS, ack, nack, run

from leveret.message import Outcome
from leveret.monitoring.usage import resident_memory
from leveret.publishing.confirms import ConfirmWindow
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.publishing import NO_RECEIPT, Receipt, Ticket
from leveret.publishing.template import PublishTemplate
from leveret.wire.buffers import SendBuffer
from leveret.wire.properties import Properties, decode_properties
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.wire.message import Message

assert strategies  # its import loads the hypothesis profile


def returned_message() -> Message:
    data = frames.method(1, 60, frames.RETURN, (312).to_bytes(2) + b"\x00\x00\x00") + frames.header(1, 0)
    return frames.run_of(FrameReader().feed(data)).messages[0]


MESSAGE = returned_message()

#: What templates are made of: few enough that publishings are alike, so that returns have to be told apart.
EXCHANGES = ["", "orders", "missing"]
PROPERTIES = [
    Properties(headers=headers).encode()
    for headers in (None, {"first": 1, "second": 2}, {"second": 2, "first": 1}, {"first": 1})
]
TEMPLATES = [
    PublishTemplate(exchange, "q", properties, mandatory=mandatory)
    for exchange in EXCHANGES
    for properties in PROPERTIES
    for mandatory in (False, True)
]
BODIES = [b"", b"", b"x", b"equal", bytes(100), bytes(5_000)]


def publish(window: ConfirmWindow, ticket: Ticket | None = None, size: int = 0) -> None:
    """Publishes a body of `size` bytes."""
    PublishBatch(SendBuffer(lambda: None, lambda: None), window).add(ORDERS, bytes(size), ticket)


@cache
def returned_like(template: PublishTemplate, body: bytes, properties: bytes | None = None) -> Message:
    """What a broker says when it returns this publishing, maybe with other properties."""
    names = frames.shortstr("NO_ROUTE") + frames.shortstr(template.exchange) + frames.shortstr(template.routing_key)
    raw = template.raw_properties if properties is None else properties
    data = frames.method(1, 60, frames.RETURN, (312).to_bytes(2) + names) + frames.header(1, len(body), raw)
    return frames.run_of(FrameReader().feed(data + b"".join(frames.bodies(1, body, 4000)))).messages[0]


class TicketModel:
    """What a ticket should say."""

    def __init__(self) -> None:
        self.ticket = Ticket()
        self.first_tag = 0
        self.count = self.pending = self.confirmed = 0
        self.failures: dict[int, object] = {}
        # How often those with an outcome were written, by number, when not once.
        self.sends: dict[int, int] = {}


class Sent(NamedTuple):
    """An open publishing."""

    model: TicketModel | None
    number: int
    template: PublishTemplate
    body: bytes
    returned: bool = False
    sends: int = 1


class ConfirmModel(RuleBasedStateMachine):
    """Publishes with and without tickets, confirms, refuses, returns, gives up and sends again, in any order."""

    @initialize()
    def start(self) -> None:
        self.window = ConfirmWindow()
        self.out = SendBuffer(lambda: None, lambda: None)
        self.batch = PublishBatch(self.out, self.window)
        self.next_tag = 1
        self.open: dict[int, Sent] = {}
        self.tickets: list[TicketModel] = []
        self.finished: list[Ticket] = []
        self.counts = dict.fromkeys(["confirmed", "returned", "nacked", "unknown", "not_sent", "ignored"], 0)
        # The tags of what was sent on the channel, in its order: the broker calls them 1, 2, 3.
        self.channel: list[int] = []
        # While sending again: the tag from which.
        self.resending: int | None = None
        self.return_at = 0
        self.ended_now: dict[int, bool] = {}

    # -------------------------------------------------------------- publishing

    def opened(self, model: TicketModel | None, index: int, template: PublishTemplate, body: bytes) -> None:
        if model is not None:
            if model.count == 0:
                model.first_tag = self.next_tag
            model.count += 1
            model.pending += 1
        self.open[self.next_tag] = Sent(model, index, template, body)
        self.channel.append(self.next_tag)
        self.next_tag += 1

    def ticket(self, data: st.DataObject) -> TicketModel | None:
        choice = data.draw(st.sampled_from(["none", "new", "new", "old"]))
        if choice == "none":
            return None
        if choice == "old" and self.tickets:
            return data.draw(st.sampled_from(self.tickets))
        model = TicketModel()
        model.ticket.observed = data.draw(st.booleans())
        model.ticket.future = data.draw(st.sampled_from([None, SOMEBODY_WAITS]))
        self.tickets.append(model)
        return model

    @precondition(lambda self: self.resending is None)
    @rule(data=st.data(), template=st.sampled_from(TEMPLATES), body=st.sampled_from(BODIES))
    def publish_one(self, data: st.DataObject, template: PublishTemplate, body: bytes) -> None:
        model = self.ticket(data)
        # Indices in a ticket need not follow each other.
        index = data.draw(st.integers(0, 1000))
        tag = self.batch.add(template, body, model.ticket if model else None, index)
        assert tag == self.next_tag
        self.opened(model, index, template, body)
        self.out.take()

    @precondition(lambda self: self.resending is None)
    @rule(data=st.data(), template=st.sampled_from(TEMPLATES), count=st.sampled_from([1, 3, 7, 7, 200, 700]))
    def publish_run(self, data: st.DataObject, template: PublishTemplate, count: int) -> None:
        """Publishes bodies that are counted together."""
        model = self.ticket(data)
        bodies = [bytes(i % 5) for i in range(count)]
        done = 0
        while done < count:
            more = self.batch.add_run(template, bodies, done, model.ticket if model else None, 7000 + done, 2**40)
            assert more > 0
            for body in bodies[done : done + more]:
                self.opened(model, 7000 + done, template, body)
                done += 1
            self.out.take()

    @precondition(lambda self: self.resending is None)
    @rule(data=st.data(), template=st.sampled_from(TEMPLATES), count=st.sampled_from([1, 3, 7, 7, 200, 700]))
    def publish_many(self, data: st.DataObject, template: PublishTemplate, count: int) -> None:
        model = self.ticket(data)
        bodies = [bytes(i % 5) for i in range(count)]
        for i, body in enumerate(bodies):
            assert self.batch.add(template, body, model.ticket if model else None, 5000 + i) == self.next_tag
            self.opened(model, 5000 + i, template, body)
        self.out.take()

    @precondition(lambda self: self.resending is not None)
    @rule(data=st.data(), template=st.sampled_from(TEMPLATES), body=st.sampled_from(BODIES))
    def hold_one(self, data: st.DataObject, template: PublishTemplate, body: bytes) -> None:
        """Keeps one for the channel that takes over."""
        model = self.ticket(data)
        index = data.draw(st.integers(0, 1000))
        tag = self.batch.hold(template, body, model.ticket if model else None, index)
        assert tag == self.next_tag
        self.opened(model, index, template, body)
        self.open[tag] = self.open[tag]._replace(sends=0)
        assert self.channel.pop() == tag
        assert not self.out.take()

    # -------------------------------------------------------------- outcomes

    def ended(self, tag: int, outcome: Outcome, reason: object = None) -> None:
        model, index, _, _, returned, sends = self.open.pop(tag)
        self.ended_now[tag] = outcome == Outcome.NACKED
        if returned:
            outcome = Outcome.RETURNED
        elif sends == 0:
            outcome, reason = Outcome.NOT_SENT, None
        self.counts[outcome.name.lower()] += 1
        if model is None:
            return
        model.pending -= 1
        if sends > 1:
            model.sends[index] = sends
        if outcome == Outcome.CONFIRMED:
            model.confirmed += 1
        elif outcome != Outcome.RETURNED:
            model.failures[index] = int(outcome) if reason is None else reason
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

    def broker_tags(self) -> st.SearchStrategy[int]:
        """What the broker calls publishings of this channel, most of them open, and tags that it never got."""
        anything = st.integers(0, len(self.channel) + 3)
        near = [number for number, tag in enumerate(self.channel, 1) if tag in self.open][:12]
        if not near:
            return anything
        return st.one_of(st.sampled_from(near), st.sampled_from(near), st.sampled_from(near), anything)

    def apply(self, entries: list[tuple[int, bool, bool]]) -> None:
        """What a broker's confirms should do."""
        before = set(self.open)
        ignored = self.counts["ignored"]
        self.ended_now = {}
        for tag, multiple, refused in entries:
            outcome = Outcome.NACKED if refused else Outcome.CONFIRMED
            if multiple:
                # 0 stands for all so far; a tag that was never given stands for nothing.
                reached = self.channel[: tag or None] if tag <= len(self.channel) else []
            else:
                reached = [self.channel[tag - 1]] if 1 <= tag <= len(self.channel) else []
            found = [one for one in reached if one in self.open]
            for one in found:
                self.ended(one, outcome)
            self.counts["ignored"] += not found
        told: list[tuple[int, bool, bool]] = []
        self.check_finished(self.window.settle(run(*entries), told))
        self.books_agree(told, before, self.counts["ignored"] - ignored)

    def books_agree(self, told: list[tuple[int, bool, bool]], books: set[int], ignored: int) -> None:
        """Whoever keeps books by what is told of the confirms knows which publishings they ended, and how."""
        heard: dict[int, bool] = {}
        useless = 0
        for tag, multiple, refused in told:
            meant = sorted(one for one in books if one <= tag) if multiple else [tag] if tag in books else []
            useless += not meant
            books.difference_update(meant)
            heard.update(dict.fromkeys(meant, refused))
        assert heard == self.ended_now
        # A confirm for what was given up is told, too; once.
        assert useless <= ignored + sum(not self.window.is_open(tag) for tag, multiple, _ in told if not multiple)

    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        one = st.tuples(self.broker_tags(), st.just(False), st.booleans())
        several = st.tuples(self.broker_tags() | st.just(0), st.just(True), st.booleans())
        self.apply(data.draw(st.lists(st.one_of(one, one, several), min_size=1, max_size=6)))

    @precondition(lambda self: any(tag in self.open for tag in self.channel))
    @rule(data=st.data(), refused=st.booleans())
    def settle_out_of_order(self, data: st.DataObject, refused: bool) -> None:
        near = [number for number, tag in enumerate(self.channel, 1) if tag in self.open][:8]
        for tag in data.draw(st.lists(st.sampled_from(near), min_size=1, max_size=5, unique=True)):
            self.apply([(tag, False, refused)])

    @rule(tag=st.sampled_from([2**64 - 1, 2**64 - 2, 2**63]), multiple=st.booleans(), refused=st.booleans())
    def a_confirm_of_what_was_never_published_is_ignored(self, tag: int, multiple: bool, refused: bool) -> None:
        self.apply([(tag, multiple, refused)])

    @rule(data=st.data())
    def a_return_is_marked(self, data: st.DataObject) -> None:
        tag = data.draw(self.tags())
        assert self.window.mark_returned(tag, MESSAGE) is (tag in self.open)
        if tag in self.open:
            self.mark_returned(tag, MESSAGE)

    def mark_returned(self, tag: int, message: Message) -> None:
        sent = self.open[tag]
        self.open[tag] = sent._replace(returned=True)
        if sent.model is not None:
            sent.model.failures[sent.number] = message

    def tie_return(self, message: Message, matches: list[int]) -> None:
        """Expects the first of these at or behind the last one that was returned, or else the first."""
        expected = next((tag for tag in matches if tag >= self.return_at), matches[0] if matches else 0)
        assert self.window.tie_return(message) == expected
        if expected:
            self.mark_returned(expected, message)
            self.return_at = expected + 1

    def alike(self, template: PublishTemplate, body: bytes) -> list[int]:
        """Mandatory publishings that a broker may mean, whatever their properties."""
        return [
            tag
            for tag, sent in sorted(self.open.items())
            if (sent.template.exchange, sent.template.routing_key) == (template.exchange, template.routing_key)
            and (sent.template.mandatory, sent.returned, sent.body) == (True, False, body)
            and sent.sends
        ]

    @rule(data=st.data(), again=st.integers(1, 4))
    def broker_returns(self, data: st.DataObject, again: int) -> None:
        template, body = data.draw(st.sampled_from(TEMPLATES)), data.draw(st.sampled_from(BODIES))
        mandatory = [tag for tag, sent in sorted(self.open.items()) if sent.template.mandatory]
        if mandatory and data.draw(st.integers(0, 4)) > 0:
            sent = self.open[data.draw(st.sampled_from(mandatory[:20]))]
            template, body = sent.template, sent.body
        for _ in range(again):
            matches = self.alike(template, body)
            same = [
                tag
                for tag in matches
                if decode_properties(self.open[tag].template.raw_properties)
                == decode_properties(template.raw_properties)
            ]
            self.tie_return(returned_like(template, body), same or matches)

    @rule(data=st.data())
    def broker_returns_with_properties_of_its_own(self, data: st.DataObject) -> None:
        template, body = data.draw(st.sampled_from(TEMPLATES)), data.draw(st.sampled_from(BODIES))
        properties = Properties(message_id="the broker's").encode()
        self.tie_return(returned_like(template, body, properties), self.alike(template, body))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), reason=st.sampled_from([None, "a reason"]))
    def expire(self, data: st.DataObject, reason: Any) -> None:
        near = st.sampled_from(sorted(self.open)[:6])
        upto = data.draw(st.one_of(near, near, near, st.integers(0, self.next_tag + 2)))
        for one in sorted(t for t in self.open if t <= upto):
            self.ended(one, Outcome.UNKNOWN, reason)
        self.check_finished(self.window.expire(upto, reason))

    @rule(data=st.data(), reason=st.sampled_from([None, "a reason"]))
    def give_up(self, data: st.DataObject, reason: Any) -> None:
        tag = data.draw(self.tags())
        if tag in self.open:
            self.ended(tag, Outcome.UNKNOWN, reason)
        self.check_finished(self.window.give_up(tag, reason))

    @rule(exchange=st.none() | st.sampled_from(EXCHANGES), larger_than=st.sampled_from([-1, 0, 3, 4_999]))
    def give_up_written(self, exchange: str | None, larger_than: int) -> None:
        reason: Any = "no such exchange"
        for tag, sent in sorted(self.open.items()):
            if sent.sends and exchange in (None, sent.template.exchange) and len(sent.body) > larger_than:
                self.ended(tag, Outcome.UNKNOWN, reason)
        self.check_finished(self.window.give_up_written(reason, exchange, larger_than))

    @precondition(lambda self: len(self.open) > 1000)
    @rule()
    def the_connection_is_lost(self) -> None:
        for one in sorted(self.open):
            self.ended(one, Outcome.UNKNOWN)
        self.check_finished(self.window.expire(2**64 - 1))

    # -------------------------------------------------------------- another channel

    @rule()
    def another_channel_takes_over(self) -> None:
        """Maybe in the middle of sending again on one that was lost as well."""
        for tag, sent in sorted(self.open.items()):
            if sent.returned:
                self.ended(tag, Outcome.UNKNOWN)
        self.check_finished(self.window.renumber())
        self.channel = []
        self.resending = self.return_at = self.first

    @precondition(lambda self: self.resending is not None)
    @rule(limit=st.sampled_from([0, 1, 2, 5, 100, 10_000]), number=st.integers(1, 0xFFFF))
    def send_again(self, limit: int, number: int) -> None:
        assert self.resending is not None
        left = sorted(tag for tag in self.open if tag >= self.resending)
        self.batch.attach(self.out, number, 131072)
        expected = PublishBatch(written := SendBuffer(lambda: None, lambda: None), None, channel=number)
        for tag in left[:limit]:
            sent = self.open[tag]
            template = sent.template.marked(sent.sends) if sent.sends else sent.template
            self.open[tag] = sent._replace(template=template, sends=sent.sends + 1)
            expected.add(template, sent.body)
        done = self.batch.resend(limit)
        assert self.out.take() == written.take()
        self.channel += left[:limit]
        if limit and len(left) <= limit:
            # It may have to be called once more to see that nothing is left.
            done = done or self.batch.resend(1)
            assert done
        if done:
            assert len(left) <= limit
        self.resending = None if done else next(iter(left[limit:]), self.next_tag)

    # -------------------------------------------------------------- what always holds

    @invariant()
    def window_agrees(self) -> None:
        window = self.window
        assert window.next_delivery_tag == self.next_tag
        assert window.first == self.first
        assert window.outstanding == len(self.open)
        assert window.held == sum(sent.sends == 0 for sent in self.open.values())
        assert window.outstanding_bytes == sum(len(sent.body) for sent in self.open.values())
        assert {name: getattr(window, name) for name in self.counts} == self.counts
        assert window.confirm_time.count == window.confirmed
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
    def every_publishing_has_ended_once_or_is_open(self) -> None:
        window = self.window
        ended = window.confirmed + window.returned + window.nacked + window.unknown + window.not_sent
        assert ended + window.outstanding == window.next_delivery_tag - 1

    @invariant()
    def tickets_agree(self) -> None:
        for model in self.tickets:
            ticket = model.ticket
            assert (ticket.count, ticket.pending, ticket.confirmed) == (model.count, model.pending, model.confirmed)
            assert (ticket.failures or {}) == model.failures
            assert {index: ticket.attempts(index) for index in model.sends} == model.sends
            assert ticket.delivery_tag == model.first_tag
            assert ticket.done is (model.pending == 0)


ConfirmModel.TestCase.settings = settings(stateful_step_count=40)
test_every_publishing_has_one_outcome_when_anything_happens_in_any_order = ConfirmModel.TestCase


# ---------------------------------------------------------------------------------------------- by example


def test_a_range_is_settled_when_the_ack_is_multiple() -> None:
    window = ConfirmWindow()
    for _ in range(10):
        publish(window)
    assert window.settle(ack(7, multiple=True)) is None
    assert (window.first, window.outstanding, window.confirmed) == (8, 3, 7)


def test_everything_is_settled_when_the_tag_is_zero_and_multiple() -> None:
    # AMQP 0-9-1 section 1.8.3.13: zero stands for all outstanding messages.
    window = ConfirmWindow()
    for _ in range(1000):
        publish(window)
    window.settle(ack(0, multiple=True))
    assert (window.outstanding, window.confirmed, window.ignored) == (0, 1000, 0)
    window.settle(ack(0, multiple=True))
    assert window.ignored == 1


def test_first_skips_what_is_settled_already_when_confirms_come_out_of_order() -> None:
    window = ConfirmWindow()
    for _ in range(4):
        publish(window)
    window.settle(run((2, False, False), (4, False, False)))
    assert window.first == 1
    window.settle(ack(1))
    assert window.first == 3
    window.settle(nack(3))
    assert window.first == 5
    assert (window.confirmed, window.nacked) == (3, 1)


def test_ticket_is_handed_out_once_when_the_last_of_its_batch_is_settled() -> None:
    window, ticket = ConfirmWindow(), Ticket()
    ticket.future = SOMEBODY_WAITS
    for _ in range(3):
        publish(window, ticket)
    assert window.settle(ack(2, multiple=True)) is None
    assert window.settle(ack(3)) == [ticket]
    assert window.settle(ack(3)) is None
    assert (ticket.done, ticket.confirmed, ticket.failures) == (True, 3, None)


def test_ticket_is_handed_out_without_a_future_when_it_failed_and_nobody_looked() -> None:
    window = ConfirmWindow()
    failed, observed, fine = Ticket(), Ticket(), Ticket()
    observed.observed = True
    for ticket in (failed, observed, fine):
        publish(window, ticket)
    assert window.settle(run((1, False, True), (2, False, True), (3, False, False))) == [failed]
    assert failed.failures == observed.failures == {0: Outcome.NACKED}


def test_outcome_is_returned_when_the_ack_follows_a_return() -> None:
    window, ticket = ConfirmWindow(), Ticket()
    publish(window, ticket)
    assert window.mark_returned(1, MESSAGE)
    assert window.is_open(1)
    window.settle(ack(1))
    assert ticket.failures == {0: MESSAGE}
    assert (window.returned, window.confirmed, ticket.confirmed) == (1, 0, 0)


@pytest.mark.parametrize("how", ["nacked", "expired"])
def test_outcome_is_returned_whatever_follows_a_return(how: str) -> None:
    window, ticket = ConfirmWindow(), Ticket()
    publish(window, ticket)
    window.mark_returned(1, MESSAGE)
    finished = window.settle(run((1, False, True))) if how == "nacked" else window.expire(1)
    assert finished == [ticket]
    assert ticket.failures == {0: MESSAGE}
    assert (window.returned, window.nacked, window.unknown) == (1, 0, 0)


def test_nothing_is_outstanding_when_everything_expired() -> None:
    window, ticket = ConfirmWindow(), Ticket()
    ticket.future = SOMEBODY_WAITS
    for size in range(300):
        publish(window, ticket, size)
    assert window.expire(300) == [ticket]
    assert (window.outstanding, window.outstanding_bytes, window.unknown) == (0, 0, 300)
    assert ticket.failures == {0: Outcome.UNKNOWN}
    # A confirm that comes too late changes nothing.
    assert window.settle(ack(300, multiple=True)) is None
    assert (window.ignored, window.confirmed) == (1, 0)


def test_tags_below_are_untouched_when_an_expired_range_ends_in_the_middle() -> None:
    window = ConfirmWindow()
    for _ in range(5):
        publish(window)
    window.settle(ack(3))
    window.expire(2)
    assert window.first == 4, "tag 3 had its outcome already"
    assert window.unknown == 2


@pytest.mark.parametrize("count", [255, 256, 257, 512, 513, 5000])
def test_every_tag_is_found_when_the_ring_grew_and_wrapped(count: int) -> None:
    window = ConfirmWindow()
    for _ in range(200):  # so that the ring does not begin at slot 0
        publish(window)
    window.settle(ack(200, multiple=True))
    tickets = [Ticket() for _ in range(count)]
    for ticket in tickets:
        publish(window, ticket)
    for i in reversed(range(count)):
        assert window.is_open(201 + i)
        window.settle(ack(201 + i))
        assert tickets[i].confirmed == 1
    assert (window.first, window.outstanding) == (201 + count, 0)


def test_tickets_are_released_when_settled_or_when_the_window_goes() -> None:
    class Owner:
        pass

    def tracked(window: ConfirmWindow) -> weakref.ref:
        owner: Any = Owner()
        publish(window, Ticket(owner))
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

    producer: Any = Producer()
    for _ in range(300):
        publish(producer.window, Ticket(producer))
    gone = weakref.ref(producer)
    del producer
    gc.collect()
    assert gone() is None, "producer -> window -> ticket -> producer must be visible to the garbage collector"


def test_ticket_says_what_it_waits_for_when_printed() -> None:
    window, ticket = ConfirmWindow(), Ticket()
    publish(window)
    publish(window, ticket)
    assert repr(ticket) == "<Ticket delivery_tag=2 pending=1 of 1>"


async def test_ticket_asks_its_owner_when_awaited() -> None:
    class Owner:
        async def wait_for(self, ticket: Ticket) -> tuple:
            return ("waited for", ticket)

    owner: Any = Owner()
    ticket = Ticket(owner)
    assert await ticket == ("waited for", ticket)


# ---------------------------------------------------------------------------------------------- what is kept


def kept(window: ConfirmWindow, runs: bool = False) -> tuple[PublishBatch, PublishTemplate, bytes, list[Ticket]]:
    """Five mandatory publishings of one body that only the window holds beside this test."""
    batch = PublishBatch(SendBuffer(lambda: None, lambda: None), window)
    template = PublishTemplate("orders", "q", mandatory=True)
    body = bytes(bytearray(b"kept"))
    tickets = [Ticket() for _ in range(5)]
    for ticket in tickets:
        if runs:
            assert batch.add_run(template, [body], 0, ticket, 0, 1000) == 1
        else:
            batch.add(template, body, ticket)
    return batch, template, body, tickets


@pytest.mark.parametrize(
    "end",
    [
        lambda window: window.settle(ack(5, multiple=True)),
        lambda window: window.settle(run(*((tag, False, tag % 2 == 0) for tag in (3, 1, 5, 2, 4)))),
        lambda window: window.expire(5),
        lambda window: [window.give_up(tag) for tag in (5, 1, 3, 2, 4)],
        lambda window: window.give_up_written("no such exchange", "orders"),
        lambda window: [window.tie_return(returned_like(ORDERS, b"kept")) for _ in range(5)] and window.renumber(),
    ],
    ids=["multiple", "one by one", "expired", "given up", "exchange", "returned"],
)
@pytest.mark.parametrize("runs", [True, False])
def test_bodies_templates_and_tickets_are_let_go_when_publishings_end(
    end: Callable[[ConfirmWindow], object], runs: bool
) -> None:
    window = ConfirmWindow()
    _batch, template, body, tickets = kept(window, runs)
    before = [sys.getrefcount(thing) for thing in (template, body, *tickets)]
    end(window)
    assert window.outstanding == 0
    after = [sys.getrefcount(thing) for thing in (template, body, *tickets)]
    assert [was - now for was, now in zip(before, after, strict=True)] == [5, 5, 1, 1, 1, 1, 1]


def test_bodies_and_templates_are_let_go_when_the_window_goes() -> None:
    window = ConfirmWindow()
    batch, template, body, _ = kept(window)
    before = sys.getrefcount(template), sys.getrefcount(body)
    for _ in range(1000):  # so that the ring has grown
        batch.add(template, body)
    assert (sys.getrefcount(template), sys.getrefcount(body)) == (before[0] + 1000, before[1] + 1000)
    del window, batch
    assert (sys.getrefcount(template), sys.getrefcount(body)) == (before[0] - 5, before[1] - 5)


def test_nothing_is_held_twice_when_publishings_are_sent_again_and_again() -> None:
    window = ConfirmWindow()
    batch, template, body, tickets = kept(window)
    before = [sys.getrefcount(thing) for thing in (body, *tickets)]
    held = sys.getrefcount(template)
    for _ in range(100):
        window.renumber()
        assert batch.resend(3) is False
    assert batch.resend(3) is True
    assert [sys.getrefcount(thing) for thing in (body, *tickets)] == before
    assert sys.getrefcount(template) == held - 5, "marked frames took its place"
    assert batch.published == 5
    window.settle(ack(5, multiple=True))
    assert (window.confirmed, window.outstanding) == (5, 0)
    assert [ticket.attempts() for ticket in tickets] == [101, 101, 101, 2, 2]


# ---------------------------------------------------------------------------------------------- receipts


def test_receipts_are_values() -> None:
    assert Receipt(7) == Receipt(7, Outcome.CONFIRMED)
    assert Receipt(7) != Receipt(8)
    assert Receipt(7) != Receipt(7, Outcome.UNKNOWN)
    assert Receipt(7) != (7, Outcome.CONFIRMED)
    assert len({Receipt(7), Receipt(7), Receipt(8), Receipt(7, Outcome.UNKNOWN)}) == 3
    assert repr(Receipt(7)) == "Receipt(delivery_tag=7, outcome=<Outcome.CONFIRMED: 1>, attempts=1)"
    assert Receipt(7).attempts == 1
    assert Receipt(7, Outcome.CONFIRMED, 3).attempts == 3
    assert Receipt(7, Outcome.CONFIRMED, 3) != Receipt(7)
    assert Receipt(2**64 - 1).delivery_tag == 2**64 - 1
    receipt: Any = Receipt(7)
    with pytest.raises(AttributeError):
        receipt.delivery_tag = 8


@pytest.mark.parametrize("tag", [-1, 2**64, "7", None])
def test_a_receipt_is_refused_when_its_tag_is_none(tag: Any) -> None:
    with pytest.raises((OverflowError, TypeError)):
        Receipt(tag)


def test_what_says_the_same_for_everybody_is_shared_when_there_are_no_confirms() -> None:
    assert Receipt(0, Outcome.UNKNOWN) == NO_RECEIPT


def test_each_confirm_is_timed_from_the_write_that_its_publishing_left_with() -> None:
    window, out = ConfirmWindow(), SendBuffer(lambda: None, lambda: None)
    batch = PublishBatch(out, window)
    for size in (0, 0, 20_000):  # the third goes as a piece of its own, in the same write
        batch.add(ORDERS, bytes(size))
    out.take()
    time.sleep(0.05)
    for size in (20_000, 0):
        batch.add(ORDERS, bytes(size))
    out.take()
    time.sleep(0.002)
    window.settle(ack(5))
    assert 0.002 <= window.confirm_time.read().highest < 0.05
    window.settle(ack(2))
    window.settle(ack(4, multiple=True))
    times = window.confirm_time.read()
    assert times.count == 5
    assert 0.052 <= times.highest < 10
    assert times.at_most([0.04, 10]) == [2, 5]


def test_what_is_held_and_sent_again_is_timed_from_its_call() -> None:
    window, out = ConfirmWindow(), SendBuffer(lambda: None, lambda: None)
    batch = PublishBatch(out, window)
    batch.add(ORDERS, b"")
    out.take()
    batch.hold(ORDERS, b"")
    time.sleep(0.03)
    window.renumber()
    batch.attach(SendBuffer(lambda: None, lambda: None), 2, 4096)
    assert batch.resend(10)
    batch.add(ORDERS, b"")
    window.settle(ack(3, multiple=True))
    times = window.confirm_time.read()
    assert times.count == 3
    assert times.at_most([0.02, 10]) == [1, 3]


@pytest.mark.parametrize("multiple", [False, True])
def test_marks_are_bounded_by_the_publishings_without_an_outcome(multiple: bool) -> None:
    window, out = ConfirmWindow(), SendBuffer(lambda: None, lambda: None)
    batch = PublishBatch(out, window)

    def rounds(count: int) -> None:
        for _ in range(count):
            for _ in range(3):
                batch.add(ORDERS, b"")
                out.take()  # each leaves by itself
            window.settle(run(*((tag, multiple, False) for tag in range(window.first, window.first + 3))))

    rounds(1000)
    before = resident_memory()
    rounds(200_000)  # 9.6 MB of marks, if they stayed
    after = resident_memory()
    assert window.confirm_time.count == window.confirmed == 603_000
    assert before is not None
    assert after is not None
    assert after - before < 2 << 20
