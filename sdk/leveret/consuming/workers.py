"""The tasks that run a consumer's handlers, and the clock that cancels handlers that take too long."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

from leveret.consuming.handler_threads import HandlerThreads
from leveret.consuming.handlers import check_handler
from leveret.consuming.states import ConsumerState
from leveret.consuming.worker import Worker
from leveret.errors import ProcessingTimeout
from leveret.settings.functions import is_async

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    from leveret.consuming.channel_deliveries import Acknowledger
    from leveret.consuming.delivery_buffer import DeliveryBuffer
    from leveret.consuming.failing.actions import FailureActions
    from leveret.consuming.hand_over import ThreadWorker
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
        self._workers: set[Worker | ThreadWorker] = set()
        self._clock: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        # The sequence of each worker whose handler was reported because it did not end.
        self._reported: dict[Worker | ThreadWorker, int] = {}
        # The sequence of each worker when the clock ticked, and how often it was the same before.
        self._seen: dict[Worker | ThreadWorker, tuple[int, int]] = {}
        self._pool: ThreadPoolExecutor | None = None

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

    def work_of(
        self, buffer: DeliveryBuffer, acks: Acknowledger, handler: Callable[[Any, Message], Any]
    ) -> Callable[[], Coroutine[Any, Any, None]]:
        """Returns what each of the tasks does: it has a handler work on messages until the consumer ends.

        Args:
            buffer: Where messages come from.
            acks: Acknowledges them.
            handler: A coroutine function, or a plain function, which gets threads.

        Raises:
            ConfigurationError: The handler cannot be called with a value and a message, or is a generator.
        """
        check_handler(handler, self._queue)
        mode = self._settings.ack
        results_settle, results_count = mode in ("coalesced", "each"), mode != "manual"
        if is_async(handler):
            return lambda: self._work(buffer, acks, handler, results_settle, results_count)
        self._pool = ThreadPoolExecutor(self._settings.concurrency, f"leveret {self._queue}"[:64])
        threads = HandlerThreads(
            handler, self._pool.submit, results_count, results_settle, buffer, acks, self._failures, self, self._loop
        )
        return lambda: self._work_in_thread(threads)

    async def _work(
        self,
        buffer: DeliveryBuffer,
        acks: Acknowledger,
        handler: Callable[[Any, Message], Awaitable[object]],
        results_settle: bool,
        results_count: bool,
    ) -> None:
        task = asyncio.current_task()
        assert task is not None
        worker = Worker(buffer, acks, self._failures, self, handler, task, results_settle, results_count)
        with self._watched(worker):
            await worker

    async def _work_in_thread(self, threads: HandlerThreads) -> None:
        worker = threads.worker()
        with self._watched(worker):
            try:
                while await self._report(threads, worker):
                    action = threads.action(worker)
                    if action is not None:
                        await action
                    threads.go_on(worker)
            finally:
                threads.leave(worker, stops=self._is_ending)

    async def _report(self, threads: HandlerThreads, worker: ThreadWorker) -> bool:
        """Waits for a report of a thread; nobody but the consumer can mean to end this wait."""
        task = asyncio.current_task()
        assert task is not None
        while True:
            try:
                return await threads.report(worker)
            except asyncio.CancelledError:
                if self.ends(task):
                    raise

    @contextlib.contextmanager
    def _watched(self, worker: Worker | ThreadWorker) -> Iterator[None]:
        """Has the clock and `close` look at a worker."""
        self._workers.add(worker)
        try:
            yield
        finally:
            self._workers.remove(worker)
            self._seen.pop(worker, None)
            self._reported.pop(worker, None)

    @property
    def _is_ending(self) -> bool:
        return self._life.is_stopped or (self._runner is not None and self._runner.cancelling() > 0)

    def ends(self, task: asyncio.Task[Any]) -> bool:
        """Returns whether one of the tasks was cancelled to end it.

        Any other cancellation concerns its handler alone, and ends with the message: some libraries cancel the task
        that they run in to stop waiting, and never take that back (`Task.uncancel`).
        """
        if task.cancelling() and self._is_ending:
            return True
        while task.cancelling():
            task.uncancel()
        return False

    def failed(self, message: Message, error: BaseException | None) -> Coroutine[Any, Any, None] | None:
        """Carries out the error policy for a message whose handler raised, or is late: then the error is None."""
        return self._failures.failed(message, self.late_error() if error is None else error)

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
                worker.time_out(sequence)
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
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
