"""The serializer "pydantic": which models it takes, what it makes of foreign JSON, and how it works with a broker."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import logging
import re
import traceback
import typing
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NewType, TypeVar

import msgspec
import pydantic.dataclasses
import pytest
from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    Json,
    RootModel,
    SecretStr,
    computed_field,
    field_serializer,
    field_validator,
)
from typing_extensions import TypeAliasType, TypedDict

import leveret
import leveret_pydantic
from leveret.broker import EmbeddedBroker
from leveret.errors import ConfigurationError, DecodeFailed, EncodeFailed
from leveret.plugins import PluginRegistry, SerializerSpec
from leveret.testing import SerializerConformance
from leveret_pydantic import PydanticSerializer, SerializationFailed, ValidationFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from leveret import Client

SENTINEL = "sentinel-7f3a"
T = TypeVar("T")


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Item(BaseModel):
    sku: str
    price: Decimal = Field(ge=0)
    size: Size = Size.SMALL


class Order(BaseModel):
    id: int
    items: list[Item] = []
    notes: dict[str, int] = {}


class Invoice(BaseModel):
    model_config = ConfigDict(extra="forbid")

    invoice: int


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"
    name: str


class Renamed(BaseModel):
    order_id: int = Field(alias="orderId")
    inner: Item | None = Field(default=None, alias="innerItem")


class Rich(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")

    when: dt.datetime
    took: dt.timedelta
    key: uuid.UUID
    raw: bytes
    limit: float
    payload: Json[list[int]]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def year(self) -> int:
        return self.when.year


class Tree(BaseModel):
    children: list[Tree] = []


class Page(BaseModel, Generic[T]):
    content: list[T]


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def area(self) -> int:
        return self.width**2


class Ids(RootModel[list[int]]):
    pass


@pydantic.dataclasses.dataclass
class Point:
    x: int
    y: int = Field(default=0, alias="why")


@pydantic.dataclasses.dataclass
class Pair(Generic[T]):
    left: T
    right: T


@dataclasses.dataclass
class PlainRecord:
    id: int


class Record(msgspec.Struct):
    id: int


class PlainDict(TypedDict):
    id: int


class PlainGeneric(Generic[T]):
    pass


Animal = Annotated[Cat | Dog, Field(discriminator="kind")]
OrderId = NewType("OrderId", int)
SpecialOrder = NewType("SpecialOrder", Order)
Orders = TypeAliasType("Orders", list[Order])
Several = TypeAliasType("Several", list[T], type_params=(T,))
Nested = TypeAliasType("Nested", "list[Nested] | int")


def order(**changes: Any) -> Order:
    fields: dict[str, Any] = {
        "id": 7,
        "items": [Item(sku="Grüße \N{RABBIT}", price=Decimal("9.90")), Item(sku="", price=Decimal(0), size=Size.LARGE)],
        "notes": {"a": 1, "": 2},
    }
    return Order(**(fields | changes))


def rich() -> Rich:
    return Rich(
        when=dt.datetime(2024, 2, 29, 12, 30, 15, 250_000, tzinfo=dt.UTC),
        took=dt.timedelta(days=1, milliseconds=1),
        key=uuid.UUID(int=5),
        raw=b"\xff\x00",
        limit=float("inf"),
        payload="[1, 2]",  # type: ignore[arg-type]
    )


def whole_text(error: BaseException) -> str:
    """Everything that a log with tracebacks would show, and what hides behind it."""
    seen = []
    each: BaseException | None = error
    while each is not None:
        seen.append(repr(each))
        each = each.__cause__ or each.__context__
    return "".join(traceback.format_exception(error)) + "".join(seen)


def encode(value: Any) -> bytes:
    return PydanticSerializer().encode(value)


def decoder(model: Any) -> Callable[[bytes], Any]:
    return PydanticSerializer().decoder(model)


def claims(model: Any) -> bool:
    models = leveret_pydantic.SERIALIZER.models
    assert models is not None
    return models(model)


def name_of(model: object) -> str:
    return re.sub(r" at 0x\w+", "", repr(model).replace(f"{__name__}.", ""))


class TestConformance(SerializerConformance):
    @pytest.fixture
    def spec(self) -> SerializerSpec:
        return leveret_pydantic.SERIALIZER

    @pytest.fixture
    def values(self) -> list[tuple[Any, Any]]:
        tree = Tree()
        for _ in range(60):
            tree = Tree(children=[tree, Tree()])
        return [
            (order(), Order),
            (order(items=[Item(sku=f"item {number}", price=Decimal(number) / 8) for number in range(500)]), Order),
            (Renamed(orderId=1, innerItem=Item(sku="a", price=Decimal("0.1"))), Renamed),
            (rich(), Rich),
            (Closed(width=3), Closed),
            (Tree(children=[Tree(), Tree(children=[Tree()])]), Tree),
            (tree, Tree),
            (Ids([1, 2, 3]), Ids),
            (Page[Item](content=[Item(sku="a", price=Decimal(1))]), Page[Item]),
            (Point(x=1, why=2), Point),
            (Pair(1, 2), Pair[int]),
            ([order(), order(id=8)], list[Order]),
            ({"a": order(), "": order()}, dict[str, Order]),
            ((order(), Invoice(invoice=1)), tuple[Order, Invoice]),
            (Invoice(invoice=1), Order | Invoice),
            (order(), Order | Invoice),
            (None, Order | None),
            ([Dog(name="a"), Cat(lives=3)], list[Animal]),
            (order(), SpecialOrder),
            ([order()], Orders),
            ([order()], Several[Order]),
        ]


class TestConformanceWithPlainValues(SerializerConformance):
    """What a consumer without a pydantic model gets when it names the serializer."""

    @pytest.fixture
    def spec(self) -> SerializerSpec:
        return dataclasses.replace(leveret_pydantic.SERIALIZER, models=None)

    @pytest.fixture
    def values(self) -> list[tuple[Any, Any]]:
        plain: list[Any] = [
            None,
            True,
            0,
            -1,
            2**63,
            0.5,
            1e300,
            "",
            "\x00\u2028\N{RABBIT}",
            [],
            {},
            {"a": [1, {"b": None}]},
        ]
        return [*((value, None) for value in plain), (PlainRecord(1), PlainRecord), ([1, 2], list[int])]


# ---------------------------------------------------------------------- which models


@pytest.mark.parametrize(
    "model",
    [
        Order,
        Ids,
        RootModel[dict[str, int]],
        Page[int],
        Page,
        Point,
        Pair,
        Pair[int],
        list[Order],
        typing.List[Order],  # noqa: UP006
        dict[str, list[Order]],
        tuple[Order, ...],
        set[Ids],
        Sequence[Point],
        Mapping[str, Order],
        Order | None,
        pytest.param(typing.Optional[Order], id="Optional[Order]"),  # noqa: UP045 - Order | None from Python 3.14 on
        Order | Invoice | int,
        Animal,
        list[Animal],
        Annotated[list[Order], "a note"],
        SpecialOrder,
        Orders,
        Several[Order],
        list[Orders | Nested],
    ],
    ids=name_of,
)
def test_models_are_claimed_when_they_are_or_hold_pydantic_models(model: Any) -> None:
    assert claims(model) is True


class Hostile:
    """An object that raises for whatever is asked of it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    def __hash__(self) -> int:
        raise RuntimeError("hash")


