"""The metrics sink: observable instruments that read all clients when somebody collects.

OpenTelemetry cannot take an instrument back, and ignores the callbacks of a second one with the same name. So the
clients of a meter provider share one set of instruments, which asks whoever is there.
"""

from __future__ import annotations

import logging
import threading
from collections import defaultdict
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import Observation

from leveret_opentelemetry._conventions import SCOPE, __version__, checked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from opentelemetry.metrics import CallbackOptions, Meter, MeterProvider

    from leveret.plugins import Metric, MetricsSource

__all__ = ["OpenTelemetrySink"]

logger = logging.getLogger("leveret.opentelemetry")

#: Counters of closed clients that are kept, in case a client with equal labels comes again.
MOST_CLOSED: Final = 10_000

#: UCUM has names of its own for units, and wants braces around what is counted.
_UNITS: Final = {"": "1", "bytes": "By", "seconds": "s"}

#: A metric's name with its labels and their values.
Series = tuple[str, tuple[tuple[str, str], ...]]


class OpenTelemetrySink:
    """Shows one client's counters to OpenTelemetry, as observable counters and up-down counters.

    Nothing is updated when messages pass: the counters are read when a metric reader collects. The clients of a meter
    provider share the instruments, and what they count under equal labels is added up. After `close` nothing more of
    this client is observed. When a client with equal labels comes later, it goes on from the sums, so no counter falls.

    It may be used from any thread.

    Args:
        meter_provider: Where to make the instruments; the process's by default, also when it is set later.

    Raises:
        ConfigurationError: It has no `get_meter`.
    """

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        if meter_provider is not None:
            checked("meter_provider", meter_provider, "get_meter")
        self._provider = meter_provider
        self._lock = threading.Lock()
        self._feed: _Feed | None = None
        self._instruments: _Instruments | None = None

    def start(self, source: MetricsSource, /) -> None:
        """Begins to observe a source. Again with the same source does nothing; another one takes its place."""
        with self._lock:
            if self._feed is not None and self._feed.source is source:
                return
            self._end()
            provider = metrics.get_meter_provider() if self._provider is None else self._provider
            instruments = _instruments_of(provider)
            instruments.make(source.metrics, provider.get_meter(SCOPE, __version__))
            self._feed = _Feed(source)
            self._instruments = instruments
            instruments.add(self._feed)

    def close(self) -> None:
        """Reads the counters a last time and lets go of the source. Again does nothing."""
        with self._lock:
            self._end()

    def _end(self) -> None:
        feed, self._feed = self._feed, None
        if feed is not None and self._instruments is not None:
            self._instruments.remove(feed)


class _Feed:
    """One source, and what its counters were when they were last read."""

    def __init__(self, source: MetricsSource) -> None:
        self.source = source
        self.counters: Mapping[Series, int] = {}
        self._reported = False

    def pull(self) -> Mapping[Series, int]:
        """Reads the source into `counters` and returns its gauges.

        Never raises: a source that fails is logged once, its gauges are left out and its counters stay as they were,
        because a counter that it shares with another client must not fall.
        """
        counters: defaultdict[Series, int] = defaultdict(int)
        gauges: defaultdict[Series, int] = defaultdict(int)
        try:
            for sample in self.source.snapshot():
                metric = sample.metric
                labels = tuple(zip(metric.labels, map(_writable, sample.labels), strict=True))
                values = counters if metric.kind == "counter" else gauges
                values[metric.name, labels] += sample.value
        except Exception:
            if not self._reported:
                self._reported = True
                logger.exception("the counters of a client cannot be read and are left out; said once")
            return {}
        self.counters = counters
        return gauges


class _Instruments:
    """The instruments of one meter provider, and the clients that they read."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._feeds: list[_Feed] = []
        # The counters of closed clients, those that were closed last at the end.
        self._closed: dict[Series, int] = {}
        # What was read for this collection, by metric, and not asked for yet.
        self._unread: dict[str, list[Observation]] = {}
        self._read: set[str] = set()

    def make(self, wanted: Iterable[Metric], meter: Meter) -> None:
        """Makes the instruments that are not there yet."""
        for metric in wanted:
            with self._lock:
                known = metric.name in self._names
                self._names.add(metric.name)
            if not known:
                # Outside the lock: the meter has its own, which it holds while it calls us.
                create = (
                    meter.create_observable_counter
                    if metric.kind == "counter"
                    else meter.create_observable_up_down_counter
                )
                create(
                    f"leveret.{metric.name}",
                    callbacks=[self._callback(metric.name)],
                    unit=_unit(metric.unit),
                    description=metric.help,
                )

    def add(self, feed: _Feed) -> None:
        with self._lock:
            self._feeds.append(feed)
            self._forget()

    def remove(self, feed: _Feed) -> None:
        with self._lock:
            self._feeds.remove(feed)
            self._forget()
            feed.pull()
            closed = self._closed
            for series, value in feed.counters.items():
                closed[series] = closed.pop(series, 0) + value
            if len(closed) > MOST_CLOSED:
                live = {series for feed in self._feeds for series in feed.counters}
                excess = len(closed) - MOST_CLOSED
                for series in [series for series in closed if series not in live][:excess]:
                    del closed[series]

    def _forget(self) -> None:
        self._unread.clear()
        self._read.clear()

    def _callback(self, name: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(options: CallbackOptions) -> Iterable[Observation]:
            return self._observe(name)

        return observe

    def _observe(self, name: str) -> Iterable[Observation]:
        """Answers one instrument. A collection asks all of them in turn, and the first question reads the clients."""
        with self._lock:
            if not self._feeds:
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
        values: dict[Series, int] = {}
        for feed in self._feeds:
            gauges = feed.pull()
            for series, value in feed.counters.items():
                # What closed clients counted is told only together with a client that goes on counting.
                values[series] = values.get(series, self._closed.get(series, 0)) + value
            for series, value in gauges.items():
                values[series] = values.get(series, 0) + value
        observations: defaultdict[str, list[Observation]] = defaultdict(list)
        for (name, labels), value in values.items():
            observations[name].append(Observation(value, dict(labels)))
        return observations


_lock = threading.Lock()
_by_provider: WeakKeyDictionary[MeterProvider, _Instruments] = WeakKeyDictionary()
#: Those of the process's provider. Made before there is one, they move to it when it is set.
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


def _writable(value: str) -> str:
    # AMQP names that are not UTF-8 come in as surrogates, which exporters cannot write.
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
