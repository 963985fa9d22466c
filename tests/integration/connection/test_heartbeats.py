"""A broker that is silent for two heartbeats is given up in time, an idle or unread one is not."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.support.loops import every_loop

import leveret
from leveret import Topology
from leveret.errors import HeartbeatTimeout, PublishError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.brokers import Broker

    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_the_connection_is_given_up_when_the_broker_is_silent_for_two_heartbeats(
    proxy: FaultProxy, queue: str
) -> None:
    async with leveret.connect(proxy.url, heartbeat=1, close_timeout=0.5, auto_recovery=False) as client:
        assert client.connection.negotiated.heartbeat == 1
        producer = await client.producer(confirm_timeout=30).open()
        consumer = client.consumer(queue)
        await producer.publish("to start with", queue)
        (await anext(consumer)).ack()
        proxy.swallow()
        waiting = asyncio.create_task(anext(consumer))
        publishing = asyncio.create_task(producer.publish("in flight", queue))
        started = time.monotonic()
        async with asyncio.timeout(5):
            with pytest.raises(HeartbeatTimeout, match="heartbeat is 1 s"):
                await waiting
            with pytest.raises(PublishError) as lost:
                await publishing
        assert isinstance(lost.value.__cause__, HeartbeatTimeout)
        assert 1.5 <= time.monotonic() - started <= 3.2
        assert not client.connection.is_open


async def test_the_connection_lives_when_it_is_idle_for_longer_than_its_heartbeats(
    broker: Broker, name: Callable[[], str]
) -> None:
    # Brokers give up on a client after two to three silent intervals, so both sides have to send them.
    async with leveret.connect(broker.url, heartbeat=1) as client:
        reader = client.connection.transport.reader
        before = reader.received_frames
        await asyncio.sleep(2.7)
        assert client.connection.is_open
        assert reader.received_frames >= before + 2
        await client.declare(Topology().queue(name()))


async def test_a_silent_broker_is_found_within_two_heartbeats_and_a_second_wherever_the_silence_begins(
    proxy: FaultProxy, name: Callable[[], str]
) -> None:
    async with leveret.connect(proxy.url, heartbeat=3, close_timeout=0.2, auto_recovery=False) as client:
        # Just behind a look at what came, if looks came once in half a heartbeat: they would find this one late.
        await asyncio.sleep(1.6)
        await client.declare(Topology().queue(name()))
        proxy.swallow()
        silent = time.monotonic()
        async with asyncio.timeout(10):
            await client.connection._ended
        assert 5.5 <= time.monotonic() - silent <= 7
        assert isinstance(client.connection.error, HeartbeatTimeout)


@every_loop
async def test_bytes_that_wait_to_be_read_show_that_the_broker_is_alive(proxy: FaultProxy) -> None:
    async with leveret.connect(proxy.url, heartbeat=2) as client:
        proxy.stall("to_client")
        await asyncio.sleep(3.3)
        # They arrive while the loop is blocked, and two heartbeats are over before it goes on.
        threading.Timer(0.2, proxy.resume).start()
        time.sleep(1.3)  # noqa: ASYNC251 - that is what is tested
        await asyncio.sleep(1)
        assert client.connection.error is None
        assert client.connection.is_open


@every_loop
async def test_a_handler_that_blocks_the_loop_is_named_and_the_connection_lives(
    broker: Broker, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with leveret.connect(broker.url, heartbeat=1) as client:
        handled = asyncio.Event()

        async def stubborn_handler(value: str, message: leveret.Message) -> None:
            if value == "block":
                time.sleep(1.9)  # noqa: ASYNC251 - that is what is tested
            else:
                handled.set()

        consumer = client.consumer(queue)
        running = asyncio.create_task(consumer.run(stubborn_handler))
        async with client.producer() as producer:
            await asyncio.sleep(0.7)  # the watch has begun
            await producer.publish("block", queue)
            await producer.publish("go on", queue)
        async with asyncio.timeout(10):
            await handled.wait()
        await asyncio.sleep(0.6)
        assert client.connection.error is None
        assert client.consuming_link.connection is not None
        assert client.consuming_link.connection.error is None
        await consumer.drain()
        await running
    blocked = [record.getMessage() for record in caplog.records if "the event loop was blocked" in record.getMessage()]
    (text,) = blocked
    assert "stubborn_handler (test_heartbeats.py:" in text
    seconds = float(text.partition("blocked for ")[2].partition(" s")[0])
    assert 1.2 <= seconds <= 4
