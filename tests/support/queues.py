"""What a second client finds in a queue."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import leveret


async def taken(client: leveret.Client, queue: str) -> list[Any]:
    """Takes everything out of a queue; the values in their order."""
    values = []
    async with client.consumer(queue) as consumer:
        while (message := await consumer.get()) is not None:
            values.append(message.value)
            assert message.ack()
    return values


async def messages(client: leveret.Client, queue: str, model: Any = None) -> list[leveret.Message]:
    """What is in a queue, which is empty then."""
    found = []
    async with client.consumer(queue, model) as consumer:
        while (message := await consumer.get()) is not None:
            assert message.ack()
            found.append(message)
    return found


async def ready(client: leveret.Client, queue: str, count: int, *, seconds: float = 10.0) -> None:
    """Waits until a queue has so many messages to deliver: what a closed channel had comes back somewhat later."""
    channel = await client.channel()
    try:
        async with asyncio.timeout(seconds):
            while (await channel.queue_declare(queue, passive=True)).message_count != count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    finally:
        await channel.close()


async def consumer_count(client: leveret.Client, queue: str) -> int:
    """How many consumers a queue has."""
    channel = await client.channel()
    try:
        return (await channel.queue_declare(queue, passive=True)).consumer_count or 0
    finally:
        await channel.close()
