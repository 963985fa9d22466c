"""Large bodies as views of pooled memory, on a live broker."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import leveret
    from leveret import Message

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_large_bodies_are_views_that_stay_when_a_channel_asks(client: leveret.Client, queue: str) -> None:
    rng = random.Random(32)
    bodies = [rng.randbytes(rng.choice([100, 100_000, 400_000])) for _ in range(120)]
    async with client.producer(serializer="bytes") as producer:
        (await producer.publish_batch(bodies, queue)).raise_for_failures()
    consumer = client.consumer(queue, serializer="bytes", prefetch=10, body_view_size=65_536)
    async with consumer:
        assert consumer._subscription.channel is not None
        reader = consumer._connection.transport.reader
        reader.view_bodies(consumer._subscription.channel.number, 65_536)
        kept: list[tuple[memoryview, bytes]] = []
        seen = 0

        async def handler(value: object, message: Message) -> None:
            nonlocal seen
            body = message.body
            assert value is body or value == body
            assert body == bodies[seen]
            assert type(body) is (memoryview if len(bodies[seen]) >= 65_536 else bytes)
            if isinstance(body, memoryview) and seen % 7 == 0:
                kept.append((body[1000:], hashlib.sha256(bodies[seen][1000:]).digest()))
            seen += 1
            if seen == len(bodies):
                consumer.stop()

        await consumer.run(handler)
    assert reader.body_pool is not None
    assert reader.body_pool.hits + reader.body_pool.misses == sum(len(body) >= 65_536 for body in bodies)
    assert kept
    for view, digest in kept:
        assert hashlib.sha256(view).digest() == digest
