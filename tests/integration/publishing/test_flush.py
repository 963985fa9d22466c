"""`flush`: it reports each failure that no task awaited, and leaves nothing behind when it is given up."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.confirming import served
from tests.support.handling import until

from leveret.errors import MessageNacked, OperationTimeout

pytestmark = pytest.mark.usefixtures("no_leftovers")


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
