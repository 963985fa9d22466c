"""While the broker blocks publishers, publishing waits and everything else goes on."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Channel, Confirm, Connection
from tests.support.brokers import publish_until_blocked
from tests.support.outcomes import AT_ONCE
from tests.support.peers import FakeServer

import leveret
from leveret import ConnectionSettings, ProducerSettings, Topology
from leveret.errors import BackpressureError, ConfirmTimeout, OperationTimeout, PublishError
from leveret.message import Outcome
from leveret.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.brokers import Broker
    from tests.support.peers import Peer

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_publishing_waits_and_acknowledging_goes_on_when_the_broker_is_short_of_memory(
    blockable: Broker, client: leveret.Client, queue: str
) -> None:
    times: dict[str, Any] = {"confirm_timeout": 0.4, "publish_timeout": 0.4}
    async with client.producer(**times) as producer, client.consumer(queue, prefetch=1) as consumer:
        assert await producer.publish_batch(range(20), queue)
        (await anext(consumer)).ack()
        patient = await client.producer(confirm_timeout=10).open()
        await blockable.block()
        await publish_until_blocked(client, producer, queue)
        reason = client.connection.blocked
        assert reason

        started = time.monotonic()
        with pytest.raises(PublishError, match=reason) as late:
            await producer.publish("blocked", queue)
        assert late.value.outcome is Outcome.NOT_SENT
        assert 0.3 <= time.monotonic() - started <= 1
        with pytest.raises(BackpressureError, match=reason):
            producer.publish_nowait("blocked", queue)

        # The whole batch waits once, not each of its chunks.
        started = time.monotonic()
        result = await producer.publish_batch(range(5000), queue)
        assert time.monotonic() - started <= 2
        assert {result.outcome(index) for index in range(5000)} == {Outcome.NOT_SENT}

        # Consuming has a connection of its own: with a prefetch of one, each message needs the ack before it.
        async with asyncio.timeout(5):
            for number in range(1, 20):
                message = await anext(consumer)
                assert message.value == number
                message.ack()

        publishing = asyncio.create_task(patient.publish("after", queue))
        await blockable.unblock()
        async with asyncio.timeout(5):
            assert (await publishing).outcome is Outcome.CONFIRMED
            while (message := await anext(consumer)).value != "after":
                message.ack()
        assert client.connection.blocked is None


async def test_what_is_opened_says_that_the_broker_blocks(blockable: Broker, queue: str) -> None:
    settings = Settings(
        connection=ConnectionSettings.from_url(blockable.url, operation_timeout=1.0, close_timeout=1.0),
        producer=ProducerSettings(publish_timeout=1.0, confirm_timeout=0.4),
    )
    async with leveret.connect(settings) as client, client.producer() as producer:
        await blockable.block()
        await publish_until_blocked(client, producer, queue)
        reason = client.connection.blocked
        assert reason

        async def transaction() -> None:
            async with producer.transaction():
                pass

        opened = client.producer()
        message = client.message(1).routing_key(queue)
        calls = [opened.open(), transaction(), message.publish(), message.publish()]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, PublishError)
            assert (error.outcome, error.stage) == (Outcome.NOT_SENT, "blocked")
            assert reason in str(error)
        with pytest.raises(OperationTimeout, match=reason):
            await client.declare(Topology().queue(queue))

        patient = asyncio.create_task(client.producer(publish_timeout=30).open())
        await asyncio.sleep(0)
        await blockable.unblock()
        async with await patient as late, opened:
            assert (await late.publish(1, queue)).outcome is Outcome.CONFIRMED


async def test_publishing_waits_when_the_socket_is_full(broker: Broker, queue: str) -> None:
    async with leveret.connect(broker.url, write_high_watermark=200_000, write_low_watermark=50_000) as client:
        producer = await client.producer(serializer="bytes", confirm_timeout=10).open()
        tickets = []
        # Nothing leaves while this loop does not let others run, until the socket is full.
        while not client.connection.transport.paused:
            tickets.append(producer.publish_nowait(bytes(100_000), queue))
        assert client.connection.transport.pending_bytes >= 200_000
        waiting = producer.publish(b"waits for its turn", queue)
        assert waiting.ticket is None
        tickets.append(producer.publish_nowait(b"fills the send buffer", queue))
        async with asyncio.timeout(15):
            await waiting
            assert all([(await ticket).outcome is Outcome.CONFIRMED for ticket in tickets])
        await producer.close()


async def test_who_waits_for_a_blocking_broker_is_told_when_the_producer_is_closed(
    blockable: Broker, client: leveret.Client, queue: str
) -> None:
    producer = await client.producer(confirm_timeout=0.3).open()
    await blockable.block()
    await publish_until_blocked(client, producer, queue)
    waiting = [asyncio.create_task(producer.publish(number, queue)) for number in range(3)]
    await asyncio.sleep(0)
    await producer.close()
    async with asyncio.timeout(AT_ONCE):
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, PublishError)
            assert (error.outcome, str(error)) == (Outcome.NOT_SENT, "not sent: the producer is closed")
    await blockable.unblock()


async def test_callers_that_the_broker_blocks_end_at_once_when_the_producer_gives_up() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        peer.send(Connection.Blocked("low on disk"))
        await asyncio.sleep(0.2)
        peer.hang_up()

    async with (
        FakeServer(script) as server,
        leveret.connect(server.url, auto_recovery=False) as client,
        client.producer(serializer="bytes", confirm_timeout=20, publish_timeout=20) as producer,
    ):
        began = time.monotonic()
        await asyncio.sleep(0.1)  # blocked by now
        with pytest.raises(PublishError):
            await producer.publish(b"", "q")
        assert time.monotonic() - began < 10


KiB = 1024


BODY = 16 * KiB


async def test_nothing_is_written_when_publishers_try_again_and_again_while_they_are_blocked(
    broker: Broker, client: leveret.Client, queue: str
) -> None:
    transport = client.connection.transport
    async with client.producer(serializer="bytes", confirm_timeout=0.3, publish_timeout=0.3) as producer:
        await broker.block()
        try:
            async with asyncio.timeout(5):
                while client.connection.blocked is None:
                    with contextlib.suppress(ConfirmTimeout):
                        await producer.publish(b"", queue)
            published = producer.counters()["published"]
            read: list[int] = []

            def bodies() -> Iterator[bytes]:
                while True:
                    read.append(BODY)
                    yield bytes(BODY)

            async def once() -> None:
                await producer.publish(bytes(BODY), queue)

            tries = [asyncio.create_task(once()) for _ in range(1000)]
            batch = asyncio.create_task(producer.publish_batch(bodies(), queue))
            refused = 0
            while not batch.done() or not all(task.done() for task in tries):
                with pytest.raises(BackpressureError):
                    producer.publish_nowait(bytes(BODY), queue)
                refused += 1
                await asyncio.sleep(0)
            assert refused
            errors = await asyncio.gather(*tries, return_exceptions=True)
            assert {error.outcome for error in errors if isinstance(error, PublishError)} == {Outcome.NOT_SENT}
            assert len(errors) == 1000
            assert (await batch).confirmed == 0
            assert sum(read) <= 2 * 1024 * KiB, "an iterable is not read while its values cannot be sent"
            assert producer.counters()["published"] == published
            assert transport.pending_bytes == 0
        finally:
            await broker.unblock()
