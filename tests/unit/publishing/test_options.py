"""Options of a publishing: how they are packed, and what is refused."""

from __future__ import annotations

import tracemalloc
from collections import OrderedDict
from copy import copy
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpus import strategies

from leveret.codecs.encoding import BodyEncoder
from leveret.errors import ConfigurationError, EncodeFailed, LeveretError
from leveret.plugins.registry import PluginRegistry
from leveret.publishing.builder import MessageBuilder
from leveret.publishing.options import OPTIONS, milliseconds
from leveret.publishing.packing import Packer
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.template import PublishTemplate
from leveret.settings import ProducerSettings
from leveret.wire.buffers import SendBuffer
from leveret.wire.encoding import FieldValue
from leveret.wire.properties import Properties, decode_properties

if TYPE_CHECKING:
    from collections.abc import Callable

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


REGISTRY = PluginRegistry.from_plugins()


def packer(**chosen: Any) -> Packer:
    """What packs the messages of a producer of text with these options."""
    producer = ProducerSettings(**{"serializer": "text", "exchange": "orders", **chosen})
    encoder = BodyEncoder(REGISTRY, producer)
    made = Packer(producer, encoder, encoder.encode)
    made.frame_max = 131_072
    return made


def frames(options: Any, routing_key: Any = "k", **chosen: Any) -> PublishTemplate:
    return packer(**chosen).pack("body", routing_key, options)[0]


def properties(options: Any, **chosen: Any) -> Properties:
    return decode_properties(frames(options, **chosen).raw_properties)


def shown(make: Callable[[], PublishTemplate]) -> object:
    """What goes out with a template: properties, mandatory bit and names; or what is wrong with it."""
    try:
        made = make()
    except LeveretError as error:
        return type(error), str(error)
    return made.raw_properties, made.mandatory, made.exchange, made.routing_key


