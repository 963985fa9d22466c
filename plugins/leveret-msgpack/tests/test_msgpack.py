"""The serializer "msgpack": what it writes, what it makes of foreign bodies, and its way through a broker."""

from __future__ import annotations

import enum
import math
import tracemalloc
import uuid
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import attrs
import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import leveret
from leveret.broker import EmbeddedBroker
from leveret.errors import ConfigurationError, DecodeFailed, EncodeFailed
from leveret.testing import SerializerConformance
from leveret_msgpack import SERIALIZER, MessagePackSerializer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from leveret.plugins import SerializerSpec

KiB = 1 << 10
MiB = 1 << 20


class TestConformance(SerializerConformance):
    @pytest.fixture
    def spec(self) -> SerializerSpec:
        return SERIALIZER


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Item(msgspec.Struct):
    sku: str
    data: bytes = b""


class Order(msgspec.Struct):
    id: int
    items: list[Item]
    color: Color = Color.RED
    level: Level = Level.HIGH
    at: datetime | None = None
    key: uuid.UUID = uuid.UUID(int=7)
    total: Decimal = Decimal("1.10")
    day: date = date(2024, 2, 29)
    hour: time = time(12, 30)
    lasts: timedelta = timedelta(seconds=1.5)
    counts: dict[int, str] = {}
    tags: frozenset[str] = frozenset()


@dataclass
class OrderDataclass:
    id: int
    item: Item
    data: bytes
    at: datetime


@attrs.define
class OrderAttrs:
    id: int
    item: Item
    data: bytes


class OrderDict(TypedDict):
    id: int
    item: Item


class Point(NamedTuple):
    x: int
    y: int


