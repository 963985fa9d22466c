"""The board of a run: what its processes said last, added up, for whoever asks from any thread."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from leveret.monitoring.catalogue import METRICS
from leveret.monitoring.report import Report, Totals, durations
from leveret.monitoring.usage import ProcessUsage, Used
from leveret.plugins.distributions import Distribution
from leveret.plugins.interfaces import Sample

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from leveret.app.snapshot import Snapshot
    from leveret.monitoring.report import QueueDepth
    from leveret.plugins.interfaces import Metric

__all__ = ["Board", "Point", "Standing"]

#: Seconds without a snapshot after which the event loop of a process counts as stuck: it sends one each second.
STUCK: Final = 10.0
#: The reports of `as_dict` are about so many snapshots, one each second: fewer would make percentiles jump.
_WINDOW: Final = 5
#: The most series of processes that have ended which are kept apart; further ones are added up as "(other)".
_MOST_ENDED: Final = 10_000
_OTHER: Final = "(other)"


@dataclass(frozen=True, slots=True)
class Standing:
    """The answer to a probe.

    Attributes:
        ready: Every process consumes.
        live: No process is stuck; those that are not ready recover by themselves.
        reasons: Why it is not ready.
    """

    ready: bool
    live: bool
    reasons: tuple[str, ...] = ()


class _Place:
    """One of the processes: what it said last, and when."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.at = 0.0
        self.waiting = "has not started yet"

    def standing(self, now: float) -> Standing:
        snapshot = self.snapshot
        if snapshot is None:
            return Standing(ready=False, live=True, reasons=(self.waiting,))
        age = now - self.at
        if age > STUCK:
            return Standing(ready=False, live=False, reasons=(f"its event loop has not turned for {age:.0f} s",))
        health = snapshot.health
        return Standing(health.ready, health.live, health.reasons)


class Point:
    """What was counted until a time, as a whole and by queue and exchange."""

    def __init__(self, at: float, samples: list[Sample], used: Used) -> None:
        self.at = at
        self.used = used
        self.totals = Totals(samples)
        self.queues = _grouped(samples, "queue")
        self.exchanges = _grouped(samples, "exchange")


