"""Snapshots: what a process of an app has counted and how it is, as the process sends it to its parent."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Final

import msgspec

from leveret.errors import ConnectionClosed
from leveret.monitoring.catalogue import METRICS
from leveret.monitoring.health import Health
from leveret.monitoring.logs import process_index
from leveret.monitoring.report import QueueDepth
from leveret.monitoring.usage import UsageMeter, Used
from leveret.plugins.distributions import Distribution
from leveret.plugins.interfaces import Sample

if TYPE_CHECKING:
    from leveret.app.app import App
    from leveret.client.client import Client

__all__ = ["Reading", "Sampler", "Snapshot"]

#: Seconds between two questions for the depth of the app's queues, and for an answer.
_DEPTHS_EVERY: Final = 5.0
#: Seconds between two looks for a client that is not there yet.
_CLIENT_EVERY: Final = 0.5
_METRICS: Final = {metric.name: metric for metric in METRICS}


class Reading(msgspec.Struct, frozen=True, array_like=True):
    """A `Sample` without what the receiver knows: the metric's description."""

    name: str
    labels: tuple[str, ...]
    value: int
    distribution: Distribution | None


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A process of an app at one time.

    Attributes:
        process: Its number, from 0 up.
        pid: Its process id.
        restarts: How often its consumers were started again.
        health: Its health.
        used: The memory, CPU time and garbage collections of the process so far.
        queues: The depth of the queues that it consumes, where the broker said it; only process 0 asks.
        readings: The metrics of its client.
    """

    process: int
    pid: int
    restarts: int
    health: Health
    used: Used
    queues: dict[str, QueueDepth | None]
    readings: tuple[Reading, ...]

    def samples(self) -> list[Sample]:
        """Returns the metrics of the client; those that this version does not know are left out."""
        return [
            Sample(_METRICS[it.name], it.labels, it.value, it.distribution)
            for it in self.readings
            if it.name in _METRICS
        ]


class Sampler:
    """Takes snapshots of an app, in its event loop.

    Args:
        app: The app.
        depths: Ask the broker for the depth of the app's queues, in the process with number 0.
    """

    def __init__(self, app: App, *, depths: bool = False) -> None:
        self._app = app
        self._process = process_index()
        self._depths = depths and self._process == 0
        self._usage = UsageMeter()
        self._queues: dict[str, QueueDepth | None] = {}
        self._asking: asyncio.Task[None] | None = None

    def close(self) -> None:
        """Stops measuring."""
        self._usage.close()
        if self._asking is not None:
            self._asking.cancel()

    def take(self) -> Snapshot:
        """Takes a snapshot, without a round trip."""
        app = self._app
        if self._depths and self._asking is None:
            self._asking = asyncio.create_task(self._ask(), name="leveret: depth of the app's queues")
        return Snapshot(
            process=self._process,
            pid=os.getpid(),
            restarts=app.counters().get("restarts", 0),
            health=app.health(),
            used=self._usage.used(),
            queues=dict(self._queues),
            readings=tuple(Reading(it.metric.name, it.labels, it.value, it.distribution) for it in app.metrics()),
        )

    async def _ask(self) -> None:
        """Asks for the depth of the queues, again and again."""
        while True:
            try:
                client = self._app.client
            except ConnectionClosed:
                await asyncio.sleep(_CLIENT_EVERY)
                continue
            for queue in {it.queue: None for it in self._app.registrations}:
                self._queues[queue] = await _depth(client, queue)
            await asyncio.sleep(_DEPTHS_EVERY)


async def _depth(client: Client, queue: str) -> QueueDepth | None:
    # A queue that is missing or not allowed is the consumer's business, and it says so in the log.
    try:
        async with asyncio.timeout(_DEPTHS_EVERY):
            return await client.queue_depth(queue)
    except Exception:
        return None
