"""Content is read on open channels only, takes memory for what has come, and has one limit for all channels."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import pytest
from tests.corpus import frames
from tests.corpus.frames import DELIVER, PUBLISH, body, deliver, header, method, publish

from leveret.errors import RemoteProtocolError
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun, MethodFrame

MIB = 1024 * 1024
LARGEST, FRAME_MAX = 1000, 4096
#: One message with the largest body and the largest header frame always fits.
LIMIT = LARGEST + FRAME_MAX
#: Content that a client gets, and content that a server gets.
BEGINNINGS = {"client": lambda channel: deliver(channel, 1), "server": publish}


def connected(side: str = "client", *channels: int, **limits: Any) -> FrameReader:
    """A connection's reader after the handshake, with open channels."""
    reader = FrameReader(server=side == "server", handshake=True, **limits)
    reader.tune(limits.get("frame_max", FRAME_MAX), 2047)
    for channel in channels:
        reader.feed(opening(side, channel))
    return reader


def opening(side: str, channel: int) -> bytes:
    """What opens a channel for the reader: channel.open-ok, or a client's channel.open."""
    return method(channel, 20, 11, bytes(4)) if side == "client" else method(channel, 20, 10, b"\0")


def incomplete(side: str, channel: int, received: int, size: int = LARGEST, properties: int = 0) -> bytes:
    """A content of which so many bytes of the body have come. The flags of its properties are two bytes."""
    data = BEGINNINGS[side](channel) + header(channel, size, frames.NO_PROPERTIES + bytes(properties))
    return data + (body(channel, bytes(received)) if received else b"")


# ---------------------------------------------------------------------------------------------- the limit


@pytest.mark.parametrize("side", BEGINNINGS)
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_incomplete_contents_of_all_channels_have_one_limit(side: str, beyond: int) -> None:
    reader = connected(side, *range(1, 7), max_body_size=LARGEST)
    for channel in range(1, 6):
        reader.feed(incomplete(side, channel, LARGEST - 1))
    assert not reader.error
    held = 5 * (LARGEST - 1 + 2)
    reader.feed(incomplete(side, 6, LIMIT - held - 2 + beyond))
    if beyond < 0:
        run = frames.run_of(reader.feed(body(1, b"x")))
        assert run.messages[0].body == bytes(LARGEST - 1) + b"x"
    elif beyond == 0:
        assert reader.error is None
    else:
        assert isinstance(reader.error, RemoteProtocolError)
        assert reader.error.reply_code == 506
        assert f"{LIMIT + 1} bytes, more than the limit of {LIMIT}" in str(reader.error)


@pytest.mark.parametrize("side", BEGINNINGS)
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_properties_count_as_well_as_bodies(side: str, beyond: int) -> None:
    reader = connected(side, 1, 2, max_body_size=LARGEST)
    reader.feed(incomplete(side, 1, 500, properties=4000))
    reader.feed(incomplete(side, 2, LIMIT - 4502 - 2 - 90 + beyond, properties=90))
    assert (reader.error is None) is (beyond <= 0)


@pytest.mark.parametrize("side", BEGINNINGS)
def test_content_counts_no_more_when_it_is_complete_dropped_or_forgotten(side: str) -> None:
    reader = connected(side, 1, 2, 3, max_body_size=LARGEST)
    for _ in range(20):
        reader.feed(incomplete(side, 1, LARGEST - 1) + body(1, b"x"))
        reader.feed(incomplete(side, 2, LARGEST - 1, properties=3000))
        reader.drop_content(2)
        reader.feed(body(2, b"x"))
        reader.forget(2)
        reader.feed(opening(side, 2))
        reader.feed(incomplete(side, 3, LARGEST - 1, properties=3000))
        reader.forget(3)
        reader.feed(opening(side, 3))
    assert reader.error is None
    reader.feed(incomplete(side, 1, LARGEST - 1) + incomplete(side, 2, LARGEST - 1))
    assert reader.error is None


@pytest.mark.parametrize("side", BEGINNINGS)
def test_largest_message_always_fits(side: str) -> None:
    reader = connected(side, 1, max_body_size=LARGEST)
    reader.feed(incomplete(side, 1, LARGEST - 1, properties=FRAME_MAX - 8 - 14))
    run = frames.run_of(reader.feed(body(1, b"x")))
    assert run.messages[0].body == bytes(LARGEST - 1) + b"x"


