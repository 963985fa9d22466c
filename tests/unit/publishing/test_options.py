"""Options of a publishing: what is packed, what may be packed once, and what is refused."""

from __future__ import annotations

from collections import OrderedDict
from copy import copy
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpus import strategies

from leveret.errors import ConfigurationError, EncodeFailed, LeveretError
from leveret.publishing.builder import MessageBuilder
from leveret.publishing.options import OPTIONS, PublishOptions, pack_properties, repeats
from leveret.publishing.template import PublishTemplate
from leveret.wire.encoding import FieldValue
from leveret.wire.properties import decode_properties

assert strategies  # its import loads the hypothesis profile


MUTABLE = [[1], {"a": 1}, bytearray(b"x"), FieldValue("b", 1), Decimal(1), datetime(2026, 1, 1, tzinfo=UTC)]


#: Values that are equal to others of another type or sign, and values that are no use at all.
ALIKE = [0, 1, 2, False, True, 0.0, -0.0, 1.0, 2.0, "", "1", b"", b"1", None, float("nan"), 10**30, -1, "x" * 300]


scalars = st.sampled_from(ALIKE) | st.integers(-3, 3) | st.floats(-2, 2)


anything = scalars | st.sampled_from(MUTABLE)


tables = st.one_of(
    st.none(),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), anything, max_size=3),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), scalars, max_size=3).map(MappingProxyType),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), scalars, max_size=3).map(OrderedDict),
    st.sampled_from(MUTABLE).map(copy),  # a test adds to its headers
)


option_names = st.sampled_from(sorted(OPTIONS - {"headers"}))


some_options = st.builds(
    lambda options, headers, has, first: (
        {"headers": headers, **options} if has and first else {**options, "headers": headers} if has else options
    ),
    st.dictionaries(option_names, anything, max_size=3),
    tables,
    st.booleans(),
    st.booleans(),
)


def packed(routing_key: str, options: Any) -> tuple[bytes, bool, str] | str:
    """What goes out with these options: properties, mandatory bit and exchange; or what is wrong with them."""
    try:
        template = PublishTemplate(
            options.get("exchange", "default"),
            routing_key,
            pack_properties(options, content_type="text/plain", delivery_mode=2),
            mandatory=options.get("mandatory", False),
        )
    except (LeveretError, TypeError, OverflowError) as error:
        return type(error).__name__
    return template.raw_properties, template.mandatory, template.exchange


@settings(max_examples=1000)
@given(first=some_options, second=some_options, keys=st.tuples(*[st.sampled_from(["", "k"])] * 2))
def test_equal_keys_mean_equal_bytes(first: Any, second: Any, keys: tuple[str, str]) -> None:
    one, other = repeats(keys[0], first), repeats(keys[1], second)
    if one is not None and one == other:
        assert keys[0] == keys[1]
        assert packed(keys[0], first) == packed(keys[1], second)


@given(options=some_options, value=anything, place=st.integers(0, 3), data=st.data())
def test_equal_keys_mean_equal_bytes_when_one_value_differs(
    options: Any, value: object, place: int, data: st.DataObject
) -> None:
    # Options of which one value is another that may be equal to it: what random pairs seldom are.
    changed: Any = dict(options)
    if isinstance(options.get("headers"), dict) and options["headers"] and place:
        headers = dict(options["headers"])
        headers[data.draw(st.sampled_from(sorted(headers)))] = value
        changed["headers"] = headers
    elif options:
        changed[data.draw(st.sampled_from(sorted(options)))] = value
    one, other = repeats("k", options), repeats("k", changed)
    if one is not None and one == other:
        assert packed("k", options) == packed("k", changed)


@given(options=some_options)
def test_a_key_stays_what_it_is_when_the_options_change_later(options: Any) -> None:
    headers = options.get("headers")
    key = repeats("k", options)
    same: Any = dict(options)
    again = repeats("k", same)
    if key is not None:
        hash(key)
        assert key == again or any(value != value for value in (*options.values(), *(headers or {}).values()))
        if isinstance(headers, dict):
            headers["added"] = 1
            assert repeats("k", options) != key


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"priority": 1}, {"priority": True}),
        ({"priority": 1}, {"priority": 1.0}),
        ({"mandatory": 1}, {"mandatory": True}),
        ({"headers": {"a": 1}}, {"headers": {"a": True}}),
        ({"headers": {"a": 1}}, {"headers": {"a": 1.0}}),
        ({"headers": {"a": 0}}, {"headers": {"a": False}}),
        ({"headers": {"a": ""}}, {"headers": {"a": b""}}),
        ({"headers": {"a": 1, "b": 2}}, {"headers": {"b": 2, "a": 1}}),
        ({"headers": {"a": 1, "b": 2}}, {"headers": {"a": 2, "b": 1}}),
        ({"headers": {}}, {"headers": None}),
        ({"headers": {}}, {}),
        ({"headers": {"app_id": "x"}}, {"app_id": "x"}),
        ({"type": "x"}, {"app_id": "x"}),
        ({"type": None}, {}),
    ],
)
def test_keys_differ_when_the_bytes_may(first: PublishOptions, second: PublishOptions) -> None:
    assert repeats("k", first) != repeats("k", second)
    assert repeats("k", first) is not None


