"""Producers and consumers agree on other names for fields, and on fields that are left out."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pydantic
import pydantic.alias_generators
import pytest
from tests.support.bodies import body_of, taken_raw
from tests.support.queues import messages

import leveret
from leveret.errors import ConfigurationError, EncodeFailed
from leveret.settings import ConsumerSettings, ProducerSettings

if TYPE_CHECKING:
    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")

OPTIONS: dict[str, Any] = {"rename": "camel", "omit_none": True}


class Line(msgspec.Struct):
    unit_price: float
    tax_rate: float | None = None


@dataclasses.dataclass
class Order:
    order_id: int
    order_lines: list[Line]
    free_text: str | None


ORDER = Order(1, [Line(9.5), Line(1.0, 0.2)], None)
WRITTEN = {"orderId": 1, "orderLines": [{"unitPrice": 9.5}, {"unitPrice": 1.0, "taxRate": 0.2}]}


async def test_s29_camel_case_and_left_out_none_are_options_of_producers_and_consumers(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer(**OPTIONS) as producer:
        await producer.publish(ORDER, queue)
        message = await taken_raw(other, queue)
        assert message.content_type == "application/json"
        assert json.loads(body_of(message)) == WRITTEN
        await producer.publish({"order_id": 1, "free_text": None}, queue)
        assert json.loads(body_of(await taken_raw(other, queue))) == {"orderId": 1}
        # Every way of publishing.
        template = producer.template(queue)
        assert await producer.publish_batch([ORDER, producer.message(ORDER).queue(queue)], template)
        assert await producer.publish_nowait(ORDER, template)
        assert await (await producer.enqueue(ORDER, queue, priority=1))
        async with producer.transaction() as transaction:
            await transaction.publish(ORDER, queue)
    consumer = other.consumer(queue, Order, **OPTIONS)
    found: list[Order] = []

    async def handler(order: Order, message: leveret.Message) -> None:
        found.append(order)
        if len(found) == 5:
            consumer.stop()

    await consumer.run(handler)
    assert found == [ORDER] * 5


@pytest.mark.parametrize(
    ("serializer", "content_type"), [("msgpack", "application/msgpack"), ("hybrid", "application/msgpack")]
)
async def test_s29_the_options_are_those_of_messagepack_too(
    client: leveret.Client, other: leveret.Client, queue: str, serializer: str, content_type: str
) -> None:
    async with client.producer(serializer=serializer, **OPTIONS) as producer:
        await producer.publish(ORDER, queue)
        message = await taken_raw(other, queue)
        assert message.content_type == content_type
        assert msgspec.msgpack.decode(body_of(message)) == WRITTEN
        await producer.publish(ORDER, queue)
    async with client.consumer(queue, Order, **OPTIONS) as consumer:
        found = await consumer.get()
        assert found is not None
        assert found.value == ORDER


async def test_s29_settings_of_all_producers_and_consumers_say_it(embedded: EmbeddedBroker) -> None:
    settings = leveret.settings.Settings(
        connection=leveret.ConnectionSettings.from_url(embedded.url),
        producer=ProducerSettings.from_env({"LEVERET_PRODUCER_RENAME": "camel", "LEVERET_PRODUCER_OMIT_NONE": "true"}),
        consumer=ConsumerSettings.from_env({"LEVERET_CONSUMER_RENAME": "camel", "LEVERET_CONSUMER_OMIT_NONE": "true"}),
    )
    async with leveret.connect(settings) as client:
        await client.declare(leveret.Topology().queue("orders"))
        await client.message(ORDER).queue("orders").publish()
        await client.message(ORDER).queue("orders").publish()
        assert json.loads(body_of(await taken_raw(client, "orders"))) == WRITTEN
        (message,) = await messages(client, "orders", Order)
        assert message.value == ORDER


async def test_names_of_another_style_do_not_fit_the_model(client: leveret.Client, queue: str) -> None:
    async with client.producer(rename="pascal") as producer:
        await producer.publish(ORDER, queue)
    async with client.consumer(queue, Order, rename="camel") as consumer:
        message = await consumer.get()
        assert message is not None
        with pytest.raises(leveret.errors.DecodeFailed, match="missing required field `order_id`"):
            _ = message.value


class Invoice(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(alias_generator=pydantic.alias_generators.to_camel, populate_by_name=True)

    invoice_id: int


async def test_pydantic_has_aliases_of_its_own(client: leveret.Client, queue: str) -> None:
    async with client.producer(serializer="pydantic") as producer:
        await producer.publish(Invoice(invoice_id=1), queue)
        await producer.publish(Invoice(invoice_id=1), queue)
    assert body_of(await taken_raw(client, queue)) == b'{"invoiceId":1}'
    (message,) = await messages(client, queue, Invoice)
    assert message.value == Invoice(invoice_id=1)


async def test_serializers_that_cannot_rename_say_so(embedded: EmbeddedBroker) -> None:
    async with leveret.connect(embedded.url) as client:
        for serializer in ("pydantic", "protobuf"):
            for option, value in OPTIONS.items():
                with pytest.raises(ConfigurationError, match=rf"{option} is .*not for the {serializer}") as caught:
                    client.producer(serializer=serializer, **{option: value})
                assert caught.value.option == option
        with pytest.raises(ConfigurationError, match="not for the pydantic serializer"):
            client.consumer("q", Invoice, serializer="pydantic", rename="camel")
        with pytest.raises(ConfigurationError, match=r"not for what decodes into <class '.*Invoice'>"):
            client.consumer("q", Invoice, rename="camel")
        # Plain values keep the names that come, and text and bytes have none, so there is nothing to refuse.
        client.consumer("q", rename="camel")
        client.consumer("q", bytes, rename="camel")
        client.consumer("q", str, serializer="text", rename="camel")
        client.producer(serializer="bytes", **OPTIONS)


async def test_a_value_with_one_name_twice_fails_alone_in_a_batch(client: leveret.Client, queue: str) -> None:
    async with client.producer(rename="camel") as producer:
        result = await producer.publish_batch([ORDER, {"a_b": 1, "aB": 2}, ORDER], queue)
    assert result.confirmed == 2
    assert [type(error) for error in result.failures.values()] == [EncodeFailed]
