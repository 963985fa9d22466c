"""When a connection is lost, whatever waits ends with the reason."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.loops import every_loop
from tests.support.outcomes import failure_at_once

import leveret
from leveret import Outcome, Topology
from leveret.errors import ConnectFailed, ConnectionClosed, ConnectionLost, OperationTimeout, PublishError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.brokers import Broker

    from leveret.testing import FaultProxy

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


@every_loop
@pytest.mark.parametrize("how", ["reset", "half_close"])
async def test_everything_that_waits_ends_when_the_connection_is_cut(proxy: FaultProxy, queue: str, how: str) -> None:
    async with leveret.connect(proxy.url, close_timeout=0.5, auto_recovery=False) as proxied:
        await end_everything_that_waits(proxy, proxied, queue, how)


async def end_everything_that_waits(proxy: FaultProxy, proxied: leveret.Client, queue: str, how: str) -> None:
    waiters = Waiters(proxied, queue)
    await waiters.start()
    proxy.swallow()
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


async def refuse_what_was_open(proxy: FaultProxy, proxied: leveret.Client, queue: str, how: str) -> None:
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
    calls: list[Awaitable[Any]] = [consumer.get(), anext(consumer), proxied.connection.update_secret("guest")]
    for each in calls:
        assert type(await failure_at_once(each)) is ConnectionLost
    await producer.close()
    await consumer.close()


@pytest.mark.parametrize("how", ["reset", "half_close"])
async def test_what_was_open_is_refused_at_once_when_the_connection_was_lost_and_is_not_made_again(
    proxy: FaultProxy, queue: str, how: str
) -> None:
    async with leveret.connect(proxy.url, close_timeout=0.5, auto_recovery=False) as proxied:
        await refuse_what_was_open(proxy, proxied, queue, how)


@pytest.mark.parametrize("auto_recovery", [True, False])
async def test_the_reason_is_told_when_no_new_connection_can_be_made(proxy: FaultProxy, auto_recovery: bool) -> None:
    options: dict[str, Any] = {"operation_timeout": 0.3, "close_timeout": 0.5, "auto_recovery": auto_recovery}
    async with leveret.connect(proxy.url, **options) as proxied:
        channel = await proxied.channel()
        proxy.close()
        assert type(await failure_at_once(channel.basic_qos(1))) is ConnectionLost
        refused = await failure_at_once(proxied.channel())
        assert type(refused) is (OperationTimeout if auto_recovery else ConnectFailed)
        assert "Connection refused" in str(refused)
        assert type(refused.__cause__) is (ConnectFailed if auto_recovery else ConnectionRefusedError)


async def publish_until_it_fails(producer: leveret.Producer, queue: str) -> None:
    while True:
        await producer.publish(1, queue)


async def test_the_reason_is_told_when_the_broker_closes_the_connection(
    broker: Broker, client: leveret.Client, queue: str, name: Callable[[str], str]
) -> None:
    other_queue = name("queue")
    await client.declare(Topology().queue(other_queue))
    async with leveret.connect(broker.url, auto_recovery=False) as ending:
        await tell_the_reason(broker, ending, queue, other_queue)
        async with ending.producer() as producer:
            assert (await producer.publish(1, queue)).outcome is Outcome.CONFIRMED  # on the next connection


async def tell_the_reason(broker: Broker, client: leveret.Client, queue: str, other_queue: str) -> None:
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
