"""A batch tells what became of each message, whatever happens to it or to the iterable that its values come from."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from pamqp.commands import Basic, Channel, Confirm
from tests.support.handling import until
from tests.support.orders import Order, orders
from tests.support.peers import FakeServer, Peer
from tests.support.policies import NeverRetries
from tests.support.queues import messages

import leveret
from leveret import Outcome
from leveret.errors import EncodeFailed, ExchangeNotFound, MessageNacked, MessageReturned, PublishError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_s13_a_batch_tells_what_became_of_each_message(
    client: leveret.Client, other: leveret.Client, exchange: str, queue: str
) -> None:
    def publishing(order: Any, routing_key: str) -> leveret.MessageBuilder:
        return producer.message(order).exchange(exchange).routing_key(routing_key)

    good = orders(10)
    async with client.producer(mandatory=True) as producer:
        batch = [publishing(order, "order.created") for order in good]
        batch[3] = publishing(good[3], "order.lost")
        batch[5] = publishing(object(), "order.created")
        batch[7] = publishing(good[7], "order.created").priority(256)
        result = await producer.publish_batch(batch)

    assert not result
    assert (result.count, result.confirmed) == (10, 7)
    outcomes = [result.outcome(index) for index in range(10)]
    expected = [Outcome.CONFIRMED] * 10
    expected[3], expected[5], expected[7] = Outcome.RETURNED, Outcome.NOT_SENT, Outcome.NOT_SENT
    assert outcomes == expected
    assert {index: type(error) for index, error in result.failures.items()} == {
        3: MessageReturned,
        5: EncodeFailed,
        7: EncodeFailed,
    }
    read = await messages(other, queue, Order)
    assert [message.value for message in read] == [good[index] for index in (0, 1, 2, 4, 6, 8, 9)]
    assert {message.routing_key for message in read} == {"order.created"}


async def test_s13_a_batch_is_collected_in_a_block(
    client: leveret.Client, other: leveret.Client, exchange: str, queue: str
) -> None:
    good = orders(3)
    async with client.producer(exchange=exchange) as producer:
        async with producer.batch("order.created", headers={"tenant": 7}) as batch:
            assert [batch.add(order) for order in good] == [0, 1, 2]
            assert batch.add("straight", queue, exchange="", priority=9, headers={"tenant": 8}) == 3
            assert producer.next_delivery_tag == 1  # nothing leaves before the block ends
        assert batch.result.confirmed == 4
        with contextlib.suppress(ZeroDivisionError):
            async with producer.batch("order.created") as undone:
                undone.add("undone")
                _ = 1 / 0
    *first, last = await messages(other, queue)
    assert [msgspec.convert(message.value, Order) for message in first] == good
    assert [message.headers for message in first] == [{"tenant": 7}] * 3
    assert (last.value, last.priority, last.headers, last.exchange) == ("straight", 9, {"tenant": 8}, "")


async def test_s13_a_batch_takes_what_an_asynchronous_source_gives(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async def source() -> AsyncIterator[int]:
        for number in range(2500):
            if number % 700 == 0:
                await asyncio.sleep(0)
            yield number

    async with client.producer() as producer:
        result = await producer.publish_batch(source(), queue)
    assert (result.count, result.confirmed) == (2500, 2500)
    assert [message.value for message in await messages(other, queue)] == list(range(2500))


async def test_s13_a_batch_to_an_exchange_that_does_not_exist_in_part(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer:
        batch: list[Any] = list(range(20))
        batch[7] = producer.message(7).exchange("missing").routing_key("key")
        result = await producer.publish_batch(batch, queue)
    assert [index for index in range(20) if result.outcome(index) is not Outcome.CONFIRMED] == [7]
    assert isinstance(result.failures[7], ExchangeNotFound)
    read = [message.value for message in await messages(other, queue)]
    # What was in flight was sent again, so some may be there twice, but each is there.
    assert sorted(set(read)) == [number for number in range(20) if number != 7]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 2500])
async def test_every_message_is_confirmed_when_published_as_a_batch(
    client: leveret.Client, queue: str, count: int
) -> None:
    async with client.producer(batch_size=500) as producer:
        result = await producer.publish_batch(({"id": number} for number in range(count)), queue)
    assert result
    assert (result.count, result.confirmed, dict(result.failures)) == (count, count, {})
    assert await client.purge(queue) == count


async def test_the_next_batch_is_right_when_one_was_cancelled(client: leveret.Client, queue: str) -> None:
    async with client.producer(batch_size=50, max_outstanding=50) as producer:
        for turns in range(8):
            task = asyncio.create_task(producer.publish_batch(range(500), queue))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert await producer.publish_batch(range(100), queue)
        await producer.flush()
        counters = producer.counters()
        assert counters["confirmed"] == counters["published"]
        assert counters["outstanding"] == 0
    assert await client.purge(queue) == counters["published"]


async def test_only_the_bad_values_fail_when_they_stand_in_a_batch(client: leveret.Client, queue: str) -> None:
    bad = {0, 7, 8, 150, 299}
    values: list[Any] = [object() if index in bad else index for index in range(300)]
    async with client.producer(batch_size=100) as producer:
        result = await producer.publish_batch(values, queue)
        assert sorted(result.failures) == sorted(bad)
        assert all(type(error) is EncodeFailed for error in result.failures.values())
        assert (result.count, result.confirmed) == (300, 295)
        assert [result.outcome(index) for index in (0, 1)] == [Outcome.NOT_SENT, Outcome.CONFIRMED]
        with pytest.raises(EncodeFailed):
            result.raise_for_failures()
        assert producer.next_delivery_tag == 296
    async with client.consumer(queue) as consumer:
        received = []
        while message := await consumer.get():
            received.append(message.value)
            message.ack()
    assert received == [index for index in range(300) if index not in bad]


async def test_the_error_of_the_iterable_comes_through_when_it_fails(client: leveret.Client, queue: str) -> None:
    def values() -> Any:
        yield from range(150)
        raise ValueError("the application's")

    async with client.producer() as producer:
        with pytest.raises(ValueError, match="the application's"):
            await producer.publish_batch(values(), queue)
        await producer.flush()
        assert producer.counters()["confirmed"] == producer.counters()["published"] == 150
        await producer.publish("good", queue)


@pytest.mark.parametrize("compressor", [None, "gzip"])
async def test_the_rest_of_a_batch_goes_when_the_serializer_refuses_a_value_in_the_middle(
    client: leveret.Client, other: leveret.Client, queue: str, compressor: str | None
) -> None:
    values: list[Any] = [*range(2500)]
    refused = [0, 99, 100, 1500, 2499]
    for index in refused:
        values[index] = object()
    async with client.producer(compressor=compressor) as producer:
        result = await producer.publish_batch(iter(values), queue)
    assert sorted(result.failures) == refused
    assert {type(error) for error in result.failures.values()} == {EncodeFailed}
    assert (result.count, result.confirmed) == (2500, 2495)
    read = [message.value for message in await messages(other, queue)]
    assert read == [value for value in values if isinstance(value, int)]


def failing_after(count: int) -> Iterator[int]:
    yield from range(count)
    raise RuntimeError("the iterable failed")


@pytest.mark.parametrize("retry", [None, NeverRetries()])
async def test_what_came_before_is_published_when_the_iterable_of_a_batch_raises(
    tight_client: leveret.Client, retry: NeverRetries | None
) -> None:
    async with tight_client.producer(retry=retry) as producer:
        with pytest.raises(RuntimeError):
            await producer.publish_batch(failing_after(150), "q")
        await producer.flush()
        assert producer.counters()["confirmed"] == 150


async def test_flush_tells_of_failures_of_a_batch_whose_iterable_raised(tight_client: leveret.Client) -> None:
    async with tight_client.producer() as producer:
        await producer.publish(0, "full")
        with pytest.raises(RuntimeError):
            await producer.publish_batch(failing_after(100), "full")
        with pytest.raises(MessageNacked):
            await producer.flush()


async def test_other_producers_are_told_of_a_loss_when_a_cancelled_batch_was_half_confirmed() -> None:
    go_on = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select, Channel.Open, Confirm.Select)
        published = 0
        while published < 4:
            published += isinstance((await peer.receive())[1], Basic.Publish)
        peer.send(Basic.Ack(1), 1)
        await go_on.wait()
        peer.hang_up()

    async with (
        FakeServer(script) as server,
        leveret.connect(server.url, close_timeout=0.1, auto_recovery=False) as client,
    ):
        guarded = await client.producer(retry=NeverRetries()).open()
        other = await client.producer(confirm_timeout=1.0).open()
        waiting = asyncio.create_task(other.publish(1, "q"))
        batch = asyncio.create_task(guarded.publish_batch([1, 2, 3], "q"))
        await until(lambda: guarded.counters()["confirmed"] == 1)
        batch.cancel()
        with pytest.raises(asyncio.CancelledError):
            await batch
        go_on.set()
        with pytest.raises(PublishError) as caught:
            await waiting
        # It was told, and did not have to find out by its own deadline.
        assert type(caught.value) is PublishError
