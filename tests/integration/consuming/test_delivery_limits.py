"""A message is parked before its quorum queue would drop it, because it has come back too often."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import running, until
from tests.support.queues import messages, taken

import leveret
from leveret import Quorum, Topology

if TYPE_CHECKING:
    from collections.abc import Callable

# The embedded broker has no quorum queues with a count of deliveries.
pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.integration]


async def come_back(client: leveret.Client, queue: str, times: int) -> None:
    """Has the queue's only message come back, as if the process had crashed."""
    async with asyncio.timeout(20), client.consumer(queue) as consumer:
        while times:
            if (message := await consumer.get()) is not None:
                message.requeue()
                times -= 1


@pytest.fixture
async def declared(rabbitmq: Any, unique_name: Callable[[str], str]) -> Any:
    async with leveret.connect(rabbitmq.url) as client:
        queue = unique_name("limited")
        yield client, queue
        for name in (queue, f"{queue}.parked"):
            await client.delete_queue(name)


@pytest.mark.parametrize(
    ("kind", "times", "since"),
    [(Quorum(delivery_limit=5), 4, (3,)), (Quorum(), 19, (4,))],
    ids=["the limit of the queue", "the limit of RabbitMQ 4"],
)
@pytest.mark.parametrize("way", ["run", "batches"])
@pytest.mark.server_version
async def test_a_message_is_parked_before_its_handler_is_called_when_the_next_loss_could_be_the_last(
    declared: Any, rabbitmq: Any, kind: Quorum, times: int, since: tuple[int, ...], way: str
) -> None:
    client, queue = declared
    await client.declare(Topology().queue(queue, kind))
    async with client.producer() as producer:
        await producer.publish("crashes", queue)
    await come_back(client, queue, times)
    handled: list[Any] = []

    async def handler(value: Any, message: Any) -> None:
        handled.append(value)

    if way == "run":
        consumer = client.consumer(queue)
        task = asyncio.create_task(consumer.run(handler))
    else:
        batches = client.batches(queue, size=1)
        consumer = batches.consumer
        task = asyncio.create_task(batches.run(handler))
    if rabbitmq.version < since:
        await until(lambda: handled)
        assert consumer.counters()["parked"] == 0
    else:
        await until(lambda: consumer.counters()["parked"] == 1)
        assert handled == []
    consumer.stop()
    await task
    if rabbitmq.version >= since:
        (parked,) = await messages(client, f"{queue}.parked")
        limit = times + 1
        assert parked.headers["x-leveret-error"] == f"delivered {times + 1} times; the limit of its queue is {limit}"
        assert await taken(client, queue) == []


async def test_the_broker_is_left_to_dead_letter_what_comes_back_too_often(
    declared: Any, unique_name: Callable[[str], str]
) -> None:
    client, queue = declared
    dead = unique_name("dead")
    limited = Quorum(delivery_limit=3, dead_letter_exchange="", dead_letter_routing_key=dead)
    await client.declare(Topology().queue(dead).queue(queue, limited))
    async with client.producer() as producer:
        await producer.publish("crashes", queue)
    consumer = client.consumer(queue)

    async def handler(value: str, message: leveret.Message) -> None:
        await message.requeue()

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["requeued"] == 4)
    assert consumer.counters()["parked"] == 0
    async with asyncio.timeout(10), client.consumer(dead) as letters:
        (await anext(letters)).ack()
    await client.delete_queue(dead)
