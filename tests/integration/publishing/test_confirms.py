"""A publishing ends when the broker has confirmed or refused it, unless confirms are off."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel
from pamqp.header import ContentHeader
from tests.support.confirming import served
from tests.support.outcomes import awaited, failure, failure_at_once
from tests.support.peers import FakeServer, Peer
from tests.support.queues import messages

import leveret
from leveret import Classic, Outcome, ProducerSettings, Topology
from leveret.errors import EncodeFailed, LeveretError, MessageReturned

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_s10_confirms_are_on_and_real_when_nothing_is_said(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    assert ProducerSettings().confirms is True
    async with client.producer() as producer:
        for number in range(20):
            receipt = await producer.publish(number, queue)
            assert receipt.outcome is Outcome.CONFIRMED
            assert await other.purge(queue) == 1  # the broker has it by then


async def test_s10_publish_ends_with_the_brokers_confirm_and_not_before() -> None:
    async with served() as (server, producer):
        publishing = asyncio.create_task(producer.publish(1, "key"))
        await asyncio.sleep(0)
        assert await server.publishings() == [b"1"]
        assert not publishing.done()
        server.ack(1)
        assert (await publishing).outcome is Outcome.CONFIRMED


async def test_s10_every_publish_is_confirmed_when_nothing_else_was_asked_for(
    client: leveret.Client, queue: str
) -> None:
    assert leveret.ProducerSettings().confirms is True
    async with client.producer() as producer:
        assert (await producer.publish(1, queue)).outcome is Outcome.CONFIRMED
        assert producer.counters()["confirmed"] == 1


async def test_s10_no_confirm_is_asked_for_when_they_are_off() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open)
        await peer.expect(Basic.Publish, ContentHeader, ContentBody)
        await peer.answer(Channel.Close)
        await peer.linger()

    async with (
        FakeServer(script) as server,
        leveret.connect(server.url) as client,
        client.producer(confirms=False) as producer,
    ):
        assert (await producer.publish(1, "key")).outcome is Outcome.UNKNOWN


async def test_nothing_is_known_when_confirms_are_off(client: leveret.Client, queue: str) -> None:
    async with client.producer(confirms=False) as producer:
        assert (await producer.publish(1, queue)).outcome is Outcome.UNKNOWN
        assert (await producer.publish_nowait(2, queue)).outcome is Outcome.UNKNOWN
        result = await producer.publish_batch([3, 4], queue)
        assert result
        assert (result.confirmed, result.outcome(0)) == (0, Outcome.UNKNOWN)
    # The channel's close was answered, so the broker has read everything.
    assert await client.purge(queue) == 4


async def test_s20_the_next_delivery_tag_is_known_before_publishing(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer(max_body_size=100) as producer:
        assert producer.next_delivery_tag == 1
        for number in range(5):
            tag = producer.next_delivery_tag
            ticket = producer.publish_nowait(tag, queue)
            assert (ticket.delivery_tag, producer.next_delivery_tag) == (tag, tag + 1)
            with pytest.raises(LeveretError):  # what is not sent takes none
                producer.publish_nowait(object() if number % 2 else "x" * 200, queue)
        assert [(await producer.publish(tag, queue)).delivery_tag for tag in (6, 7)] == [6, 7]
        assert await producer.publish_batch(range(8, 11), queue)
        assert producer.next_delivery_tag == 11
    assert [message.value for message in await messages(other, queue)] == list(range(1, 11))


async def test_s17_many_tasks_publish_side_by_side_and_each_gets_its_own_error(
    client: leveret.Client, other: leveret.Client, exchange: str, queue: str
) -> None:
    most = 0

    async def publish(number: int) -> Any:
        nonlocal most
        value = object() if number % 10 == 3 else number
        key = "order.lost" if number % 10 == 7 else "order.created"
        result = await failure(producer.publish(value, key))
        most = max(most, producer.outstanding)
        return result

    async with client.producer(exchange=exchange, mandatory=True, max_outstanding=100) as producer:
        results = await asyncio.gather(*map(publish, range(2000)))
    kinds = {3: EncodeFailed, 7: MessageReturned}
    for number, result in enumerate(results):
        assert type(result) is kinds.get(number % 10, leveret.Receipt), number
    assert most <= 100
    read = [message.value for message in await messages(other, queue)]
    assert sorted(read) == [number for number in range(2000) if number % 10 not in kinds]


async def test_tickets_are_awaited_later_when_published_without_waiting(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        tickets = [producer.publish_nowait(number, queue) for number in range(100)]
        assert not any(ticket.done for ticket in tickets)
        assert producer.outstanding == 100
        receipts = [await ticket for ticket in tickets]
        assert producer.outstanding == 0
    assert [receipt.delivery_tag for receipt in receipts] == list(range(1, 101))
    assert await client.purge(queue) == 100


async def test_one_ticket_may_have_several_waiters_when_one_is_cancelled(client: leveret.Client, queue: str) -> None:
    async def wait_for(ticket: leveret.Ticket) -> leveret.Receipt:
        return await ticket

    async with client.producer() as producer:
        ticket = producer.publish_nowait(1, queue)
        waiters = [asyncio.create_task(wait_for(ticket)) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        results = await asyncio.gather(*waiters, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert [receipt.delivery_tag for receipt in results[1:] if isinstance(receipt, leveret.Receipt)] == [1, 1]


async def test_a_thousand_publishes_are_confirmed_when_they_wait_at_once(client: leveret.Client, queue: str) -> None:
    async with client.producer(max_outstanding=50) as producer:
        most = 0

        async def publish(number: int) -> leveret.Receipt:
            nonlocal most
            receipt = await producer.publish(number, queue)
            most = max(most, producer.outstanding)
            return receipt

        receipts = await asyncio.gather(*map(publish, range(1000)))
        assert producer.counters() == {
            "published": 1000,
            "published_bytes": sum(len(str(number)) for number in range(1000)),
            "outstanding": 0,
            "confirmed": 1000,
            "returned": 0,
            "nacked": 0,
            "unknown": 0,
            "not_sent": 0,
            "batches": 0,
            "batch_confirmed": 0,
            "batch_milliseconds": 0,
        }
    assert {receipt.delivery_tag for receipt in receipts} == set(range(1, 1001))
    assert most <= 50
    assert await client.purge(queue) == 1000


async def test_the_outcome_is_nacked_when_the_broker_refuses_a_message(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    queue = name("full")
    await client.declare(Topology().queue(queue, Classic(max_length=1, overflow="reject-publish")))
    async with client.producer() as producer:
        tickets = [producer.publish_nowait(number, queue) for number in range(50)]
        outcomes = []
        for ticket in tickets:
            result = await failure_at_once(awaited(ticket))
            outcomes.append(result.outcome)
    assert outcomes == [Outcome.CONFIRMED] + [Outcome.NACKED] * 49


@pytest.mark.parametrize("turns", range(5))
async def test_the_next_publish_is_right_when_one_was_cancelled(client: leveret.Client, queue: str, turns: int) -> None:
    async with client.producer() as producer:
        for _ in range(10):
            task = asyncio.create_task(producer.publish("cancelled", queue))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            task.cancel()
            await asyncio.wait([task])
            tag = producer.next_delivery_tag
            receipt = await producer.publish("next", queue)
            assert (receipt.delivery_tag, receipt.outcome) == (tag, Outcome.CONFIRMED)
        await producer.flush()
        counters = producer.counters()
        assert counters["confirmed"] == counters["published"] == producer.next_delivery_tag - 1
    assert await client.purge(queue) == counters["published"]


async def test_a_publish_is_left_alone_when_the_callers_deadline_passes(
    proxy: FaultProxy, proxied: leveret.Client, queue: str
) -> None:
    async with proxied.producer(confirm_timeout=1) as producer:
        proxy.swallow()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await producer.publish("late", queue)
        assert producer.outstanding == 1
        proxy.resume()
        await producer.publish("next", queue)
    assert await proxied.purge(queue) == 2
