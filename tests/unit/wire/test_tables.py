"""Field tables: every RabbitMQ type both ways, against pamqp, and what is refused."""

from __future__ import annotations

import collections
import contextlib
import math
import random
import struct
import traceback
import types
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import decode as pamqp_decode
from pamqp import encode as pamqp_encode
from tests.corpus import malformed, strategies
from tests.corpus.frames import longstr, shortstr

from leveret.errors import EncodeFailed, TableSyntaxError
from leveret.wire.decoding import decode_table
from leveret.wire.encoding import FieldValue, encode_table
from leveret.wire.properties import Properties

if TYPE_CHECKING:
    from tests.corpus.malformed import Block


def same(a: object, b: object) -> bool:
    """Equality that tells True from 1 and 1 from 1.0, and looks into lists and dicts."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def thawed(value: object) -> object:
    """The same value with bytes where pamqp has bytearray."""
    if isinstance(value, list):
        return [thawed(item) for item in value]
    if isinstance(value, dict):
        return {key: thawed(item) for key, item in value.items()}
    return bytes(value) if isinstance(value, bytearray) else value


# ---------------------------------------------------------------------------------------------- both ways


@given(strategies.tables)
def test_table_comes_back_the_same_when_packed_and_read(table: dict) -> None:
    assert same(decode_table(encode_table(table)), table)


@given(strategies.typed_values)
def test_value_has_its_wire_type_and_comes_back_when_the_type_is_spelled_out(pair: tuple) -> None:
    sent, received = pair
    raw = encode_table({"k": sent})
    assert raw[6:7] == sent.type.encode()
    assert same(decode_table(raw)["k"], received)


@given(st.lists(strategies.typed_values, max_size=5))
def test_values_come_back_in_order_when_spelled_out_in_an_array(pairs: list) -> None:
    raw = encode_table({"k": [sent for sent, _ in pairs]})
    assert same(decode_table(raw)["k"], [received for _, received in pairs])


@given(strategies.pamqp_tables)
def test_table_is_read_as_it_was_when_pamqp_wrote_it(table: dict) -> None:
    assert same(decode_table(pamqp_encode.field_table(table)), thawed(table))


# Here a float takes 8 bytes and an int 4 or 8, as in RabbitMQ's own clients; pamqp takes fewer where the value allows.
# So the values are compared and not the bytes.
@given(strategies.pamqp_tables)
def test_pamqp_reads_it_as_it_was_when_we_wrote_it(table: dict) -> None:
    raw = encode_table(table)
    consumed, read = pamqp_decode.field_table(raw)
    assert consumed == len(raw)
    assert same(thawed(read), thawed(table))


def pamqp_agrees(pair: tuple[FieldValue, Any]) -> bool:
    """False where pamqp reads something else: see strategies.pamqp_leaves, and L, which it takes for signed."""
    sent, received = pair
    match sent.type:
        case "L":
            return received < 2**63
        case "T":
            return received.year < 2106
        case "S":
            return received.isascii()
        case "A" | "F":  # covered by the tables above
            return False
    return True


@given(strategies.typed_values.filter(pamqp_agrees))
def test_pamqp_reads_every_typed_value_when_we_wrote_it(pair: tuple) -> None:
    sent, received = pair
    _, read = pamqp_decode.field_table(encode_table({"k": sent}))
    assert same(thawed(read["k"]), received)


def test_order_of_keys_is_kept_when_packed() -> None:
    keys = [f"k{i}" for i in range(200)]
    random.Random(1).shuffle(keys)
    assert list(decode_table(encode_table(dict.fromkeys(keys)))) == keys


# ---------------------------------------------------------------------------------------------- which type


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        (None, b"V"),
        (True, b"t\x01"),
        (False, b"t\x00"),
        (0, b"I" + bytes(4)),
        (2**31 - 1, b"I\x7f\xff\xff\xff"),
        (-(2**31), b"I\x80\x00\x00\x00"),
        (2**31, b"l\x00\x00\x00\x00\x80\x00\x00\x00"),
        (-(2**31) - 1, b"l\xff\xff\xff\xff\x7f\xff\xff\xff"),
        (2**63 - 1, b"l\x7f\xff\xff\xff\xff\xff\xff\xff"),
        (-(2**63), b"l\x80" + bytes(7)),
        (1.5, b"d" + struct.pack(">d", 1.5)),
        ("é", b"S\x00\x00\x00\x02\xc3\xa9"),
        ("", b"S" + bytes(4)),
        (b"\xff", b"x\x00\x00\x00\x01\xff"),
        (bytearray(b"a"), b"x\x00\x00\x00\x01a"),
        (memoryview(b"a"), b"x\x00\x00\x00\x01a"),
        (datetime(1970, 1, 1, 0, 1, tzinfo=UTC), b"T" + (60).to_bytes(8)),
        (Decimal("-1.5"), b"D\x01\xff\xff\xff\xf1"),
        ([True, None], b"A\x00\x00\x00\x03t\x01V"),
        ((True, None), b"A\x00\x00\x00\x03t\x01V"),
        ({"a": None}, b"F\x00\x00\x00\x03\x01aV"),
        ([], b"A" + bytes(4)),
        ({}, b"F" + bytes(4)),
    ],
    ids=lambda value: f"{type(value).__name__}-{value!r}"[:40] if not isinstance(value, memoryview) else "memoryview",
)
def test_wire_type_follows_from_the_python_type_when_not_spelled_out(value: object, wire: bytes) -> None:
    assert encode_table({"k": value}) == longstr(b"\x01k" + wire)


@pytest.mark.parametrize(
    "table",
    [
        {"a": 1, "b": {"c": 2}},
        collections.OrderedDict(a=1, b=collections.OrderedDict(c=2)),
        types.MappingProxyType({"a": 1, "b": types.MappingProxyType({"c": 2})}),
        collections.UserDict({"a": 1, "b": collections.UserDict({"c": 2})}),
        collections.ChainMap[str, Any]({"a": 1}, {"b": {"c": 2}}),
    ],
    ids=lambda table: type(table).__name__,
)
def test_any_mapping_is_a_table_when_packed(table: Any) -> None:
    assert decode_table(encode_table(table)) == {"a": 1, "b": {"c": 2}}


def test_no_table_is_an_empty_table_when_packed() -> None:
    assert encode_table(None) == encode_table({}) == bytes(4)


# ---------------------------------------------------------------------------------------------- edges


@pytest.mark.parametrize("value", [0.0, -0.0, 5e-324, 1.7976931348623157e308])
def test_float_comes_back_bit_by_bit_when_it_is_special(value: float) -> None:
    back = decode_table(encode_table({"k": value}))["k"]
    assert struct.pack(">d", back) == struct.pack(">d", value)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda value: value,
        lambda value: FieldValue("d", value),
        lambda value: FieldValue("f", value),
        lambda value: [1, value],
        lambda value: {"a": {"b": [{"c": value}]}},
        lambda value: FieldValue("A", [FieldValue("F", {"x": FieldValue("f", value)})]),
    ],
    ids=["float", "d", "f", "array", "nested", "nested with types"],
)
def test_a_float_that_is_infinite_or_nan_is_refused_at_any_depth(value: float, wrap: Any) -> None:
    with pytest.raises(EncodeFailed, match=r"'\w': a float that is infinite or NaN"):
        encode_table({"k": wrap(value)})
    with pytest.raises(EncodeFailed, match="infinite or NaN"):
        Properties(headers={"k": wrap(value)}).encode()


@pytest.mark.parametrize("raw", [b"d\x7f\xf0" + bytes(6), b"f\x7f\xc0\0\0"])
def test_a_float_that_is_infinite_or_nan_is_read_when_a_peer_sends_one(raw: bytes) -> None:
    assert not math.isfinite(decode_table(longstr(b"\x01k" + raw))["k"])


@pytest.mark.parametrize("value", [1e39, -1e39, 3.5e38])
def test_a_finite_float_is_refused_when_it_would_be_infinite_as_a_single_one(value: float) -> None:
    with pytest.raises(EncodeFailed, match=r"'k'.*float.*'f'"):
        encode_table({"k": FieldValue("f", value)})


@pytest.mark.parametrize(
    ("value", "back"),
    [
        ("0", "0"),
        ("-0", "0"),
        ("0E-255", "0E-255"),
        ("1E-255", "1E-255"),
        ("2147483647", "2147483647"),
        ("-2147483648", "-2147483648"),
        ("-0.000000002147483648", "-2.147483648E-9"),
        ("1E+9", "1000000000"),
        ("0E+1000000", "0"),
        ("1.500", "1.500"),
    ],
)
def test_decimal_keeps_its_digits_and_scale_when_packed_and_read(value: str, back: str) -> None:
    read = decode_table(encode_table({"k": Decimal(value)}))["k"]
    assert read.as_tuple() == Decimal(back).as_tuple()


@pytest.mark.parametrize(
    "value",
    ["NaN", "sNaN", "Infinity", "-Infinity", "2147483648", "-2147483649", "1E+10", "1E-256", "1E+999999", "0E-256"],
)
def test_decimal_is_refused_when_it_does_not_fit(value: str) -> None:
    with pytest.raises(EncodeFailed, match=r"'k'.*Decimal.*'D'"):
        encode_table({"k": Decimal(value)})


def test_decimal_is_refused_at_once_when_it_has_a_million_digits() -> None:
    with pytest.raises(EncodeFailed, match="'k'"):
        encode_table({"k": Decimal((0, (9,) * 1_000_000, -3))})


def test_decimal_is_exact_when_its_scale_is_beyond_the_decimal_context() -> None:
    (value,) = decode_table(longstr(b"\x01kD\xff\x80\x00\x00\x00")).values()
    assert value.as_tuple() == (1, (2, 1, 4, 7, 4, 8, 3, 6, 4, 8), -255)


@pytest.mark.parametrize(
    ("seconds", "value"),
    [
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
        (2**32, datetime(2106, 2, 7, 6, 28, 16, tzinfo=UTC)),
        (253402300799, datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)),
        (253402300800, 253402300800),
        (2**63, 2**63),
        (2**64 - 1, 2**64 - 1),
    ],
)
def test_timestamp_is_a_number_when_datetime_has_no_such_year(seconds: int, value: object) -> None:
    assert same(decode_table(longstr(b"\x01kT" + seconds.to_bytes(8)))["k"], value)
    assert encode_table({"k": FieldValue("T", value)}) == longstr(b"\x01kT" + seconds.to_bytes(8))


def test_timestamp_is_the_same_instant_when_written_in_another_zone() -> None:
    summer = datetime(2026, 7, 1, 14, 0, 0, 999_999, tzinfo=timezone(timedelta(hours=2)))
    assert decode_table(encode_table({"k": summer}))["k"] == datetime(2026, 7, 1, 12, tzinfo=UTC)


def test_strings_come_back_when_they_are_no_utf8() -> None:
    raw = longstr(shortstr(b"\xffkey") + b"S" + longstr(b"\xc3\x28 \x00\xfe"))
    table = decode_table(raw)
    assert table == {"\udcffkey": "\udcc3( \x00\udcfe"}
    assert encode_table(table) == raw


def test_the_last_value_wins_when_a_key_repeats() -> None:
    assert decode_table(longstr(b"\x01kI\x00\x00\x00\x01\x00V\x01kI\x00\x00\x00\x02")) == {"k": 2, "": None}


# ---------------------------------------------------------------------------------------------- limits


def test_tables_and_arrays_are_read_when_nested_to_the_limit() -> None:
    for raw in (malformed.TABLE_NESTED_32_DEEP, malformed.ARRAYS_NESTED_TO_THE_LIMIT):
        assert encode_table(decode_table(raw)) == raw


def nested(depth: int, *, lists: bool) -> dict:
    inner: Any = {}
    for _ in range(depth - 1):
        inner = [inner] if lists else {"k": inner}
    return inner if isinstance(inner, dict) else {"k": inner[0]}


@pytest.mark.parametrize("lists", [False, True], ids=["tables", "arrays"])
def test_table_is_refused_when_nested_deeper_than_can_be_read(lists: bool) -> None:
    assert decode_table(encode_table(nested(32, lists=lists))) == nested(32, lists=lists)
    for depth in (33, 1000, 100_000):
        with pytest.raises(EncodeFailed, match=r"deeper.*32"):
            encode_table(nested(depth, lists=lists))


def test_table_is_refused_when_it_contains_itself() -> None:
    table: dict = {}
    table["self"] = table
    array: list = []
    array.append(array)
    for value in (table, {"k": array}):
        with pytest.raises(EncodeFailed, match=r"deeper.*32"):
            encode_table(value)


def test_limits_count_exactly_when_given() -> None:
    raw = encode_table({"a": [1, 2], "b": {}})
    assert decode_table(raw, max_depth=2, max_entries=4) == {"a": [1, 2], "b": {}}
    with pytest.raises(TableSyntaxError, match="limit of 1"):
        decode_table(raw, max_depth=1)
    with pytest.raises(TableSyntaxError, match="limit of 3"):
        decode_table(raw, max_entries=3)
    assert decode_table(malformed.TABLE_OF_16384_ENTRIES) == {"a": [None] * 16383}


@pytest.mark.parametrize("case", malformed.TABLES, ids=lambda case: case.name)
def test_error_is_typed_and_names_limit_and_value_when_table_is_malformed(case: Block) -> None:
    with pytest.raises(TableSyntaxError) as caught:
        decode_table(case.data, **case.limits)
    assert caught.value.reply_code == 502
    for text in case.says:
        assert text in str(caught.value)


def test_every_shorter_table_is_refused_when_a_valid_one_is_cut() -> None:
    raw = encode_table({"a": [1, {"b": "text", "c": 1.0}], "d": Decimal("1.5"), "e": b"x", "f": None, "g": True})
    for n in range(len(raw)):
        with pytest.raises(TableSyntaxError):
            decode_table(raw[:n])
        # The same cut with a length that says so ends inside a value, or between two.
        if n >= 4:
            with contextlib.suppress(TableSyntaxError):
                decode_table(longstr(raw[4:n]))


# ---------------------------------------------------------------------------------------------- refusals

SECRET = "hunter2-secret"


def refusal(table: Any) -> str:
    """The text of the refusal, after checking that no value is in it or in what caused it."""
    with pytest.raises(EncodeFailed) as caught:
        encode_table(table)
    shown = "".join(traceback.format_exception_only(caught.value))
    cause = caught.value.__cause__
    while cause is not None:
        shown += str(cause)
        cause = cause.__cause__
    assert "hunter2" not in shown
    return str(caught.value)


class Secret:
    def __repr__(self) -> str:
        return SECRET


@pytest.mark.parametrize(
    ("value", "names"),
    [
        (2**63, ["int"]),
        (-(2**63) - 1, ["int"]),
        (Secret(), ["Secret"]),
        (object(), ["object"]),
        (1j, ["complex"]),
        (frozenset([SECRET]), ["frozenset"]),
        ([[Secret()]], ["Secret"]),
        (datetime(2026, 1, 1), ["time zone"]),
        (datetime(1969, 12, 31, tzinfo=UTC), ["datetime", "'T'"]),
        (f"\ud800{SECRET}", ["UTF-8"]),
        (FieldValue("S", Secret()), ["Secret"]),
        (FieldValue("S", 5), ["int"]),
        (FieldValue("x", 5), ["int"]),
        (FieldValue("d", SECRET), ["str", "'d'"]),
        (FieldValue("f", SECRET), ["str", "'f'"]),
        (FieldValue("D", SECRET), ["str", "'D'"]),
        (FieldValue("D", 5), ["int", "'D'"]),
        (FieldValue("T", SECRET), ["str", "'T'"]),
        (FieldValue("T", 1.5), ["float", "'T'"]),
        (FieldValue("T", -1), ["int", "'T'"]),
        (FieldValue("T", 2**64), ["int", "'T'"]),
        (FieldValue("A", 5), ["int", "'A'"]),
        (FieldValue("A", None), ["NoneType", "'A'"]),
        (FieldValue("F", SECRET), ["str"]),
        (FieldValue("F", 5), ["int"]),
        *((FieldValue(kind, SECRET), ["str", f"'{kind}'"]) for kind in "bBsuIilL"),
        # A fraction must not be lost in silence.
        *((FieldValue(kind, 1.5), ["float", f"'{kind}'"]) for kind in "bBsuIilL"),
        *((FieldValue(kind, None), ["NoneType", f"'{kind}'"]) for kind in "bBsuIilLdfDT"),
        *((FieldValue(kind, -1), ["int", f"'{kind}'"]) for kind in "BuiL"),
        *(
            (FieldValue(kind, 2**bits), ["int", f"'{kind}'"])
            for kind, bits in zip("BuiL", (8, 16, 32, 64), strict=True)
        ),
        *(
            (FieldValue(kind, 2**bits), ["int", f"'{kind}'"])
            for kind, bits in zip("bsIl", (7, 15, 31, 63), strict=True)
        ),
        *(
            (FieldValue(kind, -(2**bits) - 1), ["int", f"'{kind}'"])
            for kind, bits in zip("bsIl", (7, 15, 31, 63), strict=True)
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_refusal_names_key_and_type_and_never_the_value_when_it_does_not_fit(value: object, names: list[str]) -> None:
    text = refusal({"ok": 1, "the-key": value})
    assert "the-key" in text
    for name in names:
        assert name in text


@pytest.mark.parametrize("key", ["k" * 256, "é" * 128, "k" * 100_000])
def test_key_is_refused_when_over_255_bytes_of_utf8(key: str) -> None:
    with pytest.raises(EncodeFailed, match=rf"{len(key.encode())} bytes.*255") as caught:
        encode_table({key: 1})
    assert len(str(caught.value)) < 200, "a long key is cut in the text"
    assert decode_table(encode_table({key[:127]: 1})) == {key[:127]: 1}


@pytest.mark.parametrize("key", [1, None, b"k", ("k",)])
def test_key_is_refused_when_it_is_no_string(key: Any) -> None:
    with pytest.raises(EncodeFailed, match=type(key).__name__):
        encode_table({key: 1})


@pytest.mark.parametrize(
    "table", [5, "text", b"bytes", [1], object(), (("a",),)], ids=lambda table: type(table).__name__
)
def test_table_is_refused_when_it_is_no_mapping(table: Any) -> None:
    with pytest.raises(EncodeFailed, match=f"mapping.*{type(table).__name__}"):
        encode_table(table)


def test_errors_of_foreign_code_pass_unchanged_when_a_mapping_raises() -> None:
    class Broken(collections.UserDict):
        def __iter__(self) -> Any:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        encode_table({"k": Broken(a=1)})


# ---------------------------------------------------------------------------------------------- FieldValue


@pytest.mark.parametrize("kind", ["", "Z", "SS", 5, None, b"S"])
def test_field_value_is_refused_when_its_type_is_unknown(kind: Any) -> None:
    with pytest.raises(EncodeFailed, match="t b B s u I i l L f d D S A T F V x"):
        FieldValue(kind, 1)


def test_field_values_are_equal_and_hash_alike_when_type_and_value_are() -> None:
    assert FieldValue("I", 1) == FieldValue("I", True)
    assert hash(FieldValue("I", 1)) == hash(FieldValue("I", True))
    assert FieldValue("I", 1) != FieldValue("l", 1)
    assert FieldValue("I", 1) != 1
    assert hash(FieldValue("A", [])) == hash(FieldValue("A", []))
    assert repr(FieldValue("I", 1)) == "FieldValue('I', 1)"
