"""One line about running consumers: redrawn on a terminal each second, logged each minute elsewhere."""

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
    """Shows what consumers do, from counters that are read once a second: no message pays for it.

    Args:
        name: What runs.
        enabled: Whether to show anything at all.
        screen: Where to; stderr unless a test says otherwise.
        clock: Seconds that only grow.
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
        # Nothing is redirected: what handlers print belongs to them.
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
        """Shows the state now; on a terminal each time, in a log when a minute has passed.

        Args:
            counters: The sums over all processes since they began.
            processes: How many there are.
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
            # What a process counted after its last report is gone with it.
            return max(0, counters.get(name, 0) - self._last.get(name, 0)) / passed

        failures = counters.get("handler_errors", 0) + counters.get("undecodable", 0)
        return (
            f"{processes} process{'' if processes == 1 else 'es'}, {rate('delivered'):,.0f} deliveries/s, "
            f"{rate('acked'):,.0f} acked/s, {failures:,} failures, {counters.get('unsettled', 0):,} unsettled, "
            f"{restarts:,} restarts"
        )
