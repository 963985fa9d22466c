"""Policies against a real broker: a full queue refuses, and takes again when somebody has drained it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

import leveret
from leveret.broker import EmbeddedBroker
from leveret.errors import CircuitOpen, MessageNacked, MessageReturned, RetriesExhausted
from leveret_resilience import BreakerChange, BreakerState, CircuitBreaker, FixedRetry, LinearRetry, guard, retrying

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from conftest import Clock, Sleep

QUEUE = "one-place"


@pytest.fixture
async def client() -> AsyncIterator[leveret.Client]:
    """A client, and a queue that takes one message and refuses the next."""
    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
        await client.declare(leveret.Topology().queue(QUEUE, leveret.Classic(max_length=1, overflow="reject-publish")))
        yield client


async def waiting(client: leveret.Client) -> int:
    """How many messages the queue has."""
    report = await client.declare(
        leveret.Topology().queue(QUEUE, leveret.Classic(max_length=1, overflow="reject-publish"))
    )
    return report.queues[QUEUE].message_count


# ---------------------------------------------------------------------- retries


async def test_nacked_publish_succeeds_when_the_queue_is_drained_before_the_next_attempt(
    client: leveret.Client,
) -> None:
    delays = []

    async def drain(seconds: float) -> None:
        delays.append(seconds)
        if len(delays) == 2:
            await client.purge(QUEUE)

    async with client.producer() as producer:
        await producer.publish("first", QUEUE)
        receipt = await retrying(LinearRetry(), producer.publish, "second", QUEUE, sleep=drain)
        assert receipt.outcome is leveret.Outcome.CONFIRMED
        assert delays == [1.0, 2.0]
        assert producer.counters()["nacked"] == 2
    message = await client.consumer(QUEUE).get()
    assert message is not None
    assert message.value == "second"


async def test_nacked_publish_is_given_up_after_three_retries(client: leveret.Client, sleep: Sleep) -> None:
    async with client.producer() as producer:
        await producer.publish("first", QUEUE)
        with pytest.raises(RetriesExhausted) as caught:
            await retrying(FixedRetry(), producer.publish, "second", QUEUE, sleep=sleep)
        assert isinstance(caught.value.__cause__, MessageNacked)
        assert producer.counters()["nacked"] == 4


async def test_returned_publish_is_not_retried(client: leveret.Client, sleep: Sleep) -> None:
    async with client.producer(mandatory=True) as producer:
        with pytest.raises(MessageReturned):
            await retrying(FixedRetry(), producer.publish, "value", "no-such-queue", sleep=sleep)
        assert producer.counters()["returned"] == 1
    assert sleep.delays == []


async def test_ticket_of_publish_nowait_is_awaited_in_each_attempt(client: leveret.Client, sleep: Sleep) -> None:
    async with client.producer() as producer:
        receipt = await retrying(FixedRetry(), producer.publish_nowait, "value", QUEUE, sleep=sleep)
        assert receipt.outcome is leveret.Outcome.CONFIRMED


# ---------------------------------------------------------------------- the core's options for producers


async def test_producer_retries_a_nacked_publish_when_it_has_a_policy(client: leveret.Client) -> None:
    nacked = asyncio.Event()

    def again(error: Exception) -> bool:
        nacked.set()
        return isinstance(error, MessageNacked)

    async with client.producer(retry=FixedRetry(retries=1000, interval=0.001, retry_on=again)) as producer:
        await producer.publish("first", QUEUE)
        publishing = asyncio.create_task(producer.publish("second", QUEUE))
        await nacked.wait()
        await client.purge(QUEUE)
        assert (await publishing).outcome is leveret.Outcome.CONFIRMED
    assert await waiting(client) == 1


async def test_producer_publishes_only_what_failed_of_a_batch_again(client: leveret.Client) -> None:
    async with client.producer(retry=FixedRetry(retries=3, interval=0.0)) as producer:
        result = await producer.publish_batch(["a", "b"], QUEUE)
        assert (result.count, result.confirmed, list(result.failures)) == (2, 1, [1])
        assert isinstance(result.failures[1], MessageNacked)
        assert producer.counters()["published"] == 2 + 3
    assert await waiting(client) == 1


@pytest.mark.parametrize("way", ["publish", "publish_nowait"])
async def test_producers_breaker_opens_lets_nothing_through_and_closes_after_a_trial(
    client: leveret.Client, clock: Clock, way: str
) -> None:
    breaker = CircuitBreaker(name=QUEUE, clock=clock)
    async with client.producer(circuit_breaker=breaker) as producer:
        publish = getattr(producer, way)
        await publish("first", QUEUE)
        failures = 0
        while breaker.closed:
            with pytest.raises(MessageNacked):
                await publish("more", QUEUE)
            failures += 1
        # The first one succeeded, so 4 of 5 calls failed when there were enough of them.
        assert failures == 4
        published = producer.counters()["published"]
        await client.purge(QUEUE)
        for _ in range(3):
            with pytest.raises(CircuitOpen):
                await producer.publish("refused", QUEUE)
        with pytest.raises(CircuitOpen):
            producer.publish_nowait("refused", QUEUE)
        with pytest.raises(CircuitOpen):
            await producer.publish_batch(["refused"], QUEUE)
        assert producer.counters()["published"] == published
        clock.advance(60.0)
        await publish("trial", QUEUE)
        assert breaker.state is BreakerState.CLOSED
    message = await client.consumer(QUEUE).get()
    assert message is not None
    assert message.value == "trial"


@pytest.mark.parametrize("way", ["publish", "publish_nowait"])
async def test_producers_breaker_opens_again_when_the_trial_is_refused(
    client: leveret.Client, clock: Clock, way: str
) -> None:
    breaker = CircuitBreaker(minimum_calls=1, clock=clock)
    async with client.producer(circuit_breaker=breaker) as producer:
        publish = getattr(producer, way)
        await publish("first", QUEUE)
        with pytest.raises(MessageNacked):
            await publish("more", QUEUE)
        clock.advance(60.0)
        with pytest.raises(MessageNacked):
            await publish("trial", QUEUE)
        assert breaker.state is BreakerState.OPEN
        with pytest.raises(CircuitOpen):
            await publish("refused", QUEUE)


async def test_ticket_that_nobody_awaits_is_a_trial_like_any_other(client: leveret.Client, clock: Clock) -> None:
    closed = asyncio.Event()

    def notice(change: BreakerChange) -> None:
        if change.new is BreakerState.CLOSED:
            closed.set()

    breaker = CircuitBreaker(minimum_calls=1, clock=clock, on_change=notice)
    breaker.record(0, 1)
    clock.advance(60.0)
    async with client.producer(circuit_breaker=breaker) as producer:
        ticket = producer.publish_nowait("trial", QUEUE)
        with pytest.raises(CircuitOpen, match="half-open and waits for 1 trial calls"):
            producer.publish_nowait("refused", QUEUE)
        async with asyncio.timeout(10):
            await closed.wait()
        assert ticket.done
    assert await waiting(client) == 1


async def test_policies_are_found_by_name_when_the_plugin_is_installed(client: leveret.Client) -> None:
    async with client.producer(retry="exponential", circuit_breaker="failure-rate") as producer:
        assert (await producer.publish("value", QUEUE)).outcome is leveret.Outcome.CONFIRMED


# ---------------------------------------------------------------------- handlers


async def consume(client: leveret.Client, handler: Any, until: asyncio.Event, **options: Any) -> dict[str, int]:
    consumer = client.consumer(QUEUE, **options)
    running = asyncio.create_task(consumer.run(handler))
    await until.wait()
    consumer.stop()
    await running
    return consumer.counters()


async def test_guarded_handler_is_retried_in_the_same_delivery(client: leveret.Client, sleep: Sleep) -> None:
    done = asyncio.Event()
    attempts = []

    async def handler(value: str, message: leveret.Message) -> None:
        attempts.append((value, message.redelivered))
        if len(attempts) < 3:
            raise OSError("down")
        done.set()

    async with client.producer() as producer:
        await producer.publish("value", QUEUE)
    counters = await consume(client, guard(handler, retry=FixedRetry(), sleep=sleep), done)
    assert attempts == [("value", False)] * 3
    assert (counters["acked"], counters["handler_errors"]) == (1, 0)
    assert await waiting(client) == 0


# ---------------------------------------------------------------------- handlers whose breaker opens

WORK, DEAD = "work", "dead"
#: The consumer waits for as long as the breaker says, in real time, but no time passes for the breaker until a test
#: moves its clock.
OPEN_TIME = 0.001


class Service:
    """What handlers call: down until it is `up`."""

    def __init__(self, clock: Clock) -> None:
        self.up = False
        self.failures = 0
        self.handled: list[int] = []
        #: How often the breaker refused each value.
        self.refused: Counter[int] = Counter()
        self.breaker = CircuitBreaker(minimum_calls=1, open_time=OPEN_TIME, clock=clock)
        self._changed = asyncio.Event()

    async def _handle(self, value: int, message: leveret.Message) -> bool:
        if not self.up:
            self.failures += 1
            self._changed.set()
            raise OSError("down")
        self.handled.append(value)
        self._changed.set()
        return value >= 0

    def handler(self, **options: Any) -> Any:
        guarded = guard(self._handle, breaker=self.breaker, **options)

        async def watched(value: int, message: leveret.Message) -> bool | None:
            try:
                return await guarded(value, message)
            except CircuitOpen:
                self.refused[value] += 1
                self._changed.set()
                raise

        return watched

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def service(clock: Clock) -> Service:
    return Service(clock)


@pytest.fixture
async def publish(client: leveret.Client) -> AsyncIterator[Callable[..., Any]]:
    """Publishes values to a queue with a dead-letter exchange."""
    await client.declare(
        leveret.Topology()
        .exchange("dlx", "fanout")
        .queue(DEAD)
        .bind(DEAD, "dlx")
        .queue(WORK, leveret.Classic(dead_letter_exchange="dlx"))
    )
    async with client.producer() as producer:

        async def publish(*values: int) -> None:
            (await producer.publish_batch(values, WORK)).raise_for_failures()

        yield publish


@contextlib.asynccontextmanager
async def running(consumer: leveret.Consumer[Any], handler: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(consumer.run(handler))
    try:
        yield
    finally:
        consumer.stop()
        await task


async def first_dead_letter(client: leveret.Client) -> Any:
    async with asyncio.timeout(10), client.consumer(DEAD) as consumer:
        return (await anext(consumer)).value


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_messages_wait_in_their_queue_while_the_breaker_is_open_and_are_handled_when_it_has_closed(
    client: leveret.Client, service: Service, publish: Callable[..., Any], clock: Clock, concurrency: int
) -> None:
    values = list(range(20))
    await publish(*values)
    consumer = client.consumer(WORK, concurrency=concurrency)
    async with running(consumer, service.handler()):
        await service.until(lambda: len(service.refused) == 20)
        # The first failure opened the breaker. It is the only one, and its message was refused like the others then.
        assert service.breaker.state is BreakerState.OPEN
        counters = consumer.counters()
        assert (counters["handler_errors"], counters["retried"], counters["dead_lettered"]) == (1, 1, 0)
        assert service.handled == []

        service.up = True
        clock.advance(OPEN_TIME)
        await service.until(lambda: len(service.handled) == 20)
        assert service.breaker.closed
        assert sorted(service.handled) == values
        assert consumer.counters()["dead_lettered"] == 0

        await publish(-1)  # the handler returns False
        assert await first_dead_letter(client) == -1
    counters = consumer.counters()
    assert (counters["acked"], counters["handler_errors"], counters["dead_lettered"]) == (
        21,
        1,
        1,
    )  # the original of the copy, too


async def test_message_is_tried_again_later_when_it_is_the_trial_and_fails(
    client: leveret.Client, service: Service, publish: Callable[..., Any], clock: Clock
) -> None:
    service.breaker.record(0, 1)
    await publish(1)
    consumer = client.consumer(WORK)
    async with running(consumer, service.handler()):
        await service.until(lambda: service.refused[1] > 0)
        clock.advance(OPEN_TIME)
        await service.until(lambda: service.failures == 1)
        assert service.breaker.state is BreakerState.OPEN
        refused = service.refused[1]
        # A second later it comes back, and is refused like the others.
        await service.until(lambda: service.refused[1] > refused)
        service.up = True
        clock.advance(OPEN_TIME)
        await service.until(lambda: service.handled == [1])
    counters = consumer.counters()
    assert (counters["handler_errors"], counters["retried"], counters["dead_lettered"]) == (1, 1, 0)


async def test_message_is_kept_when_it_is_the_trial_and_fails_and_the_guard_tries_again(
    client: leveret.Client, service: Service, publish: Callable[..., Any], clock: Clock, sleep: Sleep
) -> None:
    service.breaker.record(0, 1)
    await publish(1)
    consumer = client.consumer(WORK)
    async with running(consumer, service.handler(retry=FixedRetry(), sleep=sleep)):
        await service.until(lambda: service.refused[1] > 0)
        refused = service.refused[1]
        clock.advance(OPEN_TIME)
        # The second attempt meets the breaker, which the trial has opened again.
        await service.until(lambda: service.failures == 1 and service.refused[1] > refused)
        service.up = True
        clock.advance(OPEN_TIME)
        await service.until(lambda: service.handled == [1])
    counters = consumer.counters()
    assert (counters["acked"], counters["handler_errors"], counters["dead_lettered"]) == (1, 0, 0)
