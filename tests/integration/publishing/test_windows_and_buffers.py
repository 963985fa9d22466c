"""So many publishings are in flight, so many more wait in the buffer, and the next waits or is refused."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.confirming import mute, producing, served

import leveret
from leveret import Outcome, ProducerSettings
from leveret.errors import BackpressureError, PublishError
from leveret.testing import FaultProxy

if TYPE_CHECKING:
    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_s12_200_publishes_are_in_flight_and_the_201st_waits() -> None:
    async with served(max_outstanding=200) as (server, producer):
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
        FaultProxy(broker.url) as proxy,
        leveret.connect(proxy.url) as client,
        client.producer(max_outstanding="auto", max_buffered=1000, publish_timeout=25) as producer,
    ):
        proxy.delay(0.1)
        assert producer.max_outstanding == 200
        most = 0

        async def publish(count: int) -> None:
            nonlocal most
            for number in range(count):
                await producer.publish(number, queue)
                most = max(most, producer.outstanding)

        # Tasks that publish again and again, or that all wait from the beginning on. Where the machine is busy with
        # other things, the line is not what holds them up, and the window grows later.
        rounds = 0
        async with asyncio.timeout(60):
            while producer.max_outstanding == 200:
                rounds += 1
                await asyncio.gather(*(publish(10_000 // tasks) for _ in range(tasks)))
        assert 200 < producer.max_outstanding <= 1000
        assert 200 <= most <= 1000
    assert await other.purge(queue) == rounds * 10_000


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


async def test_nothing_is_sent_when_the_buffer_is_full(client: leveret.Client, queue: str) -> None:
    async with client.producer(max_buffered=10) as producer:
        tickets = [producer.publish_nowait(number, queue) for number in range(10)]
        with pytest.raises(BackpressureError, match=r"10 publishings of 10 bytes .*limit 10"):
            producer.publish_nowait("too much", queue)
        for ticket in tickets:
            await ticket
        await producer.publish_nowait("fits", queue)
    assert await client.purge(queue) == 11


async def test_the_next_publish_goes_on_when_one_that_had_its_turn_is_cancelled(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer(max_outstanding=1, confirm_timeout=20) as producer:
        # At this moment its turn has come: it is written, and not taken back.
        producer.on_confirm(lambda delivery_tag, multiple: second.cancel())
        first = asyncio.create_task(producer.publish("first", queue))
        await asyncio.sleep(0)
        second = asyncio.create_task(producer.publish("second", queue))
        await asyncio.sleep(0)
        async with asyncio.timeout(5):
            await producer.publish("third", queue)
            await asyncio.wait([first, second])
    assert second.cancelled()
    assert await client.purge(queue) == 3


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


async def test_publishing_waits_when_too_many_bytes_are_unconfirmed(
    proxy: FaultProxy, proxied: leveret.Client, queue: str
) -> None:
    async with proxied.producer(
        serializer="bytes", max_outstanding_bytes=10_000, confirm_timeout=1, publish_timeout=0.3
    ) as producer:
        proxy.swallow()
        results = await asyncio.gather(
            *(producer.publish(bytes(6_000), queue) for _ in range(5)), return_exceptions=True
        )
        outcomes = [error.outcome for error in results if isinstance(error, PublishError)]
        assert outcomes == [Outcome.UNKNOWN] * 2 + [Outcome.NOT_SENT] * 3
        for _ in range(2):
            producer.publish_nowait(bytes(6_000), queue)
        with pytest.raises(BackpressureError, match="12000 bytes"):
            producer.publish_nowait(bytes(6_000), queue)


async def test_callers_that_wait_for_room_end_with_the_time_of_close() -> None:
    async with producing(mute, max_outstanding=1, confirm_timeout=1, publish_timeout=20) as producer:
        in_flight = asyncio.create_task(producer.publish(b"", "q"))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(producer.publish(b"", "q"))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(producer.close())
        await asyncio.sleep(0)
        with pytest.raises(PublishError, match="the producer is closed"):
            await producer.publish(b"", "q")
        assert not waiting.done()
        assert not closing.done()
        await closing
        for publishing in (in_flight, waiting):
            with pytest.raises(PublishError):
                await publishing


@pytest.mark.parametrize(
    "options",
    [
        {"max_outstanding": 1, "max_buffered": 1, "batch_size": 1, "batches_in_flight": 1},
        {"max_outstanding_bytes": 1},
        {"max_outstanding": 1, "batch_size": 1000},
        {"max_outstanding": "auto", "max_buffered": 1},
        {"max_outstanding": "auto", "max_buffered": 300},
        {"max_outstanding": 1, "confirms": False},
    ],
    ids=str,
)
async def test_nobody_starves_when_everything_is_published_at_once(
    tight_client: leveret.Client, options: dict[str, Any]
) -> None:
    dice = random.Random(5)
    async with tight_client.producer(**options) as producer:
        tasks: list[asyncio.Task[Any]] = []
        for number in range(300):
            call: Any = dice.choice(
                [
                    producer.publish,
                    producer.enqueue,
                    lambda value, key: producer.publish_batch([value] * dice.randrange(7), key),
                ]
            )
            tasks.append(asyncio.create_task(call(number, "q")))
            if dice.random() < 0.1:
                await asyncio.sleep(0)
            if dice.random() < 0.1:
                dice.choice(tasks).cancel()
        async with asyncio.timeout(15):
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(each) for each in ended if isinstance(each, BaseException)} <= {asyncio.CancelledError}
        await producer.flush()
        assert not producer._waiting
        assert producer.outstanding == 0
