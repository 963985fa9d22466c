"""Queues of the embedded broker on a clock that the test turns, with consumers that only write down what they get."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import strategies

from leveret.broker.arguments import QueueOptions
from leveret.broker.queues import SLICE_BYTES, TURN_COUNT, UNLIMITED, BrokerConsumer, BrokerQueue
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.template import PublishTemplate
from leveret.wire.buffers import SendBuffer
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leveret.wire.message import Message

assert strategies  # its import loads the hypothesis profile


class FakeHost:
    """A virtual host with a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self._numbers = itertools.count()
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.cancelled: set[int] = set()
        self.awake: list[BrokerQueue] = []
        self.dead: list[tuple[str, bytes]] = []
        self.deleted: list[BrokerQueue] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> FakeTimer:
        number = next(self._numbers)
        heapq.heappush(self.timers, (self.now + delay, number, callback))
        return FakeTimer(self, number)

    def wake(self, queue: BrokerQueue) -> None:
        self.awake.append(queue)

    def dead_letter(self, queue: BrokerQueue, messages: list[Message], reason: str) -> None:
        self.dead += [(reason, body_of(message)) for message in messages]

    def delete_queue(self, queue: BrokerQueue) -> None:
        self.deleted.append(queue)
        queue.delete()

    def run(self) -> None:
        while self.awake:
            self.awake.pop().dispatch()

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.timers and self.timers[0][0] <= end:
            self.now, number, callback = heapq.heappop(self.timers)
            if number not in self.cancelled:
                callback()
                self.run()
        self.now = end


def body_of(message: Message) -> bytes:
    assert not isinstance(message.body, memoryview)
    return message.body or b""


class FakeTimer:
    def __init__(self, host: FakeHost, number: int) -> None:
        self._host = host
        self._number = number

    def cancel(self) -> None:
        self._host.cancelled.add(self._number)


class FakeChannel:
    """A channel with room for as much as the test says."""

    def __init__(self, room: int = UNLIMITED) -> None:
        self.room = room
        self.slices: list[list[bytes]] = []
        self.sequences: list[int] = []
        self.messages: list[Message] = []
        self.gone = 0

    @property
    def bodies(self) -> list[bytes]:
        return [body_of(message) for message in self.messages]

    def capacity(self, consumer: BrokerConsumer) -> int:
        return self.room

    def deliver(self, consumer: BrokerConsumer, messages: list[Message], sequences: Sequence[int]) -> None:
        assert 0 < len(messages) == len(sequences) <= self.room
        self.room -= len(messages)
        self.slices.append([body_of(message) for message in messages])
        self.messages += messages
        self.sequences += sequences

    def cancelled(self, consumer: BrokerConsumer) -> None:
        self.gone += 1


def make(host: FakeHost, **options: Any) -> BrokerQueue:
    return BrokerQueue("q", "/", host, QueueOptions(**options), {}, durable=False, auto_delete=False, owner=None)


def consume(queue: BrokerQueue, room: int = UNLIMITED, **options: Any) -> FakeChannel:
    channel = FakeChannel(room)
    consumer = BrokerConsumer(
        channel,
        "tag",
        queue,
        no_ack=options.pop("no_ack", False),
        prefetch_count=0,
        priority=options.pop("priority", 0),
    )
    channel.consumer = consumer  # type: ignore[attr-defined]
    queue.add_consumer(consumer, exclusive=False)
    return channel


def messages(*bodies: bytes) -> list[Message]:
    out = SendBuffer(lambda: None, lambda: None)
    batch = PublishBatch(out, None, frame_max=1 << 24)
    template = PublishTemplate("", "q", frame_max=1 << 24)
    for body in bodies:
        batch.add(template, body)
    (run,) = FrameReader(server=True, frame_max=1 << 24).feed(out.take())
    assert isinstance(run, ContentRun)
    return run.messages


def numbered(count: int, start: int = 0) -> list[Message]:
    return messages(*[str(number).encode() for number in range(start, start + count)])


@pytest.fixture
def host() -> FakeHost:
    return FakeHost()


# ---------------------------------------------------------------------- delivering


def test_consumers_share_what_is_there_when_all_have_room(host: FakeHost) -> None:
    queue = make(host)
    queue.publish(numbered(10))
    channels = [consume(queue) for _ in range(3)]
    queue.dispatch()
    assert sorted(len(channel.bodies) for channel in channels) == [2, 4, 4]
    assert {body for channel in channels for body in channel.bodies} == {str(n).encode() for n in range(10)}
    assert len(queue) == 0