@pytest.mark.parametrize(
    "model",
    [
        None,
        bytes,
        str,
        int,
        dict,
        list,
        list[int],
        dict[str, Any],
        Any,
        object,
        int | None,
        typing.Union,
        Literal["Order"],
        Annotated[int, Order],
        PlainRecord,
        list[PlainRecord],
        Record,
        list[Record],
        Record | None,
        PlainDict,
        OrderId,
        Nested,
        T,
        PlainGeneric[Order],
        type[Order],
        Callable[[Order], Order],
        Iterator[Order],
        "Order",
        ["Order"],
        list["Order"],
        order(),
        Point(1),
        object(),
        Ellipsis,
        lambda: Order,
    ],
    ids=name_of,
)
def test_models_are_not_claimed_when_they_are_not_pydantics(model: Any) -> None:
    assert claims(model) is False


def test_models_are_not_claimed_when_looking_at_them_raises() -> None:
    assert claims(Hostile()) is False


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (object(), "Unable to generate pydantic-core schema for <object object"),
        (list[Order | Record], "Unable to generate pydantic-core schema for <class"),
        ("Missing", "name 'Missing' is not defined"),
    ],
    ids=["object", "a Struct inside", "unknown name"],
)
def test_decoder_refuses_when_pydantic_makes_no_schema(model: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^pydantic cannot decode into .*: {text}") as refusal:
        decoder(model)
    assert refusal.value.option == "model"
    assert "\n" not in str(refusal.value)


def test_decoder_refuses_until_everything_that_the_model_names_is_defined() -> None:
    class Early(BaseModel):
        late: Late  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(ConfigurationError, match=r"name 'Late' is not defined$") as refusal:
        decoder(Early)
    assert refusal.value.option == "model"
    Early.model_rebuild(_types_namespace={"Late": int})
    assert decoder(Early)(b'{"late": 5}') == Early(late=5)


def test_models_that_defer_their_schema_are_encoded_and_decoded() -> None:
    class Deferred(BaseModel):
        model_config = ConfigDict(defer_build=True)

        id: int

    class Other(BaseModel):
        model_config = ConfigDict(defer_build=True)

        id: int

    assert encode(Deferred.model_construct(id=1)) == b'{"id":1}'
    assert decoder(Other)(b'{"id":1}') == Other(id=1)


# ---------------------------------------------------------------------- encoding


def test_a_model_is_written_as_its_model_dump_json_writes_it() -> None:
    for value in (order(), rich(), Renamed(orderId=1), Ids([1])):
        assert encode(value).decode() == value.model_dump_json(by_alias=True, round_trip=True)


def test_fields_are_written_with_their_aliases_in_containers_and_dataclasses_too() -> None:
    assert encode([Renamed(orderId=1)]) == b'[{"orderId":1,"innerItem":null}]'
    assert encode({"point": Point(x=1)}) == b'{"point":{"x":1,"why":0}}'


@pytest.mark.parametrize(
    ("value", "name"),
    [(object(), "object"), (Record(1), "Record"), ([order(), Record(1)], "Record")],
    ids=["object", "Struct", "Struct in a list"],
)
def test_encode_names_the_type_when_pydantic_has_no_json_for_it(value: Any, name: str) -> None:
    with pytest.raises(TypeError, match=rf"^pydantic has no JSON for <class '(.+\.)?{name}'>$"):
        encode(value)


class BrokenSerializer(BaseModel):
    text: str

    @field_serializer("text")
    def fail(self, text: str) -> str:
        raise KeyError(text)


class Holder(BaseModel):
    anything: Any


def _ring() -> Holder:
    holder = Holder(anything=[SENTINEL])
    holder.anything.append(holder)
    return holder


@pytest.mark.parametrize(
    "value",
    [
        BrokenSerializer(text=SENTINEL),
        [BrokenSerializer(text=SENTINEL)],
        Holder(anything=b"\xff" + SENTINEL.encode()),
        Holder(anything=f"\ud800{SENTINEL}"),
        _ring(),
    ],
    ids=["broken serializer", "inside a list", "no UTF-8", "surrogate", "holds itself"],
)
def test_encode_raises_without_quoting_when_something_cannot_be_written(value: Any) -> None:
    with pytest.raises(SerializationFailed) as failure:
        encode(value)
    assert str(failure.value) == f"pydantic has no JSON for something in this {type(value).__name__}"
    assert SENTINEL not in whole_text(failure.value)


def test_encode_does_not_warn_when_a_value_came_past_validation() -> None:
    # pydantic's warning would quote the value; here warnings are errors.
    assert encode(Order.model_construct(id=SENTINEL)) == b'{"id":"sentinel-7f3a","items":[],"notes":{}}'
    with pytest.raises(ValidationFailed, match=r"^Expected a valid Order: id: int_parsing$"):
        decoder(Order)(encode([Order.model_construct(id=SENTINEL)])[1:-1])


def test_models_that_write_what_they_do_not_take_do_not_come_back() -> None:
    # The README says so; whether to allow it is the model's own choice.
    class OneWay(BaseModel):
        id: int = Field(validation_alias=AliasChoices("id1", "id2"))

    class Secret(BaseModel):
        password: SecretStr

    class Number(BaseModel):
        value: float

    assert encode(OneWay(id1=1)) == b'{"id":1}'  # type: ignore[call-arg]
    assert encode(Secret(password=SecretStr(SENTINEL))) == b'{"password":"**********"}'
    assert encode(Number(value=float("nan"))) == b'{"value":null}'


# ---------------------------------------------------------------------- foreign bytes


@pytest.mark.parametrize(
    ("model", "body", "text"),
    [
        (Order, b"", "Order: json_invalid"),
        (Order, b"{", "Order: json_invalid"),
        (Order, b'{"id": 1} x', "Order: json_invalid"),
        (Order, b'{"id": 1}{"id": 2}', "Order: json_invalid"),
        (Order, b"\xff\xfe", "Order: json_invalid"),
        (Holder, b'{"anything": "\xff"}', "Holder: json_invalid"),
        (Order, b"[]", "Order: model_type"),
        (Order, b"{}", "Order: id: missing"),
        (Order, b'{"id": "x"}', "Order: id: int_parsing"),
        (Order, b'{"id": 1, "items": [{"sku": "a", "price": 1}, {"sku": 2}]}', None),
        (Point, b'{"x": 1, "why": "x"}', "Point: why: int_parsing"),
        (Renamed, b'{"order_id": 1}', "Renamed: orderId: missing"),
        (list[Order], b'[{"id": 1}, 2]', "list[Order]: 1: model_type"),
        (Order | Invoice, b'{"id": "x"}', None),
        (Animal, b'{"kind": "dog"}', None),
        (Animal, b'{"kind": "sentinel-7f3a"}', None),
        (Ids, b'["a"]', "Ids: 0: int_parsing"),
    ],
)
def test_decode_says_where_and_how_when_the_body_is_not_the_model(model: Any, body: bytes, text: str | None) -> None:
    with pytest.raises(ValidationFailed) as failure:
        decoder(model)(body)
    if text is None:
        assert str(failure.value).startswith("Expected a valid ")
    else:
        assert str(failure.value) == f"Expected a valid {text}"
    assert failure.value.error_count == len(failure.value.errors)


def test_paths_have_names_of_the_model_and_indices() -> None:
    body = b'{"id": 1, "items": [{"sku": "a", "price": 1}, {"sku": 2, "price": -1, "size": "x"}]}'
    with pytest.raises(ValidationFailed) as failure:
        decoder(Order)(body)
    assert failure.value.errors == (
        ("items.1.sku", "string_type"),
        ("items.1.price", "greater_than_equal"),
        ("items.1.size", "enum"),
    )
    assert str(failure.value) == (
        "Expected a valid Order: items.1.sku: string_type; items.1.price: greater_than_equal; items.1.size: enum"
    )


def test_paths_name_the_members_of_unions() -> None:
    with pytest.raises(ValidationFailed) as untagged:
        decoder(Order | Invoice)(b'{"id": "x"}')
    assert untagged.value.errors == (
        ("Order.id", "int_parsing"),
        ("Invoice.invoice", "missing"),
        ("Invoice.id", "extra_forbidden"),
    )
    with pytest.raises(ValidationFailed) as tagged:
        decoder(list[Animal])(b'[{"kind": "dog"}]')
    assert tagged.value.errors == (("0.dog.name", "missing"),)


class Quoting(BaseModel):
    text: str = ""
    number: int = 0
    keys: dict[int, int] = {}
    choice: Literal["a", "b"] = "a"
    by_pattern: str = Field(default="", pattern="^a+$")

    @field_validator("text")
    @classmethod
    def check(cls, text: str) -> str:
        if text:
            raise ValueError(f"not allowed: {text}")
        return text


@pytest.mark.parametrize(
    ("model", "body", "errors"),
    [
        (Quoting, '{"text": "%s"}', (("text", "value_error"),)),
        (Quoting, '{"number": "%s"}', (("number", "int_parsing"),)),
        (Quoting, '{"keys": {"%s": 1}}', (("keys.*.*", "int_parsing"),)),
        (Quoting, '{"keys": {"1": "%s"}}', (("keys.*", "int_parsing"),)),
        (Quoting, '{"choice": "%s"}', (("choice", "literal_error"),)),
        (Quoting, '{"by_pattern": "%s"}', (("by_pattern", "string_pattern_mismatch"),)),
        (Order, '{"id": 1, "notes": {"%s": "x"}}', (("notes.*", "int_parsing"),)),
        (Invoice, '{"invoice": 1, "%s": 1}', (("*", "extra_forbidden"),)),
        (dict[str, Order], '{"%s": {"items": 5}}', (("*.id", "missing"), ("*.items", "list_type"))),
        (Animal, '{"kind": "%s"}', (("", "union_tag_invalid"),)),
        (Order, '{"id": 1, %s}', (("", "json_invalid"),)),
        (Order, '"%s"', (("", "model_type"),)),
    ],
)
def test_errors_have_no_text_of_the_body(model: Any, body: str, errors: tuple[tuple[str, str], ...]) -> None:
    with pytest.raises(ValidationFailed) as failure:
        decoder(model)((body % SENTINEL).encode())
    assert failure.value.errors == errors
    assert SENTINEL not in whole_text(failure.value)


def test_error_lists_five_and_counts_the_others() -> None:
    decode = decoder(list[Invoice])
    with pytest.raises(ValidationFailed) as some:
        decode(b"[" + b",".join([b"{}"] * 8) + b"]")
    assert some.value.error_count == 8
    listed = "; ".join(f"{number}.invoice: missing" for number in range(5))
    assert str(some.value) == f"Expected a valid list[Invoice]: {listed}; and 3 more"
    with pytest.raises(ValidationFailed) as many:
        decode(b"[" + b",".join([b"{}"] * 1001) + b"]")
    assert (many.value.error_count, many.value.errors) == (1001, ())
    assert str(many.value) == "Expected a valid list[Invoice]: 1001 errors"


def test_json_nested_200_deep_is_refused_before_it_can_overflow_the_stack() -> None:
    decode = decoder(Tree)
    for levels in (200, 10_000, 500_000):
        with pytest.raises(ValidationFailed, match=r"^Expected a valid Tree: json_invalid$"):
            decode(b'{"children":[' * levels + b"]}" * levels)
    assert decode(b'{"children":[' * 90 + b"]}" * 90).children


def test_validation_is_lax_unless_the_model_is_strict() -> None:
    class Strict(BaseModel):
        model_config = ConfigDict(strict=True)

        id: int

    class Lax(BaseModel):
        id: int

    assert decoder(Lax)(b'{"id": "1"}') == Lax(id=1)
    with pytest.raises(ValidationFailed, match=r"id: int_type$"):
        decoder(Strict)(b'{"id": "1"}')


# ---------------------------------------------------------------------- with a broker


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    registry = PluginRegistry.from_plugins(leveret_pydantic)
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, plugins=registry) as connected:
        dead = leveret.Classic(dead_letter_exchange="", dead_letter_routing_key="dead")
        await connected.declare(leveret.Topology().queue("dead").queue("q", dead))
        yield connected


