"""A connection has one owner, one loop and one end, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.loops import every_loop
from tests.support.plugins import plugin
from tests.support.reopening import unkept

import leveret
from leveret import Topology
from leveret.errors import ConfigurationError, ConnectionClosed, WrongLoopError
from leveret.plugins import MetricsSpec, PluginRegistry
from leveret.settings import MonitoringSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_publishing_and_consuming_have_their_own_connections_when_both_are_used(
    client: leveret.Client, queue: str
) -> None:
    async with client.consumer(queue) as consumer:
        await consumer.get()
        publishing, consuming = client.connection, client.consuming_link.connection
        assert consuming is not None
        assert consuming is not publishing
        assert (publishing.name, consuming.name) == ("leveret (publish)", "leveret (consume)")
        assert repr(publishing).startswith("<Connection 'leveret (publish)' open")


@every_loop
async def test_every_call_is_refused_when_it_comes_from_another_threads_loop(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer, client.consumer(queue) as consumer:
        await producer.publish(1, queue)
        message = await consumer.get()
        assert message is not None
        ticket = producer.publish_nowait(2, queue)

        async def publish() -> None:
            await producer.publish(3, queue)

        async def nowait() -> None:
            producer.publish_nowait(3, queue)

        async def ack() -> None:
            message.ack()

        async def await_ticket() -> None:
            await ticket

        calls: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "publish": publish,
            "publish_nowait": nowait,
            "publish_batch": lambda: producer.publish_batch([3], queue),
            "flush": producer.flush,
            "ticket": await_ticket,
            "close producer": producer.close,
            "declare": lambda: client.declare(Topology().queue(queue)),
            "channel": client.channel,
            "purge": lambda: client.purge(queue),
            "get": consumer.get,
            "ack": ack,
            "update_secret": lambda: client.connection.update_secret("guest"),
        }
        for name, call in calls.items():
            with pytest.raises(WrongLoopError, match=r"run_coroutine_threadsafe"):
                await asyncio.to_thread(asyncio.run, call())
            assert client.connection.is_open, name
        # Nothing was sent, and nothing was harmed.
        assert (await ticket).delivery_tag == 2
        assert producer.next_delivery_tag == 3
        assert message.ack()
        assert (await producer.publish(3, queue)).delivery_tag == 3
    assert await client.purge(queue) == 2


@pytest.mark.parametrize("turns", [*range(12), 20, 40])
async def test_nothing_is_left_when_connecting_is_cancelled(broker: Broker, turns: int) -> None:
    async def connect() -> leveret.Client:
        return await leveret.connect(broker.url)

    task = asyncio.create_task(connect())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await task).close()


async def test_producers_and_consumers_are_forgotten_when_they_were_closed(client: leveret.Client, queue: str) -> None:
    for _ in range(20):
        async with client.producer() as producer, client.consumer(queue) as consumer:
            await producer.publish(1, queue)
            message = await consumer.get()
            assert message is not None
            message.ack()
    del producer, consumer, message
    await asyncio.sleep(0)  # until its next turn the loop may hold what ended a wait, and frames with it
    gc.collect()
    assert len(client._producers) == len(client._consumers) == 0
    # What is open lies in the pool, where the queue was declared, or is left to the next producer.
    assert not unkept(client)
    assert len(client.connection.confirm_channels) == 1


async def test_nothing_can_be_done_when_the_client_is_closed(broker: Broker, name: Callable[[], str]) -> None:
    async with leveret.connect(broker.url) as client:
        producer = client.producer()
        consumer = client.consumer(name())
    for call in (client.channel(), client.declare(Topology()), producer.open(), client.purge("q")):
        with pytest.raises((ConnectionClosed, leveret.LeveretError)):
            await call
    with pytest.raises(leveret.LeveretError):
        await consumer.get()


class Sink:
    """Counts how often it is started."""

    def __init__(self) -> None:
        self.started = 0

    def start(self, source: object) -> None:
        self.started += 1

    def close(self) -> None: ...


async def test_s9_opening_twice_is_harmless_or_a_typed_error(broker: Broker, queue: str) -> None:
    sink = Sink()
    registry = PluginRegistry.from_plugins(plugin("gauges", metrics=[MetricsSpec(name="test", factory=lambda: sink)]))
    connecting = leveret.connect(broker.url, plugins=registry, monitoring=MonitoringSettings(sinks=["test"]))
    async with connecting as client:
        connection = client.connection
        # A client: harmless, also many at once.
        assert set(await asyncio.gather(*(client.open() for _ in range(10)))) == {client}
        assert client.connection is connection
        assert sink.started == 1
        # What `connect` returned: a typed error, and nothing is harmed.
        with pytest.raises(ConfigurationError, match=r"connect\(\.\.\.\) was opened already"):
            await connecting
        # A producer: harmless, until it was closed.
        producer = await client.producer().open()
        async with producer as entered:
            assert entered is producer
            assert await producer.open() is producer
            await producer.publish(1, queue)
        with pytest.raises(ConfigurationError, match=r"can be opened once: make another one with `client.producer"):
            await producer.open()
        producer = client.producer(confirms=False)  # it waits for a channel of its own
        _, second = await asyncio.gather(producer.open(), producer.open(), return_exceptions=True)
        assert isinstance(second, ConfigurationError)
        assert "is being opened by another task" in str(second)
        await producer.close()
        # A consumer: harmless.
        async with client.consumer(queue) as consumer:
            for _ in range(2):
                await consumer.subscribe()
            (await anext(consumer)).ack()
    with pytest.raises(ConnectionClosed, match=r"was closed by this side"):
        await client.open()
    async with connecting as another:
        assert another is not client


async def test_a_client_is_awaited_or_entered_when_the_caller_likes(broker: Broker) -> None:
    client = await leveret.connect(broker.url)
    assert client.connection.is_open
    await client.close()
    assert not client.connection.is_open
    await client.close()  # again is no error
    async with leveret.connect(broker.url) as client:
        assert client.connection.is_open
    assert not client.connection.is_open
