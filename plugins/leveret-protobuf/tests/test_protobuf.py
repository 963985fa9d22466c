"""The serializer "protobuf": what it encodes, what it makes of foreign bytes, and how it works with a broker."""

from __future__ import annotations

import dataclasses
import logging
import re
import traceback
from typing import TYPE_CHECKING, Any

import pytest
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

import leveret
import leveret_protobuf
from leveret.broker import EmbeddedBroker
from leveret.errors import ConfigurationError, ContentTypeNotAccepted, DecodeFailed, EncodeFailed
from leveret.plugins import PluginRegistry, SerializerSpec
from leveret.testing import SerializerConformance
from leveret_protobuf import InvalidMessage, MessageTypes, ProtobufSerializer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from leveret import Client

SENTINEL = "sentinel-7f3a"

# ---------------------------------------------------------------------- message classes without protoc

_FIELD = descriptor_pb2.FieldDescriptorProto
_LINE = re.compile(r"(?:(?P<label>required|repeated) )?(?P<type>[\w.]+) (?P<name>\w+) = (?P<number>\d+)")
_MAP = re.compile(r"map<string, (?P<type>[\w.]+)> (?P<name>\w+) = (?P<number>\d+)")


def schema(syntax: str, messages: dict[str, list[str]]) -> dict[str, type[Message]]:
    """Makes message classes of the package `shop` from lines as in a .proto file, in a descriptor pool of their own."""
    file = descriptor_pb2.FileDescriptorProto(name="shop.proto", package="shop", syntax=syntax)
    file.dependency.append("google/protobuf/any.proto")
    for message_name, lines in messages.items():
        message = file.message_type.add(name=message_name)
        for line in lines:
            if line == "extensions 100 to 200":
                message.extension_range.add(start=100, end=201)
            elif found := _MAP.fullmatch(line):
                entry = message.nested_type.add(name=f"{found['name'].title()}Entry")
                entry.options.map_entry = True
                entry.field.add(name="key", number=1, type=_FIELD.TYPE_STRING, label=_FIELD.LABEL_OPTIONAL)
                _set_type(entry.field.add(name="value", number=2, label=_FIELD.LABEL_OPTIONAL), found["type"])
                field = message.field.add(name=found["name"], number=int(found["number"]), label=_FIELD.LABEL_REPEATED)
                _set_type(field, f"{message_name}.{entry.name}")
            elif found := _LINE.fullmatch(line):
                label = _FIELD.Label.Value(f"LABEL_{(found['label'] or 'optional').upper()}")
                field = message.field.add(name=found["name"], number=int(found["number"]), label=label)
                _set_type(field, found["type"])
            else:
                raise ValueError(line)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"shop.{name}")) for name in messages}


def _set_type(field: Any, name: str) -> None:
    if name[0].isupper() or "." in name:
        field.type = _FIELD.TYPE_MESSAGE
        field.type_name = f".{name}" if name.startswith("google.") else f".shop.{name}"
    else:
        field.type = _FIELD.Type.Value(f"TYPE_{name.upper()}")


_PROTO3 = schema(
    "proto3",
    {
        "Item": ["string sku = 1", "int32 count = 2"],
        "Order": ["int64 id = 1", "string customer = 2", "repeated Item items = 3", "map<string, string> notes = 4"],
        "Invoice": ["int64 id = 1", "double total = 2"],
        "Tree": ["Tree child = 1", "int32 depth = 2"],
        "Envelope": ["google.protobuf.Any content = 1"],
    },
)
Item, Order, Invoice = (_PROTO3[name] for name in ("Item", "Order", "Invoice"))
Tree, Envelope = (_PROTO3[name] for name in ("Tree", "Envelope"))

_PROTO2 = schema(
    "proto2",
    {
        "Leaf": ["required string name = 1"],
        "Strict": [
            "required int64 id = 1",
            "required string name = 2",
            "Leaf leaf = 3",
            "map<string, Leaf> leaves = 4",
        ],
        "Holder": ["repeated Leaf leaves = 1", "Holder next = 2"],
        "Open": ["int64 id = 1", "extensions 100 to 200"],
    },
)
Leaf, Strict, Holder, Open = (_PROTO2[name] for name in ("Leaf", "Strict", "Holder", "Open"))