def test_the_frames_of_routing_keys_are_kept_up_to_4_mib_and_then_given_up_at_once() -> None:
    packs = packer()
    # Names of one length, so that all have frames of one size.
    keys = iter(f"{number:0255}" for number in range(100_000))
    first = next(keys)
    kept = packs.check(first, {})
    assert kept is not None
    PublishBatch(out := SendBuffer(lambda: None, lambda: None), None).add(kept, b"")
    # The frames, and 300 bytes beside them.
    most = -(-4_194_304 // (len(out) + 300))
    for _ in range(most - 1):
        last = next(keys)
        packs.check(last, {})
    assert packs.check(last, {}) is packs.check(last, {})
    assert packs.check(first, {}) is kept
    # As many that find no room are packed anew each time.
    for _ in range(most - 1):
        packs.check(next(keys), {})
    assert packs.check(first, {}) is kept
    other = packs.check(next(keys), {})
    assert other is not None
    assert packs.check(other.routing_key, {}) is other
    assert packs.check(first, {}) is not kept


@settings(max_examples=500)
@given(options=some_options)
def test_a_message_is_packed_as_its_properties_are(options: Any) -> None:
    plain = {"exchange", "mandatory", "confirm_timeout", "expiration"}

    def by_properties() -> PublishTemplate:
        given = {"content_type": "text/plain", "delivery_mode": 2, **options}
        if options.get("expiration") is not None:
            given["expiration"] = milliseconds(options["expiration"])
        given = {name: value for name, value in given.items() if name not in plain - {"expiration"}}
        if type(options.get("mandatory", True)) is not bool:
            raise EncodeFailed(f"mandatory is True or False, not {type(options['mandatory']).__name__}")
        if not isinstance(options.get("exchange", ""), str):
            raise EncodeFailed(f"exchange is text, not {type(options['exchange']).__name__}")
        return PublishTemplate(
            options.get("exchange", "orders"),
            "k",
            Properties(**given).encode(),
            mandatory=options.get("mandatory", True),
        )

    made = shown(lambda: frames(options))
    expected = shown(by_properties)
    # Of two things that are wrong either may be named.
    assert made == expected or (isinstance(made[0], type) and made[0] is expected[0])  # type: ignore[index]


@given(options=some_options, other=some_options)
def test_nothing_of_a_message_is_left_in_the_next_one(options: Any, other: Any) -> None:
    used = packer()
    before = shown(lambda: used.pack("body", "first", options)[0])
    assert shown(lambda: used.pack("body", "k", other)[0]) == shown(lambda: frames(other))
    assert shown(lambda: used.pack("body", "first", options)[0]) == before


def test_a_value_that_publishes_while_it_is_packed_disturbs_nothing() -> None:
    used = packer()
    inner: list[PublishTemplate] = []

    class Publishing(dict[str, Any]):
        """Headers whose own code publishes."""

        def keys(self) -> Any:
            inner.append(used.pack("body", "inner", {"headers": {"b": "x" * 1000}, "type": "inner"})[0])
            return super().keys()

        def __iter__(self) -> Any:
            return iter(list(super().keys()))

    headers = MappingProxyType(Publishing(a=1))
    made, _ = used.pack("body", "outer", {"headers": headers, "type": "outer"})
    assert (made.routing_key, made.raw_properties) == (
        "outer",
        frames({"headers": {"a": 1}, "type": "outer"}).raw_properties,
    )
    assert all(decode_properties(one.raw_properties).type == "inner" for one in inner)


def test_names_of_options_need_not_be_interned() -> None:
    name = "".join(["prio", "rity"])
    assert properties({name: 7}).priority == 7
    assert properties({type("Text", (str,), {})("priority"): 7}).priority == 7


def test_what_is_said_goes_over_the_defaults() -> None:
    said = properties({"content_type": "a/b", "priority": 3})
    assert (said.content_type, said.priority, said.delivery_mode) == ("a/b", 3, 2)


def test_a_default_is_left_out_when_none_is_said() -> None:
    assert properties({"content_type": None, "delivery_mode": None}) == Properties()


def test_what_is_no_property_is_left_out() -> None:
    made = frames({"exchange": "e", "mandatory": False, "content_type": None, "delivery_mode": None})
    assert (made.raw_properties, made.exchange, made.mandatory) == (b"\x00\x00", "e", False)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0"), (-0.0, "0"), (1, "1000"), (0.001, "1"), (0.0004, "0"), (1.5, "1500"), (4294967.295, "4294967295")],
)
def test_an_expiration_is_seconds_here_and_milliseconds_there(seconds: float, text: str) -> None:
    assert properties({"expiration": seconds}).expiration == text


@pytest.mark.parametrize("seconds", [-1, -0.001, 4294967.296, float("nan"), float("inf"), True, "1", [1], 1j])
def test_an_expiration_is_refused_when_it_is_no_number_of_seconds_in_range(seconds: Any) -> None:
    with pytest.raises(EncodeFailed, match=r"expiration is 0 to 4294967\.295 seconds"):
        frames({"expiration": seconds})


@pytest.mark.parametrize(
    "options",
    [
        {"priority": 256},
        {"priority": -1},
        {"priority": 2**70},
        {"priority": "1"},
        {"delivery_mode": 0},
        {"delivery_mode": 3},
        {"delivery_mode": 300},
        {"headers": {"a": ...}},
        {"headers": {"a": float("inf")}},
        {"headers": {"a": 2**63}},
        {"headers": {1: "a"}},
        {"headers": {"a" * 256: 1}},
        {"headers": 5},
        {"timestamp": "now"},
        {"timestamp": -1},
        {"message_id": "m" * 256},
        {"content_type": 5},
        {"content_type": [5]},
        {"exchange": 5},
        {"exchange": "e" * 256},
        {"mandatory": 1},
    ],
    ids=repr,
)
@pytest.mark.parametrize("compressor", [None, "gzip"])
def test_a_value_is_refused_when_it_does_not_fit_its_property(options: Any, compressor: str | None) -> None:
    used = packer(compressor=compressor, compression_threshold=0)
    with pytest.raises(EncodeFailed):
        used.pack("body" * 100, "k", options)
    assert used.pack("body", "k", {})[0].routing_key == "k"


