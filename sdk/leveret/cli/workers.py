"""`leveret run` with several processes: a parent starts worker processes, restarts those that crash, and stops all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec

from leveret.app.board import Board
from leveret.app.process import Signals
from leveret.app.supervision import restart_backoff
from leveret.app.systemd import Notifier
from leveret.app.watching import INTERVAL, note_standing, served
from leveret.cli.failures import CommandFailed
from leveret.cli.serve import WorkerLine, start_log
from leveret.cli.summary import Summary
from leveret.monitoring.logs import PROCESS_VARIABLE
from leveret.runtime.tasks import set_within

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from leveret.cli.serve import RunOptions

__all__ = ["run_workers"]

logger = logging.getLogger("leveret.run")

_LINES: Final = msgspec.json.Decoder(WorkerLine)

#: A worker that crashes this often within so many seconds is not started again, and the command fails.
_CRASHES: Final = 5
_CRASH_WINDOW: Final = 30.0
#: Seconds that a worker gets to end, until it has reported how long it may need.
_LONGEST_SHUTDOWN: Final = 60.0
#: Seconds that a worker gets beyond that time, and that a killed process may take to be gone.
_GRACE: Final = 5.0
#: The longest line that a worker may send; one with 1000 exchanges and queues, each with its histograms, is shorter.
_LONGEST_LINE: Final = 32 * 1024 * 1024
#: Exit statuses of a process that a signal stopped, whether it drained or had not yet begun.
_STOPPED: Final = (0, -signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(slots=True)
class _Worker:
    """One worker and its current process.

    Attributes:
        number: The worker's number, from 0 up.
        process: The current process.
        line: The parent's end of the socket pair.
        longest_shutdown: Seconds that the process says it may need to end.
        failure: The error that the process reported when a restart cannot help.
    """

    number: int
    process: Process | None = None
    line: socket.socket | None = None
    longest_shutdown: float = _LONGEST_SHUTDOWN
    failure: str = ""

    def hang_up(self) -> None:
        """Tells the process to stop."""
        if self.line is not None:
            with contextlib.suppress(OSError):  # the process has ended
                self.line.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()


def run_workers(options: RunOptions, processes: int) -> None:
    """Runs an app in several processes until a signal.

    The first process is started alone, the others when it is ready. If the app does not exist, or the broker refuses
    its credentials, there is one error and not one for each process.

    Args:
        options: What the processes run, and how.
        processes: The number of processes.

    Raises:
        CommandFailed: A worker met an error that a restart cannot help, crashed repeatedly, or had to be killed.
        SystemExit: A second signal came. The status is 128 plus the signal's number.
    """
    start_log(options)
    board = Board(options.target, processes)
    with Signals() as signals, served(board, options.health):
        # Plain asyncio: uvloop cannot start a process in its own process group.
        asyncio.run(_Supervisor(options, board, signals).run())
        if signals.second:
            raise SystemExit(128 + signals.second)


class _Supervisor:
    def __init__(self, options: RunOptions, board: Board, signals: Signals) -> None:
        self._options = options
        self._board = board
        self._signals = signals
        self._workers = [_Worker(number) for number in range(board.processes)]
        self._stopping = asyncio.Event()
        self._first_is_ready = asyncio.Event()
        self._aborting = False

    async def run(self) -> None:
        self._signals.attach(self._stop, self._abort)
        keepers = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        others = [asyncio.create_task(self._stopping.wait()), asyncio.create_task(self._show())]
        try:
            # No deadline: this lasts until the command ends. Before that a keeper ends only when it failed.
            first, _ = await asyncio.wait((*keepers, others[0]), return_when=asyncio.FIRST_COMPLETED)
            self._stop()
            limit = max(worker.longest_shutdown for worker in self._workers)
            _, late = await asyncio.wait(keepers, timeout=limit + _GRACE)
        finally:
            # Keepers are not cancelled: a process that is just being started would be left running.
            self._stop()
            self._abort()
            await asyncio.wait(keepers, timeout=_GRACE)
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=_GRACE)
        # What ended the command, before what other workers did while they were being stopped.
        ended = sorted((task for task in keepers if task.done()), key=lambda task: task not in first)
        failures = [error for task in ended if (error := task.exception()) is not None]
        if failures:
            raise failures[0]
        if late and not self._signals.second:
            raise CommandFailed(f"processes did not end within {limit:g} s and were killed")

    def _stop(self) -> None:
        self._stopping.set()
        for worker in self._workers:
            worker.hang_up()

    def _abort(self) -> None:
        self._aborting = True
        for worker in self._workers:
            worker.kill()

    async def _show(self) -> None:
        notifier = Notifier()
        with Summary(self._options.target, enabled=not self._options.quiet) as summary:
            while True:
                note_standing(self._board, notifier, stopping=self._stopping.is_set())
                summary.tick(self._board)
                await asyncio.sleep(INTERVAL)

    # ------------------------------------------------------------------ one worker

    async def _keep(self, worker: _Worker) -> None:
        """Runs the worker's process, and starts another when it ends, until the command stops.

        Raises:
            CommandFailed: Starting another process cannot help.
        """
        if worker.number > 0 and not await self._first_ready():
            return
        loop = asyncio.get_running_loop()
        backoff = restart_backoff()
        crashes: deque[float] = deque(maxlen=_CRASHES)
        while not self._stopping.is_set():
            started = loop.time()
            pid, status = await self._live(worker)
            if worker.failure:
                raise CommandFailed(worker.failure)
            if self._stopping.is_set():
                if status not in _STOPPED and not self._aborting:
                    raise CommandFailed(f"process {worker.number} {_how_ended(status)} while it was being stopped")
                return
            backoff.ran_for(loop.time() - started)
            if status not in _STOPPED:
                crashes.append(loop.time())
                if len(crashes) == _CRASHES and crashes[-1] - crashes[0] < _CRASH_WINDOW:
                    raise CommandFailed(
                        f"process {worker.number} crashed {_CRASHES} times within {_CRASH_WINDOW:g} s; the last one "
                        f"{_how_ended(status)}"
                    )
            delay = backoff.delay()
            self._board.ended(worker.number)
            logger.warning(
                "process %d (pid %d) %s; starting another process in %.1f s",
                worker.number,
                pid,
                _how_ended(status),
                delay,
            )
            await set_within(self._stopping, delay)
            backoff.count_attempt()

    async def _first_ready(self) -> bool:
        ready = asyncio.create_task(self._first_is_ready.wait())
        stopping = asyncio.create_task(self._stopping.wait())
        # No deadline: the first worker gets ready or fails, or a signal comes.
        await asyncio.wait((ready, stopping), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        stopping.cancel()
        return not self._stopping.is_set()

    async def _live(self, worker: _Worker) -> tuple[int, int]:
        """Starts a process and waits until it ends; returns its process id and exit status."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                # -P: modules in the current directory are for the app only. Its own process group: Ctrl-C at the
                # terminal reaches the parent only; for the process it would be a second signal.
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "leveret.cli", "run", "--worker-fd", str(theirs.fileno())),
                    *(*_arguments(self._options), "--", self._options.target),
                    env=os.environ | {PROCESS_VARIABLE: str(worker.number)},
                    stdin=asyncio.subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    process_group=0,
                )
            worker.process, worker.line = process, ours
            listening = asyncio.create_task(self._listen(worker, ours))
            try:
                if self._stopping.is_set():
                    worker.hang_up()
                if self._aborting:
                    worker.kill()
                # No deadline: the process runs until the command stops.
                status = await process.wait()
                # Its last reports have arrived. The wait has a deadline, because a child of the process may hold the
                # socket open.
                await asyncio.wait((listening,), timeout=INTERVAL)
            finally:
                worker.kill()
                worker.process = worker.line = None
                listening.cancel()
                await asyncio.wait((listening,), timeout=INTERVAL)
            return process.pid, status

    async def _listen(self, worker: _Worker, line: socket.socket) -> None:
        # A duplicate, because the transport closes its socket.
        reader, writer = await asyncio.open_unix_connection(sock=line.dup(), limit=_LONGEST_LINE)
        try:
            # Cut off, too long, or not a line of this version: the process is still supervised.
            with contextlib.suppress(ConnectionError, ValueError):
                async for text in reader:
                    self._said(worker, _LINES.decode(text))
        finally:
            writer.close()

    def _said(self, worker: _Worker, line: WorkerLine) -> None:
        worker.longest_shutdown = line.longest_shutdown or worker.longest_shutdown
        worker.failure = line.failed or worker.failure
        if line.snapshot is not None:
            self._board.update(line.snapshot)
        if line.ready:
            self._first_is_ready.set()


def _arguments(options: RunOptions) -> list[str]:
    """Returns the options as a command line."""
    given: list[str] = ["--quiet"] if options.quiet else []
    for option, value in (
        ("--drain-timeout", options.drain_timeout),
        ("--health", options.health),
        ("--log-file", options.log_file),
        ("--log-format", options.log_format),
    ):
        given += [] if value is None else [option, str(value)]
    return given


def _how_ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
