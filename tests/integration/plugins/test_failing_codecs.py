"""A codec plugin that fails is named, shows no body, and stops neither producers nor consumers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.support.bodies import decoded, publish_raw
from tests.support.plugins import compressor_plugin, plugin, serializer_plugin

import leveret
from leveret.errors import ConfigurationError, DecodeFailed, EncodeFailed
from leveret.plugins import CompressorSpec, PluginRegistry

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret import Message
    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")


SECRET = "do-not-tell-7731"


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
    compresses = "bad" in registry.names("compressor")
    options: dict[str, Any] = {"compressor": "bad", "serializer": "bytes"} if compresses else {"serializer": "bad"}
    value: Any = b"x" * 4000 if compresses else [SECRET]
    async with leveret.connect(embedded.url, plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q"))
        async with client.producer(**options) as producer:
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


class Panic(BaseException):
    """As PyO3's PanicException, which codecs written in Rust raise, is no Exception either."""


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("this cannot be printed")


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*_: Any) -> Any:
        raise error

    return function


def compressor_whose_factory_raises(error: Exception) -> Any:
    spec = CompressorSpec(name="bad", content_encoding="bad", factory=raising(error), levels=(1, 9))
    return plugin("bad", compressors=[spec])


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(lambda: compressor_whose_factory_raises(ConfigurationError("too old")), id="factory"),
        pytest.param(lambda: serializer_plugin("bad", decode=raising(Panic())), id="panic"),
        pytest.param(lambda: serializer_plugin("bad", decode=raising(asyncio.CancelledError())), id="cancelled"),
        pytest.param(lambda: serializer_plugin("bad", decode=raising(NoText())), id="no text"),
    ],
)
async def test_the_consumer_goes_on_when_a_plugin_cannot_decode_a_message(
    embedded: EmbeddedBroker, bad: Callable[[], Any]
) -> None:
    async with leveret.connect(embedded.url, plugins=PluginRegistry.from_plugins(bad())) as client:
        await client.declare(leveret.Topology().queue("q"))
        async with client.producer(serializer="bytes") as producer:
            await producer.publish(b"1", "q", content_type="text/x-bad", content_encoding=None)
            await producer.publish(b"1", "q", content_type="application/json", content_encoding="bad")
            await producer.publish(b"2", "q", content_type="application/json")
        consumer = client.consumer("q")
        seen: list[Any] = []

        async def handle(value: Any, message: Message) -> None:
            seen.append(value)
            consumer.stop()

        async with asyncio.timeout(3):
            await consumer.run(handle)
        assert seen == [2]
        assert consumer.counters()["undecodable"] == 2


@pytest.mark.parametrize(
    "error", [ValueError(f"Expected a number, got {SECRET}"), TypeError(f"unexpected keyword argument {SECRET}")]
)
async def test_neither_error_nor_log_has_a_body_when_a_plugin_quotes_it(
    embedded: EmbeddedBroker, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    bad = serializer_plugin("bad", encode=raising(error), decode=raising(error))
    async with leveret.connect(embedded.url, plugins=PluginRegistry.from_plugins(bad)) as client:
        await client.declare(leveret.Topology().queue("q"))
        async with client.producer(serializer="bad") as producer:
            with pytest.raises(EncodeFailed) as encoding:
                await producer.publish(SECRET, "q")
        async with client.producer(serializer="bytes") as producer:
            await producer.publish(SECRET.encode(), "q", content_type="text/x-bad")
            await producer.publish(SECRET.encode(), "q", content_type="text/x-bad")
            await producer.publish(b"1", "q", content_type="application/json")
        consumer = client.consumer("q")
        message = await consumer.get()
        assert message is not None
        with pytest.raises(DecodeFailed) as decoding:
            _ = message.value
        await consumer.close()
        consumer = client.consumer("q")

        async def handle(value: Any, message: Message) -> None:
            consumer.stop()

        await consumer.run(handle)
    assert SECRET not in str(encoding.value)
    assert SECRET not in str(decoding.value)
    assert SECRET not in caplog.text
    assert "the plugin object 'bad'" in str(decoding.value)  # whose fault it is, as when it encodes
