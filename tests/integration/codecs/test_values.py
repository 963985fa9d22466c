"""A message comes back as it went: its value, its properties, its headers and its order."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec
import pytest
from tests.support.loops import every_loop

import leveret
from leveret import FieldValue, Outcome
from leveret.errors import EncodeFailed

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_leftovers")


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
            reply_to="amq.rabbitmq.reply-to.client-1",
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
        reply_to="amq.rabbitmq.reply-to.client-1",
        expiration="60500",
        message_id="message",
        timestamp=int(at.timestamp()),
        type="order.created",
        user_id="guest",
        app_id="shop",
    )
    assert (message.priority, message.type, message.correlation_id) == (9, "order.created", "correlation")
    assert (message.reply_to, message.message_id) == ("amq.rabbitmq.reply-to.client-1", "message")
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


FRAME_MAX = 131_072


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


@pytest.mark.server_version
@pytest.mark.parametrize("kind", ["l", "L"])
@pytest.mark.parametrize("value", [-(2**63), -1, 0, 2**63 - 1])
async def test_both_types_of_eight_bytes_are_signed_as_rabbitmq_reads_them(
    client: leveret.Client, queue: str, name: Callable[[str], str], kind: str, value: int
) -> None:
    async with client.producer() as producer:
        await producer.publish(1, queue, headers={"n": FieldValue(kind, value)})
        with pytest.raises(EncodeFailed, match=rf"does not fit field type '{kind}'"):
            await producer.publish(1, queue, headers={"n": FieldValue(kind, 2**63)})
        # The broker's own reading of it decides where it goes.
        exchange = name("headers")
        binding = {"x-match": "all", "n": FieldValue("l", value)}
        topology = leveret.Topology().exchange(exchange, "headers").bind(queue, exchange, arguments=binding)
        await client.declare(topology)
        await producer.publish(2, exchange=exchange, mandatory=True, headers={"n": FieldValue(kind, value)})
    for expected in (1, 2):
        message = await take(client, queue)
        assert (message.value, message.headers) == (expected, {"n": value})
