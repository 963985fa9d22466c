"""Field tables with the wire types of their values, and copies of messages with other properties.

`leveret.wire.decoding` turns tables into Python values and drops the types of numbers. The broker needs the types,
because RabbitMQ names them in its refusals.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from leveret.broker.refusals import Refusal
from leveret.protocol.commands import not_utf8
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.template import PublishTemplate
from leveret.wire.buffers import SendBuffer
from leveret.wire.decoding import decode_table
from leveret.wire.header_bytes import entries_of
from leveret.wire.numbers import FRAME_ERROR, INTERNAL_ERROR
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun

if TYPE_CHECKING:
    from collections.abc import Mapping

    from leveret.protocol.commands import Method
    from leveret.wire.message import Message

__all__ = ["TypedValue", "arguments_of", "check_arguments", "check_table", "rebuilt", "scan_table"]

#: RabbitMQ's names of the field types.
_TYPE_NAMES: Final = {
    "S": "longstr", "I": "signedint", "D": "decimal", "T": "timestamp", "F": "table", "A": "array", "b": "byte",
    "B": "unsignedbyte", "s": "short", "u": "unsignedshort", "i": "unsignedint", "l": "long", "L": "long",
    "f": "float", "d": "double", "t": "bool", "V": "void", "x": "binary",
}  # fmt: skip
_INTEGERS: Final = frozenset("bBsuIilL")


class TypedValue(NamedTuple):
    """One entry of a field table.

    Attributes:
        letter: The field type on the wire.
        raw: The value's bytes after the type octet.
        value: The value in Python.
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
        """Returns True when RabbitMQ considers both equal. Integers of all widths compare by value."""
        return (
            self.raw == other.raw
            if self.letter == other.letter
            else (self.is_integer and other.is_integer and bool(self.value == other.value))
        )

    def printed(self) -> str:
        """Returns the value as RabbitMQ prints it in a reply text."""
        if self.letter == "t":
            return "true" if self.value else "false"
        if self.letter == "x":
            return self.raw[4:].decode("utf-8", "surrogateescape")
        return str(self.value)


def scan_table(raw: bytes) -> dict[str, TypedValue]:
    """Splits a table into its top-level entries.

    Args:
        raw: The table, with its length before it.

    Returns:
        The entries by key.

    Raises:
        TableSyntaxError: The table is malformed.
    """
    values = decode_table(raw)
    return {key: TypedValue(letter, value, values[key]) for key, letter, value in entries_of(raw)}


def arguments_of(payload: bytes, short_strings: int, *, bits: bool = True) -> dict[str, TypedValue]:
    """Reads the arguments table of a method. A ticket, short strings and an octet of bits stand before the table.

    Args:
        payload: The method's arguments, which were already decoded without an error.
        short_strings: The number of short strings after the ticket.
        bits: Whether an octet of bits follows the short strings.

    Returns:
        The entries of the table.
    """
    at = 2
    for _ in range(short_strings):
        at += 1 + payload[at]
    return scan_table(payload[at + bits :])


def check_table(table: Mapping[str, Any] | None) -> None:
    """Refuses a table with a float that is infinite or NaN, at any depth.

    RabbitMQ's parser has no pattern for such a value and fails: it answers 541 for a message, and closes the socket
    without a word for a method.

    Raises:
        Refusal: 541 if there is one.
    """
    if table and not _is_finite(table):
        raise Refusal(INTERNAL_ERROR, "", cause=(0, 0))


def _is_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(map(_is_finite, value.values()))
    return all(map(_is_finite, value)) if isinstance(value, list) else True


def check_arguments(method: Method) -> None:
    """Refuses the arguments of a method that RabbitMQ's parser refuses.

    Raises:
        Refusal: 501 for a short string that is no UTF-8, 541 as `check_table`.
    """
    if not_utf8(method):
        raise Refusal(FRAME_ERROR, "Malformed UTF-8 in shortstr", cause=(0, 0))
    for name in ("arguments", "client_properties"):
        check_table(getattr(method, name, None))


def rebuilt(message: Message, *, exchange: str, routing_key: str, raw_properties: bytes) -> Message:
    """Returns a copy of a message with another exchange, routing key and properties.

    Only the frame reader makes a `Message`, so the copy is packed into frames and read back. That takes some
    microseconds, and only dead-lettered and redelivered messages are copied.

    Args:
        message: The message, with its body.
        exchange: The new exchange.
        routing_key: The new routing key.
        raw_properties: The new packed properties.

    Returns:
        A message that is not marked as redelivered.
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
    """The callbacks of a send buffer without a transport."""
