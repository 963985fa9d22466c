"""What a caller changes after its call has no part in the message."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.confirming import served

import leveret
from leveret.errors import CircuitOpen, EncodeFailed, PublishError
from leveret.message import Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def headers_of(client: leveret.Client, count: int) -> list[dict[str, Any]]:
    channel = await client.channel()
    headers = []
    for _ in range(count):
        message = await channel.basic_get("q", no_ack=True)
        assert message is not None
        headers.append(message.headers)
    await channel.close()
    return headers


async def test_a_template_keeps_its_headers_when_the_caller_changes_them(tight_client: leveret.Client) -> None:
    packed = leveret.FieldValue("F", {"b": [2]})
    headers: dict[str, Any] = {"a": {"list": [1]}, "raw": bytearray(b"1"), "typed": packed}
    async with tight_client.producer() as producer, tight_client.producer() as other:
        template = producer.template("q", headers=headers)
        headers["a"]["list"].append(2)
        headers["raw"][:] = b"2"
        packed.value["b"].append(3)
        headers["new"] = True
        await producer.publish("frames of the template", template)
        await producer.publish("frames of its own", template, message_id="1")
        await other.publish("frames of another producer", template)
    expected = {"a": {"list": [1]}, "raw": b"1", "typed": {"b": [2]}}
    assert await headers_of(tight_client, 3) == [expected] * 3


async def test_a_batch_keeps_the_headers_of_each_value_when_the_caller_uses_them_again(
    tight_client: leveret.Client,
) -> None:
    headers = {"n": 0}
    async with tight_client.producer() as producer:
        async with producer.batch("q", headers=headers) as batch:
            for n in range(1, 3):
                headers["n"] = n
                batch.add("with headers of its own", headers=headers)
            batch.add("with those of the batch")
        assert batch.result.confirmed == 3
    assert await headers_of(tight_client, 3) == [{"n": 1}, {"n": 2}, {"n": 0}]


async def test_publish_batch_keeps_its_headers_when_the_iterable_changes_them(tight_client: leveret.Client) -> None:
    headers = {"n": 0}

    def values() -> Iterator[leveret.MessageBuilder]:
        for n in range(1, 4):
            yield leveret.MessageBuilder("value").priority(n)
            headers["n"] = n

    async with tight_client.producer() as producer:
        assert await producer.publish_batch(values(), "q", headers=headers)
    assert await headers_of(tight_client, 3) == [{"n": 0}] * 3


@pytest.mark.parametrize("headers", [5, "text", [1], {"a": object()}, {1: 2}])
async def test_headers_that_fit_no_table_are_refused_as_before(tight_client: leveret.Client, headers: Any) -> None:
    async with tight_client.producer() as producer:
        with pytest.raises(EncodeFailed):
            producer.template("q", headers=headers)
        with pytest.raises(EncodeFailed):
            await producer.publish_batch(["value"], "q", headers=headers)


@pytest.mark.parametrize("times", [1, 3])
async def test_a_table_in_itself_is_refused(tight_client: leveret.Client, times: int) -> None:
    headers: dict[str, Any] = {}
    headers |= {str(n): headers for n in range(times)}  # copied by every path, three would be 3**100 tables
    async with tight_client.producer() as producer:
        with pytest.raises(EncodeFailed, match="nested deeper"):
            producer.template("q", headers=headers)


class Changing:
    """A retry policy in whose time the caller changes the value, and the queue gets room."""

    def __init__(self, client: leveret.Client, value: dict[str, int], headers: dict[str, int]) -> None:
        self.client = client
        self.value = value
        self.headers = headers
        self.task: asyncio.Task[int]

    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        assert attempt == 1
        self.value["n"] = self.headers["n"] = 2
        self.task = asyncio.get_running_loop().create_task(self.client.purge("full"))
        return 0.1


async def test_all_attempts_send_the_same_message_when_the_caller_changes_the_value(
    tight_client: leveret.Client,
) -> None:
    value, headers = {"n": 1}, {"n": 1}
    policy = Changing(tight_client, value, headers)
    async with tight_client.producer(retry=policy) as producer:
        await tight_client.message("fills the queue").queue("full").publish()
        await producer.publish(value, "full", headers=headers)
        await policy.task
    channel = await tight_client.channel()
    message = await channel.basic_get("full", no_ack=True)
    assert message is not None
    assert (message.body, message.headers) == (b'{"n":1}', {"n": 1, "x-leveret-resent": 1})


async def test_a_value_is_packed_before_it_waits_for_room() -> None:
    limits = {"max_outstanding": 1, "max_buffered": 1}
    async with served(**limits) as (server, producer):
        first = producer.publish_nowait("first", "q")
        value = {"n": 1}
        waiting = asyncio.create_task(producer.enqueue(value, "q"))
        await asyncio.sleep(0)  # it runs up to its wait
        with pytest.raises(EncodeFailed):
            await producer.enqueue(object(), "q")  # no wait for room
        value["n"] = 2
        server.ack(1)
        await first
        ticket = await waiting
        assert await server.publishings() == [b'"first"', b'{"n":1}']
        server.ack(2)
        await ticket


async def test_enqueue_asks_the_breaker_when_there_is_room() -> None:
    class Open:
        closed = False

        def before_call(self) -> None:
            raise CircuitOpen("open")

        def record(self, successes: int, failures: int, **_: Any) -> None:
            """Counts nothing."""

    breaker = Open()
    async with served(max_buffered=1, circuit_breaker=breaker) as (server, producer):
        breaker.closed = True
        first = producer.publish_nowait("first", "q")
        waiting = asyncio.create_task(producer.enqueue("second", "q"))
        await asyncio.sleep(0)
        breaker.closed = False
        server.ack(1)
        await first
        with pytest.raises(CircuitOpen):
            await waiting
        assert await server.publishings() == [b'"first"']


@pytest.mark.parametrize("compressor", [None, "gzip"])
async def test_large_headers_are_not_kept(tight_client: leveret.Client, compressor: str | None) -> None:
    async with tight_client.producer(compressor=compressor, compression_threshold=0) as producer:
        tracemalloc.start()
        try:
            for n in range(100):
                await producer.publish("value" * 1000, "q", headers={"large": str(n) * 20_000})
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert kept < 8_000_000  # the queue has some 4 MB of them, and the frames of all would be as much again


async def test_a_batch_refuses_values_outside_its_block(tight_client: leveret.Client) -> None:
    async with tight_client.producer() as producer:
        batch = producer.batch("q")
        with pytest.raises(PublishError, match="not open") as early:
            batch.add("before")
        async with batch:
            batch.add("inside")
        with pytest.raises(PublishError, match="not open") as late:
            batch.add("behind")
    assert early.value.outcome is late.value.outcome is Outcome.NOT_SENT
    assert batch.result.confirmed == 1
