"""The content type chooses the decoder among those that a consumer accepts."""

from __future__ import annotations

import dataclasses
import gzip
from typing import TYPE_CHECKING, Any

import msgpack
import pytest
from tests.support.bodies import decoded, publish_raw, sent, taken_raw
from tests.support.plugins import plugin, serializer_plugin

import leveret
from leveret.errors import ConfigurationError, ContentTypeNotAccepted, EncodeFailed
from leveret.plugins import CompositeSpec, CompressorSpec, PluginRegistry

if TYPE_CHECKING:
    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")


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


LONG = {"text": "to be or not to be, " * 100}


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
        others: list[dict[str, Any]] = [{}, {"accept": ["application/json"]}]
        for options in others:
            await publish_raw(client, "q", b"7", content_type="text/x-pickled")
            with pytest.raises(ContentTypeNotAccepted):
                await decoded(client, "q", **options)
        named: list[dict[str, Any]] = [{"serializer": "pickled"}, {"accept": ["text/x-pickled"]}]
        for options in named:
            await publish_raw(client, "q", b"7", content_type="text/x-pickled")
            assert await decoded(client, "q", **options) == 7


async def test_bytes_are_taken_as_they_came_when_asked_for(client: leveret.Client, queue: str) -> None:
    body = gzip.compress(b"text")
    for options, expected in (({"serializer": "bytes"}, body), ({"model": bytes}, b"text")):
        await publish_raw(client, queue, body, content_type="text/plain", content_encoding="gzip")
        assert await decoded(client, queue, **options) == expected


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


@dataclasses.dataclass
class Shipment:
    id: int
    text: str


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


@pytest.mark.parametrize(
    ("properties", "options"),
    [
        ({"content_type": "application/json", "content_encoding": "Identity"}, {}),
        ({"content_type": "application/json"}, {"accept": ["Application/JSON"]}),
        ({"content_type": "application/json"}, {"accept": ["application/json; charset=utf-8"]}),
        ({"content_type": "text/x-mixed"}, {}),
        ({"content_type": "application/json", "content_encoding": "x-mixed"}, {}),
    ],
)
async def test_case_and_parameters_do_not_matter_when_a_content_type_or_encoding_is_compared(
    embedded: EmbeddedBroker, properties: dict[str, Any], options: dict[str, Any]
) -> None:
    class Mixed:
        def __init__(self, level: int | None) -> None:
            self.compress = gzip.compress

        def decompress(self, data: bytes, max_size: int) -> bytes:
            return data

    spec = CompressorSpec(name="mixed", content_encoding="X-Mixed", factory=Mixed, levels=(1, 9))
    registry = PluginRegistry.from_plugins(
        serializer_plugin("mixed", content_type="Text/X-Mixed"), plugin("compressing", compressors=[spec])
    )
    async with leveret.connect(embedded.url, plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q"))
        async with client.producer(serializer="bytes") as producer:
            await producer.publish(b"[1]", "q", **properties)
        message = await client.consumer("q", **options).get()
        assert message is not None
        assert message.value == [1]
