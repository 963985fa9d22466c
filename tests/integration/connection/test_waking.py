"""Nothing waits longer than it has to: each end of a wait wakes everything that waits for it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from pamqp.commands import Basic, Channel, Confirm, Connection
from tests.support.confirming import mute, producing
from tests.support.peers import ANSWERS, FakeServer, Peer

import leveret
from leveret.broker import EmbeddedBroker
from leveret.errors import ConfirmTimeout, PublishError

if TYPE_CHECKING:
    from collections.abc import Awaitable

pytestmark = pytest.mark.usefixtures("no_leftovers")


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


async def test_the_time_without_a_channel_does_not_count_for_a_publishings_own_confirm_timeout() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        for _ in range(6):  # two publishings without bodies take four frames; with bodies six
            await peer.receive()
        peer.send(Channel.Close(404, "NOT_FOUND - no exchange 'bad' in vhost '/'", 60, 40), 1)
        await peer.expect(Channel.CloseOk)
        channel, _ = await peer.receive()
        await asyncio.sleep(0.8)
        peer.send(Channel.OpenOk(), channel)
        await peer.answer(Confirm.Select)
        for _ in range(3):
            await peer.receive()
        peer.send(Basic.Ack(1), channel)
        await peer.linger()

    async with producing(script, confirm_timeout=5, publish_timeout=5) as producer:
        bad = producer.publish_nowait(b"x", "q", exchange="bad")
        receipt = await producer.publish(b"x", "q", confirm_timeout=0.4)
        assert receipt.outcome is leveret.Outcome.CONFIRMED
        with pytest.raises(PublishError):
            await bad


async def test_callers_that_wait_for_room_end_at_once_when_the_producer_closes() -> None:
    async with producing(mute, max_outstanding=1, confirm_timeout=1, publish_timeout=20) as producer:
        in_flight = asyncio.create_task(producer.publish(b"", "q"))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(producer.publish(b"", "q"))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(producer.close())
        done, _ = await asyncio.wait([waiting, closing, in_flight], return_when=asyncio.FIRST_COMPLETED)
        assert done == {waiting}
        with pytest.raises(PublishError, match="the producer is closed"):
            await waiting
        with pytest.raises(PublishError):
            await in_flight
        await closing


async def test_callers_that_the_broker_blocks_end_at_once_when_the_producer_gives_up() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        peer.send(Connection.Blocked("low on disk"))
        await asyncio.sleep(0.2)
        peer.send(Channel.Close(541, "INTERNAL_ERROR", 0, 0), 1)
        await peer.expect(Channel.CloseOk)
        channel, _ = await peer.receive()
        peer.send(Channel.OpenOk(), channel)
        await peer.receive()
        peer.send(Channel.Close(403, "ACCESS_REFUSED", 85, 10), channel)
        await peer.linger()

    async with producing(script, confirm_timeout=20, publish_timeout=20) as producer:
        began = time.monotonic()
        await asyncio.sleep(0.1)  # blocked by now
        with pytest.raises(PublishError):
            await producer.publish(b"", "q")
        assert time.monotonic() - began < 10


async def test_resume_may_be_called_again_when_it_was_cancelled() -> None:
    got = asyncio.Event()

    async def handle(body: bytes, message: leveret.Message) -> None:
        got.set()

    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
        await client.declare(leveret.Topology().queue("q"))
        async with client.consumer("q", serializer="bytes") as consumer:
            running = asyncio.create_task(consumer.run(handle))
            await consumer.subscribe()
            await consumer.pause()
            resuming = asyncio.create_task(consumer.resume())
            await asyncio.sleep(0)
            resuming.cancel()
            await asyncio.wait([resuming])
            await consumer.resume()
            async with client.producer(serializer="bytes") as producer:
                await producer.publish(b"", "q")
            await asyncio.wait_for(got.wait(), 5)
            await consumer.cancel()
            await running


async def test_a_consumer_that_is_cancelled_again_and_again_subscribes_more_and_more_seldom() -> None:
    asked = 0

    async def script(peer: Peer) -> None:
        nonlocal asked
        await peer.handshake()
        while True:
            channel, method = await peer.receive()
            peer.send(ANSWERS[method.name](method), channel)
            if isinstance(method, Basic.Consume):
                asked += 1
                await asyncio.sleep(0.002)  # the consumer goes on, and is lost right behind
                peer.send(Basic.Cancel(method.consumer_tag, True), channel)

    async def handle(body: object, message: leveret.Message) -> None: ...

    async with FakeServer(script) as server, leveret.connect(server.url) as client:
        consumer = client.consumer("q", resubscribe=True)
        running = asyncio.create_task(consumer.run(handle))
        await asyncio.sleep(3)
        running.cancel()
        await asyncio.wait([running])
        await consumer.close()
    # Delays of up to 0.1, 0.2, 0.4, 0.8 ... s; without their growth there would be about 50.
    assert 2 < asked < 16


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
