"""The tasks that run a consumer's handlers, and the clock that cancels handlers that take too long."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from leveret.consuming.handlers import HandlerThreads, check_handler
from leveret.consuming.states import ConsumerState
from leveret.consuming.worker import Worker
from leveret.errors import ProcessingTimeout
from leveret.settings.functions import is_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from leveret.consuming.channel_deliveries import Acknowledger
    from leveret.consuming.delivery_buffer import DeliveryBuffer
    from leveret.consuming.failing.actions import FailureActions
    from leveret.consuming.states import ConsumerLife
    from leveret.settings import ConsumerSettings
    from leveret.wire.message import Message

__all__ = ["Workers"]

logger = logging.getLogger("leveret.consuming")

#: How finely processing_timeout is measured: a handler may run this fraction of it too long.
_CLOCK_STEPS: Final = 10
#: Seconds between two looks for handlers that do not end.
_LOOK: Final = 1.0
#: How many of the messages that are given up are named in the log.
_NAMED: Final = 20


class Workers:
    """The tasks that share the work of one consumer.

    Args:
        queue: The queue.
        settings: The consumer's.
        loop: The event loop.
        life: The consumer's state; STOPPING when one of the tasks has raised.
        failures: Carries out the error policy for messages that were not handled.
    """

    def __init__(
        self,
        queue: str,
        settings: ConsumerSettings,
        loop: asyncio.AbstractEventLoop,
        life: ConsumerLife,
        failures: FailureActions,
    ) -> None:
        self._queue = queue
        self._settings = settings
        self._loop = loop
        self._life = life
        self._failures = failures
        # The task that awaits `run`, and those that share its work.
        self._runner: asyncio.Task[Any] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._workers: set[Worker] = set()
        self._clock: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        # The sequence of each worker whose handler was reported because it did not end.
        self._reported: dict[Worker, int] = {}
        # The sequence of each worker when the clock ticked, and how often it was the same before.
        self._seen: dict[Worker, tuple[int, int]] = {}
        self._threads: HandlerThreads | None = None

    async def share(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs `concurrency` tasks that do this work until all have ended."""
        self._runner = asyncio.current_task()
        async with asyncio.TaskGroup() as group:
            for _ in range(self._settings.concurrency):
                task = group.create_task(work())
                self._tasks.add(task)
                task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._life.become(ConsumerState.STOPPING)  # the task group cancels the others now

    def cancel(self) -> None:
        """Cancels the tasks."""
        for task in self._tasks:
            task.cancel()

    def callable_of(self, handler: Callable[[Any, Message], Any]) -> Callable[[Any, Message], Awaitable[object]]:
        """Returns the handler as a function whose result can be awaited; a plain function gets threads.

        Raises:
            ConfigurationError: The handler cannot be called with a value and a message, or is a generator.
        """
        check_handler(handler, self._queue)
        if is_async(handler):
            return handler
        self._threads = HandlerThreads(handler, self._settings.concurrency, self._queue, self._loop)
        return self._threads.call

    async def work(
        self, buffer: DeliveryBuffer, acks: Acknowledger, call: Callable[[Any, Message], Awaitable[object]]
    ) -> None:
        """Handles messages until the consumer ends; each of the tasks does this."""
        task = asyncio.current_task()
        assert task is not None
        mode = self._settings.ack
        results_settle = mode in ("coalesced", "each")
        worker = Worker(buffer, acks, self._failures, self, call, task, results_settle, mode != "manual")
        self._workers.add(worker)
        try:
            await worker
        finally:
            self._workers.remove(worker)
            self._seen.pop(worker, None)
            self._reported.pop(worker, None)

    def ends(self, task: asyncio.Task[Any]) -> bool:
        """Returns whether one of the tasks was cancelled to end it.

        Any other cancellation concerns its handler alone, and ends with the message: some libraries cancel the task
        that they run in to stop waiting, and never take that back (`Task.uncancel`).
        """
        if task.cancelling() and (self._life.is_stopped or (self._runner is not None and self._runner.cancelling())):
            return True
        while task.cancelling():
            task.uncancel()
        return False

    def failed(self, message: Message, error: BaseException | None) -> Coroutine[Any, Any, None] | None:
        """Carries out the error policy for a message whose handler raised, or is late: then the error is None."""
        if error is not None:
            return self._failures.failed(message, error)
        failure = self._failures.failed(message, self.late_error())
        return failure if self._threads is None else self._threads.wait_for(message, failure)

    def late_error(self) -> ProcessingTimeout:
        """Returns the error of a handler that was cancelled because of `processing_timeout`."""
        return ProcessingTimeout(
            f"the handler took longer than processing_timeout of {self._settings.processing_timeout:g} s"
        )

    def start_clock(self) -> None:
        """Begins to cancel handlers that take longer than `processing_timeout`, and to report those that do not end."""
        limit = self._settings.processing_timeout
        if limit is not None:
            self._clock = self._loop.call_later(limit / _CLOCK_STEPS, self._tick)
        if self._watch is None:
            self._watch = self._loop.call_later(_LOOK, self._look)

    def stop_clock(self) -> None:
        """Ends what `start_clock` began."""
        for timer in (self._clock, self._watch):
            if timer is not None:
                timer.cancel()
        self._clock = self._watch = None

    def _look(self) -> None:
        """Reports handlers that have been at work for longer than `slow_handler`: those that never end, too."""
        self._watch = self._loop.call_later(_LOOK, self._look)
        for worker in self._workers:
            seconds, message = worker.overdue(), worker.message
            if seconds and message is not None and self._reported.get(worker) != worker.sequence:
                self._reported[worker] = worker.sequence
                self._failures.still_running(message, seconds)

    def _tick(self) -> None:
        """Looks at all workers, so that no message needs a timer of its own."""
        for worker in self._workers:
            if not worker.is_handling:
                continue
            sequence, times = self._seen.get(worker, (0, 0))
            times = times + 1 if sequence == worker.sequence else 0
            self._seen[worker] = (worker.sequence, times)
            if times == _CLOCK_STEPS:
                worker.time_out()
        self.start_clock()

    def close(self) -> None:
        """Ends the threads; a handler that runs in one of them is not interrupted. Logs which messages are at work."""
        messages = [worker.message for worker in self._workers if worker.is_handling and worker.message is not None]
        if messages:
            named = ", ".join(f"{it.delivery_tag} ({it.message_id!r:.64})" for it in messages[:_NAMED])
            logger.warning(
                "the consumer of queue %r is closed while handlers work on %d messages, which are given up: delivery "
                "tags (and message ids) %s%s",
                self._queue,
                len(messages),
                named,
                f" and {len(messages) - _NAMED} more" if len(messages) > _NAMED else "",
            )
        if self._threads is not None:
            self._threads.close()
