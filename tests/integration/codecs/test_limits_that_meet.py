"""A message that a producer with default options has confirmed can be decoded by a consumer with default options."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.bodies import decoded

from leveret.errors import BodyTooLarge, EncodeFailed
from leveret.settings import ConnectionSettings, ConsumerSettings, ProducerSettings

if TYPE_CHECKING:
    from tests.support.brokers import Broker

    import leveret

pytestmark = pytest.mark.usefixtures("no_leftovers")

MIB = 2**20


def test_no_default_limit_of_producers_is_above_one_of_consumers_or_brokers() -> None:
    producer, consumer, connection = ProducerSettings(), ConsumerSettings(), ConnectionSettings()
    rabbitmq_4 = 16 * MIB  # max_message_size; tests/integration/versions asks each server for its own
    assert producer.max_body_size <= min(connection.max_body_size, rabbitmq_4)
    assert producer.max_uncompressed_size <= consumer.max_decompressed_size


@pytest.mark.server_version
async def test_the_largest_body_that_is_sent_by_default_is_decoded_by_default(
    client: leveret.Client, queue: str, broker: Broker
) -> None:
    largest = ProducerSettings().max_body_size
    async with client.producer(serializer="bytes") as producer:
        await producer.publish(bytes(largest), queue)
        with pytest.raises(BodyTooLarge, match=rf"{largest + 1} bytes is larger than max_body_size of {largest}"):
            await producer.publish(bytes(largest + 1), queue)
    assert len(await decoded(client, queue)) == largest


def text_of(size: int, ratio: float) -> str:
    """ASCII text of which gzip makes about a part in `ratio`, whatever its length."""
    letters = random.Random(1).choices("abcdefghijklmnop", k=round(size / ratio * 1.9))
    return "".join(letters).ljust(size, " ")


@pytest.mark.parametrize(
    "value",
    [" " * 100_000, " " * (5 * MIB), text_of(2 * MIB, 190), text_of(2 * MIB, 210), text_of(20 * MIB, 30)],
    ids=["100 kB of blanks", "5 MiB of blanks", "just below the ratio", "just above it", "20 MiB"],
)
@pytest.mark.parametrize("compressor", ["gzip", "deflate", "lz4", "zstd"])
async def test_what_compresses_well_is_decoded_by_default(
    client: leveret.Client, queue: str, value: str, compressor: str
) -> None:
    async with client.producer(compressor=compressor) as producer:
        await producer.publish(value, queue)
    assert await decoded(client, queue) == value


@pytest.mark.parametrize(
    ("size", "ratio", "text"),
    [
        (64 * MIB + 2, 30, r"67108866 bytes before compression is larger than max_uncompressed_size of 67108864"),
        (64 * MIB, 5000, r"67108864 bytes is larger than max_body_size of 16777216, .* \(max_decompression_ratio\)"),
    ],
)
async def test_what_consumers_would_refuse_is_refused_before_it_is_sent(
    client: leveret.Client, queue: str, size: int, ratio: float, text: str
) -> None:
    async with client.producer(serializer="text", compressor="gzip") as producer:
        with pytest.raises(BodyTooLarge, match=text):
            await producer.publish(text_of(size, ratio), queue)
        result = await producer.publish_batch([text_of(size, ratio), "next"], queue)
    assert list(result.failures) == [0]
    assert isinstance(result.failures[0], BodyTooLarge)
    assert await decoded(client, queue) == "next"


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"k": value}
    return value


@pytest.mark.parametrize(
    ("fits", "refused", "text"),
    [
        ({"k": [None] * 16_383}, {"k": [None] * 16_384}, r"'k' is beyond the limit of 16384 values"),
        (nested(32), nested(33), r"nested deeper than the limit of 32"),
    ],
    ids=["entries", "depth"],
)
async def test_headers_that_consumers_could_not_read_are_refused_before_they_are_sent(
    client: leveret.Client, queue: str, fits: dict[str, Any], refused: dict[str, Any], text: str
) -> None:
    async with client.producer() as producer:
        with pytest.raises(EncodeFailed, match=text):
            await producer.publish(1, queue, headers=refused)
        await producer.publish(2, queue, headers=fits)
    async with client.consumer(queue) as consumer:
        message = await consumer.get()
        assert message is not None
        assert (message.value, message.headers) == (2, fits)
        message.ack()
