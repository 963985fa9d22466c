"""Options: what is packed, what may be packed once, and what the producer does with them."""

from __future__ import annotations

import asyncio
import enum
import json
import random
from collections import OrderedDict
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpus import strategies
from tests.support.queues import taken

import leveret
from leveret import Outcome, Topology
from leveret.broker import EmbeddedBroker
from leveret.errors import ConfigurationError, EncodeFailed, LeveretError, PublishError, WrongLoopError
from leveret.publishing.builder import MessageBuilder
from leveret.publishing.options import OPTIONS, PublishOptions, pack_properties, repeats
from leveret.publishing.template import PublishTemplate
from leveret.wire.encoding import FieldValue
from leveret.wire.properties import decode_properties

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from leveret.publishing.producer import Producer

assert strategies  # its import loads the hypothesis profile

# ---------------------------------------------------------------------- repeated options

#: Values that are equal to others of another type or sign, and values that are no use at all.
ALIKE = [0, 1, 2, False, True, 0.0, -0.0, 1.0, 2.0, "", "1", b"", b"1", None, float("nan"), 10**30, -1, "x" * 300]
MUTABLE = [[1], {"a": 1}, bytearray(b"x"), FieldValue("b", 1), Decimal(1), datetime(2026, 1, 1, tzinfo=UTC)]
scalars = st.sampled_from(ALIKE) | st.integers(-3, 3) | st.floats(-2, 2)
anything = scalars | st.sampled_from(MUTABLE)
tables = st.one_of(
    st.none(),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), anything, max_size=3),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), scalars, max_size=3).map(MappingProxyType),
    st.dictionaries(st.sampled_from(["a", "b", "c"]), scalars, max_size=3).map(OrderedDict),
    st.sampled_from(MUTABLE),
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
    changed = dict(options)
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
    again = repeats("k", dict(options))
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


# ---------------------------------------------------------------------- packing


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


# ---------------------------------------------------------------------- who calls back


def with_serializer(tight_client: leveret.Client, encode: Callable[[Any], bytes], **options: Any) -> Producer:
    """A producer that encodes by this function."""
    producer = tight_client.producer(**options)
    producer._encode = producer._encoder.encode = encode
    return producer


async def test_a_serializer_may_publish_on_its_own_producer(tight_client: leveret.Client) -> None:
    inner = False

    def encode(value: Any) -> bytes:
        nonlocal inner
        if isinstance(value, int) and not inner:
            inner = True
            producer.publish_nowait(f"inner {value}", "q")
            inner = False
        return json.dumps(value).encode()

    async with with_serializer(tight_client, encode) as producer:
        await producer.publish("first", "q")
        for number in range(600):  # the ring of publishings grows meanwhile
            producer.publish_nowait(number, "q")
        assert await producer.publish_batch(range(600, 1200), "q")
        await producer.publish(1200, "q")
    values = await taken(tight_client, "q")
    assert [value for value in values if isinstance(value, int)] == list(range(1201))
    assert len(values) == 1 + 2 * 1201


async def test_headers_may_publish_on_the_producer_that_reads_them(tight_client: leveret.Client) -> None:
    class Headers(Mapping[str, int]):
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[str]:
            producer.publish_nowait("inner", "q")
            return iter(["a"])

        def __getitem__(self, name: str) -> int:
            return 1

    async with tight_client.producer() as producer:
        for number in range(10):
            await producer.publish(number, "q", headers=Headers())
    assert [value for value in await taken(tight_client, "q") if value != "inner"] == list(range(10))


@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_iterable_may_close_the_producer_that_reads_it(
    tight_client: leveret.Client, asynchronous: bool
) -> None:
    producer = await tight_client.producer(batch_size=10).open()
    closing: list[asyncio.Task[None]] = []

    def values() -> Iterator[int]:
        for number in range(1000):
            if number == 100:
                closing.append(asyncio.create_task(producer.close()))
            yield number

    async def slow_values() -> AsyncIterator[int]:
        for number in range(1000):
            if number == 100:
                await producer.close()
            yield number

    async with asyncio.timeout(10):
        result = await producer.publish_batch(slow_values() if asynchronous else values(), "q")
        await asyncio.gather(*closing)
    assert {type(error) for error in result.failures.values()} == {PublishError}
    assert {result.outcome(index) for index in result.failures} == {Outcome.NOT_SENT}
    assert len(await taken(tight_client, "q")) == result.confirmed


async def test_a_listener_may_publish_and_remove_itself(tight_client: leveret.Client) -> None:
    done = asyncio.Event()
    count = 0

    def listen(tag: int, multiple: bool) -> None:
        nonlocal count
        count += 1
        if count == 30:
            remove()
            done.set()
        else:
            producer.publish_nowait(count, "q")

    async with tight_client.producer() as producer:
        remove = producer.on_confirm(listen)
        await producer.publish(0, "q")
        async with asyncio.timeout(5):
            await done.wait()
        remove()
        await producer.flush()
        await producer.publish("unheard", "q")
    assert count == 30
    assert await taken(tight_client, "q") == [*range(30), "unheard"]


async def test_a_listener_that_fails_is_logged_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def listen(tag: int, multiple: bool) -> None:
        raise ValueError("the listener fails")

    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client, client.producer() as producer:
        await client.declare(Topology().queue("q"))
        heard: list[int] = []
        producer.on_confirm(listen)
        producer.on_confirm(lambda tag, multiple: heard.append(tag))
        producer.on_confirm(lambda tag, multiple: heard.append(-tag), nacks=True)
        assert (await producer.publish(1, "q")).outcome is Outcome.CONFIRMED
    assert heard == [1]
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["a confirm listener failed"]


