"""Message properties: both ways, against pamqp, and what is refused."""

from __future__ import annotations

import struct
import traceback
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import header as pamqp_header
from pamqp.commands import Basic
from tests.corpus import malformed, strategies

from leveret.errors import EncodeFailed, TableSyntaxError
from leveret.wire.properties import Properties, decode_properties

if TYPE_CHECKING:
    from tests.corpus.malformed import Block

#: The flag of each property, AMQP 0-9-1 section 1.8.1, in the order of the wire.
FLAGS = {
    "content_type": 0x8000,
    "content_encoding": 0x4000,
    "headers": 0x2000,
    "delivery_mode": 0x1000,
    "priority": 0x0800,
    "correlation_id": 0x0400,
    "reply_to": 0x0200,
    "expiration": 0x0100,
    "message_id": 0x0080,
    "timestamp": 0x0040,
    "type": 0x0020,
    "user_id": 0x0010,
    "app_id": 0x0008,
    "cluster_id": 0x0004,
}
STRINGS = [name for name in FLAGS if name not in {"headers", "delivery_mode", "priority", "timestamp"}]

anything = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(STRINGS, strategies.shortstrs | strategies.escaped),
        "headers": strategies.tables,
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 255),
        "timestamp": st.integers(0, 2**64 - 1),
    },
)
# pamqp leaves empty strings out, has an empty cluster_id always, reads timestamps above 2^32 as milliseconds, and calls
# the type `message_type`.
what_pamqp_takes = st.fixed_dictionaries(
    {},
    optional={
        **{name: strategies.shortstrs.filter(bool) for name in STRINGS if name != "cluster_id"},
        "headers": strategies.pamqp_tables,
        "delivery_mode": st.sampled_from([1, 2]),
        "priority": st.integers(0, 255),
        "timestamp": st.integers(0, 2**32 - 1).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    },
)


def as_dict(properties: object) -> dict[str, object]:
    present = {name: getattr(properties, name) for name in FLAGS if getattr(properties, name, None) is not None}
    if isinstance(stamp := present.get("timestamp"), datetime):
        present["timestamp"] = int(stamp.timestamp())
    return present


def as_dict_from_pamqp(properties: Basic.Properties) -> dict[str, object]:
    present = {"type" if name == "message_type" else name: value for name, value in properties}
    assert present.pop("cluster_id") == ""
    return as_dict(SimpleNamespace(**present))


def plain(values: dict[str, object]) -> dict[str, object]:
    return as_dict(SimpleNamespace(**values))


@given(anything)
def test_properties_come_back_the_same_when_packed_and_read(values: dict) -> None:
    properties = Properties(**values)
    raw = properties.encode()
    assert struct.unpack(">H", raw[:2])[0] == sum(FLAGS[name] for name in values)
    back = decode_properties(raw)
    assert as_dict(back) == values
    assert back == properties
    assert back.encode() == raw


@given(what_pamqp_takes)
def test_pamqp_reads_the_same_when_we_wrote_it(values: dict) -> None:
    content = pamqp_header.ContentHeader()
    content.unmarshal(struct.pack(">HHQ", 60, 0, 0) + Properties(**values).encode())
    assert as_dict_from_pamqp(content.properties) == plain(values)


@given(what_pamqp_takes)
def test_we_read_the_same_when_pamqp_wrote_it(values: dict) -> None:
    raw = Basic.Properties(**{"message_type" if name == "type" else name: v for name, v in values.items()}).marshal()
    assert as_dict(decode_properties(raw)) == plain(values)
    if "headers" not in values:
        assert raw == Properties(**values).encode()


@pytest.mark.parametrize("name", FLAGS)
def test_only_its_flag_and_value_are_packed_when_one_property_is_set(name: str) -> None:
    value = {"headers": {}, "delivery_mode": 2, "priority": 9, "timestamp": 5}.get(name, "text")
    values: dict[str, Any] = {name: value}
    raw = Properties(**values).encode()
    wire = {"headers": bytes(4), "delivery_mode": b"\x02", "priority": b"\x09", "timestamp": (5).to_bytes(8)}
    assert raw == struct.pack(">H", FLAGS[name]) + wire.get(name, b"\x04text")


def test_two_bytes_are_packed_when_there_are_no_properties() -> None:
    assert Properties().encode() == b"\x00\x00"
    assert as_dict(decode_properties(b"\x00\x00")) == {}


def test_an_empty_string_is_a_value_when_packed() -> None:
    assert decode_properties(Properties(reply_to="").encode()).reply_to == ""


