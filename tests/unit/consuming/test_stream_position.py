"""Where a consumer of a stream begins again: at the lowest offset that was not handled, whatever happened before."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.conversation import memory

from leveret.consuming.channel_deliveries import ChannelDeliveries
from leveret.consuming.streams import StreamPosition
from leveret.errors import ChannelClosed, ConfigurationError, ConnectionClosed
from leveret.wire.encoding import FieldValue


class Message:
    """What the position asks of a delivery."""

    def __init__(self, deliveries: ChannelDeliveries, delivery_tag: int, offset: int | None) -> None:
        self._deliveries = deliveries
        self.delivery_tag = delivery_tag
        self.headers: dict[str, Any] = {} if offset is None else {"x-stream-offset": offset}
        self.released = False

    @property
    def is_settled(self) -> bool:
        return not self._deliveries.alive or not self._deliveries.acks.is_open(self.delivery_tag)

    def release(self) -> None:
        self.released = True


class Decoder:
    """What `ChannelDeliveries` asks of a decoder."""

    def decode(self, message: object) -> object:
        raise NotImplementedError

    def plain(self, message: object) -> None:
        raise NotImplementedError


def opened(position: StreamPosition) -> ChannelDeliveries:
    """Gives the consumer a new channel."""
    deliveries = ChannelDeliveries("s", 1, memory(), Decoder(), lambda *_: None)  # type: ignore[arg-type]
    position.opened(deliveries)
    return deliveries


def delivered(position: StreamPosition, deliveries: ChannelDeliveries, *offsets: int | None) -> list[Any]:
    """Delivers messages with these offsets in one read."""
    first = deliveries.acks.next_delivery_tag
    messages = [Message(deliveries, first + index, offset) for index, offset in enumerate(offsets)]
    position.delivered(messages)  # type: ignore[arg-type]
    for message in messages:
        deliveries.acks.track(message.delivery_tag)
    return messages


def begins_at(position: StreamPosition) -> Any:
    """The offset of the next subscription."""
    value = position.arguments().get("x-stream-offset")
    return value.value if isinstance(value, FieldValue) else value


def made(offset: int | str | None = None, *, declared: bool = True) -> StreamPosition:
    return StreamPosition("s", offset, lambda: declared)


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_no_message_is_missed_and_none_comes_again_that_need_not(seed: int, losses: int) -> None:
    """A stream with gaps; deliveries are handled in any order, put back, or lost with their channel."""
    chance = random.Random(seed)
    stream = sorted(chance.sample(range(200), 60))
    position = made("first")
    handled: list[int] = []
    for _ in range(losses):
        deliveries = opened(position)
        open_messages: list[tuple[int, Any]] = []
        sent = -1
        for _ in range(chance.randint(0, 8)):
            if sent < 0:
                start = begins_at(position)
                sent = 0 if start == "first" else start
                position.begun()
            coming = [offset for offset in stream if offset >= sent][: chance.randint(1, 7)]
            if coming:
                messages = delivered(position, deliveries, *coming)
                open_messages += zip(coming, messages, strict=True)
                sent = coming[-1] + 1
            chance.shuffle(open_messages)
            for _ in range(chance.randint(0, len(open_messages))):
                offset, message = open_messages.pop()
                assert deliveries.acks.ack(message.delivery_tag)
                handled.append(offset)
            if chance.random() < 0.3:
                # A pause: what was not begun is dropped, and the next subscription begins before it.
                dropped = [message for _, message in open_messages]
                position.put_back(dropped)
                lowest = min((offset for offset, _ in open_messages), default=sent)
                open_messages.clear()
                assert begins_at(position) in (lowest, "first")
                sent = -1
        unhandled = [offset for offset, _ in open_messages]
        deliveries.end()
        position.lost()
        expected = min([offset for offset in stream if offset not in handled], default=None)
        start = begins_at(position)
        if start != "first" and expected is not None:
            assert start <= expected, "nothing is missed"
            assert not unhandled or start <= min(unhandled)
    # At the end everything that is left comes.
    deliveries = opened(position)
    start = begins_at(position)
    left = stream if start == "first" else [offset for offset in stream if offset >= start]
    assert {*handled, *left} == {*stream}


def test_all_that_is_settled_in_order_leaves_one_run_however_much_comes() -> None:
    position = made("first")
    deliveries = opened(position)
    for first in range(0, 10_000, 100):
        for message in delivered(position, deliveries, *range(first, first + 100)):
            deliveries.acks.ack(message.delivery_tag)
        deliveries.flush()
    assert len(position._runs) == 1
    assert begins_at(position) == 10_000


def test_runs_that_are_done_are_forgotten() -> None:
    position = made("first")
    deliveries = opened(position)
    for offset in range(0, 30_000, 3):
        (message,) = delivered(position, deliveries, offset)
        deliveries.acks.ack(message.delivery_tag)
        deliveries.flush()
    assert len(position._runs) <= 2


def test_a_queue_without_offsets_is_looked_at_once_for_each_channel() -> None:
    position = made(declared=False)
    deliveries = opened(position)
    assert position.is_watching
    delivered(position, deliveries, None)
    assert not position.is_watching
    assert not position.is_stream
    assert position.arguments() == {}
    opened(position)
    assert position.is_watching


@pytest.mark.parametrize("value", [True, "5", -1, 1.0, None])
def test_a_header_that_is_no_offset_makes_no_stream(value: Any) -> None:
    position = made(declared=False)
    delivered(position, opened(position), value)
    assert not position.is_stream


def test_nothing_is_acknowledged_that_was_not_handled_until_the_broker_says_that_it_is_a_stream() -> None:
    position = made(declared=False)
    deliveries = opened(position)
    messages = delivered(position, deliveries, 5, 6, 7)
    assert position.needs_confirmation
    position.put_back(messages[1:])
    assert deliveries.acks.unsettled == 3
    position.confirmed(is_stream=True)
    assert deliveries.acks.unsettled == 1
    assert begins_at(position) == 6
    assert not position.needs_confirmation


def test_what_was_put_back_is_released_when_the_broker_says_that_it_is_no_stream() -> None:
    position = made(declared=False)
    deliveries = opened(position)
    messages = delivered(position, deliveries, 5, 6, 7)
    position.put_back(messages[1:])
    position.confirmed(is_stream=False)
    assert [message.released for message in messages] == [False, True, True]
    assert not position.is_stream
    assert position.arguments() == {}
    opened(position)
    assert not position.is_watching
    position.check_takes_nothing_back("requeue", "requeue")


def test_the_time_of_the_first_subscription_stands_for_next_until_something_comes() -> None:
    position = made("next")
    opened(position)
    assert begins_at(position) == "next"
    position.begun()
    first = begins_at(position)
    position.lost()
    position.begun()
    assert begins_at(position) == first
    assert first.tzinfo is not None
    delivered(position, opened(position), 8)
    assert begins_at(position) == 9


def _refusal(kind: type[ChannelClosed | ConnectionClosed], code: int, text: str, method: int = 20) -> Any:
    return kind("refused", reply_code=code, reply_text=text, class_id=60, method_id=method)


def test_an_error_that_no_attempt_can_mend_is_a_configuration_error() -> None:
    refused = _refusal(ConnectionClosed, 540, "NOT_IMPLEMENTED - not supported by stream")
    error = made(declared=False).explained(refused, no_ack=True)
    assert isinstance(error, ConfigurationError)
    assert (error.option, error.__cause__) == ("ack", refused)
    no_stream = _refusal(ChannelClosed, 406, "PRECONDITION_FAILED - invalid arg 'x-stream-offset' for queue 's'")
    error = made("first").explained(no_stream, no_ack=False)
    assert isinstance(error, ConfigurationError)
    assert error.option == "stream_offset"


@pytest.mark.parametrize(
    "error",
    [
        _refusal(ConnectionClosed, 540, "NOT_IMPLEMENTED", method=70),
        _refusal(ConnectionClosed, 320, "CONNECTION_FORCED"),
        _refusal(ChannelClosed, 406, "PRECONDITION_FAILED - stream 's' does not have a running replica"),
        _refusal(ChannelClosed, 404, "NOT_FOUND"),
    ],
)
def test_other_errors_stay_as_they_are(error: Any) -> None:
    position = made("first")
    assert position.explained(error, no_ack=True) is error
    assert position.is_stream


@pytest.mark.parametrize("known_by", ["setting", "declaration", "delivery"])
def test_what_a_stream_does_not_take_is_refused_by_name(known_by: str) -> None:
    position = made("first" if known_by == "setting" else None, declared=known_by == "declaration")
    if known_by == "delivery":
        delivered(position, opened(position), 3)
    with pytest.raises(ConfigurationError, match="'s' is a stream, and requeue") as refused:
        position.check_takes_nothing_back("requeue", "requeue")
    assert refused.value.option == "requeue"