async def value_of(consumer: leveret.Consumer[Any]) -> Any:
    message = await consumer.get()
    assert message is not None
    return message.value


def test_installed_plugin_is_found_through_its_entry_point() -> None:
    registry = PluginRegistry.load()
    found = registry.provided("serializer", "pydantic")
    assert (found.plugin, found.origin) == ("pydantic", "leveret-pydantic 0.1.0")
    assert registry.specific_serializer(Order) == found
    assert registry.readers("serializer")["application/json"].name == "json"


async def test_models_arrive_equal_when_the_consumer_names_their_class(client: Client) -> None:
    sent = [order(id=number) for number in range(20)]
    async with client.producer(serializer="pydantic") as producer:
        result = await producer.publish_batch(sent, "q")
    assert result.confirmed == 20
    received = []
    async with client.consumer("q", Order) as consumer:
        async for message in consumer:
            assert message.content_type == "application/json"
            received.append(message.value)
            message.ack()
            if len(received) == len(sent):
                break
    assert received == sent


async def test_handlers_get_members_of_a_union_when_the_consumer_names_one(client: Client) -> None:
    sent = [Dog(name="a"), Cat(), Dog(name="b")]
    async with client.producer(serializer="pydantic") as producer:
        await producer.publish_batch(sent, "q")
    consumer: leveret.Consumer[Any] = client.consumer("q", Animal)
    received = []

    async def handle(animal: Cat | Dog, message: leveret.Message) -> None:
        received.append(animal)
        if len(received) == len(sent):
            consumer.stop()

    await consumer.run(handle)
    assert received == sent


