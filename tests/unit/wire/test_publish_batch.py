"""What publishing writes, what it refuses, and that a refusal leaves no trace."""

from __future__ import annotations

import array
import struct
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import body as pamqp_body
from pamqp import frame as pamqp_frame
from pamqp import header as pamqp_header
from pamqp.commands import Basic
from tests.corpus import frames, strategies

from leveret.errors import BodyTooLarge, EncodeFailed
from leveret.protocol import commands
from leveret.publishing.confirms import ConfirmWindow
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.publishing import Ticket
from leveret.publishing.template import PublishTemplate
from leveret.wire.buffers import SendBuffer
from leveret.wire.content import append_content, append_deliveries
from leveret.wire.message import redelivered_copy
from leveret.wire.properties import Properties
from leveret.wire.reader import FrameReader
from leveret.wire.runs import SettlementRun

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.wire.message import Message

SMALLEST_FRAME_MAX = 4096


def buffer() -> SendBuffer:
    return SendBuffer(lambda: None, lambda: None)


class Publisher:
    """A batch with its buffer and window."""

    def __init__(self, out: SendBuffer | None = None, *, confirms: bool = True, **options: Any) -> None:
        self.out = out or buffer()
        self.window = ConfirmWindow()
        self.batch = PublishBatch(self.out, self.window if confirms else None, **options)


class Written:
    """A send buffer that writes whenever it is full.

    Attributes:
        data: What was written.
    """

    def __init__(self, flush_bytes: int) -> None:
        self.data = b""
        self.out = SendBuffer(lambda: None, self.write, flush_bytes)

    def write(self) -> None:
        self.data += self.out.take()


def pamqp_frames(data: bytes) -> list[tuple[int, Any]]:
    """All frames in `data`, read by pamqp."""
    found: list[tuple[int, Any]] = []
    while data:
        consumed, channel, frame = pamqp_frame.unmarshal(data)
        assert consumed
        found.append((channel, frame))
        data = data[consumed:]
    return found


# ---------------------------------------------------------------------------------------------- what is written


