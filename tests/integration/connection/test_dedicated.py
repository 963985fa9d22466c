"""Connections of their own with a limit of channels, and the pools that lend channels."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.brokers import open_channels
from tests.support.conversation import method
from tests.support.loops import every_loop
from tests.support.proxy import Proxy

import leveret
from leveret import Topology
from leveret.broker import EmbeddedBroker
from leveret.errors import (
    ChannelClosed,
    ConfigurationError,
    ConnectFailed,
    ConnectionClosed,
    EncodeFailed,
    NotFound,
    OperationTimeout,
)
from leveret.protocol import commands
from leveret.protocol.commands import Basic
from leveret.protocol.commands import Channel as ChannelMethods

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.brokers import Broker

    from leveret.client.client import DedicatedConnection
    from leveret.connection.channel import Channel

pytestmark = pytest.mark.usefixtures("no_leftovers")


# ---------------------------------------------------------------------- what it is


async def test_producers_and_consumers_share_one_connection_when_it_is_dedicated(
    broker: Broker, client: leveret.Client, dedicated: DedicatedConnection, queue: str, name: Callable[[str], str]
) -> None:
    own = name("queue")
    await dedicated.declare(Topology().queue(own))
    async with dedicated.producer() as producer, dedicated.consumer(own) as consumer:
        await producer.publish("mine", own)
        message = await anext(consumer)
        assert message.value == "mine"
        assert producer._connection is consumer._connection is dedicated.connection
        assert dedicated.connection is not client.connection
        # The pool's, the producer's and the consumer's.
        assert await open_channels(broker, dedicated.connection) == 3
        message.ack()
    assert (dedicated.name, dedicated.connection.name) == ("dedicated", "dedicated")
    assert await dedicated.purge(own) == 0
    assert await dedicated.delete_queue(own) == 0
    assert "'dedicated'" in repr(dedicated)
    assert "guest:guest" not in repr(dedicated)


async def test_it_can_be_awaited_and_closed_when_no_block_fits(client: leveret.Client) -> None:
    opening = client.dedicated_connection("awaited")
    dedicated = await opening
    with pytest.raises(ConfigurationError, match=r"dedicated_connection\('awaited'\) was opened already"):
        await opening
    assert dedicated.connection.is_open
    assert dedicated.connection.negotiated.channel_max == client.connection.negotiated.channel_max
    await dedicated.close()
    await dedicated.close()  # again is no error
    assert not dedicated.connection.is_open
    for call in (dedicated.channel(), dedicated.declare(Topology()), dedicated.producer().open()):
        with pytest.raises(ConnectionClosed, match=r"connection 'awaited' was closed by this side"):
            await call


async def test_both_sides_refuse_a_channel_when_all_are_in_use(broker: Broker, dedicated: DedicatedConnection) -> None:
    connection = dedicated.connection
    assert connection.negotiated.channel_max == 3
    channels = [await dedicated.channel() for _ in range(3)]
    for call in (dedicated.channel, dedicated.producer().open, dedicated.consumer("q").get):
        with pytest.raises(ConfigurationError, match=r"all 3 channels of connection 'dedicated' are in use") as caught:
            await call()
        assert caught.value.option == "channel_max"
    with pytest.raises(ConfigurationError, match=r"all 3 channels"):
        await dedicated.declare(Topology())
    assert all(channel.is_open for channel in channels)

    # The broker keeps the limit as well, for a client that would not.
    connection.transport.out.append(commands.encode(4, commands.make(ChannelMethods.Open, out_of_band="")))
    with pytest.raises(ConnectionClosed, match=r"number of channels opened \(3\) has reached") as closed:
        await channels[0].queue_declare("q", passive=True)
    assert closed.value.reply_code == 530


@pytest.mark.parametrize(
    ("arguments", "option", "text"),
    [
        ({"name": ""}, "name", "name has 0 bytes in UTF-8; it must have 1 to 200"),
        ({"name": "é" * 101}, "name", "name has 202 bytes in UTF-8; it must have 1 to 200"),
        ({"name": "a\0b"}, "name", "name has a NUL or is not Unicode text"),
        ({"name": None}, "name", "name is of type NoneType; it must be text"),
        ({"name": "n", "max_channels": 0}, "max_channels", "max_channels is 0; it must be 1 to 65535"),
        ({"name": "n", "max_channels": 65_536}, "max_channels", "max_channels is 65536; it must be 1 to 65535"),
        (
            {"name": "n", "max_channels": True},
            "max_channels",
            "max_channels is of type bool; it must be a whole number",
        ),
        ({"name": "n", "max_channels": "50"}, "max_channels", "max_channels is of type str; it must be a whole number"),
    ],
    ids=str,
)
async def test_an_argument_is_named_when_it_is_refused(arguments: Any, option: str, text: str) -> None:
    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
        with pytest.raises(ConfigurationError) as caught:
            client.dedicated_connection(**arguments)
        assert (str(caught.value), caught.value.option) == (text, option)
        assert len(broker.sessions) == 1


async def test_a_name_is_refused_as_long_as_it_is_in_use(client: leveret.Client) -> None:
    async with client.dedicated_connection("x" * 200, max_channels=1) as first:
        with pytest.raises(ConfigurationError, match=r"has a dedicated connection named 'xxx") as caught:
            await client.dedicated_connection("x" * 200)
        assert caught.value.option == "name"
        assert first.connection.is_open
        assert client._dedicated == {"x" * 200: first}
    async with client.dedicated_connection("x" * 200):
        pass
    # Two at once: one of them has it.
    both = await asyncio.gather(
        *(client.dedicated_connection("x") for _ in range(2)),
        return_exceptions=True,
    )
    assert sorted(type(each).__name__ for each in both) == ["ConfigurationError", "DedicatedConnection"]


async def test_a_name_is_free_again_when_its_connection_could_not_be_opened(broker: Broker) -> None:
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url) as client:
        await proxy.stop()
        opening = client.dedicated_connection("late")
        for _ in range(2):
            with pytest.raises(ConnectFailed):
                await opening  # the same object may be tried again
        assert client._dedicated == {}


@pytest.mark.parametrize("turns", [*range(12), 20, 40])
async def test_nothing_is_left_when_opening_is_cancelled(broker: Broker, client: leveret.Client, turns: int) -> None:
    async def opened() -> DedicatedConnection:
        return await client.dedicated_connection("cancelled")

    task = asyncio.create_task(opened())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await (await task).close()
    assert client._dedicated == {}


# ---------------------------------------------------------------------- its life


@every_loop
async def test_it_is_closed_with_its_client_and_nothing_is_lost(
    broker: Broker, queue: str, client: leveret.Client
) -> None:
    async with leveret.connect(broker.url) as owner:
        dedicated = await owner.dedicated_connection("with its client")
        producer = await dedicated.producer().open()
        tickets = [producer.publish_nowait(number, queue) for number in range(100)]
    assert [(await ticket).delivery_tag for ticket in tickets] == list(range(1, 101))
    assert not dedicated.connection.is_open
    assert dedicated.connection.transport.closed
    assert await client.purge(queue) == 100
    with pytest.raises(ConnectionClosed, match=r"client is closed"):
        await owner.dedicated_connection("too late")


async def test_nothing_is_left_when_the_client_is_closed_while_it_opens(broker: Broker) -> None:
    client = await leveret.connect(broker.url)

    async def opened() -> DedicatedConnection:
        return await client.dedicated_connection("too late")

    task = asyncio.create_task(opened())
    for _ in range(3):
        await asyncio.sleep(0)  # it is being made
    await client.close()
    async with asyncio.timeout(5):
        with pytest.raises(leveret.LeveretError):
            await task
    assert client._dedicated == {}


async def test_it_is_counted_under_its_name(client: leveret.Client, dedicated: DedicatedConnection) -> None:
    def counted() -> dict[tuple[str, str], int]:
        return {(sample.metric.name, sample.labels[1]): sample.value for sample in client.metrics()}

    before = counted()
    assert before["connections_opened", "dedicated"] == before["connections_open", "dedicated"] == 1
    assert before["sent", "dedicated"] > 100
    await dedicated.close()
    after = counted()
    assert after["connections_opened", "dedicated"] == 1
    assert after["connections_open", "dedicated"] == 0
    assert after["sent", "dedicated"] > before["sent", "dedicated"]


async def declare_for_ever(channel: Channel, queue: str) -> None:
    while True:
        await channel.queue_declare(queue, passive=True)


async def test_new_producers_get_a_new_connection_of_the_same_name_when_it_was_lost(
    broker: Broker, client: leveret.Client, dedicated: DedicatedConnection, queue: str
) -> None:
    lost = dedicated.connection
    async with dedicated.channels.acquire() as channel:
        await broker.close_connections()
        with pytest.raises(ConnectionClosed):
            await declare_for_ever(channel, queue)
    async with dedicated.producer() as producer:
        await producer.publish(1, queue)
    assert await dedicated.purge(queue) == 1
    assert dedicated.connection is not lost
    assert (dedicated.connection.name, dedicated.connection.negotiated.channel_max) == ("dedicated", 3)


# ---------------------------------------------------------------------- the pool


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
    assert client.channels._channels == {other}


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
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url, max_pooled_channels=1) as client:
        async with client.channels.acquire() as held:
            waiting = [asyncio.create_task(client.purge(queue)) for _ in range(5)]
            await asyncio.sleep(0)
            proxy.reset()
            assert await asyncio.gather(*waiting) == [0] * 5
            assert not held.is_open
        assert set(client.connection._channels.values()) == client.channels._channels


async def test_idle_channels_are_forgotten_when_their_connection_is_lost(broker: Broker, queue: str) -> None:
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url, max_pooled_channels=2) as client:
        for _ in range(3):
            await asyncio.gather(client.purge(queue), client.purge(queue))
            connection = client.connection
            proxy.reset()
            await connection._ended
            assert client.channels._channels == set()


async def test_no_place_is_lost_when_the_connection_is_lost_while_both_sides_close_a_channel(
    broker: Broker, queue: str
) -> None:
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url, max_pooled_channels=1) as client:
        async with client.channels.acquire() as channel:
            await channel.confirm_select()
            proxy.deaf = True
        # This side has sent channel.close; the broker's, which crosses it, comes, and its answer never does.
        connection = client.connection
        connection.events_received([method(commands.Channel.Close(404, "NOT_FOUND", 50, 10), channel.number)])
        assert not channel.is_open
        assert len(client.channels._channels) == 1
        proxy.reset()
        await connection._ended
        assert client.channels._channels == set()
        proxy.deaf = False
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
    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
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
