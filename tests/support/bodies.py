"""Sends bodies and values, and takes them as they came or decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import leveret
    from leveret import Message


def body_of(message: Message) -> bytes:
    """The body of a message that has one, and no view of it."""
    assert isinstance(message.body, bytes)
    return message.body


async def sent(client: leveret.Client, queue: str, value: Any, **options: Any) -> Message:
    """Publishes a value and takes its message back, undecoded."""
    async with client.producer(**options) as producer:
        await producer.publish(value, queue)
    return await taken_raw(client, queue)


async def taken_raw(client: leveret.Client, queue: str) -> Message:
    async with client.consumer(queue, serializer="bytes") as consumer:
        message = await consumer.get()
        assert message is not None
        message.ack()
        return message


async def decoded(client: leveret.Client, queue: str, model: Any = None, **options: Any) -> Any:
    """Takes the queue's message and its value."""
    async with client.consumer(queue, model, **options) as consumer:
        message = await consumer.get()
        assert message is not None
        message.ack()
        return message.value


async def publish_raw(client: leveret.Client, queue: str, body: bytes, **options: Any) -> None:
    async with client.producer(serializer="bytes") as producer:
        await producer.publish(body, queue, **options)
