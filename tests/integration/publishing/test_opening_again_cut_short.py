"""A call that is cancelled, late or closed while a producer opens its next channel leaves nothing open."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from pamqp import frame
from pamqp.commands import Basic, Channel, Confirm
from tests.support.confirming import producing
from tests.support.outcomes import awaited, failure
from tests.support.peers import ANSWERS, FakeServer, Peer
from tests.support.queues import taken
from tests.support.reopening import MISSING, break_channel, channels, first_occurrences, outcome, outcomes, unkept

import leveret
from leveret import Outcome
from leveret.errors import ChannelClosed, ExchangeNotFound

if TYPE_CHECKING:
    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.mark.parametrize("turns", range(12))
async def test_what_is_in_flight_ends_as_it_would_when_the_producer_is_closed_meanwhile(
    client: leveret.Client, queue: str, turns: int
) -> None:
    async with client.producer() as producer:
        tickets = [producer.publish_nowait(number, queue) for number in range(20)]
        offender = producer.publish_nowait("offender", queue, exchange=MISSING)
        tickets += [producer.publish_nowait(number, queue) for number in range(20, 40)]
        for _ in range(turns):
            await asyncio.sleep(0)
    with pytest.raises(ExchangeNotFound):
        await offender
    assert await outcomes(tickets) == [Outcome.CONFIRMED] * 40
    assert await first_occurrences(client, queue) == list(range(40))
    assert channels(producer) == 0


async def test_closing_waits_for_what_is_sent_again_when_the_channel_is_being_replaced(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer(mandatory=True) as producer:
        tickets = [producer.publish_nowait(number, queue) for number in range(20)]
        returned = producer.publish_nowait("returned", "nowhere")
        await break_channel(producer)
        waiting = asyncio.create_task(producer.publish("waits", queue))
        await asyncio.sleep(0)
        async with asyncio.timeout(2):
            await producer.close()
        assert await outcomes(tickets) == [Outcome.CONFIRMED] * 20
        assert await outcome(returned) is Outcome.RETURNED
        assert await outcome(waiting) is Outcome.CONFIRMED
    assert await first_occurrences(client, queue) == [*range(20), "waits"]


async def test_nothing_hangs_when_the_client_is_closed_while_the_channel_is_replaced(
    broker: Broker, queue: str
) -> None:
    for turns in range(8):
        async with leveret.connect(broker.url) as client:
            producer = await client.producer().open()
            tickets = [producer.publish_nowait(number, queue) for number in range(20)]
            await break_channel(producer)
            for _ in range(turns):
                await asyncio.sleep(0)
        assert all(ticket.done for ticket in tickets)


@pytest.mark.parametrize("how", ["publish", "enqueue", "publish_batch", "flush"])
@pytest.mark.parametrize("turns", range(6))
async def test_the_producer_goes_on_when_a_call_is_cancelled_meanwhile(
    client: leveret.Client, queue: str, how: str, turns: int
) -> None:
    async with client.producer(max_outstanding=1) as producer:
        before = producer.publish_nowait("before", queue)
        await break_channel(producer)
        argument: dict[str, Any] = {"publish": 1, "enqueue": 1, "publish_batch": [1, 2]}
        arguments = (argument[how], queue) if how in argument else ()
        task = asyncio.create_task(getattr(producer, how)(*arguments))
        behind = asyncio.create_task(producer.publish("behind", queue))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert await outcomes([before, behind]) == [Outcome.CONFIRMED] * 2
        await producer.flush()
        assert producer.outstanding == 0


@pytest.mark.parametrize("turns", range(10))
@pytest.mark.parametrize("broken", [False, True])
async def test_everything_has_an_outcome_when_closing_is_cancelled(
    client: leveret.Client, queue: str, broken: bool, turns: int
) -> None:
    producer = await client.producer(confirm_timeout=5).open()
    tickets = [producer.publish_nowait(number, queue) for number in range(20)]
    if broken:
        await break_channel(producer)
    waiting = asyncio.create_task(producer.publish("waits", queue))
    closing = asyncio.create_task(producer.close())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    async with asyncio.timeout(5):
        await producer.close()
    assert all(ticket.done for ticket in tickets)
    known = await outcomes(tickets)
    assert set(known) <= {Outcome.CONFIRMED, Outcome.UNKNOWN}
    assert await outcome(waiting) in (Outcome.NOT_SENT, Outcome.CONFIRMED, Outcome.UNKNOWN)
    assert {number for number, each in enumerate(known) if each is Outcome.CONFIRMED} <= set(await taken(client, queue))
    async with asyncio.timeout(5):
        # What was abandoned closes soon.
        while unkept(client):  # noqa: ASYNC110
            await asyncio.sleep(0)


@pytest.mark.parametrize("turns", range(10))
async def test_a_producer_can_be_opened_again_when_opening_was_cancelled(
    client: leveret.Client, queue: str, turns: int
) -> None:
    producer = client.producer()
    opening = asyncio.create_task(producer.open())
    for _ in range(turns):
        await asyncio.sleep(0)
    opening.cancel()
    await asyncio.wait([opening])
    if opening.cancelled():
        await producer.open()
    assert await outcome(producer.publish(1, queue)) is Outcome.CONFIRMED
    await producer.close()
    async with asyncio.timeout(5):
        # What was abandoned closes soon.
        while unkept(client):  # noqa: ASYNC110
            await asyncio.sleep(0)


@pytest.mark.parametrize("how", ["publish", "publish_batch", "enqueue"])
async def test_calls_end_at_their_deadline_when_no_channel_can_be_opened(how: str) -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        await peer.receive()
        peer.send(Channel.Close(404, "NOT_FOUND - no exchange 'missing' in vhost '/'", 60, 40), 1)
        while True:  # and never answers channel.open
            await peer.receive()

    async with FakeServer(script) as server, leveret.connect(server.url, close_timeout=0.2) as client:
        producer = await client.producer(confirm_timeout=0.4, publish_timeout=0.2).open()
        with pytest.raises(ExchangeNotFound):
            await producer.publish(1, "key", exchange="missing")
        async with asyncio.timeout(5):
            if how == "publish_batch":
                error: Any = (await producer.publish_batch([1], "key")).failures[0]
            else:
                error = await failure(getattr(producer, how)(1, "key"))
                if how == "enqueue":
                    error = await failure(awaited(error))  # there was room for the message
        assert (error.outcome, error.stage) == (Outcome.NOT_SENT, "connection")
        async with asyncio.timeout(5):
            await producer.close()


async def close_behind(peer: Peer) -> None:
    """Closes a channel in the same write as its last answer."""
    channel, method = await peer.receive()
    assert isinstance(method, Confirm.Select)
    closing = Channel.Close(541, "INTERNAL_ERROR", 0, 0)
    peer.send_bytes(frame.marshal(Confirm.SelectOk(), channel) + frame.marshal(closing, channel))
    await peer.expect(Channel.CloseOk)


async def test_a_channel_that_is_closed_right_behind_its_opening_is_not_used() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open)
        await close_behind(peer)
        await peer.answer(Channel.Open, Confirm.Select)  # the second try
        await peer.linger()

    async with FakeServer(script) as server, leveret.connect(server.url, close_timeout=0.2) as client:
        producer = client.producer(confirm_timeout=0.2)
        with pytest.raises(ChannelClosed, match="INTERNAL_ERROR"):
            await producer.open()
        await producer.open()
        await producer.close()


async def test_another_channel_is_tried_when_the_next_one_is_closed_right_behind_its_opening() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        await peer.receive()
        peer.send(Channel.Close(404, "NOT_FOUND - no exchange 'missing' in vhost '/'", 60, 40), 1)
        while not isinstance((await peer.receive())[1], Channel.CloseOk):
            pass
        await peer.answer(Channel.Open)
        await close_behind(peer)
        await peer.answer(Channel.Open, Confirm.Select)
        channel, publishing = await peer.receive()
        assert isinstance(publishing, Basic.Publish)
        peer.send(Basic.Ack(1), channel)
        await peer.linger()

    async with producing(script) as producer:
        offender = producer.publish_nowait(b"1", "key", exchange="missing")
        innocent = producer.publish_nowait(b"1", "key")
        with pytest.raises(ExchangeNotFound):
            await offender
        async with asyncio.timeout(5):
            assert (await innocent).attempts == 2


async def test_a_producer_whose_channels_are_closed_at_once_opens_them_more_and_more_seldom() -> None:
    opened = 0

    async def script(peer: Peer) -> None:
        nonlocal opened
        await peer.handshake()
        while True:
            channel, method = await peer.receive()
            if method.name in ANSWERS:
                peer.send(ANSWERS[method.name](method), channel)
            if isinstance(method, Confirm.Select):
                opened += 1
                await asyncio.sleep(0.002)  # the producer goes on, and is lost right behind
                peer.send(Channel.Close(506, "RESOURCE_ERROR", 0, 0), channel)

    async with producing(script):
        await asyncio.sleep(2)
    # Delays of up to 0.1, 0.2, 0.4, 0.8 ... s; without them there would be hundreds.
    assert 2 < opened < 20
