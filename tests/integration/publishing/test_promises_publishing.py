"""What the performance guide promises of publishing, by the numbers of its rows and with its values.

What is asserted is what a second client reads from the queue, or what the other end of the socket received.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import logging
import random
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Confirm
from pamqp.header import ContentHeader
from tests.support.confirming import served
from tests.support.orders import Order, orders
from tests.support.outcomes import awaited, failure
from tests.support.peers import FakeServer, Peer
from tests.support.proxy import Proxy
from tests.support.queues import messages

import leveret
from leveret import Outcome, ProducerSettings
from leveret.errors import (
    BackpressureError,
    BodyTooLarge,
    ChannelClosed,
    ConfigurationError,
    ConfirmTimeout,
    EncodeFailed,
    ExchangeNotFound,
    LeveretError,
    MessageReturned,
    PublishError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


# ---------------------------------------------------------------------- confirms


async def test_s10_confirms_are_on_and_real_when_nothing_is_said(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    assert ProducerSettings().confirms is True
    async with client.producer() as producer:
        for number in range(20):
            receipt = await producer.publish(number, queue)
            assert receipt.outcome is Outcome.CONFIRMED
            assert await other.purge(queue) == 1  # the broker has it by then


async def test_s10_publish_ends_with_the_brokers_confirm_and_not_before() -> None:
    async with served() as (server, producer):
        publishing = asyncio.create_task(producer.publish(1, "key"))
        await asyncio.sleep(0)
        assert await server.publishings() == [b"1"]
        assert not publishing.done()
        server.ack(1)
        assert (await publishing).outcome is Outcome.CONFIRMED


async def test_s10_no_confirm_is_asked_for_when_they_are_off() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open)
        await peer.expect(Basic.Publish, ContentHeader, ContentBody)
        await peer.answer(Channel.Close)
        await peer.linger()

    async with (
        FakeServer(script) as server,
        leveret.connect(server.url) as client,
        client.producer(confirms=False) as producer,
    ):
        assert (await producer.publish(1, "key")).outcome is Outcome.UNKNOWN


async def test_s11_a_publishing_is_given_up_after_five_seconds_when_nothing_is_said() -> None:
    assert ProducerSettings().confirm_timeout == 5.0
    async with served() as (server, producer):
        with pytest.raises(ConfirmTimeout, match=r"no confirm within confirm_timeout of 5 s") as late:
            await producer.publish(1, "key")
        assert (late.value.outcome, late.value.stage, late.value.delivery_tag) == (Outcome.UNKNOWN, "confirm", 1)
        # Its confirm may still come, and then belongs to nobody.
        assert await server.publishings() == [b"1"]
        server.ack(1)
        publishing = asyncio.create_task(producer.publish(2, "key"))
        await asyncio.sleep(0)
        assert await server.publishings() == [b"2"]
        assert not publishing.done()
        server.ack(2)
        assert (await publishing).delivery_tag == 2


async def test_s11_a_single_publish_has_a_confirm_timeout_of_its_own() -> None:
    async with served() as (server, producer):
        with pytest.raises(ConfirmTimeout, match=r"confirm_timeout of 0\.05 s"):
            await producer.publish(1, "key", confirm_timeout=0.05)
        patient = asyncio.create_task(producer.publish(2, "key"))
        await asyncio.sleep(0)
        assert await server.publishings() == [b"1", b"2"]
        server.ack(2)
        assert (await patient).outcome is Outcome.CONFIRMED


async def test_s12_200_publishes_are_in_flight_and_the_201st_waits() -> None:
    assert ProducerSettings().max_outstanding == 200
    async with served() as (server, producer):
        publishing = [asyncio.create_task(producer.publish(number, "key")) for number in range(300)]
        await asyncio.sleep(0)
        assert await server.publishings() == [b"%d" % number for number in range(200)]
        assert await server.publishings() == []  # nothing more while no confirm comes
        server.ack(1)
        await publishing[0]
        assert await server.publishings() == [b"200"]
        server.ack(101, multiple=True)
        await publishing[100]
        assert await server.publishings() == [b"%d" % number for number in range(201, 300)]
        server.ack(0, multiple=True)
        await asyncio.gather(*publishing)
        assert {task.result().delivery_tag for task in publishing} == set(range(1, 301))


@pytest.mark.parametrize("tasks", [1000, 10_000])
async def test_s12_auto_grows_on_a_long_line_and_stays_within_its_bound(
    broker: Broker, other: leveret.Client, queue: str, tasks: int
) -> None:
    async with (
        Proxy(broker.url, delay=0.1) as proxy,
        leveret.connect(proxy.url) as client,
        client.producer(max_outstanding="auto", max_buffered=1000, publish_timeout=25) as producer,
    ):
        assert producer.max_outstanding == 200
        most = 0

        async def publish(count: int) -> None:
            nonlocal most
            for number in range(count):
                await producer.publish(number, queue)
                most = max(most, producer.outstanding)

        # Tasks that publish again and again, or that all wait from the beginning on.
        await asyncio.gather(*(publish(10_000 // tasks) for _ in range(tasks)))
        assert 200 < producer.max_outstanding <= 1000
        assert 200 <= most <= 1000
    assert await other.purge(queue) == 10_000


# ---------------------------------------------------------------------- batches


async def test_s13_a_batch_tells_what_became_of_each_message(
    client: leveret.Client, other: leveret.Client, exchange: str, queue: str
) -> None:
    def publishing(order: Any, routing_key: str) -> leveret.MessageBuilder:
        return producer.message(order).exchange(exchange).routing_key(routing_key)

    good = orders(10)
    async with client.producer(mandatory=True) as producer:
        batch = [publishing(order, "order.created") for order in good]
        batch[3] = publishing(good[3], "order.lost")
        batch[5] = publishing(object(), "order.created")
        batch[7] = publishing(good[7], "order.created").priority(256)
        result = await producer.publish_batch(batch)

    assert not result
    assert (result.count, result.confirmed) == (10, 7)
    outcomes = [result.outcome(index) for index in range(10)]
    expected = [Outcome.CONFIRMED] * 10
    expected[3], expected[5], expected[7] = Outcome.RETURNED, Outcome.NOT_SENT, Outcome.NOT_SENT
    assert outcomes == expected
    assert {index: type(error) for index, error in result.failures.items()} == {
        3: MessageReturned,
        5: EncodeFailed,
        7: EncodeFailed,
    }
    read = await messages(other, queue, Order)
    assert [message.value for message in read] == [good[index] for index in (0, 1, 2, 4, 6, 8, 9)]
    assert {message.routing_key for message in read} == {"order.created"}


async def test_s13_a_batch_is_collected_in_a_block(
    client: leveret.Client, other: leveret.Client, exchange: str, queue: str
) -> None:
    good = orders(3)
    async with client.producer(exchange=exchange) as producer:
        async with producer.batch("order.created", headers={"tenant": 7}) as batch:
            assert [batch.add(order) for order in good] == [0, 1, 2]
            assert batch.add("straight", queue, exchange="", priority=9, headers={"tenant": 8}) == 3
            assert producer.next_delivery_tag == 1  # nothing leaves before the block ends
        assert batch.result.confirmed == 4
        with contextlib.suppress(ZeroDivisionError):
            async with producer.batch("order.created") as undone:
                undone.add("undone")
                _ = 1 / 0
    *first, last = await messages(other, queue)
    assert [msgspec.convert(message.value, Order) for message in first] == good
    assert [message.headers for message in first] == [{"tenant": 7}] * 3
    assert (last.value, last.priority, last.headers, last.exchange) == ("straight", 9, {"tenant": 8}, "")


async def test_s13_a_batch_takes_what_an_asynchronous_source_gives(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async def source() -> AsyncIterator[int]:
        for number in range(2500):
            if number % 700 == 0:
                await asyncio.sleep(0)
            yield number

    async with client.producer() as producer:
        result = await producer.publish_batch(source(), queue)
    assert (result.count, result.confirmed) == (2500, 2500)
    assert [message.value for message in await messages(other, queue)] == list(range(2500))


async def test_s13_a_batch_to_an_exchange_that_does_not_exist_in_part(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer:
        batch: list[Any] = list(range(20))
        batch[7] = producer.message(7).exchange("missing").routing_key("key")
        result = await producer.publish_batch(batch, queue)
    assert [index for index in range(20) if result.outcome(index) is not Outcome.CONFIRMED] == [7]
    assert isinstance(result.failures[7], ExchangeNotFound)
    read = [message.value for message in await messages(other, queue)]
    # What was in flight was sent again, so some may be there twice, but each is there.
    assert sorted(set(read)) == [number for number in range(20) if number != 7]


async def test_s14_chunks_of_1000_leave_and_a_bounded_number_is_in_flight() -> None:
    settings = ProducerSettings()
    assert (settings.batch_size, settings.batches_in_flight) == (1000, 2)
    async with served(batches_in_flight=3) as (server, producer):
        batch = asyncio.create_task(producer.publish_batch(range(20_000), "key"))
        received = 0
        lots = []
        while received < 20_000:
            lot = await server.publishings()
            assert lot == [b"%d" % number for number in range(received, received + len(lot))]
            lots.append(len(lot))
            received += len(lot)
            server.ack(received, multiple=True)
            await producer.flush()
        assert max(lots) > 1000
        assert max(lots) <= 3000
        assert await batch


async def test_s14_the_rate_of_each_batch_is_in_the_log_and_in_the_metrics(
    client: leveret.Client, other: leveret.Client, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "leveret.publishing")
    results = []
    async with client.producer() as producer:
        for _ in range(3):
            began = time.monotonic()
            results.append(await producer.publish_batch(orders(1000), queue))
            assert 0 < results[-1].elapsed <= time.monotonic() - began
        counted = {sample.metric.name: sample.value for sample in client.metrics()}
    logged = [record.getMessage() for record in caplog.records if record.message.startswith("published a batch")]
    assert logged == [
        f"published a batch: 1000 confirmed, 0 failed in {result.elapsed:.3f} s ({result.rate:.0f} msgs/s)"
        for result in results
    ]
    assert counted["batches"] == 3
    assert counted["batches_confirmed"] == 3000
    assert counted["batches_time"] == int(sum(result.elapsed for result in results) * 1000)
    assert all(result.rate == result.confirmed / result.elapsed for result in results)
    assert await other.purge(queue) == 3000


@pytest.mark.parametrize(("size", "chunk"), [(100, 1000), (10_486, 100), (104_858, 10)])
async def test_s15_a_chunk_has_1000_small_messages_or_100_large_ones(
    client: leveret.Client, other: leveret.Client, queue: str, size: int, chunk: int
) -> None:
    count = 3 * chunk + 100
    read_before: list[int] = []

    def values() -> Iterator[bytes]:
        for _ in range(count):
            # How many were written when this one was read: a chunk is read, and then written.
            read_before.append(producer.next_delivery_tag - 1)
            yield bytes(size)

    async with client.producer(serializer="bytes") as producer:
        assert await producer.publish_batch(values(), queue)
    written = sorted({*read_before, count})
    chunks = [after - before for before, after in itertools.pairwise(written)]
    # The first one tells how large they are, and chunks grow tenfold at the most.
    assert [each for each in chunks if each < chunk * 0.99 - 1] == [each for each in (1, 10, 100) if each < chunk] + (
        [chunks[-1]] if chunks[-1] < chunk * 0.99 - 1 else []
    )
    assert max(chunks) <= chunk
    assert await other.purge(queue) == count


async def test_s15_large_messages_are_not_read_faster_than_they_are_confirmed(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    most = 0

    def values() -> Iterator[bytes]:
        nonlocal most
        for _ in range(200):
            most = max(most, producer._window.outstanding_bytes)
            yield bytes(200_000)

    async with client.producer(serializer="bytes", max_outstanding_bytes=1_000_000) as producer:
        assert await producer.publish_batch(values(), queue)
    assert most <= 1_000_000 + 1024 * 1024 + 200_000  # what is added last is a chunk
    assert await other.purge(queue) == 200


# ---------------------------------------------------------------------- the queue of what is not confirmed


async def test_s16_10000_are_buffered_and_the_next_is_refused_or_waits(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    assert ProducerSettings().max_buffered == 10_000
    async with client.producer(serializer="bytes") as producer:
        # No confirm is read while this task does not let others run.
        tickets = [producer.publish_nowait(b"x", queue) for _ in range(10_000)]
        with pytest.raises(BackpressureError, match=r"10000 publishings of 10000 bytes wait for confirms.*limit 10000"):
            producer.publish_nowait(b"x", queue)
        assert producer.outstanding == 10_000
        waiting = [asyncio.create_task(producer.enqueue(b"y", queue)) for _ in range(100)]
        # Nor in the turn in which the others begin.
        client.connection.transport.pause_reading()
        await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        client.connection.transport.resume_reading()
        tickets += await asyncio.gather(*waiting)
        await producer.flush()
        assert all([(await ticket).outcome is Outcome.CONFIRMED for ticket in tickets])
    assert await other.purge(queue) == 10_100


async def test_s16_enqueue_goes_on_one_by_one_as_confirms_come() -> None:
    async with served(max_buffered=10) as (server, producer):
        for number in range(10):
            producer.publish_nowait(number, "key")
        waiting = [asyncio.create_task(producer.enqueue(number, "key")) for number in range(10, 15)]
        assert len(await server.publishings()) == 10
        for number in range(10, 15):
            server.ack(number - 9)
            await waiting[number - 10]
            assert await server.publishings() == [b"%d" % number]
        server.ack(0, multiple=True)
        await producer.flush()


async def test_s16_the_buffer_is_bounded_by_bytes_as_well() -> None:
    assert ProducerSettings().max_outstanding_bytes == 64 * 1024 * 1024
    async with served(serializer="bytes", max_outstanding_bytes=10_000) as (server, producer):
        for _ in range(4):
            producer.publish_nowait(bytes(2500), "key")
        with pytest.raises(BackpressureError, match=r"4 publishings of 10000 bytes"):
            producer.publish_nowait(b"", "key")
        waiting = asyncio.create_task(producer.enqueue(b"next", "key"))
        assert len(await server.publishings()) == 4
        assert not waiting.done()
        server.ack(1)
        await waiting
        assert await server.publishings() == [b"next"]
        server.ack(0, multiple=True)
        await producer.flush()


async def test_s17_many_tasks_publish_side_by_side_and_each_gets_its_own_error(
    client: leveret.Client, other: leveret.Client, exchange: str, queue: str
) -> None:
    most = 0

    async def publish(number: int) -> Any:
        nonlocal most
        value = object() if number % 10 == 3 else number
        key = "order.lost" if number % 10 == 7 else "order.created"
        result = await failure(producer.publish(value, key))
        most = max(most, producer.outstanding)
        return result

    async with client.producer(exchange=exchange, mandatory=True, max_outstanding=100) as producer:
        results = await asyncio.gather(*map(publish, range(2000)))
    kinds = {3: EncodeFailed, 7: MessageReturned}
    for number, result in enumerate(results):
        assert type(result) is kinds.get(number % 10, leveret.Receipt), number
    assert most <= 100
    read = [message.value for message in await messages(other, queue)]
    assert sorted(read) == [number for number in range(2000) if number % 10 not in kinds]


# ---------------------------------------------------------------------- fluent


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


# ---------------------------------------------------------------------- delivery tags and confirm events


async def test_s19_confirm_events_tell_the_tag_and_whether_it_is_about_several() -> None:
    async with served() as (server, producer):
        acks: list[tuple[int, bool]] = []
        nacks: list[tuple[int, bool]] = []
        producer.on_confirm(lambda tag, multiple: acks.append((tag, multiple)))
        end = producer.on_confirm(lambda tag, multiple: nacks.append((tag, multiple)), nacks=True)
        tickets = [producer.publish_nowait(number, "key") for number in range(8)]
        assert len(await server.publishings()) == 8
        server.ack(3, multiple=True)
        server.nack(4)
        server.ack(6)
        server.ack(5)
        server.nack(8, multiple=True)
        results = [await failure(awaited(ticket)) for ticket in tickets]
        assert acks == [(3, True), (6, False), (5, False)]
        assert nacks == [(4, False), (8, True)]
        refused = [result.delivery_tag for result in results if isinstance(result, PublishError)]
        assert refused == [4, 7, 8]
        end()
        ticket = producer.publish_nowait(8, "key")
        assert len(await server.publishings()) == 1
        server.nack(9)
        assert (await failure(awaited(ticket))).outcome is Outcome.NACKED
        assert len(nacks) == 2


async def test_s19_confirm_events_are_about_every_publishing_once(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer:
        open_tags = set(range(1, 1001))
        settled: list[int] = []

        def on_confirm(delivery_tag: int, multiple: bool) -> None:
            now = {tag for tag in open_tags if tag <= delivery_tag} if multiple else {delivery_tag}
            assert now <= open_tags
            open_tags.difference_update(now)
            settled.extend(now)

        producer.on_confirm(on_confirm)
        assert await producer.publish_batch(range(1000), queue)
        assert not open_tags
        assert sorted(settled) == list(range(1, 1001))
    assert await other.purge(queue) == 1000


async def test_s20_the_next_delivery_tag_is_known_before_publishing(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer(max_body_size=100) as producer:
        assert producer.next_delivery_tag == 1
        for number in range(5):
            tag = producer.next_delivery_tag
            ticket = producer.publish_nowait(tag, queue)
            assert (ticket.delivery_tag, producer.next_delivery_tag) == (tag, tag + 1)
            with pytest.raises(LeveretError):  # what is not sent takes none
                producer.publish_nowait(object() if number % 2 else "x" * 200, queue)
        assert [(await producer.publish(tag, queue)).delivery_tag for tag in (6, 7)] == [6, 7]
        assert await producer.publish_batch(range(8, 11), queue)
        assert producer.next_delivery_tag == 11
    assert [message.value for message in await messages(other, queue)] == list(range(1, 11))


class ConfirmingProducer:
    """The guide's recipe: a map from delivery tags to futures, which the confirm event resolves."""

    def __init__(self, producer: leveret.Producer, timeout: float = 5.0) -> None:
        self.producer = producer
        self.timeout = timeout
        self.pending: dict[int, asyncio.Future[bool]] = {}
        producer.on_confirm(self.on_confirm)

    async def publish(self, value: Any, routing_key: str) -> bool:
        delivery_tag = self.producer.next_delivery_tag
        future = self.pending[delivery_tag] = asyncio.get_running_loop().create_future()
        ticket = self.producer.publish_nowait(value, routing_key)
        assert ticket.delivery_tag == delivery_tag
        try:
            async with asyncio.timeout(self.timeout):
                return await future
        except TimeoutError:
            del self.pending[delivery_tag]
            return False

    def on_confirm(self, delivery_tag: int, multiple: bool) -> None:
        tags = [tag for tag in self.pending if tag <= delivery_tag] if multiple else [delivery_tag]
        for tag in tags:
            if (future := self.pending.pop(tag, None)) is not None:
                future.set_result(True)


