"""Helpers of several benchmarks."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import ModuleType


def need(name: str) -> ModuleType:
    """Imports a module of Leveret, or leaves the benchmark out when this version does not have it.

    An error inside the module is raised.
    """
    parts = name.split(".")
    for n in range(1, len(parts) + 1):
        if importlib.util.find_spec(".".join(parts[:n])) is None:
            raise NotImplementedError(f"this version has no {name}")
    return importlib.import_module(name)


def discarding_buffer() -> Any:
    """A send buffer that drops each full block, as a transport would send it."""

    def on_full() -> None:
        out.take()

    out = need("leveret.wire.buffers").SendBuffer(lambda: None, on_full)
    return out


class _Decoder:
    """A consumer's decoder, for deliveries that are only acknowledged."""

    def decode(self, message: Any) -> Any:
        return message.body

    def plain(self, message: Any) -> None:
        return None


def channel_deliveries() -> Any:
    """The deliveries of a channel, whose acknowledgements are written to a discarding buffer."""
    make = need("leveret.consuming.channel_deliveries").ChannelDeliveries
    return make("orders", 1, discarding_buffer(), _Decoder(), lambda deliveries, message, verb: None)


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
