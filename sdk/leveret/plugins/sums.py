"""Sums over the counters of several clients, for metrics sinks that share one exporter.

Monitoring systems identify a series by its name and labels. Clients with equal labels therefore share series, and a
counter must not fall when one of them closes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import logging
    from collections.abc import Callable, Hashable, Mapping

    from leveret.plugins.interfaces import Metric, MetricsSource

__all__ = ["MetricsFeed", "MetricsSums"]

K = TypeVar("K", bound="Hashable")
#: The names and values of a series' labels.
Labels = tuple[tuple[str, str], ...]
#: Of a counter or gauge an int, of a histogram a `Distribution`. The values of one series can be added up, and to 0.
SeriesValue = Any


class MetricsFeed(Generic[K]):
    """A source whose numbers are part of a `MetricsSums`.

    Attributes:
        source: The source.
        counters: The values of its counters and histograms when they were last read.
    """

    def __init__(self, source: MetricsSource, key: Callable[[Metric], K], logger: logging.Logger) -> None:
        self.source = source
        self.counters: Mapping[tuple[K, Labels], SeriesValue] = {}
        self._key = key
        self._logger = logger
        self._failed = False

    def pull(self) -> Mapping[tuple[K, Labels], SeriesValue]:
        """Reads the source: stores its counters and histograms, and returns its gauges.

        Never raises. The first error of a source is logged. A source that fails has no gauges, and its counters keep
        their last values, because counters that it shares with another client must not fall.
        """
        counters: dict[tuple[K, Labels], SeriesValue] = {}
        gauges: dict[tuple[K, Labels], SeriesValue] = {}
        try:
            for sample in self.source.snapshot():
                metric = sample.metric
                labels = tuple(zip(metric.labels, map(_exportable, sample.labels), strict=True))
                values = gauges if metric.kind == "gauge" else counters
                series = self._key(metric), labels
                values[series] = values.get(series, 0) + sample.summand
        except Exception:
            if not self._failed:
                self._failed = True
                self._logger.exception(
                    "cannot read the counters of a client, which keep their last values (logged once per client)"
                )
            return {}
        self.counters = counters
        return gauges


class MetricsSums(Generic[K]):
    """Adds up the counters and gauges of several sources, by metric and labels.

    It is not thread-safe: a sink calls it with a lock held.

    Args:
        key: Returns the exporter's name, or other key, of a metric.
        logger: The sink's logger.
        most_closed: The most counters of closed sources that are kept. Without a limit, a service whose clients have
            ever new names would fill the memory.

    Attributes:
        feeds: The open sources.
        closed: The sums of the counters and histograms of closed sources, those that were closed last at the end.
    """

    def __init__(self, key: Callable[[Metric], K], logger: logging.Logger, *, most_closed: int) -> None:
        self.feeds: list[MetricsFeed[K]] = []
        self.closed: dict[tuple[K, Labels], SeriesValue] = {}
        self._key = key
        self._logger = logger
        self._most_closed = most_closed
        self._dropped = False

    def add(self, source: MetricsSource) -> MetricsFeed[K]:
        """Adds a source; returns the feed to remove it with."""
        feed = MetricsFeed(source, self._key, self._logger)
        self.feeds.append(feed)
        return feed

    def remove(self, feed: MetricsFeed[K]) -> None:
        """Reads a source a last time, and moves its counters into `closed`."""
        self.feeds.remove(feed)
        feed.pull()
        for series, value in feed.counters.items():
            self.closed[series] = self.closed.pop(series, 0) + value
        if len(self.closed) > self._most_closed:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        # Moved into a common sum they would look like an increase; a series that ends is what a monitoring system knows
        # of any process that ends. A series that an open source shares must stay, or its counter would fall.
        shared = {series for feed in self.feeds for series in feed.counters}
        excess = len(self.closed) - self._most_closed
        for series in [series for series in self.closed if series not in shared][:excess]:
            del self.closed[series]
        if not self._dropped:
            self._dropped = True
            self._logger.warning(
                "closed clients left more than %d counters, and the oldest are dropped (logged once). Give clients the "
                "same names each time",
                self._most_closed,
            )

    def read(self) -> dict[tuple[K, Labels], SeriesValue]:
        """Reads all open sources; returns the sums of their counters, gauges and histograms, without `closed`."""
        values: dict[tuple[K, Labels], SeriesValue] = {}
        for feed in self.feeds:
            gauges = feed.pull()
            for series, value in (*feed.counters.items(), *gauges.items()):
                values[series] = values.get(series, 0) + value
        return values


def _exportable(value: str) -> str:
    # AMQP names that are not UTF-8 are decoded with surrogates, which exporters cannot write. One such label would make
    # every export fail.
    return value if value.isascii() else value.encode("utf-8", "backslashreplace").decode()
