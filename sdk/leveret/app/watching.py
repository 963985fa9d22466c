"""An app that runs in one process, and what looks at it once a second: the board, systemd, and who is called."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from leveret.app.board import Board
from leveret.app.process import run_process
from leveret.app.snapshot import Sampler
from leveret.app.systemd import Notifier
from leveret.errors import LeveretError
from leveret.plugins.registry import PluginRegistry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leveret.app.app import App

__all__ = ["INTERVAL", "note_standing", "served", "watch_process"]

#: Seconds between two looks.
INTERVAL: Final = 1.0


@contextlib.contextmanager
def served(board: Board, address: str | None) -> Iterator[None]:
    """Serves a board over HTTP, for as long as the context lasts; None serves nothing.

    Raises:
        ConfigurationError: The address is wrong.
    """
    if address is None:
        yield
        return
    # HTTP is for those who ask for it.
    from leveret.app.endpoint import Endpoint

    try:
        render = PluginRegistry.shared().renderer()
    except LeveretError:
        render = None  # the app itself says what is wrong with its plugins, if it wants any
    with Endpoint(address, board, render):
        yield


def note_standing(board: Board, notifier: Notifier, *, stopping: bool) -> None:
    """Begins another second on the board, and tells systemd what is new."""
    if stopping:
        board.stop()
        notifier.tell("STOPPING=1")
    board.tick()
    if board.standing().ready:
        notifier.tell("READY=1")


def watch_process(
    app: App,
    name: str,
    health: str | None = None,
    on_tick: Callable[[Board], None] | None = None,
    *,
    last: bool = False,
) -> bool:
    """Runs an app as `run_process` does, and looks at it once a second where somebody wants to know.

    Args:
        app: The app.
        name: What the board calls it.
        health: `HOST:PORT` to serve the board on, or None.
        on_tick: Called with the board each second.
        last: As for `run_process`.

    Returns:
        Whether every handler that had begun could finish.

    Raises:
        ConfigurationError: `health` is no address.
        SystemExit, Exception: As `run_process`.
    """
    board, notifier = Board(name), Notifier()
    if health is None and on_tick is None and not notifier.is_asked:
        return run_process(app, last=last)

    async def watch(app: App, stop: asyncio.Event) -> None:
        with contextlib.closing(Sampler(app, depths=health is not None)) as sampler:
            while True:
                board.update(sampler.take())
                note_standing(board, notifier, stopping=stop.is_set())
                if on_tick is not None:
                    on_tick(board)
                await asyncio.sleep(INTERVAL)

    with served(board, health):
        return run_process(app, watch, last=last)
