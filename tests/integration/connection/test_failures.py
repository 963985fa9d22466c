"""Faults: whatever waits ends with a typed error within its deadline, and whatever can go on goes on."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.brokers import publish_until_blocked
from tests.support.loops import every_loop
from tests.support.outcomes import AT_ONCE, awaited, failure_at_once

import leveret
from leveret import Classic, Outcome, Topology
from leveret.errors import (
    BackpressureError,
    ConfirmTimeout,
    ConnectFailed,
    ConnectionClosed,
    ConnectionLost,
    HeartbeatTimeout,
    NotFound,
    OperationTimeout,
    PublishError,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.brokers import Broker
    from tests.support.proxy import Proxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


class Waiters:
    """One of everything that can wait for a broker, all at once."""

    def __init__(self, client: leveret.Client, queue: str) -> None:
        self.client, self.queue = client, queue
        self.tasks: dict[str, asyncio.Task[Any]] = {}

    async def start(self) -> None:
        """Makes what the calls need, while the broker still answers."""
        self.producer = await self.client.producer().open()
        self.flushed = await self.client.producer().open()
        self.iterating = self.client.consumer(self.queue)
        self.getting = self.client.consumer(self.queue)
        assert await self.getting.get() is None
        self.tasks["run"] = asyncio.create_task(self.client.consumer(self.queue).run(self._handler))
        self.tasks["async for"] = asyncio.create_task(anext(self.iterating))
        channel = await self.client.channel()
        while (await channel.queue_declare(self.queue, passive=True)).consumer_count != 2:
            pass
        await asyncio.sleep(0)
        self.channel = channel

    async def wait(self) -> None:
        """Starts the calls; the server answers no more."""
        ticket = self.producer.publish_nowait(1, self.queue)
        self.flushed.publish_nowait(1, self.queue)
        calls = {
            "publish": self.producer.publish(1, self.queue),
            "ticket": self._await(ticket),
            "batch": self.producer.publish_batch([1, 2, 3], self.queue),
            "flush": self.flushed.flush(),
            "declare": self.client.declare(Topology().queue(self.queue)),
            "channel": self.channel.queue_declare(self.queue),
            "open channel": self.client.channel(),
            "get": self.getting.get(),
            "update secret": self.client.connection.update_secret("guest"),
        }
        self.tasks |= {name: asyncio.create_task(call) for name, call in calls.items()}
        await asyncio.sleep(0)  # now all of them wait
        assert not any(task.done() for task in self.tasks.values())

    async def outcomes(self) -> dict[str, Any]:
        return {name: await failure_at_once(task) for name, task in self.tasks.items()}

    async def _handler(self, value: Any, message: leveret.Message) -> None:
        message.release()

    async def _await(self, ticket: leveret.Ticket) -> leveret.Receipt:
        return await ticket


# ---------------------------------------------------------------------- the connection ends


@every_loop
@pytest.mark.parametrize("how", ["reset", "hang_up"])
async def test_everything_that_waits_ends_when_the_connection_is_cut(
    proxy: Proxy, proxied: leveret.Client, queue: str, how: str
) -> None:
    waiters = Waiters(proxied, queue)
    await waiters.start()
    proxy.deaf = True
    await waiters.wait()

    getattr(proxy, how)()
    outcomes = await waiters.outcomes()

    batch = outcomes.pop("batch")
    assert [batch.outcome(index) for index in range(3)] == [Outcome.UNKNOWN] * 3
    for name in ("publish", "ticket", "flush"):
        error = outcomes.pop(name)
        assert isinstance(error, PublishError), name
        assert error.outcome is Outcome.UNKNOWN
        assert isinstance(error.__cause__, ConnectionLost)
    for name, error in outcomes.items():
        assert type(error) is ConnectionLost, name
    assert not proxied.connection.is_open


@pytest.mark.parametrize("how", ["reset", "hang_up"])
async def test_what_was_open_is_refused_at_once_when_the_connection_was_lost_and_is_not_made_again(
    proxy: Proxy, queue: str, how: str
) -> None:
    async with leveret.connect(proxy.url, close_timeout=0.5, auto_recovery=False) as proxied:
        await refuse_what_was_open(proxy, proxied, queue, how)


async def refuse_what_was_open(proxy: Proxy, proxied: leveret.Client, queue: str, how: str) -> None:
    producer = await proxied.producer().open()
    channel = await proxied.channel()
    consumer = proxied.consumer(queue)
    assert await consumer.get() is None
    getattr(proxy, how)()
    for call in (anext(consumer), channel.basic_qos(1)):
        assert type(await failure_at_once(call)) is ConnectionLost  # from here on both connections know

    with pytest.raises(PublishError) as at_once:
        producer.publish_nowait(1, queue)
    for refused in (
        at_once.value,
        await failure_at_once(producer.publish(1, queue)),
        (await failure_at_once(producer.publish_batch([1], queue))).failures[0],
    ):
        assert isinstance(refused, PublishError)
        assert refused.outcome is Outcome.NOT_SENT
        assert isinstance(refused.__cause__, ConnectionLost)
    assert await failure_at_once(producer.flush()) is None
    for call in (consumer.get(), anext(consumer), proxied.connection.update_secret("guest")):
        assert type(await failure_at_once(call)) is ConnectionLost
    await producer.close()
    await consumer.close()


@pytest.mark.parametrize("how", ["reset", "hang_up"])
async def test_a_producer_goes_on_when_its_connection_was_lost(
    proxy: Proxy, proxied: leveret.Client, client: leveret.Client, queue: str, how: str
) -> None:
    async with proxied.producer(exchange="") as producer:
        await producer.publish("before", queue)
        proxy.deaf = True
        ticket = producer.publish_nowait("under way", queue)
        waiting = asyncio.create_task(producer.publish("under way, too", queue))
        await asyncio.sleep(0)
        getattr(proxy, how)()
        for lost in (await failure_at_once(producer.wait_for(ticket)), await failure_at_once(waiting)):
            assert isinstance(lost, PublishError)
            assert lost.outcome is Outcome.UNKNOWN
            assert isinstance(lost.__cause__, ConnectionLost)
        with pytest.raises(BackpressureError, match="the channel was lost, and another one is not open yet"):
            producer.publish_nowait("too early", queue)
        proxy.deaf = False

        receipt = await producer.publish("after", queue)
        assert receipt.delivery_tag == 4
        assert (await producer.publish_batch(["after that"] * 10, queue)).confirmed == 10
        assert producer.counters()["confirmed"] == 12
    assert await client.purge(queue) == 12


async def test_new_producers_and_consumers_get_a_new_connection_when_the_old_one_was_lost(
    proxy: Proxy, proxied: leveret.Client, queue: str
) -> None:
    lost = proxied.connection
    channel = await proxied.channel()
    proxy.reset()
    assert type(await failure_at_once(channel.basic_qos(1))) is ConnectionLost

    async with proxied.producer() as producer:
        assert await producer.publish("after the loss", queue)
    message = await proxied.consumer(queue).get()

    assert message is not None
    assert message.value == "after the loss"
    assert proxied.connection is not lost
    counted = {(s.metric.name, s.labels[1]): s.value for s in proxied.metrics()}
    assert counted["connections_opened", "publish"] == 2
    assert counted["connections_lost", "publish"] == 1
    assert counted["connections_open", "publish"] == 1


async def test_the_reason_is_told_when_no_new_connection_can_be_made(proxy: Proxy, proxied: leveret.Client) -> None:
    channel = await proxied.channel()
    await proxy.stop()
    assert type(await failure_at_once(channel.basic_qos(1))) is ConnectionLost

    assert type(await failure_at_once(proxied.channel())) is ConnectFailed


async def test_the_reason_is_told_when_the_broker_closes_the_connection(
    broker: Broker, client: leveret.Client, queue: str, name: Callable[[str], str]
) -> None:
    other_queue = name("queue")
    await client.declare(Topology().queue(other_queue))
    waiters = Waiters(client, queue)
    await waiters.start()
    publishing = asyncio.create_task(publish_until_it_fails(waiters.producer, other_queue))

    await broker.close_connections()

    error = await failure_at_once(publishing)
    assert isinstance(error, PublishError)
    assert error.outcome in (Outcome.UNKNOWN, Outcome.NOT_SENT)
    outcomes = await waiters.outcomes()
    assert outcomes.keys() == {"run", "async for"}
    for lost in (*outcomes.values(), error.__cause__):
        assert type(lost) is ConnectionClosed
        assert lost.reply_code == 320
        assert lost.reply_text.startswith("CONNECTION_FORCED")
    assert (await waiters.producer.publish(1, queue)).outcome is Outcome.CONFIRMED  # on the next connection


async def publish_until_it_fails(producer: leveret.Producer, queue: str) -> None:
    while True:
        await producer.publish(1, queue)


async def test_a_message_comes_again_when_the_connection_is_lost_while_it_is_handled(
    proxy: Proxy, proxied: leveret.Client, client: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer:
        await producer.publish("work", queue)
    consumer = proxied.consumer(queue)
    started, lost = asyncio.Event(), asyncio.Event()
    settled = []

    async def handler(value: str, message: leveret.Message) -> None:
        started.set()
        await lost.wait()
        settled.append(bool(message.ack()))  # too late: it belongs to a channel that is gone

    task = asyncio.create_task(consumer.run(handler))
    await started.wait()
    proxy.reset()
    assert isinstance(await failure_at_once(proxied.consumer(queue).get()), ConnectionLost)
    lost.set()
    assert isinstance(await failure_at_once(task), ConnectionLost)
    assert settled == [False]
    async with asyncio.timeout(5), client.consumer(queue) as again:
        message = await anext(again)
        assert (message.value, message.redelivered) == ("work", True)
        message.ack()


async def test_the_connection_is_given_up_when_the_broker_is_silent_for_two_heartbeats(
    proxy: Proxy, queue: str
) -> None:
    async with leveret.connect(proxy.url, heartbeat=1, close_timeout=0.5) as client:
        assert client.connection.negotiated.heartbeat == 1
        producer = await client.producer(confirm_timeout=30).open()
        consumer = client.consumer(queue)
        await producer.publish("to start with", queue)
        (await anext(consumer)).ack()
        proxy.deaf = True
        waiting = asyncio.create_task(anext(consumer))
        publishing = asyncio.create_task(producer.publish("in flight", queue))
        started = time.monotonic()
        async with asyncio.timeout(5):
            with pytest.raises(HeartbeatTimeout, match="heartbeat is 1 s"):
                await waiting
            with pytest.raises(PublishError) as lost:
                await publishing
        assert isinstance(lost.value.__cause__, HeartbeatTimeout)
        assert 1.5 <= time.monotonic() - started <= 3.5
        assert not client.connection.is_open


async def test_the_connection_lives_when_it_is_idle_for_longer_than_its_heartbeats(
    broker: Broker, name: Callable[[str], str]
) -> None:
    # Brokers give up on a client after two to three silent intervals, so both sides have to send them.
    async with leveret.connect(broker.url, heartbeat=1) as client:
        reader = client.connection.transport.reader
        before = reader.received_frames
        await asyncio.sleep(2.7)
        assert client.connection.is_open
        assert reader.received_frames >= before + 2
        await client.declare(Topology().queue(name()))


# ---------------------------------------------------------------------- a channel ends


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


async def test_the_connection_lives_when_both_sides_close_a_channel_at_once(client: leveret.Client) -> None:
    # The broker answers our close as well, or does not: that depends on what it saw first.
    for _ in range(50):
        channels = [await client.channel() for _ in range(3)]
        refused = [asyncio.create_task(channel.queue_declare("missing", passive=True)) for channel in channels]
        await asyncio.sleep(0)
        await asyncio.gather(*(channel.close() for channel in channels))
        for task in refused:
            assert isinstance(await failure_at_once(task), leveret.errors.ChannelClosed)
    assert client.connection.is_open


# ---------------------------------------------------------------------- no confirm comes


async def test_s11_the_outcome_is_unknown_when_no_confirm_comes_in_time(
    proxy: Proxy, proxied: leveret.Client, queue: str
) -> None:
    assert leveret.ProducerSettings().confirm_timeout == 5.0
    async with proxied.producer(confirm_timeout=0.4) as producer:
        await producer.publish("confirmed", queue)
        proxy.deaf = True
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
        proxy.deaf = False
        assert (await producer.publish("again", queue)).outcome is Outcome.CONFIRMED
        assert producer.outstanding == 0
    assert await proxied.purge(queue) == 14


async def test_flush_ends_when_its_own_deadline_passes(proxy: Proxy, proxied: leveret.Client, queue: str) -> None:
    async with proxied.producer(confirm_timeout=0.6) as producer:
        proxy.deaf = True
        producer.publish_nowait(1, queue)
        with pytest.raises(OperationTimeout, match=r"1 publishings have no outcome after 0\.1 s"):
            await producer.flush(timeout=0.1)
        with pytest.raises(ConfirmTimeout, match="1 publishings that were not awaited failed"):
            await producer.flush()


async def test_a_call_ends_when_the_broker_does_not_answer(proxy: Proxy, queue: str) -> None:
    async with leveret.connect(proxy.url, operation_timeout=0.2, close_timeout=0.2) as client:
        channel = await client.channel()
        consumer = client.consumer(queue)
        assert await consumer.get() is None
        proxy.deaf = True
        for name, call in {
            "queue.declare": channel.queue_declare(queue),
            "basic.get": consumer.get(),
            "basic.qos": anext(consumer),
            "channel.open": client.channel(),
            "connection.update-secret": client.connection.update_secret("guest"),
        }.items():
            with pytest.raises(OperationTimeout, match=rf"{name}.* 0\.2 s"):
                async with asyncio.timeout(AT_ONCE):
                    await call


async def test_closing_ends_when_the_broker_does_not_answer(proxy: Proxy, queue: str) -> None:
    client = await leveret.connect(proxy.url, close_timeout=0.2)
    producer = await client.producer(confirm_timeout=0.2).open()
    consumer = client.consumer(queue)
    assert await consumer.get() is None
    proxy.deaf = True
    ticket = producer.publish_nowait(1, queue)
    started = time.monotonic()
    await client.close()
    assert time.monotonic() - started < 2
    with pytest.raises(PublishError) as lost:
        await ticket
    assert lost.value.outcome is Outcome.UNKNOWN


# ---------------------------------------------------------------------- the broker blocks


async def test_publishing_waits_and_acknowledging_goes_on_when_the_broker_is_short_of_memory(
    blockable: Broker, client: leveret.Client, queue: str
) -> None:
    times = {"confirm_timeout": 0.4, "publish_timeout": 0.4}
    async with client.producer(**times) as producer, client.consumer(queue, prefetch=1) as consumer:
        assert await producer.publish_batch(range(20), queue)
        (await anext(consumer)).ack()
        patient = await client.producer(confirm_timeout=10).open()
        await blockable.block()
        await publish_until_blocked(client, producer, queue)
        reason = client.connection.blocked
        assert reason

        started = time.monotonic()
        with pytest.raises(PublishError, match=reason) as late:
            await producer.publish("blocked", queue)
        assert late.value.outcome is Outcome.NOT_SENT
        assert 0.3 <= time.monotonic() - started <= 1
        with pytest.raises(BackpressureError, match=reason):
            producer.publish_nowait("blocked", queue)

        # The whole batch waits once, not each of its chunks.
        started = time.monotonic()
        result = await producer.publish_batch(range(5000), queue)
        assert time.monotonic() - started <= 2
        assert {result.outcome(index) for index in range(5000)} == {Outcome.NOT_SENT}

        # Consuming has a connection of its own: with a prefetch of one, each message needs the ack before it.
        async with asyncio.timeout(5):
            for number in range(1, 20):
                message = await anext(consumer)
                assert message.value == number
                message.ack()

        publishing = asyncio.create_task(patient.publish("after", queue))
        await blockable.unblock()
        async with asyncio.timeout(5):
            assert (await publishing).outcome is Outcome.CONFIRMED
            while (message := await anext(consumer)).value != "after":
                message.ack()
        assert client.connection.blocked is None


async def test_closing_ends_when_the_broker_blocks(blockable: Broker, queue: str) -> None:
    client = await leveret.connect(blockable.url, close_timeout=0.3)
    producer = await client.producer(confirm_timeout=0.3).open()
    await blockable.block()
    await publish_until_blocked(client, producer, queue)
    waiting = asyncio.create_task(producer.publish("blocked", queue))
    await asyncio.sleep(0)
    started = time.monotonic()
    await client.close()
    assert time.monotonic() - started < 2
    error = await failure_at_once(waiting)
    assert isinstance(error, PublishError)
    assert error.outcome is Outcome.NOT_SENT


async def test_publishing_waits_when_the_socket_is_full(broker: Broker, queue: str) -> None:
    async with leveret.connect(broker.url, write_high_watermark=200_000, write_low_watermark=50_000) as client:
        producer = await client.producer(serializer="bytes", confirm_timeout=10).open()
        tickets = []
        # Nothing leaves while this loop does not let others run, until the socket is full.
        while not client.connection.transport.paused:
            tickets.append(producer.publish_nowait(bytes(100_000), queue))
        assert client.connection.transport.pending_bytes >= 200_000
        with pytest.raises(BackpressureError, match="bytes wait for the socket"):
            producer.publish_nowait(b"too much", queue)
        async with asyncio.timeout(15):
            await producer.publish(b"waits for its turn", queue)
            assert all([(await ticket).outcome is Outcome.CONFIRMED for ticket in tickets])
        await producer.close()


async def test_publishing_waits_when_too_many_bytes_are_unconfirmed(
    proxy: Proxy, proxied: leveret.Client, queue: str
) -> None:
    async with proxied.producer(
        serializer="bytes", max_outstanding_bytes=10_000, confirm_timeout=1, publish_timeout=0.3
    ) as producer:
        proxy.deaf = True
        results = await asyncio.gather(
            *(producer.publish(bytes(6_000), queue) for _ in range(5)), return_exceptions=True
        )
        outcomes = [error.outcome for error in results if isinstance(error, PublishError)]
        assert outcomes == [Outcome.UNKNOWN] * 2 + [Outcome.NOT_SENT] * 3
        for _ in range(2):
            producer.publish_nowait(bytes(6_000), queue)
        with pytest.raises(BackpressureError, match="12000 bytes"):
            producer.publish_nowait(bytes(6_000), queue)


# ---------------------------------------------------------------------- refused


async def test_the_outcome_is_nacked_when_the_broker_refuses_a_message(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    queue = name("full")
    await client.declare(Topology().queue(queue, Classic(max_length=1, overflow="reject-publish")))
    async with client.producer() as producer:
        tickets = [producer.publish_nowait(number, queue) for number in range(50)]
        outcomes = []
        for ticket in tickets:
            result = await failure_at_once(awaited(ticket))
            outcomes.append(result.outcome)
    assert outcomes == [Outcome.CONFIRMED] + [Outcome.NACKED] * 49


# ---------------------------------------------------------------------- cancelled


@pytest.mark.parametrize("turns", range(5))
async def test_the_next_publish_is_right_when_one_was_cancelled(client: leveret.Client, queue: str, turns: int) -> None:
    async with client.producer() as producer:
        for _ in range(10):
            task = asyncio.create_task(producer.publish("cancelled", queue))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            task.cancel()
            await asyncio.wait([task])
            tag = producer.next_delivery_tag
            receipt = await producer.publish("next", queue)
            assert (receipt.delivery_tag, receipt.outcome) == (tag, Outcome.CONFIRMED)
        await producer.flush()
        counters = producer.counters()
        assert counters["confirmed"] == counters["published"] == producer.next_delivery_tag - 1
    assert await client.purge(queue) == counters["published"]


async def test_the_next_batch_is_right_when_one_was_cancelled(client: leveret.Client, queue: str) -> None:
    async with client.producer(batch_size=50, max_outstanding=50) as producer:
        for turns in range(8):
            task = asyncio.create_task(producer.publish_batch(range(500), queue))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert await producer.publish_batch(range(100), queue)
        await producer.flush()
        counters = producer.counters()
        assert counters["confirmed"] == counters["published"]
        assert counters["outstanding"] == 0
    assert await client.purge(queue) == counters["published"]


async def test_a_publish_is_left_alone_when_the_callers_deadline_passes(
    proxy: Proxy, proxied: leveret.Client, queue: str
) -> None:
    async with proxied.producer(confirm_timeout=1) as producer:
        proxy.deaf = True
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await producer.publish("late", queue)
        assert producer.outstanding == 1
        proxy.deaf = False
        await producer.publish("next", queue)
    assert await proxied.purge(queue) == 2


async def test_nothing_hangs_when_a_task_group_fails_around_everything(broker: Broker, queue: str) -> None:
    async with leveret.connect(broker.url) as client:
        producer = await client.producer().open()
        consumer = client.consumer(queue)

        async def handler(value: Any, message: leveret.Message) -> None:
            pass

        async def fail() -> None:
            await producer.publish(1, queue)
            raise ValueError("the application fails")

        async def everything() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(consumer.run(handler))
                tasks.create_task(publish_until_it_fails(producer, queue))
                tasks.create_task(fail())

        async with asyncio.timeout(5):
            with pytest.raises(ExceptionGroup) as group:
                await everything()
        assert group.group_contains(ValueError)
        # All of it is usable or can be made again.
        await producer.publish(1, queue)
        async with client.consumer(queue) as fresh:
            async with asyncio.timeout(5):
                (await anext(fresh)).ack()


async def test_who_waits_for_a_blocking_broker_is_told_when_the_producer_is_closed(
    blockable: Broker, client: leveret.Client, queue: str
) -> None:
    producer = await client.producer(confirm_timeout=0.3).open()
    await blockable.block()
    await publish_until_blocked(client, producer, queue)
    waiting = [asyncio.create_task(producer.publish(number, queue)) for number in range(3)]
    await asyncio.sleep(0)
    await producer.close()
    async with asyncio.timeout(AT_ONCE):
        for error in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(error, PublishError)
            assert (error.outcome, str(error)) == (Outcome.NOT_SENT, "not sent: the producer is closed")
    await blockable.unblock()
