"""Serializers, headers, iterables and listeners may use the producer that calls them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.queues import taken

import leveret
from leveret import Outcome, Topology
from leveret.broker import EmbeddedBroker
from leveret.errors import EncodeFailed, PublishError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from leveret.publishing.producer import Producer


def with_serializer(tight_client: leveret.Client, encode: Callable[[Any], bytes], **options: Any) -> Producer:
    """A producer that encodes by this function."""
    producer = tight_client.producer(**options)
    producer._encode = producer._encoder.encode = encode
    return producer


@pytest.mark.usefixtures("no_leftovers")
async def test_a_serializer_may_publish_on_its_own_producer(tight_client: leveret.Client) -> None:
    inner = False

    def encode(value: Any) -> bytes:
        nonlocal inner
        if isinstance(value, int) and not inner:
            inner = True
            producer.publish_nowait(f"inner {value}", "q")
            inner = False
        return json.dumps(value).encode()

    async with with_serializer(tight_client, encode) as producer:
        await producer.publish("first", "q")
        for number in range(600):  # the ring of publishings grows meanwhile
            producer.publish_nowait(number, "q")
        assert await producer.publish_batch(range(600, 1200), "q")
        await producer.publish(1200, "q")
    values = await taken(tight_client, "q")
    assert [value for value in values if isinstance(value, int)] == list(range(1201))
    assert len(values) == 1 + 2 * 1201


@pytest.mark.usefixtures("no_leftovers")
async def test_headers_may_publish_on_the_producer_that_reads_them(tight_client: leveret.Client) -> None:
    class Headers(Mapping[str, int]):
        def __len__(self) -> int:
            return 1

        def __iter__(self) -> Iterator[str]:
            producer.publish_nowait("inner", "q")
            return iter(["a"])

        def __getitem__(self, name: str) -> int:
            return 1

    async with tight_client.producer() as producer:
        for number in range(10):
            await producer.publish(number, "q", headers=Headers())
    assert [value for value in await taken(tight_client, "q") if value != "inner"] == list(range(10))


@pytest.mark.usefixtures("no_leftovers")
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_an_iterable_may_close_the_producer_that_reads_it(
    tight_client: leveret.Client, asynchronous: bool
) -> None:
    producer = await tight_client.producer(batch_size=10).open()
    closing: list[asyncio.Task[None]] = []

    def values() -> Iterator[int]:
        for number in range(1000):
            if number == 100:
                closing.append(asyncio.create_task(producer.close()))
            yield number

    async def slow_values() -> AsyncIterator[int]:
        for number in range(1000):
            if number == 100:
                await producer.close()
            yield number

    async with asyncio.timeout(10):
        result = await producer.publish_batch(slow_values() if asynchronous else values(), "q")
        await asyncio.gather(*closing)
    assert {type(error) for error in result.failures.values()} == {PublishError}
    assert {result.outcome(index) for index in result.failures} == {Outcome.NOT_SENT}
    assert len(await taken(tight_client, "q")) == result.confirmed


@pytest.mark.usefixtures("no_leftovers")
async def test_a_listener_may_publish_and_remove_itself(tight_client: leveret.Client) -> None:
    done = asyncio.Event()
    count = 0

    def listen(tag: int, multiple: bool) -> None:
        nonlocal count
        count += 1
        if count == 30:
            remove()
            done.set()
        else:
            producer.publish_nowait(count, "q")

    async with tight_client.producer() as producer:
        remove = producer.on_confirm(listen)
        await producer.publish(0, "q")
        async with asyncio.timeout(5):
            await done.wait()
        remove()
        await producer.flush()
        await producer.publish("unheard", "q")
    assert count == 30
    assert await taken(tight_client, "q") == [*range(30), "unheard"]


async def test_a_listener_that_fails_is_logged_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def listen(tag: int, multiple: bool) -> None:
        raise ValueError("the listener fails")

    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client, client.producer() as producer:
        await client.declare(Topology().queue("q"))
        heard: list[int] = []
        producer.on_confirm(listen)
        producer.on_confirm(lambda tag, multiple: heard.append(tag))
        producer.on_confirm(lambda tag, multiple: heard.append(-tag), nacks=True)
        assert (await producer.publish(1, "q")).outcome is Outcome.CONFIRMED
    assert heard == [1]
    assert [record.message for record in caplog.records if record.levelname == "ERROR"] == ["a confirm listener failed"]


@pytest.mark.usefixtures("no_leftovers")
async def test_values_fail_alone_when_the_serializer_raises_stop_iteration(tight_client: leveret.Client) -> None:
    def encode(value: Any) -> bytes:
        if value is None:
            return next(iter(()))
        return b"1"

    async with with_serializer(tight_client, encode) as producer:
        async with asyncio.timeout(5):
            result = await producer.publish_batch([1, None, 2, None], "q")
        assert (sorted(result.failures), result.confirmed) == ([1, 3], 2)
        assert {type(error) for error in result.failures.values()} == {EncodeFailed}
        with pytest.raises(EncodeFailed, match="StopIteration"):
            await producer.publish(None, "q")
