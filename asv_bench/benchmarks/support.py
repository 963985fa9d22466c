"""Helpers of several benchmarks."""

from __future__ import annotations

import asyncio
import subprocess
import sys

from .former import need


class Broker:
    """An embedded broker in its own process, so that its CPU time does not count."""

    def __init__(self) -> None:
        need("leveret.broker")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "leveret.broker", "--port", "0"], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        if not self.url.startswith("amqp"):
            self.close()
            raise RuntimeError(f"the embedded broker printed {self.url!r} where its URL was due")

    def close(self) -> None:
        # It keeps nothing, so it may be killed. Waiting with a timeout would poll, and the instructions of a counted
        # program would depend on the time that the broker takes to end.
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


def runner() -> asyncio.Runner:
    """Runs coroutines one after the other on one loop: uvloop's where it is installed, as `leveret.run` does."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)
