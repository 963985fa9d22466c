"""How a consumer ends: closed by its own handler, by errors that are no failures, and while it is closed or lost."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Basic, Channel
from tests.support.handling import running, until
from tests.support.scripted import Scripted, connected

from leveret.consuming.failing.error_policy import Park
from leveret.consuming.states import ConsumerState
from leveret.errors import PreconditionFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import leveret

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.fixture
async def client(scripted: Scripted) -> AsyncIterator[leveret.Client]:
    async with connected(scripted, operation_timeout=2, close_timeout=2) as client:
        yield client


def lose_channel(scripted: Scripted) -> None:
    channel, _ = scripted.got("Channel.Open")[-1]
    scripted.peers[-1].send(Channel.Close(406, "lost", 0, 0), channel)


@pytest.mark.parametrize("concurrency", [1, 2])
@pytest.mark.parametrize("ack", ["coalesced", "handoff", "none"])
async def test_run_returns_when_its_handler_closes_the_consumer(
    scripted: Scripted, client: leveret.Client, ack: Any, concurrency: int
) -> None:
    consumer = client.consumer("q", ack=ack, concurrency=concurrency)
    begun: list[Any] = []

    async def handler(value: Any, message: leveret.Message) -> None:
        begun.append(value)
        await consumer.close()

    async with running(consumer, handler) as run:
        await until(lambda: consumer.health().live)
        scripted.deliver(1, 2, 3)
        async with asyncio.timeout(5):
            await asyncio.wait([run])
        run.result()
    assert begun == [1, 2][:concurrency] or begun == [1]
    assert scripted.got("Channel.Close")
    if ack == "coalesced":
        assert not scripted.got("Basic.Ack")


class Unusual(GeneratorExit):
    """Like KeyboardInterrupt and SystemExit, it is no failure of a message. (Those end the event loop of a test.)"""


async def test_run_raises_what_ends_more_than_a_message_which_goes_back(
    scripted: Scripted, client: leveret.Client
) -> None:
    consumer = client.consumer("q", concurrency=2)

    async def handler(value: Any, message: leveret.Message) -> None:
        raise Unusual

    async with running(consumer, handler) as run:
        await until(lambda: consumer.health().live)
        scripted.deliver(1, 2)
        async with asyncio.timeout(5):
            await asyncio.wait([run])
        error = run.exception()
        assert isinstance(error, BaseExceptionGroup)
        assert isinstance(error.exceptions[0], Unusual)
    assert consumer.state is ConsumerState.CLOSED
    assert consumer.health().working == 0
    assert not scripted.got("Basic.Ack")
    assert scripted.got("Channel.Close")


async def test_an_acknowledgement_of_a_lost_channel_does_not_go_to_the_next(
    scripted: Scripted, client: leveret.Client
) -> None:
    async with client.consumer("q", ack="manual", ack_delay=0) as consumer:
        await consumer.subscribe()
        scripted.deliver(1)
        old = await anext(consumer)
        lose_channel(scripted)
        await until(lambda: len(scripted.got("Basic.Consume")) >= 2)
        await until(lambda: consumer.health().live)
        scripted.deliver(1, redelivered=True)
        new = await anext(consumer)
        assert not old.ack()
        assert not old.requeue()
        await asyncio.sleep(0.02)
        assert not scripted.got("Basic.Ack")
        assert not scripted.got("Basic.Reject")
        assert new.ack()
        await until(lambda: len(scripted.got("Basic.Ack")) >= 1)


async def test_the_prefetch_is_the_last_one_on_the_next_channel(scripted: Scripted, client: leveret.Client) -> None:
    async with client.consumer("q", prefetch=10) as consumer:
        await consumer.subscribe()
        await consumer.set_prefetch(20)
        lose_channel(scripted)
        await until(lambda: len(scripted.got("Basic.Consume")) >= 3)
        await until(lambda: consumer.health().live)
    assert [qos.prefetch_count for _, qos in scripted.got("Basic.Qos")] == [10, 20, 20]


async def test_a_channel_that_is_lost_before_the_consumer_subscribes_is_replaced(
    scripted: Scripted, client: leveret.Client
) -> None:
    async with client.consumer("q") as consumer:
        lose_channel(scripted)
        await asyncio.sleep(0.05)
        await consumer.subscribe()
        assert consumer.health().live


async def test_a_channel_that_is_lost_before_the_consumer_subscribes_ends_it_without_recovery(
    scripted: Scripted,
) -> None:
    async with connected(scripted, auto_recovery=False) as client, client.consumer("q") as consumer:
        lose_channel(scripted)
        await asyncio.sleep(0.05)
        with pytest.raises(PreconditionFailed):
            await consumer.subscribe()


async def test_the_producer_of_copies_is_closed_when_close_is_cancelled(
    scripted: Scripted, client: leveret.Client
) -> None:
    scripted.instead["Basic.Publish"] = lambda peer, channel, _: peer.send(Basic.Ack(1), channel)
    consumer = client.consumer("q", on_error=Park())

    async def handler(value: Any, message: leveret.Message) -> None:
        raise ValueError

    async with running(consumer, handler) as run:
        await until(lambda: consumer.health().live)
        scripted.deliver(1)
        await until(lambda: consumer.counters()["parked"] == 1)
        closed = len(scripted.got("Channel.Close"))
        scripted.unanswered["Channel.Close"] = 1
        run.cancel()
        await until(lambda: len(scripted.got("Channel.Close")) == closed + 1)
        run.cancel()
        # Without its consumer's channel being closed, the producer is, and leaves its channel.
        await until(lambda: len(client.connection.confirm_channels) == 1, seconds=5)
    assert not consumer.health().live


@pytest.mark.parametrize("ack", ["handoff", "none"])
async def test_the_log_says_that_a_message_without_a_key_is_lost(
    scripted: Scripted, client: leveret.Client, ack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def key(message: leveret.Message) -> int:
        raise ValueError

    consumer = client.consumer("q", ack=ack, ordered_by=key)
    async with running(consumer, lambda value, message: None):
        await until(lambda: consumer.health().live)
        scripted.deliver(1)
        await until(lambda: consumer.counters()["undecodable"] == 1)
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert not any("dead-lettered" in text for text in texts), texts


async def test_a_batch_is_taken_when_its_time_ends_as_a_message_comes(
    scripted: Scripted, client: leveret.Client
) -> None:
    async with client.batches("q", size=2, wait=0.001) as batches:
        await batches.consumer.subscribe()
        taken = 0
        tag = 0
        async with asyncio.timeout(10):
            while taken < 100:
                tag += 1
                scripted.deliver(tag)
                taken += len(await anext(batches))


@pytest.mark.parametrize("ack", ["handoff", "none"])
async def test_a_message_whose_copy_is_not_published_is_held_and_the_log_says_that_it_is_lost_at_the_end(
    scripted: Scripted, client: leveret.Client, ack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.instead["Basic.Publish"] = lambda peer, channel, _: peer.send(Basic.Nack(1), channel)
    consumer = client.consumer("q", ack=ack, on_error=Park())

    async def handler(value: Any, message: leveret.Message) -> None:
        raise ValueError

    async with running(consumer, handler):
        await until(lambda: consumer.health().live)
        scripted.deliver(1)
        await until(lambda: any("copied" in record.getMessage() for record in caplog.records))
        await until(lambda: consumer.counters()["held"] == 1)
    assert any("is held, because it could not be copied" in record.getMessage() for record in caplog.records)
    (lost,) = [text for record in caplog.records if "dropped" in (text := record.getMessage())]
    assert "the consumer ended before its next attempt; the broker does not have it any more" in lost
