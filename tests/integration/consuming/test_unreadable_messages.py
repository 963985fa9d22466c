"""A message that cannot be read is set aside with the reason, and the consumer goes on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from pamqp.commands import Basic, Channel
from tests.corpus.frames import frame
from tests.support.conversation import PROTOCOL_HEADER, nested_table
from tests.support.handling import Queues, running, until
from tests.support.peers import Peer, two_connections
from tests.support.queues import messages, taken
from tests.support.servers import ON_EVERY_SERVER

import leveret
from leveret.errors import CodecError, DecodeFailed

if TYPE_CHECKING:
    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


class Order(msgspec.Struct):
    id: int


async def test_a_body_is_parked_and_counted_when_it_cannot_be_decoded(queues: Queues) -> None:
    await queues.publish({"id": "one"}, {"no": "id"}, {"id": 2})  # the first two are no orders
    async with queues.client.producer(serializer="bytes") as producer:
        await producer.publish(b"not JSON", queues.work, content_type="application/json")
        await producer.publish(b"<order/>", queues.work, content_type="application/xml")
        await producer.publish(b"\x1f\x8b", queues.work, content_type="application/json", content_encoding="gzip")
        await producer.publish(b'{"id": 3}', queues.work, content_type="application/json; charset=utf-8")
    consumer = queues.client.consumer(queues.work, Order)
    seen = []

    async def handler(order: Order, message: leveret.Message) -> None:
        seen.append(order.id)
        if order.id == 3:
            consumer.stop()

    await consumer.run(handler)
    assert seen == [2, 3]
    assert consumer.counters()["undecodable"] == 5
    assert consumer.counters()["parked"] == 5
    async with queues.client.consumer(f"{queues.work}.parked", serializer="bytes") as dead:
        bodies: list[Any] = []
        async with asyncio.timeout(5):
            while len(bodies) < 5:
                message = await anext(dead)
                bodies.append(message.body)
                message.ack()
    assert bodies == [b'{"id":"one"}', b'{"no":"id"}', b"not JSON", b"<order/>", b"\x1f\x8b"]
    assert await queues.remaining() == []


async def publish_raw_headers(url: str, queue: str, headers: bytes) -> None:
    """Publishes a message whose header table is exactly these bytes."""
    settings = leveret.ConnectionSettings.from_url(url)
    reader, writer = await asyncio.open_connection(settings.endpoints[0].host, settings.endpoints[0].port)
    peer = Peer(reader, writer)
    from pamqp.commands import Channel, Confirm, Connection

    peer.send_bytes(PROTOCOL_HEADER)
    await peer.expect(Connection.Start)
    peer.send(Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"))
    tune = await peer.expect(Connection.Tune)
    peer.send(Connection.TuneOk(tune.channel_max, tune.frame_max, 0))
    peer.send(Connection.Open("/"))
    await peer.expect(Connection.OpenOk)
    peer.send(Channel.Open(), 1)
    await peer.expect(Channel.OpenOk)
    peer.send(Confirm.Select(), 1)
    await peer.expect(Confirm.SelectOk)
    peer.send(Basic.Publish(exchange="", routing_key=queue), 1)
    payload = b"\0\x3c\0\0" + (2).to_bytes(8, "big") + b"\x20\0" + headers
    peer.send_bytes(b"\x02\0\1" + len(payload).to_bytes(4, "big") + payload + b"\xce")
    peer.send_bytes(b"\x03\0\1\0\0\0\2{}\xce")
    await peer.expect(Basic.Ack)
    peer.send(Connection.Close(200, "", 0, 0))
    await peer.expect(Connection.CloseOk)
    peer.hang_up()
    await writer.wait_closed()


@pytest.mark.parametrize("broker", ON_EVERY_SERVER, indirect=True)
async def test_the_consumer_survives_when_a_message_has_headers_over_the_limits(queues: Queues, broker: Broker) -> None:
    # Our own publisher refuses to make such headers and the embedded broker to take them; others do not.
    await queues.publish("before")
    await publish_raw_headers(broker.url, queues.work, nested_table(100))
    await queues.publish("after")
    consumer = queues.client.consumer(queues.work)
    seen = []

    async def handler(value: str, message: leveret.Message) -> None:
        seen.append(value)
        if value == "after":
            consumer.stop()

    await consumer.run(handler)
    assert seen == ["before", "after"]
    assert consumer.counters()["undecodable"] == 1
    assert consumer.counters()["parked"] == 1
    (parked,) = await messages(queues.client, f"{queues.work}.parked")
    assert parked.body == b"{}"
    assert parked.headers["x-leveret-error"].startswith("DecodeFailed: the properties could not be decoded")
    assert parked.headers["x-leveret-properties"] == b"\x20\0" + nested_table(100)


async def test_the_value_raises_when_a_message_that_was_taken_cannot_be_decoded(queues: Queues) -> None:
    await queues.publish({"id": "one"})
    async with queues.client.consumer(queues.work, Order) as consumer:
        message = await consumer.get()
        assert message is not None
        for _ in range(2):
            with pytest.raises(DecodeFailed, match=r"Expected `int`, got `str` - at `\$.id`"):
                _ = message.value
        assert message.body == b'{"id":"one"}'
        assert message.dead_letter()
    assert await queues.dead_letters(1) == [{"id": "one"}]


async def test_a_body_that_does_not_decode_is_treated_as_a_rule_of_the_policy_says(queues: Queues) -> None:
    await queues.publish("not a number", 1)
    consumer = queues.client.consumer(queues.work, int, on_error={CodecError: leveret.Park()})

    async def handler(value: int, message: leveret.Message) -> None:
        pass

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["parked"] == 1)
        await until(lambda: consumer.counters()["acked"] == 2)
    assert await taken(queues.client, f"{queues.work}.parked") == ["not a number"]
    assert consumer.counters()["undecodable"] == 1


async def test_the_consumer_goes_on_when_a_message_has_properties_that_are_malformed() -> None:
    deliveries = {
        1: b"\x20\0" + nested_table(1000),  # headers nested 1,000 deep
        2: b"\x20\0" + b"\xff\xff\xff\xff",  # headers that lie about their length
        3: b"\x80\0" + b"\x20application",  # a content type that ends too soon
        4: b"\xff\xff",  # properties that do not exist
        5: b"\0\0",
    }
    settled: list[tuple[str, int]] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Basic.Qos, Basic.Consume)
        for tag, properties in deliveries.items():
            peer.send(Basic.Deliver("tag", tag, False, "", "q"), 1)
            peer.send_bytes(frame(2, 1, b"\0\x3c\0\0" + (2).to_bytes(8, "big") + properties) + frame(3, 1, b"{}"))
        while len(settled) < len(deliveries):
            _, value = await peer.receive()
            settled.append((value.name, value.delivery_tag))
        await peer.linger()

    seen = []
    async with two_connections(script) as url, leveret.connect(url, close_timeout=0.5) as client:
        # A broker that is not one: there is no queue for parked messages.
        consumer = client.consumer("q", consumer_tag="tag", on_error={CodecError: leveret.DeadLetter()})

        async def handler(value: Any, message: leveret.Message) -> None:
            seen.append(value)
            consumer.stop()

        async with asyncio.timeout(5):
            await consumer.run(handler)
        assert seen == [b"{}"]
        assert consumer.counters()["undecodable"] == 4
        assert client.connection.is_open
    assert settled == [("Basic.Reject", tag) for tag in range(1, 5)] + [("Basic.Ack", 5)]


async def test_the_consumer_goes_on_when_a_body_is_larger_than_the_limit(
    broker: Broker, client: leveret.Client, queue: str
) -> None:
    async with client.producer(serializer="bytes") as producer:
        await producer.publish_batch([bytes(1000), bytes(1001), bytes(300_000), b"last"], queue)
    async with leveret.connect(broker.url, max_body_size=1000) as limited:
        consumer = limited.consumer(queue)
        sizes = []

        async def handler(value: bytes, message: leveret.Message) -> None:
            sizes.append(message.body_size)
            if value == b"last":
                consumer.stop()

        await consumer.run(handler)
        assert sizes == [1000, 4]
        counters = consumer.counters()
        assert counters["undecodable"] == 2
        assert (counters["rejected"], counters["dropped"], counters["parked"]) == (0, 0, 0)
    # What was not kept cannot be parked; it went back at the end, and nothing is lost.
    assert sorted(len(message.body or b"") for message in await messages(client, queue)) == [1001, 300_000]


async def test_a_body_that_is_larger_than_the_limit_is_dead_lettered_where_that_is_known_to_be_safe(
    broker: Broker, queues: Queues
) -> None:
    async with queues.client.producer(serializer="bytes") as producer:
        await producer.publish(bytes(2000), queues.work)
    async with leveret.connect(broker.url, max_body_size=1000) as limited:
        consumer = limited.consumer(queues.work, refused=leveret.DeadLetter())

        async def handler(value: bytes, message: leveret.Message) -> None:
            raise AssertionError("it was not kept")

        async with running(consumer, handler):
            await until(lambda: consumer.counters()["rejected"] == 1)
    assert await queues.dead_letters(1) == [bytes(2000)]
