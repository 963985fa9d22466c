"""A pool lends channels that are as new, in order, and loses none."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.brokers import Embedded, RabbitMQ, open_channels
from tests.support.conversation import method
from tests.support.handling import until
from tests.support.rabbitmq import listed

import leveret
from leveret import Topology
from leveret.broker import EmbeddedBroker
from leveret.errors import ChannelClosed, ConfigurationError, ConnectionClosed, EncodeFailed, NotFound, OperationTimeout
from leveret.protocol import commands
from leveret.protocol.commands import Basic
from leveret.settings import ConnectionSettings
from leveret.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.brokers import Broker

    from leveret.client.dedicated_connection import DedicatedConnection
    from leveret.connection.channel import Channel

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_s7_a_connection_is_shared_and_its_channels_are_pooled(
    broker: Broker, client: leveret.Client, queue: str
) -> None:
    limit = ConnectionSettings().max_pooled_channels
    dedicated = await client.dedicated_connection("s7")
    connection = dedicated.connection

    async def ask() -> int:
        async with dedicated.channels.acquire() as channel:
            await channel.queue_declare(queue, passive=True)
            return channel.number

    for _ in range(10):
        numbers = await asyncio.gather(*(ask() for _ in range(200)))
        assert set(numbers) == set(range(1, limit + 1))
    assert dedicated.connection is connection
    if isinstance(broker, RabbitMQ):
        assert await listed(broker.node, "s7", "channels") == [[str(limit)]]
    else:
        assert isinstance(broker, Embedded)
        assert max(len(session._channels) for session in broker.broker.sessions) == limit


async def test_a_channel_is_used_again_when_it_comes_back_as_new(
    broker: Broker, client: leveret.Client, name: Callable[[str], str]
) -> None:
    queue, exchange = name("queue"), name("exchange")
    for _ in range(20):
        async with client.channels.acquire() as channel:
            await channel.queue_declare(queue)
            await channel.exchange_declare(exchange)
            await channel.queue_bind(queue, exchange)
            await channel.queue_purge(queue)
            await channel.queue_unbind(queue, exchange)
            assert channel.number == 1
        await client.declare(Topology().queue(queue))
        assert await client.purge(queue) == 0
        assert await client.delete_queue(queue) == 0
        await client.delete_exchange(exchange)
    assert await open_channels(broker, client.connection) == 1
    assert repr(client.channels) == "<ChannelPool 1 of 16 open, 1 idle>"


async def get(channel: Channel, queue: str) -> None:
    assert await channel.basic_get(queue) is not None


class Sink:
    """A consumer and a publisher that look at nothing."""

    def delivered(self, run: object) -> None: ...
    def settled(self, run: object) -> None: ...
    def returned(self, run: object) -> None: ...
    def cancelled(self, consumer_tag: str) -> None: ...
    def channel_lost(self, error: leveret.LeveretError) -> None: ...


async def consume(channel: Channel, queue: str) -> None:
    await channel.basic_consume(queue, Sink(), consumer_tag="tag")
    await channel.basic_cancel("tag")


async def ask_for_what_is_not_there(channel: Channel, queue: str) -> None:
    with pytest.raises(NotFound):
        await channel.queue_declare(f"{queue}-missing", passive=True)


async def give_up_waiting(channel: Channel, queue: str) -> None:
    # Its answer, which closes the channel, would come when another has it.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await channel.queue_declare(f"{queue}-missing", passive=True)


async def publish(channel: Channel, queue: str) -> None:
    channel.publisher = Sink()


TRACES: dict[str, Callable[[Channel, str], Awaitable[object]]] = {
    "confirm mode": lambda channel, queue: channel.confirm_select(),
    "transaction mode": lambda channel, queue: channel.tx_select(),
    "prefetch": lambda channel, queue: channel.basic_qos(1),
    "message": get,
    "consumer": consume,
    "publisher": publish,
    "closed": lambda channel, queue: channel.close(),
    "closed by the broker": ask_for_what_is_not_there,
    "unanswered": give_up_waiting,
    "any other method": lambda channel, queue: channel.call(commands.make(Basic.Recover, requeue=True)),
}


@pytest.mark.parametrize("trace", TRACES)
async def test_a_channel_is_not_used_again_when_it_is_not_as_new(
    broker: Broker, client: leveret.Client, queue: str, trace: str
) -> None:
    async with client.producer() as producer:
        await producer.publish("unacknowledged", queue)
    async with client.channels.acquire() as used:
        await TRACES[trace](used, queue)
    async with client.channels.acquire() as other:
        assert other is not used
        # What it took went back to the queue with it.
        while (await other.queue_declare(queue, passive=True)).message_count != 1:
            pass
        assert not used.is_open
    # The place of the closed one is free when the broker has answered.
    await until(lambda: client.channels._channels == {other})


async def test_an_empty_name_is_refused_so_that_nobody_gets_the_queue_of_the_channels_last_user(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer:
        await producer.publish("kept", queue)
    async with client.channels.acquire() as first:
        await first.queue_declare(queue)
    async with client.channels.acquire() as second:
        assert second is first
        for call in (second.queue_purge(""), second.queue_delete(""), second.queue_bind("", "amq.direct")):
            with pytest.raises(EncodeFailed, match=r"names no queue, and none was declared on channel 1"):
                await call
    for refused in (client.purge(""), client.delete_queue("")):
        with pytest.raises(EncodeFailed, match=r"names no queue"):
            await refused
    async with client.channels.acquire() as third:
        made = await third.queue_declare("", exclusive=True)
        assert await third.queue_purge("") == 0
        assert await third.queue_delete("") == 0
        assert made.queue
    assert await client.purge(queue) == 1


async def test_those_who_wait_are_served_in_the_order_they_came(dedicated: DedicatedConnection) -> None:
    pool = dedicated.channels
    assert pool.limit == 3
    got: list[str] = []
    gates = {who: asyncio.Event() for who in "abcdefg"}

    async def hold(who: str) -> None:
        async with pool.acquire() as channel:
            got.append(who)
            await gates[who].wait()
            assert channel.is_open

    async with pool.acquire(), pool.acquire(), pool.acquire():
        pass  # all of them are open
    async with contextlib.AsyncExitStack() as held:
        await held.enter_async_context(pool.acquire())
        tasks = {who: asyncio.create_task(hold(who)) for who in gates}
        await asyncio.sleep(0)
        assert got == ["a", "b"]
        tasks["d"].cancel()
        await held.aclose()
    # It was the turn of one who is cancelled before it runs: it goes to the next who is not.
    tasks["c"].cancel()
    late = asyncio.create_task(hold("a"))
    for gate in gates.values():
        gate.set()
    await asyncio.gather(*tasks.values(), late, return_exceptions=True)
    assert "".join(got) == "abefga"
    assert [who for who in gates if tasks[who].cancelled()] == ["c", "d"]
    assert len(pool._channels) == 3


async def test_each_waits_for_one_more_to_come_back_when_they_come_back_one_by_one(broker: Broker) -> None:
    async with leveret.connect(broker.url, max_pooled_channels=2) as client:
        got: list[int] = []
        gates = [asyncio.Event() for _ in range(8)]
        async with client.channels.acquire(), client.channels.acquire():
            pass  # all of them are open

        async def hold(number: int) -> None:
            async with client.channels.acquire():
                got.append(number)
                await gates[number].wait()

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(hold(number)) for number in range(8)]
            for task, gate in zip(tasks, gates, strict=True):
                gate.set()
                await task
        assert got == list(range(8))


async def test_all_who_can_be_served_are_when_several_come_back_at_once(broker: Broker) -> None:
    async with leveret.connect(broker.url, max_pooled_channels=3, operation_timeout=2) as client:
        served, gate = asyncio.Semaphore(0), asyncio.Event()

        async def hold() -> None:
            async with client.channels.acquire():
                served.release()
                await gate.wait()

        async with asyncio.TaskGroup() as group:
            async with client.channels.acquire(), client.channels.acquire(), client.channels.acquire():
                tasks = [group.create_task(hold()) for _ in range(4)]
                await asyncio.sleep(0)
            # It is the turn of the first, who does not take it.
            tasks[0].cancel()
            for _ in range(3):
                await served.acquire()
            gate.set()
        assert tasks[0].cancelled()


async def test_the_error_names_the_limit_when_no_channel_is_free_in_time(broker: Broker) -> None:
    options: dict[str, Any] = {"max_pooled_channels": 2, "operation_timeout": 0.2}
    async with leveret.connect(broker.url, **options) as client:
        async with client.channels.acquire(), client.channels.acquire():
            with pytest.raises(OperationTimeout) as caught:
                await client.purge("q")
            assert str(caught.value) == (
                "no channel of connection 'leveret (publish)' was free within operation_timeout of 0.2 s; "
                "2 are in use, and the pool's limit is 2 (max_pooled_channels)"
            )
        async with client.channels.acquire(), client.channels.acquire():
            pass
        assert await open_channels(broker, client.connection) == 2


async def test_an_idle_channel_is_given_up_when_another_needs_its_place(
    broker: Broker, client: leveret.Client, queue: str
) -> None:
    async with client.dedicated_connection("one", max_channels=1) as one:
        await one.declare(Topology().queue(queue))
        async with one.producer() as producer:
            await producer.publish(1, queue)
            with pytest.raises(ConfigurationError, match=r"all 1 channels of connection 'one' are in use"):
                await one.purge(queue)
        assert await one.purge(queue) == 1
        assert await open_channels(broker, one.connection) == 1


async def test_a_pooled_channel_is_waited_for_when_others_use_all_numbers_but_its_own(
    dedicated: DedicatedConnection, queue: str
) -> None:
    async with dedicated.producer(), dedicated.producer():
        results = await asyncio.gather(*(dedicated.purge(queue) for _ in range(20)))
    assert results == [0] * 20


@pytest.mark.parametrize("turns", range(8))
async def test_no_place_is_lost_when_opening_a_channel_is_cancelled(
    broker: Broker, client: leveret.Client, turns: int
) -> None:
    async with client.dedicated_connection("one", max_channels=1) as one:
        for _ in range(10):
            task = asyncio.create_task(one.declare(Topology()))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            async with one.channels.acquire() as channel:
                assert channel.is_open
                await channel.confirm_select()  # so that the next one has to be opened
    assert client.connection.is_open


async def test_those_who_wait_get_a_new_connections_channel_when_the_connection_is_lost(
    broker: Broker, queue: str
) -> None:
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, max_pooled_channels=1) as client:
        async with client.channels.acquire() as held:
            waiting = [asyncio.create_task(client.purge(queue)) for _ in range(5)]
            await asyncio.sleep(0)
            proxy.reset()
            assert await asyncio.gather(*waiting) == [0] * 5
            assert not held.is_open
        assert set(client.connection._channels.values()) == client.channels._channels


async def test_idle_channels_are_forgotten_when_their_connection_is_lost(broker: Broker, queue: str) -> None:
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, max_pooled_channels=2) as client:
        for _ in range(3):
            await asyncio.gather(client.purge(queue), client.purge(queue))
            connection = client.connection
            proxy.reset()
            await connection._ended
            assert client.channels._channels == set()


async def test_no_place_is_lost_when_the_connection_is_lost_while_both_sides_close_a_channel(
    broker: Broker, queue: str
) -> None:
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, max_pooled_channels=1) as client:
        async with client.channels.acquire() as channel:
            await channel.confirm_select()
            proxy.swallow()
        # This side has sent channel.close; the broker's, which crosses it, comes, and its answer never does.
        connection = client.connection
        connection.events_received([method(commands.Channel.Close(404, "NOT_FOUND", 50, 10), channel.number)])
        assert not channel.is_open
        assert len(client.channels._channels) == 1
        proxy.reset()
        await connection._ended
        assert client.channels._channels == set()
        proxy.resume()
        assert await client.purge(queue) == 0


async def test_those_who_wait_are_told_when_the_client_is_closed(broker: Broker) -> None:
    async with leveret.connect(broker.url, max_pooled_channels=1) as client:
        pool = client.channels
        async with pool.acquire():
            waiting = [asyncio.create_task(client.purge("q")) for _ in range(5)]
            await asyncio.sleep(0)
            await client.close()
            for error in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(error, ConnectionClosed)
    assert pool._channels == set()


WORKERS = 25


@pytest.mark.parametrize(("limit", "uses"), [(7, 10_000), (1, 2_000)])
async def test_no_channel_is_leaked_when_uses_fail_and_are_cancelled_at_random(
    broker: Broker, client: leveret.Client, queue: str, limit: int, uses: int
) -> None:
    chance = random.Random(limit)
    ended: dict[str, int] = {}

    async with client.dedicated_connection("random", max_channels=limit) as dedicated:

        async def use() -> None:
            async with dedicated.channels.acquire() as channel:
                await channel.queue_declare(queue, passive=True)
                what = chance.random()
                if what < 0.05:
                    await channel.queue_declare(f"{queue}-missing", passive=True)
                elif what < 0.1:
                    await channel.confirm_select()
                elif what < 0.15:
                    raise ValueError
                elif what < 0.2:
                    await channel.close()

        async def cancelled_use() -> None:
            task = asyncio.create_task(use())
            for _ in range(chance.randrange(12)):
                await asyncio.sleep(0)
            task.cancel()
            await task

        async def work() -> None:
            for _ in range(uses // WORKERS):
                try:
                    await (cancelled_use() if chance.random() < 0.3 else use())
                    how = "done"
                except (asyncio.CancelledError, ValueError, ChannelClosed) as error:
                    how = type(error).__name__
                ended[how] = ended.get(how, 0) + 1

        connection = dedicated.connection
        await asyncio.gather(*(work() for _ in range(WORKERS)))
        # The broker agreed to this many channels; one more, and it would have closed the connection.
        assert dedicated.connection is connection
        assert connection.is_open
        assert connection.negotiated.channel_max == limit
        assert sum(ended.values()) == uses
        assert all(ended[how] > uses // 100 for how in ("done", "CancelledError", "ValueError", "NotFound")), ended
        assert await open_channels(broker, connection) <= limit
        # And none is lost.
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(limit):
                await stack.enter_async_context(dedicated.channels.acquire())
            assert await open_channels(broker, connection) == limit


async def test_no_channel_is_leaked_when_the_connection_is_lost_again_and_again(
    unique_name: Callable[[str], str],
) -> None:
    chance = random.Random(1)
    limit, queue = 5, unique_name("queue")
    quick: dict[str, Any] = {"recovery_initial_delay": 0.001, "recovery_max_delay": 0.002}
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, **quick) as client:
        await client.declare(Topology().queue(queue))
        dedicated = await client.dedicated_connection("unlucky", max_channels=limit)

        async def use() -> None:
            async with dedicated.channels.acquire() as channel:
                await channel.queue_declare(queue, passive=True)
                if chance.random() < 0.02:
                    broker.close_connections()
                if chance.random() < 0.2:
                    await channel.confirm_select()

        async def work() -> None:
            for _ in range(100):
                task = asyncio.create_task(use())
                if chance.random() < 0.3:
                    for _ in range(chance.randrange(12)):
                        await asyncio.sleep(0)
                    task.cancel()
                with contextlib.suppress(asyncio.CancelledError, ConnectionClosed):
                    await task

        await asyncio.gather(*(work() for _ in range(25)))
        counted = {(sample.metric.name, sample.labels[1]): sample.value for sample in client.metrics()}
        assert counted["connections_lost", "unlucky"] > 10
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(limit):
                await stack.enter_async_context(dedicated.channels.acquire())
            assert set(dedicated.connection._channels.values()) == dedicated.channels._channels
            assert len(dedicated.channels._channels) == limit