@pytest.mark.parametrize(
    ("timestamp", "seconds"),
    [
        (0, 0),
        (2**64 - 1, 2**64 - 1),
        (datetime(2026, 11, 23, 12, tzinfo=UTC), 1795435200),
        (datetime(2026, 11, 23, 12, 0, 0, 999_999, tzinfo=UTC), 1795435200),
    ],
)
def test_timestamp_is_whole_seconds_and_stays_a_number_when_read(timestamp: Any, seconds: int) -> None:
    assert decode_properties(Properties(timestamp=timestamp).encode()).timestamp == seconds


# ---------------------------------------------------------------------------------------------- refusals

SECRET = "hunter2-secret"


@pytest.mark.parametrize("name", STRINGS)
@pytest.mark.parametrize("length", [128, 255])
def test_string_is_refused_when_over_255_bytes_and_counts_bytes_and_not_characters(name: str, length: int) -> None:
    long: dict[str, Any] = {name: "é" * length}
    longest: dict[str, Any] = {name: "é" * 127}
    with pytest.raises(EncodeFailed, match=rf"{name}.*{2 * length} bytes.*255"):
        Properties(**long).encode()
    assert len(Properties(**longest).encode()) == 2 + 1 + 254


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"priority": 256}, ["priority", "255", "256"]),
        ({"priority": -1}, ["priority", "255", "-1"]),
        ({"priority": 10**30}, ["priority", "255", "int"]),
        ({"priority": SECRET}, ["priority", "str"]),
        ({"priority": 1.0}, ["priority", "float"]),
        ({"delivery_mode": 0}, ["delivery_mode", "1", "2", "0"]),
        ({"delivery_mode": 3}, ["delivery_mode", "1", "2", "3"]),
        ({"delivery_mode": SECRET}, ["delivery_mode", "str"]),
        ({"delivery_mode": 2.0}, ["delivery_mode", "float"]),
        ({"timestamp": -1}, ["timestamp"]),
        ({"timestamp": 2**64}, ["timestamp", "2^64-1"]),
        ({"timestamp": 1.5}, ["timestamp", "whole seconds"]),
        ({"timestamp": SECRET}, ["timestamp"]),
        ({"timestamp": datetime(2026, 1, 1)}, ["timestamp", "time zone"]),
        ({"timestamp": datetime(1969, 1, 1, tzinfo=UTC)}, ["timestamp", "1970"]),
        ({"headers": SECRET}, ["headers", "str"]),
        ({"headers": 5}, ["headers", "int"]),
        ({"headers": {"token": object()}}, ["token", "object"]),
        ({"headers": {5: SECRET}}, ["headers", "int"]),
        *(({name: 5}, [name, "int"]) for name in STRINGS),
        *(({name: f"\ud800{SECRET}"}, [name, "UTF-8"]) for name in STRINGS),
    ],
    ids=lambda value: (
        "-".join(f"{k}-{type(v).__name__}-{v!r:.20}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_refusal_names_property_and_limit_and_no_secret_when_a_value_does_not_fit(
    values: dict[str, Any], says: list[str]
) -> None:
    with pytest.raises(EncodeFailed) as caught:
        Properties(**values).encode()
    for text in says:
        assert text in str(caught.value)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value)).split("EncodeFailed:", 1)[1]


def test_an_unknown_property_is_refused_when_constructed() -> None:
    unknown: dict[str, Any] = {"correlationid": "x"}
    with pytest.raises(TypeError, match="correlationid"):
        Properties(**unknown)


@pytest.mark.parametrize("case", malformed.PROPERTIES, ids=lambda case: case.name)
def test_error_is_typed_and_names_the_value_when_properties_are_malformed(case: Block) -> None:
    with pytest.raises(TableSyntaxError) as caught:
        decode_properties(case.data, **case.limits)
    assert caught.value.reply_code == 502
    for text in case.says:
        assert text in str(caught.value)


def test_every_shorter_block_is_refused_when_a_valid_one_is_cut() -> None:
    values = dict.fromkeys(STRINGS, "text")
    raw = Properties(**values, headers={"a": 1}, delivery_mode=2, priority=0, timestamp=0).encode()
    for n in range(len(raw)):
        with pytest.raises(TableSyntaxError):
            decode_properties(raw[:n])


def test_names_are_shown_and_values_are_not_when_printed() -> None:
    assert repr(Properties(user_id="guest", headers={"token": SECRET})) == "Properties(headers, user_id)"


def test_properties_are_equal_when_their_values_are_and_cannot_be_hashed() -> None:
    assert Properties(type="a", priority=1) == Properties(type="a", priority=1)
    assert Properties(type="a") != Properties(type="b")
    assert Properties() != "Properties()"
    with pytest.raises(TypeError, match="unhashable"):
        hash(Properties())
