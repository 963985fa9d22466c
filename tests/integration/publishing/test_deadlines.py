"""`publish_timeout` bounds a message from its call to its outcome, `confirm_timeout` its confirm, however published."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Basic, Channel, Confirm
from pamqp.header import ContentHeader
from tests.support.confirming import producing, served
from tests.support.peers import FakeServer, Peer

import leveret
from leveret import Outcome, ProducerSettings, Topology
from leveret.broker import EmbeddedBroker
from leveret.errors import BackpressureError, ConfirmTimeout, ExchangeNotFound, PublishError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from leveret import Producer
    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


#: Seconds; what is measured may be late by this much on a busy machine.
TIMEOUT, LATE = 0.5, 0.45


async def nowait(producer: Producer) -> Any:
    return await producer.publish_nowait("value", "q")


async def nowait_with_template(producer: Producer) -> Any:
    return await producer.publish_nowait("value", producer.template("q", headers={"a": 1}))


async def flushed(producer: Producer) -> Any:
    producer.publish_nowait("value", "q")
    await producer.flush(timeout=10)


async def plain(producer: Producer) -> Any:
    return await producer.publish("value", "q")


async def with_headers(producer: Producer) -> Any:
    return await producer.publish("value", "q", headers={"a": 1})


async def with_template(producer: Producer) -> Any:
    return await producer.publish("value", producer.template("q", headers={"a": 1}))


async def patient(producer: Producer) -> Any:
    return await producer.publish("value", "q", confirm_timeout=60)


async def enqueued(producer: Producer) -> Any:
    return await (await producer.enqueue("value", "q"))


async def enqueued_with_template(producer: Producer) -> Any:
    return await (await producer.enqueue("value", producer.template("q", headers={"a": 1})))


async def batch(producer: Producer) -> Any:
    (await producer.publish_batch(["value"], "q")).raise_for_failures()


async def batch_of_iterator(producer: Producer) -> Any:
    (await producer.publish_batch(iter(["value"]), "q")).raise_for_failures()


async def batch_of_asynchronous_iterator(producer: Producer) -> Any:
    async def values() -> AsyncIterator[str]:
        yield "value"

    (await producer.publish_batch(values(), "q")).raise_for_failures()


async def batch_of_messages(producer: Producer) -> Any:
    (await producer.publish_batch([producer.message("value").routing_key("q").priority(1)])).raise_for_failures()


async def block(producer: Producer) -> Any:
    async with producer.batch("q") as collected:
        collected.add("value")
    collected.result.raise_for_failures()


WAITING = [
    plain,
    with_headers,
    with_template,
    patient,
    enqueued,
    enqueued_with_template,
    batch,
    batch_of_iterator,
    batch_of_asynchronous_iterator,
    batch_of_messages,
    block,
]


EVERY = [*WAITING, nowait, nowait_with_template, flushed]


def every(ways: list[Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("way", ways, ids=lambda way: way.__name__)


async def failed(awaitable: Awaitable[Any]) -> tuple[PublishError, float]:
    """The error of a publishing, and after how many seconds it came."""
    started = time.monotonic()
    async with asyncio.timeout(20):
        with pytest.raises(PublishError) as raised:
            await awaitable
    return raised.value, time.monotonic() - started


@asynccontextmanager
async def blocked(**options: Any) -> AsyncIterator[tuple[leveret.Client, Producer]]:
    """A producer of a broker that blocks publishers, and that the client does not know of before it publishes."""
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, close_timeout=0.3) as client:
        await client.declare(Topology().queue("q"))
        producer = await client.producer(**{"publish_timeout": TIMEOUT, **options}).open()
        broker.block()
        try:
            yield client, producer
        finally:
            broker.unblock()
        await producer.close()


@every(EVERY)
@pytest.mark.parametrize("options", [{}, {"compressor": "gzip"}, {"max_outstanding": "auto"}], ids=str)
async def test_what_is_written_ends_unknown_after_publish_timeout(
    way: Callable[[Producer], Awaitable[Any]], options: dict[str, Any]
) -> None:
    async with blocked(**options) as (client, producer):
        error, seconds = await failed(way(producer))
        assert TIMEOUT * 0.98 <= seconds <= TIMEOUT + LATE
        assert isinstance(error, ConfirmTimeout)
        assert (error.outcome, error.stage) == (Outcome.UNKNOWN, "confirm")
        assert "publish_timeout of 0.5 s" in str(error)
        assert client.connection.blocked is not None


@every(WAITING)
async def test_what_is_not_written_ends_not_sent_after_publish_timeout(
    way: Callable[[Producer], Awaitable[Any]],
) -> None:
    async with blocked() as (_, producer):
        await failed(plain(producer))
        published = producer.counters()["published"]
        error, seconds = await failed(way(producer))
        assert TIMEOUT * 0.98 <= seconds <= TIMEOUT + LATE
        assert (error.outcome, error.stage) == (Outcome.NOT_SENT, "blocked")
        with pytest.raises(BackpressureError):
            await nowait(producer)
        assert producer.counters()["published"] == published


@every(WAITING)
async def test_the_wait_for_room_and_the_wait_for_the_confirm_have_one_deadline(
    way: Callable[[Producer], Awaitable[Any]],
) -> None:
    limits = {"max_outstanding": 1, "max_buffered": 1, "batch_size": 1, "batches_in_flight": 1}
    async with served(publish_timeout=TIMEOUT, confirm_timeout=30, **limits) as (server, producer):
        first = producer.publish_nowait("first", "q")
        waiting = asyncio.create_task(failed(way(producer)))
        await asyncio.sleep(0.6 * TIMEOUT)
        assert len(await server.publishings()) == 1
        server.ack(1)
        await first
        error, seconds = await waiting
        assert len(await server.publishings()) == 1
        assert (error.outcome, error.stage) == (Outcome.UNKNOWN, "confirm")
        assert "publish_timeout of 0.5 s" in str(error)
        assert TIMEOUT * 0.98 <= seconds <= TIMEOUT + 0.25


async def test_a_message_that_was_overtaken_while_it_waited_keeps_its_deadline() -> None:
    async with served(publish_timeout=TIMEOUT, confirm_timeout=30, max_outstanding=1) as (server, producer):
        first = producer.publish_nowait("first", "q")
        waiting = asyncio.create_task(failed(producer.publish("waits", "q")))
        await asyncio.sleep(0.6 * TIMEOUT)
        later = asyncio.create_task(failed(nowait(producer)))  # takes the next tag, and may wait for longer
        await asyncio.sleep(0)
        assert len(await server.publishings()) == 2
        server.ack(2, multiple=True)
        await first
        later.cancel()
        again = asyncio.create_task(failed(nowait(producer)))
        (error, seconds), (_, more) = await waiting, await again
        assert error.outcome is Outcome.UNKNOWN
        assert seconds <= TIMEOUT + 0.25
        assert more >= TIMEOUT * 0.98
        await asyncio.gather(later, return_exceptions=True)


async def test_a_long_batch_is_not_one_message() -> None:
    limits = {"batch_size": 10, "batches_in_flight": 1, "max_outstanding": 10}
    async with served(publish_timeout=TIMEOUT, confirm_timeout=30, **limits) as (server, producer):
        started = time.monotonic()
        publishing = asyncio.create_task(producer.publish_batch(iter(range(100)), "q"))
        seen = 0
        while seen < 100:
            await asyncio.sleep(0.1)
            seen += len(await server.publishings())
            server.ack(seen, multiple=True)
        assert await publishing
        assert time.monotonic() - started > TIMEOUT


async def test_a_batch_tells_what_was_written_from_what_was_not() -> None:
    limits = {"batch_size": 10, "batches_in_flight": 2, "max_outstanding": 10}
    async with served(publish_timeout=TIMEOUT, confirm_timeout=30, **limits) as (server, producer):
        started = time.monotonic()
        publishing = asyncio.create_task(producer.publish_batch(range(100), "q"))
        await asyncio.sleep(0.1)
        assert len(await server.publishings()) == 11  # chunks of 1 and 10
        result = await publishing
        assert time.monotonic() - started <= TIMEOUT + LATE
    errors = [result.failures[index] for index in range(100)]
    assert [error.outcome for error in errors if isinstance(error, PublishError)] == (
        [Outcome.UNKNOWN] * 11 + [Outcome.NOT_SENT] * 89
    )
    assert {error.stage for error in errors[:11] if isinstance(error, PublishError)} == {"confirm"}
    assert {error.stage for error in errors[11:] if isinstance(error, PublishError)} == {"buffer"}


@every([plain, with_headers, with_template, enqueued, batch])
async def test_confirm_timeout_begins_when_the_bytes_are_written(way: Callable[[Producer], Awaitable[Any]]) -> None:
    limits = {"max_outstanding": 1, "max_buffered": 1, "batch_size": 1, "batches_in_flight": 1}
    async with served(publish_timeout=30, confirm_timeout=1.2, **limits) as (server, producer):
        first = producer.publish_nowait("first", "q")
        await asyncio.sleep(0.2)
        waiting = asyncio.create_task(failed(way(producer)))
        await asyncio.sleep(0.3)
        server.ack(1)
        await first
        error, seconds = await waiting
        assert (error.outcome, error.stage) == (Outcome.UNKNOWN, "confirm")
        assert "confirm_timeout of 1.2 s" in str(error)
        assert 1.48 <= seconds <= 1.5 + LATE
        assert len(await server.publishings()) == 2


async def reopening(opened_after: float, **options: Any) -> list[Any]:
    """What two publishings end with, when the broker closes the channel for the first and opens the next late."""

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        for _ in range(2):
            await peer.expect(Basic.Publish, ContentHeader)
            await peer.receive()
        peer.send(Channel.Close(404, "NOT_FOUND - no exchange 'missing' in vhost '/'", 60, 40), 1)
        await peer.expect(Channel.CloseOk)
        channel, opening = await peer.receive()
        assert isinstance(opening, Channel.Open)
        await asyncio.sleep(opened_after)
        peer.send(Channel.OpenOk(), channel)
        await peer.answer(Confirm.Select)
        await peer.expect(Basic.Publish, ContentHeader)
        await peer.receive()
        await asyncio.sleep(0.1)
        peer.send(Basic.Ack(1), channel)
        await peer.linger()

    async with (
        FakeServer(script) as server,
        leveret.connect(server.url, close_timeout=0.1) as client,
        client.producer(**options) as producer,
    ):
        async with asyncio.timeout(20):
            calls = (producer.publish(1, "key", exchange="missing"), producer.publish(2, "key"))
            return list(await asyncio.gather(*calls, return_exceptions=True))


async def test_confirm_timeout_stands_still_while_there_is_no_channel() -> None:
    missing, other = await reopening(0.8, confirm_timeout=0.4)
    assert isinstance(missing, ExchangeNotFound)
    assert isinstance(other, leveret.Receipt), other
    assert other.outcome is Outcome.CONFIRMED


async def test_publish_timeout_goes_on_while_there_is_no_channel() -> None:
    missing, other = await reopening(0.8, confirm_timeout=30, publish_timeout=0.4)
    assert isinstance(missing, ExchangeNotFound)
    assert isinstance(other, ConfirmTimeout)
    assert (other.outcome, other.stage) == (Outcome.UNKNOWN, "connection")


class Again:
    """A retry policy that tries again and again."""

    def __init__(self, delay: float) -> None:
        self.delay = delay

    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        return self.delay


@pytest.mark.parametrize("delay", [0.1, 60.0])
@every([plain, batch])
async def test_all_attempts_have_one_deadline(way: Callable[[Producer], Awaitable[Any]], delay: float) -> None:
    async with blocked(retry=Again(delay), confirm_timeout=0.2) as (_, producer):
        error, seconds = await failed(way(producer))
        assert error.outcome is Outcome.UNKNOWN  # of the first attempt
        assert seconds <= TIMEOUT + LATE


def bodies() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1


async def test_an_endless_iterable_ends_when_the_broker_blocks() -> None:
    async with blocked() as (_, producer):
        started = time.monotonic()
        async with asyncio.timeout(10):
            result = await producer.publish_batch(bodies(), "q")
        assert time.monotonic() - started <= 2 * TIMEOUT + LATE
        outcomes = {result.outcome(index) for index in range(result.count)}
        assert outcomes == {Outcome.UNKNOWN, Outcome.NOT_SENT}


async def test_the_time_without_a_channel_does_not_count_for_a_publishings_own_confirm_timeout() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        for _ in range(6):  # two publishings without bodies take four frames; with bodies six
            await peer.receive()
        peer.send(Channel.Close(404, "NOT_FOUND - no exchange 'bad' in vhost '/'", 60, 40), 1)
        await peer.expect(Channel.CloseOk)
        channel, _ = await peer.receive()
        await asyncio.sleep(0.8)
        peer.send(Channel.OpenOk(), channel)
        await peer.answer(Confirm.Select)
        for _ in range(3):
            await peer.receive()
        peer.send(Basic.Ack(1), channel)
        await peer.linger()

    async with producing(script, confirm_timeout=5, publish_timeout=5) as producer:
        bad = producer.publish_nowait(b"x", "q", exchange="bad")
        receipt = await producer.publish(b"x", "q", confirm_timeout=0.4)
        assert receipt.outcome is leveret.Outcome.CONFIRMED
        with pytest.raises(PublishError):
            await bad


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


async def test_s11_the_outcome_is_unknown_when_no_confirm_comes_in_time(
    proxy: FaultProxy, proxied: leveret.Client, queue: str
) -> None:
    assert leveret.ProducerSettings().confirm_timeout == 5.0
    async with proxied.producer(confirm_timeout=0.4) as producer:
        await producer.publish("confirmed", queue)
        proxy.swallow()
        started = time.monotonic()
        ticket = producer.publish_nowait("ticket", queue)
        outcomes = await asyncio.gather(
            producer.publish("one", queue), producer.publish_batch(range(10), queue), return_exceptions=True
        )
        elapsed = time.monotonic() - started
        assert 0.35 <= elapsed <= 1
        late, batch = outcomes
        assert isinstance(late, ConfirmTimeout)
        assert isinstance(late, TimeoutError)
        assert (late.outcome, late.delivery_tag) == (Outcome.UNKNOWN, 3)
        assert "0.4 s" in str(late)
        assert isinstance(batch, leveret.BatchResult)
        assert {batch.outcome(index) for index in range(10)} == {Outcome.UNKNOWN}
        with pytest.raises(ConfirmTimeout):
            await ticket
        assert producer.counters()["unknown"] == 12

        # The broker had them all: UNKNOWN is not "failed". And the producer goes on.
        proxy.resume()
        assert (await producer.publish("again", queue)).outcome is Outcome.CONFIRMED
        assert producer.outstanding == 0
    assert await proxied.purge(queue) == 14
