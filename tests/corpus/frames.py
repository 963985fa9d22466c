"""AMQP frames built with `struct` alone, so that no test trusts the codec to check itself; and events made comparable.

Integers are big-endian. A frame is type (1), channel (2), size (4), payload, 0xce (AMQP 0-9-1 section 4.2.3).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from leveret.wire.runs import ContentRun, MethodFrame, SettlementRun

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leveret.wire.reader import FrameReader

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
NO_PROPERTIES = b"\x00\x00"
#: What each method that carries content is numbered.
PUBLISH, RETURN, DELIVER, GET_OK = 40, 50, 60, 71

Event = tuple[object, ...]


def frame(kind: int, channel: int, payload: bytes, *, end: int = 0xCE) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([end])


def shortstr(text: str | bytes) -> bytes:
    raw = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return bytes([len(raw)]) + raw


def longstr(raw: bytes) -> bytes:
    return struct.pack(">I", len(raw)) + raw


def method(channel: int, class_id: int, method_id: int, arguments: bytes = b"") -> bytes:
    return frame(METHOD, channel, struct.pack(">HH", class_id, method_id) + arguments)


def deliver(
    channel: int,
    delivery_tag: int,
    *,
    consumer_tag: str = "c",
    redelivered: bool = False,
    exchange: str = "",
    routing_key: str = "q",
) -> bytes:
    arguments = shortstr(consumer_tag) + struct.pack(">QB", delivery_tag, redelivered)
    return method(channel, 60, DELIVER, arguments + shortstr(exchange) + shortstr(routing_key))


def publish(channel: int, *, exchange: str = "", routing_key: str = "q", bits: int = 0) -> bytes:
    arguments = b"\x00\x00" + shortstr(exchange) + shortstr(routing_key) + bytes([bits])
    return method(channel, 60, PUBLISH, arguments)


def header(
    channel: int, body_size: int, properties: bytes = NO_PROPERTIES, *, class_id: int = 60, weight: int = 0
) -> bytes:
    return frame(HEADER, channel, struct.pack(">HHQ", class_id, weight, body_size) + properties)


def body(channel: int, data: bytes) -> bytes:
    return frame(BODY, channel, data)


def bodies(channel: int, data: bytes, chunk: int) -> list[bytes]:
    return [body(channel, data[at : at + chunk]) for at in range(0, len(data), chunk)]


def ack(channel: int, delivery_tag: int, *, multiple: bool = False) -> bytes:
    return method(channel, 60, 80, struct.pack(">QB", delivery_tag, multiple))


def nack(channel: int, delivery_tag: int, *, multiple: bool = False, requeue: bool = False) -> bytes:
    return method(channel, 60, 120, struct.pack(">QB", delivery_tag, multiple | requeue << 1))


def reject(channel: int, delivery_tag: int, *, requeue: bool = False) -> bytes:
    return method(channel, 60, 90, struct.pack(">QB", delivery_tag, requeue))


def delivery(channel: int, delivery_tag: int, data: bytes = b"x", **names: Any) -> bytes:
    """A whole small message: method, header and body frame."""
    return deliver(channel, delivery_tag, **names) + header(channel, len(data)) + (body(channel, data) if data else b"")


HEARTBEAT_FRAME = frame(HEARTBEAT, 0, b"")


def flatten(events: Iterable[object]) -> list[Event]:
    """Makes a reader's events comparable, whatever runs they were grouped into."""
    flat: list[Event] = []
    for event in events:
        if isinstance(event, bytes):
            flat.append(("protocol header", event))
        elif isinstance(event, MethodFrame):
            flat.append(("method", event.channel, event.class_id, event.method_id, event.payload))
        elif isinstance(event, SettlementRun):
            flat += [("settlement", event.channel, *entry) for entry in event]
        else:
            assert isinstance(event, ContentRun)
            assert event.messages, "a run has at least one message"
            for m in event.messages:
                # What a run says of itself holds for every message in it.
                assert (m.channel, m.method_id) == (event.channel, event.method_id)
                assert m.consumer_tag == event.consumer_tag
                if m.method_id != DELIVER:
                    assert (m.exchange, m.routing_key) == (event.exchange, event.routing_key)
                assert (m.mandatory, m.immediate) == (event.mandatory, event.immediate)
                flat.append(content_event(m.channel, m.method_id, **{name: getattr(m, name) for name in _FIELDS}))
    return flat


_FIELDS = {
    "delivery_tag": 0,
    "consumer_tag": "",
    "exchange": "",
    "routing_key": "",
    "redelivered": False,
    "mandatory": False,
    "immediate": False,
    "message_count": 0,
    "reply_code": 0,
    "reply_text": "",
    "raw_properties": NO_PROPERTIES,
    "body_size": 0,
    "body": b"",
}


def content_event(channel: int, method_id: int, **fields: object) -> Event:
    """A message as `flatten` shows it; fields that are left out have the value of a message without them."""
    assert fields.keys() <= _FIELDS.keys()
    return ("content", channel, method_id, *({**_FIELDS, **fields}[name] for name in _FIELDS))


def content_runs(events: Iterable[object]) -> list[ContentRun]:
    """Returns the runs of messages that a frame reader returned; fails when it returned other events too."""
    runs: list[ContentRun] = []
    for event in events:
        assert isinstance(event, ContentRun)
        runs.append(event)
    return runs


def run_of(events: Iterable[object]) -> ContentRun:
    """The one run of messages that a reader gave."""
    (run,) = content_runs(events)
    return run


def feed_whole(reader: FrameReader, data: bytes) -> list[Event]:
    return flatten(reader.feed(data))


def feed_pieces(reader: FrameReader, pieces: Iterable[bytes]) -> list[Event]:
    return flatten(event for piece in pieces for event in reader.feed(piece))


def receive_pieces(reader: FrameReader, pieces: Iterable[bytes]) -> list[Event]:
    """As `feed_pieces`, through the memory that a transport reads into."""
    events: list[object] = []
    for piece in pieces:
        view = memoryview(piece)
        while view:
            memory = reader.get_buffer(-1)
            n = min(len(memory), len(view))
            memory[:n] = view[:n]
            events += reader.received(n)
            view = view[n:]
    return flatten(events)