@pytest.mark.parametrize(
    "options",
    [
        {"message_id": "1"},
        {"correlation_id": "1"},
        {"timestamp": 1},
        {"confirm_timeout": 1.0},
        {"headers": {"a": [1]}},
        {"headers": {"a": {"b": 1}}},
        {"headers": {"a": bytearray(b"x")}},
        {"headers": {"a": FieldValue("b", 1)}},
        {"headers": {"a": 0.0}},
        {"headers": {"a": -0.0}},
        {"headers": {"a": Decimal(1)}},
        {"headers": OrderedDict(a=1)},
        {"headers": MappingProxyType({"a": 1})},
        {"headers": 5},
        {"type": type("Text", (str,), {})("x")},
        {"priority": [1]},
    ],
    ids=repr,
)
def test_options_that_hardly_repeat_or_may_change_are_not_kept(options: Any) -> None:
    assert repeats("k", options) is None


def test_the_routing_key_and_the_order_are_part_of_the_key() -> None:
    assert repeats("a", {"priority": 1}) != repeats("b", {"priority": 1})
    assert repeats("a", {"priority": 1}) == repeats("a", {"priority": 1})
    assert repeats("a", {"priority": 1, "type": "x"}) is not None


def test_what_is_said_goes_over_the_defaults() -> None:
    raw = pack_properties({"content_type": "a/b", "priority": 3}, content_type="text/plain", delivery_mode=2)
    properties = decode_properties(raw)
    assert (properties.content_type, properties.priority, properties.delivery_mode) == ("a/b", 3, 2)


def test_a_default_is_left_out_when_none_is_said() -> None:
    properties = decode_properties(pack_properties({"content_type": None}, content_type="text/plain"))
    assert properties.content_type is None


def test_what_is_no_property_is_left_out() -> None:
    assert pack_properties({"exchange": "e", "mandatory": True, "confirm_timeout": 1.0}) == b"\x00\x00"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (-0.0, "0"), (1, "1000"), (0.001, "1"), (0.0004, "0"), (1.5, "1500"), (4294967.295, "4294967295")],
)
def test_an_expiration_is_seconds_here_and_milliseconds_there(seconds: float, text: str) -> None:
    assert decode_properties(pack_properties({"expiration": seconds})).expiration == text


@pytest.mark.parametrize("seconds", [-1, -0.001, 4294967.296, float("nan"), float("inf"), True, "1", [1], 1j])
def test_an_expiration_is_refused_when_it_is_no_number_of_seconds_in_range(seconds: Any) -> None:
    with pytest.raises(EncodeFailed, match=r"expiration is 0 to 4294967\.295 seconds"):
        pack_properties({"expiration": seconds})


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 256},
        {"priority": -1},
        {"priority": "1"},
        {"delivery_mode": 300},
        {"headers": {"a": ...}},
        {"headers": {1: "a"}},
        {"headers": 5},
        {"timestamp": "now"},
        {"timestamp": -1},
        {"message_id": "m" * 256},
        {"content_type": 5},
    ],
    ids=repr,
)
def test_a_value_is_refused_when_it_does_not_fit_its_property(options: Any) -> None:
    with pytest.raises(EncodeFailed):
        pack_properties(options)


def test_an_option_is_refused_and_named_when_there_is_none_of_that_name() -> None:
    with pytest.raises(ConfigurationError, match="no option 'a_first'") as refused:
        pack_properties({"unknown": 1, "a_first": 2, "priority": 3})  # type: ignore[typeddict-unknown-key]
    assert refused.value.option == "a_first"


async def test_a_publishing_without_a_producer_says_so() -> None:
    with pytest.raises(ConfigurationError, match="belongs to no producer"):
        await MessageBuilder(1).publish()
    with pytest.raises(ConfigurationError, match="belongs to no producer"):
        MessageBuilder(1).publish_nowait()


def test_what_is_said_call_by_call_is_what_is_published() -> None:
    message = (
        MessageBuilder(1).exchange("e").routing_key("k").header("a", 1).headers({"b": 2}).persistent().priority(3)
        .expiration(1.5).content_type("a/b").content_encoding("gzip").correlation_id("c").reply_to("r")
        .message_id("m").timestamp(5).type("t").user_id("u").app_id("p").mandatory().confirm_timeout(2)
    )  # fmt: skip
    assert message.key == "k"
    assert message.options.keys() == OPTIONS
    assert message.options["headers"] == {"a": 1, "b": 2}
    assert MessageBuilder(1).queue("q").options == {"exchange": ""}
    assert MessageBuilder(1).transient().options == {"delivery_mode": 1}
