"""Tables of the embedded broker as bytes, and messages made anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import strategies

from leveret.broker.tables import TypedValue, rebuilt, scan_table
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.template import PublishTemplate
from leveret.wire.buffers import SendBuffer
from leveret.wire.encoding import FieldValue, encode_table
from leveret.wire.properties import Properties
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun

if TYPE_CHECKING:
    from leveret.wire.message import Message

assert strategies  # its import loads the hypothesis profile

short = st.text(max_size=20)
values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.text(max_size=20),
        st.binary(max_size=20),
        st.floats(allow_nan=False, allow_infinity=False),
        st.integers(0, 255).map(lambda n: FieldValue("B", n)),
        st.integers(0, 1 << 40).map(lambda n: FieldValue("T", n)),
        st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda x: FieldValue("f", x)),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(short, inner, max_size=3)),
    max_leaves=8,
)
tables = st.dictionaries(short, values, max_size=6)


def message(body: bytes = b"body", raw_properties: bytes = b"\x00\x00") -> Message:
    out = SendBuffer(lambda: None, lambda: None)
    frame_max = max(131072, len(body) + 4096)
    template = PublishTemplate("x", "key", raw_properties, frame_max=frame_max)
    PublishBatch(out, None, frame_max=frame_max).add(template, body)
    (run,) = FrameReader(server=True, frame_max=frame_max).feed(out.take())
    assert isinstance(run, ContentRun)
    return run.messages[0]


@given(tables)
def test_scan_finds_every_entry_with_its_bytes(table: dict[str, Any]) -> None:
    raw = encode_table(table)
    entries = scan_table(raw)
    assert list(entries) == list(table)
    joined = b"".join(
        bytes([len(key.encode())]) + key.encode() + entry.letter.encode() + entry.raw for key, entry in entries.items()
    )
    assert joined == raw[4:]


@pytest.mark.parametrize("size", [0, 1, 5000, 300_000])
def test_rebuilt_message_differs_in_what_was_asked_for_only(size: int) -> None:
    before = message(b"x" * size)
    raw = Properties(message_id="m").encode()
    after = rebuilt(before, exchange="other", routing_key="there", raw_properties=raw)
    assert (after.exchange, after.routing_key, after.raw_properties) == ("other", "there", raw)
    assert after.body == before.body
    assert not after.redelivered


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (5, 5, True),
        (5, FieldValue("l", 5), True),
        (5, 6, False),
        (5, "5", False),
        (True, True, True),
        (True, 1, False),
        ("a", "a", True),
        (5.0, 5, False),
    ],
)
def test_values_are_the_same_when_rabbitmq_takes_them_for_it(one: object, other: object, same: bool) -> None:
    first, second = (scan_table(encode_table({"key": value}))["key"] for value in (one, other))
    assert first.same_value(second) is same


@pytest.mark.parametrize(
    ("value", "printed", "name"),
    [
        (5, "5", "signedint"),
        (1 << 40, str(1 << 40), "long"),
        (True, "true", "bool"),
        ("text", "text", "longstr"),
        (b"raw", "raw", "binary"),
        ([], "[]", "array"),
    ],
)
def test_values_are_printed_as_rabbitmq_prints_them(value: object, printed: str, name: str) -> None:
    entry: TypedValue = scan_table(encode_table({"key": value}))["key"]
    assert (entry.printed(), entry.type_name) == (printed, name)
