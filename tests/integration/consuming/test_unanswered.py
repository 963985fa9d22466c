"""A broker that does not answer basic.consume, basic.qos or basic.cancel: what the consumer says, and what it does."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Channel
from tests.support.handling import running, until
from tests.support.scripted import Scripted, connected

import leveret
from leveret.errors import NotFound, OperationTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.usefixtures("no_leftovers")

ENDLESS = float("inf")


@pytest.fixture
async def client(scripted: Scripted) -> AsyncIterator[leveret.Client]:
    async with connected(scripted, operation_timeout=0.2, close_timeout=0.2) as client:
        yield client


async def test_run_goes_on_with_another_channel_when_basic_consume_is_not_answered(
    scripted: Scripted, client: leveret.Client, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.unanswered["Basic.Consume"] = 2
    consumer = client.consumer("q")
    handled: list[Any] = []

    async def handler(value: Any, message: leveret.Message) -> None:
        handled.append(value)

    async with running(consumer, handler) as run:
        for count in (1, 2):
            await until(partial(lambda count: len(scripted.got("Basic.Consume")) == count, count))
            assert not consumer.health().live
        await until(lambda: consumer.health().live)
        scripted.deliver(1)
        await until(lambda: handled == [1])
        assert not run.done()
    opened = [number for number, _ in scripted.got("Channel.Open")]
    assert [number for number, _ in scripted.got("Basic.Consume")] == opened
    assert len(scripted.got("Channel.Close")) == len(opened) == 3
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert any("subscribes again" in text and "basic.consume" in text.lower() for text in texts)


async def test_run_raises_when_basic_consume_is_not_answered_and_it_may_not_subscribe_again(
    scripted: Scripted,
) -> None:
    scripted.unanswered["Basic.Consume"] = 1
    async with connected(scripted, operation_timeout=0.2, close_timeout=0.2, auto_recovery=False) as client:
        consumer = client.consumer("q")
        with pytest.raises(OperationTimeout):
            await consumer.run(lambda value, message: None)
        assert not consumer.health().live


async def test_subscribe_says_that_it_was_not_answered_and_the_consumer_goes_on(
    scripted: Scripted, client: leveret.Client
) -> None:
    scripted.unanswered["Basic.Consume"] = 1
    async with client.consumer("q") as consumer:
        with pytest.raises(OperationTimeout):
            await consumer.subscribe()
        assert (consumer.health().expected, consumer.health().live) == (True, False)
        await until(lambda: consumer.health().live)
        scripted.deliver(1)
        assert (await anext(consumer)).value == 1


async def test_subscribe_takes_another_channel_when_basic_qos_was_not_answered(
    scripted: Scripted, client: leveret.Client
) -> None:
    scripted.unanswered["Basic.Qos"] = 1
    async with client.consumer("q") as consumer:
        with pytest.raises(OperationTimeout):
            await consumer.subscribe()
        await consumer.subscribe()
        assert consumer.health().live
        assert len(scripted.got("Channel.Open")) == 2


async def test_iteration_goes_on_when_basic_consume_is_not_answered(scripted: Scripted, client: leveret.Client) -> None:
    scripted.unanswered["Basic.Consume"] = 1
    async with client.consumer("q") as consumer:
        next_message = asyncio.create_task(anext(consumer))
        await until(lambda: consumer.health().live)
        scripted.deliver(1)
        assert (await next_message).value == 1


async def test_the_answer_is_waited_for_until_its_deadline_when_the_caller_gave_up(
    scripted: Scripted, client: leveret.Client
) -> None:
    scripted.unanswered["Basic.Consume"] = 1
    async with client.consumer("q") as consumer:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await consumer.subscribe()
        assert not consumer.health().live
        await until(lambda: consumer.health().live)
        assert len(scripted.got("Basic.Consume")) == 2


async def test_a_consumer_is_live_when_the_answer_comes_after_its_caller_gave_up(
    scripted: Scripted, client: leveret.Client
) -> None:
    asked = asyncio.Event()
    scripted.instead["Basic.Consume"] = lambda *_: asked.set()
    async with client.consumer("q") as consumer:
        subscribing = asyncio.create_task(consumer.subscribe())
        await asked.wait()
        subscribing.cancel()
        await asyncio.wait([subscribing])
        assert not consumer.health().live
        scripted.answer(scripted.peers[-1], *scripted.got("Basic.Consume")[-1])
        await until(lambda: consumer.health().live)


@pytest.mark.parametrize("method", ["Basic.Qos", "Basic.Consume"])
async def test_resume_subscribes_on_another_channel_when_it_is_not_answered(
    scripted: Scripted, client: leveret.Client, method: str
) -> None:
    async with client.consumer("q") as consumer:
        await consumer.subscribe()
        await consumer.pause()
        scripted.unanswered[method] = 1
        with pytest.raises(OperationTimeout):
            await consumer.resume()
        assert not consumer.health().live
        await until(lambda: consumer.health().live)
        assert len(scripted.got("Channel.Open")) == 2


async def test_deliveries_go_on_as_before_when_a_new_prefetch_is_not_answered(
    scripted: Scripted, client: leveret.Client
) -> None:
    async with client.consumer("q", prefetch=10) as consumer:
        await consumer.subscribe()
        scripted.unanswered["Basic.Consume"] = 1
        with pytest.raises(OperationTimeout):
            await consumer.set_prefetch(20)
        assert consumer.health().live
        assert consumer.prefetch == 10
        (_, first), (_, second) = scripted.got("Basic.Consume")
        await until(lambda: scripted.got("Basic.Cancel"))
        assert [cancel.consumer_tag for _, cancel in scripted.got("Basic.Cancel")] == [second.consumer_tag]
        assert first.consumer_tag != second.consumer_tag
        assert len(scripted.got("Channel.Open")) == 1


async def test_acknowledgements_leave_before_the_channel_is_given_up(
    scripted: Scripted, client: leveret.Client
) -> None:
    async with client.consumer("q", ack="manual", ack_delay=1, prefetch=100) as consumer:
        await consumer.subscribe()
        scripted.deliver(1, 2)
        first = await anext(consumer)
        await consumer.pause()  # gives the second one back
        first.ack()
        scripted.unanswered["Basic.Consume"] = 1
        with pytest.raises(OperationTimeout):
            await consumer.resume()
        await until(lambda: consumer.health().live)
    names = [value.name for _, value in scripted.received]
    assert names.index("Basic.Ack") < names.index("Channel.Close")


async def test_another_channel_is_opened_when_basic_qos_is_not_answered_after_a_loss(
    scripted: Scripted, client: leveret.Client
) -> None:
    consumer = client.consumer("q")
    async with running(consumer, lambda value, message: None):
        await until(lambda: consumer.health().live)
        scripted.unanswered["Basic.Qos"] = 1
        scripted.peers[-1].send(Channel.Close(406, "lost", 0, 0), 1)
        await until(lambda: len(scripted.got("Channel.Open")) >= 3)
        await until(lambda: consumer.health().live)


@pytest.mark.parametrize("state", ["subscribing", "paused"])
async def test_a_channel_that_is_closed_as_it_is_opened_is_no_channel(
    scripted: Scripted, client: leveret.Client, state: str
) -> None:
    def open_and_close(peer: Any, channel: int, value: Any) -> None:
        del scripted.instead["Channel.Open"]
        scripted.answer(peer, channel, value)
        peer.send(Channel.Close(404, "gone", 0, 0), channel)

    consumer = client.consumer("q")
    if state == "subscribing":
        scripted.instead["Channel.Open"] = open_and_close
        with pytest.raises(NotFound):
            await consumer.subscribe()
        await consumer.subscribe()
    else:
        await consumer.subscribe()
        await consumer.pause()
        scripted.instead["Channel.Open"] = open_and_close
        scripted.peers[-1].send(Channel.Close(406, "lost", 0, 0), 1)
        await until(lambda: len(scripted.got("Channel.Open")) >= 2)
        await asyncio.sleep(0.1)
        await consumer.resume()
    await until(lambda: consumer.health().live)
    await consumer.close()


@pytest.mark.parametrize("gives_up", [False, True])
async def test_pause_gives_back_what_was_not_begun_when_basic_cancel_is_not_answered(
    scripted: Scripted, client: leveret.Client, gives_up: bool
) -> None:
    scripted.unanswered["Basic.Cancel"] = ENDLESS
    async with client.consumer("q", ack="manual") as consumer:
        await consumer.subscribe()
        scripted.deliver(1, 2, 3)
        message = await anext(consumer)
        with pytest.raises(TimeoutError if gives_up else OperationTimeout):
            async with asyncio.timeout(0.05 if gives_up else None):
                await consumer.pause()
        await until(lambda: scripted.given_back() == [2, 3])
        message.ack()
        health = consumer.health()
        assert (health.live, health.waiting) == (False, 0)


async def test_drain_gives_back_what_was_not_begun_when_its_time_is_shorter_than_the_answer(
    scripted: Scripted, client: leveret.Client
) -> None:
    scripted.unanswered["Basic.Cancel"] = ENDLESS
    async with client.consumer("q", ack="manual") as consumer:
        await consumer.subscribe()
        scripted.deliver(1, 2, 3)
        await anext(consumer)
        assert not await consumer.drain(timeout=0.05)
        await until(lambda: scripted.given_back() == [2, 3])


async def test_drain_gives_back_what_was_not_begun_when_basic_cancel_is_not_answered(
    scripted: Scripted, client: leveret.Client
) -> None:
    scripted.unanswered["Basic.Cancel"] = ENDLESS
    async with client.consumer("q", ack="manual") as consumer:
        await consumer.subscribe()
        scripted.deliver(1, 2, 3)
        await anext(consumer)
        await consumer.drain(timeout=5)
        await until(lambda: scripted.given_back() == [2, 3])


async def test_close_closes_the_channel_at_once_when_basic_cancel_is_not_answered(
    scripted: Scripted, client: leveret.Client
) -> None:
    scripted.unanswered["Basic.Cancel"] = ENDLESS
    consumer = client.consumer("q", ack="manual")
    await consumer.subscribe()
    scripted.deliver(1, 2)
    await anext(consumer)
    pausing = asyncio.create_task(consumer.pause())
    await until(lambda: scripted.got("Basic.Cancel"))
    await consumer.close()
    assert scripted.got("Channel.Close")
    with pytest.raises(leveret.errors.ChannelClosed):
        await pausing
