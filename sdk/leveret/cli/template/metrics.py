"""$distribution: a metrics sink for Leveret.

It logs the numbers of a client when the client closes, and gives them to whoever asks.
Bring them to your own system in their place: what the functions must do is said in
`leveret.plugins.MetricsSink`.
"""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

from leveret.plugins import MetricsSpec, hookimpl

if TYPE_CHECKING:
    from leveret.plugins import MetricsSource

__all__ = ["LogSink", "leveret_metrics"]

logger = logging.getLogger("$module")


class LogSink:
    """Logs the counters of one client, one line for each, when it closes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._source: MetricsSource | None = None

    def start(self, source: MetricsSource, /) -> None:
        """Keeps the source. Nothing is read before somebody asks."""
        with self._lock:
            self._source = source

    def read(self) -> dict[tuple[str, tuple[str, ...]], int]:
        """Reads the numbers as they are now; safe to call from any thread.

        Returns:
            Each number by its metric's name and its labels' values; none before `start`
            and after `close`.
        """
        with self._lock:
            source = self._source
        if source is None:
            return {}
        samples = source.snapshot()
        return {(each.metric.name, each.labels): each.value for each in samples}

    def close(self) -> None:
        """Logs the numbers, and forgets the source."""
        try:
            for (name, labels), value in sorted(self.read().items()):
                logger.info("%s{%s} %d", name, ",".join(labels), value)
        except Exception:
            logger.exception("the last numbers could not be read")
        with self._lock:
            self._source = None


@hookimpl
def leveret_metrics() -> list[MetricsSpec]:
    """Called once, when plugins are discovered."""
    return [
        MetricsSpec(
            name="$name",
            factory=LogSink,
            api_version=1,
        )
    ]
