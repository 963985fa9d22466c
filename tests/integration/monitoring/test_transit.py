"""How long messages were on their way, by the header `x-leveret-sent-at`, and how large writes are."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import running, until

import leveret
from leveret.wire.encoding import FieldValue
from leveret.wire.properties import Properties

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.brokers import Broker

    from leveret.broker import EmbeddedBroker
    from leveret.plugins import Distribution

pytestmark = pytest.mark.usefixtures("no_leftovers")

HEADER = "x-leveret-sent-at"


@pytest.fixture
async def client(embedded: EmbeddedBroker) -> AsyncIterator[leveret.Client]:
    async with leveret.connect(embedded.url, client_name="billing") as connected:
        await connected.declare(leveret.Topology().queue("orders"))
        yield connected


def distribution(client: leveret.Client, name: str, label: str) -> Distribution | None:
    """The values of a histogram; None when it is not among the metrics."""
    samples = [it for it in client.metrics() if it.metric.name == name and it.labels[1] == label]
    return samples[0].distribution if samples else None


async def take(client: leveret.Client, count: int, queue: str = "orders") -> list[leveret.Message]:
    messages = []
    async with client.consumer(queue) as consumer:
        async for message in consumer:
            message.ack()
            messages.append(message)
            if len(messages) == count:
                break
    return messages


async def test_s1_each_way_of_publishing_tells_when_a_message_was_sent(
    broker: Broker, name: Callable[[str], str]
) -> None:
    queue = name("orders")
    async with leveret.connect(broker.url) as client:
        await client.declare(leveret.Topology().queue(queue))
        before = time.time()
        async with client.producer(sent_at_header=True) as producer:
            await producer.publish(1, queue)
            await producer.publish(2, queue, headers={"tenant": 7}, message_id="m")
            await producer.publish(bytes(100_000), queue, content_type="application/octet-stream")
            await producer.publish(3, producer.template(queue, headers={"a": 1}))
            await producer.publish_nowait(4, queue)
            await producer.publish_batch(range(5), queue)
            async with producer.batch(queue) as batch:
                batch.add(6, headers={HEADER: "overwritten"})
            async with producer.transaction() as transaction:
                await transaction.publish(7, queue)
        async with client.producer(sent_at_header=True, confirms=False, compressor="gzip") as other:
            await other.publish({"text": "a" * 5000}, queue)
            await other.publish("short", queue)
        messages = await take(client, 14, queue)
        after = time.time()
        sent = [message.headers[HEADER] for message in messages]
        assert all(before * 1e6 - 1 <= it <= after * 1e6 for it in sent)
        assert messages[1].headers["tenant"] == 7
        transit = distribution(client, "deliveries_transit_time", queue)
        assert transit is not None
        assert transit.count == 14
        assert 0 <= transit.percentile(50) <= transit.highest <= after - before


async def test_without_the_header_nothing_is_measured(client: leveret.Client) -> None:
    async with client.producer() as producer:
        await producer.publish(1, "orders")
        await producer.publish(2, "orders", headers={"x-leveret-sent": 5, "tenant": 7})
    messages = await take(client, 2)
    assert not any(HEADER in message.headers for message in messages)
    assert distribution(client, "deliveries_transit_time", "orders") is None


async def test_a_clock_that_is_ahead_counts_as_no_time_and_what_is_no_time_is_left_out(client: leveret.Client) -> None:
    now = int(time.time() * 1e6)
    wrong = ["soon", True, 0, -5, -(2**63), 1, FieldValue("l", now - 401 * 86_400_000_000), FieldValue("T", now)]
    later = [FieldValue("l", now + 3_600_000_000), 2**63 - 1]
    async with client.producer(serializer="bytes") as producer:
        for value in (*wrong, *later, FieldValue("l", now - 3_600_000_000)):
            raw = Properties(headers={"a": "b", HEADER: value, "c": [1, {"d": None}]}).encode()
            await producer.publish_raw(b"", "orders", raw)
    await take(client, 11)
    transit = distribution(client, "deliveries_transit_time", "orders")
    assert transit is not None
    assert transit.count == 3
    assert transit.at_most([0.000001, 3000, 4000]) == [2, 2, 3]
    assert transit.total == pytest.approx(3600, abs=60)


async def test_a_message_is_measured_once_however_often_it_is_delivered(client: leveret.Client) -> None:
    attempts: list[Any] = []

    async def handle(value: str, message: leveret.Message) -> None:
        attempts.append((value, HEADER in message.headers, message.redelivered))
        if value == "retried" and len([it for it in attempts if it[0] == value]) == 1:
            raise ValueError
        if value == "released" and not message.redelivered:
            message.release()

    policy = leveret.Retry([0.1])
    async with client.producer(sent_at_header=True) as producer:
        await producer.publish_batch(["retried", "released"], "orders")
    async with running(client.consumer("orders", on_error=policy), handle):
        await until(lambda: len(attempts) == 4)
    assert sorted(attempts) == [
        ("released", True, False),
        ("released", True, True),
        ("retried", False, False),
        ("retried", True, False),
    ]
    transit = distribution(client, "deliveries_transit_time", "orders")
    assert transit is not None
    assert transit.count == 2


async def test_a_report_tells_how_long_messages_were_on_their_way(client: leveret.Client) -> None:
    reports: list[leveret.Report] = []
    client.report(every=0.1, on_report=reports.append)
    async with client.producer(sent_at_header=True) as producer:
        await producer.publish_batch(range(10), "orders")
        await asyncio.sleep(0.02)
        await take(client, 10)
    await until(lambda: sum(report.transit.count for report in reports) == 10)
    report = next(report for report in reports if report.transit)
    assert 0.02 <= report.transit.mean < 30
    assert "; on the way mean " in str(report)
    assert report.as_dict()["transit"]["count"] == report.transit.count


async def test_the_bytes_of_each_write_are_counted(client: leveret.Client) -> None:
    def now(label: str) -> tuple[Distribution, int]:
        (sent,) = [it.value for it in client.metrics() if it.metric.name == "sent" and it.labels[1] == label]
        sizes = distribution(client, "writes_size", label)
        assert sizes is not None
        return sizes, sent

    async with client.producer() as producer:
        sizes, sent = now("publish")
        await producer.publish_batch(range(10), "orders")
        await producer.publish(bytes(1_000_000), "orders", content_type="application/octet-stream")
        more, more_sent = now("publish")
    await take(client, 11)
    between = more - sizes
    assert between.total == more_sent - sent > 1_000_000
    assert between.count == 2
    assert between.highest > 1_000_000
    consuming, _ = now("consume")
    assert consuming.count > 0
