"""Ends commands with one line and an exit status. Users see no traceback for errors that they can correct."""

from __future__ import annotations

import contextlib
import signal
from typing import TYPE_CHECKING

import click

from leveret.errors import LeveretError, printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["CommandFailed", "Incomplete", "reported", "uninterrupted"]

_LONGEST_LINE = 1000


class CommandFailed(Exception):
    """A command failed; the text is for its user."""


class Incomplete(CommandFailed):
    """Messages were lost, came twice or failed, or there was no progress, so there are no figures to report."""


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns errors into one line and status 1, and signals into the status that shells use.

    Ctrl-C ends with 130 and SIGTERM with 143, after all `finally` blocks have run. A second signal does not wait for
    them.

    Yields:
        Nothing.
    """
    status = 128 + signal.SIGINT

    def terminate(number: int, frame: FrameType | None) -> None:
        nonlocal status
        status = 128 + number
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # started by a script with &
            raise KeyboardInterrupt
        # asyncio's runner cancels the main task on SIGINT.
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        raise SystemExit(status) from None
    except (LeveretError, CommandFailed) as error:
        raise click.ClickException(printable(str(error), _LONGEST_LINE)) from error
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Delays Ctrl-C to the end of the context, so that a process that is just being started is not left running.

    Yields:
        Nothing.
    """
    interrupted = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        interrupted = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if interrupted:
            raise KeyboardInterrupt
