"""The content type that a caller gives is true: bytes are sent as they are, and nothing else under another's type."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.bodies import decoded, publish_raw, sent, taken_raw

import leveret
from leveret.errors import ConfigurationError, ContentTypeNotAccepted, EncodeFailed

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def single(client: leveret.Client, producer: leveret.Producer, value: Any, queue: str, options: Any) -> None:
    await producer.publish(value, queue, **options)


async def nowait(client: leveret.Client, producer: leveret.Producer, value: Any, queue: str, options: Any) -> None:
    await producer.publish_nowait(value, queue, **options)


async def enqueued(client: leveret.Client, producer: leveret.Producer, value: Any, queue: str, options: Any) -> None:
    await (await producer.enqueue(value, queue, **options))


async def in_a_batch(client: leveret.Client, producer: leveret.Producer, value: Any, queue: str, options: Any) -> None:
    (await producer.publish_batch([value], queue, **options)).raise_for_failures()


async def added(client: leveret.Client, producer: leveret.Producer, value: Any, queue: str, options: Any) -> None:
    async with producer.batch() as batch:
        batch.add(value, queue, **options)
    batch.result.raise_for_failures()


async def by_template(client: leveret.Client, producer: leveret.Producer, value: Any, queue: str, options: Any) -> None:
    await producer.publish(value, producer.template(queue, **options))


async def by_kept_template(
    client: leveret.Client, producer: leveret.Producer, value: Any, queue: str, options: Any
) -> None:
    await producer.publish_nowait(value, producer.template(queue, **options))


async def batch_by_template(
    client: leveret.Client, producer: leveret.Producer, value: Any, queue: str, options: Any
) -> None:
    (await producer.publish_batch([value], producer.template(queue, **options))).raise_for_failures()


async def fluently(client: leveret.Client, producer: leveret.Producer, value: Any, queue: str, options: Any) -> None:
    message = client.message(value).queue(queue)
    message.options.update(options)
    await message.publish()


async def in_a_transaction(
    client: leveret.Client, producer: leveret.Producer, value: Any, queue: str, options: Any
) -> None:
    async with producer.transaction() as transaction:
        await transaction.publish(value, queue, **options)


WAYS = [
    single,
    nowait,
    enqueued,
    in_a_batch,
    added,
    by_template,
    by_kept_template,
    batch_by_template,
    fluently,
    in_a_transaction,
]
every_way = pytest.mark.parametrize("publish", WAYS, ids=lambda way: way.__name__)
COPIES = [bytes, bytearray, memoryview]


@every_way
@pytest.mark.parametrize("kind", COPIES, ids=lambda kind: kind.__name__)
async def test_bytes_with_a_content_type_are_the_body(
    client: leveret.Client, queue: str, publish: Any, kind: Callable[[bytes], Any]
) -> None:
    async with client.producer() as producer:
        await publish(client, producer, kind(b"\x00\xff"), queue, {"content_type": "application/octet-stream"})
    message = await taken_raw(client, queue)
    assert (message.content_type, message.body) == ("application/octet-stream", b"\x00\xff")


@every_way
async def test_another_serializer_s_content_type_is_refused_for_other_values(
    client: leveret.Client, queue: str, publish: Any
) -> None:
    async with client.producer() as producer:
        for content_type, name in (("application/octet-stream", "bytes"), ("text/plain; charset=utf-8", "text")):
            with pytest.raises(leveret.LeveretError, match=rf"is that of the {name} serializer.*serializer='{name}'"):
                await publish(client, producer, {"id": 1}, queue, {"content_type": content_type})
        await publish(client, producer, {"id": 2}, queue, {"content_type": "application/vnd.shop.order+json"})
    message = await taken_raw(client, queue)
    assert (message.content_type, message.body) == ("application/vnd.shop.order+json", b'{"id":2}')


@every_way
async def test_a_compressor_s_encoding_is_refused_for_values_that_are_not_compressed_yet(
    client: leveret.Client, queue: str, publish: Any
) -> None:
    packed = gzip.compress(json.dumps({"id": 3}).encode())
    async with client.producer() as producer:
        with pytest.raises(leveret.LeveretError, match=r"compressed already; choose compressor='gzip'"):
            await publish(client, producer, {"id": 3}, queue, {"content_encoding": "gzip"})
        await publish(client, producer, packed, queue, {"content_encoding": "gzip"})
    assert await decoded(client, queue) == {"id": 3}


async def test_a_template_is_for_bytes_and_for_what_fits_it(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        template = producer.template(queue, content_type="application/vnd.shop.order+json")
        for value in (b'{"id":1}', {"id": 2}, b'{"id":3}'):
            await producer.publish(value, template)
        await producer.publish_batch([b'{"id":4}', {"id": 5}], template)
    assert [await decoded(client, queue) for _ in range(5)] == [{"id": number} for number in range(1, 6)]


async def test_bytes_with_a_content_type_are_compressed_like_other_bodies(client: leveret.Client, queue: str) -> None:
    body = b"<svg/>" * 1000
    async with client.producer(compressor="gzip") as producer:
        await producer.publish(body, queue, content_type="image/svg+xml")
        with pytest.raises(EncodeFailed, match=r"is that of the text serializer"):
            await producer.publish([1], queue, content_type="text/plain")
    message = await taken_raw(client, queue)
    assert (message.content_type, message.content_encoding) == ("image/svg+xml", "gzip")
    assert isinstance(message.body, bytes)
    assert gzip.decompress(message.body) == body


async def test_a_composite_serializer_takes_bytes_with_a_content_type(client: leveret.Client, queue: str) -> None:
    message = await sent_with(client, queue, b"\x01", "application/octet-stream", serializer="hybrid")
    assert (message.content_type, message.body) == ("application/octet-stream", b"\x01")


async def sent_with(
    client: leveret.Client, queue: str, value: Any, content_type: str, **options: Any
) -> leveret.Message:
    async with client.producer(**options) as producer:
        await producer.publish(value, queue, content_type=content_type)
    return await taken_raw(client, queue)


async def test_bytes_without_a_content_type_are_a_value_of_the_serializer(client: leveret.Client, queue: str) -> None:
    message = await sent(client, queue, b"x")
    assert (message.content_type, message.body) == ("application/json", b'"eA=="')


# ---------------------------------------------------------------------- suffixes


@pytest.mark.parametrize(
    "content_type",
    [
        "application/vnd.shop.order+json",
        "Application/Vnd.Shop.Order+JSON; v=2",
        "application/problem+json",
        "text/x+json",
    ],
)
@pytest.mark.parametrize("options", [{}, {"accept": ("application/json",)}], ids=["default", "accept"])
async def test_a_type_with_the_suffix_json_is_json(
    client: leveret.Client, queue: str, content_type: str, options: dict[str, Any]
) -> None:
    for model in (None, dict):
        await publish_raw(client, queue, b'{"id":7}', content_type=content_type)
        assert await decoded(client, queue, model, **options) == {"id": 7}


async def test_a_type_that_is_accepted_by_its_suffix_accepts_no_other(client: leveret.Client, queue: str) -> None:
    accept = ("application/vnd.shop.order+json",)
    await publish_raw(client, queue, b"[1]", content_type="application/vnd.shop.order+json;v=1")
    assert await decoded(client, queue, accept=accept) == [1]
    for other in ("application/vnd.shop.bill+json", "application/json"):
        await publish_raw(client, queue, b"[1]", content_type=other)
        with pytest.raises(ContentTypeNotAccepted, match=r"accepted are application/vnd.shop.order\+json$"):
            await decoded(client, queue, accept=accept)


@pytest.mark.parametrize("content_type", ["application/x+yaml", "application/x+", "application/+json/x", "json"])
async def test_a_suffix_that_no_serializer_reads_is_not_accepted(
    client: leveret.Client, queue: str, content_type: str
) -> None:
    await publish_raw(client, queue, b"[1]", content_type=content_type)
    with pytest.raises(ContentTypeNotAccepted):
        await decoded(client, queue)
    with pytest.raises(ConfigurationError, match=r"no serializer reads"):
        client.consumer(queue, accept=(content_type,))
