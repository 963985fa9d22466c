"""`leveret run` with several processes: a parent that starts them, watches them, and ends with them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from leveret.app.process import Signals
from leveret.app.supervision import restart_backoff
from leveret.cli.failures import CommandFailed
from leveret.cli.serve import log_to_stderr
from leveret.cli.summary import INTERVAL, Summary
from leveret.runtime.tasks import set_within

if TYPE_CHECKING:
    from asyncio.subprocess import Process

__all__ = ["run_workers"]

logger = logging.getLogger("leveret.run")

#: A worker that crashed this often within so many seconds will not do better the next time.
_CRASHES: Final = 5
_CRASH_WINDOW: Final = 30.0
#: Seconds that a worker gets to end before it has said how long it may take.
_LONGEST_SHUTDOWN: Final = 60.0
#: Seconds beyond what it said, and until a process that was killed is gone.
_GRACE: Final = 5.0
#: Statuses of a process that a signal ended in an orderly way, or before it could be one.
_STOPPED: Final = (0, -signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)


@dataclass(slots=True)
class _Worker:
    """A place for a process, which one after another may take.

    Attributes:
        number: From 1 up.
        process: The process now.
        line: The parent's half of the socket.
        counted: What the process reported last.
        gone: What those before it reported last.
        restarts: How often another process took the place.
        longest_shutdown: Seconds that it says it may need to end.
        failure: The error that no attempt can mend.
    """

    number: int
    process: Process | None = None
    line: socket.socket | None = None
    counted: Counter[str] = field(default_factory=Counter)
    gone: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    longest_shutdown: float = _LONGEST_SHUTDOWN
    failure: str = ""

    def hang_up(self) -> None:
        """Tells the process to stop."""
        if self.line is not None:
            with contextlib.suppress(OSError):  # it is gone
                self.line.shutdown(socket.SHUT_WR)

    def kill(self) -> None:
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    def forget(self) -> None:
        self.counted["unsettled"] = 0  # they went back to the queue
        self.gone.update(self.counted)
        self.counted = Counter()


def run_workers(target: str, processes: int, drain_timeout: float | None, *, quiet: bool) -> None:
    """Runs an app in several processes until a signal.

    The first one is started alone: when it finds no app, or a broker that refuses its credentials, there is one error
    and not one for each process.

    Args:
        target: `module:attribute`.
        processes: How many.
        drain_timeout: Seconds, over the app's own; None leaves that.
        quiet: No summary, and only warnings are logged.

    Raises:
        CommandFailed: A worker met an error that no attempt can mend, crashed again and again, or had to be killed.
        SystemExit: A second signal came; the status is 128 and its number.
    """
    log_to_stderr(quiet=quiet)
    options = [] if drain_timeout is None else ["--drain-timeout", str(drain_timeout)]
    options += ["--quiet"] if quiet else []
    with Signals() as signals:
        # Plain asyncio: there is little to do, and uvloop cannot start a process in a group of its own.
        asyncio.run(_Supervisor(target, processes, options, signals).run(enabled=not quiet))
        if signals.second:
            raise SystemExit(128 + signals.second)


class _Supervisor:
    def __init__(self, target: str, processes: int, options: list[str], signals: Signals) -> None:
        self._target = target
        self._options = options
        self._signals = signals
        self._workers = [_Worker(number) for number in range(1, processes + 1)]
        self._stopping = asyncio.Event()
        self._first_is_ready = asyncio.Event()
        self._aborting = False

    async def run(self, *, enabled: bool) -> None:
        self._signals.attach(self._stop, self._abort)
        keepers = [asyncio.create_task(self._keep(worker)) for worker in self._workers]
        others = [asyncio.create_task(self._stopping.wait()), asyncio.create_task(self._show(enabled))]
        try:
            # It has no deadline: this is the command's whole life. A keeper ends before only when it failed.
            await asyncio.wait((*keepers, others[0]), return_when=asyncio.FIRST_COMPLETED)
            self._stop()
            limit = max(worker.longest_shutdown for worker in self._workers)
            _, late = await asyncio.wait(keepers, timeout=limit + _GRACE)
        finally:
            # They are not cancelled: a process that is just being started would stay behind.
            self._stop()
            self._abort()
            await asyncio.wait(keepers, timeout=_GRACE)
            for task in others:
                task.cancel()
            await asyncio.wait(others, timeout=_GRACE)
        failures = [error for task in keepers if task.done() and (error := task.exception()) is not None]
        if failures:
            raise failures[0]
        if late and not self._signals.second:
            raise CommandFailed(f"workers did not end within {limit:g} s and were killed")

    def _stop(self) -> None:
        self._stopping.set()
        for worker in self._workers:
            worker.hang_up()

    def _abort(self) -> None:
        self._aborting = True
        for worker in self._workers:
            worker.kill()

    async def _show(self, enabled: bool) -> None:
        with Summary(self._target, enabled=enabled) as summary:
            while True:
                await asyncio.sleep(INTERVAL)
                total: Counter[str] = Counter()
                for worker in self._workers:
                    total.update(worker.counted)
                    total.update(worker.gone)
                running = sum(worker.process is not None for worker in self._workers)
                restarts = total["restarts"] + sum(worker.restarts for worker in self._workers)
                summary.tick(total, running, restarts, stopping=self._stopping.is_set())

    # ------------------------------------------------------------------ one place

    async def _keep(self, worker: _Worker) -> None:
        """Has a process run in this place until all stop; raises when it makes no sense to start another."""
        if worker.number > 1 and not await self._first_ready():
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
                    raise CommandFailed(f"worker {worker.number} {_how_ended(status)} while it was being stopped")
                return
            backoff.ran_for(loop.time() - started)
            if status not in _STOPPED:
                crashes.append(loop.time())
                if len(crashes) == _CRASHES and crashes[-1] - crashes[0] < _CRASH_WINDOW:
                    raise CommandFailed(
                        f"worker {worker.number} crashed {_CRASHES} times within {_CRASH_WINDOW:g} s; the last one "
                        f"{_how_ended(status)}"
                    )
            delay = backoff.delay()
            worker.restarts += 1
            logger.warning(
                "worker %d (process %d) %s; another is started in %.1f s",
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
        # It has no deadline of its own: the first worker is ready, or has failed, or a signal comes.
        await asyncio.wait((ready, stopping), return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        stopping.cancel()
        return not self._stopping.is_set()

    async def _live(self, worker: _Worker) -> tuple[int, int]:
        """Starts a process and waits for its end; returns its number and its status."""
        ours, theirs = socket.socketpair()
        with ours:
            with theirs:
                # -P: what lies in the current directory is for the app, and not for us. Its own process group: Ctrl-C
                # at the terminal is for the parent, and would be a second signal after its stop.
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-P", "-m", "leveret.cli", "run", "--worker-fd", str(theirs.fileno())),
                    *(*self._options, "--", self._target),
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
                # It has no deadline: the process lives as long as it is needed.
                status = await process.wait()
                # The last lines are there already; a process that it left behind may hold its end open.
                await asyncio.wait((listening,), timeout=INTERVAL)
            finally:
                worker.kill()
                worker.process = worker.line = None
                listening.cancel()
                await asyncio.wait((listening,), timeout=INTERVAL)
                worker.forget()
            return process.pid, status

    async def _listen(self, worker: _Worker, line: socket.socket) -> None:
        # A socket of its own, because the transport closes it.
        reader, writer = await asyncio.open_unix_connection(sock=line.dup())
        try:
            with contextlib.suppress(ConnectionError, ValueError):  # cut off, or longer than any line of ours
                async for text in reader:
                    self._heard(worker, json.loads(text))
        finally:
            writer.close()

    def _heard(self, worker: _Worker, report: dict[str, Any]) -> None:
        worker.counted = Counter(report.get("counters", worker.counted))
        worker.longest_shutdown = report.get("longest_shutdown", worker.longest_shutdown)
        worker.failure = report.get("failed", worker.failure)
        if report.get("ready"):
            self._first_is_ready.set()


def _how_ended(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