@given(
    channel=st.integers(1, 65535),
    exchange=strategies.shortstrs,
    routing_key=strategies.shortstrs,
    mandatory=st.booleans(),
    size=st.sampled_from([0, 1, 100, 4087, 4088, 4089, 8176, 8177, 20_000]),
    properties=st.fixed_dictionaries(
        {}, optional={"content_type": st.just("text/plain"), "delivery_mode": st.just(2), "priority": st.just(3)}
    ),
)
def test_pamqp_reads_the_same_when_we_published(
    channel: int, exchange: str, routing_key: str, mandatory: bool, size: int, properties: dict
) -> None:
    body = bytes(i * 7 & 0xFF for i in range(size))
    publisher = Publisher(channel=channel, frame_max=SMALLEST_FRAME_MAX)
    raw = Properties(**properties).encode()
    template = PublishTemplate(exchange, routing_key, raw, mandatory=mandatory, frame_max=SMALLEST_FRAME_MAX)
    publisher.batch.add(template, body)
    data = publisher.out.take()
    (_, method), (_, header), *bodies = found = pamqp_frames(data)
    assert {number for number, _ in found} == {channel}
    assert isinstance(method, Basic.Publish)
    assert (method.exchange, method.routing_key, method.mandatory, method.immediate, method.ticket) == (
        exchange,
        routing_key,
        mandatory,
        False,
        0,
    )
    assert (header.class_id, header.weight, header.body_size) == (60, 0, size)
    assert {name: value for name, value in header.properties if value} == properties
    assert b"".join(part.value for _, part in bodies) == body
    # Split as rarely as frame_max allows (AMQP 0-9-1 section 4.2.6.2).
    assert len(bodies) == -(-size // (SMALLEST_FRAME_MAX - 8))
    assert all(len(part.value) == SMALLEST_FRAME_MAX - 8 for _, part in bodies[:-1])


@given(
    exchange=st.text("abc.-_", max_size=20),
    routing_key=strategies.shortstrs,
    size=st.sampled_from([0, 1, 4088, 4089, 9000]),
    method_id=st.sampled_from([frames.DELIVER, frames.GET_OK, frames.RETURN]),
    redelivered=st.booleans(),
    tag=st.integers(0, 2**63 - 1),
)
def test_we_read_the_same_when_pamqp_wrote_a_message(
    exchange: str, routing_key: str, size: int, method_id: int, redelivered: bool, tag: int
) -> None:
    names: dict[str, Any] = {"exchange": exchange, "routing_key": routing_key}
    fields: dict[str, Any]
    method: Basic.Deliver | Basic.GetOk | Basic.Return
    match method_id:
        case frames.DELIVER:
            fields = {"consumer_tag": "ctag", "delivery_tag": tag, "redelivered": redelivered}
            method = Basic.Deliver(**fields, **names)
        case frames.GET_OK:
            fields = {"delivery_tag": tag, "redelivered": redelivered, "message_count": 9}
            method = Basic.GetOk(**fields, **names)
        case _:
            fields = {"reply_code": 312, "reply_text": "NO_ROUTE"}
            method = Basic.Return(**fields, **names)
    body = bytes(i * 7 & 0xFF for i in range(size))
    properties = Basic.Properties(message_id="m", delivery_mode=2)
    data = pamqp_frame.marshal(method, 3)
    data += pamqp_frame.marshal(pamqp_header.ContentHeader(0, size, properties), 3)
    for at in range(0, size, 4088):
        data += pamqp_frame.marshal(pamqp_body.ContentBody(body[at : at + 4088]), 3)
    expected = frames.content_event(
        3, method_id, **fields, **names, body_size=size, body=body, raw_properties=properties.marshal()
    )
    assert frames.feed_whole(FrameReader(), data) == [expected]


@pytest.mark.parametrize("size", [0, 1, 4087, 4088, 4089, 70_000])
@pytest.mark.parametrize(
    "kind", [bytes, bytearray, memoryview, lambda b: memoryview(bytearray(b)), type("B", (bytes,), {})]
)
def test_bytes_are_the_same_when_the_body_is_another_kind_of_bytes(size: int, kind: Callable[[bytes], Any]) -> None:
    body = bytes(i & 0xFF for i in range(size))
    one, two = Publisher(frame_max=4096), Publisher(frame_max=4096)
    template = PublishTemplate("e", "r")
    one.batch.add(template, body)
    two.batch.add(template, kind(body))
    expected = frames.publish(1, exchange="e", routing_key="r") + frames.header(1, size)
    expected += b"".join(frames.bodies(1, body, 4088))
    assert one.out.take() == two.out.take() == expected


def test_bodies_of_wider_items_are_their_bytes_when_published() -> None:
    publisher = Publisher()
    publisher.batch.add(PublishTemplate("", "q"), array.array("I", [1, 2]))
    assert publisher.out.take().endswith(frames.body(1, array.array("I", [1, 2]).tobytes()))


def test_tags_count_up_and_counters_follow_when_published() -> None:
    publisher = Publisher()
    template = PublishTemplate("", "q")
    assert [publisher.batch.add(template, b"abc") for _ in range(3)] == [1, 2, 3]
    assert [publisher.batch.add(template, b"d") for _ in range(5)] == [4, 5, 6, 7, 8]
    assert publisher.window.next_delivery_tag == 9
    assert (publisher.batch.published, publisher.batch.published_bytes) == (8, 14)
    assert publisher.window.outstanding_bytes == 14


def test_tag_is_zero_when_there_are_no_confirms() -> None:
    publisher = Publisher(confirms=False)
    assert publisher.batch.add(PublishTemplate("", "q"), b"x") == 0


# ---------------------------------------------------------------------------------------------- in runs

#: Around the limits: one frame, and a body that is not copied.
SIZES = st.sampled_from([0, 1, 100, 4088, 4089, 8192, 8193, 70_000])


@given(
    sizes=st.lists(SIZES, min_size=1, max_size=30),
    frame_max=st.sampled_from([4096, 131072]),
    flush_bytes=st.sampled_from([1, 500, 65536]),
    most=st.sampled_from([0, 1, 500, 100_000]),
    confirms=st.booleans(),
    large_body=st.sampled_from([50, 16_777_216]),
)
def test_bytes_and_counts_are_the_same_when_bodies_are_added_in_runs(
    sizes: list[int], frame_max: int, flush_bytes: int, most: int, confirms: bool, large_body: int
) -> None:
    written = Written(flush_bytes), Written(flush_bytes)
    one, runs = (
        Publisher(each.out, confirms=confirms, frame_max=frame_max, max_body_size=large_body) for each in written
    )
    sizes = [size for size in sizes if size <= large_body]
    template = PublishTemplate("orders", "q", Properties(priority=3).encode())
    tickets = Ticket(), Ticket()
    bodies = [bytes([i]) * size for i, size in enumerate(sizes)]
    for i, body in enumerate(bodies):
        one.batch.add(template, body, tickets[0], 10 + i)
    done = 0
    while done < len(bodies):
        more = runs.batch.add_run(template, bodies, done, tickets[1], 10 + done, most)
        assert more <= 1 or sum(sizes[done : done + more - 1]) < most
        if more == 0:
            # Only what is not one frame of copied bytes is left to `add`.
            assert len(bodies[done]) > min(8192, frame_max - 8)
            runs.batch.add(template, bodies[done], tickets[1], 10 + done)
            more = 1
        done += more
    for each in written:
        each.write()
    assert written[0].data == written[1].data
    for name in ("published", "published_bytes"):
        assert getattr(one.batch, name) == getattr(runs.batch, name)
    for name in ("next_delivery_tag", "outstanding", "outstanding_bytes"):
        assert getattr(one.window, name) == getattr(runs.window, name)
    assert [(ticket.delivery_tag, ticket.count, ticket.pending) for ticket in tickets[:1]] == [
        (ticket.delivery_tag, ticket.count, ticket.pending) for ticket in tickets[1:]
    ]


def test_a_run_ends_before_what_is_no_bytes_and_with_the_bytes_that_it_may_take() -> None:
    publisher = Publisher()
    template = PublishTemplate("", "q")
    values = [b"a", b"bc", bytearray(b"d"), b"e", b"f"]
    assert publisher.batch.add_run(template, values, 0, None, 0, 100) == 2
    assert publisher.batch.add_run(template, values, 2, None, 0, 100) == 0
    assert publisher.batch.add_run(template, values, 3, None, 0, 1) == 1
    assert publisher.batch.add_run(template, values, 4, None, 0, 1) == 1
    assert publisher.batch.add_run(template, values, 5, None, 0, 1) == 0
    assert publisher.batch.add_run(template, [], 0, None, 0, 1) == 0
    events = frames.feed_whole(FrameReader(server=True), publisher.out.take())
    assert [event[-1] for event in events] == [b"a", b"bc", b"e", b"f"]
    assert (publisher.window.outstanding, publisher.window.outstanding_bytes) == (4, 5)


def test_nothing_is_left_when_a_run_is_refused() -> None:
    publisher = Publisher(frame_max=SMALLEST_FRAME_MAX)
    wide = PublishTemplate("", "q", bytes(5000))
    run: Any = publisher.batch.add_run
    check_untouched(publisher, lambda: run(wide, [b"x"], 0, None, 0, 1), EncodeFailed, "negotiated frame_max is 4096")
    check_untouched(Publisher(), lambda: run(None, [b"x"], 0, None, 0, 1), TypeError, "required")
    check_untouched(Publisher(), lambda: run(wide, None, 0, None, 0, 1), TypeError, "required")


# ---------------------------------------------------------------------------------------------- refusals


def check_untouched(publisher: Publisher, refuse: Callable[[], object], error: type[Exception], match: str) -> None:
    """A refused publishing takes no tag, leaves no byte, and the next one is number 2 behind number 1."""
    template = PublishTemplate("", "q")
    ticket = Ticket()
    assert publisher.batch.add(template, b"before", ticket) == 1
    before = len(publisher.out)
    for _ in range(3):
        with pytest.raises(error, match=match):
            refuse()
    assert len(publisher.out) == before
    assert (publisher.window.outstanding, publisher.window.outstanding_bytes) == (1, 6)
    assert publisher.batch.published == 1
    assert ticket.count == 1
    assert publisher.batch.add(template, b"after", ticket) == 2
    events = frames.feed_whole(FrameReader(server=True), publisher.out.take())
    assert [event[-1] for event in events] == [b"before", b"after"]


def test_nothing_is_left_when_a_body_is_too_large() -> None:
    publisher = Publisher(max_body_size=100)
    template = PublishTemplate("", "q")
    for body in (bytes(101), bytearray(101), memoryview(bytes(101)), bytes(1_000_000)):
        publisher = Publisher(max_body_size=100)
        check_untouched(
            publisher,
            partial(publisher.batch.add, template, body, Ticket()),
            BodyTooLarge,
            rf"{len(body)} bytes.*100",
        )
    assert publisher.batch.add(template, bytes(100)) == 3


@pytest.mark.parametrize(
    "body", [None, "text", 5, [b"a"], memoryview(b"abcd")[::2]], ids=["None", "str", "int", "list", "strided"]
)
def test_nothing_is_left_when_a_body_is_no_bytes(body: Any) -> None:
    publisher = Publisher()
    template = PublishTemplate("", "q")
    check_untouched(
        publisher, lambda: publisher.batch.add(template, body, Ticket()), TypeError, "bytes-like|contiguous|None"
    )


@pytest.mark.parametrize("frame_max", [0, 8, 4095])
def test_frame_max_is_refused_when_below_the_protocols_minimum(frame_max: int) -> None:
    message = frames.run_of(FrameReader().feed(frames.delivery(1, 1))).messages[0]
    for call in (
        lambda: PublishBatch(buffer(), None, frame_max=frame_max),
        lambda: append_deliveries(buffer(), 1, "c", 1, [message], frame_max=frame_max),
        lambda: append_content(buffer(), b"", message, channel=1, frame_max=frame_max),
    ):
        with pytest.raises(ValueError, match=rf"frame_max {frame_max}.*4096"):
            call()


# ---------------------------------------------------------------------------------------------- templates


@pytest.mark.parametrize("name", ["exchange", "routing_key"])
@pytest.mark.parametrize("text", ["n" * 256, "é" * 128, "n" * 100_000])
def test_template_is_refused_when_a_name_is_over_255_bytes(name: str, text: str) -> None:
    names: dict[str, Any] = {"exchange": "", "routing_key": ""}
    with pytest.raises(EncodeFailed, match=rf"{name} is {len(text.encode())} bytes.*255"):
        PublishTemplate(**names | {name: text})
    longest = text[:127]
    assert getattr(PublishTemplate(**names | {name: longest}), name) == longest


def test_template_takes_names_of_255_bytes() -> None:
    publisher = Publisher()
    publisher.batch.add(PublishTemplate("e" * 255, "é" * 127 + "r"), b"")
    ((_, method), _) = pamqp_frames(publisher.out.take())
    assert (method.exchange, method.routing_key) == ("e" * 255, "é" * 127 + "r")


@pytest.mark.parametrize(("over", "fits"), [(4096 - 8 - 12, True), (4096 - 8 - 12 + 1, False)], ids=["fits", "over"])
def test_template_is_refused_when_the_header_frame_is_over_frame_max(over: int, fits: bool) -> None:
    # Properties cannot be split over frames (AMQP 0-9-1 section 4.2.6.1).
    raw = bytes(over)
    if fits:
        publisher = Publisher(frame_max=4096)
        publisher.batch.add(PublishTemplate("", "q", raw, frame_max=4096), b"x")
        assert FrameReader(server=True, frame_max=4096).feed(publisher.out.take())
    else:
        with pytest.raises(EncodeFailed, match=r"4097 bytes.*frame_max is 4096"):
            PublishTemplate("", "q", raw, frame_max=4096)


def test_names_go_out_as_they_came_when_they_are_no_utf8() -> None:
    name = b"\xff\xfe".decode("utf-8", "surrogateescape")
    publisher = Publisher()
    publisher.batch.add(PublishTemplate(name, name), b"")
    (event,) = frames.feed_whole(FrameReader(server=True), publisher.out.take())
    assert event == frames.content_event(1, frames.PUBLISH, exchange=name, routing_key=name)
    with pytest.raises(EncodeFailed, match=r"exchange.*UTF-8"):
        PublishTemplate("\ud800", "q")


@pytest.mark.parametrize("channel", [-1, 65536])
def test_batch_is_refused_when_the_channel_is_no_16_bit_number(channel: int) -> None:
    with pytest.raises(OverflowError):
        PublishBatch(buffer(), None, channel=channel)


def test_template_shows_what_it_was_made_of() -> None:
    template = PublishTemplate("e", "r", b"\x10\x00\x02", mandatory=True)
    assert (template.exchange, template.routing_key) == ("e", "r")
    assert (template.mandatory, template.raw_properties) == (True, b"\x10\x00\x02")


# ---------------------------------------------------------------------------------------------- the broker's side


def published(*bodies: bytes, properties: bytes = b"\x10\x00\x02") -> list[Message]:
    data = b"".join(
        frames.publish(1, exchange="e", routing_key="r")
        + frames.header(1, len(body), properties)
        + b"".join(frames.bodies(1, body, 4000))
        for body in bodies
    )
    run = frames.run_of(FrameReader(server=True).feed(data))
    return run.messages


@pytest.mark.parametrize("frame_max", [4096, 131_072])
def test_a_client_reads_what_was_published_when_a_broker_delivers_it(frame_max: int) -> None:
    out = buffer()
    bodies = [b"", b"a", bytes(4088), bytes(4089), bytes(50_000)]
    messages = published(*bodies)
    messages[1] = redelivered_copy(messages[1])
    append_deliveries(out, 7, "consumer", 41, messages, frame_max=frame_max)
    expected = [
        frames.content_event(
            7,
            frames.DELIVER,
            delivery_tag=41 + i,
            consumer_tag="consumer",
            redelivered=i == 1,
            exchange="e",
            routing_key="r",
            raw_properties=b"\x10\x00\x02",
            body_size=len(body),
            body=body,
        )
        for i, body in enumerate(bodies)
    ]
    assert frames.feed_whole(FrameReader(frame_max=frame_max), out.take()) == expected


def test_a_client_reads_the_content_when_a_broker_returns_it() -> None:
    out = buffer()
    (message,) = published(bytes(5000))
    method = commands.encode(
        3, commands.make(Basic.Return, reply_code=312, reply_text="NO_ROUTE", exchange="e", routing_key="r")
    )
    append_content(out, method, message, channel=3, frame_max=4096)
    (event,) = frames.feed_whole(FrameReader(), out.take())
    assert event == frames.content_event(
        3,
        frames.RETURN,
        reply_code=312,
        reply_text="NO_ROUTE",
        exchange="e",
        routing_key="r",
        raw_properties=b"\x10\x00\x02",
        body_size=5000,
        body=bytes(5000),
    )


def test_a_message_is_refused_when_it_has_no_body_to_deliver() -> None:
    data = frames.publish(1) + frames.header(1, 20) + frames.body(1, bytes(20))
    run = frames.run_of(FrameReader(server=True, max_body_size=10).feed(data))
    out = buffer()
    nothing: Any = None
    with pytest.raises(ValueError, match="without its body"):
        append_deliveries(out, 1, "c", 1, run.messages)
    with pytest.raises(ValueError, match="without its body"):
        append_deliveries(out, 1, "c", 1, [nothing])
    with pytest.raises(ValueError, match="without its body"):
        append_content(out, b"", run.messages[0], channel=1)
    assert len(out) == 0


def test_a_consumer_tag_is_refused_when_over_255_bytes() -> None:
    with pytest.raises(EncodeFailed, match=r"consumer_tag is 256 bytes"):
        append_deliveries(buffer(), 1, "c" * 256, 1, published(b""))


# ---------------------------------------------------------------------------------------------- references


def test_bodies_and_tickets_are_let_go_when_written_and_settled() -> None:
    bodies = [struct.pack(">I", i) * 100 for i in range(1000)]
    ticket = Ticket()
    before = [sys.getrefcount(body) for body in bodies], sys.getrefcount(ticket)
    kept = [count + 1 for count in before[0]]
    publisher = Publisher()
    template = PublishTemplate("", "q")
    for body in bodies:
        publisher.batch.add(template, body, ticket)
    del body
    publisher.batch.add(template, bodies[0], ticket)
    publisher.batch.add(template, memoryview(bodies[1]), ticket)
    kept[0] += 1
    assert [sys.getrefcount(body) for body in bodies] == kept, "each is kept once until it is confirmed"
    assert sys.getrefcount(ticket) == before[1] + 1002
    publisher.window.settle(SettlementRun.of(1, [(500, True, False, False), (501, False, True, False)]))
    publisher.window.expire(2000)
    assert sys.getrefcount(ticket) - before[1] <= 1, "at most the list of finished tickets, if nobody took it"
    publisher.out.take()
    assert [sys.getrefcount(body) for body in bodies] == before[0]


def test_a_body_that_was_exported_can_change_again_when_published() -> None:
    body = bytearray(b"x" * 100)
    publisher = Publisher(max_body_size=100)
    template = PublishTemplate("", "q")
    publisher.batch.add(template, body)
    body += b"y"  # a buffer that is still exported would refuse to grow
    with pytest.raises(BodyTooLarge):
        publisher.batch.add(template, body)
    body += b"z"
