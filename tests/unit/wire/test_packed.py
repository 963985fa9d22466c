"""Properties and headers as bytes: what is changed, and that everything else stays as it came."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import strategies

from leveret.errors import EncodeFailed
from leveret.wire.encoding import FieldValue, encode_table
from leveret.wire.header_bytes import entries_of, replace_headers
from leveret.wire.properties import Properties, decode_properties

NAMES = (
    "content_type", "content_encoding", "headers", "delivery_mode", "priority", "correlation_id", "reply_to",
    "expiration", "message_id", "timestamp", "type", "user_id", "app_id", "cluster_id",
)  # fmt: skip

#: Every wire type: a table of typed values.
tables = st.dictionaries(
    strategies.shortstrs.filter(lambda key: key != "x-new"),
    strategies.typed_values.map(lambda pair: pair[0]),
    max_size=5,
)
properties = st.builds(
    Properties,
    headers=st.none() | tables,
    delivery_mode=st.none() | st.sampled_from([1, 2]),
    priority=st.none() | st.integers(0, 255),
    timestamp=st.none() | st.integers(0, 1 << 40),
    **{
        name: st.none() | strategies.shortstrs
        for name in NAMES
        if name not in ("headers", "delivery_mode", "priority", "timestamp")
    },
)


def packed_headers(raw: bytes) -> dict[str, tuple[str, bytes]]:
    """The bytes of each header."""
    size = 0
    flags = int.from_bytes(raw[:2])
    at = 2
    for flag in (0x8000, 0x4000):
        if flags & flag:
            at += 1 + raw[at]
    if flags & 0x2000:
        size = 4 + int.from_bytes(raw[at : at + 4])
    return {key: (letter, value) for key, letter, value in entries_of(raw[at : at + size])}


@given(properties)
def test_everything_else_stays_as_it_was_when_a_header_is_set_and_taken_out(given_properties: Properties) -> None:
    raw = given_properties.encode()
    changed = replace_headers(raw, {"x-new": 5})
    expected = decode_properties(raw)
    expected.headers = {**(expected.headers or {}), "x-new": 5}
    assert decode_properties(changed) == expected
    # Types that Python does not tell apart are kept as well.
    assert replace_headers(changed, {}, drop=("x-new",)) == (
        raw if given_properties.headers is not None else replace_headers(raw, {})
    )


@given(properties, st.sets(st.sampled_from([name for name in NAMES if name != "headers"])))
def test_properties_are_taken_out_and_nothing_else(given_properties: Properties, names: set[str]) -> None:
    raw = given_properties.encode()
    expected = decode_properties(raw)
    expected.headers = expected.headers or {}
    for name in names:
        setattr(expected, name, None)
    assert decode_properties(replace_headers(raw, {}, drop_properties=names)) == expected


@given(tables, st.data())
def test_a_header_keeps_its_bytes_when_it_is_renamed(table: dict[str, Any], data: st.DataObject) -> None:
    raw = Properties(headers=table, message_id="m").encode()
    before = packed_headers(raw)
    old = data.draw(st.sampled_from([*table, "x-not-there"]))
    after = packed_headers(replace_headers(raw, {}, rename={old: "x-new"}))
    moved = before.pop(old, None)
    assert after == (before if moved is None else {**before, "x-new": moved})


def test_the_value_that_is_set_wins_when_a_header_is_also_renamed_or_dropped() -> None:
    raw = Properties(headers={"a": FieldValue("B", 1), "b": "two"}).encode()
    assert decode_properties(replace_headers(raw, {"a": 3}, drop=("a",))).headers == {"b": "two", "a": 3}
    assert decode_properties(replace_headers(raw, {"c": 3}, rename={"a": "c"})).headers == {"b": "two", "c": 3}
    assert decode_properties(replace_headers(raw, {}, rename={"a": "b"})).headers == {"b": 1}


def test_a_header_that_does_not_fit_is_refused() -> None:
    with pytest.raises(EncodeFailed):
        replace_headers(b"\x00\x00", {"k" * 256: 1})


@given(tables)
def test_entries_are_all_bytes_of_the_table(table: dict[str, Any]) -> None:
    raw = encode_table(table)
    names = ((key.encode("utf-8", "surrogateescape"), letter, value) for key, letter, value in entries_of(raw))
    assert b"".join(bytes([len(key)]) + key + letter.encode() + value for key, letter, value in names) == raw[4:]
