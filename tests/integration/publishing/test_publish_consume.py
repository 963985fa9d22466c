"""A message goes out confirmed and comes back as it was, on RabbitMQ and on the embedded broker."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec
import pytest
from tests.support.loops import every_loop

import leveret
from leveret import FieldValue, Outcome, Topology
from leveret.errors import BackpressureError, MessageReturned, PublishError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")

FRAME_MAX = 131_072


class OrderStruct(msgspec.Struct):
    id: int
    customer: str
    tags: list[str] = []


@dataclass
class OrderDataclass:
    id: int
    customer: str


class OrderDict(TypedDict):
    id: int
    customer: str


async def take(client: leveret.Client, queue: str, model: Any = None, **options: Any) -> leveret.Message:
    """Takes the one message that is in the queue, and acknowledges it."""
    async with client.consumer(queue, model, **options) as consumer:
        message = await consumer.get()
        assert message is not None
        assert message.value is message.value  # decoded once
        assert message.ack()
        return message


# ---------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("model", "value"),
    [
        (OrderStruct, OrderStruct(1, "Zoë", ["new"])),
        (OrderDataclass, OrderDataclass(2, "Zoë")),
        (OrderDict, OrderDict(id=3, customer="Zoë")),
        (list[OrderStruct], [OrderStruct(4, "a"), OrderStruct(5, "b")]),
        (None, {"id": 6, "nested": {"list": [1, 2.5, True, None, "ü"]}}),
        (None, []),
        (None, None),
        (int, 7),
    ],
    ids=["struct", "dataclass", "typed_dict", "list_of_structs", "plain", "empty", "null", "int"],
)
async def test_a_value_comes_back_equal_when_it_goes_as_json(
    client: leveret.Client, queue: str, model: Any, value: Any
) -> None:
    async with client.producer() as producer:
        receipt = await producer.publish(value, queue)
    assert (receipt.outcome, receipt.delivery_tag) == (Outcome.CONFIRMED, 1)

    message = await take(client, queue, model)

    assert message.value == value
    assert type(message.value) is type(value)
    assert message.content_type == "application/json"
    assert message.properties.delivery_mode == 2


@pytest.mark.parametrize(
    ("serializer", "value", "content_type"),
    [
        ("text", "Grüße", "text/plain"),
        ("text", "", "text/plain"),
        ("bytes", b"\0\xff\xce", "application/octet-stream"),
    ],
)
async def test_a_value_comes_back_equal_when_it_goes_as_text_or_bytes(
    client: leveret.Client, queue: str, serializer: str, value: str | bytes, content_type: str
) -> None:
    async with client.producer(serializer=serializer) as producer:
        await producer.publish(value, queue)
    message = await take(client, queue)
    assert message.value == value
    assert message.content_type == content_type


@every_loop
async def test_messages_come_back_in_order_when_any_event_loop_runs(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        assert await producer.publish_batch(range(500), queue)
    consumer = client.consumer(queue, int)
    seen: list[int] = []

    async def handler(number: int, message: leveret.Message) -> None:
        seen.append(number)
        if number == 499:
            consumer.stop()

    await consumer.run(handler)
    assert seen == list(range(500))


# ---------------------------------------------------------------------- properties


async def test_every_property_comes_back_when_it_was_set(client: leveret.Client, queue: str) -> None:
    at = datetime(2026, 11, 23, 8, 55, 28, tzinfo=UTC)
    async with client.producer(delivery_mode="transient") as producer:
        await producer.publish(
            {"id": 1},
            queue,
            headers={"tenant": 7},
            priority=9,
            expiration=60.5,
            correlation_id="correlation",
            reply_to="amq.rabbitmq.reply-to.somebody",
            message_id="message",
            timestamp=at,
            type="order.created",
            user_id="guest",
            app_id="shop",
            content_type="application/json; charset=utf-8",
            content_encoding="utf-8",
        )

    message = await take(client, queue)

    properties = message.properties
    assert message.value == {"id": 1}
    assert properties == leveret.Properties(
        content_type="application/json; charset=utf-8",
        content_encoding="utf-8",
        headers={"tenant": 7},
        delivery_mode=1,
        priority=9,
        correlation_id="correlation",
        reply_to="amq.rabbitmq.reply-to.somebody",
        expiration="60500",
        message_id="message",
        timestamp=int(at.timestamp()),
        type="order.created",
        user_id="guest",
        app_id="shop",
    )
    assert (message.priority, message.type, message.correlation_id) == (9, "order.created", "correlation")
    assert (message.reply_to, message.message_id) == ("amq.rabbitmq.reply-to.somebody", "message")
    assert (message.timestamp, message.content_encoding) == (int(at.timestamp()), "utf-8")


async def test_headers_come_back_as_they_were_when_they_have_every_type(client: leveret.Client, queue: str) -> None:
    headers = {
        "bool": True,
        "int": -5,
        "long": 2**40,
        "float": 2.5,
        "text": "Zoë",
        "empty": "",
        "bytes": b"\0\xff",
        "none": None,
        "decimal": Decimal("12.34"),
        "list": [1, "two", [3]],
        "table": {"nested": {"deep": [{"er": 1}]}},
        "octet": FieldValue("b", -7),
        "short": FieldValue("s", -300),
        "single": FieldValue("f", 0.5),
        "ü" * 60: "a long key that is not ASCII",
    }
    async with client.producer() as producer:
        await producer.publish(None, queue, headers={**headers, "time": datetime(2026, 1, 1, tzinfo=UTC)})

    received = dict((await take(client, queue)).headers)

    time = received.pop("time")
    assert time in (datetime(2026, 1, 1, tzinfo=UTC), int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()))
    plain = {key: value.value if isinstance(value, FieldValue) else value for key, value in headers.items()}
    assert received == plain


async def test_headers_may_fill_a_frame_when_they_are_large(client: leveret.Client, queue: str) -> None:
    headers = {"large": "x" * 130_000}
    async with client.producer() as producer:
        await producer.publish(None, queue, headers=headers)
    assert (await take(client, queue)).headers == headers


# ---------------------------------------------------------------------- bodies


@pytest.mark.parametrize("size", [0, 1, FRAME_MAX - 9, FRAME_MAX - 8, FRAME_MAX - 7, 2 * (FRAME_MAX - 8), 1_048_576])
async def test_a_body_comes_back_whole_when_it_fills_frames(client: leveret.Client, queue: str, size: int) -> None:
    body = (bytes(range(251)) * (size // 251 + 1))[:size]
    async with client.producer(serializer="bytes") as producer:
        await producer.publish_batch([body, body], queue)
    fetched = await take(client, queue)
    async with client.consumer(queue) as consumer:
        delivered = await anext(consumer)
        assert delivered.ack()
    assert fetched.body == delivered.body == body
    assert fetched.body_size == len(delivered) == size


# ---------------------------------------------------------------------- ways to publish


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
    assert [receipt.delivery_tag for receipt in results[1:]] == [1, 1]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 2500])
async def test_every_message_is_confirmed_when_published_as_a_batch(
    client: leveret.Client, queue: str, count: int
) -> None:
    async with client.producer(batch_size=500) as producer:
        result = await producer.publish_batch(({"id": number} for number in range(count)), queue)
    assert result
    assert (result.count, result.confirmed, dict(result.failures)) == (count, count, {})
    assert await client.purge(queue) == count


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
            "batches": 0,
            "batch_confirmed": 0,
            "batch_milliseconds": 0,
        }
    assert {receipt.delivery_tag for receipt in receipts} == set(range(1, 1001))
    assert most <= 50
    assert await client.purge(queue) == 1000


async def test_flush_ends_when_everything_before_it_has_its_outcome(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        await producer.flush()  # nothing to wait for
        tickets = [producer.publish_nowait(number, queue) for number in range(1000)]
        await producer.flush(timeout=10)
        assert all(ticket.done and ticket.confirmed == 1 for ticket in tickets)
        assert producer.outstanding == 0


async def test_a_publish_goes_on_when_a_flush_waited_before_it(client: leveret.Client, queue: str) -> None:
    # Both wait for the same confirm: the flush must not use up the turn of the publish.
    async with client.producer(max_outstanding=1, confirm_timeout=20) as producer:
        producer.publish_nowait("first", queue)
        flush = asyncio.create_task(producer.flush())
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await producer.publish("second", queue)
            await flush


async def test_the_next_publish_goes_on_when_one_that_had_its_turn_is_cancelled(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer(max_outstanding=1, confirm_timeout=20) as producer:
        # At this moment its turn has come, and it has not run yet.
        producer.on_confirm(lambda delivery_tag, multiple: second.cancel())
        first = asyncio.create_task(producer.publish("first", queue))
        await asyncio.sleep(0)
        second = asyncio.create_task(producer.publish("second", queue))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await producer.publish("third", queue)
            await asyncio.wait([first, second])
    assert second.cancelled()
    assert await client.purge(queue) == 2


async def test_nothing_is_sent_when_the_buffer_is_full(client: leveret.Client, queue: str) -> None:
    async with client.producer(max_buffered=10) as producer:
        tickets = [producer.publish_nowait(number, queue) for number in range(10)]
        with pytest.raises(BackpressureError, match=r"10 publishings of 10 bytes .*limit 10"):
            producer.publish_nowait("too much", queue)
        for ticket in tickets:
            await ticket
        await producer.publish_nowait("fits", queue)
    assert await client.purge(queue) == 11


async def test_nothing_is_known_when_confirms_are_off(client: leveret.Client, queue: str) -> None:
    async with client.producer(confirms=False) as producer:
        assert (await producer.publish(1, queue)).outcome is Outcome.UNKNOWN
        assert (await producer.publish_nowait(2, queue)).outcome is Outcome.UNKNOWN
        result = await producer.publish_batch([3, 4], queue)
        assert result
        assert (result.confirmed, result.outcome(0)) == (0, Outcome.UNKNOWN)
    # The channel's close was answered, so the broker has read everything.
    assert await client.purge(queue) == 4


async def test_s10_every_publish_is_confirmed_when_nothing_else_was_asked_for(
    client: leveret.Client, queue: str
) -> None:
    assert leveret.ProducerSettings().confirms is True
    async with client.producer() as producer:
        assert (await producer.publish(1, queue)).outcome is Outcome.CONFIRMED
        assert producer.counters()["confirmed"] == 1


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


# ---------------------------------------------------------------------- mandatory


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


async def ticket_outcome(ticket: leveret.Ticket) -> Outcome:
    try:
        return (await ticket).outcome
    except PublishError as error:
        return error.outcome


async def test_flush_tells_of_failures_when_nobody_awaited_them(client: leveret.Client) -> None:
    async with client.producer(mandatory=True) as producer:
        for _ in range(3):
            producer.publish_nowait(1, "nowhere")
        with pytest.raises(MessageReturned, match=r"^3 publishings that were not awaited failed; the first: no queue"):
            await producer.flush()
        await producer.flush()  # once is enough


async def test_flush_does_not_repeat_a_failure_when_it_was_awaited_after_the_fact(client: leveret.Client) -> None:
    async with client.producer(mandatory=True) as producer:
        early, late = (producer.publish_nowait(1, "nowhere") for _ in range(2))
        with pytest.raises(MessageReturned):
            await producer.publish(1, "nowhere")  # by now the two before it have failed
        assert early.done
        assert late.done
        for ticket in (early, late):
            with pytest.raises(MessageReturned):
                await ticket
        await producer.flush()


# ---------------------------------------------------------------------- client


async def test_a_client_is_awaited_or_entered_when_the_caller_likes(broker: Broker) -> None:
    client = await leveret.connect(broker.url)
    assert client.connection.is_open
    await client.close()
    assert not client.connection.is_open
    await client.close()  # again is no error
    async with leveret.connect(broker.url) as client:
        assert client.connection.is_open
    assert not client.connection.is_open


async def test_what_was_published_is_confirmed_when_the_client_closes(
    client: leveret.Client, broker: Broker, queue: str
) -> None:
    async with leveret.connect(broker.url) as other:
        producer = await other.producer().open()
        tickets = [producer.publish_nowait(number, queue) for number in range(500)]
    assert all(ticket.done and ticket.confirmed == 1 for ticket in tickets)
    assert await client.purge(queue) == 500


async def test_publishers_have_their_turns_in_order_when_many_more_wait_than_may_publish(
    client: leveret.Client, queue: str
) -> None:
    turns: list[int] = []
    async with client.producer(max_outstanding=5, confirm_timeout=2.0) as producer:

        async def publish(number: int) -> None:
            for _ in range(20):
                await producer.publish(number, queue)
                turns.append(number)

        await asyncio.gather(*map(publish, range(50)))
        assert producer.counters()["confirmed"] == 1000
    # Nobody gets far ahead of anybody: after any number of turns, the most and the least differ by a few.
    for end in range(100, 1001, 100):
        counts = [turns[:end].count(number) for number in range(50)]
        assert max(counts) - min(counts) <= 3, end


async def test_a_waiting_publisher_has_its_turn_when_the_one_before_it_fails(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer(max_outstanding=1, max_body_size=100, confirm_timeout=2.0) as producer:
        first, large, last = (
            asyncio.create_task(producer.publish(value, queue)) for value in ("first", "x" * 200, "last")
        )
        assert await first
        with pytest.raises(leveret.errors.BodyTooLarge):
            await large
        assert await last
