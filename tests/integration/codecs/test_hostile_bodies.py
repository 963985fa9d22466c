"""A body that is made to hurt is refused, and the consumer goes on."""

from __future__ import annotations

import gzip
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.bodies import decoded, publish_raw
from tests.support.bombs import MAX_SIZE, bombs

import leveret
from leveret.errors import BodyTooLarge, CodecError, ContentTypeNotAccepted, DecodeFailed

if TYPE_CHECKING:
    from leveret import Message

pytestmark = pytest.mark.usefixtures("no_leftovers")


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


async def test_hostile_bodies_are_parked_and_counted_while_a_handler_runs(client: leveret.Client, queue: str) -> None:
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
    assert consumer.counters()["parked"] == 3


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


async def test_bombs_are_parked_and_the_consumer_goes_on(client: leveret.Client, queue: str, name: Any) -> None:
    work = name("work")
    await client.declare(leveret.Topology().queue(work))
    made = bombs()
    async with client.producer(serializer="bytes") as producer:
        for encoding, body in made.values():
            await producer.publish(body, work, content_type="application/json", content_encoding=encoding)
        await producer.publish(b'"still here"', work, content_type="application/json")
    consumer = client.consumer(work, max_decompressed_size=MAX_SIZE, max_decompression_ratio=1_000_000)
    handled: list[Any] = []

    async def handle(value: Any, message: Message) -> None:
        handled.append(value)
        consumer.stop()

    await consumer.run(handle)

    assert handled == ["still here"]
    assert consumer.counters()["undecodable"] == consumer.counters()["parked"] == len(made)
    assert await client.purge(f"{work}.parked") == len(made)
