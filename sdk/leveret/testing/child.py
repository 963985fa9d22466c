"""Runs hostile checks in a forked process, so that a crash, a hang or a huge allocation does not harm this one."""

from __future__ import annotations

import ctypes
import gc
import os
import select
import signal
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from leveret.testing.base import fail, raised

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MiB", "in_child", "peak_memory"]

MiB: Final = 1 << 20
#: The bytes that a child may map in addition to those at its start; enough for all checks.
_ADDRESS_SPACE: Final = 1024 * MiB
_DEADLINE: Final = 120.0


def peak_memory() -> int:
    """Returns the peak of this process's resident memory in bytes."""
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def in_child(function: Callable[[], None], what: str, *, seconds: float = _DEADLINE) -> None:
    """Runs a function in a fork of this process, with limited address space where the system supports it.

    It forks, because closures and test classes cannot be passed to a new process.

    Args:
        function: The function. It fails as checks do; other exceptions are failures, too.
        what: Its description, as the beginning of a sentence.
        seconds: The seconds that it may take.
    """
    if not hasattr(os, "fork"):
        pytest.skip("needs fork: run the conformance kit on Linux or macOS as well")
    reading, writing = os.pipe()
    _give_back_free_memory()
    with warnings.catch_warnings():
        # Python 3.12 and later warn when other threads exist. The child calls the plugin and leaves with _exit.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if not pid:
        _be_the_child(function, what, writing)
    os.close(writing)
    text, ended = _read(reading, seconds)
    os.close(reading)
    if not ended:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if not ended:
        fail(f"{what} did not end within {seconds:g} s")
    if os.WIFSIGNALED(status):
        fail(f"{what} crashed the process ({signal.Signals(os.WTERMSIG(status)).name})")
    if os.WEXITSTATUS(status) or text:
        fail(text or f"{what} ended the process with status {os.WEXITSTATUS(status)}")


def _give_back_free_memory() -> None:
    """Returns free memory of the C library to the system.

    Otherwise the child could reuse it, and its allocations would not raise its peak.
    """
    gc.collect()
    with suppress(AttributeError, OSError, TypeError):
        # Only glibc has malloc_trim; other libraries keep less free memory.
        ctypes.CDLL(None).malloc_trim(0)


def _be_the_child(function: Callable[[], None], what: str, writing: int) -> None:
    status = 1
    try:
        # A crash is an expected result, so no core file is written.
        _limit_resources()
        text = ""
        try:
            function()
        except pytest.fail.Exception as failure:
            text = str(failure)
        except BaseException as error:
            text = f"{what} raised {raised(error)}"
        data = memoryview(text.encode(errors="backslashreplace"))
        while data:
            data = data[os.write(writing, data) :]
        status = 0
    finally:
        os._exit(status)


def _limit_resources() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        mapped = int(sizes.read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (mapped + _ADDRESS_SPACE, hard))


def _read(file: int, seconds: float) -> tuple[str, bool]:
    """Reads until the other side closes; returns the text, and whether that happened in time."""
    end = time.monotonic() + seconds
    parts: list[bytes] = []
    while True:
        ready, _, _ = select.select([file], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return "", False
        part = os.read(file, 65536)
        if not part:
            return b"".join(parts).decode(errors="replace"), True
        parts.append(part)
