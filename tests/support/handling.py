"""What tests of consumers share: a queue and its dead letters, a consumer in the background, and waiting."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from leveret import Classic, Topology
from tests.support.queues import taken

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    import leveret


class Queues:
    """A queue, where its refused messages go, and what is in both."""

    def __init__(self, client: leveret.Client, name: Callable[[str], str]) -> None:
        self.client = client
        self.work, self.dead = name("work"), name("dead")
        self._exchange = name("dlx")

    async def declare(self, **options: Any) -> Queues:
        await self.client.declare(
            Topology()
            .exchange(self._exchange, "fanout")
            .queue(self.dead)
            .bind(self.dead, self._exchange)
            .queue(self.work, Classic(dead_letter_exchange=self._exchange, **options))
        )
        return self

    async def publish(self, *values: Any, **options: Any) -> None:
        async with self.client.producer() as producer:
            (await producer.publish_batch(values, self.work, **options)).raise_for_failures()

    async def remaining(self, queue: str | None = None) -> list[Any]:
        """The values that are ready in a queue, in order; takes them out."""
        return await taken(self.client, queue or self.work)

    async def dead_letters(self, count: int) -> list[Any]:
        """Waits for so many dead letters: brokers move them in their own time."""
        values: list[Any] = []
        async with asyncio.timeout(5), self.client.consumer(self.dead) as consumer:
            while len(values) < count:
                message = await anext(consumer)
                values.append(message.value)
                message.ack()
        return values

    async def ready(self) -> int:
        """How many messages the broker could hand out now."""
        channel = await self.client.channel()
        try:
            return (await channel.queue_declare(self.work, passive=True)).message_count or 0
        finally:
            await channel.close()


class Held:
    """A handler that waits for `go`, then notes the value.

    Attributes:
        began: Set when a message is being handled.
        go: Lets the handler go on.
        seen: The values that were handled, in order.
    """

    def __init__(self) -> None:
        self.began, self.go = asyncio.Event(), asyncio.Event()
        self.seen: list[Any] = []

    async def __call__(self, value: Any, message: leveret.Message) -> None:
        self.began.set()
        await self.go.wait()
        self.seen.append(value)


@contextlib.asynccontextmanager
async def _background(coroutine: Any) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(coroutine)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()


def running(consumer: leveret.Consumer[Any], handler: Any) -> AbstractAsyncContextManager[asyncio.Task[None]]:
    """Runs a consumer in the background."""
    return _background(consumer.run(handler))


async def until(condition: Callable[[], object], *, seconds: float = 10.0) -> None:
    """Waits until something is so."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - what is looked at has no event
            await asyncio.sleep(0.002)


async def broken_off(call: Any, turns: int) -> None:
    """Cancels a call after so many turns of the event loop."""
    task = asyncio.ensure_future(call)
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])


async def ends(task: asyncio.Task[None]) -> None:
    """Waits for a task, which ends soon."""
    done, _ = await asyncio.wait([task], timeout=5)
    assert done, "it goes on"
