"""Runs checks with a real client and an embedded broker in this process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from leveret.broker import EmbeddedBroker
from leveret.client.client import connect
from leveret.settings import MonitoringSettings
from leveret.testing.base import fail, with_deadline
from leveret.topology.topology import Topology

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from leveret.client.client import Client
    from leveret.consuming.consumer import Consumer
    from leveret.plugins.registry import PluginRegistry
    from leveret.wire.message import Message

__all__ = ["QUEUE", "take", "with_client"]

T = TypeVar("T")

#: The queue that exists for the check.
QUEUE = "conformance"


def with_client(registry: PluginRegistry, work: Callable[[Client], Awaitable[T]], what: str) -> T:
    """Runs a coroutine function with a client, in its own event loop and thread.

    Args:
        registry: The plugins of the client.
        work: The coroutine function. The queue `QUEUE` exists.
        what: Its description, as the beginning of a sentence.

    Returns:
        The function's result.
    """

    async def main() -> T:
        # Default settings, because the environment may name sinks.
        monitoring = MonitoringSettings()
        async with EmbeddedBroker() as broker, connect(broker.url, plugins=registry, monitoring=monitoring) as client:
            await client.declare(Topology().queue(QUEUE))
            return await work(client)

    # A thread, because the caller may have a running event loop.
    return with_deadline(lambda: asyncio.run(main()), what)


async def take(consumer: Consumer[T]) -> Message:
    """Returns the next message and acknowledges it. Fails when the queue is empty."""
    message = await consumer.get()
    if message is None:
        fail("a message that was confirmed is not in its queue")
    message.ack()
    return message
