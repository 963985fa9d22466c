"""Leveret's counters for Prometheus: the metrics sink `prometheus`, and a Grafana dashboard.

    async with leveret.connect(url, monitoring=leveret.MonitoringSettings(sinks=["prometheus"])) as client:
        ...

prometheus_client serves them, for example with `prometheus_client.start_http_server(8000)`.
"""

from __future__ import annotations

import threading
from importlib.resources import files
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest

from leveret.errors import ConfigurationError
from leveret.plugins import MetricsSpec, hookimpl
from leveret_prometheus._collector import collector_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leveret.plugins import MetricsFeed, MetricsSource
    from leveret_prometheus._collector import Family

__all__ = ["PrometheusSink", "dashboard", "leveret_metrics", "render"]

__version__ = "0.1.0"


class PrometheusSink:
    """Exports the counters of one client to a prometheus_client registry.

    The sink reads the counters when the registry is collected, and does nothing per message. All sinks of a registry
    share one collector, and numbers of clients with equal labels are added up. After `close` the client's counters keep
    their last values, and its gauges disappear.

    Any thread may use it.

    Args:
        registry: The registry; by default that of the process.

    Raises:
        ConfigurationError: `registry` is not a `CollectorRegistry`.

    Example:
        >>> from prometheus_client import CollectorRegistry
        >>> sink = PrometheusSink(registry=CollectorRegistry())
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        candidate: object = registry
        if not isinstance(candidate, CollectorRegistry):
            raise ConfigurationError(
                f"registry is a prometheus_client.CollectorRegistry, not {type(candidate).__name__}", option="registry"
            )
        self._registry = registry
        self._lock = threading.Lock()
        self._feed: MetricsFeed[Family] | None = None

    def start(self, source: MetricsSource, /) -> None:
        """Exports a source. Another source replaces it; the same source again changes nothing.

        Raises:
            ConfigurationError: The registry has other metrics with these names; `option` is "registry".
        """
        with self._lock:
            if self._feed is not None and self._feed.source is source:
                return
            collector = collector_of(self._registry)
            feed = collector.add(source, self._registry)
            if self._feed is not None:
                collector.remove(self._feed)
            self._feed = feed

    def close(self) -> None:
        """Reads the counters a last time and releases the source. A second call does nothing."""
        with self._lock:
            feed, self._feed = self._feed, None
            if feed is not None:
                collector_of(self._registry).remove(feed)


def render(source: MetricsSource) -> tuple[str, bytes]:
    """Writes the numbers of a source in Prometheus' text format, as `leveret run --health` serves them.

    Args:
        source: The source.

    Returns:
        The content type and the body.
    """
    registry = CollectorRegistry()
    sink = PrometheusSink(registry)
    sink.start(source)
    return CONTENT_TYPE_LATEST, generate_latest(registry)


def dashboard() -> str:
    """Returns a Grafana dashboard as JSON. Import it in Grafana (Dashboards, New, Import) or provision it.

    It needs a Prometheus data source, and shows publishings, deliveries, their outcomes, connections and bytes by
    client, exchange and queue.

    Returns:
        The text of the JSON file.
    """
    return files(__name__).joinpath("dashboard.json").read_text("utf-8")


@hookimpl
def leveret_metrics() -> Iterable[MetricsSpec]:
    """Returns the sink `prometheus`, which exports to the process's default registry."""
    return [MetricsSpec(name="prometheus", factory=PrometheusSink, render=render)]
