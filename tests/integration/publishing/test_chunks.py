"""A batch leaves in chunks, of which a bounded number is in flight."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from typing import TYPE_CHECKING

import pytest
from tests.support.confirming import served
from tests.support.orders import orders

import leveret
from leveret import ProducerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_s14_chunks_of_1000_leave_and_a_bounded_number_is_in_flight() -> None:
    settings = ProducerSettings()
    assert (settings.batch_size, settings.batches_in_flight) == (1000, 2)
    async with served(batches_in_flight=3) as (server, producer):
        batch = asyncio.create_task(producer.publish_batch(range(20_000), "key"))
        received = 0
        lots = []
        while received < 20_000:
            lot = await server.publishings()
            assert lot == [b"%d" % number for number in range(received, received + len(lot))]
            lots.append(len(lot))
            received += len(lot)
            server.ack(received, multiple=True)
            await producer.flush()
        assert max(lots) > 1000
        assert max(lots) <= 3000
        assert await batch


async def test_s14_the_rate_of_each_batch_is_in_the_log_and_in_the_metrics(
    client: leveret.Client, other: leveret.Client, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "leveret.publishing")
    results = []
    async with client.producer() as producer:
        for _ in range(3):
            began = time.monotonic()
            results.append(await producer.publish_batch(orders(1000), queue))
            assert 0 < results[-1].elapsed <= time.monotonic() - began
        counted = {sample.metric.name: sample.value for sample in client.metrics()}
    logged = [record.getMessage() for record in caplog.records if record.message.startswith("published a batch")]
    assert logged == [
        f"published a batch: 1000 confirmed, 0 failed in {result.elapsed:.3f} s ({result.rate:.0f} msgs/s)"
        for result in results
    ]
    assert counted["batches"] == 3
    assert counted["batches_confirmed"] == 3000
    assert counted["batches_time"] == int(sum(result.elapsed for result in results) * 1000)
    assert all(result.rate == result.confirmed / result.elapsed for result in results)
    assert await other.purge(queue) == 3000


async def test_s14_each_chunk_of_a_batch_is_in_the_log_when_debugging(
    client: leveret.Client, other: leveret.Client, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    def chunks() -> list[tuple[object, ...]]:
        return [record.args for record in caplog.records if record.msg.startswith("wrote a chunk")]  # type: ignore[misc]

    values = [*range(2500), object(), *range(500)]
    async with client.producer() as producer:
        caplog.set_level(logging.INFO, "leveret.publishing")
        await producer.publish_batch(range(10), queue)
        assert chunks() == []
        before = producer.counters()["published_bytes"]
        caplog.set_level(logging.DEBUG, "leveret.publishing")
        result = await producer.publish_batch(values, queue)
        size = producer.counters()["published_bytes"] - before
    assert list(result.failures) == [2500]
    firsts, lasts, messages, sizes, unconfirmed, elapsed = zip(*chunks(), strict=True)
    assert (firsts[0], lasts[-1]) == (0, len(values) - 1)
    assert list(firsts[1:]) == [last + 1 for last in lasts[:-1]]
    assert max(messages) == 1000
    assert sum(messages) == 3000
    assert sum(sizes) == size
    assert max(unconfirmed) <= 2000
    assert list(elapsed) == sorted(elapsed)
    assert await other.purge(queue) == 3010


@pytest.mark.parametrize(("size", "chunk"), [(100, 1000), (10_486, 100), (104_858, 10)])
async def test_s15_a_chunk_has_1000_small_messages_or_100_large_ones(
    client: leveret.Client, other: leveret.Client, queue: str, size: int, chunk: int
) -> None:
    count = 3 * chunk + 100
    read_before: list[int] = []

    def values() -> Iterator[bytes]:
        for _ in range(count):
            # How many were written when this one was read: a chunk is read, and then written.
            read_before.append(producer.next_delivery_tag - 1)
            yield bytes(size)

    async with client.producer(serializer="bytes") as producer:
        assert await producer.publish_batch(values(), queue)
    written = sorted({*read_before, count})
    chunks = [after - before for before, after in itertools.pairwise(written)]
    # The first one tells how large they are, and chunks grow tenfold at the most.
    assert [each for each in chunks if each < chunk * 0.99 - 1] == [each for each in (1, 10, 100) if each < chunk] + (
        [chunks[-1]] if chunks[-1] < chunk * 0.99 - 1 else []
    )
    assert max(chunks) <= chunk
    assert await other.purge(queue) == count


async def test_s15_large_messages_are_not_read_faster_than_they_are_confirmed(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    most = 0

    def values() -> Iterator[bytes]:
        nonlocal most
        for _ in range(200):
            most = max(most, producer._window.outstanding_bytes)
            yield bytes(200_000)

    async with client.producer(serializer="bytes", max_outstanding_bytes=1_000_000) as producer:
        assert await producer.publish_batch(values(), queue)
    assert most <= 1_000_000 + 1024 * 1024 + 200_000  # what is added last is a chunk
    assert await other.purge(queue) == 200
