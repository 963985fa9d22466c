"""What is sent again says so in a header, and is otherwise what it was, byte by byte."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import strategies

from leveret.errors import EncodeFailed
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.template import PublishTemplate
from leveret.wire.buffers import SendBuffer
from leveret.wire.encoding import FieldValue
from leveret.wire.properties import Properties, decode_properties

assert strategies  # its import loads the hypothesis profile

VALUES: Any = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(max_size=20)
    | st.binary(max_size=20)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([FieldValue("b", -1), FieldValue("B", 255), FieldValue("s", -2), FieldValue("u", 65535)])
    | st.sampled_from([FieldValue("i", 2**32 - 1), FieldValue("f", 0.5), FieldValue("T", 7), FieldValue("l", 1)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
HEADERS = st.none() | st.dictionaries(
    st.sampled_from(["a", "x-leveret-resent", "x-leveret-resenu", "x-leveret-resen", "é"]), VALUES, max_size=4
)


def properties(**values: Any) -> bytes:
    return Properties(**values).encode()


@given(HEADERS, st.booleans(), st.booleans(), st.integers(1, 2**31 - 1))
def test_marking_adds_one_header_and_changes_nothing_else(
    headers: dict[str, Any] | None, typed: bool, encoded: bool, count: int
) -> None:
    values: dict[str, Any] = {"headers": headers, "priority": 3, "message_id": "m", "app_id": "a"}
    if typed:
        values["content_type"] = "application/json"
    if encoded:
        values["content_encoding"] = "gzip"
    template = PublishTemplate("x", "key", properties(**values), mandatory=True)
    marked = template.marked(count)
    assert (marked.exchange, marked.routing_key, marked.mandatory) == ("x", "key", True)
    # The order of headers is their order on the wire: a value takes the place of an earlier one.
    after = {**(headers or {}), "x-leveret-resent": count}
    assert marked.raw_properties == properties(**{**values, "headers": after})
    assert marked.marked(count + 1 if count < 2**31 - 1 else 1).raw_properties != marked.raw_properties


@given(st.binary(max_size=40))
def test_malformed_properties_are_refused_or_kept_and_nothing_is_read_beyond_them(raw: bytes) -> None:
    template = PublishTemplate("", "q", raw)
    try:
        marked = template.marked(1)
    except EncodeFailed:
        return
    assert len(marked.raw_properties) - len(raw) in range(-300, 27)


def test_a_message_that_was_written_before_carries_the_header() -> None:
    out = SendBuffer(lambda: None, lambda: None)
    PublishBatch(out, None).add(PublishTemplate("", "q"), b"x", sends=2)
    expected = SendBuffer(lambda: None, lambda: None)
    PublishBatch(expected, None).add(PublishTemplate("", "q", properties(headers={"x-leveret-resent": 2})), b"x")
    assert out.take() == expected.take()


@pytest.mark.parametrize("kind", "tbBsuIilLfdDTVSxAF")
def test_values_of_every_type_are_passed_over(kind: str) -> None:
    value: Any = {"t": True, "f": 1.0, "d": 1.0, "D": 1, "V": None, "S": "s", "x": b"x", "A": [1], "F": {"a": 1}}.get(
        kind, 1
    )
    if kind == "D":
        import decimal

        value = decimal.Decimal("1.5")
    raw = properties(headers={"first": FieldValue(kind, value), "x-leveret-resent": 1})
    again = decode_properties(PublishTemplate("", "q", raw).marked(2).raw_properties)
    assert again.headers is not None
    assert again.headers["x-leveret-resent"] == 2
    assert list(again.headers) == ["first", "x-leveret-resent"]
