"""Closing goes on when its caller is cancelled, and a connection that is opened for a cancelled caller is closed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from tests.support.handling import until

import leveret
from leveret import Topology

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")

#: Turns of the loop after which a call is broken off: its first ones, and some while it waits for the broker.
TURNS = (1, 2, 3, 4, 5, 6, 8, 10, 13)


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def broken_off(call: Awaitable[object], count: int, *, times: int = 1) -> None:
    """Cancels a call after some turns, and again in the turns after that."""

    async def called() -> None:
        await call

    task = asyncio.create_task(called())
    await turns(count)
    for _ in range(times):
        task.cancel()
        await turns(1)
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


@pytest.mark.parametrize("count", TURNS)
async def test_a_client_is_closed_when_its_close_was_cancelled(embedded: EmbeddedBroker, count: int) -> None:
    client = await leveret.connect(embedded.url, close_timeout=2)
    await client.declare(Topology().queue("q"))
    await client.producer().open()
    await client.consumer("q").subscribe()
    await client.dedicated_connection("own")
    await broken_off(client.close(), count)
    await until(lambda: not embedded.sessions)


@pytest.mark.parametrize("count", TURNS)
async def test_a_dedicated_connection_is_closed_when_its_close_was_cancelled(
    embedded: EmbeddedBroker, count: int
) -> None:
    async with leveret.connect(embedded.url) as client:
        dedicated = await client.dedicated_connection("own")
        await broken_off(dedicated.close(), count)
        await until(lambda: len(embedded.sessions) == 1)
        await dedicated.close()  # its name is free once this side knows, too
        async with client.dedicated_connection("own"):
            assert len(embedded.sessions) == 2


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("count", [*TURNS, 16, 20])
async def test_no_connection_stays_when_its_opening_was_cancelled(
    embedded: EmbeddedBroker, count: int, times: int
) -> None:
    client = await leveret.connect(embedded.url)
    await broken_off(client.dedicated_connection("own"), count, times=times)
    await client.close()
    await until(lambda: not embedded.sessions)


@pytest.mark.parametrize("count", TURNS)
async def test_nothing_stays_when_the_loop_ends_behind_a_close_that_was_cancelled(
    embedded: EmbeddedBroker, count: int
) -> None:
    async def main() -> None:
        client = await leveret.connect(embedded.url, close_timeout=2)
        await client.producer().open()
        await broken_off(client.close(), count)

    await asyncio.to_thread(asyncio.run, main())
    await until(lambda: not embedded.sessions)
