"""A frame reader turns valid input into events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import frames, strategies
from tests.corpus.frames import (
    HEARTBEAT_FRAME,
    ack,
    body,
    content_event,
    content_runs,
    deliver,
    delivery,
    feed_whole,
    flatten,
    header,
    method,
    nack,
    publish,
    reject,
    shortstr,
)

from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun, MethodFrame, SettlementRun

CLIENT_STREAMS = strategies.streams(server=False)
SERVER_STREAMS = strategies.streams(server=True)


def delivered(channel: int, tag: int, data: bytes | None = b"x", size: int = -1, **fields: object) -> frames.Event:
    fields = {"consumer_tag": "c", "routing_key": "q", **fields}
    size = len(data or b"") if size < 0 else size
    return content_event(channel, frames.DELIVER, delivery_tag=tag, body_size=size, body=data, **fields)


# ---------------------------------------------------------------------------------------------- any stream


@given(CLIENT_STREAMS)
def test_events_are_those_that_were_written_when_a_client_reads_any_valid_stream(stream: tuple) -> None:
    data, expected = stream
    reader = FrameReader(max_body_size=strategies.MAX_BODY)
    assert feed_whole(reader, data) == expected
    assert reader.error is None
    assert reader.received_bytes == len(data)


@given(SERVER_STREAMS)
def test_events_are_those_that_were_written_when_a_server_reads_any_valid_stream(stream: tuple) -> None:
    data, expected = stream
    reader = FrameReader(server=True, max_body_size=strategies.MAX_BODY, protocol_header=True)
    start = b"AMQP\x00\x00\x09\x01"
    assert feed_whole(reader, start + data) == [("protocol header", start), *expected]
    assert reader.error is None


def check_splits(stream: tuple, pieces: list[bytes], *, server: bool) -> None:
    for feed in (frames.feed_pieces, frames.receive_pieces):
        reader = FrameReader(server=server, max_body_size=strategies.MAX_BODY)
        assert feed(reader, pieces) == stream[1]
        assert reader.error is None


@pytest.mark.parametrize("server", [False, True], ids=["client", "server"])
@given(st.data())
def test_events_are_the_same_when_stream_is_split_at_random(server: bool, data: st.DataObject) -> None:
    stream = data.draw(SERVER_STREAMS if server else CLIENT_STREAMS)
    raw = stream[0]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=30)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    check_splits(stream, pieces, server=server)


#: A read that has everything: several channels, consumers and kinds, and every frame cut by some offset.
EVERYTHING = [
    (method(0, 10, 50, b"\x00\xc8" + shortstr("bye")), ("method", 0, 10, 50, b"\x00\xc8\x03bye")),
    (HEARTBEAT_FRAME, None),
    (deliver(1, 1), None),
    (ack(2, 5, multiple=True), ("settlement", 2, 5, True, False, False)),
    (header(1, 5, b"\x10\x00\x02"), None),
    (body(1, b"ab"), None),
    (nack(2, 6, requeue=True), ("settlement", 2, 6, False, True, True)),
    (deliver(3, 9, consumer_tag="other", exchange="e", redelivered=True), None),
    (header(3, 0), delivered(3, 9, b"", consumer_tag="other", exchange="e", redelivered=True)),
    (body(1, b""), None),
    (body(1, b"cde"), delivered(1, 1, b"abcde", raw_properties=b"\x10\x00\x02")),
    (delivery(1, 2, b"y"), delivered(1, 2, b"y")),
    (delivery(1, 3, b"z", consumer_tag="c2"), delivered(1, 3, b"z", consumer_tag="c2")),
    (deliver(1, 4) + header(1, 20) + body(1, bytes(20)), delivered(1, 4, None, 20)),
    (reject(2, 7), ("settlement", 2, 7, False, True, False)),
    (delivery(1, 5, b"after"), delivered(1, 5, b"after")),
    (method(1, 60, 21, shortstr("c")), ("method", 1, 60, 21, b"\x01c")),
]
EVERYTHING_BYTES = b"".join(data for data, _ in EVERYTHING)
EVERYTHING_EVENTS = [event for _, event in EVERYTHING if event is not None]


def test_events_are_the_same_when_stream_is_cut_in_two_at_every_offset() -> None:
    for at in range(len(EVERYTHING_BYTES) + 1):
        for feed in (frames.feed_pieces, frames.receive_pieces):
            reader = FrameReader(max_body_size=19)
            assert feed(reader, [EVERYTHING_BYTES[:at], EVERYTHING_BYTES[at:]]) == EVERYTHING_EVENTS, f"cut at {at}"
            assert reader.error is None


def test_events_are_the_same_when_stream_comes_byte_by_byte() -> None:
    pieces = [bytes([octet]) for octet in EVERYTHING_BYTES]
    for feed in (frames.feed_pieces, frames.receive_pieces):
        assert feed(FrameReader(max_body_size=19), pieces) == EVERYTHING_EVENTS


def test_an_event_comes_with_the_last_byte_of_its_frame_and_not_before() -> None:
    reader = FrameReader()
    data = delivery(1, 1, b"hello")
    assert reader.feed(data[:-1]) == []
    assert flatten(reader.feed(data[-1:])) == [delivered(1, 1, b"hello")]


# ---------------------------------------------------------------------------------------------- runs


def test_one_event_holds_all_messages_when_they_follow_each_other_on_a_channel() -> None:
    (run,) = FrameReader().feed(b"".join(delivery(4, tag, exchange="e") for tag in range(1, 1001)))
    assert isinstance(run, ContentRun)
    assert [m.delivery_tag for m in run.messages] == list(range(1, 1001))
    assert (run.channel, run.method_id, run.consumer_tag) == (4, frames.DELIVER, "c")


def test_runs_are_parted_when_channel_or_consumer_changes() -> None:
    data = delivery(1, 1) + delivery(1, 2) + delivery(2, 1) + delivery(1, 3, consumer_tag="d") + delivery(1, 4)
    runs = FrameReader().feed(data)
    assert [(run.channel, run.consumer_tag, len(run.messages)) for run in content_runs(runs)] == [
        (1, "c", 2),
        (2, "c", 1),
        (1, "d", 1),
        (1, "c", 1),
    ]


def test_deliveries_share_a_run_when_only_exchange_and_routing_key_differ() -> None:
    run = frames.run_of(
        FrameReader().feed(delivery(1, 1, exchange="a", routing_key="x") + delivery(1, 2, exchange="b"))
    )
    assert [(m.exchange, m.routing_key) for m in run.messages] == [("a", "x"), ("b", "q")]


def test_publishings_part_when_exchange_routing_key_or_bits_differ() -> None:
    one = publish(1, exchange="a") + header(1, 0)
    others = [publish(1, exchange="b"), publish(1, exchange="a", routing_key="r"), publish(1, exchange="a", bits=1)]
    runs = FrameReader(server=True).feed(one + one + b"".join(other + header(1, 0) for other in others))
    assert [(run.exchange, run.routing_key, run.mandatory, len(run.messages)) for run in content_runs(runs)] == [
        ("a", "q", False, 2),
        ("b", "q", False, 1),
        ("a", "r", False, 1),
        ("a", "q", True, 1),
    ]


def test_acks_share_a_run_and_keep_their_order_when_they_follow_each_other() -> None:
    (run,) = FrameReader().feed(ack(1, 3, multiple=True) + nack(1, 5) + ack(1, 4) + HEARTBEAT_FRAME + ack(1, 0))
    assert isinstance(run, SettlementRun)
    assert len(run) == 4
    assert list(run) == [
        (3, True, False, False),
        (5, False, True, False),
        (4, False, False, False),
        (0, False, False, False),
    ]


def test_order_is_kept_when_messages_acks_and_methods_alternate() -> None:
    data = delivery(1, 1) + ack(1, 1) + delivery(1, 2) + method(1, 60, 21, b"\x01c") + delivery(1, 3)
    kinds = [type(event) for event in FrameReader().feed(data)]
    assert kinds == [ContentRun, SettlementRun, ContentRun, MethodFrame, ContentRun]


def test_runs_do_not_grow_when_the_next_read_continues_them() -> None:
    reader = FrameReader()
    first = frames.run_of(reader.feed(delivery(1, 1)))
    second = frames.run_of(reader.feed(delivery(1, 2)))
    assert (len(first.messages), len(second.messages)) == (1, 1)


# ---------------------------------------------------------------------------------------------- content


@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 100_000, 1_048_576, 1_048_577, 3_000_000])
@pytest.mark.parametrize("chunk", [1_000, 4_088])
def test_body_is_whole_when_it_came_in_many_frames(size: int, chunk: int) -> None:
    data = bytes(i * 7 & 0xFF for i in range(256)) * (size // 256 + 1)
    data = data[:size]
    stream = deliver(1, 1) + header(1, size) + b"".join(frames.bodies(1, data, chunk)) + delivery(1, 2)
    assert feed_whole(FrameReader(), stream) == [delivered(1, 1, data), delivered(1, 2)]


def test_body_is_whole_when_a_frame_is_larger_than_all_before_it() -> None:
    data = bytes(range(256)) * 40_000
    pieces = [data[:10], data[10:5_000_000], data[5_000_000:]]
    stream = deliver(1, 1) + header(1, len(data)) + b"".join(body(1, piece) for piece in pieces)
    assert feed_whole(FrameReader(frame_max=8 * 1024 * 1024), stream) == [delivered(1, 1, data)]


def test_properties_are_those_of_each_message_when_of_one_length() -> None:
    raws = [b"\x10\x00\x01", b"\x10\x00\x02", b"\x08\x00\x02", b"\x10\x00\x02", b"\x10\x00\x02"]
    run = frames.run_of(FrameReader().feed(b"".join(deliver(1, 1) + header(1, 0, raw) for raw in raws)))
    assert [m.raw_properties for m in run.messages] == raws


def test_bodies_are_not_mixed_when_two_channels_send_large_ones_in_turn() -> None:
    one, two = b"1" * 50_000, b"2" * 70_000
    parts = [deliver(1, 1), deliver(2, 1), header(1, len(one)), header(2, len(two))]
    first, second = frames.bodies(1, one, 4000), frames.bodies(2, two, 4000)
    while first or second:
        parts += [queue.pop(0) for queue in (first, second) if queue]
    assert feed_whole(FrameReader(), b"".join(parts)) == [delivered(1, 1, one), delivered(2, 1, two)]


def test_body_is_what_was_sent_when_an_empty_body_frame_comes_first() -> None:
    # It once made the reader hand out memory that was never written to.
    data = deliver(1, 1) + header(1, 5) + body(1, b"") + body(1, b"hello")
    assert feed_whole(FrameReader(), data) == [delivered(1, 1, b"hello")]


@pytest.mark.parametrize("size", [100, 101])
def test_body_is_reported_without_its_bytes_when_larger_than_the_limit(size: int) -> None:
    reader = FrameReader(max_body_size=100)
    stream = deliver(1, 1) + header(1, size) + b"".join(frames.bodies(1, bytes(size), 30)) + delivery(1, 2)
    kept = bytes(size) if size <= 100 else None
    assert feed_whole(reader, stream) == [delivered(1, 1, kept, size), delivered(1, 2)]
    assert reader.error is None


def test_empty_bodies_are_kept_when_the_limit_is_zero() -> None:
    reader = FrameReader(max_body_size=0)
    assert feed_whole(reader, delivery(1, 1, b"") + delivery(1, 2, b"x")) == [
        delivered(1, 1, b""),
        delivered(1, 2, None, 1),
    ]


def test_body_bytes_are_our_own_when_the_receive_buffer_is_used_again() -> None:
    reader = FrameReader()
    events = []
    for tag in range(1, 200):
        data = delivery(1, tag, bytes([tag]) * 3000)
        reader.get_buffer(-1)[: len(data)] = data
        events += reader.received(len(data))
    assert flatten(events) == [delivered(1, tag, bytes([tag]) * 3000) for tag in range(1, 200)]


def test_get_return_and_publish_carry_their_arguments_when_read() -> None:
    got = method(1, 60, 71, (7).to_bytes(8) + b"\x01" + shortstr("e") + shortstr("r") + (3).to_bytes(4))
    returned = method(1, 60, 50, (312).to_bytes(2) + shortstr("NO_ROUTE") + shortstr("e") + shortstr("r"))
    assert feed_whole(FrameReader(), got + header(1, 0) + returned + header(1, 0)) == [
        content_event(
            1, frames.GET_OK, delivery_tag=7, redelivered=True, exchange="e", routing_key="r", message_count=3
        ),
        content_event(1, frames.RETURN, reply_code=312, reply_text="NO_ROUTE", exchange="e", routing_key="r"),
    ]
    assert feed_whole(FrameReader(server=True), publish(1, exchange="e", bits=3) + header(1, 0)) == [
        content_event(1, frames.PUBLISH, exchange="e", routing_key="q", mandatory=True, immediate=True)
    ]


def test_a_method_of_the_other_side_is_a_plain_method_when_read() -> None:
    # Whether it may come at all is for the state machine to say.
    (frame,) = FrameReader().feed(publish(1))
    assert isinstance(frame, MethodFrame)
    assert (frame.class_id, frame.method_id) == (60, 40)
    (frame,) = FrameReader(server=True).feed(deliver(1, 1))
    assert isinstance(frame, MethodFrame)
    assert (frame.class_id, frame.method_id) == (60, 60)


def test_basic_methods_are_plain_methods_when_on_channel_0() -> None:
    events = FrameReader().feed(deliver(0, 1) + ack(0, 1))
    assert [type(event) for event in events] == [MethodFrame, MethodFrame]


def test_names_survive_when_they_are_no_utf8() -> None:
    name = b"\xff\xfe r".decode("utf-8", "surrogateescape")
    run = frames.run_of(FrameReader().feed(delivery(1, 1, routing_key=name, consumer_tag=name)))
    assert run.messages[0].routing_key == name
    assert run.consumer_tag.encode("utf-8", "surrogateescape") == b"\xff\xfe r"


def test_names_are_the_same_object_when_they_repeat() -> None:
    reader = FrameReader()
    one = frames.run_of(reader.feed(delivery(1, 1, exchange="orders", routing_key="order.created")))
    two = frames.run_of(reader.feed(delivery(1, 2, exchange="orders", routing_key="order.created")))
    for name in ("exchange", "routing_key", "consumer_tag"):
        assert getattr(one.messages[0], name) is getattr(two.messages[0], name)


def test_names_are_right_when_there_are_more_than_the_cache_holds() -> None:
    names = [f"key.{i}" for i in range(3000)]
    run = frames.run_of(
        FrameReader().feed(b"".join(delivery(1, i + 1, routing_key=name) for i, name in enumerate(names * 2)))
    )
    assert [m.routing_key for m in run.messages] == names * 2


def test_properties_are_read_when_asked_for() -> None:
    raw = b"\x90\x00\x04text\x02"
    run = frames.run_of(FrameReader().feed(deliver(1, 1) + header(1, 0, raw)))
    message = run.messages[0]
    assert (message.content_type, message.properties.delivery_mode, message.message_id) == ("text", 2, None)
    assert message.headers == {}
    assert message.properties is message.properties


def test_channel_starts_anew_when_it_was_forgotten_in_mid_content() -> None:
    reader = FrameReader()
    assert reader.feed(deliver(1, 1) + header(1, 100) + body(1, bytes(10))) == []
    reader.forget(1)
    reader.forget(77)
    assert feed_whole(reader, delivery(1, 1)) == [delivered(1, 1)]


def test_heartbeats_make_no_event_and_count_as_traffic_when_read() -> None:
    reader = FrameReader()
    assert reader.feed(HEARTBEAT_FRAME * 3) == []
    assert (reader.received_bytes, reader.received_frames) == (24, 3)


def test_message_says_what_it_is_without_its_body_when_printed() -> None:
    run = frames.run_of(FrameReader().feed(delivery(1, 7, b"secret", routing_key="k" * 200)))
    text = repr(run.messages[0])
    assert "tag=7" in text
    assert "size=6" in text
    assert "secret" not in text
    assert len(text) < 200
    assert len(run.messages[0]) == 6
    assert run.messages[0], "a message is true, also an empty one"


def test_buffer_takes_a_frame_in_one_piece_when_it_is_larger_than_the_buffer() -> None:
    reader = FrameReader(frame_max=1_048_576, capacity=65_536)
    data = bytes(range(256)) * 4000
    assert frames.receive_pieces(reader, [deliver(1, 1) + header(1, len(data)) + body(1, data)]) == [
        delivered(1, 1, data)
    ]
