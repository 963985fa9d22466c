"""A frame reader refuses corrupt input. The input is in tests/corpus/malformed.py, with a sentence on each case."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.corpus import frames, malformed

from leveret.errors import FrameError, IncompatibleProtocol, LeveretError, RemoteProtocolError
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from tests.corpus.malformed import Stream

    from leveret.wire.message import Message

every_stream = pytest.mark.parametrize("case", malformed.STREAMS, ids=lambda case: case.name)


def reader_for(case: Stream) -> FrameReader:
    return FrameReader(server=case.server, frame_max=case.frame_max, max_body_size=case.max_body_size)


def valid_prefix(case: Stream) -> tuple[bytes, list[frames.Event]]:
    """Frames that come before the malformed ones, on other channels, and their events."""
    if case.first:
        return b"", []
    data = frames.HEARTBEAT_FRAME + frames.ack(9, 1) + frames.method(0, 10, 30, b"\x00")
    events: list[frames.Event] = [("settlement", 9, 1, False, False, False), ("method", 0, 10, 30, b"\x00")]
    if not case.server:
        data += frames.delivery(8, 7, b"before", consumer_tag="t")
        events.append(
            frames.content_event(
                8, frames.DELIVER, delivery_tag=7, consumer_tag="t", routing_key="q", body_size=6, body=b"before"
            )
        )
    return data, events


def check_error(error: object, case: Stream, *, in_full: bool = True) -> None:
    assert type(error) is case.error
    assert error.reply_code == case.reply_code
    if in_full:
        for text in case.says:
            assert text in str(error)


@every_stream
def test_error_is_typed_and_names_the_value_when_stream_is_malformed(case: Stream) -> None:
    reader = reader_for(case)
    reader.feed(valid_prefix(case)[0] + case.data)
    check_error(reader.error, case)


@every_stream
def test_events_before_are_returned_and_none_after_when_stream_is_malformed(case: Stream) -> None:
    prefix, before = valid_prefix(case)
    after = frames.HEARTBEAT_FRAME + (frames.ack(9, 2) if case.server else frames.delivery(8, 8))
    reader = reader_for(case)
    events = frames.feed_whole(reader, prefix + case.data + after)
    assert events[: len(before)] == before
    # A case may begin with whole messages of its own on channels 1 and 2; never with the ones that follow it.
    assert all(event[1] in {1, 2} for event in events[len(before) :])
    assert reader.feed(after) == []
    assert reader.feed(case.data) == []


@every_stream
def test_error_is_the_same_when_malformed_stream_comes_byte_by_byte(case: Stream) -> None:
    prefix, _ = valid_prefix(case)
    whole = reader_for(case)
    expected = frames.feed_whole(whole, prefix + case.data)
    reader = reader_for(case)
    assert frames.feed_pieces(reader, [bytes([octet]) for octet in prefix + case.data]) == expected
    # A peer that is no AMQP server is known by its first octet, so the text quotes less of it.
    check_error(reader.error, case, in_full=case.error is not IncompatibleProtocol)


@every_stream
def test_nothing_is_kept_when_stream_ended_with_an_error(case: Stream) -> None:
    reader = reader_for(case)
    reader.feed(valid_prefix(case)[0] + case.data)
    error = reader.error
    before = len(reader.get_buffer(-1))
    for _ in range(1000):
        reader.feed(bytes(5_000))
    assert len(reader.get_buffer(-1)) == before, "the receive buffer grew although the stream has ended"
    assert reader.error is error


@pytest.mark.parametrize("size", [4095, 4096])
def test_frame_is_taken_when_it_is_not_over_the_limit(size: int) -> None:
    reader = FrameReader()
    assert len(reader.feed(frames.method(1, 50, 11, bytes(size - 12)))) == 1
    assert reader.error is None


def test_limit_is_the_new_one_when_frame_max_is_set_after_tune() -> None:
    reader = FrameReader()
    reader.frame_max = 8192
    assert len(reader.feed(frames.method(1, 50, 11, bytes(8192 - 12)))) == 1
    assert reader.feed(frames.method(1, 50, 11, bytes(8193 - 12))) == []
    assert isinstance(reader.error, FrameError)
    assert "8193" in str(reader.error)
    assert "8192" in str(reader.error)


@pytest.mark.parametrize("frame_max", [0, 7, 8, 4095])
def test_frame_max_is_refused_when_below_the_protocols_minimum(frame_max: int) -> None:
    with pytest.raises(FrameError, match=rf"{frame_max}.*4096"):
        FrameReader(frame_max=frame_max)
    reader = FrameReader()
    with pytest.raises(FrameError, match=rf"{frame_max}.*4096"):
        reader.frame_max = frame_max
    assert reader.frame_max == 4096


@pytest.mark.parametrize("size", [2**32, 2**40, 2**63 - 1])
def test_body_is_dropped_and_stream_goes_on_when_declared_size_is_enormous(size: int) -> None:
    reader = FrameReader()
    start = frames.deliver(1, 1) + frames.header(1, size) + frames.body(1, bytes(4000))
    assert reader.feed(start) == []
    # Its channel is taken up with it; all others go on.
    assert len(frames.feed_whole(reader, frames.body(1, bytes(4000)) + frames.delivery(2, 5))) == 1
    assert reader.error is None


@pytest.mark.parametrize(
    "data",
    [b"HTTP/1.1 400 Bad Request", b"\x16\x03\x01\x02\x00\x01\x00\x01", b"amqp\x00\x00\x09\x01", b"AMQX", b"\x00"],
    ids=["http", "tls-client-hello", "lower-case", "nearly", "zero"],
)
def test_client_is_refused_when_it_does_not_begin_with_a_protocol_header(data: bytes) -> None:
    for pieces in ([data], [bytes([octet]) for octet in data]):
        reader = FrameReader(server=True, protocol_header=True)
        assert frames.feed_pieces(reader, pieces) == []
        assert type(reader.error) is IncompatibleProtocol


def test_protocol_header_is_an_event_when_client_speaks_another_version() -> None:
    # Answering it with our own header is the server's business (AMQP 0-9-1 section 4.2.2).
    reader = FrameReader(server=True, protocol_header=True)
    assert reader.feed(b"AMQP\x01\x01\x00\x0a") == [b"AMQP\x01\x01\x00\x0a"]
    assert reader.error is None


def test_message_is_usable_when_only_its_properties_are_malformed() -> None:
    raw = b"\xff\xff"
    data = frames.deliver(1, 1) + frames.header(1, 2, raw) + frames.body(1, b"ok") + frames.delivery(1, 2)
    reader = FrameReader()
    run = frames.run_of(reader.feed(data))
    message, following = run.messages
    assert (message.body, message.raw_properties, following.delivery_tag) == (b"ok", raw, 2)
    with pytest.raises(RemoteProtocolError, match="0xffff"):
        _ = message.headers
    assert reader.error is None


def test_message_refuses_to_settle_when_no_consumer_owns_it() -> None:
    run = frames.run_of(FrameReader().feed(frames.delivery(1, 1)))
    message: Message = run.messages[0]
    for settle in (message.ack, message.requeue, message.release, message.dead_letter):
        with pytest.raises(LeveretError, match="consumer"):
            settle()
