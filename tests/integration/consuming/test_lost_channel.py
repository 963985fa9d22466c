"""A channel is lost while messages wait for a handler: which are handled all the same, and which come again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Channel
from tests.support.handling import running, until
from tests.support.scripted import Scripted, connected

from leveret.errors import PreconditionFailed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import leveret

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.fixture
async def client(scripted: Scripted) -> AsyncIterator[leveret.Client]:
    async with connected(scripted) as client:
        yield client


def lose_channel(scripted: Scripted) -> None:
    """Closes the consumer's channel."""
    channel, _ = scripted.got("Basic.Consume")[-1]
    scripted.peers[-1].send(Channel.Close(406, "lost", 0, 0), channel)


class Slow:
    """A handler that goes on when it is told."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.go = asyncio.Event()

    async def __call__(self, value: Any, message: leveret.Message) -> None:
        self.begun.append(value)
        await self.go.wait()


async def lost_and_subscribed_again(scripted: Scripted, consumer: leveret.Consumer[Any]) -> None:
    before = len(scripted.got("Basic.Consume"))
    lose_channel(scripted)
    await until(lambda: len(scripted.got("Basic.Consume")) > before)
    await until(lambda: consumer.health().live)


@pytest.mark.parametrize("ordered_by", [None, "routing_key"])
@pytest.mark.parametrize("ack", ["none", "handoff"])
async def test_what_the_broker_has_forgotten_is_handled_in_order_when_the_channel_is_lost(
    scripted: Scripted, client: leveret.Client, ack: Any, ordered_by: str | None
) -> None:
    consumer = client.consumer("q", ack=ack, ack_delay=0, ordered_by=ordered_by, concurrency=2)
    slow = Slow()
    async with running(consumer, slow):
        await until(lambda: consumer.health().live)
        scripted.deliver(1, 2, 3, 4)
        await until(lambda: consumer.health().waiting == (2 if ordered_by is None else 3))
        if ack == "handoff":
            await until(lambda: scripted.got("Basic.Ack"))
        await lost_and_subscribed_again(scripted, consumer)
        scripted.deliver(1, 2, bodies="1{}")
        await until(lambda: consumer.counters()["delivered"] == 6)
        slow.go.set()
        await until(lambda: slow.begun == [1, 2, 3, 4, 11, 12])


async def test_what_the_broker_has_forgotten_is_handled_before_run_raises(scripted: Scripted) -> None:
    slow = Slow()
    async with (
        connected(scripted, auto_recovery=False) as client,
        running(consumer := client.consumer("q", ack="none"), slow) as run,
    ):
        await until(lambda: consumer.health().live)
        scripted.deliver(1, 2, 3)
        await until(lambda: consumer.health().waiting == 2)
        lose_channel(scripted)
        await until(lambda: not consumer.health().live)
        slow.go.set()
        await asyncio.wait([run])
        assert isinstance(run.exception(), PreconditionFailed)
    assert slow.begun == [1, 2, 3]


async def test_what_was_not_acknowledged_comes_again_with_handoff_when_the_channel_is_lost(
    scripted: Scripted, client: leveret.Client
) -> None:
    consumer = client.consumer("q", ack="handoff", handoff_size=2, ack_delay=0)
    slow = Slow()
    async with running(consumer, slow):
        await until(lambda: consumer.health().live)
        scripted.deliver(1, 2, 3, 4)
        await until(lambda: consumer.health().waiting == 3)
        await until(lambda: [ack.delivery_tag for _, ack in scripted.got("Basic.Ack")] == [2])
        await lost_and_subscribed_again(scripted, consumer)
        assert consumer.health().waiting == 1
        scripted.deliver(1, 2, bodies="1{}", redelivered=True)
        await until(lambda: consumer.counters()["delivered"] == 6)
        slow.go.set()
        await until(lambda: slow.begun == [1, 2, 11, 12])


async def test_an_acknowledgement_that_was_not_written_has_its_message_come_again(
    scripted: Scripted, client: leveret.Client
) -> None:
    consumer = client.consumer("q", ack="handoff", ack_delay=1, prefetch=100)
    slow = Slow()
    async with running(consumer, slow):
        await until(lambda: consumer.health().live)
        scripted.deliver(1, 2)
        await until(lambda: consumer.health().waiting == 1)
        await lost_and_subscribed_again(scripted, consumer)
        assert not scripted.got("Basic.Ack")
        assert consumer.health().waiting == 0


async def test_unbegun_deliveries_are_dropped_when_they_are_acknowledged_after_their_handlers(
    scripted: Scripted, client: leveret.Client
) -> None:
    consumer = client.consumer("q")
    slow = Slow()
    async with running(consumer, slow):
        await until(lambda: consumer.health().live)
        scripted.deliver(1, 2, 3)
        await until(lambda: consumer.health().waiting == 2)
        await lost_and_subscribed_again(scripted, consumer)
        scripted.deliver(1, 2, 3, bodies="1{}", redelivered=True)
        slow.go.set()
        await until(lambda: slow.begun == [1, 11, 12, 13])


async def test_a_batch_has_no_message_of_a_lost_channel(scripted: Scripted, client: leveret.Client) -> None:
    async with client.batches("q", size=4, wait=5) as batches:
        batch = asyncio.create_task(anext(batches))
        await until(lambda: batches.consumer.health().live)
        scripted.deliver(1, 2)
        await until(lambda: batches.consumer.counters()["delivered"] == 2)
        await asyncio.sleep(0.01)
        await lost_and_subscribed_again(scripted, batches.consumer)
        scripted.deliver(1, 2, 3, 4, bodies="1{}", redelivered=True)
        async with asyncio.timeout(8):
            assert (await batch).values == [11, 12, 13, 14]


async def test_a_batch_keeps_what_the_broker_has_forgotten_when_its_wait_is_cancelled(
    scripted: Scripted, client: leveret.Client
) -> None:
    async with client.batches("q", size=4, wait=5, ack="none") as batches:
        waiting = asyncio.create_task(anext(batches))
        await until(lambda: batches.consumer.health().live)
        scripted.deliver(1, 2)
        await until(lambda: batches.consumer.counters()["delivered"] == 2)
        await asyncio.sleep(0.01)
        await lost_and_subscribed_again(scripted, batches.consumer)
        waiting.cancel()
        await asyncio.wait([waiting])
        scripted.deliver(1, 2, bodies="1{}")
        assert (await anext(batches)).values == [1, 2, 11, 12]
