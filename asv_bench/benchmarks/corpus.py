"""Fixed input. Append only: after a change of an entry, old and new results could not be compared.

Frames are built with `struct`, so that the input does not depend on the version that is measured.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from decimal import Decimal

#: Messages that one call handles: as many as a few socket reads bring.
MESSAGES = 1000
#: Bytes of a message's body.
BODY_SIZES = {"100 B": 100, "1 KiB": 1024, "16 KiB": 16 * 1024}
FRAME_MAX = 131_072

EXCHANGE = b"orders"
ROUTING_KEY = b"order.created"
CONSUMER_TAG = b"leveret-1"
#: content_type application/json, delivery_mode 2.
RAW_PROPERTIES = b"\x90\x00\x10application/json\x02"
#: content_type application/octet-stream, delivery_mode 2.
BYTES_PROPERTIES = b"\x90\x00\x18application/octet-stream\x02"
#: The same, compressed with gzip.
GZIP_PROPERTIES = b"\xd0\x00\x18application/octet-stream\x04gzip\x02"
#: Plain bytes with three headers: tenant (a signed byte, 7), trace (32 characters) and attempt (a signed byte, 1).
HEADER_PROPERTIES = (
    b"\xb0\x00\x18application/octet-stream\x00\x00\x00\x3e"
    b"\x06tenantb\x07\x05traceS\x00\x00\x00\x204bf92f3577b34da6a3ce929d0e0e4736\x07attemptb\x01\x02"
)


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def _shortstr(raw: bytes) -> bytes:
    return bytes([len(raw)]) + raw


def _content(method: bytes, body: bytes, raw_properties: bytes = RAW_PROPERTIES, channel: int = 1) -> bytes:
    header = struct.pack(">HHQ", 60, 0, len(body)) + raw_properties
    chunks = [body[at : at + FRAME_MAX - 8] for at in range(0, len(body), FRAME_MAX - 8)]
    frames = [_frame(1, channel, method), _frame(2, channel, header), *(_frame(3, channel, chunk) for chunk in chunks)]
    return b"".join(frames)


def deliveries(count: int, size: int) -> bytes:
    """Returns `count` basic.deliver messages, as a broker sends them."""
    names = _shortstr(EXCHANGE) + _shortstr(ROUTING_KEY)
    body = bytes(size)
    return b"".join(
        _content(struct.pack(">HH", 60, 60) + _shortstr(CONSUMER_TAG) + struct.pack(">QB", tag, 0) + names, body)
        for tag in range(1, count + 1)
    )


def reads_of(tag: bytes, first: int, count: int, body: bytes, raw_properties: bytes = BYTES_PROPERTIES) -> bytes:
    """Returns `count` basic.deliver messages to a consumer, from a delivery tag on: plain bytes without headers."""
    names = _shortstr(EXCHANGE) + _shortstr(ROUTING_KEY)
    return b"".join(
        _content(
            struct.pack(">HH", 60, 60) + _shortstr(tag) + struct.pack(">QB", number, 0) + names, body, raw_properties
        )
        for number in range(first, first + count)
    )


def delivery_to(channel: int, tag: bytes, number: int, body: bytes) -> bytes:
    """Returns one basic.deliver message on a channel, to a consumer, with a delivery tag."""
    method = struct.pack(">HH", 60, 60) + _shortstr(tag) + struct.pack(">QB", number, 0)
    return _content(method + _shortstr(EXCHANGE) + _shortstr(ROUTING_KEY), body, BYTES_PROPERTIES, channel)


def publishings(count: int, size: int) -> bytes:
    """Returns `count` basic.publish messages, as a client sends them."""
    method = struct.pack(">HHH", 60, 40, 0) + _shortstr(EXCHANGE) + _shortstr(ROUTING_KEY) + b"\x00"
    return _content(method, bytes(size)) * count


def confirms(count: int) -> bytes:
    """Returns `count` basic.ack methods, each for one message."""
    return b"".join(_frame(1, 1, struct.pack(">HHQB", 60, 80, tag, 0)) for tag in range(1, count + 1))


#: An order.
ORDER = {
    "order_id": 1234567,
    "customer_id": 7654321,
    "items": [{"sku": "AB-1234", "quantity": 2, "price": 19.99}, {"sku": "CD-5678", "quantity": 1, "price": 5.0}],
    "total": 44.98,
    "currency": "EUR",
}

_STAMP = datetime(2026, 1, 1, tzinfo=UTC)

#: Field tables: what an application sends, what RabbitMQ's dead-letter exchange adds, and one of everything.
TABLES: dict[str, dict[str, object]] = {
    "2 entries": {"tenant": 7, "trace": "4bf92f3577b34da6a3ce929d0e0e4736"},
    "x-death": {
        "x-death": [
            {
                "count": 3,
                "exchange": "orders",
                "queue": "billing",
                "reason": "rejected",
                "routing-keys": ["order.created"],
                "time": _STAMP,
            }
        ],
        "x-first-death-exchange": "orders",
        "x-first-death-queue": "billing",
        "x-first-death-reason": "rejected",
    },
    "every type": {
        "void": None,
        "bool": True,
        "int": 1,
        "long": 1 << 40,
        "double": 1.5,
        "text": "some text",
        "bytes": b"some bytes",
        "time": _STAMP,
        "decimal": Decimal("19.99"),
        "array": [1, "two", 3.0, None],
        "table": {"a": {"b": {"c": 1}}},
    },
    "100 entries": {f"key-{i:03}": i for i in range(100)},
}

#: Message properties.
PROPERTIES: dict[str, dict[str, object]] = {
    "2 properties": {"content_type": "application/json", "delivery_mode": 2},
    "8 properties": {
        "content_type": "application/json",
        "delivery_mode": 2,
        "priority": 5,
        "correlation_id": "4bf92f35-77b3-4da6-a3ce-929d0e0e4736",
        "reply_to": "amq.rabbitmq.reply-to",
        "message_id": "8c1f0b3e-6a0f-4b0e-9c0a-0d4c1c2f3a4b",
        "timestamp": 1_767_225_600,
        "app_id": "billing",
    },
    "2 properties, 2 headers": {
        "content_type": "application/json",
        "delivery_mode": 2,
        "headers": {"tenant": 7, "trace": "4bf92f3577b34da6a3ce929d0e0e4736"},
    },
}
