"""Snapshots of a process, as an app's process sends them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leveret.app.snapshot import Reading, Snapshot
from leveret.monitoring.catalogue import METRICS
from leveret.monitoring.health import Health
from leveret.monitoring.usage import Used

if TYPE_CHECKING:
    from leveret.monitoring.report import QueueDepth
    from leveret.plugins.distributions import Distribution

#: The label of the readings beside the client's name.
LABELS = {"exchange": "", "queue": "billing", "connection": "consume", "generation": "0"}
_METRICS = {metric.name: metric for metric in METRICS}


def snapshot(
    process: int = 0,
    *,
    health: Health | None = None,
    used: Used | None = None,
    queues: dict[str, QueueDepth | None] | None = None,
    distributions: dict[str, Distribution] | None = None,
    restarts: int = 0,
    connections_open: int = 2,
    **counts: int,
) -> Snapshot:
    """A process that is ready, with these metrics by their names."""
    readings = [
        _reading(name, value, None) for name, value in (counts | {"connections_open": connections_open}).items()
    ]
    readings += [_reading(name, found.count, found) for name, found in (distributions or {}).items()]
    return Snapshot(
        process=process,
        pid=1000 + process,
        restarts=restarts,
        health=Health(ready=True, live=True) if health is None else health,
        used=Used(50_000_000, 1.0) if used is None else used,
        queues=queues or {},
        readings=tuple(readings),
    )


def _reading(name: str, value: int, distribution: Distribution | None) -> Reading:
    return Reading(name, ("shop", LABELS[_METRICS[name].labels[1]]), value, distribution)
