"""One line about a run: redrawn each second on a terminal, and logged with a report each minute elsewhere."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

from leveret.cli.output import console

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from rich.console import Console

    from leveret.app.board import Board, Point

__all__ = ["Summary", "summary_of"]

logger = logging.getLogger("leveret.run")

#: Seconds between two lines in a log.
_LOG_INTERVAL: Final = 60.0


class Summary:
    """Shows the rates and failures of a run, and why it is not ready.

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
        self._logged_at = clock()
        self._logged: Point | None = None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def tick(self, board: Board) -> None:
        """Shows the state: on a terminal at each call, in a log once a minute.

        Args:
            board: What the processes said.
        """
        if not self._enabled:
            return
        if self._live is not None:
            from rich.text import Text

            line = Text(f"{self._name}: {summary_of(board)}", no_wrap=True, overflow="ellipsis")
            self._live.update(line, refresh=True)
            return
        now = self._clock()
        if now - self._logged_at < _LOG_INTERVAL:
            return
        report, self._logged_at = board.report(self._logged or board.first), now
        self._logged = board.mark
        if board.standing().ready:
            logger.info("%s; %s", summary_of(board), report, extra={"leveret_report": report.as_dict()})
        else:
            logger.warning("%s; %s", summary_of(board), report, extra={"leveret_report": report.as_dict()})


def summary_of(board: Board) -> str:
    """Returns the state of a run in one line: rates, failures and restarts, and why it is not ready."""
    report, standing = board.report(), board.standing()
    running = board.running
    parts = [f"{running} process{'' if running == 1 else 'es'}"]
    if running < board.processes:
        parts = [f"{running} of {board.processes} processes"]
    if not standing.ready:
        first, *others = standing.reasons or ("unknown",)
        more = f" (and {len(others)} more reasons)" if others else ""
        parts.append(f"not ready: {first}{more}")
    # While nothing is connected, "no failures" would be a lie.
    if standing.ready or report.connections:
        parts += [
            *([f"{report.published.rate:,.0f} published/s"] if report.published.count else []),
            f"{report.consumed.rate:,.0f} deliveries/s",
            f"{board.acked_rate:,.0f} acked/s",
            f"{board.failures:,} failures",
            f"{report.unsettled:,} unsettled",
        ]
    return ", ".join([*parts, f"{board.restarts:,} restarts"])
