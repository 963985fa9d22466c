"""One collector for each registry: reads all sources when it is scraped, and adds them up.

prometheus_client refuses two collectors with metrics of one name, so clients cannot have a collector each.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal
from weakref import WeakKeyDictionary

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from leveret.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.core import Metric as ExportedMetric

    from leveret.plugins import Metric, MetricsSource

__all__ = ["MOST_CLOSED", "Collector", "Family", "Feed", "collector_of", "family_of"]

logger = logging.getLogger("leveret.prometheus")

#: Counters of closed clients that are kept, each with its own labels. Services that make clients under ever new names
#: would fill the memory otherwise.
MOST_CLOSED: Final = 10_000

_PREFIX: Final = "leveret_"
_NOT_IN_NAMES: Final = re.compile(r"[^a-zA-Z0-9_]+")


@dataclass(frozen=True, slots=True)
class Family:
    """A metric as Prometheus sees it. Two are equal when their names and kinds are.

    Attributes:
        name: With prefix and unit, without `_total`.
        kind: What it is.
        unit: The unit, which ends the name, or an empty string.
        help: One line.
    """

    name: str
    kind: Literal["counter", "gauge"]
    unit: str = field(compare=False)
    help: str = field(compare=False)

    def empty(self) -> CounterMetricFamily | GaugeMetricFamily:
        """Makes the exported metric, without samples; prometheus_client adds `_total` to its counters."""
        if self.kind == "counter":
            return CounterMetricFamily(self.name, self.help, labels=(), unit=self.unit)
        return GaugeMetricFamily(self.name, self.help, labels=(), unit=self.unit)


#: A metric with its label names and values.
Series = tuple[Family, tuple[tuple[str, str], ...]]


@lru_cache(maxsize=1024)
def family_of(metric: Metric) -> Family:
    """Names a metric by Prometheus' rules: prefix, name, unit.

    States have no unit, and a unit that the name says already ("connections_opened") is not said twice.

    Args:
        metric: What the core calls it.

    Returns:
        What Prometheus calls it.
    """
    unit = _NOT_IN_NAMES.sub("_", metric.unit).strip("_")
    name = _PREFIX + _NOT_IN_NAMES.sub("_", metric.name).strip("_").removesuffix("_total")
    if not name.endswith(f"_{unit}"):
        if f"_{unit}_" in f"{name}_":
            unit = ""  # OpenMetrics has a unit only at the name's end
        elif unit:
            name += f"_{unit}"
    return Family(name, metric.kind, unit, metric.help)


class Feed:
    """One source, and what its counters were when they were last read.

    Attributes:
        source: Where the numbers come from.
        counters: The last values, for when the source fails.
    """

    def __init__(self, source: MetricsSource) -> None:
        self.source = source
        self.counters: Mapping[Series, int] = {}
        self._reported = False

    def pull(self) -> Mapping[Series, int]:
        """Reads the source into `counters`.

        Never raises: a source that fails is logged once, its gauges are left out and its counters stay as they were,
        because a counter that it shares with another client must not fall.

        Returns:
            Its gauges.
        """
        counters: defaultdict[Series, int] = defaultdict(int)
        gauges: defaultdict[Series, int] = defaultdict(int)
        try:
            for sample in self.source.snapshot():
                family = family_of(sample.metric)
                labels = tuple(zip(sample.metric.labels, map(_exportable, sample.labels), strict=True))
                values = counters if family.kind == "counter" else gauges
                values[family, labels] += sample.value
        except Exception:
            if not self._reported:
                self._reported = True
                logger.exception("the counters of a client cannot be read and are left out; said once")
            return {}
        self.counters = counters
        return gauges


class Collector:
    """What a registry asks for metrics. Sources come and go; no counter falls because one went."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._feeds: list[Feed] = []
        # The sums of closed sources, those that were closed last at the end.
        self._closed: dict[Series, int] = {}
        self._dropped = False
        # What the registry was told; not guarded by the lock, because the registry asks while `add` holds it.
        self._described: dict[str, Family] = {}

    def add(self, feed: Feed, registry: CollectorRegistry) -> None:
        """Includes a source, and claims the names of its metrics in the registry.

        Raises:
            ConfigurationError: Another collector of the registry has one of these names.
        """
        families = {family.name: family for family in map(family_of, feed.source.metrics)}
        with self._lock:
            if families.keys() - self._described.keys():
                self._register(registry, families | self._described)
            self._feeds.append(feed)

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

    def remove(self, feed: Feed) -> None:
        """Reads a source a last time, and keeps its counters in the sums of what is closed."""
        with self._lock:
            self._feeds.remove(feed)
            feed.pull()
            closed = self._closed
            for series, value in feed.counters.items():
                closed[series] = closed.pop(series, 0) + value
            if len(closed) > MOST_CLOSED:
                self._drop_oldest()

    def _drop_oldest(self) -> None:
        # Moved into a common sum they would look like an increase to rate(); a series that ends is what Prometheus
        # knows of any process that ends. What an open client still counts must stay, or it would fall.
        live = {series for feed in self._feeds for series in feed.counters}
        excess = len(self._closed) - MOST_CLOSED
        for series in [series for series in self._closed if series not in live][:excess]:
            del self._closed[series]
        if not self._dropped:
            self._dropped = True
            logger.warning(
                "closed clients left more than %d counters; the oldest are dropped (said once). Do clients need a new "
                "name each time?",
                MOST_CLOSED,
            )

    def describe(self) -> Iterable[ExportedMetric]:
        """The names that it claims; prometheus_client asks when it is registered."""
        return [family.empty() for family in self._described.values()]

    def collect(self) -> Iterable[ExportedMetric]:
        """Reads all sources and adds up what has equal labels."""
        with self._lock:
            values = dict(self._closed)
            for feed in self._feeds:
                gauges = feed.pull()
                for series, value in (*feed.counters.items(), *gauges.items()):
                    values[series] = values.get(series, 0) + value
        exported: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        kinds: dict[str, str] = {}
        for (family, labels), value in values.items():
            metric = exported.get(family.name)
            if metric is None:
                metric = exported[family.name] = family.empty()
                kinds[family.name] = family.kind
            elif kinds[family.name] != family.kind:
                continue  # one name cannot be both; who came first has it
            suffix = "_total" if family.kind == "counter" else ""
            metric.add_sample(metric.name + suffix, dict(labels), value)
        return exported.values()


_collectors: WeakKeyDictionary[CollectorRegistry, Collector] = WeakKeyDictionary()
_collectors_lock = threading.Lock()


def collector_of(registry: CollectorRegistry) -> Collector:
    """Returns the registry's collector, and makes it if there is none."""
    with _collectors_lock:
        collector = _collectors.get(registry)
        if collector is None:
            collector = _collectors[registry] = Collector()
        return collector


def _exportable(value: str) -> str:
    # AMQP names that are not UTF-8 come in as surrogates, which no exposition format can write: one of them would make
    # every scrape fail.
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
