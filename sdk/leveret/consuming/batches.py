"""Consuming in batches: many deliveries for one call, and one acknowledgement for them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from leveret.consuming.handlers import check_handler
from leveret.errors import ConfigurationError, LeveretError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from types import TracebackType
    from typing import Self

    from leveret.consuming.batch_actions import BatchActions
    from leveret.consuming.consumer import Consumer
    from leveret.wire.message import Message

__all__ = ["Batches", "DeliveryBatch"]

T = TypeVar("T")

_VERBS = ("refuse", "park", "retry", "dead_letter", "requeue", "release")


class DeliveryBatch(Generic[T]):
    """Deliveries of one queue, in its order, to be settled together. Made by `Batches`.

    Attributes:
        values: Their bodies, decoded.
        messages: The deliveries themselves, by the same indexes.
    """

    __slots__ = ("_actions", "messages", "values")

    def __init__(self, values: list[T], messages: list[Message], actions: BatchActions[T]) -> None:
        self.values = values
        self.messages = messages
        self._actions = actions

    def __len__(self) -> int:
        return len(self.messages)

    def __repr__(self) -> str:
        return f"<DeliveryBatch of {len(self.messages)}>"

    def fail(
        self,
        index: int,
        verb: Literal["refuse", "park", "retry", "dead_letter", "requeue", "release"] = "refuse",
        *,
        delay: float | None = None,
        reason: str | None = None,
    ) -> bool:
        """Settles one message in another way than `ack`, which then leaves it alone.

        Args:
            index: Its index in `values`.
            verb: What to do with it: "refuse" does what a handler's False does, the others are methods of `Message`.
            delay: For "retry": the seconds, 0.1 to 604800.
            reason: For "park" and "dead_letter": why; see `Message`.

        Returns:
            False when it was settled before or its channel is gone.

        Raises:
            IndexError: The batch has no such index.
            ConfigurationError: There is no such verb, or `delay` or `reason` is not for it.
        """
        if verb not in _VERBS:
            raise ConfigurationError(f"verb is {verb!r}; it must be {' or '.join(map(repr, _VERBS))}", option="verb")
        if (delay is not None) is not (verb == "retry"):
            raise ConfigurationError("delay is for the verb 'retry', which needs it", option="delay")
        if reason is not None and verb not in ("park", "dead_letter"):
            raise ConfigurationError("reason is for the verbs 'park' and 'dead_letter'", option="reason")
        if not 0 <= index < len(self.messages):
            raise IndexError(f"index {index} is outside this batch of {len(self.messages)}")
        message = self.messages[index]
        if verb == "refuse":
            return self._actions.refuse_one(message)
        if delay is not None:
            return bool(message.retry(delay))
        if verb == "park":
            return bool(message.park(reason))
        if verb == "dead_letter":
            return bool(message.dead_letter(reason))
        return bool(message.requeue() if verb == "requeue" else message.release())

    def ack(self) -> int:
        """Acknowledges the messages that are not settled: with one basic.ack when the batches before are settled.

        Returns:
            How many it acknowledged.
        """
        return self._actions.acknowledge(self.messages)


class Batches(Generic[T]):
    """Takes messages from one queue in batches. Made by `Client.batches`.

    A batch is ready when it has `size` messages, or `wait` seconds after its first one came. A message that cannot be
    decoded is in no batch: it is parked, as `Consumer.run` does it. Use it with `async for`, or `run` with a
    handler.

    Attributes:
        consumer: Takes the messages; it has the counters, `stop`, `pause`, `drain` and the rest.
        size: The most messages of a batch.
        wait: Seconds that the first message of a batch waits for others at most.
    """

    def __init__(self, consumer: Consumer[T], size: int, wait: float) -> None:
        self.consumer = consumer
        self.size = size
        self.wait = wait

    async def __aenter__(self) -> Self:
        await self.consumer.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.consumer.close()

    def __aiter__(self) -> AsyncIterator[DeliveryBatch[T]]:
        return self

    async def __anext__(self) -> DeliveryBatch[T]:
        """The next batch; the caller settles it."""
        while True:
            messages = await self.consumer.take(self.size, self.wait)
            if not messages:
                raise StopAsyncIteration
            actions = self.consumer.batch_actions
            values, kept = await actions.decode(messages)
            if kept:
                return DeliveryBatch(values, kept, actions)

    async def run(self, handler: Callable[[list[T], DeliveryBatch[T]], Awaitable[bool | None]]) -> None:
        """Calls a handler for each batch until the consumer is stopped or this is cancelled.

        `concurrency` of the consumer says how many batches are handled at once. The handler's result settles what it
        has not settled itself: None or True acknowledges, False refuses. When it raises or takes longer than
        `processing_timeout`, each message that it has not settled is treated as by `Consumer.run`.

        Args:
            handler: `async def handler(values, batch)`.

        Raises:
            ConfigurationError: The handler cannot be called with values and a batch. Nothing was sent.
            LeveretError: As `Consumer.run`.
        """
        check_handler(handler, self.consumer.queue, "(values, batch)")
        await self.consumer.share(lambda: self._work(handler))

    async def _work(self, handler: Callable[[list[T], DeliveryBatch[T]], Awaitable[bool | None]]) -> None:
        consumer, actions = self.consumer, self.consumer.batch_actions
        task = asyncio.current_task()
        assert task is not None
        while True:
            try:
                batch = await anext(self)
            except (StopAsyncIteration, LeveretError):
                return  # `run` says why
            error: BaseException | None = None
            has_failed = False
            result: Any = None
            timer = asyncio.timeout(consumer.settings.processing_timeout)
            try:
                async with timer:
                    result = await handler(batch.values, batch)
            except Exception as raised:
                has_failed = True
                error = None if timer.expired() else raised
            except asyncio.CancelledError as raised:
                if actions.ends(task):
                    raise
                has_failed, error = True, raised  # the handler cancelled itself
            if not (has_failed or result is None or isinstance(result, bool)):
                has_failed = True
                error = TypeError(f"a handler returns None, True or False, not {type(result).__name__}")
            if has_failed:
                await actions.fail(batch.messages, error)
            elif consumer.settings.ack == "manual":
                pass
            elif result is False:
                await actions.refuse(batch.messages)
            else:
                batch.ack()
            if actions.ends(task):
                # The handler caught its cancellation and returned.
                raise asyncio.CancelledError
