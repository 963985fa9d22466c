"""`leveret run` in one process: runs the app, and reports to a parent process if there is one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec

from leveret.app.process import run_process
from leveret.app.snapshot import Sampler, Snapshot
from leveret.app.watching import INTERVAL, watch_process
from leveret.cli.failures import CommandFailed
from leveret.cli.summary import Summary
from leveret.cli.target import load
from leveret.errors import LeveretError, printable
from leveret.monitoring.logs import TEXT, setup_logging

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leveret.app.app import App

__all__ = ["RunOptions", "WorkerLine", "serve_as_worker", "serve_here", "start_log"]

#: Moves to the beginning of the terminal's line and clears it, as the summary may stand there.
_CLEAR_LINE: Final = "\r\x1b[K"
_LONGEST_REASON: Final = 1000
#: No snapshot is written while the parent has left so many bytes unread, because it is stopped or busy.
_UNREAD: Final = 16_384


class RunOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of `leveret run` that its processes share.

    Attributes:
        target: `module:attribute`.
        drain_timeout: Seconds for running handlers to end; None for the app's own setting.
        quiet: Show no summary, and log only warnings.
        health: `HOST:PORT` of the health endpoint, or None.
        log_file: The file to log to; None for stderr.
        log_format: "text" or "json"; None for text, unless the app's module has configured logging.
    """

    target: str
    drain_timeout: float | None = None
    quiet: bool = False
    health: str | None = None
    log_file: str | None = None
    log_format: str | None = None


class WorkerLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of JSON from a worker process to its parent.

    Attributes:
        ready: The process has loaded the app, and begins.
        longest_shutdown: Seconds that it may need to end, at most.
        failed: The error that ends it, which a restart cannot help.
        snapshot: What it has counted and how it is.
    """

    ready: bool = False
    longest_shutdown: float | None = None
    failed: str = ""
    snapshot: Snapshot | None = None

    def encoded(self) -> bytes:
        """Returns the line."""
        return msgspec.json.encode(self) + b"\n"


def start_log(options: RunOptions) -> None:
    """Writes the log to stderr or to a file, unless the app's module has configured logging and no option asks for it.

    Raises:
        ConfigurationError: The file cannot be written.
    """
    asked = options.log_file is not None or options.log_format is not None
    if not asked and logging.getLogger("leveret").hasHandlers():
        return
    level = logging.WARNING if options.quiet else logging.INFO
    handler = setup_logging(level, format=options.log_format or "text", file=options.log_file)
    if options.log_file is None and options.log_format != "json" and sys.stderr.isatty() and not options.quiet:
        handler.setFormatter(logging.Formatter(f"{_CLEAR_LINE}{TEXT}"))


def _prepared(options: RunOptions) -> App:
    app = load(options.target)
    start_log(options)
    if options.drain_timeout is not None:
        app.drain_timeout = options.drain_timeout
    return app


def serve_here(options: RunOptions) -> None:
    """Runs an app in this process until a signal, and shows a summary.

    Raises:
        CommandFailed: The app was not found.
        SystemExit: A second signal came.
        LeveretError: An error that trying again cannot help.
    """
    app = _prepared(options)
    with Summary(options.target, enabled=not options.quiet) as summary:
        watch_process(app, options.target, options.health, summary.tick, last=True)


def serve_as_worker(options: RunOptions, fd: int) -> None:
    """Runs an app as one of several processes, until a signal or until the parent closes its end of the socket.

    Args:
        options: The options; of `health` only whether it is set.
        fd: A stream socket to the parent. The process sends a `WorkerLine` each second. It stops at the end of its
            input: the parent has closed its end, or is gone.

    Raises:
        SystemExit: Status 1 after an error that trying again cannot help. The parent was told.
    """
    try:
        parent = socket.socket(fileno=fd)
    except OSError as error:
        raise CommandFailed("--worker-fd is for processes that `leveret run` starts itself") from error
    with parent:
        # Processes that handlers start must not hold the socket open after this process has ended.
        parent.set_inheritable(False)
        try:
            app = _prepared(options)
            run_process(app, _reporting(parent, depths=options.health is not None), last=True)
        except (LeveretError, CommandFailed) as error:
            line = WorkerLine(failed=printable(str(error), _LONGEST_REASON))
            with contextlib.suppress(OSError):  # the parent is gone
                parent.setblocking(False)
                parent.send(line.encoded())
            raise SystemExit(1) from error


def _reporting(parent: socket.socket, *, depths: bool) -> Any:
    async def report(app: App, stop: asyncio.Event) -> None:
        # A duplicate, because the transport closes its socket with the loop.
        reader, writer = await asyncio.open_unix_connection(sock=parent.dup())
        listening = asyncio.create_task(_listen(reader, stop))
        try:
            with contextlib.closing(Sampler(app, depths=depths)) as sampler:
                for line in _lines(app, sampler):
                    if writer.is_closing():
                        break
                    if writer.transport.get_write_buffer_size() < _UNREAD:
                        writer.write(line.encoded())
                    await asyncio.sleep(INTERVAL)
            await listening
        finally:
            listening.cancel()
            await asyncio.wait((listening,), timeout=INTERVAL)
            writer.close()

    return report


def _lines(app: App, sampler: Sampler) -> Iterator[WorkerLine]:
    yield WorkerLine(ready=True, longest_shutdown=app.longest_shutdown, snapshot=sampler.take())
    while True:
        yield WorkerLine(snapshot=sampler.take())


async def _listen(reader: asyncio.StreamReader, stop: asyncio.Event) -> None:
    # No deadline: the parent sends nothing, it only closes its end.
    with contextlib.suppress(ConnectionError):
        await reader.read()
    stop.set()
