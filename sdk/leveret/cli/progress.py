"""Progress bars whose cost is known, and a watchdog for work that may stall."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from leveret.cli.failures import Incomplete

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import TracebackType
    from typing import Self

    from rich.console import Console

__all__ = ["Bars", "supervise"]

T = TypeVar("T")

#: Seconds between two drawings. Each takes a millisecond or two, in which nothing is published.
_INTERVAL: Final = 0.2


class Bars:
    """Progress bars on a terminal. They draw nothing on other outputs.

    No thread draws them, only calls of `draw`, so that the cost of drawing is known.

    Args:
        console: The console to draw on.
        enabled: False: draws nothing.

    Attributes:
        cpu_ns: The CPU time that drawing has taken.
    """

    def __init__(self, console: Console, *, enabled: bool = True) -> None:
        self.enabled = enabled and console.is_terminal
        self.cpu_ns = 0
        self._done: dict[TaskID, Callable[[], int]] = {}
        self._next = 0.0
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not self.enabled,
        )

    def __enter__(self) -> Self:
        if self.enabled:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.enabled:  # older versions of rich end a hidden one with a line
            self._progress.stop()

    @contextlib.contextmanager
    def bar(self, description: str, total: int, done: Callable[[], int]) -> Iterator[None]:
        """Shows a bar inside the context.

        Args:
            description: The text before the bar.
            total: The number of messages.
            done: Returns how many are done. It is called a few times per second, never once per message.

        Yields:
            Nothing.
        """
        bar = self._progress.add_task(description, total=total)
        self._done[bar] = done
        self._draw()
        try:
            yield
        finally:
            del self._done[bar]
            self._progress.remove_task(bar)

    def counts(self) -> list[int]:
        """Returns for each bar how many messages are done."""
        return [done() for done in self._done.values()]

    def draw(self) -> None:
        """Draws the bars, unless they were drawn less than an interval ago."""
        if self.enabled and time.monotonic() >= self._next:
            self._draw()

    def _draw(self) -> None:
        before = time.thread_time_ns()
        for bar, done in self._done.items():
            self._progress.update(bar, completed=done())
        self._progress.refresh()
        self.cpu_ns += time.thread_time_ns() - before
        self._next = time.monotonic() + _INTERVAL


async def supervise(work: Coroutine[Any, Any, T], bars: Bars, *, name: str, stall: float, draw: bool = True) -> T:
    """Runs work to its end and draws its progress. Work without progress is cancelled.

    Args:
        work: The coroutine to run. It is cancelled, and waited for, when this ends early.
        bars: The bars of the work.
        name: The work's name in errors.
        stall: The work fails when no bar moves for so many seconds.
        draw: False: draws nothing, because the work draws itself, or no progress is wanted.

    Returns:
        The result of the work.

    Raises:
        Incomplete: No bar moved for `stall` seconds.
        Exception: The work raised it.
    """
    task = asyncio.ensure_future(work)
    last, moved_at = bars.counts(), time.monotonic()
    try:
        while True:
            await asyncio.wait((task,), timeout=_INTERVAL)
            if task.done():
                return task.result()
            if draw:
                bars.draw()
            counts = bars.counts()
            if counts != last:
                last, moved_at = counts, time.monotonic()
            elif time.monotonic() > moved_at + stall:
                raise Incomplete(f"{name}: no progress for {stall:g} s, at {', '.join(map(str, counts))} messages")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
