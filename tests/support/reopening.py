"""Has a broker close a producer's channel, and says what became of its publishings."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from leveret.errors import ExchangeNotFound, PublishError
from tests.support.queues import taken

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    import leveret
    from leveret.connection.channel import Channel
    from leveret.message import Outcome

MISSING = "no such exchange"


async def outcome(awaitable: Awaitable[Any]) -> Outcome:
    """How a publishing ended, soon."""
    async with asyncio.timeout(20):
        try:
            return (await awaitable).outcome
        except PublishError as error:
            return error.outcome


async def outcomes(awaitables: Iterable[Awaitable[Any]]) -> list[Outcome]:
    return await asyncio.gather(*map(outcome, awaitables))


async def first_occurrences(client: leveret.Client, queue: str) -> list[Any]:
    """The values in the queue without those that came again."""
    return list(dict.fromkeys(await taken(client, queue)))


def channels(producer: leveret.Producer) -> int:
    """How many channels of producers that are not closed the producer's connection has."""
    connection = producer._connection
    return sum(it.publisher not in (None, connection.confirm_channels) for it in connection._channels.values())


def unkept(client: leveret.Client) -> set[Channel]:
    """The channels of the client's connection that neither its pool keeps nor closed producers left."""
    connection = client.connection
    return {*connection._channels.values()} - client.channels._channels - {*connection.confirm_channels._idle}


async def break_channel(producer: leveret.Producer) -> None:
    """Has the broker close the producer's channel; returns when that is known and no other one is open yet."""
    with pytest.raises(ExchangeNotFound):
        await producer.publish("offender", "key", exchange=MISSING)
    assert not producer._alive


async def open_again(producer: leveret.Producer) -> None:
    """Returns when the producer has a channel again."""
    async with asyncio.timeout(10):
        while not producer._alive:  # noqa: ASYNC110 - there is no event for this
            await asyncio.sleep(0)


async def offend_while_closed(producer: leveret.Producer, queue: str) -> None:
    """Publishes to a missing exchange without waiting; returns once its failure is known."""
    await outcome(producer.publish_nowait("offender", queue, exchange=MISSING))