def order(**changes: Any) -> Any:
    fields: dict[str, Any] = {
        "id": 7,
        "customer": "Grüße \N{RABBIT}",
        "items": [Item(sku="carrot", count=3), Item(sku="", count=-1)],
        "notes": {"b": "2", "a": "1"},
    }
    return Order(**(fields | changes))


def packed(value: Message, prefix: str = "type.googleapis.com/") -> any_pb2.Any:
    holder = any_pb2.Any()
    holder.Pack(value, type_url_prefix=prefix)
    return holder


def envelope(value: Message) -> Any:
    holder: Any = Envelope()
    holder.content.Pack(value)
    return holder


def nested_tree(levels: int) -> bytes:
    """A Tree with this many messages inside each other, written without protobuf, which would recurse in C."""
    body = b""
    for _ in range(levels):
        size, length = len(body), b""
        while size > 127:
            length += bytes([size & 127 | 128])
            size >>= 7
        body = b"\x0a" + length + bytes([size]) + body
    return body


def whole_text(error: BaseException) -> str:
    """Everything that a log with tracebacks would show, and what hides behind it."""
    seen = []
    each: BaseException | None = error
    while each is not None:
        seen.append(repr(each))
        each = each.__cause__ or each.__context__
    return "".join(traceback.format_exception(error)) + "".join(seen)


def encode(value: Any) -> bytes:
    return ProtobufSerializer().encode(value)


def decoder(model: Any) -> Callable[[bytes], Any]:
    return ProtobufSerializer().decoder(model)


class TestConformance(SerializerConformance):
    prefixes_are_refused = False

    @pytest.fixture
    def spec(self) -> SerializerSpec:
        return leveret_protobuf.SERIALIZER

    @pytest.fixture
    def values(self) -> list[tuple[Any, Any]]:
        return values()


class PackingSerializer(ProtobufSerializer):
    """Does what publishers do for consumers with `MessageTypes`."""

    @staticmethod
    def encode(value: Any, /) -> bytes:
        return ProtobufSerializer.encode(packed(value))


class TestConformanceOfMessageTypes(SerializerConformance):
    prefixes_are_refused = False

    @pytest.fixture
    def spec(self) -> SerializerSpec:
        return dataclasses.replace(leveret_protobuf.SERIALIZER, factory=PackingSerializer)

    @pytest.fixture
    def values(self) -> list[tuple[Any, Any]]:
        types = MessageTypes(Order, Invoice, Strict, Holder, any_pb2.Any, Envelope, timestamp_pb2.Timestamp)
        return [(value, types) for value, _ in values()]


def values() -> list[tuple[Message, type[Message]]]:
    strict = Strict(id=1, name="x", leaf=Leaf(name="y"), leaves={"z": Leaf(name="z")})
    each = [
        order(),
        Order(),
        order(customer="leveret " * 20_000),
        Invoice(id=-1, total=0.1),
        strict,
        Holder(leaves=[Leaf(name="a"), Leaf(name="b")]),
        packed(Invoice(id=1)),
        envelope(order()),
        timestamp_pb2.Timestamp(seconds=1),
    ]
    return [(value, type(value)) for value in each]


# ---------------------------------------------------------------------- encoding


@pytest.mark.parametrize(
    "value", [{"id": 1}, None, b"\x08\x07", SENTINEL, Order, [order()]], ids=lambda value: type(value).__name__
)
def test_encode_refuses_and_names_the_type_when_the_value_is_no_message(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"takes generated protobuf messages, not {type(value).__name__}$") as refusal:
        encode(value)
    assert SENTINEL not in whole_text(refusal.value)


