"""The producers of a client are spread over as many connections as it is told, and each recovers by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.brokers import RabbitMQ, open_channels
from tests.support.metrics import values
from tests.support.queues import messages

import leveret
from leveret import Outcome
from leveret.broker import EmbeddedBroker
from leveret.errors import ConnectionClosed
from leveret.settings import ConnectionSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.brokers import Broker

    from leveret.testing import FaultProxy

# RabbitMQ's own program, which lists connections and sets alarms, takes seconds on a busy machine.
pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.time_limit(120)]


def connections_of(producers: list[leveret.Producer]) -> list[leveret.Connection]:
    """The connection that each producer writes to."""
    return [producer._connection for producer in producers]


def names_of(producers: list[leveret.Producer]) -> list[str]:
    """The names of these connections."""
    return [connection.name for connection in connections_of(producers)]


async def channels_of(broker: Broker, connections: list[leveret.Connection]) -> list[int]:
    """How many channels the broker has for each connection, by the names that it lists."""
    if not isinstance(broker, RabbitMQ):
        return [await open_channels(broker, connection) for connection in connections]
    table = await asyncio.to_thread(
        broker.node.ctl, "list_connections", "--no-table-headers", "client_properties", "channels"
    )
    rows = [line.split("\t") for line in table.splitlines()]
    return [
        int(channels)
        for connection in connections
        for properties, channels in rows
        if f'{{"connection_name","{connection.name}"}}' in properties
    ]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - there is no event for this
            await asyncio.sleep(0.001)


async def test_s7_a_client_publishes_on_one_connection_unless_it_is_told_otherwise(
    client: leveret.Client, queue: str
) -> None:
    assert ConnectionSettings().publish_connections == 1
    producers = [await client.producer().open() for _ in range(3)]
    assert set(connections_of(producers)) == {client.connection}
    assert client.publishing_links == (client.publishing_link,)
    assert {label for name, label in values(client.metrics()) if name == "connections_open"} == {"publish", "consume"}
    assert client.health().connections == {"publish": "open"}


async def test_s7_producers_get_the_publishing_connections_in_turn(
    broker: Broker, name: Callable[[str], str], other: leveret.Client, queue: str
) -> None:
    async with leveret.connect(broker.url, client_name="s7", publish_connections=3) as client:
        # The others are opened with their first producers.
        assert client.health().connections == {"publish": "open"}
        producers = [await client.producer().open() for _ in range(7)]
        names = ["s7 (publish)", "s7 (publish-2)", "s7 (publish-3)"]
        assert names_of(producers) == [*names, *names, names[0]]
        assert len(set(connections_of(producers))) == 3
        results = await asyncio.gather(*(it.publish_batch([n] * 100, queue) for n, it in enumerate(producers)))
        assert [result.confirmed for result in results] == [100] * 7
        # The client's own producer has the next one.
        assert (await client.message("fluent").queue(queue).publish()).outcome is Outcome.CONFIRMED
        # The broker has as many connections, with these channels.
        assert await channels_of(broker, connections_of(producers)[:3]) == [3, 3, 2]

        assert client.health().connections == dict.fromkeys(("publish", "publish-2", "publish-3"), "open")
        counted = values(client.metrics())
        for label in ("publish", "publish-2", "publish-3"):
            assert counted["connections_open", label] == counted["connections_opened", label] == 1
            assert counted["sent", label] > 1000
        assert counted["connections_open", "consume"] == 0
        assert counted["publishings_confirmed", ""] == 701
        opened = connections_of(producers)
    assert all(isinstance(connection.error, ConnectionClosed) for connection in opened)
    taken = [message.value for message in await messages(other, queue)]
    assert sorted(taken, key=str) == [*(n for n in range(7) for _ in range(100)), "fluent"]


async def test_s7_the_loss_of_one_publishing_connection_leaves_the_others_undisturbed(
    broker: Broker, proxy: FaultProxy, name: Callable[[str], str], other: leveret.Client, queue: str
) -> None:
    options: dict[str, Any] = {"publish_connections": 3, "recovery_initial_delay": 0.01, "recovery_max_delay": 0.05}
    async with leveret.connect(proxy.url, **options) as client:
        producers = [await client.producer().open() for _ in range(3)]
        before = connections_of(producers)
        await asyncio.gather(*(producer.publish("before", queue) for producer in producers))
        proxy.refuse()
        before[1].transport.abort()
        await until(lambda: before[1].error)

        waiting = asyncio.create_task(producers[1].publish("later", queue))
        for _ in range(20):
            await asyncio.gather(producers[0].publish("first", queue), producers[2].publish("third", queue))
        assert not waiting.done()
        health = client.health()
        assert (health.ready, health.live) == (False, True)
        assert health.connections["publish"] == health.connections["publish-3"] == "open"
        assert health.connections["publish-2"].startswith("lost: ")
        (reason,) = health.reasons
        assert reason.startswith("connection 'publish-2'")

        proxy.accept()
        async with asyncio.timeout(60):
            assert (await waiting).outcome is Outcome.CONFIRMED
        after = connections_of(producers)
        assert (after[0], after[2]) == (before[0], before[2])
        assert after[1] is not before[1]
        assert after[1].name == before[1].name
        assert client.health().ready
        counted = values(client.metrics())
        assert [counted["connections_lost", it] for it in ("publish", "publish-2", "publish-3")] == [0, 1, 0]
        assert [counted["connections_opened", it] for it in ("publish", "publish-2", "publish-3")] == [1, 2, 1]
    taken = [message.value for message in await messages(other, queue)]
    assert sorted(taken) == ["before"] * 3 + ["first"] * 20 + ["later"] + ["third"] * 20


async def test_s7_each_publishing_connection_is_blocked_by_itself(blockable: Broker, queue: str) -> None:
    async with leveret.connect(blockable.url, publish_connections=2) as client:
        free = await client.producer().open()
        stopped = await client.producer(confirm_timeout=60, publish_timeout=60).open()
        assert await free.publish("before", queue)
        await blockable.block()
        # A broker blocks the connections that publish.
        publishing = asyncio.create_task(stopped.publish("blocked", queue))
        await until(lambda: stopped._connection.blocked)
        health = client.health()
        assert health.connections["publish"] == "open"
        assert health.connections["publish-2"].startswith("blocked: ")
        counted = values(client.metrics())
        assert (counted["connections_blocked", "publish"], counted["connections_blocked", "publish-2"]) == (0, 1)
        await blockable.unblock()
        assert (await publishing).outcome is Outcome.CONFIRMED
        assert client.health().ready


async def test_s7_what_was_declared_is_declared_again_when_all_publishing_connections_were_lost(
    proxy: FaultProxy, name: Callable[[str], str], other: leveret.Client
) -> None:
    queue = name("queue")
    async with leveret.connect(proxy.url, publish_connections=2, recovery_max_delay=0.1) as client:
        await client.declare(leveret.Topology().queue(queue))
        producers = [await client.producer(confirm_timeout=30).open() for _ in range(2)]
        before = connections_of(producers)
        proxy.refuse()
        proxy.reset()
        await until(lambda: all(connection.error for connection in before))
        await other.delete_queue(queue)
        proxy.accept()
        # A message that reaches no queue is an error.
        for producer in reversed(producers):
            assert (await producer.publish("again", queue)).outcome is Outcome.CONFIRMED
        assert [message.value for message in await messages(other, queue)] == ["again"] * 2


async def test_s7_a_new_secret_reaches_every_publishing_connection() -> None:
    async with EmbeddedBroker(users={"svc": "first"}) as broker:
        url = f"amqp://svc:first@127.0.0.1:{broker.port}"
        async with leveret.connect(url, publish_connections=3) as client:
            producers = [await client.producer().open() for _ in range(3)]
            broker.users["svc"] = "second"
            await client.update_secret("second")
            assert all(connection.is_open for connection in connections_of(producers))
            broker.close_connections()
            for link in client.publishing_links:
                assert (await link.recovered()).is_open


async def test_s7_a_dedicated_connection_is_one_of_its_own(client: leveret.Client, broker: Broker) -> None:
    async with (
        leveret.connect(broker.url, publish_connections=4) as many,
        many.dedicated_connection("own") as own,
        own.producer() as first,
        own.producer() as second,
    ):
        assert names_of([first, second]) == ["own", "own"]
        assert own.publishing_links == (own.consuming_link,)