def test_body_over_the_largest_counts_nothing() -> None:
    reader = connected("client", 1, max_body_size=LARGEST)
    reader.feed(incomplete("client", 1, 0, size=10 * LARGEST))
    for _ in range(9):
        reader.feed(body(1, bytes(LARGEST)))
    run = frames.run_of(reader.feed(body(1, bytes(LARGEST))))
    assert run.messages[0].body is None
    assert reader.error is None


# ---------------------------------------------------------------------------------------------- memory


def traced(reader: FrameReader, *feeds: bytes) -> int:
    """By how many bytes memory grows when these are read."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for data in feeds:
            reader.feed(data)
        assert reader.error is None
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_announced_size_takes_no_memory() -> None:
    channels = range(1, 501)
    reader = connected("client", *channels, max_body_size=64 * MIB)
    grown = traced(reader, *(incomplete("client", channel, 1, size=64 * MIB) for channel in channels))
    assert grown < 500 * 1024, grown


def test_memory_for_what_has_not_come_is_limited_for_all_channels_together() -> None:
    channels = range(1, 65)
    reader = connected("client", *channels, max_body_size=64 * MIB, frame_max=131_072)
    part = 131_064
    grown = traced(reader, *(incomplete("client", channel, part, size=64 * MIB) for channel in channels))
    received = len(channels) * part
    assert grown < received * 17 / 16 + 4 * MIB + MIB, grown


def test_memory_of_incomplete_contents_is_freed_with_the_connection() -> None:
    reader = connected("client", *range(1, 17), max_body_size=64 * MIB, frame_max=131_072)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for channel in range(1, 17):
            reader.feed(incomplete("client", channel, 131_000, size=MIB))
        reader.release()
        assert tracemalloc.get_traced_memory()[0] - before < 64 * 1024
    finally:
        tracemalloc.stop()


def test_body_of_many_small_frames_is_whole_when_other_channels_use_up_the_spare_memory() -> None:
    reader = connected("client", *range(1, 70), max_body_size=64 * MIB, frame_max=131_072)
    for channel in range(2, 70):
        reader.feed(incomplete("client", channel, 131_064, size=64 * MIB))
    data = bytes(i % 251 for i in range(200_000))
    reader.feed(incomplete("client", 1, 0, size=len(data)))
    run = frames.run_of([event for piece in frames.bodies(1, data, 1000) for event in reader.feed(piece)])
    assert run.messages[0].body == data


# ---------------------------------------------------------------------------------------------- which channels


@pytest.mark.parametrize("side", BEGINNINGS)
def test_content_on_a_channel_that_is_not_open_is_a_method_for_the_caller_to_refuse(side: str) -> None:
    reader = connected(side, 1)
    (event,) = reader.feed(BEGINNINGS[side](2))
    assert isinstance(event, MethodFrame)
    assert event.method_id == {"client": DELIVER, "server": PUBLISH}[side]
    assert reader.error is None
    reader.feed(header(2, 10) + body(2, b"0123456789"))
    assert reader.error is not None
    assert reader.error.reply_code == 505
    assert "channel 2, which is not open" in str(reader.error)


@pytest.mark.parametrize("side", BEGINNINGS)
def test_content_of_a_channel_that_one_side_has_closed_is_dropped(side: str) -> None:
    reader = connected(side, 1, 2)
    reader.feed(incomplete(side, 1, 10, size=20))
    reader.drop_content(1)
    content = BEGINNINGS[side](1) + header(1, 5) + body(1, b"later")
    assert reader.feed(body(1, bytes(10)) + content * 3) == []
    assert reader.error is None
    run = frames.run_of(reader.feed(BEGINNINGS[side](2) + header(2, 5) + body(2, b"other")))
    assert (run.channel, run.messages[0].body) == (2, b"other")
    reader.feed(BEGINNINGS[side](1) + header(1, 5) + body(1, b"longer"))
    assert reader.error is not None  # its frames are checked all the same


@pytest.mark.parametrize("side", BEGINNINGS)
def test_content_may_follow_the_opening_in_one_read(side: str) -> None:
    reader = connected(side)
    events = reader.feed(opening(side, 3) + BEGINNINGS[side](3) + header(3, 4) + body(3, b"body"))
    assert [type(event) for event in events] == [MethodFrame, ContentRun]


@pytest.mark.parametrize("side", BEGINNINGS)
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_no_more_channels_are_open_than_were_negotiated(side: str, beyond: int) -> None:
    reader = FrameReader(server=side == "server", handshake=True)
    reader.tune(4096, 10)
    last = 10 + beyond
    for channel in range(1, last + 1):
        reader.feed(opening(side, channel))
    (event,) = reader.feed(BEGINNINGS[side](last) + header(last, 0))[:1]
    assert isinstance(event, MethodFrame if beyond > 0 else ContentRun)


def test_client_cannot_end_the_dropping_by_channel_open() -> None:
    reader = connected("server", 1)
    reader.drop_content(1)
    (event,) = reader.feed(opening("server", 1) + publish(1) + header(1, 4) + body(1, b"body"))
    assert isinstance(event, MethodFrame)


@pytest.mark.parametrize("closing", [40, 41])
def test_client_may_close_and_open_a_channel_in_one_read(closing: int) -> None:
    reader = connected("server", 1)
    if closing == 41:
        reader.drop_content(1)
    content = publish(1) + header(1, 4) + body(1, b"body")
    events = reader.feed(method(1, 20, closing) + opening("server", 1) + content)
    assert [type(event) for event in events] == [MethodFrame, MethodFrame, ContentRun]


def test_content_is_dropped_until_channel_close_ok_when_both_sides_close() -> None:
    reader = connected("server", 1)
    reader.drop_content(1)
    content = publish(1) + header(1, 4) + body(1, b"body")
    assert [type(event) for event in reader.feed(method(1, 20, 40) + content)] == [MethodFrame]
    assert [type(event) for event in reader.feed(method(1, 20, 41) + content[:10])] == [MethodFrame]
    assert reader.error is None


def test_number_of_a_channel_that_the_server_has_closed_may_be_used_again() -> None:
    reader = connected("client", 1)
    reader.drop_content(1)
    events = reader.feed(opening("client", 1) + deliver(1, 1) + header(1, 4) + body(1, b"body"))
    assert isinstance(events[1], ContentRun)


# ---------------------------------------------------------------------------------------------- the handshake


def test_events_of_the_handshake_come_one_at_a_time() -> None:
    reader = FrameReader(server=True, protocol_header=True, handshake=True)
    start_ok, tune_ok = method(0, 10, 11), method(0, 10, 31)
    pieces = [b"AMQP\0\0\x09\x01", start_ok, tune_ok, method(1, 20, 10, b"\0"), publish(1), header(1, 0)]
    assert reader.feed(b"".join(pieces)) == [pieces[0]]
    for method_id in (11, 31):
        (event,) = reader.received(0)
        assert isinstance(event, MethodFrame)
        assert event.method_id == method_id
    assert reader.in_handshake
    reader.tune(131_072, 2047)
    assert [type(event) for event in reader.received(0)] == [MethodFrame, ContentRun]


@pytest.mark.parametrize("side", BEGINNINGS)
def test_no_content_is_read_in_the_handshake(side: str) -> None:
    reader = FrameReader(server=side == "server", handshake=True)
    stream = method(1, 20, 10, b"\0") + BEGINNINGS[side](1) + header(1, 4)
    assert [type(event) for event in reader.feed(stream)] == [MethodFrame]
    assert [type(event) for event in reader.received(0)] == [MethodFrame]
    assert reader.received(0) == []
    assert reader.error is not None
    assert reader.error.reply_code == 505


def test_reads_of_the_handshake_are_small() -> None:
    reader = FrameReader(handshake=True)
    heartbeat = struct.pack(">BHIB", 8, 0, 0, 0xCE)
    for _ in range(8):
        buffer = reader.get_buffer(-1)
        assert len(buffer) == 8192
        buffer[:] = heartbeat * 1024
        reader.received(8192)
    reader.tune(131_072, 2047)
    assert len(reader.get_buffer(-1)) > 8192
