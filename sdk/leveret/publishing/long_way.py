"""What `publish` and `enqueue` do with a message that the compiled way does not take."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from leveret.publishing.options import confirm_timeout_of, refuse_confirm_timeout

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from leveret.errors import PublishError
    from leveret.publishing.guard import PublishGuard
    from leveret.publishing.options import PublishOptions
    from leveret.publishing.packing import Packer
    from leveret.publishing.publishing import Publishing, Receipt, Ticket
    from leveret.publishing.template import PublishTemplate, Template
    from leveret.publishing.writing import MessageWriter
    from leveret.settings import ProducerSettings

__all__ = ["LongWay"]


class LongWay:
    """Publishes messages that wait for room, have a `confirm_timeout` of their own, or need a policy.

    Args:
        settings: The producer's options.
        packer: Packs messages.
        writer: Appends messages.
        guard: The policies; None for none.
        new: Makes a publishing.

    Attributes:
        tasks: Those of publishings of several steps; each ends with the producer at the latest.
    """

    def __init__(
        self,
        settings: ProducerSettings,
        packer: Packer,
        writer: MessageWriter,
        guard: PublishGuard | None,
        new: Callable[[], Publishing[Receipt]],
    ) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()
        self._settings = settings
        self._packer = packer
        self._writer = writer
        self._guard = guard
        self._new = new
        self._loop = asyncio.get_running_loop()

    def publish(
        self,
        publishing: Publishing[Receipt],
        value: Any,
        routing_key: str | Template,
        options: PublishOptions,
        deadline: float | None,
    ) -> None:
        """Publishes a message; see `Producer.publish`.

        Args:
            publishing: Told how it ends.
            value: What the serializer takes.
            routing_key: The routing key or a template.
            options: The options.
            deadline: When to give up, by the loop's clock; by default `publish_timeout` seconds from now.
        """
        deadline = self._by(deadline)
        guard, writer = self._guard, self._writer
        limit = writer.room.limit
        patience = confirm_timeout_of(options, self._settings.confirm_timeout)
        frames, body = self._packer.pack(value, routing_key, options)
        if guard is None and "confirm_timeout" not in options:
            writer.publish(publishing, frames, body, deadline, limit)
            return
        first: Publishing[Receipt] | None = None
        if guard is None or guard.allows:
            # It takes its place in the line for room now, before its task runs.
            first = self._new()
            writer.publish(first, frames, body, deadline, limit)
        if guard is not None:
            attempts = writer.attempts(frames, body, patience, guard.reporting, first=first)
            self._follow(publishing, guard.publish(attempts, deadline), first)
        elif first is not None:
            self._follow(publishing, writer.outcome_of(first, patience), first)

    def enqueue(
        self,
        publishing: Publishing[Ticket],
        value: Any,
        routing_key: str | Template,
        options: PublishOptions,
        deadline: float | None,
    ) -> None:
        """Publishes a message; see `Producer.enqueue`. The arguments are those of `publish`."""
        refuse_confirm_timeout(options)
        frames, body = self._packer.pack(value, routing_key, options)
        self._writer.publish(publishing, frames, body, self._by(deadline), self._settings.max_buffered)

    def publish_raw(
        self, publishing: Publishing[Receipt], body: bytes, routing_key: str, raw_properties: bytes
    ) -> None:
        """Publishes a body as it is; see `Producer.publish_raw`."""
        frames = self._packer.raw(routing_key, raw_properties)
        self._writer.publish(publishing, frames, body, self._by(None), self._writer.room.limit)

    def try_again(
        self, publishing: Publishing[Receipt], packed: tuple[PublishTemplate, bytes], failure: PublishError
    ) -> None:
        """Has the policies decide what becomes of a publishing that was written and failed.

        Args:
            publishing: Told how it ends.
            packed: Its frames and its body.
            failure: How it failed.
        """
        guard = self._guard
        assert guard is not None
        attempts = self._writer.attempts(*packed, self._settings.confirm_timeout, guard.reporting, failure=failure)
        self._follow(publishing, guard.publish(attempts, publishing.deadline, failure))

    def _follow(
        self, publishing: Publishing[Any], work: Coroutine[Any, Any, Any], first: Publishing[Receipt] | None = None
    ) -> None:
        """Does a publishing of several steps in a task, and ends the wait of the first one with it."""
        task = self._loop.create_task(work, name="leveret: publishes in several steps")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        if first is not None:
            task.add_done_callback(lambda _: first.cancel())
        publishing.follow(task)

    def _by(self, deadline: float | None) -> float:
        return self._loop.time() + self._settings.publish_timeout if deadline is None else deadline