def test_equal_messages_have_equal_bytes_when_their_maps_were_filled_in_another_order() -> None:
    names = [f"note {number}" for number in range(50)]
    one, other = (order(notes=dict.fromkeys(each, "x")) for each in (names, names[::-1]))
    assert one == other
    assert encode(one) == encode(other)


def test_encode_names_what_is_missing_when_required_fields_are_not_set() -> None:
    with pytest.raises(InvalidMessage) as refusal:
        encode(Strict(leaf=Leaf(name=SENTINEL)))
    assert str(refusal.value) == "Expected all required fields of shop.Strict: missing are id, name"
    assert SENTINEL not in whole_text(refusal.value)


def test_encode_quotes_no_map_key_when_a_message_in_a_map_lacks_a_field() -> None:
    value: Any = Strict(id=1, name="x")
    value.leaves[SENTINEL].SetInParent()
    with pytest.raises(InvalidMessage) as refusal:
        encode(value)
    assert str(refusal.value) == "Expected all required fields of shop.Strict: a nested message lacks some"
    assert SENTINEL not in whole_text(refusal.value)


# ---------------------------------------------------------------------- models


@pytest.mark.parametrize(
    "model",
    [None, dict, Message, order(), "shop.Order", list[str], object()],
    ids=["none", "dict", "base class", "instance", "name", "list", "object"],
)
def test_decoder_refuses_when_the_model_is_no_message_class(model: Any) -> None:
    with pytest.raises(ConfigurationError, match="protobuf decodes into a generated message class or") as refusal:
        decoder(model)
    assert refusal.value.option == "model"


@pytest.mark.parametrize(
    ("classes", "text"),
    [
        ((), "takes at least one message class and got none"),
        ((dict,), "takes generated protobuf message classes, not <class 'dict'>"),
        ((Message,), "takes generated protobuf message classes, not <class 'google.protobuf.message.Message'>"),
        ((Order, schema("proto3", {"Order": []})["Order"]), "got two message classes named shop.Order"),
    ],
    ids=["none", "no message", "base class", "two of one name"],
)
def test_message_types_refuse_when_they_cannot_tell_bodies_apart(classes: tuple[Any, ...], text: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{re.escape(text)}$") as refusal:
        MessageTypes(*classes)
    assert refusal.value.option == "model"


def test_message_types_cannot_be_changed_after_they_were_made() -> None:
    types = MessageTypes(Order, Order, Invoice)
    assert dict(types.by_name) == {"shop.Order": Order, "shop.Invoice": Invoice}
    assert repr(types) == "MessageTypes(shop.Order, shop.Invoice)"
    with pytest.raises(TypeError):
        types.by_name["shop.Leaf"] = Leaf  # type: ignore[index]


# ---------------------------------------------------------------------- foreign bytes


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"\x08",
        b"\x12\x05abc",
        b"\x12\xff\xff\xff\xff\x0f",
        b"\x12\x02\xff\xfe",
        b"\x00\x01",
        b"\x0f",
        encode(order()) + b"\x00",
        encode(order())[:-1],
    ],
    ids=["tag", "cut", "cut string", "huge string", "no UTF-8", "field 0", "wire type 7", "garbage behind", "end cut"],
)
@pytest.mark.parametrize("wrapped", [False, True], ids=["class", "types"])
def test_decode_raises_decode_error_when_the_body_is_malformed(body: bytes, wrapped: bool) -> None:
    decode = decoder(MessageTypes(Order)) if wrapped else decoder(Order)
    if wrapped:
        body = encode(any_pb2.Any(type_url="/shop.Order", value=body))
    with pytest.raises(DecodeError) as refusal:
        decode(body)
    assert "shop.Order" in str(refusal.value)


@given(st.binary(max_size=200))
def test_decode_returns_the_model_or_raises_when_bytes_are_random(body: bytes) -> None:
    for model in (Order, Strict, Holder, Tree, any_pb2.Any):
        try:
            decoded = decoder(model)(body)
        except (DecodeError, InvalidMessage):
            continue
        assert type(decoded) is model
        assert decoded.IsInitialized()


