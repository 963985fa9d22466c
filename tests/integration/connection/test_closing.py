"""Closing takes one deadline in all, whatever the broker does, and the log names what is given up."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import until
from tests.support.loops import every_loop
from tests.support.plugins import plugin

import leveret
from leveret import MonitoringSettings, Outcome, Topology
from leveret.broker import EmbeddedBroker
from leveret.errors import PublishError
from leveret.plugins import MetricsSpec, PluginRegistry

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")

#: What a close may take longer than its deadline on a machine that is busy with other things.
BUSY = 1.0


async def seconds_of(call: Awaitable[Any]) -> float:
    started = time.monotonic()
    await call
    return time.monotonic() - started


async def handler(value: object, message: leveret.Message) -> None:
    """Does nothing."""


@every_loop
async def test_a_client_with_many_producers_and_consumers_closes_in_time_when_the_broker_falls_silent(
    proxy: FaultProxy, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = await leveret.connect(proxy.url, close_timeout=2)
    producers = [await client.producer().open() for _ in range(10)]
    consumers = [client.consumer(queue) for _ in range(10)]
    running = [asyncio.create_task(consumer.run(handler)) for consumer in consumers]
    await until(lambda: all(consumer.health().live for consumer in consumers))
    own = await client.dedicated_connection("own")
    own_producer = await own.producer().open()
    proxy.swallow()
    tickets = [
        producer.publish_nowait(number, queue, message_id=f"order-{number}")
        for number, producer in enumerate([*producers, own_producer])
    ]
    assert 1 < await seconds_of(client.close()) < 2 + BUSY
    for ticket in tickets:
        with pytest.raises(PublishError) as lost:
            await ticket
        assert lost.value.outcome is Outcome.UNKNOWN
    await asyncio.gather(*running, return_exceptions=True)
    said = [record.getMessage() for record in caplog.records if "end UNKNOWN" in record.getMessage()]
    assert len(said) == 11
    for number in range(11):
        assert any("1 publishings end UNKNOWN" in text and f"1 ('order-{number}')" in text for text in said)


async def test_a_dedicated_connection_closes_in_time_when_the_broker_falls_silent(
    proxy: FaultProxy, queue: str
) -> None:
    async with leveret.connect(proxy.url, close_timeout=1) as client:
        own = await client.dedicated_connection("own")
        for _ in range(3):
            (await own.producer().open()).publish_nowait(1, queue)
            await own.consumer(queue).subscribe()
        proxy.swallow()
        assert await seconds_of(own.close()) < 1 + BUSY


async def test_a_producer_closes_within_confirm_timeout_when_the_broker_falls_silent(
    proxy: FaultProxy, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with leveret.connect(proxy.url, close_timeout=5) as client:
        producer = await client.producer(confirm_timeout=1).open()
        proxy.swallow()
        for number in range(25):
            producer.publish_nowait(number, queue, message_id=f"order-{number}" if number % 2 else None)
        assert await seconds_of(producer.close()) < 1.2 + BUSY
        proxy.reset()  # the client is not what is tested
    (text,) = [record.getMessage() for record in caplog.records if "end UNKNOWN" in record.getMessage()]
    assert "25 publishings end UNKNOWN, with delivery tags (and message ids) 1, 2 ('order-1'), 3, 4 ('order-3')" in text
    assert "20 ('order-19') and 5 more" in text


async def test_a_consumer_that_is_closed_names_what_its_handlers_work_on(
    client: leveret.Client, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    began, go = asyncio.Event(), asyncio.Event()

    async def slow(value: object, message: leveret.Message) -> None:
        began.set()
        await go.wait()

    async with client.producer() as producer:
        await producer.publish(1, queue, message_id="order-1")
    consumer = client.consumer(queue)
    running = asyncio.create_task(consumer.run(slow))
    await began.wait()
    await consumer.close()
    go.set()
    await asyncio.gather(running, return_exceptions=True)
    (text,) = [record.getMessage() for record in caplog.records if "is closed while" in record.getMessage()]
    assert "handlers work on 1 messages, which are given up: delivery tags (and message ids) 1 ('order-1')" in text


async def test_closing_loses_nothing_of_what_a_broker_confirms_in_time(client: leveret.Client, queue: str) -> None:
    producers = [await client.producer().open() for _ in range(5)]
    consumer = client.consumer(queue)
    message = await consumer.get()
    assert message is None
    tickets = [producer.publish_nowait(number, queue) for producer in producers for number in range(100)]
    assert await seconds_of(client.close()) < 5
    for ticket in tickets:
        assert (await ticket).outcome is Outcome.CONFIRMED


class HangingSink:
    """A metrics sink whose `close` does not return."""

    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate

    def start(self, source: object) -> None: ...

    def close(self) -> None:
        self.gate.wait(20)


async def test_metrics_sinks_are_closed_within_the_same_deadline(
    proxy: FaultProxy, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    spec = MetricsSpec(name="hangs", factory=lambda: HangingSink(gate))
    registry = PluginRegistry.from_plugins(plugin("hangs", metrics=[spec]))
    client = await leveret.connect(
        proxy.url, close_timeout=1, plugins=registry, monitoring=MonitoringSettings(sinks=["hangs"], sink_timeout=30)
    )
    (await client.producer().open()).publish_nowait(1, queue)
    proxy.swallow()
    try:
        assert await seconds_of(client.close()) < 1 + BUSY
    finally:
        gate.set()
    assert re.search(r"did not close within the 0\.\d+ s that were left of close_timeout", caplog.text)


async def test_closing_goes_on_behind_a_caller_that_was_cancelled(proxy: FaultProxy, queue: str) -> None:
    client = await leveret.connect(proxy.url, close_timeout=0.5)
    producer = await client.producer().open()
    await client.consumer(queue).subscribe()
    producer.publish_nowait(1, queue)
    proxy.swallow()
    closing = asyncio.create_task(client.close())
    await asyncio.sleep(0.05)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(3):
            await closing
    connections = [link.connection for link in (client.publishing_link, client.consuming_link)]
    await until(lambda: all(connection is not None and connection.error is not None for connection in connections))


@pytest.mark.parametrize("close_timeout", [0.3, 4.0])
def test_an_app_knows_how_long_its_shutdown_takes(close_timeout: float) -> None:
    app = leveret.App("amqp://localhost", close_timeout=close_timeout, drain_timeout=1)
    assert app.longest_shutdown == 1 + 2 + close_timeout + 2


async def test_an_app_stops_in_time_when_the_broker_falls_silent(proxy: FaultProxy, queue: str) -> None:
    app = leveret.App(proxy.url, close_timeout=0.5, drain_timeout=0.5, operation_timeout=0.5)
    for _ in range(5):
        app.consumer(queue)(_Handler())
    serving = asyncio.create_task(app.serve())
    await until(lambda: app._run is not None and len([it for it in app._run.consumers if it.consumer]) == 5)
    assert app._run is not None
    consumers = [it.consumer for it in app._run.consumers if it.consumer is not None]
    await until(lambda: all(consumer.health().live for consumer in consumers))
    proxy.swallow()
    app.stop()
    assert await seconds_of(serving) < app.longest_shutdown


class _Handler:
    async def __call__(self, value: object, message: leveret.Message) -> None:
        """Does nothing."""


async def test_a_client_that_has_nothing_to_wait_for_closes_at_once() -> None:
    async with EmbeddedBroker() as broker:
        client = await leveret.connect(broker.url, close_timeout=60)
        await client.declare(Topology().queue("q"))
        assert await seconds_of(client.close()) < 2
        assert await seconds_of(client.close()) < 1  # again
