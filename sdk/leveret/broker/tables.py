"""Field tables and properties as bytes: wire types kept, entries replaced without touching the others.

`leveret._framing` turns tables into Python values, which drops how a number was typed. The broker needs that type in
two places: RabbitMQ names it when an argument differs, and headers that are passed on must stay as they came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from leveret._batching import PublishBatch, PublishTemplate
from leveret._buffers import SendBuffer
from leveret._framing import ContentRun, FrameReader, decode_table, encode_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from leveret._framing import Message

__all__ = ["TypedValue", "arguments_of", "rebuilt", "replace_headers", "scan_table"]

#: Bytes behind the type octet; the others have a length of four bytes in front.
_FIXED: Final = {
    "t": 1,
    "b": 1,
    "B": 1,
    "s": 2,
    "u": 2,
    "I": 4,
    "i": 4,
    "f": 4,
    "l": 8,
    "L": 8,
    "d": 8,
    "T": 8,
    "D": 5,
    "V": 0,
}

#: How RabbitMQ (Erlang) calls the field types.
_TYPE_NAMES: Final = {
    "S": "longstr", "I": "signedint", "D": "decimal", "T": "timestamp", "F": "table", "A": "array", "b": "byte",
    "B": "unsignedbyte", "s": "short", "u": "unsignedshort", "i": "unsignedint", "l": "long", "L": "long",
    "f": "float", "d": "double", "t": "bool", "V": "void", "x": "binary",
}  # fmt: skip
_INTEGERS: Final = frozenset("bBsuIilL")

# Flags of the properties that stand before and behind the headers (AMQP 0-9-1 section 4.2.6.1), in wire order.
_HEADERS_FLAG: Final = 0x2000
_EXPIRATION_FLAG: Final = 0x0100
_BEFORE_HEADERS: Final = (0x8000, 0x4000)
_OCTETS: Final = (0x1000, 0x0800)
_BEFORE_EXPIRATION: Final = (0x0400, 0x0200)


class TypedValue(NamedTuple):
    """One entry of a field table.

    Attributes:
        letter: The field type on the wire.
        raw: The value's bytes behind the type octet.
        value: The value as Python has it.
    """

    letter: str
    raw: bytes
    value: Any

    @property
    def type_name(self) -> str:
        """RabbitMQ's name of the type, for example `longstr`."""
        return _TYPE_NAMES[self.letter]

    @property
    def is_integer(self) -> bool:
        """True for every integer type but not for booleans and timestamps."""
        return self.letter in _INTEGERS

    @property
    def is_string(self) -> bool:
        """True for a long string."""
        return self.letter == "S"

    def same_value(self, other: TypedValue) -> bool:
        """True when RabbitMQ takes both for the same: equal values; integers of any width are one type."""
        return (
            self.raw == other.raw
            if self.letter == other.letter
            else (self.is_integer and other.is_integer and bool(self.value == other.value))
        )

    def printed(self) -> str:
        """The value as RabbitMQ prints it in a reply text."""
        if self.letter == "t":
            return "true" if self.value else "false"
        if self.letter == "x":
            return self.raw[4:].decode("utf-8", "surrogateescape")
        return str(self.value)


def scan_table(raw: bytes) -> dict[str, TypedValue]:
    """Splits a table into its top-level entries.

    Args:
        raw: The table with its length in front.

    Returns:
        The entries by key.

    Raises:
        TableSyntaxError: The table is malformed.
    """
    values = decode_table(raw)
    return {key: TypedValue(letter, value, values[key]) for key, letter, value in _entries(raw)}


def _entries(raw: bytes) -> Iterator[tuple[str, str, bytes]]:
    """Key, field type and packed value of each top-level entry of a table that is known to be well-formed."""
    at = 4
    while at < len(raw):
        size = raw[at]
        key = raw[at + 1 : at + 1 + size].decode("utf-8", "surrogateescape")
        at += 1 + size
        letter = chr(raw[at])
        at += 1
        fixed = _FIXED.get(letter)
        length = 4 + int.from_bytes(raw[at : at + 4]) if fixed is None else fixed
        yield key, letter, raw[at : at + length]
        at += length


