"""A consumer says at once why it cannot begin, and whether it works."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Basic
from tests.support.handling import Queues, until
from tests.support.peers import ANSWERS, FakeServer, Peer

import leveret
from leveret.errors import ConfigurationError, NotFound

if TYPE_CHECKING:
    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_s22_s23_a_consumer_is_put_together_call_by_call(queues: Queues) -> None:
    await queues.publish(*range(10))
    made = queues.client.queue(queues.work, int).concurrency(3).prefetch(20).ack("each").processing_timeout(5)
    consumer = made.consumer_tag("mine").priority(1).consumer()
    settings = consumer.settings
    assert (settings.concurrency, settings.prefetch, settings.ack) == (3, 20, "each")
    assert (settings.processing_timeout, settings.consumer_tag, settings.priority) == (5.0, "mine", 1)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)
        if len(seen) == 10:
            raise asyncio.CancelledError

    async def consume() -> None:
        await made.consume(handler)

    task = asyncio.create_task(consume())
    await until(lambda: len(seen) >= 10)
    task.cancel()
    await asyncio.wait([task])
    assert sorted(set(seen)) == list(range(10))
    await queues.client.purge(queues.work)
    await queues.client.purge(queues.dead)


async def test_a_consumer_is_refused_at_once_when_it_cannot_work(client: leveret.Client, queue: str) -> None:
    async def generator(value: Any, message: leveret.Message) -> Any:
        yield value

    no_handlers: list[Any] = [None, "handler", generator, lambda: None, lambda value: None, lambda a, b, c: None]
    for handler in no_handlers:
        consumer = client.consumer(queue)
        with pytest.raises(ConfigurationError, match=r"the handler must|must not be a generator|must take"):
            await consumer.run(handler)
        assert consumer.state.value == "new", "nothing was sent"
    with pytest.raises(ConfigurationError, match="no serializer reads 'application/xml'"):
        client.consumer(queue, accept=("application/xml",))
    with pytest.raises(ConfigurationError, match="prefetch"):
        client.consumer(queue, prefetch=0)
    with pytest.raises(ConfigurationError, match="prefetsch"):
        client.consumer(queue, prefetsch=1)
    async with asyncio.timeout(5):
        for _ in range(2):
            with pytest.raises(leveret.errors.EncodeFailed, match="255"):
                await anext(client.consumer("q" * 256))


async def test_a_consumer_ends_with_not_found_when_there_is_no_queue(client: leveret.Client) -> None:
    async def handler(value: Any, message: leveret.Message) -> None:
        pass

    with pytest.raises(NotFound, match="no queue 'missing'") as missing:
        await client.consumer("missing").run(handler)
    assert (missing.value.reply_code, missing.value.class_id, missing.value.method_id) == (404, 60, 20)
    iterating = client.consumer("missing")
    for _ in range(2):
        with pytest.raises(NotFound):
            async with asyncio.timeout(5):
                await anext(iterating)
    with pytest.raises(NotFound):
        await client.consumer("missing").get()


async def test_no_connection_is_left_when_the_client_is_closed_while_a_consumer_connects(
    broker: Broker, queues: Queues
) -> None:
    client = await leveret.connect(broker.url)
    task = asyncio.create_task(anext(client.consumer(queues.work)))
    for _ in range(3):
        await asyncio.sleep(0)  # the consumer's connection is being made
    await client.close()
    async with asyncio.timeout(5):
        with pytest.raises((leveret.LeveretError, StopAsyncIteration)):
            await task
    link = client.consuming_link
    assert link.connection is None or not link.connection.is_open


async def test_a_consumer_is_live_when_the_broker_has_answered() -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                channel, value = await peer.receive()
                if isinstance(value, Basic.Consume):
                    asked.set()
                    await go.wait()
                peer.send(ANSWERS[value.name](value), channel)

    async with FakeServer(script) as server, leveret.connect(server.url) as client:
        consumer = client.consumer("q")
        subscribing = asyncio.create_task(consumer.subscribe())
        await asked.wait()
        health = consumer.health()
        assert (health.expected, health.live) == (True, False)
        go.set()
        await subscribing
        assert consumer.health().live
        await consumer.close()


async def test_a_consumer_that_failed_is_not_healthy(queues: Queues) -> None:
    consumer = queues.client.consumer(queues.work)
    await consumer.subscribe()
    assert consumer.health()
    await queues.client.delete_queue(queues.work)
    await until(lambda: not consumer.health().live)
    assert not consumer.health()
    await consumer.close()
    assert consumer.health()
    await queues.declare()
