"""Messages of one key keep their order, while others go on beside them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import Queues, running, until

import leveret
from leveret import Topology

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.mark.parametrize("how", ["routing_key", "header:customer", "function"])
async def test_messages_of_one_key_keep_their_order_and_others_go_on(
    queues: Queues, name: Callable[[str], str], how: str
) -> None:
    exchange, keys = name("ordered"), [f"k{number}" for number in range(7)]
    await queues.client.declare(Topology().exchange(exchange, "topic").bind(queues.work, exchange, "#"))
    async with queues.client.producer(exchange=exchange) as producer:
        values = [
            producer.message({"key": keys[number % 7], "number": number})
            .routing_key(keys[number % 7])
            .header("customer", keys[number % 7])
            for number in range(350)
        ]
        (await producer.publish_batch(values)).raise_for_failures()
    ordered_by: Any = (lambda message: message.value["key"]) if how == "function" else how
    consumer = queues.client.consumer(queues.work, concurrency=10, prefetch=200, ordered_by=ordered_by)
    seen: dict[str, list[int]] = {key: [] for key in keys}
    working: set[str] = set()
    most = 0

    async def handler(value: dict[str, Any], message: leveret.Message) -> None:
        nonlocal most
        key = value["key"]
        assert key not in working, "two messages of one key at once"
        working.add(key)
        most = max(most, len(working))
        await asyncio.sleep(0.0005 * (value["number"] % 4))
        working.remove(key)
        seen[key].append(value["number"])
        if sum(map(len, seen.values())) == 350:
            consumer.stop()

    await consumer.run(handler)
    assert seen == {key: list(range(index, 350, 7)) for index, key in enumerate(keys)}
    assert most == 7
    assert await queues.remaining() == []


async def test_a_message_is_parked_when_its_key_cannot_be_found(queues: Queues) -> None:
    await queues.publish(1, 2, 3)

    def key(message: leveret.Message) -> int:
        return 6 // (message.value - 2)

    consumer = queues.client.consumer(queues.work, ordered_by=key)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)
        if value == 3:
            consumer.stop()

    await consumer.run(handler)
    assert seen == [1, 3]
    assert consumer.counters()["parked"] == 1
    assert await queues.remaining(f"{queues.work}.parked") == [2]


async def test_what_waits_for_its_key_goes_back_when_the_consumer_ends(queues: Queues) -> None:
    await queues.publish(*range(10))
    consumer = queues.client.consumer(queues.work, concurrency=3, ordered_by="routing_key")
    began = asyncio.Event()

    async def handler(value: int, message: leveret.Message) -> None:
        if value == 3:
            began.set()
            await asyncio.Event().wait()

    async with running(consumer, handler):
        await began.wait()
        await until(lambda: consumer.health().waiting == 6)
    assert await queues.remaining() == list(range(3, 10))
