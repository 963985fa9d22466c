"""The broker closes the channel for one message: that one fails, and all others end as usual."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Basic, Channel, Confirm
from pamqp.header import ContentHeader
from tests.support.confirming import producing
from tests.support.outcomes import awaited
from tests.support.peers import ANSWERS, Peer
from tests.support.reopening import channels, first_occurrences, outcome, outcomes

import leveret
from leveret import Outcome
from leveret.broker import EmbeddedBroker
from leveret.errors import ChannelClosed, ConnectionClosed, MessageRefused, PublishError

if TYPE_CHECKING:
    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")

FORGED: dict[str, Any] = {"user_id": "somebody else"}


@pytest.mark.parametrize("place", [0, 7, 19])
async def test_only_the_message_fails_that_the_broker_closes_the_channel_for_without_naming_it(
    client: leveret.Client, queue: str, place: int
) -> None:
    async with client.producer() as producer:
        tickets = [producer.publish_nowait(n, queue, **(FORGED if n == place else {})) for n in range(20)]
        ended = await asyncio.gather(*map(awaited, tickets), return_exceptions=True)
        refused = ended.pop(place)
        assert isinstance(refused, MessageRefused)
        assert isinstance(refused, ChannelClosed)
        assert (refused.outcome, refused.reply_code, refused.delivery_tag) == (Outcome.UNKNOWN, 406, place + 1)
        assert (refused.class_id, refused.method_id) == (60, 40)
        assert refused.attempts == 3
        assert all(isinstance(each, leveret.Receipt) for each in ended), ended
        assert (await producer.publish("after", queue)).attempts == 1
        assert channels(producer) == 1
    assert await first_occurrences(client, queue) == [*(n for n in range(20) if n != place), "after"]


async def test_each_message_at_fault_fails_and_all_others_go_on_when_there_are_several(
    client: leveret.Client, queue: str
) -> None:
    culprits = {3, 4, 30, 59}
    async with client.producer() as producer:
        tickets = [producer.publish_nowait(n, queue, **(FORGED if n in culprits else {})) for n in range(60)]
        known = await outcomes(tickets)
        assert {n for n, each in enumerate(known) if each is not Outcome.CONFIRMED} == culprits
        for n in culprits:
            with pytest.raises(MessageRefused):
                await tickets[n]
    assert await first_occurrences(client, queue) == [n for n in range(60) if n not in culprits]


async def test_publishing_goes_on_when_every_message_is_at_fault(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        tickets = [producer.publish_nowait(n, queue, **FORGED) for n in range(30)]
        assert await outcomes(tickets) == [Outcome.UNKNOWN] * 30
        assert await outcome(producer.publish("after", queue)) is Outcome.CONFIRMED
    assert await first_occurrences(client, queue) == ["after"]


async def test_what_is_published_meanwhile_follows_what_goes_one_at_a_time(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        tickets = [producer.publish_nowait(n, queue, **(FORGED if n == 15 else {})) for n in range(20)]
        calls = []
        number = 20
        while not tickets[15].done:
            tickets.append(producer.publish_nowait(number, queue))
            calls.append(asyncio.create_task(producer.publish(f"waited {number}", queue)))
            number += 1
            await asyncio.sleep(0.001)
        known = await outcomes([*tickets, *calls])
        assert [n for n, each in enumerate(known) if each is not Outcome.CONFIRMED] == [15]
    found = await first_occurrences(client, queue)
    assert [each for each in found if isinstance(each, int)] == [n for n in range(number) if n != 15]
    assert [each for each in found if isinstance(each, str)] == [f"waited {n}" for n in range(20, number)]


async def test_a_body_over_the_brokers_limit_fails_alone_and_is_not_sent_again() -> None:
    async with EmbeddedBroker(max_message_size=1000) as broker, leveret.connect(broker.url) as client:
        await client.declare(leveret.Topology().queue("q"))
        async with client.producer(serializer="bytes") as producer:
            tickets = [producer.publish_nowait(bytes(1001 if n == 5 else 1000), "q") for n in range(10)]
            ended = await asyncio.gather(*map(awaited, tickets), return_exceptions=True)
            refused = ended.pop(5)
            assert isinstance(refused, MessageRefused)
            assert (refused.outcome, refused.reply_code, refused.attempts) == (Outcome.UNKNOWN, 406, 1)
            assert "at most 1000 bytes" in str(refused)
            assert all(isinstance(each, leveret.Receipt) for each in ended), ended
        assert await client.purge("q") >= 9


async def test_nothing_is_sent_twice_when_nothing_is_to_be_sent_again(client: leveret.Client, queue: str) -> None:
    async with client.producer(on_loss="unknown") as producer:
        tickets = [producer.publish_nowait(n, queue, **(FORGED if n == 5 else {})) for n in range(10)]
        known = await outcomes(tickets)
        assert known[5:] == [Outcome.UNKNOWN] * 5
        assert set(known[:5]) <= {Outcome.CONFIRMED, Outcome.UNKNOWN}
        with pytest.raises(PublishError) as lost:
            await tickets[5]
        assert isinstance(lost.value.__cause__, ChannelClosed)
        assert await outcome(producer.publish("after", queue)) is Outcome.CONFIRMED
    async with client.consumer(queue) as consumer:
        found = []
        while message := await consumer.get():
            found.append(message.value)
            assert "x-leveret-resent" not in (message.headers or {})
            message.ack()
    assert found == [0, 1, 2, 3, 4, "after"]


async def test_a_message_that_ends_connections_is_found_as_well() -> None:
    """A broker that cannot read a message's properties closes the whole connection."""
    written: list[list[bytes]] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        written.append([])
        tag = 0
        while True:
            channel, value = await peer.receive()
            if isinstance(value, ContentHeader):
                body = (await peer.receive())[1].value
                written[-1].append(body)
                if body == b"poison":
                    peer.send(leveret_close(), 0)
                    await peer.linger()
                    return
                tag += 1
                peer.send(Basic.Ack(tag), channel)
            elif getattr(value, "name", "") in ANSWERS:
                peer.send(ANSWERS[value.name](value), channel)

    async with producing(script) as producer:
        tickets = [producer.publish_nowait(body, "q") for body in (b"1", b"poison", b"2", b"3")]
        assert await outcomes(tickets) == [Outcome.CONFIRMED, Outcome.UNKNOWN, Outcome.CONFIRMED, Outcome.CONFIRMED]
        with pytest.raises(MessageRefused) as refused:
            await tickets[1]
        assert isinstance(refused.value.__cause__, ConnectionClosed)
        assert refused.value.reply_code == 501
    assert sum(bodies.count(b"poison") for bodies in written) == 3


def leveret_close() -> Any:
    from pamqp.commands import Connection

    return Connection.Close(501, "FRAME_ERROR", 60, 40)


@pytest.mark.parametrize("times", [2, 6])
async def test_an_operator_who_closes_connections_puts_no_message_at_fault(
    broker: Broker, client: leveret.Client, queue: str, times: int
) -> None:
    async with leveret.connect(broker.url, recovery_initial_delay=0.001) as unlucky, unlucky.producer() as producer:
        tickets = []
        for n in range(times):
            tickets += [producer.publish_nowait(n * 100 + i, queue) for i in range(100)]
            await asyncio.sleep(0)
            await broker.close_connections()
        assert await outcomes(tickets) == [Outcome.CONFIRMED] * len(tickets)
    async with leveret.connect(broker.url) as reader:
        assert await first_occurrences(reader, queue) == list(range(times * 100))