def test_decode_merges_when_fields_follow_the_end_of_the_body() -> None:
    # Protobuf has no end mark, so this is what every implementation does; the README says so.
    merged = decoder(Order)(encode(order()) + encode(Order(id=8, items=[Item(sku="late")])))
    assert merged.id == 8
    assert [item.sku for item in merged.items] == ["carrot", "", "late"]


def test_decode_makes_an_empty_message_when_the_body_is_empty() -> None:
    assert decoder(Order)(b"") == Order()


@pytest.mark.parametrize("levels", [101, 102, 1000, 20_000])
def test_decode_raises_when_messages_are_nested_more_than_100_deep(levels: int) -> None:
    deepest = decoder(Tree)(nested_tree(100))
    assert encode(deepest) == nested_tree(100)
    with pytest.raises(DecodeError):
        decoder(Tree)(nested_tree(levels))


def test_decode_raises_when_unknown_groups_are_nested_deeply() -> None:
    with pytest.raises(DecodeError):
        decoder(Order)(b"\xfb\x01" * 500_000 + b"\xfc\x01" * 500_000)


@pytest.mark.parametrize(
    ("model", "body", "text"),
    [
        (Strict, b"", "shop.Strict: missing are id, name"),
        (Strict, b"\x08\x01", "shop.Strict: missing are name"),
        (Strict, b"\x08\x01\x12\x00\x1a\x00", "shop.Strict: a nested message lacks some"),
        (Strict, b"\x08\x01\x12\x00\x22\x0c\x0a\x08" + b"secret-1" + b"\x12\x00", "shop.Strict: a nested message"),
        (Holder, b"\x12\x02\x0a\x00", "shop.Holder: a nested message lacks some"),
    ],
    ids=["all", "one", "in a field", "in a map", "deep in a list"],
)
def test_decode_raises_when_required_fields_are_missing(model: Any, body: bytes, text: str) -> None:
    wrapped = encode(any_pb2.Any(type_url=f"/{model.DESCRIPTOR.full_name}", value=body))
    for decode, each in ((decoder(model), body), (decoder(MessageTypes(Order, model)), wrapped)):
        with pytest.raises(InvalidMessage, match=f"^Expected all required fields of {re.escape(text)}") as refusal:
            decode(each)
        assert "secret-1" not in whole_text(refusal.value)


def test_decode_takes_messages_that_may_be_extended_when_nothing_is_missing() -> None:
    value = Open(id=3)
    assert decoder(Open)(encode(value)) == value


# ---------------------------------------------------------------------- MessageTypes


@pytest.mark.parametrize("value", [order(), Invoice(id=2, total=0.5)], ids=["order", "invoice"])
@pytest.mark.parametrize("prefix", ["type.googleapis.com/", "types.example.com/v2/", "/", "ftp://x:y@z/a/"])
def test_registered_classes_are_unpacked_whatever_stands_in_front_of_their_name(value: Any, prefix: str) -> None:
    name = value.DESCRIPTOR.full_name
    body = encode(any_pb2.Any(type_url=prefix + name, value=encode(value)))
    decoded = decoder(MessageTypes(Order, Invoice))(body)
    assert type(decoded) is type(value)
    assert decoded == value


@pytest.mark.parametrize(
    "type_url",
    [
        "",
        "/",
        "shop.Order",
        "type.googleapis.com/shop.Leaf",
        "type.googleapis.com/google.protobuf.Timestamp",
        "type.googleapis.com/shop.Order/",
        "type.googleapis.com/.shop.Order",
        "type.googleapis.com/SHOP.ORDER",
        f"type.googleapis.com/{SENTINEL}",
        "/" * 100_000,
    ],
    ids=["empty", "slash", "bare", "not registered", "in the pool", "behind", "dot", "case", "unknown", "long"],
)
def test_message_types_refuse_without_quoting_when_the_name_is_not_registered(type_url: str) -> None:
    body = encode(any_pb2.Any(type_url=type_url, value=SENTINEL.encode()))
    with pytest.raises(InvalidMessage) as refusal:
        decoder(MessageTypes(Order, Invoice))(body)
    assert str(refusal.value) == "Expected a google.protobuf.Any that holds one of shop.Order, shop.Invoice"
    assert SENTINEL not in whole_text(refusal.value)


