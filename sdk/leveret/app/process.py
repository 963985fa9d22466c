"""An app as a program: signals, the event loop, and the end of the process."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import functools
import logging
import os
import signal
import sys
import threading
from typing import TYPE_CHECKING, Any, Final

from leveret.errors import ConfigurationError
from leveret.runtime.tasks import cancel_all
from leveret.transport.loop import run as run_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType, TracebackType
    from typing import Self

    from leveret.app.app import App

__all__ = ["Signals", "check_main_thread", "exit_within", "run_process"]

logger = logging.getLogger("leveret.app")

#: Seconds that a cancelled companion of the app gets to end.
_GRACE: Final = 2.0
#: Seconds from a second signal to the end of the process, for acknowledgements that are ready.
_ABORT: Final = 1.0
#: Seconds that a process which has ended its work waits for threads that do not.
_STUCK_THREADS: Final = 2.0


class Signals:
    """SIGINT and SIGTERM, for as long as the context lasts: the first stops, a second one aborts.

    These are handlers of Python and not of the event loop, because a second signal has to arrive while a handler keeps
    the loop from turning. SIGINT stays ignored where it was, as in what a shell started with `&`.

    Attributes:
        first: The number of the first signal, or 0.
        second: The number of the second one, or 0.
    """

    def __init__(self) -> None:
        self.first = 0
        self.second = 0
        self._before: dict[int, Any] = {}
        self._stop: Callable[[], object] | None = None
        self._abort: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def attach(self, stop: Callable[[], object], abort: Callable[[], object]) -> None:
        """Says what to call in the running event loop, which is done at once for what came before.

        Args:
            stop: For the first signal.
            abort: For the second one.
        """
        loop = asyncio.get_running_loop()

        def call(function: Callable[[], object]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: what was to stop has ended
                loop.call_soon_threadsafe(function)

        self._stop, self._abort = functools.partial(call, stop), functools.partial(call, abort)
        if self.first:
            stop()
        if self.second:
            abort()

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if not self.first:
            self.first = number
            if self._stop is not None:
                self._stop()
        elif not self.second:
            self.second = number
            # Sooner or later than what is called in the loop: handlers may not let themselves be cancelled.
            exit_within(_ABORT, 128 + number)
            if self._abort is not None:
                self._abort()


def exit_within(seconds: float, status: int) -> None:
    """Ends the process, if it has not ended by then: threads that do not end would keep it alive.

    It uses SIGALRM and no thread, because it is called in a signal's handler.

    Args:
        seconds: When.
        status: The exit status.
    """

    def end(number: int, frame: FrameType | None) -> None:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):  # it may be this stream's own write that was interrupted
                stream.flush()
        os._exit(status)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    # atexit calls this once all threads have ended. Afterwards the interpreter removes its signal handlers, and the
    # alarm would kill the process with a status of its own.
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)


def run_process(
    app: App,
    beside: Callable[[App, asyncio.Event], Coroutine[Any, Any, None]] | None = None,
    *,
    last: bool = False,
) -> bool:
    """Runs an app with signals, as `App.run` and `leveret run` do.

    Args:
        app: The app.
        beside: Runs in the same loop, from before the app connects until it has ended; the event stops the app.
        last: True when the process has nothing to do afterwards: threads of handlers that were cut off then keep it
            alive for a few seconds only.

    Returns:
        Whether every handler that had begun could finish.

    Raises:
        SystemExit: A second signal came; the status is 128 and its number.
        Exception: What `App.serve` raises.
    """
    check_main_thread()

    async def main() -> bool:
        stop = asyncio.Event()
        task = asyncio.current_task()
        assert task is not None
        signals.attach(stop.set, task.cancel)
        companion = None if beside is None else asyncio.create_task(beside(app, stop))
        status = 1
        try:
            whole = await app.serve(stop)
            status = 0
        finally:
            if last and not signals.second:
                # Closing the loop waits for the threads of its executor, and the interpreter for all.
                exit_within(_STUCK_THREADS, status)
            if companion is not None:
                await cancel_all([companion], _GRACE)
                if companion.done() and not companion.cancelled() and (error := companion.exception()) is not None:
                    logger.error("%s", error, exc_info=error)
        return whole

    with Signals() as signals:
        try:
            return run_loop(main())
        except asyncio.CancelledError:
            if not signals.second:
                raise
            raise SystemExit(128 + signals.second) from None


def check_main_thread() -> None:
    """Checks that this is the main thread, where Python handles signals.

    Raises:
        ConfigurationError: It is another one.
    """
    if threading.current_thread() is not threading.main_thread():
        raise ConfigurationError("signals arrive in the main thread only; elsewhere use `await app.serve()`")
