"""The metrics sink: observable instruments that read all clients when a metric reader collects.

OpenTelemetry cannot remove an instrument, and ignores the callbacks of a second one with the same name. So all clients
of a meter provider share one set of instruments.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from operator import attrgetter
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import Observation

from leveret.plugins import Distribution, MetricsSums
from leveret_opentelemetry._conventions import SCOPE, __version__, checked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider

    from leveret.plugins import Metric, MetricsFeed, MetricsSource

__all__ = ["OpenTelemetrySink"]

logger = logging.getLogger("leveret.opentelemetry")

#: The most counters of closed clients that are kept, in case a client with equal labels comes later.
MOST_CLOSED: Final = 10_000
#: UCUM has its own names for some units; units of things that are counted stand in braces.
_UNITS: Final = {"": "1", "bytes": "By", "seconds": "s"}


class OpenTelemetrySink:
    """Exports the counters of one client to OpenTelemetry, as observable counters and up-down counters.

    OpenTelemetry has no histograms that are observed, so of each of the core's there are two counters: how many values
    came (`leveret.handler_time.count`), and their sum (`leveret.handler_time.sum`).

    The sink reads the counters when a metric reader collects, and does nothing per message. All clients of a meter
    provider share the instruments, and numbers of clients with equal labels are added up. After `close` the client is
    no longer observed. A later client with equal labels continues from its sums, so that no counter falls.

    Any thread may use it.

    Args:
        meter_provider: The meter provider; by default that of the process, also when it is set later.

    Raises:
        ConfigurationError: `meter_provider` has no `get_meter`.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        if meter_provider is not None:
            checked("meter_provider", meter_provider, "get_meter")
        self._provider = meter_provider
        self._lock = threading.Lock()
        self._feed: MetricsFeed[str] | None = None
        self._instruments: _Instruments | None = None

    def start(self, source: MetricsSource, /) -> None:
        """Exports a source. Another source replaces it; the same source again changes nothing."""
        with self._lock:
            if self._feed is not None and self._feed.source is source:
                return
            self._end()
            provider = metrics.get_meter_provider() if self._provider is None else self._provider
            instruments = _instruments_of(provider)
            instruments.make(source.metrics, provider.get_meter(SCOPE, __version__))
            self._feed = instruments.add(source)
            self._instruments = instruments

    def close(self) -> None:
        """Reads the counters a last time and releases the source. A second call does nothing."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        feed, self._feed = self._feed, None
        if feed is not None and self._instruments is not None:
            self._instruments.remove(feed)


class _Instruments:
    """The instruments of one meter provider, and the clients that they read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._sums: MetricsSums[str] = MetricsSums(attrgetter("name"), logger, most_closed=MOST_CLOSED)
        # The observations of this collection that no instrument has taken yet, by metric.
        self._unread: dict[str, list[Observation]] = {}
        self._read: set[str] = set()

    def make(self, wanted: Iterable[Metric], meter: Meter) -> None:
        """Makes the instruments that do not exist yet."""
        for metric in wanted:
            if metric.kind == "histogram":
                self._make(metric, f"{metric.name}.count", "{value}", meter.create_observable_counter)
                self._make(metric, f"{metric.name}.sum", _unit(metric.unit), meter.create_observable_counter)
            elif metric.kind == "counter":
                self._make(metric, metric.name, _unit(metric.unit), meter.create_observable_counter)
            else:
                self._make(metric, metric.name, _unit(metric.unit), meter.create_observable_up_down_counter)

    def _make(self, metric: Metric, name: str, unit: str, create: Callable[..., object]) -> None:
        with self._lock:
            known = name in self._names
            self._names.add(name)
        if not known:
            # Without the lock, because the meter holds its own lock while it calls `observe`.
            create(f"leveret.{name}", callbacks=[self._callback(name)], unit=unit, description=metric.help)

    def add(self, source: MetricsSource) -> MetricsFeed[str]:
        with self._lock:
            self._forget()
            return self._sums.add(source)

    def remove(self, feed: MetricsFeed[str]) -> None:
        with self._lock:
            self._forget()
            self._sums.remove(feed)

    def _forget(self) -> None:
        self._unread.clear()
        self._read.clear()

    def _callback(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            return self._observe(name)

        return observe

    def _observe(self, name: str) -> Iterable[Observation]:
        """Returns the observations of one instrument. The first instrument of a collection reads the clients."""
        with self._lock:
            if not self._sums.feeds:
                return []
            if name in self._read or not self._read:
                self._forget()
                self._unread = self._pull()
            self._read.add(name)
            observations = self._unread.pop(name, [])
            if self._read >= self._names:
                self._forget()
            return observations

    def _pull(self) -> dict[str, list[Observation]]:
        observations: defaultdict[str, list[Observation]] = defaultdict(list)
        for series, value in self._sums.read().items():
            name, labels = series
            # Sums of closed clients are observed only together with an open client that shares the series.
            whole = value + self._sums.closed.get(series, 0)
            if isinstance(whole, Distribution):
                observations[f"{name}.count"].append(Observation(whole.count, dict(labels)))
                observations[f"{name}.sum"].append(Observation(whole.total, dict(labels)))
            else:
                observations[name].append(Observation(whole, dict(labels)))
        return observations


_lock = threading.Lock()
_by_provider: WeakKeyDictionary[MeterProvider, _Instruments] = WeakKeyDictionary()
#: The instruments of the process's provider. They may be made before the provider is set.
_global: _Instruments | None = None


def _instruments_of(provider: MeterProvider) -> _Instruments:
    global _global  # noqa: PLW0603 - there is one process-wide provider, too
    with _lock:
        instruments = _by_provider.get(provider)
        if instruments is None:
            if provider is metrics.get_meter_provider():
                _global = instruments = _global or _Instruments()
            else:
                instruments = _by_provider[provider] = _Instruments()
        return instruments


def _unit(unit: str) -> str:
    if unit in _UNITS:
        return _UNITS[unit]
    singular = f"{unit[:-3]}y" if unit.endswith("ies") else unit.removesuffix("s")
    return f"{{{singular}}}"