def cases(table: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Parameter sets that are named by their numbers and the types of their first values."""
    return [pytest.param(*row, id=f"{number} {type(row[0]).__name__}") for number, row in enumerate(table)]


def encode(value: Any) -> bytes:
    return MessagePackSerializer().encode(value)


def decode(body: bytes, model: Any = None) -> Any:
    return MessagePackSerializer().decoder(model)(body)


# ---------------------------------------------------------------------- what it writes

PLAIN: list[Any] = [
    *[None, True, False, 0, 1, -1, 127, 128, -32, -33, 2**16, 2**32, 2**64 - 1, -(2**63)],
    *[0.0, -1.5, 1e300, math.inf, "", "a", "Grüße \U0001f407", "x" * 40, "x" * 300, "x" * 70_000],
    *[b"", b"\x00\xff", b"x" * 300, b"x" * 70_000, [], {}, [1, [2, [3]]], list(range(20)), list(range(70_000))],
    *[{"a": 1, "b": {"c": [None, b"\xff"]}}, {b"key": 1}, {f"key {n}": n for n in range(70_000)}],
    [{"id": n, "name": f"order {n}", "price": n / 3} for n in range(100)],
]


@pytest.mark.parametrize("value", cases((value,) for value in PLAIN))
def test_plain_values_are_written_as_the_plain_library_writes_them(value: Any) -> None:
    body = encode(value)

    assert body == msgpack.packb(value)
    assert msgpack.unpackb(body) == value
    assert decode(msgpack.packb(value)) == value


@pytest.mark.parametrize(
    ("value", "plain"),
    cases(
        [
            (bytearray(b"x"), b"x"),
            (memoryview(b"x"), b"x"),
            ((1, 2), [1, 2]),
            (Point(1, 2), [1, 2]),
            ({1}, [1]),
            (frozenset({1}), [1]),
            (Color.RED, "red"),
            (Level.HIGH, 3),
            (uuid.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
            (Decimal("1.10"), "1.10"),
            (date(2024, 2, 29), "2024-02-29"),
            (time(12, 30), "12:30:00"),
            (timedelta(seconds=1.5), "PT1.5S"),
            (datetime(2024, 2, 29, 12), "2024-02-29T12:00:00"),
            (Item("a", b"\xff"), {"sku": "a", "data": b"\xff"}),
            (OrderAttrs(1, Item("a"), b"\xff"), {"id": 1, "item": {"sku": "a", "data": b""}, "data": b"\xff"}),
            ({"items": [Item("a")], Color.RED: uuid.UUID(int=7)}, None),
        ]
    ),
)
def test_other_values_become_plain_ones_that_any_language_reads(value: Any, plain: Any) -> None:
    if plain is None:
        plain = {"items": [{"sku": "a", "data": b""}], "red": "00000000-0000-0000-0000-000000000007"}
    assert msgpack.unpackb(encode(value)) == plain


def test_aware_datetimes_are_timestamps() -> None:
    at = datetime(2024, 2, 29, 12, 0, 0, 123_456, tzinfo=timezone(timedelta(hours=2)))
    body = encode([at, {"at": at}, OrderDataclass(1, Item("a"), b"", at)])

    assert body.count(b"\xd7\xff") == 3  # fixext 8, type -1
    whole, in_dict, in_dataclass = msgpack.unpackb(body, timestamp=3)
    assert whole == in_dict["at"] == in_dataclass["at"] == at


def test_numbers_as_keys_are_text_in_typed_objects_and_stay_numbers_in_plain_dicts() -> None:
    order = Order(1, [], counts={7: "seven"})

    assert msgpack.unpackb(encode(order))["counts"] == {"7": "seven"}
    assert decode(encode(order), Order) == order
    assert encode({7: "seven"}) == msgpack.packb({7: "seven"})


def test_timestamps_and_extension_types_of_the_plain_library_are_written() -> None:
    @dataclass
    class Holder:
        at: msgpack.Timestamp

    at = msgpack.Timestamp(1, 999)
    assert msgpack.unpackb(encode([at, Holder(at), msgpack.ExtType(5, b"five")])) == [
        at,
        {"at": at},
        msgpack.ExtType(5, b"five"),
    ]


@pytest.mark.parametrize(
    ("value", "error"),
    cases(
        [
            (object(), EncodeFailed),
            ([1, {"a": 1j}], EncodeFailed),
            (2**64, OverflowError),
            (-(2**63) - 1, OverflowError),
            (Order(2**70, []), OverflowError),
            ("\ud800", UnicodeEncodeError),
        ]
    ),
)
def test_values_that_cannot_be_written_raise(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        encode(value)


def test_nothing_of_a_value_that_failed_is_in_the_next_body() -> None:
    serializer = MessagePackSerializer()
    for bad in ([1, 2, object()], {"a": "x" * 1000, "b": object()}, [b"x" * MiB, 2**64], Order(2**70, [Item("a")])):
        with pytest.raises((EncodeFailed, OverflowError)):
            serializer.encode(bad)
        assert serializer.encode({"id": 1}) == msgpack.packb({"id": 1})


def test_values_in_a_circle_raise() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ValueError, match="recursion limit"):
        encode(circle)


def test_memory_for_a_large_body_is_given_back() -> None:
    serializer = MessagePackSerializer()
    tracemalloc.start()  # msgpack's packer allocates with PyMem_Malloc, which tracemalloc sees
    try:
        body = serializer.encode(b"x" * 32 * MiB)
        del body
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < MiB


# ---------------------------------------------------------------------- round trips

ORDERS: list[tuple[Any, Any]] = [
    (Order(1, [Item("a", b"\x00\xff")], at=datetime(2024, 2, 29, 12, tzinfo=UTC), counts={1: "x"}), Order),
    (Order(2, [], at=datetime(2024, 2, 29, 12, 0, 0, 1)), Order),
    (OrderDataclass(1, Item("a"), b"\xff", datetime(1900, 1, 1, tzinfo=UTC)), OrderDataclass),
    (OrderAttrs(1, Item("a"), b"\xff"), OrderAttrs),
    ({"id": 1, "item": Item("a", b"x")}, OrderDict),
    (Point(1, 2), Point),
    ([Item("a"), Item("b")], list[Item]),
    ({"a": Item("a")}, dict[str, Item]),
    ({b"a": 1}, dict[bytes, int]),
    ((1, "a", b"b"), tuple[int, str, bytes]),
    ({1, 2}, set[int]),
    (Color.RED, Color),
    (uuid.UUID(int=7), uuid.UUID),
    (Decimal("1.10"), Decimal),
    (timedelta(days=3), timedelta),
    (bytearray(b"x"), bytearray),
    (datetime(2024, 2, 29), datetime),
    (None, int | None),
]


@pytest.mark.parametrize(("value", "model"), cases(ORDERS))
def test_typed_values_come_back_as_their_model(value: Any, model: Any) -> None:
    decoded = decode(encode(value), model)
    assert decoded == value
    assert type(decoded) is type(value)


@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers(-(2**63), 2**64 - 1)
        | st.floats(allow_nan=False)
        | st.text()
        | st.binary()
        | st.datetimes(timezones=st.just(UTC)),
        lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.binary(), inner),
    )
)
def test_plain_values_come_back_equal(value: Any) -> None:
    assert decode(encode(value)) == value
    assert decode(encode(value), Any) == value


@given(st.datetimes(timezones=st.just(UTC) | st.just(timezone(timedelta(hours=-9, minutes=-30)))))
def test_aware_datetimes_come_back_in_utc_to_the_microsecond(at: datetime) -> None:
    decoded = decode(encode(at))
    assert decoded == at
    assert decoded.tzinfo == UTC
    assert decode(encode(at), datetime) == at


def test_naive_datetimes_are_text_unless_the_model_says_otherwise() -> None:
    at = datetime(2024, 2, 29, 12, 0, 0, 1)
    assert decode(encode(at)) == "2024-02-29T12:00:00.000001"
    assert decode(encode([at]), list[datetime]) == [at]


# ---------------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("body", "model", "text"),
    cases(
        [
            (msgpack.packb("1"), int, "Expected `int`, got `str`"),
            (msgpack.packb(1.0), int, "Expected `int`, got `float`"),
            (msgpack.packb(1), str, "Expected `str`, got `int`"),
            (msgpack.packb(b"text"), str, "Expected `str`, got `bytes`"),
            (msgpack.packb("dGV4dA=="), bytes, "Expected `bytes`, got `str`"),
            (msgpack.packb(0), datetime, "Expected `datetime`, got `int`"),
            (
                msgpack.packb({"id": 1, "items": [{"sku": 1}]}),
                Order,
                r"Expected `str`, got `int` - at `\$.items\[0\].sku`",
            ),
            (msgpack.packb({"id": 1}), Order, "Object missing required field `items`"),
            (msgpack.packb({"x": "y"}), dict[int, str], "Expected `int`, got `str` - at `key`"),
        ]
    ),
)
def test_bodies_that_are_not_the_model_raise_with_the_place(body: bytes, model: Any, text: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=f"^{text}"):
        decode(body, model)


@pytest.mark.parametrize("model", cases([("Order",), (42,), (list[int] | set[int],), (object(),)]))
def test_models_that_cannot_be_made_are_a_configuration_error(model: Any) -> None:
    with pytest.raises(ConfigurationError, match="MessagePack cannot decode into") as caught:
        MessagePackSerializer().decoder(model)
    assert caught.value.option == "model"


# ---------------------------------------------------------------------- what is refused

U32 = (2**32 - 1).to_bytes(4, "big")
NESTED_CLAIMS = b"\xdd" + (60_000).to_bytes(4, "big")  # an array of 60,000, of which nothing follows
DEEP = 5000

REFUSALS = (ValueError, TypeError, OverflowError, RecursionError, msgspec.MsgspecError)
MALFORMED = {
    "nothing": b"",
    "the byte that is never used": b"\xc1",
    "two objects": b"\x01\x02",
    "a byte too many": msgpack.packb({"a": 1}) + b"\0",
    "a text that is cut off": b"\xa5hell",
    "a text that is not UTF-8": b"\xa2\xff\xff",
    "a text with a surrogate": b"\xa3\xed\xa0\x80",
    "a map that is cut off": b"\x82\xa1a\x01",
    "a key and no value": b"\x81\xa1a",
    "a text that claims 4 GiB": b"\xdb" + U32 + b"x",
    "a binary that claims 4 GiB": b"\xc6" + U32 + b"x",
    "an array that claims 2**32 items": b"\xdd" + U32 + b"\xc0",
    "a map that claims 2**32 pairs": b"\xdf" + U32 + b"\xa1a\xc0",
    "an extension that claims 4 GiB": b"\xc9" + U32 + b"\x05x",
    "arrays that claim the body's size, in each other": (NESTED_CLAIMS * 900).ljust(60_000, b"\xc0"),
    "maps that claim much, in each other": (b"\xde\x75\x30\xa1a" * 900).ljust(60_000, b"\xc0"),
    "deep arrays": b"\x91" * DEEP + b"\xc0",
    "deep maps": b"\x81\xa1a" * DEEP + b"\xc0",
    "a million deep": b"\x91" * 1_000_000 + b"\xc0",
    "a million deep without an end": b"\x91" * 1_000_000,
    "a number as a key": b"\x81\x01\x02",
    "a float as a key": b"\x81\xcb" + bytes(8) + b"\x02",
    "nil as a key": b"\x81\xc0\x02",
    "an array as a key": b"\x81\x90\x02",
    "a timestamp as a key": b"\x81\xd6\xff\0\0\0\0\x02",
    "an extension type of nobody": msgpack.packb(msgpack.ExtType(5, b"five")),
    "an extension type that is reserved": b"\xd4\x80x",
    "an extension in a list": msgpack.packb([1, msgpack.ExtType(5, b"five")]),
    "a timestamp of 3 bytes": b"\xc7\x03\xff\0\0\0",
    "a timestamp after the year 9999": b"\xc7\x0c\xff\0\0\0\0" + (2**62).to_bytes(8, "big"),
    "a timestamp before the year 1": b"\xc7\x0c\xff\0\0\0\0" + (-(2**62)).to_bytes(8, "big", signed=True),
    "a timestamp with too many nanoseconds": b"\xc7\x0c\xff" + U32 + bytes(8),
}


@pytest.mark.parametrize("body", [pytest.param(body, id=what) for what, body in MALFORMED.items()])
@pytest.mark.parametrize("model", cases([(None,), (Any,), (Order,), (list[Any],), (dict[str, Any],)]))
def test_malformed_and_hostile_bodies_are_refused_in_little_memory(body: bytes, model: Any) -> None:
    decoder = MessagePackSerializer().decoder(model)
    caught: Exception | None = None
    # tracemalloc sees what msgpack allocates, also what it never touches: it makes Python objects and nothing else.
    tracemalloc.start()
    try:
        decoder(body)
    except Exception as error:
        caught = error
    finally:
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert isinstance(caught, REFUSALS)
    assert peak <= 100 * KiB + 2 * len(body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\xdc\xff\xff" + b"\x80" * 65_535, id="empty maps"),
        pytest.param(b"\xdc\xff\xff" + b"\x90" * 65_535, id="empty arrays"),
        pytest.param(b"\xdc\xff\xff" + b"\xc0" * 65_535, id="nil"),
        pytest.param(b"\xdc\xff\xff" + b"\x81\xa0\x80" * 65_535, id="maps in maps"),
        pytest.param(b"\x92\xc0" * 500 + b"\xc0", id="arrays in arrays"),
        pytest.param(msgpack.packb({f"{n:x}": n for n in range(60_000)}), id="many keys"),
    ],
)
def test_whole_bodies_take_at_most_a_hundred_times_their_size(body: bytes) -> None:
    decoder = MessagePackSerializer().decoder(None)
    tracemalloc.start()
    try:
        value = decoder(body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert value
    assert peak <= 100 * len(body)


def test_nesting_is_read_500_levels_deep() -> None:
    value: Any = "inside"
    for _ in range(500):
        value = [value]
    assert decode(encode(value)) == value


def test_the_last_of_two_equal_keys_counts_as_in_json() -> None:
    body = b"\x82\xa1a\x01\xa1a\x02"
    assert decode(body) == decode(body, dict[str, int]) == {"a": 2}
    assert msgspec.json.decode(b'{"a": 1, "a": 2}') == {"a": 2}


def test_a_decoder_can_be_used_again_after_an_error() -> None:
    decoder = MessagePackSerializer().decoder(None)
    for body in MALFORMED.values():
        with pytest.raises(REFUSALS):
            decoder(body)
        assert decoder(b"\x81\xa1a\x01") == {"a": 1}


# ---------------------------------------------------------------------- with a broker


@pytest.fixture
async def client() -> AsyncIterator[leveret.Client]:
    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
        await client.declare(leveret.Topology().queue("orders"))
        yield client


async def take(client: leveret.Client, model: Any = None, **options: Any) -> leveret.Message:
    async with client.consumer("orders", model, **options) as consumer:
        message = await consumer.get()
    assert message is not None
    return message


@pytest.mark.parametrize("compressor", [None, "gzip"])
async def test_a_consumer_without_options_reads_what_a_producer_wrote(
    client: leveret.Client, compressor: str | None
) -> None:
    orders = [{"id": number, "data": b"\xff" * 10} for number in range(1000)]
    async with client.producer(serializer="msgpack", compressor=compressor) as producer:
        await producer.publish(orders, "orders")

    message = await take(client)
    assert (message.content_type, message.content_encoding) == ("application/msgpack", compressor)
    assert message.value == orders


@pytest.mark.parametrize(("value", "model"), cases(ORDERS[:5]))
async def test_a_consumer_with_a_model_gets_it(client: leveret.Client, value: Any, model: Any) -> None:
    async with client.producer(serializer="msgpack") as producer:
        await producer.publish(value, "orders")

    assert (await take(client, model)).value == value


@pytest.mark.parametrize("content_type", ["application/msgpack", "application/x-msgpack", "application/vnd.msgpack"])
async def test_bodies_of_other_clients_are_read_by_each_of_their_content_types(
    client: leveret.Client, content_type: str
) -> None:
    async with client.producer(serializer="bytes") as producer:
        await producer.publish(msgpack.packb({"sku": "a", "data": b"\xff"}), "orders", content_type=content_type)

    assert (await take(client, Item, accept=(content_type,))).value == Item("a", b"\xff")


async def test_errors_name_types_and_places_and_never_values(client: leveret.Client) -> None:
    async with client.producer(serializer="msgpack") as producer:
        with pytest.raises(EncodeFailed, match=r"cannot encode a list: .*unsupported") as unencodable:
            await producer.publish(["secret", 1j], "orders")
        await producer.publish({"sku": "secret", "data": "secret"}, "orders")
    message = await take(client, Item)
    with pytest.raises(DecodeFailed, match=r"Expected `bytes`, got `str` - at `\$.data`") as undecodable:
        message.value  # noqa: B018 - decodes

    assert "secret" not in str(unencodable.value) + str(undecodable.value)


class Reading(msgspec.Struct):
    sensor_id: int
    raw_data: bytes
    read_at: datetime
    free_text: str | None = None
    by_number: dict[int, Item] = {}


def renaming(**options: Any) -> MessagePackSerializer:
    made = SERIALIZER.factory(**options)
    assert isinstance(made, MessagePackSerializer)
    return made


AT = datetime(2025, 7, 16, 12, 30, 0, 7, tzinfo=UTC)


def test_s29_fields_are_renamed_and_none_is_left_out() -> None:
    serializer = renaming(rename="camel", omit_none=True)
    reading = Reading(1, b"\x00\xff", AT, by_number={7: Item("a", b"x")})
    body = serializer.encode(reading)
    assert msgpack.unpackb(body, timestamp=3) == {
        "sensorId": 1,
        "rawData": b"\x00\xff",
        "readAt": AT,
        "byNumber": {"7": {"sku": "a", "data": b"x"}},
    }
    assert serializer.decoder(Reading)(body) == reading
    # Old names are read, too, and plain values have the names that came.
    assert serializer.decoder(Reading)(MessagePackSerializer().encode(reading)) == reading
    assert serializer.decoder(None)(body)["sensorId"] == 1


def test_s29_plain_values_are_written_as_ever_but_for_their_names() -> None:
    value = {"sensor_id": 1, 2: [b"x", AT, None], "free_text": None, "naive": datetime(2025, 7, 16)}
    body = renaming(rename="camel", omit_none=True).encode(value)
    assert body == MessagePackSerializer().encode({"sensorId": 1, 2: [b"x", AT, None], "naive": value["naive"]})


def test_s29_nothing_is_in_the_way_when_the_options_are_off() -> None:
    assert type(renaming()) is MessagePackSerializer
    assert type(renaming(rename=None, omit_none=False)) is MessagePackSerializer


def test_bodies_are_checked_as_without_new_names() -> None:
    decode = renaming(rename="camel").decoder(Reading)
    for body in (b"\x81\xa8sensorId\x01", b"\x81", b"\x81\x01\x02", msgpack.packb({"sensorId": "1"})):
        with pytest.raises((msgspec.DecodeError, ValueError)):
            decode(body)
    with pytest.raises(EncodeFailed, match="get the same name"):
        renaming(rename="camel").encode({"a_b": 1, "aB": 2})
