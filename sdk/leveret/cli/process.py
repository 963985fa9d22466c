"""Runs the embedded broker in its own process, as long as a command or benchmark needs it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import threading
from typing import TYPE_CHECKING, Final

from leveret.cli.failures import CommandFailed, uninterrupted
from leveret.cli.measure import cpu_of_process_ns

if TYPE_CHECKING:
    from types import TracebackType
    from typing import IO, Self

__all__ = ["BrokerProcess", "BrokerStartError"]

_START_TIMEOUT: Final = 20.0
_STOP_TIMEOUT: Final = 5.0


class BrokerStartError(CommandFailed):
    """The embedded broker's process ended early, or printed no URL in time."""


class BrokerProcess:
    """Starts `python -m leveret.broker` on a free loopback port. Leaving the context always stops the process.

    Attributes:
        url: The broker's URL, inside the context.
    """

    def __init__(self) -> None:
        self.url = ""
        self._process: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def __enter__(self) -> Self:
        try:
            with uninterrupted():
                self._start()
            assert self._process is not None
            self.url = self._read_url(self._process)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()

    def cpu_ns(self) -> int | None:
        """Returns the process's user and system time in nanoseconds; None where the platform does not tell it."""
        return None if self._process is None else cpu_of_process_ns(self._process.pid)

    @property
    def pid(self) -> int:
        """The process's number, inside the context."""
        assert self._process is not None
        return self._process.pid

    def _start(self) -> None:
        self._errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - _stop closes it
        # -P: modules in the user's folder are not imported. Its own process group: Ctrl-C at the terminal reaches this
        # process only, and the broker lives until the command has removed its queues.
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "leveret.broker", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            process_group=0,
        )

    def _read_url(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        # A read from a pipe has no deadline, but it returns when the process ends.
        deadline = threading.Timer(_START_TIMEOUT, process.kill)
        deadline.daemon = True
        try:
            deadline.start()
            words = process.stdout.readline().split()
        finally:
            deadline.cancel()
        urls = [word for word in words if word.startswith("amqp")]
        if not urls:
            raise BrokerStartError(
                f"the embedded broker did not start within {_START_TIMEOUT:g} s: {self._last_error()}"
            )
        return urls[0]

    def _last_error(self) -> str:
        assert self._errors is not None
        self._errors.seek(0)
        return (self._errors.read().strip().splitlines() or ["it printed nothing"])[-1]

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT)
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        if self._errors is not None:
            self._errors.close()
            self._errors = None
