"""Progress bars that do not disturb what is measured, and the watch over work that may stand still."""

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
    """Progress bars on a terminal. Nothing is drawn elsewhere, or when they are not wanted.

    They are drawn when `draw` is called and never by a thread, so that what drawing costs is known.

    Args:
        console: Where to.
        enabled: Whether to draw at all.

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
        """Shows a bar for as long as the context lasts.

        Args:
            description: What stands before it.
            total: How many messages there are.
            done: Reads how many are done; called a few times per second, so that no message pays for it.

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
        """How many messages are done, for each bar."""
        return [done() for done in self._done.values()]

    def draw(self) -> None:
        """Shows how much is done, unless it was drawn less than an interval ago."""
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
    """Runs work to its end; draws its progress, and gives it up when there is none.

    Args:
        work: What to run. It is cancelled, and waited for, when this ends early.
        bars: The bars of the work.
        name: What errors call the work.
        stall: Seconds in which no bar moves, after which the work counts as failed.
        draw: Whether to draw meanwhile; False when the work chooses the moments itself, or there should be none.

    Returns:
        What the work returns.

    Raises:
        Incomplete: Nothing moved for `stall` seconds.
        Exception: What the work raised.
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
                raise Incomplete(f"{name}: nothing moved for {stall:g} s, at {', '.join(map(str, counts))} messages")
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