def arguments_of(payload: bytes, short_strings: int, *, bits: bool = True) -> dict[str, TypedValue]:
    """Finds the arguments table of a method whose other arguments are a ticket, short strings and an octet of bits.

    Args:
        payload: The method's arguments, already decoded once without an error.
        short_strings: How many short strings follow the ticket.
        bits: Whether an octet of bits follows them.

    Returns:
        The entries of the table.
    """
    at = 2
    for _ in range(short_strings):
        at += 1 + payload[at]
    return scan_table(payload[at + bits :])


def _join(entries: Mapping[str, tuple[str, bytes]]) -> bytes:
    parts = []
    for key, (letter, value) in entries.items():
        name = key.encode("utf-8", "surrogateescape")
        parts.append(bytes((len(name),)) + name + letter.encode() + value)
    body = b"".join(parts)
    return len(body).to_bytes(4) + body


def replace_headers(
    raw_properties: bytes, headers: Mapping[str, Any], *, drop: str | None = None, drop_expiration: bool = False
) -> bytes:
    """Sets headers in packed properties and leaves every other byte as it is.

    Args:
        raw_properties: Well-formed properties as `Message.raw_properties` has them.
        headers: Values to set; see `encode_table`.
        drop: A header to take out, or None.
        drop_expiration: Also take the expiration out.

    Returns:
        The new properties.

    Raises:
        EncodeFailed: A header does not fit a table.
    """
    flags = int.from_bytes(raw_properties[:2])
    at = 2
    for flag in _BEFORE_HEADERS:
        if flags & flag:
            at += 1 + raw_properties[at]
    start = at
    if flags & _HEADERS_FLAG:
        at += 4 + int.from_bytes(raw_properties[at : at + 4])
    entries = {key: (letter, value) for key, letter, value in _entries(raw_properties[start:at])}
    if drop is not None:
        entries.pop(drop, None)
    for key, letter, value in _entries(encode_table(headers)):
        entries[key] = letter, value
    table = _join(entries)
    tail = raw_properties[at:]
    if drop_expiration and flags & _EXPIRATION_FLAG:
        at = sum(1 for flag in _OCTETS if flags & flag)
        for flag in _BEFORE_EXPIRATION:
            if flags & flag:
                at += 1 + tail[at]
        tail = tail[:at] + tail[at + 1 + tail[at] :]
        flags &= ~_EXPIRATION_FLAG
    return (flags | _HEADERS_FLAG).to_bytes(2) + raw_properties[2:start] + table + tail


def rebuilt(message: Message, *, exchange: str, routing_key: str, raw_properties: bytes) -> Message:
    """A copy of a message with another exchange, routing key and other properties.

    `Message` is made by the frame reader only, so the copy is packed into frames and read back. That costs some
    microseconds, which dead-lettering and redelivery counts can afford.

    Args:
        message: With its body.
        exchange: The new exchange.
        routing_key: The new routing key.
        raw_properties: The new packed properties.

    Returns:
        A message that was never delivered.
    """
    body = message.body or b""
    frame_max = max(len(body), len(raw_properties)) + 4096
    out = SendBuffer(_nothing, _nothing)
    template = PublishTemplate(exchange, routing_key, raw_properties, frame_max=frame_max)
    PublishBatch(out, None, frame_max=frame_max, max_body_size=len(body)).add(template, body)
    reader = FrameReader(server=True, frame_max=frame_max, max_body_size=len(body), capacity=0)
    (run,) = reader.feed(out.take())
    assert isinstance(run, ContentRun)
    return run.messages[0]


def _nothing() -> None:
    """A send buffer without a transport has nobody to tell."""
