"""Leveret's counters for Prometheus: the metrics sink `prometheus`, and a Grafana dashboard.

    async with leveret.connect(url, monitoring=leveret.MonitoringSettings(sinks=["prometheus"])) as client:
        ...

Serve them with what prometheus_client has, for example `prometheus_client.start_http_server(8000)`.
"""

from __future__ import annotations

import threading
from importlib.resources import files
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY, CollectorRegistry

from leveret.errors import ConfigurationError
from leveret.plugins import MetricsSpec, hookimpl
from leveret_prometheus._collector import Feed, collector_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leveret.plugins import MetricsSource

__all__ = ["PrometheusSink", "dashboard", "leveret_metrics"]

__version__ = "0.1.0"


class PrometheusSink:
    """Shows one client's counters in a prometheus_client registry.

    Nothing is updated when messages pass: the counters are read when the registry is collected. All sinks of one
    registry share one collector, so several clients make no duplicate metrics; what they count under equal labels is
    added up. When a sink is closed its counters keep their last values and its gauges disappear.

    It may be used from any thread.

    Args:
        registry: Where to export to; the process's default registry unless given.

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
        self._feed: Feed | None = None

    def start(self, source: MetricsSource, /) -> None:
        """Begins to export a source. Again with the same source does nothing; another one takes its place.

        Raises:
            ConfigurationError: The registry has other metrics of these names; `option` is "registry".
        """
        with self._lock:
            if self._feed is not None and self._feed.source is source:
                return
            feed = Feed(source)
            collector = collector_of(self._registry)
            collector.add(feed, self._registry)
            if self._feed is not None:
                collector.remove(self._feed)
            self._feed = feed

    def close(self) -> None:
        """Reads the counters a last time and lets go of the source. Again does nothing."""
        with self._lock:
            feed, self._feed = self._feed, None
            if feed is not None:
                collector_of(self._registry).remove(feed)


def dashboard() -> str:
    """Returns a Grafana dashboard as JSON, to be imported (Dashboards, New, Import) or provisioned.

    It asks for a Prometheus data source and shows publishings, deliveries, their outcomes, connections and bytes by
    client, exchange and queue.

    Returns:
        The text of the JSON file.
    """
    return files(__name__).joinpath("dashboard.json").read_text("utf-8")


@hookimpl
def leveret_metrics() -> Iterable[MetricsSpec]:
    """The sink `prometheus`, into the process's default registry."""
    return [MetricsSpec(name="prometheus", factory=PrometheusSink)]
