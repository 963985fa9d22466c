"""A large body is compressed where that saves something, and consumers decompress it without being told."""

from __future__ import annotations

import dataclasses
import gzip
import json
import logging
import random
import zlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.support.bodies import body_of, decoded, sent, taken_raw
from tests.support.metrics import values
from tests.support.orders import Order, orders
from tests.support.plugins import compressor_plugin
from tests.support.queues import messages

import leveret
from leveret import ProducerSettings
from leveret.errors import BodyTooLarge, EncodeFailed
from leveret.plugins import PluginRegistry

if TYPE_CHECKING:
    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")


LEVEL_1 = 4  # RFC 1952, XFL: the compressor used its fastest algorithm


async def raw(client: leveret.Client, queue: str) -> leveret.Message:
    """The one message in a queue, with its body as it came."""
    async with client.consumer(queue, serializer="bytes") as consumer:
        message = await consumer.get()
        assert message is not None
        assert message.ack()
        return message


async def test_s28_bodies_over_1024_bytes_are_compressed_at_the_fastest_level_when_it_is_on(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    settings = ProducerSettings()
    assert (settings.compressor, settings.compression_threshold, settings.compression_level) == (None, 1024, None)
    order = orders(40)
    async with client.producer() as off, client.producer(compressor="gzip") as on:
        await off.publish(order, queue)
        assert (await raw(other, queue)).content_encoding is None
        await on.publish(order, queue)
    message = await raw(other, queue)
    assert message.content_encoding == "gzip"
    assert body_of(message)[8] == LEVEL_1
    assert msgspec.json.decode(gzip.decompress(body_of(message)), type=list[Order]) == order


async def test_s28_level_and_threshold_may_be_chosen(client: leveret.Client, other: leveret.Client, queue: str) -> None:
    text = "a" * 600
    async with client.producer(compressor="gzip", compression_threshold=500, compression_level=9) as producer:
        await producer.publish(text, queue)
    message = await raw(other, queue)
    assert body_of(message)[8] == 2  # RFC 1952, XFL: maximum compression
    assert json.loads(gzip.decompress(body_of(message))) == text


@pytest.mark.parametrize(
    ("text", "compressed"),
    [
        ("a" * 1022, False),  # 1024 bytes as JSON
        ("a" * 1023, True),
        (random.Random(38).randbytes(6000).hex(), True),  # gzip makes about 0.57 of it
        ("".join(random.Random(38).choices([chr(code) for code in range(35, 92)], k=6000)), True),
    ],
    ids=["1024_bytes", "1025_bytes", "half", "three_quarters"],
)
async def test_s38_a_body_is_compressed_only_above_1024_bytes(
    client: leveret.Client, other: leveret.Client, queue: str, text: str, compressed: bool
) -> None:
    plain = json.dumps(text).encode()
    async with client.producer(compressor="gzip") as producer:
        await producer.publish(text, queue)
    message = await raw(other, queue)
    if compressed:
        assert len(body_of(message)) < 0.9 * len(plain)
        assert message.content_encoding == "gzip"
        assert message.headers == {"original-size": len(plain)}
        # It is complete, which the guide's own was not: gzip's trailer has the length and a checksum.
        assert gzip.decompress(body_of(message)) == plain
    else:
        assert (message.body, message.content_encoding, message.headers) == (plain, None, {})


async def test_s38_a_body_is_compressed_only_when_that_saves_a_tenth(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    noise, zeros = random.Random(38).randbytes(10_000), bytes(10_000)
    async with client.producer(serializer="bytes", compressor="gzip") as producer:
        for share in range(0, 101, 2):  # per cent of the body that shrink to nearly nothing
            body = noise[: 100 * (100 - share)] + zeros[: 100 * share]
            ratio = len(gzip.compress(body, 1)) / len(body)
            await producer.publish(body, queue)
            message = await raw(other, queue)
            if ratio < 0.9:
                assert message.content_encoding == "gzip", share
                assert len(body_of(message)) / len(body) == pytest.approx(ratio, abs=0.002)
                assert gzip.decompress(body_of(message)) == body
                assert message.headers == {"original-size": 10_000}
            else:
                assert (message.body, message.content_encoding, message.headers) == (body, None, {}), share


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def test_s38_bytes_before_and_after_compression_are_counted_by_exchange(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    bodies = [b"a" * 1500, b"short", bytes(3000), noise(4000), b"abc" * 1000, noise(2000)]
    async with client.producer(serializer="bytes", compressor="gzip", compression_threshold=1000) as producer:
        await producer.publish_batch(bodies[:3], queue)
        for body in bodies[3:]:
            await producer.publish(body, queue)
    async with client.producer(serializer="bytes") as producer:  # the same exchange
        await producer.publish(bytes(5000), queue)
    small = [len(gzip.compress(body, 1)) for body in (bodies[0], bodies[2], bodies[4])]
    counted = values(client.metrics())
    assert counted["publishings_compressed", ""] == 3
    assert counted["publishings_incompressible", ""] == 2
    assert counted["compression_input", ""] == 1500 + 3000 + 3000
    assert counted["compression_output", ""] == sum(small)
    # What was sent: those, and the others as they were.
    assert counted["publishing", ""] == sum(small) + 5 + 4000 + 2000 + 5000
    assert sum(message.body_size for message in await messages(other, queue)) == counted["publishing", ""]


async def test_s38_producers_without_a_compressor_count_nothing_of_it(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        await producer.publish("a" * 5000, queue)
    names = {name for name, _ in values(client.metrics())}
    assert not names & {"publishings_compressed", "publishings_incompressible", "compression_input"}


async def test_s38_the_log_says_what_each_body_was_and_became_when_debugging(
    client: leveret.Client, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    body = b"a" * 1500
    async with client.producer(serializer="bytes", compressor="gzip") as producer:
        caplog.set_level(logging.INFO, "leveret.codecs")
        await producer.publish(body, queue)
        assert caplog.messages == []
        caplog.set_level(logging.DEBUG, "leveret.codecs")
        await producer.publish(body, queue)
        await producer.publish(noise(2000), queue)
        await producer.publish(b"short", queue)
    size = len(gzip.compress(body, 1))
    left = len(gzip.compress(noise(2000), 1))
    assert [record.message for record in caplog.records if record.name == "leveret.codecs"] == [
        f"gzip, compressed a body: 1500 -> {size} bytes ({size / 1500:.3f})",
        f"gzip, a body is sent uncompressed: 2000 -> {left} bytes ({left / 2000:.3f})",
    ]


LONG = {"text": "to be or not to be, " * 100}


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


@dataclasses.dataclass
class Shipment:
    id: int
    text: str


@pytest.mark.parametrize("model", [None, Shipment])
async def test_consumers_decompress_without_being_told(client: leveret.Client, queue: str, model: Any) -> None:
    order = Shipment(7, "carrots " * 1000)
    async with client.producer(compressor="gzip") as producer:
        for _ in range(3):
            await producer.publish(order, queue)
    for _ in range(3):
        assert await decoded(client, queue, model) == (order if model else dataclasses.asdict(order))
