"""A broker that is silent for two heartbeats is given up, and an idle one is not."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest

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
    async with leveret.connect(proxy.url, heartbeat=1, close_timeout=0.5) as client:
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
        assert 1.5 <= time.monotonic() - started <= 3.5
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