class Board:
    """Collects the snapshots of the processes of a run. Any thread may read it.

    Args:
        name: The name of what runs.
        processes: How many processes it has.
        clock: A monotonic clock in seconds.

    Attributes:
        name: See above.
        first: The time when it was made, for `report(since)`.
        metrics: The metrics of its samples; so it is a `MetricsSource`.
    """

    metrics = METRICS

    def __init__(self, name: str, processes: int = 1, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self._clock = clock
        self._began = clock()
        self._lock = threading.Lock()
        self._places = [_Place() for _ in range(processes)]
        self._restarts = 0
        self._stopping = False
        # Of processes that have ended: their counters and histograms, the restarts of consumers, and what they used.
        self._ended: dict[tuple[Metric, tuple[str, ...]], Any] = {}
        self._ended_used = Used()
        self._points: deque[Point] = deque(maxlen=_WINDOW + 1)
        self.first = Point(self._began, [], Used())
        self._points.append(self.first)

    # ------------------------------------------------------------------ what the processes say

    def update(self, snapshot: Snapshot) -> None:
        """Takes a snapshot of a process, which replaces its last one."""
        if 0 <= snapshot.process < len(self._places):
            with self._lock:
                place = self._places[snapshot.process]
                place.snapshot, place.at = snapshot, self._clock()

    def ended(self, process: int) -> None:
        """Notes that a process has ended, and that another one takes its place; its counts stay in the sums."""
        with self._lock:
            place = self._places[process]
            self._restarts += 1
            place.waiting = "has ended, and is started again"
            snapshot, place.snapshot = place.snapshot, None
            if snapshot is None:
                return
            self._restarts += snapshot.restarts
            self._ended_used += Used(0, snapshot.used.cpu, snapshot.used.gc_collections, snapshot.used.gc_pause)
            for sample in snapshot.samples():
                if sample.metric.kind != "gauge":
                    key = (sample.metric, sample.labels)
                    if key not in self._ended and len(self._ended) >= _MOST_ENDED:
                        key = (sample.metric, tuple(_OTHER for _ in sample.labels))
                    self._ended[key] = self._ended.get(key, 0) + sample.summand

    def stop(self) -> None:
        """Notes that the run is being stopped."""
        self._stopping = True

    def tick(self) -> None:
        """Begins another second; called once a second by what runs the processes."""
        with self._lock:
            self._points.append(Point(self._clock(), self._samples(), self._used()))

    # ------------------------------------------------------------------ what may be asked

    def snapshot(self) -> list[Sample]:
        """Returns the metrics of all processes, added up by their labels; no counter ever falls."""
        with self._lock:
            return self._samples()

    def standing(self) -> Standing:
        """Returns whether all processes are ready and live, and why not."""
        with self._lock:
            return self._standing()

    def report(self, since: Point | None = None) -> Report:
        """Returns the report since a time, or of the last seconds, of all processes together."""
        with self._lock:
            return self._report(self._points[0] if since is None else since)

    @property
    def mark(self) -> Point:
        """The time of the last `tick`, for `report(since)`."""
        return self._points[-1]

    @property
    def running(self) -> int:
        """How many processes have sent a snapshot and have not ended."""
        return sum(place.snapshot is not None for place in self._places)

    @property
    def acked_rate(self) -> float:
        """Acknowledgements per second, of the last seconds."""
        before, now = self._points[0], self._points[-1]
        acked = now.totals.number("deliveries_acked") - before.totals.number("deliveries_acked")
        return max(0, acked) / max(now.at - before.at, 1e-9)

    @property
    def failures(self) -> int:
        """Handlers that raised and messages that could not be decoded, since the beginning."""
        totals = self._points[-1].totals
        return totals.number("handler_errors") + totals.number("deliveries_undecodable")

    @property
    def restarts(self) -> int:
        """How often a process or a consumer was started again."""
        return self._restarts + sum(it.snapshot.restarts for it in self._places if it.snapshot is not None)

    @property
    def processes(self) -> int:
        """How many processes the run has."""
        return len(self._places)

    def as_dict(self) -> dict[str, Any]:
        """Returns everything as plain values, for JSON."""
        with self._lock:
            now = self._clock()
            standing, point, before = self._standing(), self._points[-1], self._points[0]
            seconds = max(point.at - before.at, 1e-9)
            depths = self._depths()
            return {
                "name": self.name,
                "ready": standing.ready,
                "live": standing.live,
                "reasons": list(standing.reasons),
                "uptime": now - self._began,
                "restarts": self.restarts,
                "failures": self.failures,
                "processes": [_process(number, place, now) for number, place in enumerate(self._places)],
                "report": self._report(before).as_dict(),
                "queues": {
                    name: _queue(before.queues.get(name, Totals()), totals, seconds, depths.get(name))
                    for name, totals in point.queues.items()
                },
                "exchanges": {
                    name: _exchange(before.exchanges.get(name, Totals()), totals, seconds)
                    for name, totals in point.exchanges.items()
                },
            }

    # ------------------------------------------------------------------ with the lock held

    def _standing(self) -> Standing:
        now = self._clock()
        ready, live = not self._stopping, True
        reasons = ["it is being stopped"] if self._stopping else []
        for number, place in enumerate(self._places):
            it = place.standing(now)
            ready, live = ready and it.ready, live and it.live
            which = f"process {number}: " if len(self._places) > 1 else ""
            reasons += [which + reason for reason in it.reasons]
        return Standing(ready, live, tuple(reasons))

    def _report(self, since: Point) -> Report:
        last = self._points[-1]
        seconds = max(last.at - since.at, 1e-9)
        usage = ProcessUsage.between(since.used, last.used, seconds)
        return Report.between(self.name, seconds, since.totals, last.totals, usage, self._depths(), None)

    def _depths(self) -> dict[str, QueueDepth | None]:
        found: dict[str, QueueDepth | None] = {}
        for place in self._places:
            if place.snapshot is not None:
                found |= place.snapshot.queues
        return found

    def _samples(self) -> list[Sample]:
        values = dict(self._ended)
        for place in self._places:
            for sample in () if place.snapshot is None else place.snapshot.samples():
                key = (sample.metric, sample.labels)
                values[key] = values.get(key, 0) + sample.summand
        return [
            Sample(metric, labels, value.count, value)
            if isinstance(value, Distribution)
            else Sample(metric, labels, value)
            for (metric, labels), value in values.items()
        ]

    def _used(self) -> Used:
        running = (place.snapshot.used for place in self._places if place.snapshot is not None)
        return sum(running, start=self._ended_used)


def _grouped(samples: Iterable[Sample], label: str) -> dict[str, Totals]:
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        if label in sample.metric.labels:
            groups.setdefault(sample.labels[sample.metric.labels.index(label)], []).append(sample)
    return {name: Totals(group) for name, group in sorted(groups.items())}


def _process(number: int, place: _Place, now: float) -> dict[str, Any]:
    standing, snapshot = place.standing(now), place.snapshot
    found: dict[str, Any] = {"process": number, "ready": standing.ready, "live": standing.live}
    found["reasons"] = list(standing.reasons)
    if snapshot is None:
        return found
    return found | {
        "pid": snapshot.pid,
        "age": now - place.at,
        "rss_bytes": snapshot.used.rss,
        "cpu_seconds": snapshot.used.cpu,
        "restarts": snapshot.restarts,
        "health": snapshot.health.as_dict(),
    }


def _queue(before: Totals, now: Totals, seconds: float, depth: QueueDepth | None) -> dict[str, Any]:
    handling = now.distribution("handler_time") - before.distribution("handler_time")
    return {
        "delivered": now.number("deliveries"),
        "rate": (now.number("deliveries") - before.number("deliveries")) / seconds,
        "acked_rate": (now.number("deliveries_acked") - before.number("deliveries_acked")) / seconds,
        "failures": now.number("handler_errors") + now.number("deliveries_undecodable"),
        "parked": now.number("deliveries_parked"),
        "retried": now.number("deliveries_retried"),
        "unsettled": now.number("deliveries_unsettled"),
        "prefetch": now.number("prefetch"),
        "consumers": {"expected": now.number("consumers_expected"), "live": now.number("consumers_live")},
        "handling": durations(handling),
        "messages": None if depth is None else depth.messages,
        "consumers_of_all": None if depth is None else depth.consumers,
    }


def _exchange(before: Totals, now: Totals, seconds: float) -> dict[str, Any]:
    confirming = now.distribution("publishings_confirm_time") - before.distribution("publishings_confirm_time")
    return {
        "published": now.number("publishings"),
        "rate": (now.number("publishings") - before.number("publishings")) / seconds,
        "confirmed": now.number("publishings_confirmed"),
        "outstanding": now.number("publishings_outstanding"),
        "confirming": durations(confirming),
    }
