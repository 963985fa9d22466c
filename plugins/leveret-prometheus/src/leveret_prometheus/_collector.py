"""The collector of a registry: it reads all sources when it is scraped, and adds them up.

prometheus_client refuses two collectors with metrics of one name, so all clients share a collector.
"""

from __future__ import annotations

import logging
import re
import threading
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal
from weakref import WeakKeyDictionary

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from leveret.errors import ConfigurationError
from leveret.plugins import Distribution, MetricsSums

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as ExportedMetric

    from leveret.plugins import Metric, MetricsFeed, MetricsSource

__all__ = ["Collector", "Family", "collector_of", "family_of"]

logger = logging.getLogger("leveret.prometheus")

#: The most counters of closed clients that are kept.
MOST_CLOSED: Final = 10_000
#: The upper bounds of buckets: of durations, of sizes in bytes, and of what is counted.
_SECONDS: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)
_BYTES: Final = tuple(4.0**power for power in range(3, 14))
_COUNTS: Final = (1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 100_000.0)
_BOUNDS: Final = {"seconds": _SECONDS, "bytes": _BYTES}
_PREFIX: Final = "leveret_"
_NOT_IN_NAMES: Final = re.compile(r"[^a-zA-Z0-9_]+")


@dataclass(frozen=True, slots=True)
class Family:
    """A metric in Prometheus. Two are equal when their names and kinds are equal.

    Attributes:
        name: The name with prefix and unit, without `_total`.
        kind: "counter", "gauge" or "histogram".
        unit: The unit, which ends the name, or an empty string.
        help: One line.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str = field(compare=False)
    help: str = field(compare=False)

    def empty(self) -> ExportedMetric:
        """Makes the exported metric, without samples; prometheus_client adds `_total` to its counters."""
        if self.kind == "counter":
            return CounterMetricFamily(self.name, self.help, labels=(), unit=self.unit)
        if self.kind == "histogram":
            return HistogramMetricFamily(self.name, self.help, labels=(), unit=self.unit)
        return GaugeMetricFamily(self.name, self.help, labels=(), unit=self.unit)


@lru_cache(maxsize=1024)
def family_of(metric: Metric) -> Family:
    """Names a metric by Prometheus' rules: prefix, name, unit.

    A unit that the name contains already ("connections_opened") is not added again.

    Args:
        metric: The core's metric.

    Returns:
        The metric in Prometheus.
    """
    unit = _NOT_IN_NAMES.sub("_", metric.unit).strip("_")
    name = _PREFIX + _NOT_IN_NAMES.sub("_", metric.name).strip("_").removesuffix("_total")
    if not name.endswith(f"_{unit}"):
        if f"_{unit}_" in f"{name}_":
            unit = ""  # OpenMetrics has a unit only at the name's end
        elif unit:
            name += f"_{unit}"
    return Family(name, metric.kind, unit, metric.help)


class Collector:
    """The collector of a registry. Sources come and go, and no counter falls when one goes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: MetricsSums[Family] = MetricsSums(family_of, logger, most_closed=MOST_CLOSED)
        # The metrics that the registry knows. The lock does not guard it, because `add` holds the lock while the
        # registry calls `describe`.
        self._described: dict[str, Family] = {}

    def add(self, source: MetricsSource, registry: CollectorRegistry) -> MetricsFeed[Family]:
        """Adds a source, and claims the names of its metrics in the registry.

        Returns:
            The feed to remove the source with.

        Raises:
            ConfigurationError: Another collector of the registry has one of these names.
        """
        families = {family.name: family for family in map(family_of, source.metrics)}
        with self._lock:
            if families.keys() - self._described.keys():
                self._register(registry, families | self._described)
            return self._sums.add(source)

    def _register(self, registry: CollectorRegistry, families: dict[str, Family]) -> None:
        before, self._described = self._described, families
        if before:
            registry.unregister(self)
        try:
            registry.register(self)
        except ValueError as error:
            self._described = before
            if before:
                registry.register(self)
            raise ConfigurationError(
                f"the registry has other metrics with the names of Leveret's: {error}", option="registry"
            ) from error

    def remove(self, feed: MetricsFeed[Family]) -> None:
        """Reads a source a last time, and keeps its counters in the sums of closed sources."""
        with self._lock:
            self._sums.remove(feed)

    def describe(self) -> Iterable[ExportedMetric]:
        """Returns the metrics that the collector claims. prometheus_client calls this during the registration."""
        return [family.empty() for family in self._described.values()]

    def collect(self) -> Iterable[ExportedMetric]:
        """Reads all sources, and adds up counters and gauges with equal labels."""
        with self._lock:
            values = dict(self._sums.closed)
            for series, value in self._sums.read().items():
                values[series] = values.get(series, 0) + value
        exported: dict[str, ExportedMetric] = {}
        kinds: dict[str, str] = {}
        for (family, labels), value in values.items():
            metric = exported.get(family.name)
            if metric is None:
                metric = exported[family.name] = family.empty()
                kinds[family.name] = family.kind
            elif kinds[family.name] != family.kind:
                continue  # a name cannot be both a counter and a gauge; the first one has it
            if isinstance(value, Distribution):
                _add_histogram(metric, family, dict(labels), value)
                continue
            suffix = "_total" if family.kind == "counter" else ""
            metric.add_sample(metric.name + suffix, dict(labels), value)
        return exported.values()


def _add_histogram(metric: ExportedMetric, family: Family, labels: dict[str, str], values: Distribution) -> None:
    bounds = _BOUNDS.get(family.unit, _COUNTS)
    for bound, count in zip(bounds, values.at_most(bounds), strict=True):
        metric.add_sample(f"{metric.name}_bucket", labels | {"le": repr(bound)}, count)
    metric.add_sample(f"{metric.name}_bucket", labels | {"le": "+Inf"}, values.count)
    metric.add_sample(f"{metric.name}_count", labels, values.count)
    metric.add_sample(f"{metric.name}_sum", labels, values.total)


_collectors: WeakKeyDictionary[CollectorRegistry, Collector] = WeakKeyDictionary()
_collectors_lock = threading.Lock()


def collector_of(registry: CollectorRegistry) -> Collector:
    """Returns the registry's collector; makes one if there is none."""
    with _collectors_lock:
        collector = _collectors.get(registry)
        if collector is None:
            collector = _collectors[registry] = Collector()
        return collector
