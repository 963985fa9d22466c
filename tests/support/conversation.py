"""The two ends of a conversation without a socket: memory to send into, and pamqp as the peer's codec."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pamqp import base, body, frame, header, heartbeat

from leveret.wire.buffers import SendBuffer
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun, MethodFrame

if TYPE_CHECKING:
    from collections.abc import Iterator

PROTOCOL_HEADER = b"AMQP\x00\x00\x09\x01"
FRAME_END = b"\xce"

Frame = base.Frame | body.ContentBody | header.ContentHeader | heartbeat.Heartbeat


def memory() -> SendBuffer:
    """A send buffer that nobody flushes."""
    return SendBuffer(lambda: None, lambda: None)


def frames_of(data: bytes) -> Iterator[tuple[int, Frame]]:
    """Yields channel and frame of each frame in `data`, which must hold whole frames."""
    while data:
        consumed, channel, value = frame.unmarshal(data)
        assert not isinstance(value, header.ProtocolHeader)
        yield channel, value
        data = data[consumed:]


def sent(out: SendBuffer) -> list[Frame]:
    """What was appended to `out` since the last look, as pamqp reads it."""
    return [value for _, value in frames_of(out.take())]


def sent_names(out: SendBuffer) -> list[str]:
    """The names of the methods that were appended since the last look."""
    return [value.name for value in sent(out)]


def method(value: base.Frame, channel: int = 0) -> MethodFrame:
    """A peer's method, as the frame reader hands it over."""
    return method_of_bytes(frame.marshal(value, channel))


def method_of_bytes(data: bytes) -> MethodFrame:
    """The one method frame in these bytes."""
    (event,) = FrameReader(frame_max=1 << 20).feed(data)
    assert isinstance(event, MethodFrame)
    return event


def raw_method(channel: int, class_id: int, method_id: int, arguments: bytes = b"") -> bytes:
    """A method frame with any ids and argument bytes, however wrong."""
    payload = class_id.to_bytes(2, "big") + method_id.to_bytes(2, "big") + arguments
    return b"\x01" + channel.to_bytes(2, "big") + len(payload).to_bytes(4, "big") + payload + FRAME_END


def content(value: base.Frame, channel: int, payload: bytes = b"", **properties: Any) -> bytes:
    """A content method with its header and body frames, for bodies that fit one frame."""
    from pamqp.commands import Basic

    data = frame.marshal(value, channel)
    data += frame.marshal(header.ContentHeader(0, len(payload), Basic.Properties(**properties)), channel)
    return data + frame.marshal(body.ContentBody(payload), channel) if payload else data


def content_run(value: base.Frame, channel: int, payload: bytes = b"", **properties: Any) -> ContentRun:
    """A peer's content, as the frame reader hands it over."""
    (event,) = FrameReader(frame_max=1 << 20).feed(content(value, channel, payload, **properties))
    assert isinstance(event, ContentRun)
    return event


def nested_table(depth: int, key: bytes = b"") -> bytes:
    """The bytes of a field table that holds a table, and so on; `depth` tables in all.

    With an empty key each level costs six bytes: key length (1), type (1), table length (4).
    """
    data = b"\0\0\0\0"
    for _ in range(depth - 1):
        data = bytes([len(key)]) + key + b"F" + data
        data = len(data).to_bytes(4, "big") + data
    return data
