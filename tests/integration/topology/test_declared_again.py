"""What a client has declared is there again on its next connection, and exclusive queues live where it consumes."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Exchange, Queue
from tests.support.handling import running, until
from tests.support.peers import ANSWERS, FakeServer, Peer
from tests.support.queues import taken

import leveret
from leveret import Classic, Topology
from leveret.errors import ConfigurationError, MessageReturned, NotFound, ResourceLocked
from leveret.testing import FaultProxy
from leveret.topology.declaring import AT_ONCE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")

#: Delays that keep tests short.
QUICK: dict[str, Any] = {"recovery_initial_delay": 0.01, "recovery_max_delay": 0.05}


class Seen:
    """A handler that notes the values."""

    def __init__(self) -> None:
        self.values: list[Any] = []

    async def __call__(self, value: Any, message: leveret.Message) -> None:
        self.values.append(value)


class Lossy:
    """A client behind a proxy, and another one that nothing happens to.

    Attributes:
        client: The client whose connections are lost.
        other: The other one.
        proxy: Between the first and the broker.
    """

    def __init__(self, client: leveret.Client, other: leveret.Client, proxy: FaultProxy) -> None:
        self.client, self.other, self.proxy = client, other, proxy

    async def lose_connections(self) -> None:
        """Resets all connections, and waits until both are back."""
        links = (self.client.publishing_link, self.client.consuming_link)
        lost = [link.connection for link in links if link.connection is not None]
        self.proxy.reset()
        await until(lambda: all(connection.error is not None for connection in lost))
        for link in links:
            if link.connection is not None:
                await link.recovered()

    async def exists(self, queue: str) -> bool:
        return await exists(self.other, queue)


async def exists(client: leveret.Client, queue: str) -> bool:
    """Returns whether there is a queue of this name."""
    channel = await client.channel()
    try:
        await channel.queue_declare(queue, passive=True)
    except NotFound:
        return False
    except ResourceLocked:
        return True
    finally:
        await channel.close()
    return True


async def routed(client: leveret.Client, exchange: str, routing_key: str = "") -> bool:
    """Publishes a message; returns whether it reached a queue."""
    async with client.producer(exchange=exchange, mandatory=True) as producer:
        try:
            await producer.publish("routed", routing_key)
        except MessageReturned:
            return False
    return True


@pytest.fixture
async def lossy(broker: Broker, client: leveret.Client) -> AsyncIterator[Lossy]:
    async with FaultProxy(broker.url) as proxy, leveret.connect(proxy.url, **QUICK) as behind:
        yield Lossy(behind, client, proxy)


# ---------------------------------------------------------------------- where exclusive queues live


async def test_an_exclusive_queue_is_declared_used_and_deleted_by_one_client(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    queue = name("exclusive")
    report = await client.declare(Topology().queue(queue, exclusive=True).bind(queue, "amq.topic", "key"))
    assert await routed(client, "amq.topic", "key")
    assert await client.purge(queue) == 1
    seen = Seen()
    async with running(client.consumer(report.queues[queue]), seen), client.producer() as producer:
        await producer.publish("first", queue)
        await until(lambda: seen.values == ["first"])
    async with client.consumer(queue) as consumer, client.producer() as producer:
        await producer.publish("second", queue)
        message = await consumer.get()
        assert message is not None
        assert message.value == "second"
        message.ack()
    await client.unbind(queue, "amq.topic", "key")
    assert not await routed(client, "amq.topic", "key")
    assert await client.delete_queue(queue) == 0
    assert not await exists(client, queue)


async def test_a_queue_that_the_server_names_is_declared_used_and_deleted_by_one_client(client: leveret.Client) -> None:
    report = await client.declare(Topology().queue(exclusive=True).bind("", "amq.fanout"))
    queue = report.queues[""]
    assert await routed(client, "amq.fanout")
    assert await client.purge(queue) == 1
    seen = Seen()
    async with running(client.consumer(queue), seen):
        assert await routed(client, "amq.fanout")
        await until(lambda: seen.values == ["routed"])
    batches = client.batches(queue, size=2, wait=0.01)
    async with batches:
        assert await routed(client, "amq.fanout")
        batch = await anext(batches)
        assert batch.values == ["routed"]
        batch.ack()
    assert await client.delete_queue(queue) == 0
    assert not await exists(client, queue.name)


@pytest.mark.parametrize("chosen", [False, True], ids=["named", "server-named"])
async def test_another_connection_of_the_client_is_refused_an_exclusive_queue(
    client: leveret.Client, name: Callable[[str], str], chosen: bool
) -> None:
    topology = Topology().queue("" if chosen else name("exclusive"), exclusive=True)
    (queue,) = (await client.declare(topology)).queues.values()
    async with client.dedicated_connection("apart") as apart:
        (own,) = (await apart.declare(Topology().queue("" if chosen else name("own"), exclusive=True))).queues.values()
        for user, wanted in ((apart, queue), (client, own)):
            bound = Topology().bind(wanted.name, "amq.fanout")
            for refused in (user.purge(wanted), user.delete_queue(wanted), user.declare(bound)):
                with pytest.raises(ConfigurationError, match=wanted.name):
                    await refused
            with pytest.raises(ConfigurationError, match="another connection of this client"):
                user.consumer(wanted)
        assert await apart.purge(own) == 0
    assert await client.purge(queue) == 0
    assert not await exists(client, own.name), "it went with its connection"
    assert client.declared.queue(own.name) is None


async def test_a_consumer_that_was_made_before_its_queue_is_refused_when_it_starts(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    queue = name("exclusive")
    async with client.dedicated_connection("apart") as apart:
        early = apart.consumer(queue)
        await client.declare(Topology().queue(queue, exclusive=True))
        with pytest.raises(ConfigurationError, match=queue):
            await early.run(Seen())
    assert client.connection.is_open


def test_a_binding_without_a_queue_needs_one_that_the_server_names() -> None:
    async def main() -> None:
        async with leveret.broker.EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
            with pytest.raises(ConfigurationError, match="names no queue"):
                await client.declare(Topology().queue("q").bind("", "amq.fanout"))

    asyncio.run(main())


# ---------------------------------------------------------------------- what comes back


async def test_an_exclusive_queue_comes_back_with_its_bindings_and_its_consumer_goes_on(
    lossy: Lossy, name: Callable[[str], str]
) -> None:
    queue, exchange = name("exclusive"), name("exchange")
    await lossy.client.declare(
        Topology()
        .exchange(exchange, "topic", auto_delete=True)
        .queue(queue, exclusive=True)
        .bind(queue, exchange, "a.*")
    )
    seen = Seen()
    consumer = lossy.client.consumer(queue)
    async with running(consumer, seen) as task:
        await until(lambda: consumer.health().live)
        for turn in range(3):
            await lossy.lose_connections()
            await until(lambda: consumer.health().live)
            assert await routed(lossy.client, exchange, "a.b"), "the binding is back"
            await until(lambda: seen.values == ["routed"] * (turn + 1))  # noqa: B023 - it is awaited in this turn
        assert not task.done()
    assert consumer.queue == queue


async def test_a_consumer_follows_its_queue_when_the_server_names_it_again(
    lossy: Lossy, name: Callable[[str], str]
) -> None:
    exchange = name("exchange")
    report = await lossy.client.declare(
        Topology().exchange(exchange, "fanout", durable=False).queue(exclusive=True).bind("", exchange)
    )
    queue = report.queues[""]
    seen, later = Seen(), Seen()
    consumer = lossy.client.consumer(queue)
    names = {queue.name}
    async with running(consumer, seen):
        await until(lambda: consumer.health().live)
        for turn in range(3):
            await lossy.lose_connections()
            await until(lambda: consumer.health().live)
            assert await routed(lossy.client, exchange)
            await until(lambda: seen.values == ["routed"] * (turn + 1))  # noqa: B023 - it is awaited in this turn
            names.add(consumer.queue)
    assert len(names) == 4
    assert all(name.startswith("amq.gen-") for name in names)
    # The report's entry still means the queue, and so does a name in between.
    known: list[Any] = [queue, *names]
    for each in known:
        async with running(lossy.client.consumer(each), later):
            assert await routed(lossy.client, exchange)
            await until(lambda: later.values)
            later.values.clear()
    assert await lossy.client.delete_queue(queue) == 0
    assert not await routed(lossy.client, exchange)


async def test_a_queue_that_the_server_named_keeps_its_name_when_it_outlives_the_connection(
    lossy: Lossy, name: Callable[[str], str]
) -> None:
    queue = (await lossy.client.declare(Topology().queue().bind("", "amq.direct", key := name("key")))).queues[""]
    assert await routed(lossy.client, "amq.direct", key)
    await lossy.lose_connections()
    assert await routed(lossy.client, "amq.direct", key)
    assert await taken(lossy.client, queue.name) == ["routed", "routed"]
    assert lossy.client.declared.queues()[0].name == queue.name
    await lossy.other.delete_queue(queue.name)
    await lossy.lose_connections()
    assert lossy.client.declared.queues()[0].name != queue.name
    assert await routed(lossy.client, "amq.direct", key)
    assert await lossy.client.delete_queue(queue) == 1


async def test_everything_that_was_declared_comes_back_when_others_have_deleted_it_meanwhile(
    lossy: Lossy, name: Callable[[str], str]
) -> None:
    first, second, queue, quorum = name("first"), name("second"), name("queue"), name("quorum")
    await lossy.client.declare(
        Topology()
        .exchange(first, "topic")
        .exchange(second, "headers", durable=False)
        .bind_exchange(second, first, "#.x")
        .queue(queue, Classic(max_length=7))
        .queue(quorum, leveret.Quorum(delivery_limit=3))
        .bind(queue, second, arguments={"x-match": "all", "tenant": 7})
        .bind(quorum, first, "q")
    )
    for each in (first, second):
        await lossy.other.delete_exchange(each)
    for each in (queue, quorum):
        await lossy.other.delete_queue(each)
    await lossy.lose_connections()
    async with lossy.client.producer(exchange=first, mandatory=True) as producer:
        await producer.publish(1, "q")
        await producer.publish(2, "a.x", headers={"tenant": 7})
        with pytest.raises(MessageReturned):
            await producer.publish(3, "a.x", headers={"tenant": 8})
    assert await taken(lossy.other, quorum) == [1]
    assert await taken(lossy.other, queue) == [2]
    await lossy.other.declare(
        Topology().queue(queue, Classic(max_length=7)).queue(quorum, leveret.Quorum(delivery_limit=3))
    )


async def test_what_the_client_deletes_or_unbinds_does_not_come_back(lossy: Lossy, name: Callable[[str], str]) -> None:
    client = lossy.client
    deleted, raw, kept, gone, exclusive = (name(each) for each in ("deleted", "raw", "kept", "gone", "exclusive"))
    await client.declare(
        Topology().exchange(gone, "fanout").exchange(kept, "fanout").queue(deleted).queue(raw).queue(kept)
        .queue(exclusive, exclusive=True).bind(kept, gone).bind(kept, kept).bind(kept, "amq.direct", raw)
        .bind(exclusive, "amq.direct", exclusive).bind_exchange(kept, "amq.direct", gone)
    )  # fmt: skip
    await client.delete_queue(deleted)
    await client.delete_exchange(gone)
    await client.unbind(kept, kept)
    await client.unbind(exclusive, "amq.direct", exclusive)
    await client.unbind_exchange(kept, "amq.direct", gone)
    channel = await client.channel()
    await channel.queue_delete(raw)
    await channel.queue_unbind(kept, "amq.direct", raw)
    await channel.close()
    await lossy.lose_connections()
    assert not await lossy.exists(deleted)
    assert not await lossy.exists(raw)
    assert await lossy.exists(kept)
    assert await lossy.exists(exclusive)
    with pytest.raises(leveret.errors.ExchangeNotFound):
        await routed(client, gone)
    assert not await routed(client, kept)
    for key in (exclusive, raw, gone):
        assert not await routed(client, "amq.direct", key)


async def test_a_queue_that_is_deleted_while_the_client_is_connected_is_not_made_again(
    lossy: Lossy, name: Callable[[str], str]
) -> None:
    queue = name("queue")
    await lossy.client.declare(Topology().queue(queue))
    consumer = lossy.client.consumer(queue, queue_missing_timeout=0.2)
    async with running(consumer, Seen()) as task:
        await until(lambda: consumer.health().live)
        await lossy.other.delete_queue(queue)
        async with asyncio.timeout(10):
            with pytest.raises(NotFound, match=r"queue_missing_timeout of 0\.2 s"):
                await task
    assert not await lossy.exists(queue)


async def test_what_the_broker_refuses_is_skipped_and_reported_and_the_rest_comes_back(
    lossy: Lossy, name: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    wrong, right, missing, exclusive = (name(each) for each in ("wrong", "right", "missing", "exclusive"))
    await lossy.client.declare(
        Topology()
        .exchange(missing)
        .queue(wrong)
        .queue(right)
        .queue(exclusive, exclusive=True)
        .bind(wrong, missing, "key")
        .bind(right, missing, "key")
        .bind(exclusive, missing, "key")
    )
    consumer, seen = lossy.client.consumer(exclusive), Seen()
    async with running(consumer, seen):
        await until(lambda: consumer.health().live)
        await lossy.other.delete_queue(wrong)
        await lossy.other.delete_queue(right)
        await lossy.other.declare(Topology().queue(wrong, Classic(max_length=1)))
        with caplog.at_level(logging.INFO):
            await lossy.lose_connections()
        await until(lambda: consumer.health().live)
        assert await routed(lossy.client, missing, "key")
        await until(lambda: seen.values == ["routed"])
    assert await taken(lossy.client, right) == ["routed"]
    refusals = [it.getMessage() for it in caplog.records if "could not be declared again" in it.getMessage()]
    assert len(refusals) == 1
    assert f"queue '{wrong}'" in refusals[0]
    assert "max-length" in refusals[0]


async def test_an_exclusive_queue_is_taken_back_when_the_broker_still_has_it_for_the_old_connection(
    lossy: Lossy, broker: Broker, name: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    queue = name("exclusive")
    await lossy.client.declare(Topology().queue(queue, exclusive=True).bind(queue, "amq.direct", queue))
    consumer, seen = lossy.client.consumer(queue), Seen()
    async with running(consumer, seen):
        await until(lambda: consumer.health().live)
        # Another connection has the name, as the old one of the client has it until the broker misses its heartbeats.
        old = lossy.client.consuming_link.connection
        async with leveret.connect(broker.url) as thief:
            lossy.proxy.refuse()
            lossy.proxy.reset()
            await until(lambda: not consumer.health().live)
            async with asyncio.timeout(10):
                while True:
                    with contextlib.suppress(ResourceLocked):
                        await thief.declare(Topology().queue(queue, exclusive=True))
                        break
            lossy.proxy.accept()
            await until(lambda: "RESOURCE_LOCKED" in caplog.text)
            assert not consumer.health().live
        await until(lambda: consumer.health().live)
        assert lossy.client.consuming_link.connection is not old
        assert await routed(lossy.client, "amq.direct", queue)
        await until(lambda: seen.values == ["routed"])


async def test_an_auto_delete_queue_is_there_again_after_a_pause_and_after_a_closed_channel(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    queue, exchange = name("auto"), name("exchange")
    await client.declare(
        Topology().exchange(exchange, "fanout", auto_delete=True).queue(queue, auto_delete=True).bind(queue, exchange)
    )
    consumer, seen = client.consumer(queue), Seen()
    async with running(consumer, seen):
        await until(lambda: consumer.health().live)
        await consumer.pause()
        assert not await exists(client, queue)
        await consumer.resume()
        assert await routed(client, exchange)
        await until(lambda: seen.values == ["routed"])

        channel = consumer._subscription.channel
        assert channel is not None
        with pytest.raises(NotFound):
            await channel.queue_declare(name("missing"), passive=True)
        await until(lambda: consumer._subscription.channel is not channel and consumer.health().live)
        assert await routed(client, exchange)
        await until(lambda: seen.values == ["routed", "routed"])
    assert not await exists(client, queue), "it went with its consumer"
    assert client.declared.queues() == []
    assert client.declared.exchanges() == []


async def test_a_consumer_of_a_dedicated_connection_gets_its_exclusive_queue_back(
    lossy: Lossy, name: Callable[[str], str]
) -> None:
    queue = name("exclusive")
    async with lossy.client.dedicated_connection("apart") as apart:
        await apart.declare(Topology().queue(queue, exclusive=True).bind(queue, "amq.direct", queue))
        consumer, seen = apart.consumer(queue), Seen()
        async with running(consumer, seen):
            await until(lambda: consumer.health().live)
            lossy.proxy.reset()
            await until(lambda: not consumer.health().live)
            await until(lambda: consumer.health().live)
            assert await routed(lossy.other, "amq.direct", queue)
            await until(lambda: seen.values == ["routed"])


# ---------------------------------------------------------------------- how often, and how much


class Counting:
    """A broker that notes what is declared, and answers when the client has said all that it says before it waits."""

    def __init__(self) -> None:
        self.waits = 0
        self.declared: list[list[str]] = []
        self.peers: list[Peer] = []

    async def __call__(self, peer: Peer) -> None:
        await peer.handshake()
        self.peers.append(peer)
        mine: list[str] = []
        self.declared.append(mine)
        answers: list[tuple[int, Any]] = []
        receiving = self._receiving(peer)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                done, _ = await asyncio.wait([receiving], timeout=0.02 if answers else None)
                if done:
                    channel, method = receiving.result()
                    answers.append((channel, method))
                    if isinstance(method, Exchange.Declare | Queue.Declare):
                        mine.append(method.exchange if isinstance(method, Exchange.Declare) else method.queue)
                    receiving = self._receiving(peer)
                    continue
                self.waits += 1
                for channel, method in answers:
                    if isinstance(method, Exchange.Declare):
                        peer.send(Exchange.DeclareOk(), channel)
                    elif method.name in ANSWERS:
                        peer.send(ANSWERS[method.name](method), channel)
                answers.clear()

    @staticmethod
    def _receiving(peer: Peer) -> asyncio.Task[Any]:
        task = asyncio.create_task(peer.receive())
        # The last one may fail when the script has ended.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return task


@pytest.fixture
async def counting() -> AsyncIterator[tuple[Counting, leveret.Client]]:
    script = Counting()
    async with FakeServer(script) as server, leveret.connect(server.url, **QUICK) as client:
        yield script, client


async def test_five_thousand_queues_cost_a_few_round_trips(counting: tuple[Counting, leveret.Client]) -> None:
    script, client = counting
    before = script.waits
    topology = Topology()
    for number in range(5000):
        topology.queue(f"q{number}")
    async with asyncio.timeout(30):
        report = await client.declare(topology)
    assert list(report.queues) == [f"q{number}" for number in range(5000)]
    assert script.declared[0] == [f"q{number}" for number in range(5000)]
    # One more opens the channel.
    assert script.waits - before <= 5000 // AT_ONCE + 1

    before = script.waits
    script.peers[0].hang_up()
    async with asyncio.timeout(30):
        await until(lambda: client.connection.error is not None)
        await client.publishing_link.recovered()
    assert script.declared[1] == script.declared[0]
    assert script.waits - before <= 5000 // AT_ONCE + 2


async def test_what_belongs_to_no_connection_is_declared_once_when_both_were_lost(
    counting: tuple[Counting, leveret.Client],
) -> None:
    script, client = counting
    await client.declare(Topology().exchange("e").queue("shared").queue("own", exclusive=True))
    assert script.declared == [["e", "shared"], ["own"]]
    for peer in script.peers:
        peer.hang_up()
    await until(lambda: client.consuming_link.connection is not None and client.consuming_link.connection.error)
    await until(lambda: client.connection.error)
    await asyncio.gather(client.consuming_link.recovered(), client.publishing_link.recovered())
    again = script.declared[2:]
    assert sorted(itertools.chain(*again)) == ["e", "own", "shared"]
    # Whichever connection is back first declares what both need.
    assert again[0][:2] == ["e", "shared"]


async def test_the_consuming_connection_declares_everything_when_it_alone_is_back(
    counting: tuple[Counting, leveret.Client],
) -> None:
    script, client = counting
    await client.declare(Topology().exchange("e").queue("shared").queue("own", exclusive=True))
    for peer in script.peers:
        peer.hang_up()
    await until(lambda: client.consuming_link.connection is not None and client.consuming_link.connection.error)
    await until(lambda: client.connection.error)
    await client.consuming_link.recovered()
    assert script.declared[2:] == [["e", "shared", "own"]]
    # The other one has nothing left to do.
    await client.publishing_link.recovered()
    assert script.declared[3:] == [[]]
