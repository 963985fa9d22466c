"""What the integration tests share: a broker, a client, and names that are cleaned up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from tests.support.brokers import Broker, Embedded, RabbitMQ
from tests.support.servers import ON_EVERY_SERVER, node_of

import leveret
from leveret.broker import EmbeddedBroker
from leveret.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@pytest.fixture(params=[*ON_EVERY_SERVER, "embedded"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Broker]:
    """A live broker that can be told to fail; a test that uses it runs on every RabbitMQ and on the embedded one."""
    if request.param != "embedded":
        yield RabbitMQ(node_of(request))
        return
    async with EmbeddedBroker() as embedded:
        yield Embedded(embedded)


@pytest.fixture
async def name(broker: Broker, unique_name: Callable[[str], str]) -> AsyncIterator[Callable[[str], str]]:
    """Makes names of queues and exchanges; what has them is deleted after the test."""
    given: list[str] = []

    def make(prefix: str = "test") -> str:
        given.append(unique_name(prefix))
        return given[-1]

    yield make
    if isinstance(broker, RabbitMQ) and given:
        async with leveret.connect(broker.url) as cleaner:
            for each in given:
                # With the queues of messages that failed there.
                for suffix in ("", ".parked", ".retry.100", ".retry.200", ".retry.1000"):
                    await cleaner.delete_queue(f"{each}{suffix}")
                await cleaner.delete_exchange(each)


@pytest.fixture
async def client(broker: Broker, name: Callable[[str], str]) -> AsyncIterator[leveret.Client]:
    """A connected client, which is closed before names are cleaned up: its exclusive queues go with it."""
    async with leveret.connect(broker.url) as connected:
        yield connected


@pytest.fixture
async def queue(client: leveret.Client, name: Callable[[str], str]) -> str:
    """The name of an empty durable classic queue."""
    made = name("queue")
    await client.declare(leveret.Topology().queue(made))
    return made


@pytest.fixture
async def other(broker: Broker, name: Callable[[str], str]) -> AsyncIterator[leveret.Client]:
    """A second client, which reads what the broker has."""
    async with leveret.connect(broker.url) as connected:
        yield connected


@pytest.fixture
async def proxy(broker: Broker, name: Callable[[str], str]) -> AsyncIterator[FaultProxy]:
    """Stands between the clients of a test and the broker; names are cleaned up without it."""
    async with FaultProxy(broker.url) as running:
        yield running


@pytest.fixture
async def proxied(proxy: FaultProxy) -> AsyncIterator[leveret.Client]:
    """A client that reaches the broker through the proxy."""
    async with leveret.connect(proxy.url, close_timeout=0.5) as connected:
        yield connected


@pytest.fixture
async def embedded() -> AsyncIterator[EmbeddedBroker]:
    """An embedded broker, for what does not depend on the broker."""
    async with EmbeddedBroker() as broker:
        yield broker


@pytest.fixture
async def blockable(broker: Broker) -> AsyncIterator[Broker]:
    """A broker that is not blocked any more after the test, whatever happened."""
    yield broker
    await broker.unblock()
