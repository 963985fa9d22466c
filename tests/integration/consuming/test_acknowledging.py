"""A message is acknowledged after its handler, before it, by hand or not at all; otherwise it comes again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from tests.support.handling import Queues, running, until
from tests.support.outcomes import failure_at_once

import leveret
from leveret.errors import ConnectionLost

if TYPE_CHECKING:
    from tests.support.brokers import Broker

    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.mark.parametrize("result", [None, True])
async def test_a_message_is_gone_when_its_handler_returns_none_or_true(queues: Queues, result: bool | None) -> None:
    await queues.publish(*range(10))
    consumer = queues.client.consumer(queues.work)
    seen = []

    async def handler(value: int, message: leveret.Message) -> bool | None:
        assert value == message.value
        seen.append(value)
        if value == 9:
            consumer.stop()
        return result

    await consumer.run(handler)
    assert seen == list(range(10))
    assert consumer.counters() == {
        "delivered": 10,
        "acked": 10,
        "unsettled": 0,
        "undecodable": 0,
        "handler_errors": 0,
        "requeued": 0,
        "released": 0,
        "dead_lettered": 0,
        "retried": 0,
        "parked": 0,
        "dropped": 0,
        "rejected": 0,
        "held": 0,
        "stale_acks": 0,
        "prefetch": 0,
        "expected": 0,
        "live": 0,
    }
    assert await queues.remaining() == []


async def test_a_message_is_dead_lettered_when_its_handler_returns_false(queues: Queues) -> None:
    await queues.publish("refused", "taken")
    consumer = queues.client.consumer(queues.work)

    async def handler(value: str, message: leveret.Message) -> bool:
        if value == "taken":
            consumer.stop()
        return value == "taken"

    await consumer.run(handler)
    assert await queues.dead_letters(1) == ["refused"]
    assert await queues.remaining() == []
    assert consumer.counters()["dead_lettered"] == 1


async def test_a_handler_may_settle_its_message_when_it_knows_better(queues: Queues) -> None:
    await queues.publish("ack", "dead_letter", "requeue", "release", "last")
    consumer = queues.client.consumer(queues.work, prefetch=1)
    seen = []

    async def handler(value: str, message: leveret.Message) -> None:
        seen.append((value, message.redelivered))
        if value == "last":
            consumer.stop()
        elif message.redelivered:
            assert message.ack()
        else:
            settle = getattr(message, value)
            assert settle()
            assert not settle()  # settled is settled
            assert not message.ack()

    await consumer.run(handler)
    assert [pair for pair in seen if pair[0] in ("ack", "dead_letter")] == [("ack", False), ("dead_letter", False)]
    for verb in ("requeue", "release"):
        assert [pair for pair in seen if pair[0] == verb] == [(verb, False), (verb, True)]
    assert await queues.dead_letters(1) == ["dead_letter"]
    assert await queues.remaining() == []
    assert consumer.counters()["unsettled"] == 0


async def test_settling_twice_does_nothing_when_a_message_is_settled(queues: Queues) -> None:
    await queues.publish("once")
    async with queues.client.consumer(queues.work) as consumer:
        message = await consumer.get()
        assert message is not None
        assert await message.ack() is True
        for settle in (message.ack, message.requeue, message.release, message.dead_letter):
            assert await settle() is False
        # No second acknowledgement was sent: the broker would have closed the channel (406).
        assert await consumer.get() is None
    assert not message.ack()  # its channel is gone


@pytest.mark.parametrize("ack", ["coalesced", "each"])
async def test_nothing_comes_back_when_every_handler_returned(queues: Queues, ack: str) -> None:
    await queues.publish(*range(200))
    consumer = queues.client.consumer(queues.work, ack=ack, concurrency=5)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        await asyncio.sleep(0.001 * (value % 3))
        seen.append(value)
        if len(seen) == 200:
            consumer.stop()

    await consumer.run(handler)
    assert sorted(seen) == list(range(200))
    assert consumer.counters()["acked"] == 200
    assert await queues.remaining() == []


async def test_a_result_settles_nothing_when_acknowledging_is_manual(queues: Queues) -> None:
    await queues.publish(*range(10))
    consumer = queues.client.consumer(queues.work, ack="manual")
    held: list[leveret.Message] = []

    async def handler(value: int, message: leveret.Message) -> bool:
        held.append(message)
        if value % 2:
            message.ack()
        if value == 9:
            consumer.stop()
        return False

    await consumer.run(handler)
    assert consumer.counters()["acked"] == 5
    assert consumer.counters()["dead_lettered"] == 0
    assert await queues.remaining() == [0, 2, 4, 6, 8]
    assert not held[0].ack(), "its channel is gone"
    assert consumer.counters()["stale_acks"] == 1


async def test_s24_messages_are_acknowledged_before_they_are_handled_when_that_is_asked_for(queues: Queues) -> None:
    await queues.publish(*range(100))
    consumer = queues.client.consumer(queues.work, ack="handoff", handoff_size=30, prefetch=10)
    go = asyncio.Event()
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        await go.wait()
        seen.append(value)

    async with running(consumer, handler) as task:
        # 30 are taken over, and the broker sends 10 ahead of their acknowledgements; the rest stays there.
        await until(lambda: consumer.counters()["acked"] == 30 and consumer.counters()["delivered"] == 40)
        await asyncio.sleep(0.05)
        assert consumer.counters()["acked"] == 30
        assert await queues.ready() == 60
        assert seen == []
        go.set()
        await until(lambda: len(seen) == 100)
        assert consumer.counters()["acked"] == 100
        assert await consumer.drain(5)
        await task
    assert seen == list(range(100))
    assert await queues.remaining() == []


async def test_s24_nothing_is_lost_when_a_process_ends_and_messages_are_acknowledged_after_processing(
    queues: Queues,
) -> None:
    await queues.publish(*range(50))
    consumer = queues.client.consumer(queues.work, concurrency=4)
    done: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        if value >= 20:
            await asyncio.Event().wait()
        done.append(value)

    async with running(consumer, handler):
        await until(lambda: len(done) == 20)
    assert await queues.remaining() == list(range(20, 50))


@pytest.mark.parametrize("ack", ["coalesced", "none"])
async def test_nothing_is_left_on_the_broker_when_a_consumer_needs_no_acknowledgement(queues: Queues, ack: str) -> None:
    await queues.publish(*range(100))
    consumer = queues.client.consumer(queues.work, ack=ack)
    seen = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)
        if len(seen) == 50:
            consumer.stop()
        if ack == "none":
            assert not message.ack()

    await consumer.run(handler)
    assert seen == list(range(50))
    assert await queues.remaining() == ([] if ack == "none" else list(range(50, 100)))


class Order(msgspec.Struct):
    id: int


@pytest.mark.parametrize("way", ["run", "run_and_fail", "run_undecodable", "async_for"])
async def test_everything_arrives_when_a_consumer_without_acknowledgements_is_slower_than_the_broker(
    queues: Queues, way: str
) -> None:
    # When more than ten times the prefetch wait, no deliveries are wanted; they have to come again.
    count = 300
    values: list[dict[str, Any]] = [{"id": number} for number in range(count)]
    if way == "run_undecodable":
        values = [{"id": "wrong"}] * (count - 1) + [{"id": count - 1}]
    await queues.publish(*values)
    consumer = queues.client.consumer(queues.work, Order, ack="none", prefetch=1, on_error=leveret.Drop())
    seen = []

    async def handler(order: Order, message: leveret.Message) -> None:
        seen.append(order.id)
        if order.id == count - 1:
            consumer.stop()
        if way == "run_and_fail":
            raise ValueError("failed")

    async with asyncio.timeout(10):
        if way == "async_for":
            async for message in consumer:
                seen.append(message.value.id)
                if len(seen) == count:
                    consumer.stop()
            await consumer.close()
        else:
            await consumer.run(handler)
    assert seen == ([count - 1] if way == "run_undecodable" else list(range(count)))
    # The connection is shared: another consumer still hears from the broker.
    await queues.publish("more")
    assert await queues.remaining() == ["more"]


async def test_exactly_what_was_not_done_comes_back_when_the_connection_ends(broker: Broker, queues: Queues) -> None:
    await queues.publish(*range(40))
    slow = {3, 4, 17, 30}
    finished: list[int] = []
    others_are_done = asyncio.Event()

    async def handler(value: int, message: leveret.Message) -> bool:
        if value in slow:
            await asyncio.Event().wait()
        finished.append(value)
        if len(finished) == 36:
            others_are_done.set()
        return value != 20  # one is dead-lettered, in the middle

    async with leveret.connect(broker.url) as other:
        consumer = other.consumer(queues.work, prefetch=16, concurrency=5, refused=leveret.DeadLetter())
        async with running(consumer, handler):
            await others_are_done.wait()
    assert sorted(await queues.remaining()) == sorted(slow)
    assert await queues.dead_letters(1) == [20]


async def test_every_message_can_be_settled_when_gets_run_at_once(queues: Queues) -> None:
    await queues.publish(*range(5))
    async with queues.client.consumer(queues.work) as consumer:
        messages = await asyncio.gather(*(consumer.get() for _ in range(6)))
        assert [message.value for message in messages if message] == list(range(5))
        assert messages[5] is None
        assert all(message.ack() for message in messages if message)
    assert await queues.remaining() == []


async def test_everything_taken_over_is_acknowledged_when_there_are_more_workers_than_may_be_unfinished(
    queues: Queues,
) -> None:
    await queues.publish(*range(20))
    consumer = queues.client.consumer(queues.work, ack="handoff", handoff_size=3, prefetch=10, concurrency=10)
    most = 0

    async def handler(value: int, message: leveret.Message) -> None:
        nonlocal most
        health = consumer.health()
        withheld = consumer.counters()["unsettled"]
        most = max(most, health.working + health.waiting - withheld)
        await asyncio.sleep(0.02)

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["delivered"] == 20 and not consumer.health().working)
        await until(lambda: consumer.counters()["acked"] == 20, seconds=2)
        assert consumer.counters()["stale_acks"] == 0
    assert most <= 3
    assert await queues.remaining() == []


async def test_nothing_is_settled_on_another_channel_when_that_of_a_message_was_closed(queues: Queues) -> None:
    await queues.publish(1, 2)
    # The number of a channel that the server has closed is used again when there is no other.
    async with (
        leveret.connect(queues.client.settings.replace(channel_max=1)) as client,
        client.consumer(queues.work) as consumer,
    ):
        message = await consumer.get()
        assert message is not None
        channel = consumer._subscription.channel
        assert channel is not None
        with pytest.raises(leveret.errors.NotFound):
            await channel.queue_declare("there is no such queue", passive=True)
        other = await consumer._connection.channel()
        assert other.number == channel.number
        assert message.is_settled
        assert not message.ack()
        await asyncio.sleep(0.05)
        await other.basic_qos(1)
        await other.close()
    assert sorted(await queues.remaining()) == [1, 2]


async def test_a_message_comes_again_when_the_connection_is_lost_while_it_is_handled(
    proxy: FaultProxy, client: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer:
        await producer.publish("work", queue)
    proxied = await leveret.connect(proxy.url, close_timeout=0.5, auto_recovery=False)
    consumer = proxied.consumer(queue)
    started, lost = asyncio.Event(), asyncio.Event()
    settled = []

    async def handler(value: str, message: leveret.Message) -> None:
        started.set()
        await lost.wait()
        settled.append(bool(message.ack()))  # too late: it belongs to a channel that is gone

    task = asyncio.create_task(consumer.run(handler))
    await started.wait()
    proxy.reset()
    await until(lambda: not consumer.health().live)
    lost.set()
    assert isinstance(await failure_at_once(task), ConnectionLost)
    assert settled == [False]
    await proxied.close()
    async with asyncio.timeout(5), client.consumer(queue) as again:
        message = await anext(again)
        assert (message.value, message.redelivered) == ("work", True)
        message.ack()
