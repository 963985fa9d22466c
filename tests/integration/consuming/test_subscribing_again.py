"""A consumer goes on when its queue, its channel or its connection is there again."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pamqp.commands import Basic
from tests.support.handling import Queues, running, until
from tests.support.peers import ANSWERS, FakeServer, Peer
from tests.support.plugins import plugin

import leveret
from leveret.errors import ConsumerCancelled
from leveret.plugins import PluginRegistry, PolicySpec
from leveret.testing import FaultProxy

if TYPE_CHECKING:
    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_the_consumer_goes_on_when_its_queue_was_deleted_and_made_again(
    queues: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    await queues.publish("before")
    consumer = queues.client.consumer(queues.work)
    seen: list[str] = []

    async def handler(value: str, message: leveret.Message) -> None:
        seen.append(value)

    async with running(consumer, handler) as task:
        await until(lambda: seen == ["before"])
        await queues.client.delete_queue(queues.work)
        await until(lambda: not consumer.health().live)
        assert not consumer.health(), "it is expected and not live"
        await queues.declare()
        await queues.publish("after")
        await until(lambda: seen == ["before", "after"])
        assert consumer.health()
        assert not task.done()
        assert await consumer.drain(5)
        await task
    assert "subscribes again" in caplog.text


async def test_the_consumer_goes_on_with_the_next_connection(broker: Broker, queues: Queues) -> None:
    await queues.publish(*range(10))
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, recovery_max_delay=0.2) as client:
        consumer = client.consumer(queues.work, concurrency=2)
        go, held = asyncio.Event(), asyncio.Event()
        seen: Counter[int] = Counter()
        messages: list[leveret.Message] = []

        async def handler(value: int, message: leveret.Message) -> None:
            messages.append(message)
            if value == 5 and not go.is_set():
                held.set()
                await go.wait()
            seen[value] += 1

        async with running(consumer, handler) as task:
            await held.wait()
            proxy.reset()
            await until(lambda: not consumer.health().live)
            # The handler of the lost connection returns later, when its message came again already.
            await until(lambda: consumer.health().live and set(seen) >= set(range(10)) - {5})
            go.set()
            await until(lambda: set(seen) == set(range(10)))
            assert await consumer.drain(5)
            await task
        counters = consumer.counters()
        assert counters["stale_acks"] >= 1, "its acknowledgement is dropped, not sent to the new channel"
        assert [message for message in messages if not message.is_settled] == []
    assert await queues.remaining() == []


async def test_the_consumer_ends_when_it_is_told_not_to_begin_again(queues: Queues) -> None:
    consumer = queues.client.consumer(queues.work, on_cancel="stop")

    async def handler(value: int, message: leveret.Message) -> None:
        pass

    async with running(consumer, handler) as task:
        await until(lambda: consumer.health().live)
        await queues.client.delete_queue(queues.work)
        with pytest.raises(ConsumerCancelled):
            async with asyncio.timeout(5):
                await task
    await queues.declare()


async def test_closing_ends_the_attempts_to_begin_again(queues: Queues) -> None:
    consumer = queues.client.consumer(queues.work)

    async def handler(value: int, message: leveret.Message) -> None:
        pass

    async with running(consumer, handler) as task:
        await until(lambda: consumer.health().live)
        await queues.client.delete_queue(queues.work)
        await until(lambda: not consumer.health().live)
        consumer.stop()
        async with asyncio.timeout(5):
            await task
    await queues.declare()


async def test_every_way_to_consume_ends_with_an_error_when_it_is_told_not_to_begin_again(queues: Queues) -> None:
    consumer = queues.client.consumer(queues.work, on_cancel="stop")
    iterating = queues.client.consumer(queues.work, on_cancel="stop")
    waiting = asyncio.create_task(anext(iterating))

    async def handler(value: str, message: leveret.Message) -> None:
        raise AssertionError("the queue is empty")

    async with running(consumer, handler) as task:
        channel = await queues.client.channel()
        while (await channel.queue_declare(queues.work, passive=True)).consumer_count != 2:
            pass
        await queues.client.delete_queue(queues.work)
        async with asyncio.timeout(5):
            for ended in (task, waiting):
                with pytest.raises(ConsumerCancelled) as cancelled:
                    await ended
                assert cancelled.value.queue == queues.work
                assert cancelled.value.consumer_tag
    with pytest.raises(ConsumerCancelled):
        await anext(iterating)


@pytest.mark.parametrize("how", ["drain", "cancel", "pause", "set_prefetch"])
async def test_nothing_waits_for_the_connection_when_it_is_being_made_again(
    broker: Broker, queues: Queues, how: str
) -> None:
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, recovery_initial_delay=0.05) as client:
        consumer = client.consumer(queues.work)

        async def handler(value: int, message: leveret.Message) -> None: ...

        await queues.publish(1)
        async with running(consumer, handler) as task:
            await until(lambda: consumer.counters()["acked"] == 1)
            proxy.close()
            await until(lambda: not consumer.health().live)
            await asyncio.sleep(0.3)
            async with asyncio.timeout(1):
                if how == "drain":
                    assert await consumer.drain(20)
                elif how == "set_prefetch":
                    await consumer.set_prefetch(7)
                else:
                    await getattr(consumer, how)()
                if how in ("drain", "cancel"):
                    await task


async def test_a_backoff_policy_chooses_when_a_consumer_begins_again(broker: Broker, queues: Queues) -> None:
    class Steady:
        asked: ClassVar[list[int]] = []

        def delay(self, attempt: int, /) -> float:
            self.asked.append(attempt)
            return 0.001

    registry = PluginRegistry.from_plugins(
        plugin("waits", policies=[PolicySpec(kind="backoff", name="steady", factory=Steady)])
    )
    # Without the policy it would be up to a day.
    options: dict[str, Any] = {"recovery_initial_delay": 86_400, "recovery_max_delay": 86_400}
    async with (
        FaultProxy(broker.url) as proxy,
        leveret.connect(proxy.url, plugins=registry, recovery_backoff="steady", **options) as client,
    ):
        consumer = client.consumer(queues.work)
        seen: list[int] = []

        async def handler(value: int, message: leveret.Message) -> None:
            seen.append(value)

        async with running(consumer, handler):
            await until(lambda: consumer.health().live)
            proxy.reset()
            await queues.publish(1)
            await until(lambda: seen == [1])
    # The consumer's own sequence, and that of its connection, whose first attempt counts.
    assert Steady.asked == [1, 2]


async def test_a_consumer_that_was_cancelled_does_not_begin_again(broker: Broker, queues: Queues) -> None:
    await queues.publish(1)
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, recovery_max_delay=0.1) as client:
        consumer = client.consumer(queues.work)
        began, go = asyncio.Event(), asyncio.Event()
        calls = 0

        async def handler(value: int, message: leveret.Message) -> None:
            nonlocal calls
            calls += 1
            began.set()
            await go.wait()

        async with running(consumer, handler) as task:
            await began.wait()
            await consumer.cancel()
            proxy.reset()
            await until(lambda: consumer.counters()["unsettled"] == 0)
            await asyncio.sleep(0.3)
            go.set()
            with contextlib.suppress(leveret.errors.LeveretError):
                async with asyncio.timeout(5):
                    await task
            assert calls == 1
    assert await queues.remaining() == [1]


async def test_a_paused_consumer_goes_on_after_its_connection_was_lost(broker: Broker, queues: Queues) -> None:
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, recovery_max_delay=0.1) as client:
        consumer = client.consumer(queues.work)
        seen: list[int] = []

        async def handler(value: int, message: leveret.Message) -> None:
            seen.append(value)

        async with running(consumer, handler):
            await until(lambda: consumer.health().live)
            await consumer.pause()
            lost = consumer._subscription.channel
            proxy.reset()
            await until(lambda: consumer._subscription.channel is not lost)
            await consumer.resume()
            await queues.publish(1)
            await until(lambda: seen == [1])


async def test_a_consumer_that_is_cancelled_again_and_again_subscribes_more_and_more_seldom() -> None:
    asked = 0

    async def script(peer: Peer) -> None:
        nonlocal asked
        await peer.handshake()
        while True:
            channel, method = await peer.receive()
            peer.send(ANSWERS[method.name](method), channel)
            if isinstance(method, Basic.Consume):
                asked += 1
                await asyncio.sleep(0.002)  # the consumer goes on, and is lost right behind
                peer.send(Basic.Cancel(method.consumer_tag, True), channel)

    async def handle(body: object, message: leveret.Message) -> None: ...

    async with FakeServer(script) as server, leveret.connect(server.url) as client:
        consumer = client.consumer("q")
        running = asyncio.create_task(consumer.run(handle))
        await asyncio.sleep(3)
        running.cancel()
        await asyncio.wait([running])
        await consumer.close()
    # Delays of up to 0.1, 0.2, 0.4, 0.8 ... s; without their growth there would be about 50.
    assert 2 < asked < 16