def test_consumers_take_turns_when_messages_come_one_by_one(host: FakeHost) -> None:
    queue = make(host)
    channels = [consume(queue) for _ in range(3)]
    for number in range(9):
        queue.publish(numbered(1, number))
        queue.dispatch()
    assert [channel.bodies for channel in channels] == [[b"0", b"3", b"6"], [b"1", b"4", b"7"], [b"2", b"5", b"8"]]


def test_consumer_without_room_is_passed_over(host: FakeHost) -> None:
    queue = make(host)
    full, able = consume(queue, room=1), consume(queue)
    queue.publish(numbered(7))
    queue.dispatch()
    assert (len(full.bodies), len(able.bodies)) == (1, 6)


def test_messages_stay_when_nobody_has_room(host: FakeHost) -> None:
    queue = make(host)
    channel = consume(queue, room=2)
    queue.publish(numbered(5))
    assert not queue.dispatch()
    assert (channel.bodies, len(queue)) == ([b"0", b"1"], 3)
    channel.room = 10
    queue.dispatch()
    assert channel.bodies == [b"0", b"1", b"2", b"3", b"4"]


def test_higher_priority_is_served_first_and_lower_when_it_is_full(host: FakeHost) -> None:
    queue = make(host)
    low, high = consume(queue), consume(queue, room=3, priority=5)
    queue.publish(numbered(5))
    queue.dispatch()
    assert (high.bodies, low.bodies) == ([b"0", b"1", b"2"], [b"3", b"4"])


def test_single_active_consumer_gets_everything_until_it_goes(host: FakeHost) -> None:
    queue = make(host, single_active_consumer=True)
    first, second, third = consume(queue, room=2), consume(queue), consume(queue, priority=9)
    queue.publish(numbered(4))
    queue.dispatch()
    assert (first.bodies, second.bodies, third.bodies) == ([b"0", b"1"], [], [])
    queue.remove_consumer(first.consumer)  # type: ignore[attr-defined]
    queue.dispatch()
    assert (second.bodies, third.bodies) == ([], [b"2", b"3"])


def test_slice_holds_no_more_bytes_than_a_socket_should(host: FakeHost) -> None:
    queue = make(host)
    channel = consume(queue)
    size = SLICE_BYTES // 4
    queue.publish(messages(*[bytes([number]) * size for number in range(10)], b"x" * (3 * SLICE_BYTES), b"end"))
    queue.dispatch()
    assert [len(part) for part in channel.slices] == [4, 4, 2, 1, 1]
    assert [body[0] for body in channel.bodies] == [*range(10), ord("x"), ord("e")]
    assert channel.sequences == list(range(12))


def test_large_queue_lets_others_have_their_turn(host: FakeHost) -> None:
    queue = make(host)
    channel = consume(queue)
    queue.publish(numbered(2 * TURN_COUNT + 1))
    assert queue.dispatch()
    assert TURN_COUNT <= len(channel.bodies) < 2 * TURN_COUNT
    while queue.dispatch():
        pass
    assert channel.bodies == [str(n).encode() for n in range(2 * TURN_COUNT + 1)]


def test_queue_tells_its_consumers_when_it_is_deleted(host: FakeHost) -> None:
    queue = make(host)
    channel = consume(queue, room=1)
    queue.publish(numbered(3))
    queue.dispatch()
    queue.delete()
    assert channel.gone == 1
    # What comes back now has nowhere to go.
    queue.requeue(channel.messages, channel.sequences, lost=True)
    queue.reject(channel.messages, channel.sequences)
    assert (len(queue), host.dead) == (0, [])
    assert queue.publish(numbered(2)) == 2


# ---------------------------------------------------------------------- requeueing


def test_returned_messages_go_back_to_their_places(host: FakeHost) -> None:
    queue = make(host)
    channel = consume(queue, room=4)
    queue.publish(numbered(6))
    queue.dispatch()
    queue.requeue([channel.messages[2]], [2], lost=False)
    queue.requeue([channel.messages[0], channel.messages[3]], [0, 3], lost=False)
    after = consume(queue)
    queue.dispatch()
    assert after.bodies == [b"0", b"2", b"3", b"4", b"5"]
    assert [message.redelivered for message in after.messages] == [True, True, True, False, False]
    assert after.sequences == [0, 2, 3, 4, 5]


