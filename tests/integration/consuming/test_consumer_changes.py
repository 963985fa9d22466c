"""What changes while a consumer runs: prefetch, pauses, the end; broken off in the middle, or several at once."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from pamqp.commands import Basic
from tests.support.handling import Queues, broken_off, running, until
from tests.support.peers import ANSWERS, FakeServer, Peer
from tests.support.plugins import plugin
from tests.support.proxy import Proxy
from tests.support.queues import taken

import leveret
from leveret.plugins import PluginRegistry, PolicySpec

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.brokers import Broker
    from tests.support.rabbitmq import RabbitMQNode

pytestmark = pytest.mark.usefixtures("no_leftovers")


# ---------------------------------------------------------------------- without acknowledgements


async def test_closing_goes_quickly_when_a_consumer_without_acknowledgements_is_far_behind(queues: Queues) -> None:
    await queues.publish(*["x" * 1000] * 20_000)
    consumer = queues.client.consumer(queues.work, ack="none", prefetch=1)

    async def handler(value: str, message: leveret.Message) -> None:
        await asyncio.sleep(0.05)
        consumer.stop()

    async with asyncio.timeout(4):
        await consumer.run(handler)
        assert consumer._connection.transport.reading
        # The connection is shared: others still hear from the broker.
        assert await queues.ready() >= 0
    await queues.client.purge(queues.work)


async def test_draining_is_not_held_up_when_reading_was_paused(queues: Queues) -> None:
    await queues.publish(*range(5_000))
    async with leveret.connect(queues.client.settings.replace(operation_timeout=0.5)) as client:
        consumer = client.consumer(queues.work, ack="none", prefetch=1)
        seen: list[int] = []

        async def handler(value: int, message: leveret.Message) -> None:
            seen.append(value)
            if len(seen) == 1:
                await asyncio.sleep(1)

        async with running(consumer, handler) as task:
            await until(lambda: seen and not consumer._connection.transport.reading)
            assert await consumer.drain(20)
            await task
        assert len(seen) == consumer.counters()["delivered"]
        assert [*seen, *await queues.remaining()] == list(range(5_000))


async def test_reading_goes_on_only_when_no_consumer_is_behind(queues: Queues, name: Callable[[str], str]) -> None:
    other = await Queues(queues.client, name).declare()
    await queues.publish(*range(3_000))
    slow = queues.client.consumer(queues.work, ack="none", prefetch=1)
    quick = queues.client.consumer(other.work, ack="none", prefetch=1)
    async with slow, quick:
        await slow.subscribe()
        await until(lambda: slow.health().waiting > 10)
        transport = slow._connection.transport
        assert not transport.reading
        # As if the other one had been behind and is not any more.
        quick._connection = slow._connection
        quick._reading_paused = True
        transport.pause_reading()
        quick._resume_reading()
        assert not transport.reading, "the first one is still behind"
        await slow.close()
        assert transport.reading


# ---------------------------------------------------------------------- changes that are broken off


@pytest.mark.parametrize("turns", [*range(8), None], ids=str)
async def test_the_prefetch_can_be_changed_again_when_a_change_was_broken_off(
    queues: Queues, turns: int | None
) -> None:
    consumer = queues.client.consumer(queues.work, prefetch=5)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)

    async with running(consumer, handler):
        await until(lambda: consumer.health().live)
        for prefetch in (10, 20, 30):
            if turns is None:
                change = asyncio.create_task(consumer.set_prefetch(prefetch))
                while len(consumer._subscription.tags) < 2:  # noqa: ASYNC110 - it lasts for a moment only
                    await asyncio.sleep(0)
                change.cancel()
                await asyncio.wait([change])
            else:
                await broken_off(consumer.set_prefetch(prefetch), turns)
        await consumer.set_prefetch(40)
        assert consumer.prefetch == 40
        await queues.publish(*range(5))
        await until(lambda: len(seen) == 5)
        assert await consumer_count(queues) == 1


async def test_the_prefetch_stays_as_it_was_when_its_change_was_broken_off(queues: Queues) -> None:
    async with queues.client.consumer(queues.work, prefetch=5) as consumer:
        await consumer.subscribe()
        await broken_off(consumer.set_prefetch(1000), 1)
        assert consumer.prefetch == 5


async def consumer_count(queues: Queues) -> int:
    """How many consumers the queue has."""
    channel = await queues.client.channel()
    try:
        return (await channel.queue_declare(queues.work, passive=True)).consumer_count or 0
    finally:
        await channel.close()


@pytest.mark.parametrize("turns", range(4))
async def test_messages_come_again_after_a_pause_that_was_broken_off(queues: Queues, turns: int) -> None:
    consumer = queues.client.consumer(queues.work)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)

    async with running(consumer, handler):
        await until(lambda: consumer.health().live)
        await broken_off(consumer.pause(), turns)
        await consumer.resume()
        await queues.publish(1)
        await until(lambda: seen == [1])
        assert consumer.health()


# ---------------------------------------------------------------------- ends while the broker is away


@pytest.mark.parametrize("how", ["drain", "cancel", "pause", "set_prefetch"])
async def test_nothing_waits_for_the_connection_when_it_is_being_made_again(
    broker: Broker, queues: Queues, how: str
) -> None:
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url, recovery_initial_delay=0.05) as client:
        consumer = client.consumer(queues.work, resubscribe=True)

        async def handler(value: int, message: leveret.Message) -> None: ...

        await queues.publish(1)
        async with running(consumer, handler) as task:
            await until(lambda: consumer.counters()["acked"] == 1)
            await proxy.stop()
            await until(lambda: not consumer.health().live)
            await asyncio.sleep(0.3)
            async with asyncio.timeout(1):
                if how == "drain":
                    assert await consumer.drain(20)
                elif how == "set_prefetch":
                    await consumer.set_prefetch(7)
                else:
                    await getattr(consumer, how)()
                if how in ("drain", "cancel"):
                    await task


async def test_a_backoff_policy_chooses_when_a_consumer_begins_again(broker: Broker, queues: Queues) -> None:
    class Steady:
        asked: ClassVar[list[int]] = []

        def delay(self, attempt: int, /) -> float:
            self.asked.append(attempt)
            return 0.001

    registry = PluginRegistry.from_plugins(
        plugin("waits", policies=[PolicySpec(kind="backoff", name="steady", factory=Steady)])
    )
    # Without the policy it would be up to a day.
    options: dict[str, Any] = {"recovery_initial_delay": 86_400, "recovery_max_delay": 86_400}
    async with (
        Proxy(broker.url) as proxy,
        leveret.connect(proxy.url, plugins=registry, recovery_backoff="steady", **options) as client,
    ):
        consumer = client.consumer(queues.work, resubscribe=True)
        seen: list[int] = []

        async def handler(value: int, message: leveret.Message) -> None:
            seen.append(value)

        async with running(consumer, handler):
            await until(lambda: consumer.health().live)
            proxy.reset()
            await queues.publish(1)
            await until(lambda: seen == [1])
    assert Steady.asked == [1, 1]  # the consumer's own sequence, and that of its connection


async def test_a_consumer_that_was_cancelled_does_not_begin_again(broker: Broker, queues: Queues) -> None:
    await queues.publish(1)
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url, recovery_max_delay=0.1) as client:
        consumer = client.consumer(queues.work, resubscribe=True)
        began, go = asyncio.Event(), asyncio.Event()
        calls = 0

        async def handler(value: int, message: leveret.Message) -> None:
            nonlocal calls
            calls += 1
            began.set()
            await go.wait()

        async with running(consumer, handler) as task:
            await began.wait()
            await consumer.cancel()
            proxy.reset()
            await until(lambda: consumer.counters()["unsettled"] == 0)
            await asyncio.sleep(0.3)
            go.set()
            with contextlib.suppress(leveret.errors.LeveretError):
                async with asyncio.timeout(5):
                    await task
            assert calls == 1
    assert await queues.remaining() == [1]


async def test_a_paused_consumer_goes_on_after_its_connection_was_lost(broker: Broker, queues: Queues) -> None:
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url, recovery_max_delay=0.1) as client:
        consumer = client.consumer(queues.work, resubscribe=True)
        seen: list[int] = []

        async def handler(value: int, message: leveret.Message) -> None:
            seen.append(value)

        async with running(consumer, handler):
            await until(lambda: consumer.health().live)
            await consumer.pause()
            lost = consumer._subscription.channel
            proxy.reset()
            await until(lambda: consumer._subscription.channel is not lost)
            await consumer.resume()
            await queues.publish(1)
            await until(lambda: seen == [1])


async def test_nothing_is_settled_on_another_channel_when_that_of_a_message_was_closed(queues: Queues) -> None:
    await queues.publish(1, 2)
    async with queues.client.consumer(queues.work) as consumer:
        message = await consumer.get()
        assert message is not None
        channel = consumer._subscription.channel
        assert channel is not None
        with pytest.raises(leveret.errors.NotFound):
            await channel.queue_declare("there is no such queue", passive=True)
        other = await consumer._connection.channel()
        assert other.number == channel.number
        assert message.is_settled
        assert not message.ack()
        await asyncio.sleep(0.05)
        await other.basic_qos(1)
        await other.close()
    assert sorted(await queues.remaining()) == [1, 2]


async def test_a_consumer_that_failed_is_not_healthy(queues: Queues) -> None:
    consumer = queues.client.consumer(queues.work)
    await consumer.subscribe()
    assert consumer.health()
    await queues.client.delete_queue(queues.work)
    await until(lambda: not consumer.health().live)
    assert not consumer.health()
    await consumer.close()
    assert consumer.health()
    await queues.declare()


@pytest.mark.parametrize("timeout", [-1, float("nan"), float("inf"), 1e6])
async def test_draining_is_refused_when_its_timeout_is_out_of_range(queues: Queues, timeout: float) -> None:
    async with queues.client.consumer(queues.work) as consumer:
        with pytest.raises(leveret.errors.ConfigurationError, match=r"timeout is .* 0 to 86400"):
            await consumer.drain(timeout)
        assert await consumer.drain(5)
        assert await consumer.drain(5)


async def test_a_batch_that_waits_for_more_is_handled_when_its_consumer_is_drained(queues: Queues) -> None:
    await queues.publish(1, 2)
    batches = queues.client.batches(queues.work, size=10, wait=60)
    seen: list[int] = []

    async def handler(values: list[int], batch: leveret.DeliveryBatch[int]) -> None:
        seen.extend(values)

    task = asyncio.create_task(batches.run(handler))
    await until(lambda: batches.consumer.counters()["unsettled"] == 2 and not batches.consumer.health().waiting)
    assert await batches.consumer.drain(5)
    await task
    assert seen == [1, 2]
    assert await queues.remaining() == []


# ---------------------------------------------------------------------- taken over before they are handled


async def test_everything_taken_over_is_acknowledged_when_there_are_more_workers_than_may_be_unfinished(
    queues: Queues,
) -> None:
    await queues.publish(*range(20))
    consumer = queues.client.consumer(queues.work, ack="handoff", handoff_size=3, prefetch=10, concurrency=10)
    most = 0

    async def handler(value: int, message: leveret.Message) -> None:
        nonlocal most
        health = consumer.health()
        withheld = consumer.counters()["unsettled"]
        most = max(most, health.working + health.waiting - withheld)
        await asyncio.sleep(0.02)

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["delivered"] == 20 and not consumer.health().working)
        await until(lambda: consumer.counters()["acked"] == 20, seconds=2)
        assert consumer.counters()["stale_acks"] == 0
    assert most <= 3
    assert await queues.remaining() == []


async def test_no_message_is_lost_when_a_batch_without_acknowledgements_is_cancelled(queues: Queues) -> None:
    await queues.publish(1, 2)
    async with queues.client.batches(queues.work, size=10, wait=60, ack="none") as batches:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await anext(batches)
        await queues.publish(3)
        batches.wait = 0.3
        assert (await anext(batches)).values == [1, 2, 3]


async def test_waiting_leaves_nothing_behind_when_it_is_cancelled(queues: Queues) -> None:
    async with queues.client.consumer(queues.work) as consumer:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(consumer)
        assert consumer._idle_count == 0


async def test_get_is_refused_when_deliveries_come(queues: Queues) -> None:
    async with queues.client.consumer(queues.work) as consumer:
        await consumer.subscribe()
        with pytest.raises(leveret.errors.ConfigurationError, match="get is of no use"):
            await consumer.get()


# ---------------------------------------------------------------------- the broker's own time


TIMEOUT = 1.0


@pytest.fixture
async def impatient(rabbitmq: RabbitMQNode) -> AsyncIterator[str]:
    """The URL of a broker that waits a second for acknowledgements."""

    def limit(milliseconds: int, tick: int) -> None:
        for name, value in (("consumer_timeout", milliseconds), ("channel_tick_interval", tick)):
            rabbitmq.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")

    await asyncio.to_thread(limit, round(TIMEOUT * 1000), 200)  # both are read when a channel begins
    yield rabbitmq.url
    await asyncio.to_thread(limit, 1_800_000, 60_000)


@contextlib.asynccontextmanager
async def queue_with_a_message(url: str, work: str, kind: leveret.Classic | leveret.Quorum) -> AsyncIterator[Any]:
    async with leveret.connect(url) as client:
        await client.declare(leveret.Topology().queue(work, kind))
        async with client.producer() as producer:
            await producer.publish(1, work)
        yield client
        assert await taken(client, work) == []
        await client.delete_queue(work)


@pytest.mark.server_version(before=(4, 3))
@pytest.mark.parametrize("kind", [leveret.Classic(), leveret.Quorum()], ids=["classic", "quorum"])
@pytest.mark.parametrize("resubscribe", [False, True])
async def test_the_broker_says_that_a_delivery_was_not_acknowledged_in_time(
    impatient: str,
    unique_name: Callable[[str], str],
    kind: leveret.Classic | leveret.Quorum,
    resubscribe: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = unique_name("work")
    async with queue_with_a_message(impatient, work, kind) as client:
        consumer = client.consumer(work, resubscribe=resubscribe)
        redelivered: list[bool] = []

        async def handler(value: int, message: leveret.Message) -> None:
            redelivered.append(message.redelivered)
            if not message.redelivered:
                await until(lambda: message.is_settled, seconds=20)

        async with running(consumer, handler) as task:
            if resubscribe:
                await until(lambda: consumer.counters()["acked"] == 1, seconds=20)
                assert redelivered == [False, True]
                assert "not acknowledged in the broker's time" in caplog.text
            else:
                await asyncio.wait([task], timeout=20)
                with pytest.raises(leveret.errors.DeliveryTimeout) as late:
                    await task
                assert late.value.reply_code == 406
                assert work in str(late.value)
        assert consumer.counters()["stale_acks"] == 1
        if not resubscribe:
            assert await taken(client, work) == [1]


@pytest.mark.server_version(since=(4, 3))
@pytest.mark.parametrize("resubscribe", [False, True])
async def test_the_broker_cancels_a_consumer_of_a_quorum_queue_when_a_delivery_was_not_acknowledged_in_time(
    impatient: str, unique_name: Callable[[str], str], resubscribe: bool, caplog: pytest.LogCaptureFixture
) -> None:
    work = unique_name("work")
    async with queue_with_a_message(impatient, work, leveret.Quorum()) as client:
        consumer = client.consumer(work, resubscribe=resubscribe, concurrency=2)
        began = asyncio.get_running_loop().time()
        redelivered: list[bool] = []

        async def handler(value: int, message: leveret.Message) -> None:
            redelivered.append(message.redelivered)
            if message.redelivered:
                return
            if resubscribe:
                await until(lambda: len(redelivered) == 2, seconds=20)
            else:
                # The broker has put it back, and hands it to another consumer.
                async with asyncio.timeout(20), client.consumer(work) as other:
                    again = await anext(other)
                    redelivered.append(again.redelivered)
                    again.ack()

        async with running(consumer, handler) as task:
            if resubscribe:
                await until(lambda: consumer.counters()["acked"] == 2, seconds=20)
                assert "not acknowledged in the broker's time" in caplog.text
            else:
                await asyncio.wait([task], timeout=20)
                with pytest.raises(leveret.errors.ConsumerCancelled, match="not acknowledged in the broker's time"):
                    await task
        assert redelivered == [False, True]
        assert asyncio.get_running_loop().time() - began >= TIMEOUT
        # The acknowledgement that came too late closed nothing.
        assert client.connection.is_open


@pytest.mark.server_version(since=(4, 3))
async def test_what_waited_in_a_cancelled_consumer_is_handled_once_when_it_goes_on(
    impatient: str, unique_name: Callable[[str], str]
) -> None:
    work = unique_name("work")
    async with queue_with_a_message(impatient, work, leveret.Quorum()) as client:
        async with client.producer() as producer:
            await producer.publish(2, work)
        consumer = client.consumer(work, resubscribe=True)
        handled: list[int] = []

        async def handler(value: int, message: leveret.Message) -> None:
            handled.append(value)
            if len(handled) == 1:
                await asyncio.sleep(4.5 * TIMEOUT)  # the broker cancels the consumer four times meanwhile

        async with running(consumer, handler):
            await until(lambda: {*handled[1:]} == {1, 2}, seconds=20)
            await asyncio.sleep(0.3)  # what came more often would be handled now
        assert sorted(handled) == [1, 1, 2]


@pytest.mark.server_version(since=(4, 3))
async def test_a_consumer_of_a_classic_queue_has_no_time_limit(
    impatient: str, unique_name: Callable[[str], str]
) -> None:
    work = unique_name("work")
    async with queue_with_a_message(impatient, work, leveret.Classic()) as client:
        consumer = client.consumer(work)
        redelivered: list[bool] = []

        async def handler(value: int, message: leveret.Message) -> None:
            redelivered.append(message.redelivered)
            await asyncio.sleep(3 * TIMEOUT)

        async with running(consumer, handler):
            await until(lambda: consumer.counters()["acked"] == 1, seconds=20)
        assert redelivered == [False]


async def test_a_consumer_is_live_when_the_broker_has_answered() -> None:
    asked, go = asyncio.Event(), asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                channel, value = await peer.receive()
                if isinstance(value, Basic.Consume):
                    asked.set()
                    await go.wait()
                peer.send(ANSWERS[value.name](value), channel)

    async with FakeServer(script) as server, leveret.connect(server.url) as client:
        consumer = client.consumer("q")
        subscribing = asyncio.create_task(consumer.subscribe())
        await asked.wait()
        health = consumer.health()
        assert (health.expected, health.live) == (True, False)
        go.set()
        await subscribing
        assert consumer.health().live
        await consumer.close()
