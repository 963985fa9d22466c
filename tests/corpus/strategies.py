"""What hypothesis makes for the codec's tests, and how hard it tries.

Profiles, chosen by the environment variable HYPOTHESIS_PROFILE: `ci` (default) is repeatable and takes seconds;
`deep` takes new random input each time and many minutes.
"""

from __future__ import annotations

import os
import struct
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from leveret.wire.encoding import FieldValue
from tests.corpus import frames

if TYPE_CHECKING:
    from tests.corpus.frames import Event

_COMMON: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
settings.register_profile("ci", max_examples=100, derandomize=True, database=None, print_blob=True, **_COMMON)
settings.register_profile("deep", max_examples=5_000, database=None, print_blob=True, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# ---------------------------------------------------------------------------------------------- strings

#: Text as UTF-8 has it: no surrogates.
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


#: Of such text what fits a short string, which has 255 bytes.
shortstrs = st.one_of(text, st.sampled_from(["k" * 255, "é" * 127, "\U0001f407" * 63, "a\x00b"]))
#: Bytes that are no UTF-8 come in as surrogate escapes.
escaped = st.binary(max_size=60).map(lambda raw: raw.decode("utf-8", "surrogateescape"))

# ---------------------------------------------------------------------------------------------- tables

int64s = st.integers(-(2**63), 2**63 - 1)
#: Whole seconds, which is what the wire has.
datetimes = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31, 23, 59, 59)).map(
    lambda d: d.replace(microsecond=0, tzinfo=UTC)
)
decimals = st.builds(
    lambda unscaled, scale: Decimal(((1, 0)[unscaled >= 0], tuple(map(int, str(abs(unscaled)))), -scale)),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 255),
)
floats = st.floats(allow_nan=False, allow_infinity=False)


def _nested(leaves: st.SearchStrategy[object], keys: st.SearchStrategy[str]) -> st.SearchStrategy[object]:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
        max_leaves=12,
    )


#: Values that come back equal.
leaves = st.one_of(st.none(), st.booleans(), int64s, floats, text, escaped, st.binary(max_size=40), datetimes, decimals)
values = _nested(leaves, shortstrs)
tables = st.dictionaries(shortstrs, values, max_size=5)


def _typed(kind: str, strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[FieldValue, object]]:
    return strategy.map(lambda v: (FieldValue(kind, v), v))


#: Every wire type spelled out, with what comes back: (sent, received).
typed_values: st.SearchStrategy[tuple[FieldValue, object]] = st.one_of(
    *(
        _typed(kind, strategy)
        for kind, strategy in {
            "t": st.booleans(),
            "b": st.integers(-(2**7), 2**7 - 1),
            "B": st.integers(0, 2**8 - 1),
            "s": st.integers(-(2**15), 2**15 - 1),
            "u": st.integers(0, 2**16 - 1),
            "I": st.integers(-(2**31), 2**31 - 1),
            "i": st.integers(0, 2**32 - 1),
            "l": int64s,
            "L": st.integers(0, 2**64 - 1),
            "f": st.floats(width=32, allow_nan=False, allow_infinity=False),
            "d": floats,
            "D": decimals,
            "S": text | escaped,
            "A": st.lists(leaves, max_size=4),
            "T": datetimes,
            "F": st.dictionaries(shortstrs, leaves, max_size=4),
            "V": st.none(),
            "x": st.binary(max_size=40),
        }.items()
    )
)

# What pamqp can read and write without loss. It cuts keys at 128 bytes and sorts them; floats it writes with 32 bits;
# timestamps above 2^32 it takes for milliseconds; strings that are no UTF-8 it returns as bytes; and only bytearray is
# a byte array.
pamqp_keys = text.filter(lambda s: len(s.encode()) <= 128)
pamqp_leaves = st.one_of(
    st.none(),
    st.booleans(),
    int64s,
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    text,
    st.binary(max_size=40).map(bytearray),
    st.datetimes(datetime(1970, 1, 1), datetime(2106, 2, 7)).map(lambda d: d.replace(microsecond=0, tzinfo=UTC)),
    decimals,
)
pamqp_tables = st.dictionaries(pamqp_keys, _nested(pamqp_leaves, pamqp_keys), max_size=5)

# ---------------------------------------------------------------------------------------------- streams

Step = tuple[bytes, "Event | None"]
_names = st.sampled_from(["", "a", "orders", "order.created", "r\udcffw", "é" * 100])
_properties = st.sampled_from(
    [b"\x00\x00", b"\x10\x00\x02", b"\x10\x00\x01", b"\x80\x00\x04text", b"\xff\xff truncated"]
)
#: What the reader calls large, and a body a little larger that it reports without its bytes.
MAX_BODY = 300
_sizes = st.sampled_from([0, 1, 2, 17, 100, MAX_BODY, MAX_BODY + 1, 2 * MAX_BODY])


