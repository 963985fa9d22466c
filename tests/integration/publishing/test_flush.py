"""A flush ends when everything before it has its outcome, and tells of failures that nobody awaited."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from tests.support.confirming import mute, producing, served
from tests.support.handling import until

from leveret.errors import ConfirmTimeout, MessageNacked, MessageReturned, OperationTimeout

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import leveret
    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_flush_ends_when_everything_before_it_has_its_outcome(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        await producer.flush()  # nothing to wait for
        tickets = [producer.publish_nowait(number, queue) for number in range(1000)]
        await producer.flush(timeout=10)
        assert all(ticket.done and ticket.confirmed == 1 for ticket in tickets)
        assert producer.outstanding == 0


async def test_a_publish_goes_on_when_a_flush_waited_before_it(client: leveret.Client, queue: str) -> None:
    # Both wait for the same confirm: the flush must not use up the turn of the publish.
    async with client.producer(max_outstanding=1, confirm_timeout=20) as producer:
        producer.publish_nowait("first", queue)
        flush = asyncio.create_task(producer.flush())
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await producer.publish("second", queue)
            await flush


async def test_flush_tells_of_failures_when_nobody_awaited_them(client: leveret.Client) -> None:
    async with client.producer(mandatory=True) as producer:
        for _ in range(3):
            producer.publish_nowait(1, "nowhere")
        with pytest.raises(MessageReturned, match=r"^3 publishings that were not awaited failed; the first: no queue"):
            await producer.flush()
        await producer.flush()  # once is enough


async def test_flush_does_not_repeat_a_failure_when_it_was_awaited_after_the_fact(client: leveret.Client) -> None:
    async with client.producer(mandatory=True) as producer:
        early, late = (producer.publish_nowait(1, "nowhere") for _ in range(2))
        with pytest.raises(MessageReturned):
            await producer.publish(1, "nowhere")  # by now the two before it have failed
        assert early.done
        assert late.done
        for ticket in (early, late):
            with pytest.raises(MessageReturned):
                await ticket
        await producer.flush()


async def test_flush_ends_when_its_own_deadline_passes(proxy: FaultProxy, proxied: leveret.Client, queue: str) -> None:
    async with proxied.producer(confirm_timeout=0.6) as producer:
        proxy.swallow()
        producer.publish_nowait(1, queue)
        with pytest.raises(OperationTimeout, match=r"1 publishings have no outcome after 0\.1 s"):
            await producer.flush(timeout=0.1)
        with pytest.raises(ConfirmTimeout, match="1 publishings that were not awaited failed"):
            await producer.flush()


async def seconds_of(awaitable: Awaitable[object]) -> float:
    began = time.monotonic()
    await awaitable
    return time.monotonic() - began


async def test_flush_ends_when_the_last_publishing_was_given_up_by_its_own_confirm_timeout() -> None:
    async with producing(mute, confirm_timeout=20, publish_timeout=20) as producer:
        publishing = asyncio.create_task(producer.publish(b"", "q", confirm_timeout=0.1))
        await asyncio.sleep(0)
        assert await seconds_of(producer.flush()) < 10
        with pytest.raises(ConfirmTimeout):
            await publishing
        assert await seconds_of(producer.close()) < 10


async def test_flush_reports_failures_beyond_the_kept_ones_when_all_kept_ones_were_awaited() -> None:
    async with served() as (server, producer):
        tickets = [producer.publish_nowait(n, "q") for n in range(150)]
        server.nack(150, multiple=True)
        await until(lambda: not producer.outstanding)
        for ticket in tickets[:120]:
            with pytest.raises(MessageNacked):
                await ticket
        with pytest.raises(MessageNacked, match=r"^30 publishings that were not awaited failed"):
            await producer.flush()
        await producer.flush()  # each is reported once


async def test_flush_reports_nothing_when_all_failures_were_awaited() -> None:
    async with served() as (server, producer):
        tickets = [producer.publish_nowait(n, "q") for n in range(150)]
        server.nack(150, multiple=True)
        await until(lambda: not producer.outstanding)
        results = await asyncio.gather(*tickets, return_exceptions=True)
        assert {type(result) for result in results} == {MessageNacked}
        await producer.flush()


async def test_flush_leaves_nothing_behind_when_its_time_is_over() -> None:
    async with served() as (server, producer):
        ticket = producer.publish_nowait("value", "q")
        for _ in range(3):
            with pytest.raises(OperationTimeout):
                await producer.flush(timeout=0.01)
        assert producer._flushing == []
        server.ack(1)
        await ticket
