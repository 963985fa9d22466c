"""Measures the process: memory, CPU time and garbage collections, with the standard library alone."""

from __future__ import annotations

import gc
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

__all__ = ["ProcessUsage", "UsageMeter", "Used", "resident_memory"]

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
class Used:
    """What a process has used since it was first measured.

    Attributes:
        rss: The memory in use now, in bytes (see `resident_memory`).
        cpu: CPU time of all threads, in seconds.
        gc_collections: Garbage collections.
        gc_pause: Seconds in them, in all.
    """

    rss: int | None = None
    cpu: float = 0.0
    gc_collections: int = 0
    gc_pause: float = 0.0

    def __add__(self, other: Used) -> Used:
        """Adds up the usage of two processes."""
        rss = None if self.rss is None and other.rss is None else (self.rss or 0) + (other.rss or 0)
        return Used(
            rss,
            self.cpu + other.cpu,
            self.gc_collections + other.gc_collections,
            self.gc_pause + other.gc_pause,
        )


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

    @classmethod
    def between(cls, before: Used, now: Used, seconds: float) -> ProcessUsage:
        """Returns what was used between two readings that are so many seconds apart."""
        return cls(
            now.rss,
            100 * max(0.0, now.cpu - before.cpu) / seconds if seconds > 0 else 0.0,
            max(0, now.gc_collections - before.gc_collections),
            max(0.0, now.gc_pause - before.gc_pause),
        )


class UsageMeter:
    """Measures the process from one reading to the next. Its callback in `gc.callbacks` runs once per collection."""

    def __init__(self) -> None:
        self._collections = 0
        self._pause = 0.0
        self._began: float | None = None
        self._read_at, self._before = time.monotonic(), self.used()
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

    def used(self) -> Used:
        """Returns what was used so far; of CPU time, since the process began."""
        return Used(resident_memory(), time.process_time(), self._collections, self._pause)

    def read(self) -> ProcessUsage:
        """Returns what was used since the last call."""
        at, now = time.monotonic(), self.used()
        usage = ProcessUsage.between(self._before, now, at - self._read_at)
        self._read_at, self._before = at, now
        return usage