@pytest.mark.parametrize(
    ("key", "error"),
    [("k" * 255, None), ("k" * 256, "256 bytes"), ("\u00fc" * 128, "256 bytes"), ("\ud800", "UTF-8"), (5, "text")],
)
def test_a_routing_key_is_refused_when_it_does_not_fit(key: Any, error: str | None) -> None:
    if error is None:
        assert frames({}, key).routing_key == key
        return
    for options in ({}, {"priority": 1}):
        with pytest.raises(EncodeFailed, match=error):
            frames(options, key)


@pytest.mark.parametrize("count", [16_383, 16_384, 16_385])
@pytest.mark.parametrize("compressed", [False, True])
def test_headers_have_as_many_values_as_consumers_take(count: int, compressed: bool) -> None:
    used = packer(compressor="gzip" if compressed else None, compression_threshold=0)
    used.frame_max = 2**24
    options: Any = {"headers": {f"h{number}": number for number in range(count)}}
    if count + compressed > 16_384:
        with pytest.raises(EncodeFailed, match="limit of 16384 values"):
            used.pack("body" * 100, "k", options)
    else:
        made, _ = used.pack("body" * 100, "k", options)
        assert len(decode_properties(made.raw_properties).headers or {}) == count + compressed


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_properties_fit_one_frame(over: int) -> None:
    used = packer()
    size = len(used.pack("body", "k", {"headers": {"a": ""}})[0].raw_properties)
    text = "x" * (used.frame_max - 8 - 12 - size + over)
    if over > 0:
        with pytest.raises(EncodeFailed, match="take 131073 bytes; the negotiated frame_max is 131072"):
            used.pack("body", "k", {"headers": {"a": text}})
    else:
        assert used.pack("body", "k", {"headers": {"a": text}})[0]


@pytest.mark.parametrize("headers", [{}, {"a": 1}, {"original-size": "theirs", "a": 1}, MappingProxyType({"a": 1})])
@pytest.mark.parametrize("timed", [False, True])
def test_the_original_size_stands_beside_the_headers_of_the_caller(headers: Any, timed: bool) -> None:
    used = packer(compressor="gzip", compression_threshold=0, sent_at_header=timed)
    choices: list[Any] = [{"headers": headers}, {"headers": headers, "message_id": "m"}]
    for options in choices:
        made, _ = used.pack("body" * 100, "k", options)
        found = decode_properties(made.raw_properties)
        assert found.content_encoding == "gzip"
        own = {"original-size": 400} | ({"x-leveret-sent-at": 0} if timed else {})
        assert found.headers == {**headers, **own}
    made, _ = used.pack("body" * 100, "k", {})
    assert decode_properties(made.raw_properties).headers == own


def test_an_option_is_refused_and_named_when_there_is_none_of_that_name() -> None:
    with pytest.raises(ConfigurationError, match="no option 'a_first'") as refused:
        frames({"unknown": 1, "a_first": 2, "priority": 3})
    assert refused.value.option == "a_first"
    with pytest.raises(ConfigurationError, match="no option 'cluster_id'"):
        frames({"cluster_id": "c"})


def test_frames_of_routing_keys_take_bounded_memory() -> None:
    used = packer()
    tracemalloc.start()
    try:
        for number in range(100_000):
            used.pack("body", f"{number:0255}", {})
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 500_000 < kept < 4 * 1024 * 1024


def test_a_routing_key_gets_its_own_frames_whatever_was_packed_before() -> None:
    used = packer()
    keys = [f"order.{number % 5000}" for number in range(20_000)]
    assert [used.pack("body", key, {})[0].routing_key for key in keys] == keys


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
