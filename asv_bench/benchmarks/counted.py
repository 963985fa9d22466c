"""The program that `counting` starts: counts the workloads in this process, and prints the counts of each as JSON.

    python -m benchmarks.counted METER LIBRARY NAME ...

Each workload handles messages once without being counted, then `messages` and twice as many. The difference of the
counts, over the messages, is the cost of a message without what a run costs once.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from .workloads import EVERYDAY, GROWTH, LOOK_EVERY, WORKLOADS

if TYPE_CHECKING:
    from types import FrameType


def messages(name: str) -> int:
    """How many messages the shorter of two counted runs of a workload handles."""
    return LOOK_EVERY if name.endswith("_monitored") else 5_000


class Instructions:
    """Has callgrind write a file for each run; `counting` reads the numbers from these."""

    def __init__(self, library: str) -> None:
        self._callgrind = ctypes.CDLL(library)

    def start(self, name: str) -> None:
        self._name = name
        self._callgrind.start()
        self.take()

    def take(self) -> dict[str, int]:
        self._callgrind.take(self._name.encode())
        return {}

    def stop(self) -> None:
        self._callgrind.stop()


class Memory:
    """Allocations, and bytes that were copied, as the preloaded library counts them."""

    def __init__(self, library: str) -> None:
        self._counters = ctypes.CDLL(library)
        for function in (self._counters.allocations, self._counters.copied_bytes):
            function.restype = ctypes.c_uint64

    def start(self, name: str) -> None:
        self.take()

    def take(self) -> dict[str, int]:
        now = {"allocations": self._counters.allocations(), "copied_bytes": self._counters.copied_bytes()}
        before, self._before = getattr(self, "_before", now), now
        return {key: now[key] - before[key] for key in now}

    def stop(self) -> None:
        pass


class Calls:
    """Python functions that are called or resumed, compiled ones not among them."""

    def __init__(self, library: str) -> None:
        self._calls = 0

    def _profile(self, frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            self._calls += 1

    def start(self, name: str) -> None:
        sys.setprofile(self._profile)
        self.take()

    def take(self) -> dict[str, int]:
        calls, self._calls = self._calls, 0
        return {"calls": calls}

    def stop(self) -> None:
        sys.setprofile(None)


METERS: dict[str, Any] = {"instructions": Instructions, "memory": Memory, "calls": Calls}


def count(meter: Any, name: str) -> dict[str, float]:
    """Counts a workload."""
    few = messages(name)
    run = (WORKLOADS | EVERYDAY | GROWTH)[name](4 * few)
    gc.collect()
    gc.disable()
    run(few)
    meter.start(name)
    try:
        run(few)
        once = meter.take()
        run(2 * few)
        twice = meter.take()
    finally:
        meter.stop()
        gc.enable()
    return {key: max(0, twice[key] - once[key]) / few for key in once}


def main() -> None:
    """Counts workloads, without those that this version cannot run."""
    os.environ.pop("LD_PRELOAD", None)  # the broker is not counted
    meter = METERS[sys.argv[1]](sys.argv[2])
    counts = {}
    for name in sys.argv[3:]:
        try:
            counts[name] = count(meter, name)
        except NotImplementedError as reason:
            print(f"{name}: {reason}", file=sys.stderr)
    json.dump(counts, sys.stdout)


if __name__ == "__main__":
    main()
