"""Measures time, CPU of the client and of the broker, and memory; percentiles. Imports only the standard library."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "Clocks",
    "Figures",
    "Span",
    "cpu_count",
    "cpu_of_process_ns",
    "peak_rss_bytes",
    "percentile",
    "reset_peak_rss",
]

#: The figures of one run. Names carry the units; None stands for a figure that cannot be measured.
Figures = dict[str, float | None]
Number = TypeVar("Number", int, float)


def percentile(ordered: Sequence[Number], percent: float) -> Number:
    """Returns a percentile by nearest rank: the lowest sample that so many per cent of all samples do not exceed.

    Args:
        ordered: The samples, sorted; at least one.
        percent: 0 to 100; 0 is the lowest sample.

    Returns:
        One of the samples; nothing is interpolated.

    Raises:
        ValueError: There are no samples, or the percentage is out of range.
    """
    if not ordered or not 0 <= percent <= 100:
        raise ValueError(f"no percentile {percent:g} of {len(ordered)} samples")
    # Rounded, because 7 % of 100 samples are a little more than 7 in binary fractions.
    return ordered[max(1, math.ceil(round(len(ordered) * percent / 100, 6))) - 1]


@dataclass(frozen=True, slots=True)
class Span:
    """Time and CPU time between two moments.

    Attributes:
        wall_ns: Time.
        client_cpu_ns: User and system time of this process, all threads, without the drawing of progress.
        broker_cpu_ns: User and system time of the embedded broker's process; None for another broker.
    """

    wall_ns: int
    client_cpu_ns: int
    broker_cpu_ns: int | None

    def until(self, later: Span) -> Span:
        """Returns the span from this moment to a later one, both of `Clocks.now`."""
        broker = None
        if self.broker_cpu_ns is not None and later.broker_cpu_ns is not None:
            broker = later.broker_cpu_ns - self.broker_cpu_ns
        return Span(later.wall_ns - self.wall_ns, later.client_cpu_ns - self.client_cpu_ns, broker)

    def figures(self, messages: int) -> Figures:
        """The figures of a report for this many messages, at least one."""
        broker = self.broker_cpu_ns
        return {
            "elapsed_s": self.wall_ns / 1e9,
            "rate_msgs_per_s": messages * 1e9 / max(1, self.wall_ns),
            # The guide calls this average latency. It is the inverse of the rate, not the latency of a message.
            "guide_avg_latency_ms": self.wall_ns / 1e6 / messages,
            "client_cpu_us_per_msg": self.client_cpu_ns / 1e3 / messages,
            "client_cpu_percent": 100 * self.client_cpu_ns / max(1, self.wall_ns),
            "broker_cpu_us_per_msg": None if broker is None else broker / 1e3 / messages,
        }


class Clocks:
    """Reads wall clock and CPU clocks together.

    Args:
        broker_cpu_ns: Reads the broker's CPU time; returns None where it cannot be measured.
        drawing_cpu_ns: Reads the CPU time that drawing progress has taken. It is subtracted from the client's.
    """

    def __init__(self, broker_cpu_ns: Callable[[], int | None], drawing_cpu_ns: Callable[[], int]) -> None:
        self._broker_cpu_ns = broker_cpu_ns
        self._drawing_cpu_ns = drawing_cpu_ns

    def now(self) -> Span:
        """Returns the present moment, as the span from an arbitrary moment."""
        cpu = time.process_time_ns() - self._drawing_cpu_ns()
        return Span(time.perf_counter_ns(), cpu, self._broker_cpu_ns())

    def since(self, start: Span) -> Span:
        """Returns the span from a moment that `now` returned to the present."""
        return start.until(self.now())


def cpu_of_process_ns(pid: int) -> int | None:
    """Reads the user and system time of another process, all threads.

    Args:
        pid: The process; it must be alive or not waited for yet.

    Returns:
        Nanoseconds; None where the platform does not tell them.
    """
    if sys.platform == "linux":
        # clock_getcpuclockid(3), which Python does not have: the kernel's CPU clock of a process (posix-timers.h).
        with contextlib.suppress(OSError):
            return time.clock_gettime_ns(~pid << 3 | 2)
    return None


def reset_peak_rss() -> None:
    """Resets `peak_rss_bytes`; does nothing where the kernel cannot (Linux can: proc(5), clear_refs)."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_rss_bytes() -> int:
    """Returns the peak of resident memory since `reset_peak_rss`, or since the start where that does nothing."""
    # Not ru_maxrss on Linux: it begins with the memory of the process that started this one (execve keeps it).
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # getrusage(2): bytes there, KiB elsewhere


def cpu_count() -> int:
    """Returns how many CPUs this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
