"""What `Batches` does with the messages of a consumer: decode them, and settle many with one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from leveret.errors import CodecError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from leveret.consuming.failing.actions import FailureActions
    from leveret.consuming.settling import Settler
    from leveret.consuming.workers import Workers
    from leveret.wire.message import Message

__all__ = ["BatchActions"]

T = TypeVar("T")


class BatchActions(Generic[T]):
    """Decodes and settles the messages of one consumer, many at once. Made by `Consumer`.

    Args:
        failures: Carries out the error policy.
        settler: Acknowledges messages.
        workers: Has the tasks that share the work.
        give_again: Puts messages before those that wait.
        is_last: The broker does not have the messages any more.
    """

    def __init__(
        self,
        failures: FailureActions,
        settler: Settler,
        workers: Workers,
        *,
        give_again: Callable[[list[Message]], None],
        is_last: bool,
    ) -> None:
        self._failures = failures
        self._settler = settler
        self._workers = workers
        self._give_again = give_again
        self._is_last = is_last

    async def decode(self, messages: list[Message]) -> tuple[list[T], list[Message]]:
        """Decodes messages; those that cannot be decoded are settled as `Consumer.run` does it, and left out."""
        values: list[T] = []
        kept: list[Message] = []
        for index, message in enumerate(messages):
            action = self._failures.redelivered(message) if message.redelivered else None
            if action is None:
                try:
                    values.append(message.value)
                except CodecError as error:
                    action = self._failures.undecodable(message, error)
                    if action is None:
                        continue
                else:
                    kept.append(message)
                    continue
            try:
                await action
            except BaseException:
                self._give_again([*kept, *messages[index + 1 :]])
                raise
        return values, kept

    def acknowledge(self, messages: list[Message]) -> int:
        """Acknowledges those of some messages that are not settled, and writes that at once.

        Returns:
            How many it acknowledged.
        """
        return self._settler.acknowledge(messages)

    async def fail(self, messages: list[Message], error: BaseException | None) -> None:
        """Does with the messages of a batch what `Consumer.run` does with each when its handler raised this.

        Args:
            messages: The messages.
            error: What the handler raised, or None when it took longer than `processing_timeout`.
        """
        for message in messages:
            if self._is_last or not message.is_settled:
                action = self._workers.failed(message, error)
                if action is not None:
                    await action

    async def refuse(self, messages: list[Message]) -> None:
        """Does with messages what `Consumer.run` does with each whose handler returned False."""
        for message in messages:
            action = self._failures.refused(message)
            if action is not None:
                await action

    def refuse_one(self, message: Message) -> bool:
        """As `refuse`, without waiting for a copy; returns False when the message was settled before."""
        return self._failures.refuse(message)

    def ends(self, task: asyncio.Task[Any]) -> bool:
        """Returns whether a task that shares the work was cancelled to end it; see `Workers.ends`."""
        return self._workers.ends(task)