@pytest.mark.parametrize("options", [{}, {"max_length_bytes": 1 << 30}])
def test_returned_messages_are_cut_into_slices_as_well(host: FakeHost, options: dict[str, int]) -> None:
    queue = make(host, **options)
    first = consume(queue, room=6)
    queue.publish(messages(*[bytes([number]) * (SLICE_BYTES // 2) for number in range(6)]))
    queue.dispatch()
    queue.requeue(first.messages, first.sequences, lost=True)
    second = consume(queue)
    queue.dispatch()
    assert [len(part) for part in second.slices] == [2, 2, 2]
    assert second.sequences == list(range(6))
    assert queue._ready_bytes == 0


actions = st.lists(
    st.one_of(
        st.tuples(st.just("publish"), st.integers(1, 5)),
        st.tuples(st.just("get"), st.integers(1, 4)),
        st.tuples(st.just("requeue"), st.integers(0, 99)),
        st.tuples(st.just("ack"), st.integers(0, 99)),
        st.tuples(st.just("purge"), st.just(0)),
    ),
    max_size=40,
)


@given(actions)
def test_queue_keeps_order_whatever_comes_back_and_when(steps: list[tuple[str, int]]) -> None:
    host = FakeHost()
    queue = make(host)
    published = 0
    ready: list[int] = []
    out: list[tuple[Message, int]] = []
    for step, number in steps:
        if step == "publish":
            queue.publish(numbered(number, published))
            ready += range(published, published + number)
            published += number
        elif step == "get":
            for _ in range(number):
                got = queue.get()
                if got is None:
                    assert not ready
                    break
                assert int(got[0].body or b"") == ready.pop(0)
                out.append(got)
        elif step == "purge":
            assert queue.purge() == len(ready)
            ready.clear()
        elif out:
            message, sequence = out.pop(number % len(out))
            if step == "requeue":
                queue.requeue([message], [sequence], lost=False)
                ready = sorted([*ready, int(message.body or b"")])
            else:
                queue.forget([sequence])
        assert len(queue) == len(ready)


def test_quorum_queue_puts_what_is_given_back_at_its_end_and_counts(host: FakeHost) -> None:
    queue = make(host, queue_type="quorum")
    channel = consume(queue, room=1)
    queue.publish(numbered(2))
    queue.dispatch()
    queue.requeue(channel.messages, channel.sequences, lost=False)
    after = consume(queue)
    queue.dispatch()
    assert after.bodies == [b"1", b"0"]
    assert [message.headers for message in after.messages] == [{}, {"x-delivery-count": 1}]
    assert [message.redelivered for message in after.messages] == [False, True]
    # A consumer that is lost gives back to the front.
    after.room = 0
    queue.requeue(after.messages, after.sequences, lost=True)
    last = consume(queue)
    queue.dispatch()
    assert [(m.body, m.headers["x-delivery-count"]) for m in last.messages] == [(b"1", 1), (b"0", 2)]


def test_delivery_limit_dead_letters_what_came_back_too_often(host: FakeHost) -> None:
    queue = make(host, queue_type="quorum", delivery_limit=2)
    queue.publish(numbered(2))
    for _ in range(3):
        got = queue.get()
        assert got is not None
        assert got[0].body == b"0"
        queue.requeue([got[0]], [got[1]], lost=True)
    assert host.dead == [("delivery_limit", b"0")]
    assert len(queue) == 1
    assert not queue._returns


# ---------------------------------------------------------------------- limits


def test_drop_head_keeps_the_newest(host: FakeHost) -> None:
    queue = make(host, max_length=3)
    assert queue.publish(numbered(5)) == 5
    assert queue.publish(numbered(1, 5)) == 1
    assert host.dead == [("maxlen", b"0"), ("maxlen", b"1"), ("maxlen", b"2")]
    assert len(queue) == 3


def test_reject_publish_takes_what_fits(host: FakeHost) -> None:
    queue = make(host, max_length=3, overflow="reject-publish")
    assert queue.publish(numbered(2)) == 2
    assert queue.publish(numbered(5)) == 1
    assert queue.publish(numbered(5)) == 0
    assert (len(queue), host.dead) == (3, [])


def test_reject_publish_counts_what_consumers_take_as_free(host: FakeHost) -> None:
    queue = make(host, max_length=2, overflow="reject-publish")
    channel = consume(queue, room=5)
    assert queue.publish(numbered(10)) == 7
    assert (len(channel.bodies), len(queue)) == (5, 2)


def test_reject_publish_dlx_dead_letters_what_it_refuses(host: FakeHost) -> None:
    queue = make(host, max_length=1, overflow="reject-publish-dlx")
    assert queue.publish(numbered(3)) == 1
    assert host.dead == [("maxlen", b"1"), ("maxlen", b"2")]


@pytest.mark.parametrize("overflow", ["drop-head", "reject-publish"])
def test_bytes_are_limited_too(host: FakeHost, overflow: str) -> None:
    queue = make(host, max_length_bytes=10, overflow=overflow)
    taken = queue.publish(messages(b"aaaa", b"bbbb", b"cccc", b"d"))
    if overflow == "drop-head":
        assert (taken, host.dead) == (4, [("maxlen", b"aaaa")])
    else:
        assert (taken, len(queue)) == (2, 2)
    got = queue.get()
    assert got is not None
    queue.requeue([got[0]], [got[1]], lost=False)
    assert queue.purge() in (2, 3)
    assert queue._ready_bytes == 0


# ---------------------------------------------------------------------- time


def test_messages_expire_when_their_time_is_over(host: FakeHost) -> None:
    queue = make(host, message_ttl_ms=1000)
    queue.publish(numbered(2))
    host.run()
    host.advance(0.5)
    queue.publish(numbered(1, 2))
    host.run()
    host.advance(0.6)
    assert (host.dead, len(queue)) == ([("expired", b"0"), ("expired", b"1")], 1)
    host.advance(0.5)
    assert (len(host.dead), len(queue), queue._deadlines) == (3, 0, {})


def test_shorter_of_queue_and_message_expiration_counts(host: FakeHost) -> None:
    queue = make(host, message_ttl_ms=1000)
    queue.publish(numbered(3), [100, 5000, None])
    host.run()
    host.advance(0.2)
    assert host.dead == [("expired", b"0")]
    host.advance(1)
    assert len(host.dead) == 3


def test_message_behind_one_that_lives_longer_expires_when_it_reaches_the_head(host: FakeHost) -> None:
    queue = make(host)
    queue.publish(numbered(2), [None, 100])
    host.run()
    host.advance(1)
    assert (host.dead, len(queue)) == ([], 2)
    got = queue.get()
    assert got is not None
    assert got[0].body == b"0"
    assert queue.get() is None
    assert host.dead == [("expired", b"1")]


def test_expired_message_that_is_delivered_expires_when_it_comes_back(host: FakeHost) -> None:
    queue = make(host, message_ttl_ms=100)
    channel = consume(queue, room=1)
    queue.publish(numbered(1))
    host.run()
    host.advance(1)
    assert channel.bodies == [b"0"]
    queue.requeue(channel.messages, channel.sequences, lost=False)
    host.run()
    assert (host.dead, len(queue), queue._deadlines) == ([("expired", b"0")], 0, {})


def test_consumer_that_is_ready_gets_a_message_that_may_not_wait(host: FakeHost) -> None:
    queue = make(host, message_ttl_ms=0)
    channel = consume(queue, room=1)
    queue.publish(numbered(1))
    host.run()
    queue.publish(numbered(1, 1))
    host.run()
    host.advance(0.001)
    assert channel.bodies + [body for _, body in host.dead] == [b"0", b"1"]


def test_unused_queue_is_deleted_when_its_time_is_over(host: FakeHost) -> None:
    queue = make(host, expires_ms=1000)
    host.advance(0.9)
    queue.get()
    host.advance(0.9)
    assert host.deleted == []
    channel = consume(queue)
    host.advance(5)
    assert host.deleted == []
    queue.remove_consumer(channel.consumer)  # type: ignore[attr-defined]
    host.advance(1.1)
    assert host.deleted == [queue]


def test_deleted_queue_leaves_no_timer(host: FakeHost) -> None:
    queue = make(host, expires_ms=1000, message_ttl_ms=500)
    queue.publish(numbered(1))
    host.run()
    queue.delete()
    host.advance(10)
    assert (host.dead, host.deleted) == ([], [])


def test_auto_delete_queue_goes_with_its_last_consumer(host: FakeHost) -> None:
    queue = BrokerQueue("q", "/", host, QueueOptions(), {}, durable=False, auto_delete=True, owner=None)
    first, second = consume(queue), consume(queue)
    queue.remove_consumer(first.consumer)  # type: ignore[attr-defined]
    assert host.deleted == []
    queue.remove_consumer(second.consumer)  # type: ignore[attr-defined]
    assert host.deleted == [queue]
