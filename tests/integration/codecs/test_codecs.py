"""The codec chain on a live broker: what the properties say is what the body is, and foreign bodies do no harm."""

from __future__ import annotations

import asyncio
import dataclasses
import gzip
import json
import zlib
from typing import TYPE_CHECKING, Any

import msgpack
import msgspec
import pytest
from tests.support.bodies import decoded, publish_raw, sent, taken_raw
from tests.support.plugins import compressor_plugin, plugin, serializer_plugin

import leveret
from leveret.errors import (
    BodyTooLarge,
    CodecError,
    ConfigurationError,
    ContentTypeNotAccepted,
    DecodeFailed,
    EncodeFailed,
)
from leveret.plugins import CompositeSpec, PluginRegistry

if TYPE_CHECKING:
    from leveret import Message
    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")

LONG = {"text": "to be or not to be, " * 100}
SECRET = "do-not-tell-7731"


@dataclasses.dataclass
class Shipment:
    id: int
    text: str


# ---------------------------------------------------------------------- compression


@pytest.mark.parametrize(("compressor", "decompress"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
async def test_a_large_body_is_compressed_in_the_standard_format(
    client: leveret.Client, queue: str, compressor: str, decompress: Any
) -> None:
    message = await sent(client, queue, LONG, compressor=compressor)
    assert message.content_type == "application/json"
    assert message.content_encoding == compressor
    body = decompress(message.body)
    assert json.loads(body) == LONG
    assert message.headers == {"original-size": len(body)}


async def test_headers_of_the_caller_are_kept_beside_the_original_size(client: leveret.Client, queue: str) -> None:
    async with client.producer(compressor="gzip") as producer:
        headers = {"tenant": 7}
        for size in (2000, 70_000):
            text = "".join(str(i) for i in range(size))
            await producer.publish(text, queue, headers=headers, message_id=str(size), priority=3)
            message = await taken_raw(client, queue)
            assert message.headers == {"tenant": 7, "original-size": len(text) + 2}
            assert (message.message_id, message.priority) == (str(size), 3)
        assert headers == {"tenant": 7}


@pytest.mark.parametrize(("size", "compressed"), [(1024, False), (1025, True)])
async def test_a_body_is_left_alone_up_to_the_threshold(
    client: leveret.Client, queue: str, size: int, compressed: bool
) -> None:
    text = ("abcdefghij" * 110)[:size]
    message = await sent(client, queue, text, serializer="text", compressor="gzip")
    assert (message.content_encoding == "gzip") == compressed
    assert ("original-size" in message.headers) == compressed
    assert compressed or message.body == text.encode()


async def test_a_body_is_left_alone_when_compression_saves_less_than_a_tenth(embedded: EmbeddedBroker) -> None:
    saved = 0.0

    def shorten(data: bytes) -> bytes:
        return data[: round(len(data) * (1 - saved))]

    registry = PluginRegistry.from_plugins(compressor_plugin("cut", shorten))
    async with leveret.connect(embedded.url, plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q"))
        for saved in (0.0, 0.09, 0.1, 0.11, 0.5):
            message = await sent(client, "q", b"x" * 10_000, serializer="bytes", compressor="cut")
            assert message.content_encoding == ("cut" if saved > 0.1 else None)
            assert message.body_size == (10_000 * (1 - saved) if saved > 0.1 else 10_000)


async def test_a_body_that_consumers_would_take_for_a_bomb_is_not_compressed(
    client: leveret.Client, queue: str
) -> None:
    zeros = bytes(1_000_000)
    message = await sent(client, queue, zeros, serializer="bytes", compressor="gzip")
    assert len(gzip.compress(zeros)) * 200 < len(zeros)
    assert message.content_encoding is None
    assert message.body == zeros


async def test_a_value_with_an_encoding_of_its_own_is_not_compressed_again(client: leveret.Client, queue: str) -> None:
    body = gzip.compress(json.dumps(LONG).encode())
    async with client.producer(serializer="bytes", compressor="gzip", compression_threshold=0) as producer:
        await producer.publish(body, queue, content_type="application/json", content_encoding="gzip")
    assert await decoded(client, queue) == LONG


async def test_batches_mix_compressed_and_plain_bodies_in_order(client: leveret.Client, queue: str) -> None:
    values = [{"id": i, "text": "x y z " * (i % 7) * 100} for i in range(500)]
    async with client.producer(compressor="deflate", batch_size=64) as producer:
        result = await producer.publish_batch(values, queue)
        assert result
        assert result.confirmed == 500
    got = []
    async with client.consumer(queue, prefetch=500) as consumer:
        async for message in consumer:
            got.append(message.value)
            message.ack()
            if len(got) == 500:
                break
    assert got == values


async def test_a_value_that_fails_in_a_compressed_batch_fails_alone(client: leveret.Client, queue: str) -> None:
    async with client.producer(compressor="gzip", max_body_size=5000) as producer:
        result = await producer.publish_batch([LONG, object(), "x", list(range(10_000))], queue)
    assert result.confirmed == 2
    assert {index: type(error) for index, error in result.failures.items()} == {1: EncodeFailed, 3: BodyTooLarge}


async def test_a_mandatory_compressed_message_that_no_queue_takes_is_tied_to_its_publishing(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer(compressor="gzip", mandatory=True) as producer:
        lost = producer.publish_nowait(LONG, "no-such-queue")
        kept = producer.publish_nowait(LONG, queue)
        assert (await kept).outcome is leveret.Outcome.CONFIRMED
        with pytest.raises(leveret.PublishError) as caught:
            await lost
        assert caught.value.outcome is leveret.Outcome.RETURNED


@pytest.mark.parametrize("model", [None, Shipment])
async def test_consumers_decompress_without_being_told(client: leveret.Client, queue: str, model: Any) -> None:
    order = Shipment(7, "carrots " * 1000)
    async with client.producer(compressor="gzip") as producer:
        for _ in range(3):
            await producer.publish(order, queue)
    for _ in range(3):
        assert await decoded(client, queue, model) == (order if model else dataclasses.asdict(order))


# ---------------------------------------------------------------------- hybrid


@pytest.mark.parametrize(
    ("value", "content_type", "body"),
    [
        (None, "application/x-empty", b""),
        (7, "application/json", b"7"),
        (42, "application/json", b"42"),
        (19.5, "application/json", b"19.5"),
        (True, "application/json", b"true"),
        ("naïve", "application/json", '"naïve"'.encode()),
        ({"id": 7}, "application/msgpack", msgpack.packb({"id": 7})),
        ([1, 2], "application/msgpack", msgpack.packb([1, 2])),
    ],
)
async def test_hybrid_says_with_the_content_type_what_it_chose(
    client: leveret.Client, queue: str, value: Any, content_type: str, body: bytes
) -> None:
    async with client.producer(serializer="hybrid") as producer:
        await producer.publish_batch([value, value], queue)
    message = await taken_raw(client, queue)
    assert (message.content_type, message.body) == (content_type, body)
    # Nothing is tried and nothing guessed: 7 in JSON would be 55 in MessagePack.
    assert await decoded(client, queue) == value


async def test_hybrid_compresses_large_values_with_lz4(client: leveret.Client, queue: str) -> None:
    message = await sent(client, queue, LONG, serializer="hybrid")
    assert (message.content_type, message.content_encoding) == ("application/msgpack", "lz4")
    async with client.producer(serializer="hybrid") as producer:
        await producer.publish(LONG, queue)
    assert await decoded(client, queue, serializer="hybrid") == LONG


async def test_hybrid_consumer_refuses_what_is_none_of_its_parts(client: leveret.Client, queue: str) -> None:
    await publish_raw(client, queue, b"text", content_type="text/plain")
    with pytest.raises(ContentTypeNotAccepted, match=r"'text/plain' is not accepted; accepted are application/x-empty"):
        await decoded(client, queue, serializer="hybrid")


async def test_hybrid_says_what_is_missing_when_msgpack_is_not_installed(embedded: EmbeddedBroker) -> None:
    async with leveret.connect(embedded.url, plugins=PluginRegistry.from_plugins()) as client:
        with pytest.raises(ConfigurationError, match=r"no serializer 'msgpack'.*Install leveret-msgpack"):
            client.producer(serializer="hybrid")


async def test_a_composite_that_chooses_none_of_its_parts_is_an_error(embedded: EmbeddedBroker) -> None:
    wrong = plugin(serializers=[CompositeSpec(name="wrong", parts=["json"], select=lambda value: "yaml")])
    registry = PluginRegistry.from_plugins(wrong)
    async with (
        leveret.connect(embedded.url, plugins=registry) as client,
        client.producer(serializer="wrong") as producer,
    ):
        with pytest.raises(EncodeFailed, match=r"chose 'yaml'; its parts are json"):
            await producer.publish(1, "q")


# ---------------------------------------------------------------------- decoding what comes


async def test_the_content_type_chooses_among_what_is_accepted(client: leveret.Client, queue: str) -> None:
    await publish_raw(client, queue, msgpack.packb([1]), content_type="application/msgpack")
    assert await decoded(client, queue) == [1]
    await publish_raw(client, queue, msgpack.packb([1]), content_type="application/msgpack")
    with pytest.raises(ContentTypeNotAccepted, match=r"'application/msgpack' is not accepted; accepted are applic"):
        await decoded(client, queue, accept=["application/json"])


async def test_an_unsafe_serializer_decodes_only_when_it_is_named(embedded: EmbeddedBroker) -> None:
    unsafe = serializer_plugin("pickled", safe=False)
    async with leveret.connect(embedded.url, plugins=PluginRegistry.from_plugins(unsafe)) as client:
        await client.declare(leveret.Topology().queue("q"))
        for options in ({}, {"accept": ["application/json"]}):
            await publish_raw(client, "q", b"7", content_type="text/x-pickled")
            with pytest.raises(ContentTypeNotAccepted):
                await decoded(client, "q", **options)
        for options in ({"serializer": "pickled"}, {"accept": ["text/x-pickled"]}):
            await publish_raw(client, "q", b"7", content_type="text/x-pickled")
            assert await decoded(client, "q", **options) == 7


async def test_bytes_are_taken_as_they_came_when_asked_for(client: leveret.Client, queue: str) -> None:
    body = gzip.compress(b"text")
    for options, expected in (({"serializer": "bytes"}, body), ({"model": bytes}, b"text")):
        await publish_raw(client, queue, body, content_type="text/plain", content_encoding="gzip")
        assert await decoded(client, queue, **options) == expected


BOMB = gzip.compress(bytes(50_000_000), mtime=0)


@pytest.mark.parametrize(
    ("body", "encoding", "error", "text"),
    [
        (BOMB, "gzip", BodyTooLarge, f"{len(BOMB)} bytes decompresses to more than {len(BOMB) * 200} bytes"),
        (
            gzip.compress(b"[1]", mtime=0)[:-1],
            "gzip",
            DecodeFailed,
            "the gzip compressor (leveret 0.1.0) could not decompress",
        ),
        (gzip.compress(b"[1]", mtime=0) + b"x", "gzip", DecodeFailed, "could not decompress a body of 24 bytes"),
        (gzip.compress(b"[1]", mtime=0), "deflate", DecodeFailed, "the deflate compressor"),
        (b"[1]", "gzip", DecodeFailed, "could not decompress a body of 3 bytes (error)"),
        (b"", "gzip", DecodeFailed, "could not decompress a body of 0 bytes"),
        (b"[1]", "br", ContentTypeNotAccepted, "the content encoding 'br' is not accepted; accepted are gzip"),
        (b"[1]", "gzip, br", ContentTypeNotAccepted, "the content encoding 'gzip, br' is not accepted"),
        (
            gzip.compress(b"[1", mtime=0),
            "gzip",
            DecodeFailed,
            "could not be decoded by the json serializer (leveret 0.1.0) (DecodeError)",
        ),
    ],
)
async def test_a_hostile_body_is_refused_and_the_consumer_goes_on(
    client: leveret.Client, queue: str, body: bytes, encoding: str, error: type[CodecError], text: str
) -> None:
    await publish_raw(client, queue, body, content_type="application/json", content_encoding=encoding)
    await publish_raw(client, queue, b"[2]", content_type="application/json")
    async with client.consumer(queue) as consumer:
        bad = await anext(consumer)
        with pytest.raises(error) as caught:
            _ = bad.value
        assert type(caught.value) is error
        assert text in str(caught.value)
        assert bad.dead_letter()
        good = await anext(consumer)
        assert good.value == [2]
        assert good.ack()


async def test_hostile_bodies_are_dead_lettered_and_counted_while_a_handler_runs(
    client: leveret.Client, queue: str
) -> None:
    for body in (BOMB, b"not gzip", gzip.compress(b"{")):
        await publish_raw(client, queue, body, content_type="application/json", content_encoding="gzip")
    await publish_raw(client, queue, b"1", content_type="application/json")
    consumer = client.consumer(queue)
    seen: list[Any] = []

    async def handle(value: Any, message: Message) -> None:
        seen.append(value)
        consumer.stop()

    await consumer.run(handle)
    assert seen == [1]
    assert consumer.counters()["undecodable"] == 3
    assert consumer.counters()["dead_lettered"] == 3


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        ({"max_decompressed_size": 10_000}, True),
        ({"max_decompressed_size": 9_999}, False),
        ({"max_decompression_ratio": 100_000}, True),
        ({"max_decompression_ratio": 1.5}, False),
    ],
)
async def test_the_limits_of_decompression_are_the_settings(
    client: leveret.Client, queue: str, limits: dict[str, Any], fits: bool
) -> None:
    text = "".join(chr(97 + i * i % 23) for i in range(10_000))
    await publish_raw(
        client, queue, zlib.compress(text.encode()), content_type="text/plain", content_encoding="deflate"
    )
    if fits:
        assert await decoded(client, queue, **limits) == text
    else:
        with pytest.raises(BodyTooLarge, match="decompresses to more than"):
            await decoded(client, queue, **limits)


# ---------------------------------------------------------------------- plugins that misbehave


def fail(*_: object) -> Any:
    raise ValueError(SECRET)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        (
            serializer_plugin("bad", fail),
            "the bad serializer (the plugin object 'bad') cannot encode a list: ValueError",
        ),
        (serializer_plugin("bad", str), "the bad serializer (the plugin object 'bad') returned str, not bytes"),
        (serializer_plugin("bad", lambda value: bytearray(9)), "returned bytearray, not bytes"),
        (
            compressor_plugin("bad", fail),
            "the bad compressor (the plugin object 'bad') failed on 4000 bytes: ValueError",
        ),
        (compressor_plugin("bad", bytearray), "the bad compressor (the plugin object 'bad') returned bytearray"),
    ],
)
async def test_a_plugin_that_fails_to_encode_is_named_and_the_producer_goes_on(
    embedded: EmbeddedBroker, made: Any, text: str
) -> None:
    registry = PluginRegistry.from_plugins(made)
    options = {"compressor": "bad", "serializer": "bytes"} if "bad" in registry.names("compressor") else {}
    value: Any = b"x" * 4000 if options else [SECRET]
    async with leveret.connect(embedded.url, plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q"))
        async with client.producer(**(options or {"serializer": "bad"})) as producer:
            with pytest.raises(EncodeFailed) as one:
                await producer.publish(value, "q")
            with pytest.raises(EncodeFailed) as nowait:
                producer.publish_nowait(value, "q")
            batch = (await producer.publish_batch([value, value], "q")).failures
            for error in (one.value, nowait.value, batch[0], batch[1]):
                assert text in str(error)
                assert SECRET not in str(error)
            assert producer.next_delivery_tag == 1
        async with client.producer() as other:
            assert await other.publish(1, "q")


@pytest.mark.parametrize(
    ("decompress", "error", "text"),
    [
        (fail, DecodeFailed, "the bad compressor (the plugin object 'bad') could not decompress a body of 3 bytes"),
        (lambda data, limit: bytes(limit + 1), DecodeFailed, "returned 601 bytes; it must return at most 600 bytes"),
        (lambda data, limit: bytearray(data), DecodeFailed, "returned bytearray; it must return at most 600 bytes"),
        (lambda data, limit: None, DecodeFailed, "returned NoneType"),
    ],
)
async def test_a_plugin_that_fails_to_decompress_is_named(
    embedded: EmbeddedBroker, decompress: Any, error: type[Exception], text: str
) -> None:
    registry = PluginRegistry.from_plugins(compressor_plugin("bad", decompress=decompress))
    async with leveret.connect(embedded.url, plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q"))
        await publish_raw(client, "q", b"[1]", content_type="application/json", content_encoding="bad")
        with pytest.raises(error) as caught:
            await decoded(client, "q")
        assert text in str(caught.value)
        assert SECRET not in str(caught.value)


async def test_no_body_is_in_an_error_when_a_plugin_quotes_it(embedded: EmbeddedBroker) -> None:
    registry = PluginRegistry.from_plugins(serializer_plugin("bad", decode=fail))
    async with leveret.connect(embedded.url, plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q"))
        await publish_raw(client, "q", SECRET.encode(), content_type="text/x-bad")
        with pytest.raises(
            DecodeFailed, match=r"by the bad serializer \(the plugin object 'bad'\) \(ValueError\)"
        ) as caught:
            await decoded(client, "q")
        assert SECRET not in str(caught.value)


# ---------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "option", "text"),
    [
        ({"serializer": "yaml"}, "serializer", "there is no serializer 'yaml'; known are bytes, empty"),
        ({"compressor": "zip"}, "compressor", "there is no compressor 'zip'; known are deflate, gzip"),
        ({"compressor": "gzip", "compression_level": 10}, "compression_level", "is 10; gzip has 0 to 9"),
        ({"compression_level": 3}, "compression_level", "compression_level needs a compressor"),
        ({"retry": "eventually"}, "retry", "there is no retry 'eventually'"),
        ({"circuit_breaker": "fuse"}, "circuit_breaker", "there is no circuit breaker 'fuse'"),
    ],
)
async def test_an_option_that_names_nothing_is_an_error(
    client: leveret.Client, options: dict[str, Any], option: str, text: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        client.producer(**options)
    assert caught.value.option == option
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("options", "option", "text"),
    [
        ({"accept": ["text/x-none"]}, "accept", "no serializer reads 'text/x-none'"),
        ({"serializer": "yaml"}, "serializer", "there is no serializer 'yaml'"),
        ({"model": Shipment, "accept": ["text/plain"]}, "model", "text decodes into str"),
    ],
)
async def test_a_consumer_that_could_never_decode_is_an_error(
    client: leveret.Client, options: dict[str, Any], option: str, text: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        client.consumer("q", **options)
    assert caught.value.option == option
    assert text in str(caught.value)


# ---------------------------------------------------------------------- concurrency


async def test_producers_with_one_plugin_do_not_share_its_objects(client: leveret.Client, queue: str) -> None:
    class Item(msgspec.Struct):
        id: int
        text: str

    async def publish(number: int) -> None:
        async with client.producer(serializer="msgpack", compressor="lz4", compression_threshold=10) as producer:
            assert await producer.publish_batch([Item(number, "abc " * 50) for _ in range(50)], queue)

    await asyncio.gather(*map(publish, range(8)))
    counted = dict.fromkeys(range(8), 0)
    async with client.consumer(queue, Item) as consumer:
        async for message in consumer:
            assert message.value.text == "abc " * 50
            counted[message.value.id] += 1
            message.ack()
            if sum(counted.values()) == 400:
                break
    assert counted == dict.fromkeys(range(8), 50)