@pytest.mark.parametrize("content_type", ["application/json", "text/json", "application/json; charset=utf-8", None])
async def test_bodies_of_other_publishers_are_validated_when_the_model_is_pydantics(
    client: Client, content_type: str | None
) -> None:
    async with client.producer(serializer="json") as producer:
        await producer.publish({"id": "7", "items": []}, "q", content_type=content_type)
    assert await value_of(client.consumer("q", Order)) == Order(id=7)


async def test_models_of_the_core_stay_with_the_core_when_the_plugin_is_there(client: Client) -> None:
    async with client.producer(serializer="pydantic") as producer:
        await producer.publish_batch([Tree()] * 2 + [{"id": 1}] * 2 + [{"id": "1"}] * 2, "q")
    assert await value_of(client.consumer("q")) == {"children": []}
    assert await value_of(client.consumer("q", accept=("application/json",))) == {"children": []}
    assert await value_of(client.consumer("q", Record)) == Record(1)
    assert await value_of(client.consumer("q", PlainRecord)) == PlainRecord(1)
    for model in (Record, PlainRecord):
        # pydantic would take the text for a number, msgspec does not.
        with pytest.raises(DecodeFailed, match="Expected `int`, got `str`"):
            await value_of(client.consumer("q", model))


async def test_plain_dataclasses_are_decoded_by_pydantic_when_the_consumer_names_it(client: Client) -> None:
    async with client.producer(serializer="json") as producer:
        await producer.publish({"id": "1"}, "q")
    assert await value_of(client.consumer("q", PlainRecord, serializer="pydantic")) == PlainRecord(1)


