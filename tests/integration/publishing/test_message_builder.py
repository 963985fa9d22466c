"""A message may be put together call by call."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from tests.support.orders import Order, orders
from tests.support.queues import messages

import leveret
from leveret import Outcome
from leveret.errors import BackpressureError, MessageReturned, PublishError
from leveret.settings import ConnectionSettings, ProducerSettings, Settings

if TYPE_CHECKING:
    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.mark.parametrize("maker", ["client", "producer"])
async def test_s18_a_message_is_put_together_call_by_call(
    client: leveret.Client, other: leveret.Client, exchange: str, queue: str, maker: str
) -> None:
    order = orders(1)[0]
    at = datetime(2025, 7, 16, 12, 30, tzinfo=UTC)
    async with client.producer() as producer:
        message = (
            (client if maker == "client" else producer)
            .message(order)
            .exchange(exchange)
            .routing_key("order.created")
            .headers({"tenant": 7, "source": "shop"})
            .header("attempt", 1)
            .persistent()
            .priority(255)
            .expiration(60.0)
            .content_type("application/json")
            .content_encoding("utf-8")
            .correlation_id("correlation-1")
            .reply_to("replies")
            .message_id("message-1")
            .timestamp(at)
            .type("order.created")
            .user_id("guest")
            .app_id("shop")
            .mandatory()
            .confirm_timeout(5.0)
        )
        receipt = await message.publish()
        assert receipt.outcome is Outcome.CONFIRMED
        # The same again, with other options and without waiting.
        del message.options["confirm_timeout"]
        assert await message.transient().message_id("message-2").publish_nowait()
        with pytest.raises(MessageReturned):
            await message.routing_key("order.lost").publish()

    first, second = await messages(other, queue, Order)
    assert first.value == second.value == order
    assert (first.exchange, first.routing_key) == (exchange, "order.created")
    assert first.properties == leveret.Properties(
        content_type="application/json",
        content_encoding="utf-8",
        headers={"tenant": 7, "source": "shop", "attempt": 1},
        delivery_mode=2,
        priority=255,
        correlation_id="correlation-1",
        reply_to="replies",
        expiration="60000",
        message_id="message-1",
        timestamp=int(at.timestamp()),
        type="order.created",
        user_id="guest",
        app_id="shop",
    )
    assert (second.properties.delivery_mode, second.message_id) == (1, "message-2")


async def test_s18_a_message_goes_straight_to_a_queue(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    await client.message({"id": 1}).queue(queue).publish()
    (message,) = await messages(other, queue)
    assert (message.value, message.exchange, message.routing_key) == ({"id": 1}, "", queue)


async def test_s18_enqueue_opens_the_clients_producer_and_returns_a_ticket(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    ticket = await client.message({"id": 1}).queue(queue).enqueue()
    assert (await ticket).outcome is Outcome.CONFIRMED
    again = await client.message({"id": 2}).queue(queue).enqueue()
    assert (await again).outcome is Outcome.CONFIRMED
    # The client has one producer for all of them: tags go on.
    assert again.delivery_tag == ticket.delivery_tag + 1
    assert [message.value for message in await messages(other, queue)] == [{"id": 1}, {"id": 2}]


async def test_s18_enqueue_waits_for_room_where_publish_nowait_refuses(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer(max_buffered=2) as producer:
        refused = [producer.message(number).queue(queue) for number in range(3)]
        tickets = [refused[0].publish_nowait(), refused[1].publish_nowait()]
        with pytest.raises(BackpressureError):
            refused[2].publish_nowait()
        tickets += [await producer.message(number).queue(queue).enqueue() for number in range(2, 20)]
        assert {(await ticket).outcome for ticket in tickets} == {Outcome.CONFIRMED}
    assert [message.value for message in await messages(other, queue)] == list(range(20))


@pytest.mark.time_limit(120)
async def test_s18_enqueue_of_a_client_waits_for_the_connection_within_publish_timeout(
    proxy: FaultProxy, other: leveret.Client, queue: str
) -> None:
    def settings(publish_timeout: float) -> Settings:
        return Settings(
            connection=ConnectionSettings.from_url(proxy.url, recovery_initial_delay=0.01, recovery_max_delay=0.05),
            producer=ProducerSettings(publish_timeout=publish_timeout, confirm_timeout=60),
        )

    async with leveret.connect(settings(0.3)) as hasty, leveret.connect(settings(60)) as patient:
        proxy.refuse()
        proxy.reset()
        await asyncio.gather(hasty.connection._ended, patient.connection._ended)
        waiting = asyncio.create_task(patient.message("in time").queue(queue).enqueue())
        with pytest.raises(PublishError, match="publish_timeout") as caught:
            await hasty.message("late").queue(queue).enqueue()
        assert (caught.value.outcome, caught.value.stage) == (Outcome.NOT_SENT, "connection")
        assert not waiting.done()
        proxy.accept()
        assert (await (await waiting)).outcome is Outcome.CONFIRMED
    assert [message.value for message in await messages(other, queue)] == ["in time"]
