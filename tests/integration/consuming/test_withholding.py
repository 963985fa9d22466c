"""Deliveries that are withheld for a while: the broker has no consumer tag, and the consumer stays CONSUMING."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Channel
from tests.support.handling import Held, Queues, ends, running, until
from tests.support.queues import consumer_count
from tests.support.scripted import Scripted, connected

from leveret.consuming.states import ConsumerState
from leveret.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import leveret
    from leveret.consuming.subscription import Subscription

pytestmark = pytest.mark.usefixtures("no_leftovers")

ENDLESS = float("inf")


@pytest.fixture
async def client_of_script(scripted: Scripted) -> AsyncIterator[leveret.Client]:
    """A client of the scripted broker."""
    async with connected(scripted, operation_timeout=0.3, close_timeout=0.2) as client:
        yield client


def subscription_of(consumer: leveret.Consumer[Any]) -> Subscription:
    """The part that can withhold deliveries."""
    return consumer._subscription


def tags_at(scripted: Scripted) -> set[str]:
    """The consumer tags that the scripted broker has on the channel that was opened last."""
    last = scripted.got("Channel.Open")[-1][0], scripted.peers[-1]
    tags: set[str] = set()
    for number, value in scripted.received:
        if value.name == "Channel.Open":
            tags.clear()  # the consumer has one channel at a time
        elif number == last[0] and value.name == "Basic.Consume":
            tags.add(value.consumer_tag)
        elif number == last[0] and value.name == "Basic.Cancel":
            tags.discard(value.consumer_tag)
    return tags


async def test_the_broker_has_no_consumer_while_deliveries_are_withheld_and_none_is_lost(queues: Queues) -> None:
    await queues.publish(*range(20))
    consumer = queues.client.consumer(queues.work, prefetch=5)
    handler = Held()
    async with running(consumer, handler) as task:
        await handler.began.wait()
        subscription_of(consumer).withhold("a test")
        async with asyncio.timeout(5):
            while await consumer_count(queues.client, queues.work):
                pass
        await until(lambda: not consumer.health().live)
        assert consumer.state is ConsumerState.CONSUMING
        assert consumer.health(), "nothing is wrong with it"
        handler.go.set()
        # What was delivered is handled and acknowledged.
        delivered = consumer.counters()["delivered"]
        await until(lambda: consumer.counters()["acked"] == delivered)
        assert handler.seen == list(range(delivered))
        assert delivered < 20
        channel = subscription_of(consumer).channel
        subscription_of(consumer).allow("a test")
        await until(lambda: handler.seen == list(range(20)))
        assert subscription_of(consumer).channel is channel
        assert consumer.health().live
        assert await consumer.drain(5)
        await task
    assert await queues.remaining() == []


async def test_the_last_of_several_reasons_lets_the_deliveries_go_on(
    scripted: Scripted, client_of_script: leveret.Client
) -> None:
    async with client_of_script.consumer("q") as consumer:
        await consumer.subscribe()
        subscription = subscription_of(consumer)
        for reason in ("a", "b", "a"):
            subscription.withhold(reason)
        await until(lambda: len(scripted.got("Basic.Cancel")) >= 1)
        await until(lambda: not consumer.health().live)
        subscription.allow("a")
        subscription.allow("never withheld")
        await asyncio.sleep(0.05)
        assert len(scripted.got("Basic.Consume")) == 1
        subscription.allow("b")
        await until(lambda: consumer.health().live)
        (_, first), (_, second) = scripted.got("Basic.Consume")
        assert first.consumer_tag != second.consumer_tag
        assert len(scripted.got("Channel.Open")) == 1


async def test_nothing_is_sent_when_deliveries_are_allowed_again_at_once(
    scripted: Scripted, client_of_script: leveret.Client
) -> None:
    async with client_of_script.consumer("q") as consumer:
        await consumer.subscribe()
        subscription_of(consumer).withhold("a")
        subscription_of(consumer).allow("a")
        await until(lambda: not subscription_of(consumer).is_withheld)
        assert consumer.health().live
        assert not scripted.got("Basic.Cancel")


async def test_a_consumer_that_is_withheld_before_it_begins_subscribes_when_it_is_allowed(
    scripted: Scripted, client_of_script: leveret.Client
) -> None:
    async with client_of_script.consumer("q") as consumer:
        subscription_of(consumer).withhold("a")
        await consumer.subscribe()
        assert consumer.state is ConsumerState.CONSUMING
        assert not scripted.got("Basic.Consume")
        subscription_of(consumer).allow("a")
        await until(lambda: consumer.health().live)
        scripted.deliver(1)
        assert (await anext(consumer)).value == 1


async def test_a_prefetch_that_is_set_while_deliveries_are_withheld_is_used_when_they_go_on(
    scripted: Scripted, client_of_script: leveret.Client
) -> None:
    async with client_of_script.consumer("q", prefetch=10) as consumer:
        await consumer.subscribe()
        subscription_of(consumer).withhold("a")
        await until(lambda: not consumer.health().live)
        await consumer.set_prefetch(20)
        assert len(scripted.got("Basic.Qos")) == 1
        subscription_of(consumer).allow("a")
        await until(lambda: consumer.health().live)
        assert [qos.prefetch_count for _, qos in scripted.got("Basic.Qos")] == [10, 20]


async def test_a_pause_and_a_reason_are_two_things(scripted: Scripted, client_of_script: leveret.Client) -> None:
    async with client_of_script.consumer("q") as consumer:
        await consumer.subscribe()
        subscription = subscription_of(consumer)
        subscription.withhold("a")
        await consumer.pause()
        subscription.allow("a")
        await asyncio.sleep(0.05)
        assert not consumer.health().live, "it is paused"
        subscription.withhold("a")
        await consumer.resume()
        assert consumer.state is ConsumerState.CONSUMING
        assert len(scripted.got("Basic.Consume")) == 1
        subscription.allow("a")
        await until(lambda: consumer.health().live)
    assert len(scripted.got("Basic.Cancel")) == 1


@pytest.mark.parametrize("what", ["channel", "connection"])
async def test_a_channel_without_a_consumer_is_opened_after_a_loss_while_deliveries_are_withheld(
    scripted: Scripted, client_of_script: leveret.Client, what: str
) -> None:
    consumer = client_of_script.consumer("q")
    async with running(consumer, lambda value, message: None):
        await until(lambda: consumer.health().live)
        subscription_of(consumer).withhold("a")
        await until(lambda: not consumer.health().live)
        if what == "channel":
            scripted.peers[-1].send(Channel.Close(406, "lost", 0, 0), 1)
        else:
            scripted.peers[-1].hang_up()
        await until(lambda: len(scripted.got("Channel.Open")) >= 2)
        await until(lambda: subscription_of(consumer).wants_deliveries)
        await asyncio.sleep(0.05)
        assert len(scripted.got("Basic.Consume")) == 1
        subscription_of(consumer).allow("a")
        await until(lambda: consumer.health().live)
        assert len(scripted.got("Channel.Open")) == 2


async def test_the_backoff_is_kept_when_deliveries_are_allowed_between_two_attempts_to_subscribe_again(
    scripted: Scripted,
) -> None:
    async with connected(scripted, recovery_max_delay=0.5) as client:
        consumer = client.consumer("q")
        async with running(consumer, lambda value, message: None):
            await until(lambda: consumer.health().live)
            subscription_of(consumer).withhold("a")
            scripted.peers[-1].send(Channel.Close(406, "lost", 0, 0), 1)
            # The backoff is drawn at random and may be shorter than a step of `until`.
            async with asyncio.timeout(10):
                while subscription_of(consumer).wants_deliveries:  # noqa: ASYNC110 - it has no event
                    await asyncio.sleep(0)
            opened = len(scripted.got("Channel.Open"))
            subscription_of(consumer).allow("a")
            await asyncio.sleep(0)
            assert len(scripted.got("Channel.Open")) == opened
            await until(lambda: consumer.health().live)
            assert len(tags_at(scripted)) == 1


async def test_deliveries_go_on_when_basic_cancel_is_not_answered(
    scripted: Scripted, client_of_script: leveret.Client, caplog: pytest.LogCaptureFixture
) -> None:
    scripted.unanswered["Basic.Cancel"] = 1
    async with client_of_script.consumer("q") as consumer:
        await consumer.subscribe()
        subscription_of(consumer).withhold("a")
        await until(lambda: "Basic.Cancel" in caplog.text or "basic.cancel" in caplog.text)
        subscription_of(consumer).allow("a")
        await until(lambda: consumer.health().live)


@pytest.mark.parametrize("method", ["Basic.Qos", "Basic.Consume"])
async def test_another_channel_is_opened_when_the_broker_does_not_answer_what_follows_allow(
    scripted: Scripted, client_of_script: leveret.Client, method: str
) -> None:
    consumer = client_of_script.consumer("q")
    async with running(consumer, lambda value, message: None):
        await until(lambda: consumer.health().live)
        subscription_of(consumer).withhold("a")
        await until(lambda: not consumer.health().live)
        scripted.unanswered[method] = 1
        subscription_of(consumer).allow("a")
        await until(lambda: len(scripted.got("Channel.Open")) >= 2)
        await until(lambda: consumer.health().live)


async def test_run_raises_when_the_queue_is_missing_when_deliveries_are_allowed_again(
    scripted: Scripted, client_of_script: leveret.Client
) -> None:
    consumer = client_of_script.consumer("q", queue_missing_timeout=0.2)
    async with running(consumer, lambda value, message: None) as task:
        await until(lambda: consumer.health().live)
        subscription_of(consumer).withhold("a")
        await until(lambda: not consumer.health().live)
        scripted.instead["Basic.Consume"] = lambda peer, channel, _: peer.send(
            Channel.Close(404, "NOT_FOUND - no queue 'q' in vhost '/'", 60, 20), channel
        )
        subscription_of(consumer).allow("a")
        await ends(task)
        with pytest.raises(NotFound):
            await task


@pytest.mark.parametrize("end", ["stop", "cancel", "drain", "close"])
@pytest.mark.parametrize("moment", ["withheld", "cancelling", "subscribing"])
async def test_a_consumer_ends_at_once_whatever_withhold_and_allow_are_at(
    scripted: Scripted, client_of_script: leveret.Client, end: str, moment: str
) -> None:
    consumer = client_of_script.consumer("q")
    async with running(consumer, lambda value, message: None) as task:
        await until(lambda: consumer.health().live)
        subscription = subscription_of(consumer)
        if moment == "cancelling":
            scripted.unanswered["Basic.Cancel"] = 1
        subscription.withhold("a")
        await until(lambda: scripted.got("Basic.Cancel"))
        if moment != "cancelling":
            await until(lambda: not subscription._adjusting)
        if moment == "subscribing":
            scripted.unanswered["Basic.Consume"] = 1
            subscription.allow("a")
            await until(lambda: len(scripted.got("Basic.Consume")) >= 2)
        if end == "stop":
            consumer.stop()
        elif end == "drain":
            assert await consumer.drain(5)
        else:
            await getattr(consumer, end)()
        await ends(task)
        subscription.withhold("b")
        subscription.allow("b")
        assert consumer.state in (ConsumerState.STOPPING, ConsumerState.ENDING, ConsumerState.CLOSED)


@pytest.mark.parametrize("seed", range(40))
async def test_what_the_broker_has_agrees_with_the_state_after_any_calls_in_any_order(seed: int) -> None:
    """Calls, losses and pauses overlap; when all is quiet the broker has a tag if, and only if, it should."""
    chance = random.Random(seed)
    scripted = Scripted()
    async with connected(scripted, recovery_max_delay=0.02) as client:
        consumer = client.consumer("q")
        async with running(consumer, lambda value, message: None) as task:
            await until(lambda: consumer.health().live)
            subscription = subscription_of(consumer)
            reasons: set[str] = set()
            calls: list[asyncio.Task[Any]] = []
            for _ in range(12):
                what = chance.choice(["withhold", "allow", "withhold", "allow", "pause", "resume", "prefetch", "loss"])
                reason = chance.choice("ab")
                if what == "withhold":
                    subscription.withhold(reason)
                    reasons.add(reason)
                elif what == "allow":
                    subscription.allow(reason)
                    reasons.discard(reason)
                elif what == "pause":
                    calls.append(asyncio.create_task(consumer.pause()))
                elif what == "resume":
                    calls.append(asyncio.create_task(consumer.resume()))
                elif what == "prefetch":
                    calls.append(asyncio.create_task(consumer.set_prefetch(chance.randint(1, 100))))
                elif subscription.wants_deliveries:
                    assert subscription.channel is not None
                    scripted.peers[-1].send(Channel.Close(406, "lost", 0, 0), subscription.channel.number)
                await asyncio.sleep(chance.choice([0, 0, 0, 0.001, 0.005]))
            # A call whose channel was lost says so.
            await asyncio.gather(*calls, return_exceptions=True)

            def is_quiet() -> bool:
                wanted = consumer.state is ConsumerState.CONSUMING and not reasons
                return (
                    subscription.wants_deliveries
                    and len(tags_at(scripted)) == len(subscription.tags) == wanted
                    and consumer.health().live is wanted
                )

            await until(is_quiet)
            assert consumer.health()
            assert not task.done()
            if consumer.state is ConsumerState.PAUSED:
                await consumer.resume()
            for reason in reasons:
                subscription.allow(reason)
            await until(lambda: consumer.health().live)
            assert len(tags_at(scripted)) == 1
