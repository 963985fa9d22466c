"""Policies against a real broker: a full queue refuses, and takes again when somebody has drained it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

import leveret
from leveret.broker import EmbeddedBroker
from leveret.errors import CircuitOpen, MessageNacked, MessageReturned, RetriesExhausted
from leveret_resilience import BreakerState, CircuitBreaker, FixedRetry, LinearRetry, guard, retrying

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

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


async def test_producers_breaker_opens_lets_nothing_through_and_closes_after_a_trial(
    client: leveret.Client, clock: Clock
) -> None:
    breaker = CircuitBreaker(name=QUEUE, clock=clock)
    async with client.producer(circuit_breaker=breaker) as producer:
        await producer.publish("first", QUEUE)
        failures = 0
        while breaker.closed:
            with pytest.raises(MessageNacked):
                await producer.publish("more", QUEUE)
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
        await producer.publish("trial", QUEUE)
        assert breaker.state is BreakerState.CLOSED
    message = await client.consumer(QUEUE).get()
    assert message is not None
    assert message.value == "trial"


async def test_producers_breaker_opens_again_when_the_trial_is_refused(client: leveret.Client, clock: Clock) -> None:
    breaker = CircuitBreaker(minimum_calls=1, clock=clock)
    async with client.producer(circuit_breaker=breaker) as producer:
        await producer.publish("first", QUEUE)
        with pytest.raises(MessageNacked):
            await producer.publish("more", QUEUE)
        clock.advance(60.0)
        with pytest.raises(MessageNacked):
            await producer.publish("trial", QUEUE)
        assert breaker.state is BreakerState.OPEN
        with pytest.raises(CircuitOpen):
            await producer.publish("refused", QUEUE)


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


async def test_consumer_gets_circuit_open_and_the_handler_is_not_run_when_the_breaker_is_open(
    client: leveret.Client, clock: Clock
) -> None:
    breaker = CircuitBreaker(minimum_calls=1, clock=clock)
    breaker.record(0, 1)
    refused = asyncio.Event()
    handled = []

    async def handler(value: str, message: leveret.Message) -> None:
        handled.append(value)

    guarded = guard(handler, breaker=breaker)

    async def watched(value: str, message: leveret.Message) -> bool | None:
        try:
            return await guarded(value, message)
        except CircuitOpen:
            refused.set()
            raise

    async with client.producer() as producer:
        await producer.publish("value", QUEUE)
    await consume(client, watched, refused)
    assert handled == []
