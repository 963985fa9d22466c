"""A producer whose channel the broker closes opens another: who fails, who is sent again, and what is left."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.outcomes import awaited
from tests.support.queues import messages, taken
from tests.support.reopening import MISSING, break_channel, channels, first_occurrences, open_again, outcome, outcomes

import leveret
from leveret import Outcome, Topology
from leveret.errors import (
    BackpressureError,
    EncodeFailed,
    ExchangeAccessRefused,
    ExchangeNotFound,
    MessageReturned,
    NotFound,
    PublishError,
)
from leveret.plugins.interfaces import BreakerPolicy, RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.brokers import Broker
    from tests.support.rabbitmq import RabbitMQNode

    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.mark.parametrize("how", ["reset", "half_close"])
async def test_a_producer_goes_on_when_its_connection_was_lost(
    proxy: FaultProxy, proxied: leveret.Client, client: leveret.Client, queue: str, how: str
) -> None:
    async with proxied.producer(exchange="") as producer:
        await producer.publish("before", queue)
        proxy.swallow()
        ticket = producer.publish_nowait("under way", queue)
        waiting = asyncio.create_task(producer.publish("under way, too", queue))
        await asyncio.sleep(0)
        getattr(proxy, how)()
        while producer._alive:  # noqa: ASYNC110 - there is no event for this
            await asyncio.sleep(0)
        meanwhile = producer.publish_nowait("meanwhile", queue)
        proxy.resume()
        receipt = await producer.publish("after", queue)
        assert (receipt.delivery_tag, receipt.attempts) == (5, 1)
        assert [(await each).attempts for each in (ticket, waiting, meanwhile)] == [2, 2, 1]
        assert (await producer.publish_batch(["after that"] * 10, queue)).confirmed == 10
        assert producer.counters()["confirmed"] == 15
        assert producer.counters()["published"] == 15
    values = [
        (message.value, (message.headers or {}).get("x-leveret-resent")) for message in await messages(client, queue)
    ]
    first = [value for value, resent in values if resent is None]
    again = [(value, resent) for value, resent in values if resent is not None]
    # The broker may have read what was under way before the connection was lost, or a part of it.
    under_way = ["under way", "under way, too"]
    assert again == [(value, 1) for value in under_way]
    assert [value for value in first if value not in under_way] == [
        "before",
        "meanwhile",
        "after",
        *["after that"] * 10,
    ]
    assert list(dict.fromkeys(value for value, _ in values)) == [
        "before",
        *under_way,
        "meanwhile",
        "after",
        "after that",
    ]


async def test_only_the_offender_fails_when_an_exchange_does_not_exist(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer, client.consumer(queue) as consumer:
        before = await producer.publish("before", queue)
        offender = producer.publish_nowait("nowhere", "key", exchange="missing")
        behind = [producer.publish_nowait(f"behind {number}", queue) for number in range(3)]
        with pytest.raises(NotFound, match="no exchange 'missing'") as refused:
            await offender
        error = refused.value
        assert isinstance(error, PublishError)
        assert (error.outcome, error.delivery_tag) == (Outcome.UNKNOWN, 2)
        assert (error.reply_code, error.class_id, error.method_id) == (404, 60, 40)

        # The channel is gone, and with it what stood behind the offender: it was sent again on a new one.
        assert [(await ticket).outcome for ticket in behind] == [Outcome.CONFIRMED] * 3
        after = await producer.publish("after", queue)
        tags = [before.delivery_tag, *(ticket.delivery_tag for ticket in behind), after.delivery_tag]
        assert tags == [1, 3, 4, 5, 6]
        values = []
        while message := await consumer.get():
            values.append(message.value)
            message.ack()
    assert values == ["before", "behind 0", "behind 1", "behind 2", "after"]


@pytest.mark.parametrize("count", [0, 1, 1000])
@pytest.mark.parametrize("how", ["publish", "publish_nowait", "enqueue", "publish_batch"])
async def test_only_the_offender_fails_when_others_are_in_flight(
    client: leveret.Client, queue: str, how: str, count: int
) -> None:
    values = list(range(count))
    half = count // 2
    tasks: list[Awaitable[Any]]
    offender: Any
    async with client.producer() as producer:
        if how == "publish":
            tasks = [asyncio.create_task(producer.publish(value, queue)) for value in values[:half]]
            offender = asyncio.create_task(producer.publish("offender", queue, exchange=MISSING))
            tasks += [asyncio.create_task(producer.publish(value, queue)) for value in values[half:]]
        elif how == "publish_nowait":
            tasks = [producer.publish_nowait(value, queue) for value in values[:half]]
            offender = producer.publish_nowait("offender", queue, exchange=MISSING)
            tasks += [producer.publish_nowait(value, queue) for value in values[half:]]
        elif how == "enqueue":
            tasks = [await producer.enqueue(value, queue) for value in values[:half]]
            offender = await producer.enqueue("offender", queue, exchange=MISSING)
            tasks += [await producer.enqueue(value, queue) for value in values[half:]]
        else:
            message = producer.message("offender").exchange(MISSING)
            mixed = [*values[:half], message, *values[half:]]
            async with asyncio.timeout(20):
                result = await producer.publish_batch(mixed, queue)
            assert list(result.failures) == [half]
            assert result.confirmed == count
            offender = result.failures[half]
            tasks = []
        if how == "publish_batch":
            error = offender
        else:
            with pytest.raises(ExchangeNotFound) as failed:
                await offender
            error = failed.value
        assert isinstance(error, ExchangeNotFound)
        assert isinstance(error, NotFound)
        assert (error.outcome, error.reply_code, error.class_id, error.method_id) == (Outcome.UNKNOWN, 404, 60, 40)
        assert MISSING in str(error)
        assert await outcomes(tasks) == [Outcome.CONFIRMED] * len(tasks)
        assert (producer.outstanding, producer.counters()["unknown"]) == (0, 1)
        assert await outcome(producer.publish("after", queue)) is Outcome.CONFIRMED
        assert channels(producer) == 1
    assert await first_occurrences(client, queue) == [*values, "after"]


async def test_each_offender_fails_with_its_own_exchange_when_several_are_missing(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer:
        tickets = []
        for number in range(300):
            if number % 50 == 25:
                tickets.append(producer.publish_nowait(number, queue, exchange=f"missing {number}"))
            else:
                tickets.append(producer.publish_nowait(number, queue))
        results = await asyncio.gather(*map(awaited, tickets), return_exceptions=True)
        for number, result in enumerate(results):
            if number % 50 == 25:
                assert isinstance(result, ExchangeNotFound)
                assert f"'missing {number}'" in str(result)
                assert result.delivery_tag == number + 1
            else:
                assert isinstance(result, leveret.Receipt)
                assert (result.delivery_tag, result.outcome) == (number + 1, Outcome.CONFIRMED)
    expected = [number for number in range(300) if number % 50 != 25]
    assert await first_occurrences(client, queue) == expected


async def test_all_that_went_to_the_missing_exchange_fails_at_once(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        lost = [producer.publish_nowait(number, "key", exchange=MISSING) for number in range(500)]
        kept = [producer.publish_nowait(number, queue) for number in range(500)]
        assert await outcomes(lost) == [Outcome.UNKNOWN] * 500
        assert await outcomes(kept) == [Outcome.CONFIRMED] * 500
        for ticket in lost:
            with pytest.raises(ExchangeNotFound):
                await ticket
    assert await first_occurrences(client, queue) == list(range(500))


async def test_publishing_works_when_the_exchange_appears_later(
    client: leveret.Client, queue: str, name: Callable[[str], str]
) -> None:
    exchange = name("exchange")
    async with client.producer(exchange=exchange) as producer:
        with pytest.raises(ExchangeNotFound):
            await producer.publish("too early", "key")
        await client.declare(Topology().exchange(exchange, "direct").bind(queue, exchange, "key"))
        assert (await producer.publish("in time", "key")).delivery_tag == 2
    assert await taken(client, queue) == ["in time"]


@pytest.mark.parametrize("length", [1, 200, 255])
async def test_the_exchange_is_named_when_its_name_is_long(client: leveret.Client, queue: str, length: int) -> None:
    async with client.producer() as producer:
        innocent = producer.publish_nowait("innocent", queue)
        with pytest.raises(ExchangeNotFound):
            await producer.publish("offender", "key", exchange="x" * length)
        assert await outcome(innocent) is Outcome.CONFIRMED


@pytest.mark.parametrize("exchange", ["it's", "a' in vhost '/", "exchange 'x' in vhost ", "no.such\nline", "é" * 20])
async def test_the_offender_is_found_when_its_exchange_has_a_strange_name(
    client: leveret.Client, queue: str, exchange: str
) -> None:
    async with client.producer() as producer:
        innocent = producer.publish_nowait("innocent", queue)
        with pytest.raises(ExchangeNotFound):
            await producer.publish("offender", "key", exchange=exchange)
        assert await outcome(innocent) is Outcome.CONFIRMED


async def test_only_the_offender_fails_when_it_may_not_publish_there(
    client: leveret.Client, queue: str, name: Callable[[str], str]
) -> None:
    internal = name("internal")
    channel = await client.channel()
    await channel.exchange_declare(internal, "fanout", internal=True)
    await channel.close()
    async with client.producer() as producer:
        tickets = [producer.publish_nowait(number, queue) for number in range(10)]
        with pytest.raises(ExchangeAccessRefused) as refused:
            await producer.publish("offender", "key", exchange=internal)
        assert (refused.value.outcome, refused.value.reply_code) == (Outcome.UNKNOWN, 403)
        assert await outcomes(tickets) == [Outcome.CONFIRMED] * 10
    assert await first_occurrences(client, queue) == list(range(10))


async def test_what_is_returned_is_returned_when_the_channel_is_replaced_meanwhile(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer(mandatory=True) as producer:
        tickets = []
        for number in range(200):
            key = "nowhere" if number % 3 == 0 else queue
            tickets.append(producer.publish_nowait("equal", key))
            if number == 100:
                offender = producer.publish_nowait("equal", queue, exchange=MISSING)
        assert await outcome(offender) is Outcome.UNKNOWN
        expected = [Outcome.CONFIRMED if number % 3 else Outcome.RETURNED for number in range(200)]
        assert await outcomes(tickets) == expected
        with pytest.raises(MessageReturned):
            await tickets[0]
    assert set(await taken(client, queue)) == {"equal"}


@pytest.mark.integration
@pytest.mark.parametrize("headers", [{"BCC": ["nowhere either"]}, {"z": 1, "BCC": ["nowhere either"], "a": 2}])
async def test_what_is_returned_is_found_when_the_broker_changed_its_headers(
    rabbitmq: RabbitMQNode, unique_name: Callable[[str], str], headers: dict[str, Any]
) -> None:
    # RabbitMQ takes BCC out (sender-selected distribution), and since 4.0 it sorts headers.
    queue = unique_name("queue")
    async with leveret.connect(rabbitmq.url) as client, client.producer(mandatory=True) as producer:
        await client.declare(Topology().queue(queue))
        tickets = [producer.publish_nowait("equal", key, headers=headers) for key in (queue, "nowhere", queue)]
        assert await outcomes(tickets) == [Outcome.CONFIRMED, Outcome.RETURNED, Outcome.CONFIRMED]
        with pytest.raises(MessageReturned, match="'nowhere'"):
            await tickets[1]
        assert await client.delete_queue(queue) == 2


async def test_publishing_goes_on_without_confirms_when_the_channel_was_closed(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer(confirms=False, max_outstanding=1) as producer:
        assert await outcome(producer.publish("offender", "key", exchange=MISSING)) is Outcome.UNKNOWN
        channel = producer._channel
        assert channel is not None
        async with asyncio.timeout(10):
            while channel.is_open:  # noqa: ASYNC110 - nor for this
                await asyncio.sleep(0)
        assert not producer._alive
        # All of these wait for the next channel, and no confirm will ever wake those behind the first.
        waiting: list[asyncio.Task[Any]]
        waiting = [asyncio.create_task(producer.publish(number, queue)) for number in range(10)]
        waiting += [asyncio.create_task(producer.enqueue(number, queue)) for number in range(10, 20)]
        async with asyncio.timeout(10):
            await asyncio.gather(*waiting)
        await producer.flush()
    assert await taken(client, queue) == list(range(20))


async def test_those_who_wait_keep_their_order_when_the_channel_is_closed_again_and_again(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer(max_outstanding=5) as producer:
        tasks = []
        for number in range(200):
            exchange = f"missing {number}" if number % 40 == 0 else ""
            tasks.append(asyncio.create_task(producer.publish(number, queue, exchange=exchange)))
        known = await outcomes(tasks)
        assert [number for number, each in enumerate(known) if each is not Outcome.CONFIRMED] == list(range(0, 200, 40))
    expected = [number for number in range(200) if number % 40]
    assert await first_occurrences(client, queue) == expected


async def test_those_behind_go_on_when_nothing_of_a_batch_could_be_encoded(client: leveret.Client, queue: str) -> None:
    async with client.producer(max_outstanding=1, batch_size=1, batches_in_flight=1) as producer:
        first = asyncio.create_task(producer.publish("first", queue))
        await asyncio.sleep(0)
        batch = asyncio.create_task(producer.publish_batch([object()], queue))
        await asyncio.sleep(0)
        last = asyncio.create_task(producer.publish("last", queue))
        assert await outcomes([first, last]) == [Outcome.CONFIRMED] * 2
        assert isinstance((await batch).failures[0], EncodeFailed)


async def test_calls_wait_for_the_next_channel_and_nowait_keeps_its_message_for_it(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer(max_buffered=2) as producer:
        await break_channel(producer)
        kept = [producer.publish_nowait("nowait", queue), await producer.enqueue("enqueue", queue)]
        with pytest.raises(BackpressureError, match=r"another one is not open yet; 2 publishings .*limit 2"):
            producer.publish_nowait("refused", queue)
        calls = [
            asyncio.create_task(producer.publish("publish", queue)),
            asyncio.create_task(producer.enqueue("enqueue, too", queue)),
            asyncio.create_task(producer.publish_batch(["batch"], queue)),
        ]
        async with asyncio.timeout(10):
            await asyncio.gather(*calls)
        await producer.flush()
        assert [(await ticket).attempts for ticket in kept] == [1, 1]
    assert await taken(client, queue) == ["nowait", "enqueue", "publish", "enqueue, too", "batch"]


async def test_flush_waits_for_what_is_sent_again(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        tickets = [producer.publish_nowait(number, queue) for number in range(100)]
        offender = asyncio.create_task(producer.publish("offender", queue, exchange=MISSING))
        tickets += [producer.publish_nowait(number, queue) for number in range(100, 200)]
        await producer.flush()
        assert all(ticket.done and ticket.confirmed == 1 for ticket in tickets)
        assert await outcome(offender) is Outcome.UNKNOWN
    assert await first_occurrences(client, queue) == list(range(200))


async def test_flush_tells_of_the_offender_when_nobody_awaited_it(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        producer.publish_nowait("offender", queue, exchange=MISSING)
        producer.publish_nowait("innocent", queue)
        with pytest.raises(ExchangeNotFound, match="1 publishings that were not awaited failed"):
            await producer.flush()
        await producer.flush()


async def test_confirms_are_told_by_the_tags_that_publishings_had_when_they_are_sent_again(
    client: leveret.Client, queue: str
) -> None:
    books: dict[int, str] = {}
    waiting: set[int] = set()

    def told(tag: int, multiple: bool) -> None:
        ended = {each for each in waiting if each <= tag} if multiple else {tag} & waiting
        waiting.difference_update(ended)
        books.update(dict.fromkeys(ended, "ack"))

    async with client.producer() as producer:
        producer.on_confirm(told)
        for number in range(300):
            tag = producer.next_delivery_tag
            exchange = MISSING if number == 150 else ""
            ticket = producer.publish_nowait(number, queue, exchange=exchange)
            assert ticket.delivery_tag == tag
            if number == 150:
                offender = ticket
            else:
                waiting.add(tag)
        assert await outcome(offender) is Outcome.UNKNOWN
        await producer.flush()
        after = producer.publish_nowait("after", queue)
        waiting.add(after.delivery_tag)
        await after
        assert after.delivery_tag == 301
        assert waiting == set()
        assert sorted(books) == [tag for tag in range(1, 302) if tag != 151]


class Twice(RetryPolicy):
    """Tries a second time, at once."""

    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        return 0.0 if attempt < 2 else None


class Counting(BreakerPolicy):
    """Never opens, and counts what it is told."""

    closed = True

    def __init__(self) -> None:
        self.failed: list[BaseException | None] = []

    def before_call(self) -> None:
        raise AssertionError("it is closed")

    def record(
        self, successes: int, failures: int, /, *, seconds: float = 0.0, error: BaseException | None = None
    ) -> None:
        self.failed += [error] * failures


async def test_policies_see_only_the_offender_when_others_are_sent_again(client: leveret.Client, queue: str) -> None:
    breaker = Counting()
    async with client.producer(retry=Twice(), circuit_breaker=breaker) as producer:
        innocent = [asyncio.create_task(producer.publish(number, queue)) for number in range(50)]
        offender = asyncio.create_task(producer.publish("offender", queue, exchange=MISSING))
        innocent += [asyncio.create_task(producer.publish(number, queue)) for number in range(50, 100)]
        assert await outcomes(innocent) == [Outcome.CONFIRMED] * 100
        with pytest.raises(ExchangeNotFound) as failed:
            await offender
        assert "it was tried 2 times" in failed.value.__notes__
        batch = await producer.publish_batch([1, producer.message(2).exchange(MISSING), 3], queue)
        assert list(batch.failures) == [1]
    assert [type(error) for error in breaker.failed] == [ExchangeNotFound] * 4


@pytest.mark.parametrize("turns", range(12))
async def test_everything_has_an_outcome_when_the_connection_is_lost_while_the_channel_is_replaced(
    broker: Broker, client: leveret.Client, queue: str, turns: int
) -> None:
    async with leveret.connect(broker.url) as unlucky:
        producer = await unlucky.producer().open()
        tickets = [producer.publish_nowait(number, queue) for number in range(500)]
        await break_channel(producer)
        for _ in range(turns):
            await asyncio.sleep(0)
        unlucky.connection.transport.abort()
        assert await outcomes(tickets) == [Outcome.CONFIRMED] * 500
        assert producer.outstanding == 0
        # It goes on with the next connection.
        assert await outcome(producer.publish("after", queue)) is Outcome.CONFIRMED
        await producer.close()
    assert await first_occurrences(client, queue) == [*range(500), "after"]


async def test_nothing_is_left_behind_when_the_channel_was_replaced_many_times(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer:
        for number in range(100):
            innocent = producer.publish_nowait(number, queue)
            assert await outcome(producer.publish_nowait("offender", queue, exchange=MISSING)) is Outcome.UNKNOWN
            assert await outcome(innocent) is Outcome.CONFIRMED
            await open_again(producer)
        assert channels(producer) == 1
        assert producer._channel is not None
        # The broker may still send frames to the numbers that it has closed, so they are used again at last.
        assert producer._channel.number == 102  # one of them is the pool's
        assert (producer.outstanding, len(producer._waiting), producer._flushing) == (0, 0, [])
        assert producer._reopening.task is None
        others = {task.get_name() for task in asyncio.all_tasks()}
        assert not any(each.startswith("leveret producer") for each in others)
    assert channels(producer) == 0
    assert await first_occurrences(client, queue) == list(range(100))


@pytest.mark.parametrize("seed", range(3))
async def test_what_was_confirmed_is_in_the_queue_when_2000_publishings_meet_random_faults(
    client: leveret.Client, queue: str, seed: int
) -> None:
    dice = random.Random(seed)
    offenders: set[int] = set()
    results: dict[int, Awaitable[Any]] = {}
    batches: list[tuple[range, asyncio.Task[leveret.BatchResult]]] = []

    async with client.producer(max_outstanding=50, batch_size=20, mandatory=True) as producer:

        def options(number: int) -> dict[str, Any]:
            if dice.random() < 0.01:
                offenders.add(number)
                return {"exchange": f"missing {dice.randrange(3)}"}
            return {}

        number = 0
        while number < 2000:
            kind = dice.choice(["publish", "publish", "nowait", "nowait", "enqueue", "batch", "pause"])
            if kind == "publish":
                call = producer.publish(number, queue, **options(number))
                results[number] = asyncio.create_task(call)
            elif kind == "nowait":
                with contextlib.suppress(BackpressureError):
                    results[number] = producer.publish_nowait(number, queue, **options(number))
            elif kind == "enqueue":
                results[number] = await producer.enqueue(number, queue, **options(number))
            elif kind == "batch":
                numbers = range(number, min(2000, number + dice.randrange(1, 60)))
                values: list[Any] = []
                for each in numbers:
                    special = options(each)
                    values.append(producer.message(each).exchange(special["exchange"]) if special else each)
                batches.append((numbers, asyncio.create_task(producer.publish_batch(values, queue))))
                number = numbers[-1]
            else:
                await asyncio.sleep(0)
            number += 1
        known = dict(zip(results, await outcomes(results.values()), strict=True))
        for numbers, task in batches:
            async with asyncio.timeout(20):
                result = await task
            known |= {each: result.outcome(index) for index, each in enumerate(numbers)}
        counters = producer.counters()
        assert counters["outstanding"] == 0
        assert counters["published"] == sum(counters[name] for name in ("confirmed", "returned", "nacked", "unknown"))

    assert offenders
    for each, ended in known.items():
        assert ended is (Outcome.UNKNOWN if each in offenders else Outcome.CONFIRMED), each
    values_there = set(await taken(client, queue))
    assert {each for each, ended in known.items() if ended is Outcome.CONFIRMED} == values_there
