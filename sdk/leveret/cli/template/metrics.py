"""$distribution: a metrics sink for Leveret.

`read` returns the numbers of all clients, for example for a status page. Replace it by
an export to your monitoring system. `leveret.plugins.MetricsSink` tells what the
methods must do.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from leveret.plugins import MetricsSpec, hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leveret.plugins import MetricsSource, Sample

__all__ = ["StatusSink", "leveret_metrics", "read"]

logger = logging.getLogger("$module")

_lock = threading.Lock()
_sources: dict[StatusSink, MetricsSource] = {}


def read() -> dict[tuple[str, tuple[str, ...]], float]:
    """Reads the current numbers. Any thread may call it.

    Returns:
        Each number, by its metric's name and the values of its labels; of a histogram,
        how many values came and their sum. Clients with the same name are added up;
        closed clients are dropped.
    """
    with _lock:
        sources = list(_sources.values())
    numbers: dict[tuple[str, tuple[str, ...]], float] = {}
    for source in sources:
        try:
            samples = list(source.snapshot())
        except Exception:
            logger.exception("cannot read the numbers of a client")
            continue
        for sample in samples:
            for name, value in _numbers(sample):
                key = (name, sample.labels)
                numbers[key] = numbers.get(key, 0) + value
    return numbers


def _numbers(sample: Sample) -> Iterable[tuple[str, float]]:
    name, distribution = sample.metric.name, sample.distribution
    if distribution is None:
        return [(name, sample.value)]
    return [(f"{name}_count", distribution.count), (f"{name}_sum", distribution.total)]


class StatusSink:
    """Makes the numbers of one client available to `read`, from `start` to `close`."""

    def start(self, source: MetricsSource, /) -> None:
        """Keeps the source. `read` reads it."""
        with _lock:
            _sources[self] = source

    def close(self) -> None:
        """Drops the source."""
        with _lock:
            _sources.pop(self, None)


@hookimpl
def leveret_metrics() -> list[MetricsSpec]:
    """Returns the plugin's metrics sinks. Called once, when plugins are discovered."""
    return [
        MetricsSpec(
            name="$name",
            factory=StatusSink,
            api_version=1,
        )
    ]
