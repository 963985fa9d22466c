"""The deliveries of one channel: who decodes and settles them, and what is dropped when the channel is gone."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from tests.corpus import frames

from leveret.consuming.channel_deliveries import ChannelDeliveries
from leveret.errors import LocalProtocolError
from leveret.wire.buffers import SendBuffer
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from leveret.wire.message import Message


class Owner:
    """The decoder and the settler of a consumer."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, str]] = []

    def decode(self, message: Message) -> str:
        self.calls.append((message.delivery_tag, "decode"))
        assert isinstance(message.body, bytes)
        return message.body.decode()

    def plain(self, message: Message) -> None:
        return None

    def settle(self, deliveries: ChannelDeliveries, message: Message, verb: str, detail: object) -> bool:
        self.calls.append((message.delivery_tag, verb if detail is None else f"{verb} {detail}"))
        return deliveries.alive and deliveries.acks.reject(message.delivery_tag)


def delivered(*bodies: bytes) -> tuple[Owner, ChannelDeliveries, list[Message]]:
    owner = Owner()
    deliveries = ChannelDeliveries(
        "orders",
        1,
        SendBuffer(lambda: None, lambda: None),
        owner,
        owner.settle,  # type: ignore[arg-type]
    )
    run = frames.run_of(
        FrameReader().feed(b"".join(frames.delivery(1, tag, body) for tag, body in enumerate(bodies, 1)))
    )
    deliveries.acks.delivered(run)
    deliveries.adopt(run, 12.5)
    return owner, deliveries, run.messages


def test_a_message_has_no_owner_when_it_was_only_read() -> None:
    run = frames.run_of(FrameReader().feed(frames.delivery(1, 1, b"one")))
    (message,) = run.messages
    assert message.value == b"one", "without an owner the value is the body"
    assert message.queue is None
    assert message.is_settled
    times = (message.received_time, message.total_time, message.waiting_time, message.handler_time)
    assert (message.received_at, *times) == (0, None, None, None, None)
    with pytest.raises(LocalProtocolError):
        message.ack()


def test_s24_the_time_of_receipt_is_worked_out_once() -> None:
    _, deliveries, (one, two) = delivered(b"one", b"two")
    for message in (one, two):
        deliveries.adopt_one(message, time.monotonic() - 2)
    wall = time.time()
    received = one.received_time
    assert received is not None
    assert received.utcoffset() == timedelta(0)
    assert wall - 2.001 <= received.timestamp() <= time.time() - 2 + 0.001
    time.sleep(0.01)  # the clocks are read again for another message only
    assert one.received_time == received
    assert two.received_time is not None
    assert abs(two.received_time - received) < timedelta(seconds=1)
    assert one.total_time is not None
    assert one.total_time >= 2


def test_messages_ask_their_consumer_when_they_were_adopted() -> None:
    owner, _, (one, two) = delivered(b"one", b"two")
    assert (one.value, two.value, one.value) == ("one", "two", "one")
    assert (one.queue, one.received_at, two.received_at) == ("orders", 12.5, 12.5)
    assert one.requeue()
    assert two.dead_letter("it is old")
    one.retry(5)
    two.park()
    two.park("it is wrong")
    # The value is decoded once.
    assert owner.calls == [
        (1, "decode"),
        (2, "decode"),
        (1, "requeue"),
        (2, "dead_letter it is old"),
        (1, "retry 5"),
        (2, "park"),
        (2, "park it is wrong"),
    ]


def test_a_message_says_whether_it_can_be_settled() -> None:
    _, deliveries, (one, two) = delivered(b"one", b"two")
    assert not one.is_settled
    assert one.release()
    assert one.is_settled
    assert not two.is_settled
    deliveries.end()
    assert two.is_settled, "its channel is gone"


def test_nothing_is_written_when_the_channel_is_gone() -> None:
    _, deliveries, (one, two) = delivered(b"one", b"two")
    assert one.release()
    deliveries.end()
    assert not two.ack()
    assert not two.dead_letter()
    deliveries.acks.ack(2)
    deliveries.flush()
    assert len(deliveries.out) == 0, "nothing is written to a channel that is gone"