def test_message_types_refuse_when_the_body_is_a_bare_message() -> None:
    with pytest.raises((InvalidMessage, DecodeError)):
        decoder(MessageTypes(Order))(encode(order()))


def test_an_any_within_a_message_stays_packed_when_its_class_is_registered() -> None:
    value = envelope(order())
    decoded = decoder(MessageTypes(Envelope, Order))(encode(packed(value)))
    assert decoded == value
    assert decoded.content.TypeName() == "shop.Order"


# ---------------------------------------------------------------------- schemas that change

V1 = schema("proto3", {"Order": ["int64 id = 1", "string customer = 2"]})["Order"]
V2 = schema("proto3", {"Order": ["int64 id = 1", "string customer = 2", "string currency = 3", "bytes raw = 4"]})[
    "Order"
]


def test_old_consumer_reads_what_it_knows_and_passes_on_the_rest_when_the_publisher_is_new() -> None:
    new: Any = V2(id=1, customer="a", currency="EUR", raw=b"\xff")
    old = decoder(V1)(encode(new))
    assert (old.id, old.customer) == (1, "a")
    assert decoder(V2)(encode(old)) == new


def test_new_consumer_sees_defaults_when_the_publisher_is_old() -> None:
    new = decoder(V2)(encode(V1(id=1, customer="a")))
    assert (new.id, new.customer, new.currency, new.raw) == (1, "a", "", b"")


# ---------------------------------------------------------------------- with a broker


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    registry = PluginRegistry.from_plugins(leveret_protobuf)
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, plugins=registry) as connected:
        dead = leveret.Classic(dead_letter_exchange="", dead_letter_routing_key="dead")
        await connected.declare(leveret.Topology().queue("dead").queue("q", dead))
        yield connected


async def test_installed_plugin_is_found_through_its_entry_point() -> None:
    registry = PluginRegistry.load()
    found = registry.provided("serializer", "protobuf")
    assert (found.plugin, found.origin) == ("protobuf", "leveret-protobuf 0.1.0")
    assert found.keys == ("application/x-protobuf", "application/protobuf", "application/vnd.google.protobuf")


async def test_messages_arrive_equal_when_the_consumer_names_their_class(client: Client) -> None:
    sent = [order(id=number) for number in range(20)]
    async with client.producer(serializer="protobuf") as producer:
        result = await producer.publish_batch(sent, "q")
    assert result.confirmed == 20
    received = []
    async with client.consumer("q", Order) as consumer:
        async for message in consumer:
            assert message.content_type == "application/x-protobuf"
            received.append(message.value)
            message.ack()
            if len(received) == len(sent):
                break
    assert received == sent


async def test_each_kind_arrives_as_its_class_when_the_consumer_names_message_types(client: Client) -> None:
    sent = [order(), Invoice(id=1), order(id=8)]
    async with client.producer(serializer="protobuf") as producer:
        await producer.publish_batch(map(packed, sent), "q")
    consumer: leveret.Consumer[Any] = client.consumer("q", MessageTypes(Order, Invoice))
    received = []

    async def handle(value: Any, message: leveret.Message) -> None:
        received.append(value)
        if len(received) == len(sent):
            consumer.stop()

    await consumer.run(handle)
    assert received == sent
    assert list(map(type, received)) == [Order, Invoice, Order]


@pytest.mark.parametrize("content_type", leveret_protobuf.SERIALIZER.aliases)
async def test_bodies_of_other_publishers_are_read_when_they_use_an_alias(client: Client, content_type: str) -> None:
    async with client.producer(serializer="bytes") as producer:
        await producer.publish(encode(order()), "q", content_type=content_type)
    message = await client.consumer("q", Order).get()
    assert message is not None
    assert message.value == order()


