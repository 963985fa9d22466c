"""What is in flight when a producer or its client closes has its outcome, and nothing is sent before or after."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from pamqp.commands import Basic, Channel, Confirm
from tests.support.confirming import mute, producing, served
from tests.support.handling import until
from tests.support.outcomes import awaited, failure
from tests.support.peers import FakeServer, Peer

import leveret
from leveret.errors import ChannelClosed, PublishError
from leveret.message import Outcome

if TYPE_CHECKING:
    from tests.support.brokers import Broker

    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.mark.parametrize("how", ["publish", "publish_nowait", "publish_batch"])
async def test_nothing_is_sent_when_the_producer_is_not_open_or_closed(
    client: leveret.Client, queue: str, how: str
) -> None:
    async def publish(producer: leveret.Producer) -> None:
        if how == "publish":
            await producer.publish(1, queue)
        elif how == "publish_nowait":
            producer.publish_nowait(1, queue)
        else:
            (await producer.publish_batch([1], queue)).raise_for_failures()

    producer = client.producer()
    for state in ("not open", "closed"):
        with pytest.raises(PublishError, match=state) as refused:
            await publish(producer)
        assert refused.value.outcome is Outcome.NOT_SENT
        if state == "not open":
            async with producer:
                await publish(producer)
    assert await client.purge(queue) == 1


async def test_what_was_published_is_confirmed_when_the_client_closes(
    client: leveret.Client, broker: Broker, queue: str
) -> None:
    async with leveret.connect(broker.url) as other:
        producer = await other.producer().open()
        tickets = [producer.publish_nowait(number, queue) for number in range(500)]
    assert all(ticket.done and ticket.confirmed == 1 for ticket in tickets)
    assert await client.purge(queue) == 500


async def test_what_is_in_flight_is_confirmed_before_a_producer_is_closed(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    producer = await client.producer().open()
    tickets = [producer.publish_nowait(number, queue) for number in range(1000)]
    batch = asyncio.create_task(producer.publish_batch(range(100), queue))
    await asyncio.sleep(0)
    await producer.close()
    assert all(ticket.done and ticket.confirmed for ticket in tickets)
    assert await batch
    assert await other.purge(queue) == 1100


async def test_what_is_in_flight_is_unknown_when_no_confirm_comes_before_a_producer_is_closed() -> None:
    async with served(confirm_timeout=0.2) as (server, producer):
        ticket = producer.publish_nowait(1, "key")
        publishing = asyncio.create_task(producer.publish(2, "key"))
        waiting = asyncio.create_task(producer.publish_batch(range(10), "key"))
        assert len(await server.publishings()) == 12
        server.ack(12)
        closing = asyncio.create_task(producer.close())
        result = await waiting
        assert [result.outcome(index) for index in range(10)] == [Outcome.UNKNOWN] * 9 + [Outcome.CONFIRMED]
        for each in (awaited(ticket), publishing):
            assert (await failure(each)).outcome is Outcome.UNKNOWN
        with pytest.raises(PublishError, match="closed") as refused:
            producer.publish_nowait(3, "key")
        assert refused.value.outcome is Outcome.NOT_SENT
        closing.cancel()  # this server does not answer channel.close yet
        await asyncio.wait([closing])


async def test_a_producer_is_not_open_when_its_channel_is_lost_as_soon_as_it_is_made() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open)
        await peer.expect(Confirm.Select)
        # Both in one write, so that nobody runs between them.
        peer.send(Confirm.SelectOk(), 1)
        peer.send(Channel.Close(541, "INTERNAL_ERROR", 0, 0), 1)
        await peer.expect(Channel.CloseOk)
        await peer.linger()

    async with FakeServer(script) as server, leveret.connect(server.url) as client:
        with pytest.raises(ChannelClosed, match="541"):
            await client.producer().open()


@pytest.mark.parametrize("first", ["producer", "client"])
async def test_what_is_in_flight_is_confirmed_when_a_client_is_closed_during_another_close(first: str) -> None:
    confirm = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        while not isinstance((await peer.receive())[1], Basic.Publish):
            pass

        async def answer() -> None:
            await confirm.wait()
            peer.send(Basic.Ack(1), 1)

        answering = asyncio.create_task(answer())
        await peer.linger()
        await answering

    async with FakeServer(script) as server, leveret.connect(server.url) as client:
        producer = await client.producer().open()
        ticket = producer.publish_nowait(1, "q")
        closing = [asyncio.create_task(each.close()) for each in (producer if first == "producer" else client, client)]
        # Both have to wait for the confirm; what does not wait is over by then.
        await asyncio.wait(closing, timeout=0.2)
        confirm.set()
        await asyncio.gather(*closing)
        assert (await ticket).outcome is Outcome.CONFIRMED


async def test_failures_that_nobody_awaited_are_logged_when_a_lost_producer_is_closed(
    embedded: EmbeddedBroker, tight_client: leveret.Client, caplog: pytest.LogCaptureFixture
) -> None:
    producer = await tight_client.producer().open()
    embedded.block()
    for number in range(3):
        producer.publish_nowait(number, "q")
    await until(lambda: tight_client.connection.blocked)
    embedded.close_connections()
    await until(lambda: producer.counters()["unknown"] == 3)
    await producer.close()
    assert "3 publishings that were not awaited failed" in caplog.text


async def test_a_producer_whose_callers_have_all_given_up_is_closed_at_once() -> None:
    # A web application's request with a deadline: it makes a producer, and the broker does not confirm.
    async with producing(mute, confirm_timeout=60, publish_timeout=60) as producer:
        assert not producer._window.is_deserted()
        publishings = [producer.publish(b"", "q") for _ in range(3)]
        ticket = producer.publish_nowait(b"", "q")
        for publishing in publishings:
            publishing.cancel()
        assert not producer._window.is_deserted(), "of the ticket nobody knows"
        producer._hand_out(producer._window.give_up(ticket.delivery_tag))
        async with asyncio.timeout(10):
            await producer.close()
        assert producer.counters()["unknown"] == 4
