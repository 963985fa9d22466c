"""So many handlers run at once, and the messages of a queue are shared by its consumers."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import Queues, running, until

import leveret
from leveret.errors import AccessRefused

if TYPE_CHECKING:
    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_handlers_run_at_once_when_concurrency_is_higher_than_one(queues: Queues) -> None:
    await queues.publish(*range(8))
    consumer = queues.client.consumer(queues.work, concurrency=4)
    barrier = asyncio.Barrier(4)
    done = 0

    async def handler(value: int, message: leveret.Message) -> None:
        nonlocal done
        async with asyncio.timeout(5):
            await barrier.wait()  # passes only four at a time
        done += 1
        if done == 8:
            consumer.stop()

    await consumer.run(handler)
    assert consumer.counters()["handler_errors"] == 0
    assert consumer.counters()["acked"] == 8


async def test_handlers_run_one_after_the_other_when_concurrency_is_one(queues: Queues) -> None:
    await queues.publish(*range(20))
    consumer = queues.client.consumer(queues.work)
    at_work = 0

    async def handler(value: int, message: leveret.Message) -> None:
        nonlocal at_work
        at_work += 1
        assert at_work == 1
        await asyncio.sleep(0)
        at_work -= 1
        if value == 19:
            consumer.stop()

    await consumer.run(handler)
    assert consumer.counters()["handler_errors"] == 0


@pytest.mark.parametrize("prefetch", [2, 3, 5, 8, 20])
async def test_the_others_go_on_when_the_first_message_is_slow(queues: Queues, prefetch: int) -> None:
    await queues.publish(*range(100))
    consumer = queues.client.consumer(queues.work, prefetch=prefetch, concurrency=2)
    others_are_done = asyncio.Event()
    most = 0
    seen = []

    async def handler(value: int, message: leveret.Message) -> None:
        nonlocal most
        most = max(most, consumer.counters()["unsettled"])
        if value == 0:
            async with asyncio.timeout(10):
                await others_are_done.wait()
            consumer.stop()
            return
        seen.append(value)
        if value == 99:
            others_are_done.set()

    async with asyncio.timeout(20):
        await consumer.run(handler)
    assert seen == list(range(1, 100))
    assert most <= prefetch
    assert consumer.counters()["handler_errors"] == 0
    assert await queues.remaining() == []


async def test_all_workers_are_busy_when_handlers_wait(queues: Queues) -> None:
    await queues.publish(*range(16))
    consumer = queues.client.consumer(queues.work, concurrency=16)
    go = asyncio.Event()

    async def handler(value: int, message: leveret.Message) -> None:
        await go.wait()

    async with running(consumer, handler) as task:
        await until(lambda: consumer.health().working == 16)
        assert consumer.health().waiting == 0
        go.set()
        await until(lambda: consumer.counters()["acked"] == 16)
        consumer.stop()
        await task


async def test_s22_several_consumers_of_one_queue_run_at_once(queues: Queues) -> None:
    await queues.publish(*range(40))
    consumers = [queues.client.consumer(queues.work, prefetch=2, concurrency=2) for _ in range(4)]
    most = working = 0
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        nonlocal most, working
        working += 1
        most = max(most, working)
        await asyncio.sleep(0.01)
        working -= 1
        seen.append(value)
        if len(seen) == 40:
            for consumer in consumers:
                consumer.stop()

    async with asyncio.TaskGroup() as group:
        for consumer in consumers:
            group.create_task(consumer.run(handler))
    assert sorted(seen) == list(range(40))
    assert most == 8
    assert all(consumer.counters()["delivered"] for consumer in consumers)


async def test_work_is_shared_when_two_consumers_take_from_one_queue(queues: Queues, broker: Broker) -> None:
    seen: Counter[int] = Counter()
    by_whom: Counter[str] = Counter()

    async with leveret.connect(broker.url) as other:
        consumers = {
            "one": queues.client.consumer(queues.work, prefetch=5),
            "two": other.consumer(queues.work, prefetch=5),
        }

        def handler_of(who: str) -> Any:
            async def handler(value: int, message: leveret.Message) -> None:
                seen[value] += 1
                by_whom[who] += 1
                await asyncio.sleep(0)
                if len(seen) == 200:
                    for consumer in consumers.values():
                        consumer.stop()

            return handler

        tasks = [asyncio.create_task(consumer.run(handler_of(who))) for who, consumer in consumers.items()]
        await queues.publish(*range(200))
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)
    assert seen == Counter(range(200))
    assert min(by_whom.values()) > 20


async def test_other_consumers_are_refused_when_one_is_exclusive(queues: Queues) -> None:
    await queues.publish("mine", "mine too")
    async with queues.client.consumer(queues.work, exclusive=True) as first:
        (await anext(first)).ack()
        async with queues.client.consumer(queues.work) as second:
            with pytest.raises(AccessRefused, match=queues.work):
                await anext(second)
        (await anext(first)).ack()
