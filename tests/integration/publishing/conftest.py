"""What the tests of producers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import leveret
from leveret.plugins import PluginRegistry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from leveret.broker import EmbeddedBroker


@pytest.fixture
async def tight_client(embedded: EmbeddedBroker) -> AsyncIterator[leveret.Client]:
    """A client with an empty queue "q", and a queue "full" that refuses all but one message."""
    async with leveret.connect(embedded.url, plugins=PluginRegistry.from_plugins()) as connected:
        await connected.declare(
            leveret.Topology().queue("q").queue("full", leveret.Classic(max_length=1, overflow="reject-publish"))
        )
        yield connected


@pytest.fixture
async def exchange(client: leveret.Client, name: Callable[[str], str], queue: str) -> str:
    """A topic exchange, as the guide's "orders", that routes "order.created" to the queue and "order.lost" nowhere."""
    made = name("orders")
    await client.declare(leveret.Topology().exchange(made, "topic").bind(queue, made, "order.created"))
    return made