async def test_values_fail_alone_when_the_serializer_raises_stop_iteration(tight_client: leveret.Client) -> None:
    def encode(value: Any) -> bytes:
        if value is None:
            return next(iter(()))
        return b"1"

    async with with_serializer(tight_client, encode) as producer:
        async with asyncio.timeout(5):
            result = await producer.publish_batch([1, None, 2, None], "q")
        assert (sorted(result.failures), result.confirmed) == ([1, 3], 2)
        assert {type(error) for error in result.failures.values()} == {EncodeFailed}
        with pytest.raises(EncodeFailed, match="StopIteration"):
            await producer.publish(None, "q")


async def test_every_call_is_refused_in_another_thread(tight_client: leveret.Client) -> None:
    async with tight_client.producer() as producer:
        await producer.publish(1, "q")
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: producer.publish(1, "q"),
            lambda: producer.publish(1, "q", priority=1),
            lambda: producer.enqueue(1, "q"),
            lambda: producer.publish_batch([1], "q"),
            producer.flush,
            producer.close,
        ]

        async def run(call: Callable[[], Awaitable[Any]]) -> None:
            await call()

        def elsewhere() -> None:
            for call in calls:
                with pytest.raises(WrongLoopError):
                    asyncio.run(run(call))
            with pytest.raises(WrongLoopError):
                producer.publish_nowait(1, "q")
            with pytest.raises(WrongLoopError):
                producer.publish_nowait(1, "q", priority=1)

        await asyncio.to_thread(elsewhere)
        await producer.publish(2, "q")
    assert await taken(tight_client, "q") == [1, 2]


# ---------------------------------------------------------------------- names and bits


class Key(enum.StrEnum):
    """Routing keys as programs name them."""

    QUEUE = "q"


async def test_members_of_a_str_enum_are_text(tight_client: leveret.Client) -> None:
    async with tight_client.producer() as producer:
        await producer.publish(1, Key.QUEUE)
        await producer.publish(2, Key.QUEUE, type=Key.QUEUE, headers={"a": Key.QUEUE})
        await producer.publish(3, "q", exchange=type("Name", (str,), {})(""))
        assert await producer.publish_batch([4], Key.QUEUE)
        await producer.publish(5, Key.QUEUE)
    assert await taken(tight_client, "q") == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("routing_key", "options", "text"),
    [
        (5, {}, "routing_key is text, not int"),
        (None, {}, "routing_key is text, not NoneType"),
        (["q"], {}, "routing_key is text, not list"),
        (b"q", {"priority": 1}, "routing_key is text, not bytes"),
        ("q", {"exchange": None}, "exchange is text, not NoneType"),
        ("q", {"mandatory": "no"}, "mandatory is True or False, not str"),
        ("q", {"mandatory": None}, "mandatory is True or False, not NoneType"),
    ],
)
async def test_a_name_or_bit_of_another_type_is_refused(
    tight_client: leveret.Client, routing_key: Any, options: Any, text: str
) -> None:
    async with tight_client.producer() as producer:
        for call in (
            lambda: producer.publish(1, routing_key, **options),
            lambda: producer.enqueue(1, routing_key, **options),
            lambda: producer.publish_batch([1], routing_key, **options),
        ):
            with pytest.raises(EncodeFailed, match=text):
                await call()
        with pytest.raises(EncodeFailed, match=text):
            producer.publish_nowait(1, routing_key, **options)
        with pytest.raises(EncodeFailed, match=text):
            producer.template(routing_key, **options)
        message = producer.message(2).routing_key(5 if routing_key is None else routing_key)
        message.options.update(options)
        result = await producer.publish_batch([1, message, 3], "q")
        assert list(result.failures) == [1]
    assert await taken(tight_client, "q") == [1, 3]


# ---------------------------------------------------------------------- limits at their bounds


@pytest.mark.parametrize(
    "options",
    [
        {"max_outstanding": 1, "max_buffered": 1, "batch_size": 1, "batches_in_flight": 1},
        {"max_outstanding_bytes": 1},
        {"max_outstanding": 1, "batch_size": 1000},
        {"max_outstanding": "auto", "max_buffered": 1},
        {"max_outstanding": "auto", "max_buffered": 300},
        {"max_outstanding": 1, "confirms": False},
    ],
    ids=str,
)
async def test_nobody_starves_when_everything_is_published_at_once(
    tight_client: leveret.Client, options: dict[str, Any]
) -> None:
    dice = random.Random(5)
    async with tight_client.producer(**options) as producer:
        tasks: list[asyncio.Task[Any]] = []
        for number in range(300):
            call: Any = dice.choice(
                [
                    producer.publish,
                    producer.enqueue,
                    lambda value, key: producer.publish_batch([value] * dice.randrange(7), key),
                ]
            )
            tasks.append(asyncio.create_task(call(number, "q")))
            if dice.random() < 0.1:
                await asyncio.sleep(0)
            if dice.random() < 0.1:
                dice.choice(tasks).cancel()
        async with asyncio.timeout(15):
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(each) for each in ended if isinstance(each, BaseException)} <= {asyncio.CancelledError}
        await producer.flush()
        assert not producer._waiting
        assert producer.outstanding == 0