async def test_bodies_without_content_type_are_read_when_the_consumer_names_the_serializer(client: Client) -> None:
    async with client.producer(serializer="bytes") as producer:
        await producer.publish(encode(order()), "q", content_type=None)
    message = await client.consumer("q", Order, serializer="protobuf").get()
    assert message is not None
    assert message.content_type is None
    assert message.value == order()


@pytest.mark.parametrize("model", [Order, MessageTypes(Order)], ids=["class", "types"])
async def test_bodies_without_content_type_are_read_when_protobuf_alone_makes_the_model(
    client: Client, model: Any
) -> None:
    async with client.producer(serializer="bytes") as producer:
        body = encode(order() if model is Order else packed(order()))
        await producer.publish(body, "q", content_type=None)
    message = await client.consumer("q", model).get()
    assert message is not None
    assert message.value == order()


async def test_json_bodies_are_not_accepted_when_the_model_is_a_message_class(client: Client) -> None:
    async with client.producer(serializer="json") as producer:
        await producer.publish({"id": 1}, "q")
    message = await client.consumer("q", Order).get()
    assert message is not None
    with pytest.raises(ContentTypeNotAccepted, match="'application/json' is not accepted"):
        _ = message.value


async def test_consumer_without_a_model_does_not_take_protobuf_bodies(client: Client) -> None:
    with pytest.raises(ConfigurationError, match="not None") as refusal:
        client.consumer("q", serializer="protobuf")
    assert refusal.value.option == "model"
    async with client.producer(serializer="protobuf") as producer:
        await producer.publish(order(), "q")
    message = await client.consumer("q").get()
    assert message is not None
    with pytest.raises(ContentTypeNotAccepted, match="'application/x-protobuf' is not accepted"):
        _ = message.value


@pytest.mark.parametrize("value", [{"id": SENTINEL}, Strict(name=SENTINEL)], ids=["dict", "incomplete"])
async def test_publish_fails_without_quoting_when_the_value_cannot_be_encoded(client: Client, value: Any) -> None:
    async with client.producer(serializer="protobuf") as producer:
        with pytest.raises(EncodeFailed) as failure:
            await producer.publish(value, "q")
    assert type(value).__name__ in str(failure.value)
    assert SENTINEL not in whole_text(failure.value)


async def test_bad_bodies_are_dead_lettered_without_quoting_and_the_next_is_handled(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bad = [
        b"\xff" + SENTINEL.encode(),
        encode(order(customer=SENTINEL)),
        encode(packed(Leaf(name=SENTINEL))),
        encode(any_pb2.Any(type_url=f"x/{SENTINEL}")),
    ]
    async with client.producer(serializer="bytes") as producer:
        bodies = [*bad, encode(packed(Invoice(id=5)))]
        await producer.publish_batch(bodies, "q", content_type="application/x-protobuf")
    consumer: leveret.Consumer[Any] = client.consumer("q", MessageTypes(Invoice))

    async def handle(value: Any, message: leveret.Message) -> None:
        assert value == Invoice(id=5)
        consumer.stop()

    await consumer.run(handle)
    assert consumer.counters()["undecodable"] == len(bad)
    assert SENTINEL not in caplog.text
    async with client.consumer("q.parked", serializer="bytes") as letters:
        for body in bad:
            message = await anext(letters)
            assert message.value == body
            message.ack()


async def test_decode_failure_says_what_was_expected_when_the_type_is_not_registered(client: Client) -> None:
    async with client.producer(serializer="protobuf") as producer:
        await producer.publish(packed(Leaf(name=SENTINEL)), "q")
    consumer: leveret.Consumer[Any] = client.consumer("q", MessageTypes(Order))
    message = await consumer.get()
    assert message is not None
    with pytest.raises(
        DecodeFailed, match=r"InvalidMessage\): Expected a google.protobuf.Any that holds one of shop.Order"
    ):
        _ = message.value
