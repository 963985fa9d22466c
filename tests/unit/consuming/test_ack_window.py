"""The deliveries of a channel against a model of what the broker still waits for."""

from __future__ import annotations

import struct

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tests.corpus import frames, strategies

from leveret.consuming.acks import AckWindow
from leveret.wire.buffers import SendBuffer
from leveret.wire.content import append_settlement
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun, SettlementRun

assert strategies  # its import loads the hypothesis profile

CHANNEL = 5


def deliveries(tags: list[int]) -> ContentRun:
    run = frames.run_of(
        FrameReader(frame_max=1 << 20).feed(b"".join(frames.delivery(CHANNEL, tag, b"") for tag in tags))
    )
    return run


def written(out: SendBuffer) -> list[tuple[int, bool]]:
    """The basic.acks in the buffer, as (delivery_tag, multiple); read with struct, not with our own reader."""
    data = out.take()
    acks = []
    for at in range(0, len(data), 21):
        kind, channel, size, class_id, method_id, tag, multiple, end = struct.unpack(">BHIHHQBB", data[at : at + 21])
        assert (kind, channel, size, class_id, method_id, end) == (1, CHANNEL, 13, 60, 80, 0xCE)
        acks.append((tag, bool(multiple)))
    return acks


def buffer() -> SendBuffer:
    return SendBuffer(lambda: None, lambda: None)


class AckModel(RuleBasedStateMachine):
    """Delivers, acknowledges and refuses at random; the broker's side is a set of tags it waits for."""

    @initialize()
    def start(self) -> None:
        self.window = AckWindow(CHANNEL)
        self.out = buffer()
        self.next_tag = 1
        self.broker: set[int] = set()  # delivered, and the broker has seen no ack or reject
        self.processing: set[int] = set()  # delivered, and the application has not settled it
        self.acked = self.rejected = self.ignored = 0

    @rule(count=st.sampled_from([1, 1, 2, 5, 40, 300]), gap=st.sampled_from([0, 0, 0, 1, 3, 600]))
    def deliver(self, count: int, gap: int) -> None:
        # A gap are deliveries to a consumer without acknowledgements on the same channel.
        tags = list(range(self.next_tag + gap, self.next_tag + gap + count))
        if count == 1:
            assert self.window.track(tags[0])
        else:
            assert self.window.delivered(deliveries(tags))
        self.next_tag = tags[-1] + 1
        self.broker.update(tags)
        self.processing.update(tags)

    @precondition(lambda self: self.next_tag > 1)
    @rule(data=st.data())
    def a_tag_that_was_seen_before_is_not_noted(self, data: st.DataObject) -> None:
        assert not self.window.track(data.draw(st.integers(0, self.next_tag - 1)))

    @precondition(lambda self: self.processing)
    @rule(data=st.data(), count=st.sampled_from([1, 1, 3, 50]), lowest=st.booleans())
    def ack(self, data: st.DataObject, count: int, lowest: bool) -> None:
        for _ in range(min(count, len(self.processing))):
            tag = min(self.processing) if lowest else data.draw(st.sampled_from(sorted(self.processing)[:600]))
            assert self.window.is_open(tag)
            assert self.window.ack(tag)
            self.processing.remove(tag)
            self.acked += 1

    @precondition(lambda self: self.processing)
    @rule(data=st.data())
    def reject(self, data: st.DataObject) -> None:
        tag = data.draw(st.sampled_from(sorted(self.processing)[:600]))
        assert self.window.reject(tag)
        self.processing.remove(tag)
        self.broker.remove(tag)  # basic.reject goes out at once
        self.rejected += 1

    @rule(tag=st.integers(0, 5000) | st.just(2**64 - 1), refuse=st.booleans())
    def settling_twice_or_what_never_came_is_ignored(self, tag: int, refuse: bool) -> None:
        if tag in self.processing:
            return
        assert not self.window.is_open(tag)
        assert not (self.window.reject(tag) if refuse else self.window.ack(tag))
        self.ignored += 1

    @rule(stragglers=st.booleans())
    def flush(self, stragglers: bool) -> None:
        count = self.window.flush(self.out, stragglers=stragglers)
        acks = written(self.out)
        assert len(acks) == count
        for tag, multiple in acks:
            assert tag in self.broker, "RabbitMQ closes the channel on an unknown delivery tag"
            covered = {other for other in self.broker if other <= tag} if multiple else {tag}
            assert not covered & self.processing, "acknowledged what was not processed"
            self.broker -= covered
        done = self.broker - self.processing
        if stragglers:
            assert not done
        elif self.processing:
            assert all(tag > min(self.processing) for tag in done)
        else:
            assert not done
        assert self.window.ready == len(done)

    @invariant()
    def counters_agree(self) -> None:
        window = self.window
        assert window.next_delivery_tag == self.next_tag
        assert window.unsettled == len(self.processing)
        assert window.ready == len(self.broker) - len(self.processing)
        assert (window.acked, window.rejected, window.ignored) == (self.acked, self.rejected, self.ignored)
        assert window.first <= min(self.processing, default=self.next_tag)


