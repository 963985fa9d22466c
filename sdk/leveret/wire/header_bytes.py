"""Changes headers in packed properties, and leaves all other bytes as they are.

`leveret.wire.decoding` turns tables into Python values and drops the wire types of numbers. A message that is passed on
must keep them: the next reader may check the type, as RabbitMQ does for its own headers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from leveret.wire.encoding import encode_table

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = ["entries_of", "replace_headers"]

#: The sizes of values by field type, in bytes. Values of other types have a length of four bytes in front.
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

# The properties in wire order (AMQP 0-9-1 section 4.2.6.1): flag, name and size in bytes. 0 stands for a short string,
# which has a length of one byte in front, and -1 for the headers, which have a length of four bytes in front.
_PROPERTIES: Final = (
    (0x8000, "content_type", 0),
    (0x4000, "content_encoding", 0),
    (0x2000, "headers", -1),
    (0x1000, "delivery_mode", 1),
    (0x0800, "priority", 1),
    (0x0400, "correlation_id", 0),
    (0x0200, "reply_to", 0),
    (0x0100, "expiration", 0),
    (0x0080, "message_id", 0),
    (0x0040, "timestamp", 8),
    (0x0020, "type", 0),
    (0x0010, "user_id", 0),
    (0x0008, "app_id", 0),
    (0x0004, "cluster_id", 0),
)
_HEADERS_FLAG: Final = 0x2000


def entries_of(raw: bytes) -> Iterator[tuple[str, str, bytes]]:
    """Splits a table into its top-level entries.

    Args:
        raw: A well-formed table with its length in front.

    Yields:
        Key, field type and packed value.
    """
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


def replace_headers(
    raw_properties: bytes,
    headers: Mapping[str, Any],
    *,
    drop: Collection[str] = (),
    rename: Mapping[str, str] | None = None,
    drop_properties: Collection[str] = (),
) -> bytes:
    """Sets headers in packed properties and leaves every other byte as it is.

    Args:
        raw_properties: Well-formed packed properties, as in `Message.raw_properties`.
        headers: Values to set; see `encode_table`.
        drop: Names of headers to remove.
        rename: New names of headers by their old ones. A header that has the new name already is overwritten.
        drop_properties: Names of properties to remove.

    Returns:
        The new properties.

    Raises:
        EncodeFailed: A header does not fit a table.
    """
    flags = int.from_bytes(raw_properties[:2])
    before: list[bytes] = []
    after: list[bytes] = []
    entries: dict[str, tuple[str, bytes]] = {}
    at = 2
    for flag, name, size in _PROPERTIES:
        if not flags & flag:
            continue
        length = size or 1 + raw_properties[at]
        if flag == _HEADERS_FLAG:
            length = 4 + int.from_bytes(raw_properties[at : at + 4])
            entries = {key: (letter, value) for key, letter, value in entries_of(raw_properties[at : at + length])}
        elif name in drop_properties:
            flags &= ~flag
        else:
            (before if flag > _HEADERS_FLAG else after).append(raw_properties[at : at + length])
        at += length
    for key in drop:
        entries.pop(key, None)
    for key, new in (rename or {}).items():
        if key in entries:
            entries[new] = entries.pop(key)
    for key, letter, value in entries_of(encode_table(headers)):
        entries[key] = letter, value
    return b"".join(((flags | _HEADERS_FLAG).to_bytes(2), *before, _table(entries), *after))


def _table(entries: Mapping[str, tuple[str, bytes]]) -> bytes:
    parts = []
    for key, (letter, value) in entries.items():
        name = key.encode("utf-8", "surrogateescape")
        parts.append(bytes((len(name),)) + name + letter.encode() + value)
    body = b"".join(parts)
    return len(body).to_bytes(4) + body
