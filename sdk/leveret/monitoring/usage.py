"""Measures the process: memory, CPU time and garbage collections, with the standard library alone."""

from __future__ import annotations

import gc
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["ProcessUsage", "UsageMeter", "resident_memory"]

_STATM: Final = Path("/proc/self/statm")


def resident_memory() -> int | None:
    """Returns the memory that the process has in use, in bytes; None where the system does not say it cheaply.

    Linux says it in /proc; elsewhere it is the peak so far (getrusage).
    """
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@dataclass(frozen=True, slots=True)
class ProcessUsage:
    """Memory, CPU time and garbage collections of the process in a period.

    Attributes:
        rss: The memory in use at its end, in bytes (see `resident_memory`).
        cpu: CPU time by wall time, of all threads, in percent: more than 100 when several cores were busy.
        gc_collections: Garbage collections.
        gc_pause: Seconds in them, in all.
    """

    rss: int | None
    cpu: float
    gc_collections: int
    gc_pause: float


class UsageMeter:
    """Measures the process from one reading to the next. Its callback in `gc.callbacks` runs once per collection."""

    def __init__(self) -> None:
        self._collections = 0
        self._pause = 0.0
        self._began: float | None = None
        self._wall, self._cpu = time.monotonic(), time.process_time()
        self._read = (0, 0.0)
        gc.callbacks.append(self._observe)

    def close(self) -> None:
        """Takes the callback out; again, it does nothing."""
        if self._observe in gc.callbacks:
            gc.callbacks.remove(self._observe)

    def _observe(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        elif self._began is not None:
            self._pause += time.perf_counter() - self._began
            self._began = None
            self._collections += 1

    def read(self) -> ProcessUsage:
        """Returns what was used since the last reading."""
        wall, cpu = time.monotonic(), time.process_time()
        seconds = wall - self._wall
        percent = 100 * (cpu - self._cpu) / seconds if seconds > 0 else 0.0
        collections, pause = self._collections, self._pause
        before_collections, before_pause = self._read
        self._wall, self._cpu, self._read = wall, cpu, (collections, pause)
        return ProcessUsage(resident_memory(), percent, collections - before_collections, pause - before_pause)