async def test_consumer_is_refused_when_something_that_its_model_names_is_not_defined(client: Client) -> None:
    class Early(BaseModel):
        late: Late  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(ConfigurationError, match="name 'Late' is not defined") as refusal:
        client.consumer("q", Early)
    assert refusal.value.option == "model"


@pytest.mark.parametrize("value", [Record(1), BrokenSerializer(text=SENTINEL)], ids=["unknown", "broken"])
async def test_publish_fails_without_quoting_when_the_value_cannot_be_written(client: Client, value: Any) -> None:
    async with client.producer(serializer="pydantic") as producer:
        with pytest.raises(EncodeFailed, match=rf"cannot encode a {type(value).__name__}: ") as failure:
            await producer.publish(value, "q")
    assert SENTINEL not in whole_text(failure.value)


async def test_bad_bodies_are_parked_without_quoting_and_the_next_is_handled(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    texts = [SENTINEL, f'{{"id": "{SENTINEL}"}}', f'{{"id": 1, "notes": {{"{SENTINEL}": ""}}}}']
    bad = [text.encode() for text in texts]
    async with client.producer() as producer:
        result = await producer.publish_batch([*bad, b'{"id": 5}'], "q", content_type="application/json")
        result.raise_for_failures()
    consumer = client.consumer("q", Order)

    async def handle(value: Order, message: leveret.Message) -> None:
        assert value == Order(id=5)
        consumer.stop()

    await consumer.run(handle)
    assert consumer.counters()["undecodable"] == len(bad)
    assert "Expected a valid Order: json_invalid" in caplog.text
    assert SENTINEL not in caplog.text
    async with client.consumer("q.parked", serializer="bytes") as letters:
        for body in bad:
            message = await anext(letters)
            assert message.value == body
            message.ack()


async def test_decode_failure_has_paths_and_types_and_no_text_of_the_body(client: Client) -> None:
    async with client.producer(serializer="json") as producer:
        await producer.publish({"id": SENTINEL, "items": [{"price": "-1"}]}, "q")
    with pytest.raises(DecodeFailed) as failure:
        await value_of(client.consumer("q", Order))
    assert str(failure.value).endswith(
        "(ValidationFailed): Expected a valid Order: id: int_parsing; items.0.sku: missing; "
        "items.0.price: greater_than_equal"
    )
    assert SENTINEL not in whole_text(failure.value)
