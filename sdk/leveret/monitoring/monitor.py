"""The monitor of a client: it adds up the client's meters."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from leveret.monitoring.catalogue import CATALOGUE, METRICS
from leveret.plugins.distributions import Distribution
from leveret.plugins.interfaces import Sample

if TYPE_CHECKING:
    from leveret.monitoring.meters import Meter

__all__ = ["Monitor"]

#: The most different exchanges or queues that are counted apart. Further ones are counted together as "(other)".
_MAX_LABELS: Final = 1000
_OTHER: Final = "(other)"
#: What an owner that is gone leaves: all but gauges.
_ADDED_UP: Final = frozenset(name for name, metric in CATALOGUE.items() if metric.kind != "gauge")


class Monitor:
    """Adds up the meters of one client. It is the `MetricsSource` of the client's sinks.

    The counts of an owner that was garbage collected stay in the sums, so counters never fall. Any thread may read it.

    Args:
        client_name: The label `client` of every sample.
    """

    metrics = METRICS

    def __init__(self, client_name: str) -> None:
        self._client_name = client_name
        self._lock = threading.Lock()
        self._labels: set[tuple[str, str]] = set()
        self._meters: dict[int, tuple[tuple[str, str], Meter]] = {}
        self._references: dict[int, weakref.ref[Any]] = {}
        # Keys of owners that were garbage collected. That may happen in any thread, with the lock held, so appending
        # does not take the lock.
        self._gone: deque[int] = deque()
        self._sums: dict[tuple[str, tuple[str, str]], Any] = {}

    def add(self, owner: object, kind: str, label: str, meter: Meter) -> None:
        """Adds a meter, which is read until its owner is garbage collected.

        Args:
            owner: The producer, consumer, connection or other object that the meter counts for.
            kind: "producer", "consumer", "connection" or "gc".
            label: Its exchange, queue, purpose or generation.
            meter: Its meter. It must hold no reference to the owner.
        """
        key = id(owner)
        gone = self._gone
        reference = weakref.ref(owner, lambda _: gone.append(key))
        with self._lock:
            self._fold()
            labels = (kind, label)
            if labels not in self._labels:
                if len(self._labels) >= _MAX_LABELS:
                    labels = (kind, _OTHER)
                self._labels.add(labels)
            self._meters[key] = (labels, meter)
            self._references[key] = reference

    def _fold(self) -> None:
        """Moves the final counts of collected owners into the sums."""
        while self._gone:
            key = self._gone.popleft()
            del self._references[key]
            labels, meter = self._meters.pop(key)
            for name, value in meter.read().items():
                if name in _ADDED_UP and (value or (name, labels) not in self._sums):
                    self._sums[name, labels] = self._sums.get((name, labels), 0) + value

    def snapshot(self) -> list[Sample]:
        """Returns the current value of every counter, gauge and histogram."""
        with self._lock:
            self._fold()
            values = dict(self._sums)
            meters = list(self._meters.values())
        for labels, meter in meters:
            for name, value in meter.read().items():
                if name in CATALOGUE:
                    values[name, labels] = values.get((name, labels), 0) + value
        return [self._sample(name, label, value) for (name, (_, label)), value in values.items()]

    def _sample(self, name: str, label: str, value: int | Distribution) -> Sample:
        labels = (self._client_name, label)
        if isinstance(value, Distribution):
            return Sample(CATALOGUE[name], labels, value.count, value)
        return Sample(CATALOGUE[name], labels, value)
