"""$distribution: a metrics sink for Leveret.

It gives the numbers of all clients to whoever calls `read`, for example a status page.
Bring them to your own system in its place: what the functions must do is said in
`leveret.plugins.MetricsSink`.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from leveret.plugins import MetricsSpec, hookimpl

if TYPE_CHECKING:
    from leveret.plugins import MetricsSource

__all__ = ["StatusSink", "leveret_metrics", "read"]

logger = logging.getLogger("$module")

_lock = threading.Lock()
_sources: dict[StatusSink, MetricsSource] = {}


def read() -> dict[tuple[str, tuple[str, ...]], int]:
    """Reads the numbers as they are now; safe to call from any thread.

    Returns:
        Each number, by its metric's name and the values of its labels. Clients of one
        name are added up, and those that are closed are not there any more.
    """
    with _lock:
        sources = list(_sources.values())
    numbers: dict[tuple[str, tuple[str, ...]], int] = {}
    for source in sources:
        try:
            samples = list(source.snapshot())
        except Exception:
            logger.exception("a client's numbers could not be read")
            continue
        for sample in samples:
            key = (sample.metric.name, sample.labels)
            numbers[key] = numbers.get(key, 0) + sample.value
    return numbers


class StatusSink:
    """Shows the numbers of one client to `read`, from `start` to `close`."""

    def start(self, source: MetricsSource, /) -> None:
        """Keeps the source; nothing is read before somebody asks."""
        with _lock:
            _sources[self] = source

    def close(self) -> None:
        """Forgets the source."""
        with _lock:
            _sources.pop(self, None)


@hookimpl
def leveret_metrics() -> list[MetricsSpec]:
    """Called once, when plugins are discovered."""
    return [
        MetricsSpec(
            name="$name",
            factory=StatusSink,
            api_version=1,
        )
    ]
