"""A producer that is closed leaves its channel to the next one, so that a producer for each request costs little."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Confirm
from pamqp.header import ContentHeader
from tests.support.brokers import open_channels
from tests.support.peers import FakeServer, Peer
from tests.support.queues import taken
from tests.support.reopening import MISSING, outcome, outcomes, unkept

import leveret
from leveret.errors import ExchangeNotFound, MessageReturned, OperationTimeout, PublishError
from leveret.message import Outcome
from leveret.testing import FaultProxy

if TYPE_CHECKING:
    from tests.support.brokers import Broker

PUBLISHING = (Basic.Publish, ContentHeader, ContentBody)

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_producers_one_after_the_other_share_a_channel_and_count_from_1(
    broker: Broker, client: leveret.Client, queue: str
) -> None:
    before = await open_channels(broker, client.connection)
    for request in range(20):
        async with client.producer() as producer:
            assert producer.next_delivery_tag == 1
            receipts = [await producer.publish((request, number), queue) for number in range(request % 3)]
            assert [receipt.delivery_tag for receipt in receipts] == list(range(1, request % 3 + 1))
            assert producer.counters()["confirmed"] == request % 3
    assert await open_channels(broker, client.connection) == before + 1
    assert await taken(client, queue) == [[request, number] for request in range(20) for number in range(request % 3)]


async def test_producers_at_the_same_time_have_a_channel_each(
    broker: Broker, client: leveret.Client, queue: str
) -> None:
    async def request(number: int) -> None:
        async with client.producer() as producer:
            assert await outcomes(producer.publish((number, each), queue) for each in range(5)) == (
                [Outcome.CONFIRMED] * 5
            )

    for _ in range(3):
        await asyncio.gather(*map(request, range(10)))
    assert len(client.connection.confirm_channels) == 10
    assert len(await taken(client, queue)) == 150


async def test_at_most_max_pooled_channels_are_kept(broker: Broker, queue: str) -> None:
    async with leveret.connect(broker.url, max_pooled_channels=2) as client:
        producers = [await client.producer().open() for _ in range(4)]
        await asyncio.gather(*(producer.publish(1, queue) for producer in producers))
        for kept, producer in enumerate(producers):
            await producer.close()
            assert len(client.connection.confirm_channels) == min(kept + 1, 2)
        assert not unkept(client)


async def test_returns_are_told_to_the_producer_that_has_the_channel(
    broker: Broker, client: leveret.Client, queue: str
) -> None:
    for _ in range(3):
        async with client.producer() as producer:
            assert await outcome(producer.publish("taken", queue)) is Outcome.CONFIRMED
            with pytest.raises(MessageReturned):
                await producer.publish("returned", f"{queue}-missing")
    assert len(client.connection.confirm_channels) == 1


async def test_what_was_in_flight_on_a_used_channel_is_sent_again_when_it_is_lost(
    broker: Broker, other: leveret.Client, queue: str
) -> None:
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url) as client:
        async with client.producer() as first:
            for number in range(10):
                await first.publish(number, queue)
        async with client.producer() as second:
            await second.publish("before", queue)
            tickets = [second.publish_nowait(number, queue) for number in range(100, 200)]
            proxy.reset()
            assert set(await outcomes(tickets)) == {Outcome.CONFIRMED}
            assert (await second.publish("behind", queue)).delivery_tag == 102
        # It counts by the new channel now.
        async with client.producer() as third:
            assert (await third.publish("third", queue)).delivery_tag == 1
        assert len(client.connection.confirm_channels) == 1
    found = list(dict.fromkeys(await taken(other, queue)))
    assert found == [*range(10), "before", *range(100, 200), "behind", "third"]


async def test_the_producer_of_a_channel_that_the_broker_closes_opens_another(
    broker: Broker, client: leveret.Client, queue: str
) -> None:
    async with client.producer() as first:
        await first.publish(1, queue)
    async with client.producer() as second:
        with pytest.raises(ExchangeNotFound):
            await second.publish("offender", queue, exchange=MISSING)
        assert (await second.publish(2, queue)).delivery_tag == 2
    async with client.producer() as third:
        assert (await third.publish(3, queue)).delivery_tag == 1
    assert await taken(client, queue) == [1, 2, 3]


async def test_a_lost_connection_leaves_none(broker: Broker, queue: str) -> None:
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url) as client:
        async with client.producer() as producer:
            await producer.publish(1, queue)
        before = client.connection
        assert len(before.confirm_channels) == 1
        proxy.reset()
        async with client.producer() as producer:
            assert await outcome(producer.publish(2, queue)) is Outcome.CONFIRMED
        assert client.connection is not before
        assert len(before.confirm_channels) == 0
        assert len(client.connection.confirm_channels) == 1


async def test_a_producer_without_confirms_closes_its_channel(
    broker: Broker, client: leveret.Client, queue: str
) -> None:
    async with client.producer(confirms=False) as producer:
        await producer.publish(1, queue)
    assert not unkept(client)
    assert len(client.connection.confirm_channels) == 0
    assert await taken(client, queue) == [1]


@pytest.mark.parametrize("user", ["consumer", "pool", "transaction", "producer"])
async def test_an_idle_channel_gives_way_when_all_numbers_are_used(broker: Broker, queue: str, user: str) -> None:
    async with leveret.connect(broker.url, channel_max=2) as client:
        first, second = [await client.producer().open() for _ in range(2)]
        assert await outcome(first.publish("first", queue)) is Outcome.CONFIRMED
        assert await outcome(second.publish("second", queue)) is Outcome.CONFIRMED
        await second.close()
        if user == "pool":
            assert await client.purge(queue) == 2
        elif user == "consumer":
            async with client.dedicated_connection("other") as dedicated:
                producers = [await dedicated.producer().open() for _ in range(2)]
                await producers[0].close()
                async with dedicated.consumer(queue) as consumer:
                    message = await consumer.get()
                    assert message is not None
                    message.ack()
                await producers[1].close()
        elif user == "transaction":
            async with first.transaction() as transaction:
                await transaction.publish("third", queue)
            assert await taken(client, queue) == ["first", "second", "third"]
        else:
            async with client.producer(confirms=False) as third:
                await third.publish("third", queue)
            assert await taken(client, queue) == ["first", "second", "third"]
        await first.close()


async def test_no_channel_is_left_while_a_confirm_may_still_come() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        for channel in (1, 1):
            await peer.answer(Channel.Open, Confirm.Select)
            await peer.expect(*PUBLISHING)
            await peer.expect(Channel.Close)
            # Too late: the producer has given it up.
            peer.send(Basic.Ack(1, False), channel)
            peer.send(Channel.CloseOk(), channel)
        await peer.linger()

    async with FakeServer(script) as server, leveret.connect(server.url) as client:
        for _ in range(2):
            async with client.producer(mandatory=False, publish_timeout=0.3, confirm_timeout=0.2) as producer:
                with pytest.raises(PublishError) as failed:
                    await producer.publish("x", "key")
                assert failed.value.outcome is Outcome.UNKNOWN
            assert len(client.connection.confirm_channels) == 0


async def test_confirms_of_the_producer_before_and_of_nobody_are_ignored() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        await peer.expect(*PUBLISHING)
        peer.send(Basic.Ack(1, False), 1)
        await peer.expect(*PUBLISHING)
        for tag, multiple in ((1, False), (1, True), (0, False), (3, False), (3, True)):
            peer.send(Basic.Ack(tag, multiple), 1)
        peer.send(Basic.Nack(2, False), 1)
        await peer.expect(*PUBLISHING)
        peer.send(Basic.Ack(0, True), 1)
        await peer.linger()

    async with FakeServer(script) as server, leveret.connect(server.url) as client:
        async with client.producer(mandatory=False) as first:
            assert (await first.publish("x", "key")).delivery_tag == 1
        async with client.producer(mandatory=False) as second:
            assert await outcome(second.publish("x", "key")) is Outcome.NACKED
            assert second._window.ignored == 5
            assert (await second.publish("x", "key")).delivery_tag == 2


async def test_a_channel_that_is_lost_while_it_is_idle_is_not_used() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        await peer.expect(*PUBLISHING)
        peer.send(Basic.Ack(1, False), 1)
        peer.send(Basic.Ack(1, False), 1)
        peer.send(Channel.Close(541, "INTERNAL_ERROR", 0, 0), 1)
        await peer.expect(Channel.CloseOk)
        await peer.answer(Channel.Open, Confirm.Select)
        await peer.expect(*PUBLISHING)
        peer.send(Basic.Ack(1, False), 2)
        await peer.linger()

    async with FakeServer(script) as server, leveret.connect(server.url) as client:
        async with client.producer(mandatory=False) as first:
            await first.publish("x", "key")
        async with asyncio.timeout(10):
            while len(client.connection.confirm_channels):  # noqa: ASYNC110 - there is no event for this
                await asyncio.sleep(0)
        async with client.producer(mandatory=False) as second:
            assert (await second.publish("x", "key")).delivery_tag == 1


async def test_an_idle_channel_that_the_broker_does_not_close_makes_no_way() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        await peer.expect(Channel.Close)
        await peer.linger()

    async with (
        FakeServer(script) as server,
        leveret.connect(server.url, channel_max=1, operation_timeout=0.2) as client,
    ):
        await (await client.producer().open()).close()
        with pytest.raises(OperationTimeout, match=r"no channel .* was free within operation_timeout"):
            await client.purge("q")
