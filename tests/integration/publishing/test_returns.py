"""A mandatory message that reaches no queue comes back, and its publishing fails."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

import leveret
from leveret import Outcome, Topology
from leveret.errors import MessageReturned, PublishError

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.mark.parametrize("body", [b"", b"body"])
async def test_a_mandatory_message_is_returned_when_no_queue_takes_it(
    client: leveret.Client, name: Callable[[str], str], body: bytes
) -> None:
    exchange = name("exchange")
    await client.declare(Topology().exchange(exchange))
    async with client.producer(exchange=exchange, mandatory=True, serializer="bytes") as producer:
        with pytest.raises(MessageReturned) as returned:
            await producer.publish(body, "nowhere")
        error = returned.value
        assert (error.outcome, error.delivery_tag) == (Outcome.RETURNED, 1)
        assert (error.reply_code, error.reply_text) == (312, "NO_ROUTE")
        assert (error.exchange, error.routing_key) == (exchange, "nowhere")
        assert producer.counters()["returned"] == 1
        # Not mandatory: the broker confirms what it drops (RabbitMQ: publisher confirms).
        await producer.publish(body, "nowhere", mandatory=False)


async def ticket_outcome(ticket: leveret.Ticket) -> Outcome:
    try:
        return (await ticket).outcome
    except PublishError as error:
        return error.outcome


async def test_exactly_the_unroutable_ones_are_returned_when_messages_are_equal(
    client: leveret.Client, queue: str
) -> None:
    keys = [queue if number % 3 else "nowhere" for number in range(300)]
    async with client.producer(mandatory=True) as producer:
        tickets = [producer.publish_nowait("equal", key) for key in keys]
        outcomes = await asyncio.gather(*(ticket_outcome(ticket) for ticket in tickets))
    expected = [Outcome.CONFIRMED if key == queue else Outcome.RETURNED for key in keys]
    assert outcomes == expected
    assert await client.purge(queue) == 200


async def test_exactly_the_unroutable_ones_are_returned_when_only_headers_differ(
    client: leveret.Client, queue: str, name: Callable[[str], str]
) -> None:
    exchange = name("exchange")
    match = {"x-match": "all", "wanted": True}
    await client.declare(Topology().exchange(exchange, "headers").bind(queue, exchange, arguments=match))
    wanted = [number % 2 == 0 for number in range(100)]
    async with client.producer(exchange=exchange, mandatory=True) as producer:
        tickets = [producer.publish_nowait("equal", "same", headers={"wanted": each}) for each in wanted]
        outcomes = await asyncio.gather(*(ticket_outcome(ticket) for ticket in tickets))
    assert outcomes == [Outcome.CONFIRMED if each else Outcome.RETURNED for each in wanted]


async def test_every_message_of_a_batch_is_returned_when_no_queue_takes_them(client: leveret.Client) -> None:
    async with client.producer(mandatory=True) as producer:
        result = await producer.publish_batch(["equal"] * 250, "nowhere")
        assert not result
        assert (result.count, result.confirmed, sorted(result.failures)) == (250, 0, list(range(250)))
        assert {result.outcome(index) for index in range(250)} == {Outcome.RETURNED}
        with pytest.raises(MessageReturned):
            result.raise_for_failures()
