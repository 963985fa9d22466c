"""A call of a consumer has one deadline for all that it waits for, and ends when the consumer is closed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.support.handling import until

import leveret
from leveret import Topology
from leveret.consuming.states import ConsumerState
from leveret.errors import ChannelClosed, OperationTimeout
from leveret.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")

#: Seconds that each answer takes: one is in time for `operation_timeout` of 1 s, two are not.
SLOW = 0.7


@pytest.fixture
async def slow(embedded: EmbeddedBroker) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(embedded.url) as proxy:
        yield proxy


@pytest.fixture
async def client(slow: FaultProxy) -> AsyncIterator[leveret.Client]:
    async with leveret.connect(slow.url, operation_timeout=1.0, close_timeout=0.5) as client:
        await client.declare(Topology().queue("q"))
        await client.consumer("q").get()  # the connection is there
        yield client
        slow.resume()


async def test_subscribing_has_one_deadline_and_may_be_tried_again(slow: FaultProxy, client: leveret.Client) -> None:
    consumer = client.consumer("q")
    slow.delay(SLOW, "to_client")
    with pytest.raises(OperationTimeout, match=r"subscribe .* 'q' took longer than 1 s"):
        await consumer.subscribe()
    slow.resume()
    await consumer.subscribe()
    assert consumer.health().live
    await consumer.close()


async def test_getting_has_one_deadline_and_may_be_tried_again(slow: FaultProxy, client: leveret.Client) -> None:
    consumer = client.consumer("q")
    slow.delay(SLOW, "to_client")
    with pytest.raises(OperationTimeout, match=r"get .* 'q' took longer than 1 s"):
        await consumer.get()
    slow.resume()
    assert await consumer.get() is None
    await consumer.close()


async def test_a_change_of_the_prefetch_has_one_deadline_and_one_consumer_goes_on(
    slow: FaultProxy, client: leveret.Client
) -> None:
    consumer = client.consumer("q", prefetch=5)
    await consumer.subscribe()
    slow.delay(SLOW, "to_client")
    with pytest.raises(OperationTimeout, match=r"set_prefetch .* 'q' took longer than 1 s"):
        await consumer.set_prefetch(6)
    slow.resume()
    await until(lambda: consumer.health().live)
    await consumer.set_prefetch(7)
    assert consumer.prefetch == 7
    assert (await client.queue_depth("q")).consumers == 1
    await consumer.close()


async def test_resuming_has_one_deadline_and_goes_on_by_itself(slow: FaultProxy, client: leveret.Client) -> None:
    consumer = client.consumer("q")
    await consumer.subscribe()
    await consumer.pause()
    slow.delay(SLOW, "to_client")
    with pytest.raises(OperationTimeout, match=r"resume .* 'q' took longer than 1 s"):
        await consumer.resume()
    slow.resume()
    if consumer.state is ConsumerState.PAUSED:  # basic.consume was not sent
        await consumer.resume()
    await until(lambda: consumer.health().live)
    await consumer.close()


@pytest.mark.parametrize("turns", range(1, 14))
async def test_run_returns_when_the_consumer_is_closed_as_it_starts(embedded: EmbeddedBroker, turns: int) -> None:
    async with leveret.connect(embedded.url) as client:
        await client.declare(Topology().queue("q"))
        consumer = client.consumer("q")
        running = asyncio.create_task(consumer.run(lambda value, message: None))
        for _ in range(turns):
            await asyncio.sleep(0)
        await consumer.close()
        await running
        with pytest.raises(ChannelClosed, match="the consumer is closed"):
            await consumer.run(lambda value, message: None)


@pytest.mark.parametrize("turns", range(1, 14))
async def test_subscribing_says_so_when_the_consumer_is_closed_meanwhile(embedded: EmbeddedBroker, turns: int) -> None:
    async with leveret.connect(embedded.url) as client:
        await client.declare(Topology().queue("q"))
        consumer = client.consumer("q")
        subscribing = asyncio.create_task(consumer.subscribe())
        for _ in range(turns):
            await asyncio.sleep(0)
        closing = asyncio.create_task(client.close())
        if subscribing.done():
            await subscribing
        else:
            with pytest.raises(ChannelClosed, match="the consumer is closed"):
                await subscribing
        await closing
