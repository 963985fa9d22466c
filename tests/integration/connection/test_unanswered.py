"""A call or a close ends within its deadline when the broker does not answer or blocks."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from tests.support.brokers import publish_until_blocked
from tests.support.outcomes import AT_ONCE, failure_at_once

import leveret
from leveret import Outcome
from leveret.errors import OperationTimeout, PublishError

if TYPE_CHECKING:
    from tests.support.brokers import Broker

    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_a_call_ends_when_the_broker_does_not_answer(proxy: FaultProxy, queue: str) -> None:
    async with leveret.connect(proxy.url, operation_timeout=0.2, close_timeout=0.2) as client:
        channel = await client.channel()
        consumer = client.consumer(queue)
        assert await consumer.get() is None
        proxy.swallow()
        for name, call in {
            "queue.declare": channel.queue_declare(queue),
            "basic.get": consumer.get(),
            "basic.qos": consumer.subscribe(),
            "channel.open": client.channel(),
            "connection.update-secret": client.connection.update_secret("guest"),
        }.items():
            with pytest.raises(OperationTimeout, match=rf"{name}.* 0\.2 s"):
                async with asyncio.timeout(AT_ONCE):
                    await call


async def test_closing_ends_when_the_broker_does_not_answer(proxy: FaultProxy, queue: str) -> None:
    client = await leveret.connect(proxy.url, close_timeout=0.2)
    producer = await client.producer(confirm_timeout=0.2).open()
    consumer = client.consumer(queue)
    assert await consumer.get() is None
    proxy.swallow()
    ticket = producer.publish_nowait(1, queue)
    started = time.monotonic()
    await client.close()
    assert time.monotonic() - started < 2
    with pytest.raises(PublishError) as lost:
        await ticket
    assert lost.value.outcome is Outcome.UNKNOWN


async def test_closing_ends_when_the_broker_blocks(blockable: Broker, queue: str) -> None:
    client = await leveret.connect(blockable.url, close_timeout=0.3)
    producer = await client.producer(confirm_timeout=0.3).open()
    await blockable.block()
    await publish_until_blocked(client, producer, queue)
    waiting = asyncio.create_task(producer.publish("blocked", queue))
    await asyncio.sleep(0)
    started = time.monotonic()
    await client.close()
    assert time.monotonic() - started < 2
    error = await failure_at_once(waiting)
    assert isinstance(error, PublishError)
    assert error.outcome is Outcome.NOT_SENT