@st.composite
def _content(draw: st.DrawFn, channel: int, server: bool) -> list[Step]:
    fields: dict[str, Any] = {"exchange": draw(_names), "routing_key": draw(_names)}
    names = frames.shortstr(fields["exchange"]) + frames.shortstr(fields["routing_key"])
    if server:
        method_id = frames.PUBLISH
        fields |= {"mandatory": draw(st.booleans()), "immediate": draw(st.booleans())}
        arguments = b"\x00\x00" + names + bytes([fields["mandatory"] | fields["immediate"] << 1])
    else:
        method_id = draw(
            st.sampled_from([frames.DELIVER, frames.DELIVER, frames.DELIVER, frames.GET_OK, frames.RETURN])
        )
        if method_id == frames.RETURN:
            fields |= {"reply_code": 312, "reply_text": "NO_ROUTE"}
            arguments = struct.pack(">H", 312) + frames.shortstr("NO_ROUTE") + names
        else:
            fields |= {"delivery_tag": draw(st.integers(0, 2**64 - 1)), "redelivered": draw(st.booleans())}
            arguments = struct.pack(">QB", fields["delivery_tag"], fields["redelivered"]) + names
            if method_id == frames.DELIVER:
                fields["consumer_tag"] = draw(_names)
                arguments = frames.shortstr(fields["consumer_tag"]) + arguments
            else:
                fields["message_count"] = draw(st.integers(0, 2**32 - 1))
                arguments += struct.pack(">I", fields["message_count"])
    size = draw(_sizes)
    data = bytes(i & 0xFF for i in range(size))
    fields["body_size"] = size
    fields["body"] = data if size <= MAX_BODY else None
    fields["raw_properties"] = draw(_properties)
    parts = [
        frames.method(channel, 60, method_id, arguments),
        frames.header(channel, size, fields["raw_properties"]),
        *frames.bodies(channel, data, draw(st.sampled_from([1 + size // 3, 1 + size]))),
    ]
    if size and draw(st.booleans()):
        parts.insert(2, frames.body(channel, b""))  # an empty body frame is legal
    return [(part, None) for part in parts[:-1]] + [(parts[-1], frames.content_event(channel, method_id, **fields))]


@st.composite
def _settlement(draw: st.DrawFn, channel: int) -> list[Step]:
    tag, multiple, requeue = draw(st.integers(0, 2**64 - 1)), draw(st.booleans()), draw(st.booleans())
    data, entry = draw(
        st.sampled_from(
            [
                (frames.ack(channel, tag, multiple=multiple), (multiple, False, False)),
                (frames.nack(channel, tag, multiple=multiple, requeue=requeue), (multiple, True, requeue)),
                (frames.reject(channel, tag, requeue=requeue), (False, True, requeue)),
            ]
        )
    )
    return [(data, ("settlement", channel, tag, *entry))]


@st.composite
def _method(draw: st.DrawFn, channel: int) -> list[Step]:
    class_id, method_id = draw(st.sampled_from([(10, 30), (20, 11), (50, 11), (60, 21), (85, 11), (999, 999)]))
    payload = draw(st.binary(max_size=20))
    return [(frames.method(channel, class_id, method_id, payload), ("method", channel, class_id, method_id, payload))]


@st.composite
def streams(draw: st.DrawFn, server: bool) -> tuple[bytes, list[Event]]:
    """A valid stream of several channels whose frames are interleaved, and the events it must give."""
    queues: list[list[Step]] = []
    for channel in draw(st.lists(st.sampled_from([1, 2, 255, 65535]), min_size=1, max_size=4, unique=True)):
        one = st.one_of(_content(channel, server), _settlement(channel), _method(channel))
        queues.append([step for part in draw(st.lists(one, min_size=1, max_size=6)) for step in part])
    queues.append([(frames.HEARTBEAT_FRAME, None)] * draw(st.integers(0, 2)))
    queues.append([step for part in draw(st.lists(_method(0), max_size=2)) for step in part])
    stream, events = [], []
    while queues := [queue for queue in queues if queue]:
        data, event = queues[draw(st.integers(0, len(queues) - 1))].pop(0)
        stream.append(data)
        if event is not None:
            events.append(event)
    return b"".join(stream), events


@st.composite
def mutated(draw: st.DrawFn, originals: st.SearchStrategy[bytes]) -> bytes:
    """Valid bytes with a few changed, cut out, doubled or put in: it goes deeper than random bytes do."""
    data = bytearray(draw(originals))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["set", "flip", "cut", "insert", "double", "truncate"])):
            case "set" if at < len(data):
                data[at] = draw(st.sampled_from([0, 1, 2, 3, 8, 0x7F, 0x80, 0xCE, 0xFE, 0xFF]))
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at : at + draw(st.integers(1, 12))]
            case "insert":
                data[at:at] = draw(st.binary(max_size=12))
            case "double":
                data[at:at] = data[at : at + draw(st.integers(1, 60))]
            case "truncate":
                del data[at:]
    return bytes(data)
