"""A broker that is stopped, killed or has forgotten everything: what was declared is there, and consumers go on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from tests.support.handling import until
from tests.support.rabbitmq import RabbitMQNode
from tests.support.servers import ON_EVERY_SERVER, server_of

import leveret
from leveret import Topology
from leveret.broker import EmbeddedBroker
from leveret.errors import ConnectionClosed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.time_limit(240)]

#: Delays that keep tests short.
QUICK: dict[str, Any] = {"recovery_initial_delay": 0.05, "recovery_max_delay": 0.5}


class Restarted(Protocol):
    """A broker of the test's own, which ends and comes back on the same port."""

    @property
    def url(self) -> str: ...

    async def end(self, how: str) -> None: ...

    async def begin(self) -> None: ...


class RestartedRabbitMQ:
    def __init__(self, node: RabbitMQNode) -> None:
        self._node = node
        self.url = node.url

    async def end(self, how: str) -> None:
        await asyncio.to_thread(self._node.kill if how == "kill" else self._node.stop)

    async def begin(self) -> None:
        await asyncio.to_thread(self._node.start)


class RestartedEmbedded:
    """An embedded broker; it forgets durable queues, too."""

    def __init__(self) -> None:
        self._broker = EmbeddedBroker()
        self.url = ""
        self._port = 0

    async def end(self, how: str) -> None:
        await self._broker.stop()

    async def begin(self) -> None:
        self._broker = EmbeddedBroker(port=self._port)
        await self._broker.start()
        self._port = self._broker.port
        self.url = self._broker.url


@pytest.fixture(params=[*ON_EVERY_SERVER, "embedded"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Restarted]:
    if request.param == "embedded":
        embedded = RestartedEmbedded()
        await embedded.begin()
        yield embedded
        await embedded.end("stop")
        return
    node = RabbitMQNode(server=server_of(request))
    try:
        await asyncio.to_thread(node.start)
        yield RestartedRabbitMQ(node)
    finally:
        await asyncio.to_thread(node.close)


@contextlib.asynccontextmanager
async def taking(client: leveret.Client, queue: Any, into: list[Any]) -> AsyncIterator[leveret.Consumer[Any]]:
    """Runs a consumer, which must not end before it is stopped."""

    async def handler(value: Any, message: leveret.Message) -> None:
        into.append(value)

    consumer = client.consumer(queue)
    task = asyncio.create_task(consumer.run(handler))
    try:
        yield consumer
        assert not task.done()
        consumer.stop()
        await task
    finally:
        task.cancel()
        await asyncio.wait([task])


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_everything_goes_on_after_the_broker_has_restarted(broker: Restarted, how: str) -> None:
    durable: list[Any] = []
    exclusive: list[Any] = []
    chosen: list[Any] = []
    late: list[Any] = []
    async with leveret.connect(broker.url, **QUICK) as client:
        report = await client.declare(
            Topology()
            .exchange("events", "topic", durable=False, auto_delete=True)
            .queue("durable")
            .queue("exclusive", exclusive=True)
            .queue(exclusive=True, auto_delete=True)
            .bind("durable", "events", "#")
            .bind("exclusive", "events", "a.*")
            .bind("", "events", "*.b")
        )
        async with (
            client.producer(exchange="events", mandatory=True, publish_timeout=60) as producer,
            taking(client, "durable", durable) as first,
            taking(client, "exclusive", exclusive) as second,
            taking(client, report.queues[""], chosen) as third,
        ):
            await producer.publish("before", "a.b")
            await until(lambda: durable == exclusive == chosen == ["before"], seconds=20)
            await broker.end(how)
            await until(lambda: not any(consumer.health().live for consumer in (first, second, third)), seconds=20)
            # It waits for the broker, and must not be refused because the exchange is not there yet.
            publishing = asyncio.create_task(producer.publish("durable only", "x"))
            async with taking(client, "exclusive", late) as started_meanwhile:
                assert not started_meanwhile.health().live
                await broker.begin()
                await publishing
                await until(
                    lambda: all(it.health().live for it in (first, second, third, started_meanwhile)), seconds=60
                )
                for _ in range(10):
                    await producer.publish("after", "a.b")
                await until(lambda: durable.count("after") == 10, seconds=20)
                await until(lambda: exclusive.count("after") + late.count("after") == 10, seconds=20)
                await until(lambda: chosen.count("after") == 10, seconds=20)
            assert "durable only" in durable
            assert third.queue != report.queues[""].name


async def test_a_producer_finds_its_exchange_again_although_nothing_else_uses_the_client(broker: Restarted) -> None:
    async with leveret.connect(broker.url, **QUICK) as client:
        topology = Topology().exchange("events", "fanout", durable=False).queue("kept").bind("kept", "events")
        await client.declare(topology)
        async with client.producer(exchange="events", mandatory=True, publish_timeout=60) as producer:
            await producer.publish(1)
            await broker.end("kill")
            publishing = asyncio.gather(*(producer.publish(number) for number in range(20)))
            await broker.begin()
            assert len(await publishing) == 20


async def test_an_app_goes_on_after_the_broker_has_restarted(broker: Restarted) -> None:
    app = leveret.App(broker.url, **QUICK)
    app.topology = Topology().queue("durable").queue("exclusive", exclusive=True)
    handled: list[Any] = []

    @app.consumer("durable")
    async def first(value: Any, message: leveret.Message) -> None:
        handled.append(value)

    @app.consumer("exclusive")
    async def second(value: Any, message: leveret.Message) -> None:
        handled.append(value)

    stop = asyncio.Event()
    running = asyncio.create_task(app.serve(stop))
    await until(lambda: handled_live(app) == 2, seconds=20)
    await broker.end("kill")
    await until(lambda: handled_live(app) == 0, seconds=20)
    await broker.begin()
    await until(lambda: handled_live(app) == 2, seconds=60)
    async with app.client.producer() as producer:
        await producer.publish("durable", "durable")
        await producer.publish("exclusive", "exclusive")
    await until(lambda: sorted(handled) == ["durable", "exclusive"], seconds=20)
    assert app.counters()["restarts"] == 0, "they went on by themselves"
    stop.set()
    assert await running


def handled_live(app: leveret.App) -> int:
    """Returns how many consumers of an app are live."""
    try:
        samples = app.client.metrics()
    except ConnectionClosed:
        return 0  # it is not connected yet
    return round(sum(sample.value for sample in samples if sample.metric.name == "consumers_live"))
