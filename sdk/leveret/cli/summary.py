"""One line about running consumers: redrawn each second on a terminal, logged each minute elsewhere."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from leveret.cli.output import console

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Self

    from rich.console import Console

__all__ = ["INTERVAL", "Summary"]

logger = logging.getLogger("leveret.run")

#: Seconds between two reports of a process, and two drawings.
INTERVAL: Final = 1.0
#: Seconds between two lines in a log.
_LOG_INTERVAL: Final = 60.0


class Summary:
    """Shows the rates and failures of consumers, from counters that are read once a second.

    Args:
        name: The name of the app that runs.
        enabled: False: shows nothing.
        screen: The console; by default stderr.
        clock: A monotonic clock in seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        enabled: bool = True,
        screen: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich.live import Live

        screen = screen or console(stderr=True)
        self._name = name
        self._enabled = enabled
        self._clock = clock
        # Output of handlers is not redirected.
        self._live = (
            Live(console=screen, auto_refresh=False, transient=True, redirect_stdout=False, redirect_stderr=False)
            if enabled and screen.is_terminal
            else None
        )
        self._interval = 0.0 if self._live else _LOG_INTERVAL
        self._last_at = clock()
        self._last: Mapping[str, int] = {}

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def tick(self, counters: Mapping[str, int], processes: int, restarts: int, *, stopping: bool = False) -> None:
        """Shows the state: on a terminal at each call, in a log once a minute.

        Args:
            counters: The sums over all processes since they began.
            processes: How many processes run.
            restarts: How often a process or a consumer was started again.
            stopping: Whether they are being stopped.
        """
        now = self._clock()
        passed = now - self._last_at
        if not self._enabled or passed <= 0 or passed < self._interval:
            return
        text = self._text(counters, passed, processes, restarts)
        self._last_at, self._last = now, dict(counters)
        if self._live is None:
            logger.info("%s", text)
            return
        from rich.text import Text

        line = f"{self._name}: {text}{', stopping' if stopping else ''}"
        self._live.update(Text(line, no_wrap=True, overflow="ellipsis"), refresh=True)

    def _text(self, counters: Mapping[str, int], passed: float, processes: int, restarts: int) -> str:
        def rate(name: str) -> float:
            # Not below 0: a process that ended took the counts since its last report with it.
            return max(0, counters.get(name, 0) - self._last.get(name, 0)) / passed

        failures = counters.get("handler_errors", 0) + counters.get("undecodable", 0)
        return (
            f"{processes} process{'' if processes == 1 else 'es'}, {rate('delivered'):,.0f} deliveries/s, "
            f"{rate('acked'):,.0f} acked/s, {failures:,} failures, {counters.get('unsettled', 0):,} unsettled, "
            f"{restarts:,} restarts"
        )
