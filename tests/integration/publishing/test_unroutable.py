"""What no queue takes comes back unless it need not, and one late confirm does not let the window grow for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Basic, Channel, Confirm
from pamqp.header import ContentHeader
from tests.support.confirming import producing, served
from tests.support.outcomes import awaited, failure
from tests.support.peers import ANSWERS, Peer

import leveret
from leveret import Outcome
from leveret.errors import BackpressureError, MessageReturned

if TYPE_CHECKING:
    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_what_no_queue_takes_comes_back_whatever_way_it_is_published(broker: Broker) -> None:
    async with leveret.connect(broker.url) as client, client.producer() as producer:
        calls = [
            producer.publish(1, "no such queue"),
            producer.publish(1, "no such queue", headers={"a": 1}),
            producer.publish(1, producer.template("no such queue", priority=1)),
            awaited(producer.publish_nowait(1, "no such queue")),
            awaited(await producer.enqueue(1, "no such queue")),
            producer.message(1).queue("no such queue").publish(),
            client.message(1).queue("no such queue").publish(),
        ]
        for call in calls:
            error = await failure(call)
            assert isinstance(error, MessageReturned)
            assert (error.outcome, error.reply_code, error.routing_key) == (Outcome.RETURNED, 312, "no such queue")
            assert "mandatory=False" in str(error)
        batch = await producer.publish_batch([1, 2, 3], "no such queue")
        assert [batch.outcome(index) for index in range(3)] == [Outcome.RETURNED] * 3


async def test_events_without_subscribers_are_confirmed_when_they_need_not_reach_a_queue(broker: Broker) -> None:
    async with leveret.connect(broker.url) as client:
        async with client.producer(mandatory=False) as events:
            assert (await events.publish(1, "no such queue")).outcome is Outcome.CONFIRMED
            assert (await events.publish_batch([1, 2], "no such queue")).confirmed == 2
        async with client.producer() as producer:
            assert (await producer.publish(1, "no such queue", mandatory=False)).outcome is Outcome.CONFIRMED
            template = producer.template("no such queue", mandatory=False)
            assert (await producer.publish(1, template)).outcome is Outcome.CONFIRMED
        message = client.message(1).queue("no such queue").mandatory(False)
        assert (await message.publish()).outcome is Outcome.CONFIRMED


REPLY = "amq.rabbitmq.reply-to.g1h2AA5yZXBseUAx"


@pytest.mark.parametrize("options", [{}, {"mandatory": True}])
async def test_replies_to_direct_reply_to_are_never_mandatory(options: dict[str, Any]) -> None:
    published: list[tuple[str, str, bool]] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        while True:
            channel, value = await peer.receive()
            if isinstance(value, Basic.Publish):
                published.append((value.exchange, value.routing_key, value.mandatory))
            elif isinstance(value, ContentHeader):
                await peer.receive()
                peer.send(Basic.Ack(len(published)), channel)
            elif value.name in ANSWERS:
                peer.send(ANSWERS[value.name](value), channel)

    async with producing(script) as producer:
        await producer.publish(b"x", REPLY, **options)
        await producer.publish(b"x", producer.template(REPLY, **options))
        await producer.publish_nowait(b"x", REPLY, **options)
        await (await producer.enqueue(b"x", REPLY, **options))
        await producer.publish_batch([b"x", producer.message(b"x").queue(REPLY)], REPLY, **options)
        await producer.publish_raw(b"x", REPLY, b"\x00\x00")
        await producer.message(b"x").queue(REPLY).publish()
        # An exchange may have such keys; a queue may not.
        await producer.publish(b"x", REPLY, exchange="orders", **options)
        await producer.publish(b"x", "amq.rabbitmq.reply-to", **options)
    assert published == [
        *[("", REPLY, False)] * 8,
        ("orders", REPLY, True),
        ("", "amq.rabbitmq.reply-to", True),
    ]


async def test_the_window_spans_a_bounded_number_of_publishings_when_the_oldest_one_is_not_confirmed() -> None:
    async with served(max_buffered=10, max_outstanding=10, confirm_timeout=30) as (server, producer):
        oldest = producer.publish_nowait(0, "q")
        for number in range(1, 80):
            ticket = producer.publish_nowait(number, "q")
            server.ack(number + 1)
            await ticket
        assert producer.outstanding == 1
        with pytest.raises(BackpressureError, match=r"1 publishings .*the oldest of them 80 publishings ago"):
            producer.publish_nowait("refused", "q")
        waiting = asyncio.create_task(producer.publish("waits", "q"))
        done, _ = await asyncio.wait([waiting], timeout=0.05)
        assert not done
        server.ack(1)
        await oldest
        await asyncio.sleep(0)
        server.ack(81)
        assert (await waiting).delivery_tag == 81
