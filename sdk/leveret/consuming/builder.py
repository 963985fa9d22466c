"""The fluent form of a consumer: each call sets an option of `ConsumerSettings`, the last one makes the `Consumer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable
    from typing import Self

    from leveret.consuming.batches import Batches
    from leveret.consuming.consumer import Consumer
    from leveret.consuming.failing.error_policy import DeadLetter, Drop, OnError, Park
    from leveret.wire.message import Message

__all__ = ["ConsumerBuilder"]

T = TypeVar("T")


class _Maker(Protocol):
    """A client or a dedicated connection: both make consumers."""

    @property
    def consumer(self) -> Callable[..., Consumer[Any]]: ...

    @property
    def batches(self) -> Callable[..., Batches[Any]]: ...


class ConsumerBuilder(Generic[T]):
    """Builds a consumer, one option per call. Made by `Client.queue`.

        await client.queue("billing", Order).concurrency(8).prefetch(100).consume(handler)

    Each call sets one option of `ConsumerSettings`, where they are described, and returns the same object. Nothing is
    checked or sent before the last call.
    """

    def __init__(self, maker: _Maker, queue: str, model: Any) -> None:
        self._maker = maker
        self._queue = queue
        self._model = model
        self.options: dict[str, Any] = {}

    def __repr__(self) -> str:
        return f"<ConsumerBuilder queue={self._queue!r} {self.options}>"

    def option(self, **options: Any) -> Self:
        """Sets options by name."""
        self.options.update(options)
        return self

    def concurrency(self, count: int) -> Self:
        """Sets how many handlers run at once."""
        return self.option(concurrency=count)

    def prefetch(self, count: int | Literal["auto"]) -> Self:
        """Sets how many deliveries the broker sends ahead."""
        return self.option(prefetch=count)

    def ack(self, mode: Literal["coalesced", "each", "manual", "handoff", "none"]) -> Self:
        """Sets when messages are acknowledged."""
        return self.option(ack=mode)

    def ordered_by(self, key: str | Callable[[Message], Hashable]) -> Self:
        """Sets the key whose messages are handled in order: "routing_key", "header:NAME" or a function."""
        return self.option(ordered_by=key)

    def on_error(self, policy: OnError) -> Self:
        """Sets the error policy, for messages whose handler raised; see `Client.consumer`."""
        return self.option(on_error=policy)

    def refused(self, action: DeadLetter | Park | Drop) -> Self:
        """Sets what becomes of a message whose handler returned False; see `Client.consumer`."""
        return self.option(refused=action)

    def processing_timeout(self, seconds: float) -> Self:
        """Sets the seconds after which a handler is cancelled and has failed."""
        return self.option(processing_timeout=seconds)

    def consumer_tag(self, tag: str) -> Self:
        """Sets the consumer tag, which the broker lists."""
        return self.option(consumer_tag=tag)

    def exclusive(self) -> Self:
        """Has the broker refuse other consumers of the queue."""
        return self.option(exclusive=True)

    def priority(self, priority: int) -> Self:
        """Sets the consumer's priority among those of the queue."""
        return self.option(priority=priority)

    def on_cancel(self, what: Literal["resubscribe", "stop"]) -> Self:
        """Sets whether the consumer goes on or ends when the broker cancels it."""
        return self.option(on_cancel=what)

    def queue_missing_timeout(self, seconds: float) -> Self:
        """Sets the seconds that the consumer waits for a queue that was there and is missing now."""
        return self.option(queue_missing_timeout=seconds)

    def consumer(self) -> Consumer[T]:
        """Makes the consumer, not started yet.

        Raises:
            ConfigurationError: An option is out of range.
        """
        return self._maker.consumer(self._queue, self._model, **self.options)

    async def consume(self, handler: Callable[[T, Message], Awaitable[bool | None] | bool | None]) -> None:
        """Makes the consumer and runs it; see `Consumer.run`."""
        await self.consumer().run(handler)

    def batches(self, size: int = 100, wait: float = 0.1) -> Batches[T]:
        """Makes a consumer that takes messages in batches; see `Client.batches`."""
        return self._maker.batches(self._queue, self._model, size=size, wait=wait, **self.options)