async def test_s21_the_guides_map_of_futures_is_resolved_by_confirm_events(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer:
        recipe = ConfirmingProducer(producer)
        assert all(await asyncio.gather(*(recipe.publish(number, queue) for number in range(500))))
        assert not recipe.pending
    assert await other.purge(queue) == 500


async def test_s21_a_confirm_that_does_not_come_is_dropped_and_the_outcome_is_unknown(
    proxy: Proxy, other: leveret.Client, queue: str
) -> None:
    async with (
        leveret.connect(proxy.url, close_timeout=0.2) as client,
        client.producer(confirm_timeout=0.3) as producer,
    ):
        recipe = ConfirmingProducer(producer, timeout=0.2)
        assert await recipe.publish("confirmed", queue)
        proxy.deaf = True
        assert await asyncio.gather(*(recipe.publish(number, queue) for number in range(5))) == [False] * 5
        assert not recipe.pending
        # The producer's own clock says the same.
        with pytest.raises(PublishError, match="5 publishings that were not awaited failed") as late:
            await producer.flush()
        assert late.value.outcome is Outcome.UNKNOWN
    # Unknown is the right word: the broker has them.
    assert await other.purge(queue) == 6


# ---------------------------------------------------------------------- compression

LEVEL_1 = 4  # RFC 1952, XFL: the compressor used its fastest algorithm


async def raw(client: leveret.Client, queue: str) -> leveret.Message:
    """The one message in a queue, with its body as it came."""
    async with client.consumer(queue, serializer="bytes") as consumer:
        message = await consumer.get()
        assert message is not None
        assert message.ack()
        return message


async def test_s28_bodies_over_1024_bytes_are_compressed_at_the_fastest_level_when_it_is_on(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    settings = ProducerSettings()
    assert (settings.compressor, settings.compression_threshold, settings.compression_level) == (None, 1024, None)
    order = orders(40)
    async with client.producer() as off, client.producer(compressor="gzip") as on:
        await off.publish(order, queue)
        assert (await raw(other, queue)).content_encoding is None
        await on.publish(order, queue)
    message = await raw(other, queue)
    assert message.content_encoding == "gzip"
    assert message.body[8] == LEVEL_1
    assert msgspec.json.decode(gzip.decompress(message.body), type=list[Order]) == order


async def test_s28_level_and_threshold_may_be_chosen(client: leveret.Client, other: leveret.Client, queue: str) -> None:
    text = "a" * 600
    async with client.producer(compressor="gzip", compression_threshold=500, compression_level=9) as producer:
        await producer.publish(text, queue)
    message = await raw(other, queue)
    assert message.body[8] == 2  # RFC 1952, XFL: maximum compression
    assert json.loads(gzip.decompress(message.body)) == text


@pytest.mark.parametrize(
    ("text", "compressed"),
    [
        ("a" * 1022, False),  # 1024 bytes as JSON
        ("a" * 1023, True),
        (random.Random(38).randbytes(6000).hex(), True),  # gzip makes about 0.57 of it
        ("".join(random.Random(38).choices([chr(code) for code in range(35, 92)], k=6000)), True),
    ],
    ids=["1024_bytes", "1025_bytes", "half", "three_quarters"],
)
async def test_s38_a_body_is_compressed_only_above_1024_bytes(
    client: leveret.Client, other: leveret.Client, queue: str, text: str, compressed: bool
) -> None:
    plain = json.dumps(text).encode()
    async with client.producer(compressor="gzip") as producer:
        await producer.publish(text, queue)
    message = await raw(other, queue)
    if compressed:
        assert len(message.body) < 0.9 * len(plain)
        assert message.content_encoding == "gzip"
        assert message.headers == {"original-size": len(plain)}
        # It is complete, which the guide's own was not: gzip's trailer has the length and a checksum.
        assert gzip.decompress(message.body) == plain
    else:
        assert (message.body, message.content_encoding, message.headers) == (plain, None, {})


async def test_s38_a_body_is_compressed_only_when_that_saves_a_tenth(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    noise, zeros = random.Random(38).randbytes(10_000), bytes(10_000)
    async with client.producer(serializer="bytes", compressor="gzip") as producer:
        for share in range(0, 101, 2):  # per cent of the body that shrink to nearly nothing
            body = noise[: 100 * (100 - share)] + zeros[: 100 * share]
            ratio = len(gzip.compress(body, 1)) / len(body)
            await producer.publish(body, queue)
            message = await raw(other, queue)
            if ratio < 0.9:
                assert message.content_encoding == "gzip", share
                assert len(message.body) / len(body) == pytest.approx(ratio, abs=0.002)
                assert gzip.decompress(message.body) == body
                assert message.headers == {"original-size": 10_000}
            else:
                assert (message.body, message.content_encoding, message.headers) == (body, None, {}), share


# ---------------------------------------------------------------------- bad input

WRONG: list[tuple[type[Exception], str, Any, str, dict[str, Any]]] = [
    (EncodeFailed, "headers take .* frame_max", 1, "key", {"headers": {"large": "x" * 200_000}}),
    (BodyTooLarge, "a body of 1002 bytes is larger than the limit of 1000", "x" * 1000, "key", {}),
    (EncodeFailed, "routing_key", 1, "k" * 256, {}),
    (EncodeFailed, "exchange", 1, "key", {"exchange": "ü" * 128}),
    (EncodeFailed, "priority is 0 to 255, not 256", 1, "key", {"priority": 256}),
    (EncodeFailed, "priority is 0 to 255, not -1", 1, "key", {"priority": -1}),
    (EncodeFailed, "expiration is 0 to .* seconds, not -1", 1, "key", {"expiration": -1}),
    (EncodeFailed, "delivery_mode", 1, "key", {"delivery_mode": 3}),
    (EncodeFailed, "key", 1, "key", {"headers": {"k" * 256: 1}}),
    (EncodeFailed, "object", object(), "key", {}),
    (ConfigurationError, "no option 'topic'", 1, "key", {"topic": "orders"}),
    *[
        (EncodeFailed, option, 1, "key", {option: "x" * 256})
        for option in (
            "content_type",
            "content_encoding",
            "correlation_id",
            "reply_to",
            "message_id",
            "type",
            "user_id",
            "app_id",
        )
    ],
]


@pytest.mark.parametrize("how", ["publish", "publish_nowait", "enqueue", "message", "publish_batch", "batch"])
async def test_nothing_is_written_and_no_tag_is_taken_when_input_does_not_fit(
    client: leveret.Client, other: leveret.Client, queue: str, how: str
) -> None:
    async def call(value: Any, routing_key: str, options: dict[str, Any]) -> None:
        if how == "publish":
            await producer.publish(value, routing_key, **options)
        elif how == "publish_nowait":
            producer.publish_nowait(value, routing_key, **options)
        elif how == "enqueue":
            await producer.enqueue(value, routing_key, **options)
        elif how == "message":
            message = producer.message(value).routing_key(routing_key)
            message.options.update(options)  # type: ignore[typeddict-item]
            await message.publish()
        elif how == "publish_batch":
            (await producer.publish_batch([value], routing_key, **options)).raise_for_failures()
        else:
            async with producer.batch() as batch:
                batch.add(value, routing_key, **options)
            batch.result.raise_for_failures()

    async with client.producer(max_body_size=1000) as producer:
        await producer.publish("before", queue)
        connection = client.connection
        sent = connection.sent_bytes
        for kind, text, value, routing_key, options in WRONG:
            with pytest.raises(kind, match=text):
                await call(value, routing_key, options)
        assert len(connection.transport.out) == 0
        assert connection.sent_bytes == sent
        assert producer.next_delivery_tag == 2
        assert (await producer.publish("after", queue)).delivery_tag == 2
    assert [message.value for message in await messages(other, queue)] == ["before", "after"]


@pytest.mark.parametrize("compressor", [None, "gzip"])
async def test_the_rest_of_a_batch_goes_when_the_serializer_refuses_a_value_in_the_middle(
    client: leveret.Client, other: leveret.Client, queue: str, compressor: str | None
) -> None:
    values: list[Any] = [*range(2500)]
    refused = [0, 99, 100, 1500, 2499]
    for index in refused:
        values[index] = object()
    async with client.producer(compressor=compressor) as producer:
        result = await producer.publish_batch(iter(values), queue)
    assert sorted(result.failures) == refused
    assert {type(error) for error in result.failures.values()} == {EncodeFailed}
    assert (result.count, result.confirmed) == (2500, 2495)
    read = [message.value for message in await messages(other, queue)]
    assert read == [value for value in values if isinstance(value, int)]


async def test_what_is_in_flight_is_confirmed_before_a_producer_is_closed(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    producer = await client.producer().open()
    tickets = [producer.publish_nowait(number, queue) for number in range(1000)]
    batch = asyncio.create_task(producer.publish_batch(range(100), queue))
    await asyncio.sleep(0)
    await producer.close()
    assert all(ticket.done and ticket.confirmed for ticket in tickets)
    assert await batch
    assert await other.purge(queue) == 1100


async def test_what_is_in_flight_is_unknown_when_no_confirm_comes_before_a_producer_is_closed() -> None:
    async with served(confirm_timeout=0.2) as (server, producer):
        ticket = producer.publish_nowait(1, "key")
        publishing = asyncio.create_task(producer.publish(2, "key"))
        waiting = asyncio.create_task(producer.publish_batch(range(10), "key"))
        assert len(await server.publishings()) == 12
        server.ack(12)
        closing = asyncio.create_task(producer.close())
        result = await waiting
        assert [result.outcome(index) for index in range(10)] == [Outcome.UNKNOWN] * 9 + [Outcome.CONFIRMED]
        for each in (awaited(ticket), publishing):
            assert (await failure(each)).outcome is Outcome.UNKNOWN
        with pytest.raises(PublishError, match="closed") as refused:
            producer.publish_nowait(3, "key")
        assert refused.value.outcome is Outcome.NOT_SENT
        closing.cancel()  # this server does not answer channel.close yet
        await asyncio.wait([closing])


# ---------------------------------------------------------------------- deadlines name their stage


async def test_the_stage_is_buffer_when_there_was_no_room_in_time() -> None:
    async with served(max_outstanding=1, max_buffered=1, publish_timeout=0.2) as (server, producer):
        first = producer.publish_nowait(1, "key")
        errors = await asyncio.gather(
            failure(producer.publish(2, "key")), failure(producer.enqueue(3, "key")), return_exceptions=True
        )
        for error in errors:
            assert isinstance(error, PublishError)
            assert (error.outcome, error.stage) == (Outcome.NOT_SENT, "buffer")
            assert "1 publishings of 1 bytes wait for confirms (limit 1)" in str(error)
            assert "waited publish_timeout of 0.2 s" in str(error)
        assert await server.publishings() == [b"1"]  # and neither of the others
        # Its own deadline is the same, but it was written.
        with pytest.raises(PublishError) as late:
            await first
        assert (late.value.outcome, late.value.stage) == (Outcome.UNKNOWN, "confirm")


async def test_the_stage_is_blocked_when_the_broker_blocked_too_long(
    broker: Broker, other: leveret.Client, queue: str
) -> None:
    async with leveret.connect(broker.url, close_timeout=0.3) as client:
        producer = await client.producer(publish_timeout=0.2, confirm_timeout=0.2).open()
        await broker.block()
        try:
            while client.connection.blocked is None:
                with contextlib.suppress(ConfirmTimeout):
                    await producer.publish("the first", queue)
            for call in (producer.publish("blocked", queue), producer.enqueue("blocked", queue)):
                error = await failure(call)
                assert isinstance(error, PublishError)
                assert (error.outcome, error.stage) == (Outcome.NOT_SENT, "blocked")
                assert "waited publish_timeout of 0.2 s" in str(error)
        finally:
            await broker.unblock()
        assert (await producer.publish("after", queue)).outcome is Outcome.CONFIRMED
    read = [message.value for message in await messages(other, queue)]
    assert read[-1] == "after"
    assert "blocked" not in read


async def test_the_stage_is_connection_when_it_did_not_come_back_in_time(
    proxy: Proxy, other: leveret.Client, queue: str
) -> None:
    async with (
        leveret.connect(proxy.url, close_timeout=0.3) as client,
        client.producer(publish_timeout=0.2, confirm_timeout=0.2) as producer,
    ):
        await producer.publish("before", queue)
        await proxy.stop()
        await client.connection._ended
        for call in (producer.publish("lost", queue), producer.enqueue("lost", queue)):
            error = await failure(call)
            assert isinstance(error, PublishError)
            assert (error.outcome, error.stage) == (Outcome.NOT_SENT, "connection")
            assert "waited publish_timeout of 0.2 s" in str(error)
        with pytest.raises(BackpressureError, match="another one is not open yet"):
            producer.publish_nowait("lost", queue)
    assert [message.value for message in await messages(other, queue)] == ["before"]


async def test_the_stage_is_confirm_when_that_did_not_come_in_time(
    proxy: Proxy, other: leveret.Client, queue: str
) -> None:
    async with (
        leveret.connect(proxy.url, close_timeout=0.3) as client,
        client.producer(confirm_timeout=0.2) as producer,
    ):
        proxy.deaf = True
        for error in await asyncio.gather(
            failure(producer.publish(1, queue)), failure(awaited(producer.publish_nowait(2, queue)))
        ):
            assert isinstance(error, ConfirmTimeout)
            assert (error.outcome, error.stage) == (Outcome.UNKNOWN, "confirm")
    assert await other.purge(queue) == 2


# ---------------------------------------------------------------------- the channel


async def test_a_producer_is_not_open_when_its_channel_is_lost_as_soon_as_it_is_made() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open)
        await peer.expect(Confirm.Select)
        # Both in one write, so that nobody runs between them.
        peer.send(Confirm.SelectOk(), 1)
        peer.send(Channel.Close(541, "INTERNAL_ERROR", 0, 0), 1)
        await peer.expect(Channel.CloseOk)
        await peer.linger()

    async with FakeServer(script) as server, leveret.connect(server.url) as client:
        with pytest.raises(ChannelClosed, match="541"):
            await client.producer().open()
