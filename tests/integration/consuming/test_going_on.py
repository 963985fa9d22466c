"""Consumers that are started in an outage, whose queue is missing, or that may not go on."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import Queues, ends, running, until

import leveret
from leveret import Topology
from leveret.errors import ChannelClosed, ConnectionLost, ConsumerCancelled, NotFound, OperationTimeout
from leveret.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")

#: Delays that keep tests short.
QUICK: dict[str, Any] = {"recovery_initial_delay": 0.01, "recovery_max_delay": 0.05}


@pytest.fixture
async def proxy(broker: Broker) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(broker.url) as running_proxy:
        yield running_proxy


@pytest.fixture
async def behind(proxy: FaultProxy) -> AsyncIterator[leveret.Client]:
    async with leveret.connect(proxy.url, operation_timeout=5, **QUICK) as client:
        yield client


class Seen:
    """A handler that notes the values."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    async def __call__(self, value: Any, message: leveret.Message) -> None:
        self.values.append(value)


async def cut_off(proxy: FaultProxy, client: leveret.Client) -> None:
    """Takes the broker away."""
    proxy.refuse()
    proxy.reset()
    await until(lambda: client.connection.error is not None)


def every_way(client: leveret.Client, queue: str, seen: list[Any]) -> dict[str, Any]:
    """Returns what consumes one message in every way, each with a consumer of its own."""

    async def run() -> None:
        consumer = client.consumer(queue, prefetch=1)

        async def handler(value: Any, message: leveret.Message) -> None:
            seen.append(value)
            consumer.stop()

        await consumer.run(handler)

    async def iterate() -> None:
        async with client.consumer(queue, prefetch=1) as consumer:
            async for message in consumer:
                seen.append(message.value)
                message.ack()
                break

    async def batch() -> None:
        async with client.batches(queue, size=1, prefetch=1) as batches:
            got = await anext(batches)
            seen.extend(got.values)
            got.ack()

    async def fluent() -> None:
        consumer = client.queue(queue).prefetch(1).consumer()

        async def handler(value: Any, message: leveret.Message) -> None:
            seen.append(value)
            consumer.stop()

        await consumer.run(handler)

    async def get() -> None:
        async with client.consumer(queue) as consumer:
            message = await consumer.get()
            assert message is not None
            seen.append(message.value)
            message.ack()

    return {"run": run(), "async for": iterate(), "batches": batch(), "fluent": fluent(), "get": get()}


@pytest.mark.parametrize("used", [False, True], ids=["first", "again"])
async def test_every_way_to_consume_waits_for_the_connection_when_it_is_started_in_an_outage(
    queues: Queues, proxy: FaultProxy, behind: leveret.Client, used: bool
) -> None:
    if used:
        async with behind.consumer(queues.work) as before:
            assert await before.get() is None
    await cut_off(proxy, behind)
    seen: list[Any] = []
    tasks = [asyncio.create_task(way) for way in every_way(behind, queues.work, seen).values()]
    await asyncio.sleep(0.3)
    assert not any(task.done() for task in tasks)
    await queues.publish(*range(len(tasks)))
    proxy.accept()
    async with asyncio.timeout(10):
        await asyncio.gather(*tasks)
    assert sorted(seen) == list(range(len(tasks)))


async def test_what_has_a_deadline_keeps_it_in_an_outage_and_says_why_there_is_no_connection(
    queues: Queues, proxy: FaultProxy, name: Callable[[str], str]
) -> None:
    async with leveret.connect(proxy.url, operation_timeout=1.0, **QUICK) as client:
        await cut_off(proxy, client)
        consumer = client.consumer(queues.work)
        new = name("new")
        for call in (
            consumer.subscribe,
            consumer.get,
            consumer.__aenter__,
            lambda: client.declare(Topology().queue(new)),
            lambda: client.purge(queues.work),
        ):
            began = time.monotonic()
            # Where the machine is busy the deadline of the whole call comes first.
            said = r"operation_timeout of [01][.\d]* s; the last attempt failed: |took longer than 1 s"
            with pytest.raises(OperationTimeout, match=said):
                await call()
            assert 0.9 < time.monotonic() - began < 6
        # None of them is spoiled.
        declaring = asyncio.create_task(client.declare(Topology().queue(new)))
        await asyncio.sleep(0)
        proxy.accept()
        assert (await declaring).queues[new].name == new
        assert await consumer.get() is None
        await consumer.close()


async def test_a_wrong_name_is_told_at_once_when_a_consumer_is_started(
    queues: Queues, client: leveret.Client, name: Callable[[str], str]
) -> None:
    missing = name("missing")
    for start in (
        client.consumer(missing).run(Seen()),
        anext(client.consumer(missing)),
        client.consumer(missing).subscribe(),
    ):
        async with asyncio.timeout(5):
            with pytest.raises(NotFound, match=missing):
                await start