AckModel.TestCase.settings = settings(stateful_step_count=40)
test_acks_name_only_what_was_processed_when_anything_happens_in_any_order = AckModel.TestCase


def test_one_multiple_goes_out_when_a_whole_batch_was_acknowledged() -> None:
    window, out = AckWindow(CHANNEL), buffer()
    window.delivered(deliveries(list(range(1, 101))))
    for tag in reversed(range(1, 101)):
        assert window.ack(tag)
    assert window.flush(out) == 1
    assert written(out) == [(100, True)]
    assert window.flush(out) == 0


def test_multiple_is_not_set_when_one_delivery_was_acknowledged() -> None:
    window, out = AckWindow(CHANNEL), buffer()
    window.delivered(deliveries([1]))
    window.ack(1)
    window.flush(out)
    assert written(out) == [(1, False)]


def test_prefix_stops_when_a_delivery_is_still_worked_on() -> None:
    window, out = AckWindow(CHANNEL), buffer()
    window.delivered(deliveries([1, 2, 3, 4, 5]))
    for tag in (1, 2, 4, 5):
        window.ack(tag)
    window.flush(out)
    assert written(out) == [(2, True)]
    assert window.ready == 2
    assert window.flush(out, stragglers=True) == 2
    assert written(out) == [(4, False), (5, False)]
    window.ack(3)
    window.flush(out)
    assert written(out) == [(3, False)]


def test_ack_names_the_last_acknowledged_tag_when_the_last_delivery_was_rejected() -> None:
    window, out = AckWindow(CHANNEL), buffer()
    window.delivered(deliveries([1, 2, 3]))
    window.ack(1)
    window.ack(2)
    window.reject(3)
    window.flush(out)
    assert written(out) == [(2, True)]


@pytest.mark.parametrize("tag", [0, 2**24 + 1, 2**63, 2**64 - 1])
def test_delivery_is_not_noted_when_its_tag_is_impossible(tag: int) -> None:
    window = AckWindow(CHANNEL)
    assert not window.delivered(deliveries([tag]))
    assert not window.track(tag)
    assert (window.unsettled, window.next_delivery_tag) == (0, 1)
    assert window.delivered(deliveries([1]))


def test_the_others_are_noted_when_one_tag_in_a_run_repeats() -> None:
    window = AckWindow(CHANNEL)
    assert not window.delivered(deliveries([1, 2, 2, 3]))
    assert (window.unsettled, window.next_delivery_tag) == (3, 4)


def test_ring_keeps_every_state_when_a_slow_delivery_holds_up_thousands() -> None:
    window, out = AckWindow(CHANNEL), buffer()
    window.delivered(deliveries(list(range(1, 10_001))))
    for tag in range(2, 10_001):
        window.reject(tag) if tag % 3 == 0 else window.ack(tag)
    assert window.flush(out) == 0
    assert window.first == 1
    window.ack(1)
    window.flush(out)
    assert written(out) == [(10_000, True)]
    assert window.first == 10_001


def test_settlements_are_what_was_asked_for_when_appended_one_by_one() -> None:
    out = buffer()
    append_settlement(out, 3, 80, 7, 1)
    append_settlement(out, 3, 120, 8, 3)
    append_settlement(out, 3, 90, 2**64 - 1, 1)
    assert out.take() == (
        frames.ack(3, 7, multiple=True)
        + frames.nack(3, 8, multiple=True, requeue=True)
        + frames.reject(3, 2**64 - 1, requeue=True)
    )


def test_acks_go_out_when_the_buffer_is_written_while_flushing() -> None:
    blocks: list[bytes] = []
    out = SendBuffer(lambda: None, lambda: blocks.append(out.take()), 21)
    window = AckWindow(CHANNEL)
    window.delivered(deliveries(list(range(1, 11))))
    for tag in range(2, 11, 2):
        window.ack(tag)
    assert window.flush(out, stragglers=True) == 5
    (run,) = FrameReader().feed(b"".join(blocks))
    assert isinstance(run, SettlementRun)
    assert [entry[0] for entry in run] == [2, 4, 6, 8, 10]


def test_finish_returns_what_is_ready_and_passes_over_what_was_settled() -> None:
    window = AckWindow(1)
    for tag in (1, 2, 3):
        window.track(tag)
    window.reject(2)
    assert [window.finish(tag) for tag in (3, 2, 1, 1, 4)] == [1, 0, 2, 0, 0]
    assert (window.acked, window.rejected, window.ignored, window.unsettled) == (2, 1, 0, 0)