async def test_a_missing_queue_is_waited_for_when_the_consumer_was_started_in_an_outage(
    proxy: FaultProxy, behind: leveret.Client, client: leveret.Client, name: Callable[[str], str]
) -> None:
    queue, seen = name("late"), Seen()
    await cut_off(proxy, behind)
    async with running(behind.consumer(queue), seen) as task:
        await asyncio.sleep(0.1)
        proxy.accept()
        await asyncio.sleep(0.3)
        assert not task.done()
        await client.declare(Topology().queue(queue))
        async with client.producer() as producer:
            await producer.publish("late", queue)
        await until(lambda: seen.values == ["late"])


async def test_a_queue_that_stays_missing_ends_its_consumer(
    queues: Queues, client: leveret.Client, caplog: pytest.LogCaptureFixture
) -> None:
    consumer = client.consumer(queues.work, queue_missing_timeout=0.5)
    async with running(consumer, Seen()) as task:
        await until(lambda: consumer.health().live)
        began = time.monotonic()
        await queues.client.delete_queue(queues.work)
        async with asyncio.timeout(10):
            with pytest.raises(NotFound, match=r"missing for queue_missing_timeout of 0\.5 s") as missing:
                await task
        assert 0.4 < time.monotonic() - began < 5
    assert missing.value.reply_code == 404
    attempts = [it for it in caplog.records if "to subscribe again failed" in it.getMessage()]
    assert len(attempts) > 1
    assert all(it.levelno == logging.WARNING for it in attempts)
    await queues.declare()


async def test_a_name_that_the_server_chose_is_not_tried_again_when_its_queue_is_gone(
    client: leveret.Client, behind: leveret.Client, caplog: pytest.LogCaptureFixture
) -> None:
    channel = await client.channel()
    strange = (await channel.queue_declare("", durable=False, auto_delete=False)).queue
    assert strange is not None
    mine = (await client.declare(Topology().queue(exclusive=True))).queues[""].name
    for user, queue in ((behind, strange), (client, mine)):
        consumer = user.consumer(queue)
        async with running(consumer, Seen()) as task:
            await until(lambda: consumer.health().live)  # noqa: B023 - it is awaited in this turn
            other = await client.consuming_link.connection.channel() if user is client else channel  # type: ignore[union-attr]
            await other.queue_delete(queue)
            await ends(task)
            with pytest.raises(NotFound, match=queue):
                await task
    assert "attempt 2 to subscribe again" not in caplog.text


@pytest.mark.parametrize("loss", ["connection", "channel", "cancel"])
async def test_a_consumer_ends_at_its_first_loss_without_recovery(
    queues: Queues, proxy: FaultProxy, name: Callable[[str], str], loss: str
) -> None:
    async with leveret.connect(proxy.url, auto_recovery=False) as client:
        consumer = client.consumer(queues.work)
        async with running(consumer, Seen()) as task:
            await until(lambda: consumer.health().live)
            if loss == "connection":
                proxy.reset()
            elif loss == "cancel":
                await queues.client.delete_queue(queues.work)
            else:
                channel = consumer._subscription.channel
                assert channel is not None
                with pytest.raises(NotFound):
                    await channel.queue_declare(name("missing"), passive=True)
            await ends(task)
            error = task.exception()
    assert type(error) is {"connection": ConnectionLost, "channel": NotFound, "cancel": ConsumerCancelled}[loss]
    if loss == "cancel":
        await queues.declare()


async def test_only_a_cancelled_consumer_ends_when_it_is_to_stop_then(
    queues: Queues, proxy: FaultProxy, behind: leveret.Client, name: Callable[[str], str]
) -> None:
    consumer = behind.consumer(queues.work, on_cancel="stop")
    async with running(consumer, Seen()) as task:
        await until(lambda: consumer.health().live)
        channel = consumer._subscription.channel
        assert channel is not None
        with pytest.raises(ChannelClosed):
            await channel.queue_declare(name("missing"), passive=True)
        await until(lambda: consumer.health().live)
        lost = behind.consuming_link.connection
        proxy.reset()
        await until(lambda: behind.consuming_link.connection is not lost)
        await until(lambda: consumer.health().live)
        await queues.client.delete_queue(queues.work)
        await ends(task)
        with pytest.raises(ConsumerCancelled):
            await task
    await queues.declare()


async def test_an_app_ends_when_its_settings_say_that_a_consumer_ends(broker: Broker, queues: Queues) -> None:
    app = leveret.App(broker.url)
    app.consumer(queues.work, on_cancel="stop")(Seen())
    running_app = asyncio.create_task(app.serve())
    await until(lambda: app.counters().get("restarts") == 0)
    channel = await queues.client.channel()
    while (await channel.queue_declare(queues.work, passive=True)).consumer_count != 1:
        pass
    await queues.client.delete_queue(queues.work)
    async with asyncio.timeout(10):
        with pytest.raises(ConsumerCancelled):
            await running_app
    await queues.declare()
