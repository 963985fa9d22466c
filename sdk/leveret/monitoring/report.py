"""Reports: what a client did in a period, from two snapshots of its metrics."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from leveret.plugins.distributions import Distribution

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from leveret.monitoring.usage import ProcessUsage
    from leveret.plugins.interfaces import Sample

__all__ = ["Flow", "QueueDepth", "Report", "Totals", "durations"]

_PERCENTILES: Final = (50.0, 95.0, 99.0, 99.9)
#: Each failed attempt at a delivery is counted under one of these.
_FAILED: Final = (
    "deliveries_retried",
    "deliveries_parked",
    "deliveries_requeued",
    "deliveries_dead_lettered",
    "deliveries_rejected",
    "deliveries_dropped",
)
_UNCONFIRMED: Final = ("publishings_returned", "publishings_nacked", "publishings_unknown", "publishings_not_sent")


class Totals:
    """All samples of a client at one time, added up over exchanges, queues and connections.

    Args:
        samples: A snapshot of its metrics.
    """

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._values: dict[str, Any] = {}
        for sample in samples:
            name = sample.metric.name
            self._values[name] = self._values.get(name, 0) + sample.summand

    def number(self, name: str) -> int:
        """Returns a counter or gauge; 0 when nothing counted it."""
        value = self._values.get(name, 0)
        assert isinstance(value, int)
        return value

    def distribution(self, name: str) -> Distribution:
        """Returns a histogram; an empty one when nothing counted it."""
        value = self._values.get(name)
        return value if isinstance(value, Distribution) else Distribution()


@dataclass(frozen=True, slots=True)
class Flow:
    """The messages that a client published, or consumed, in a period.

    Attributes:
        count: Messages that were written, or delivered.
        rate: Messages per second.
        success: The share that succeeded, from 0 to 1; None when none has an outcome.
        duration: Seconds from the publish to the confirm, or from the read to the settlement.
    """

    count: int
    rate: float
    success: float | None
    duration: Distribution


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """The counts of a queue that the broker returned (queue.declare-ok).

    Attributes:
        messages: Messages that are ready to be delivered.
        consumers: Consumers that may get them.
    """

    messages: int
    consumers: int


@dataclass(frozen=True, slots=True)
class Report:
    """The work of a client in a period, and its gauges at the end of the period.

    Attributes:
        client: The client's name.
        seconds: The length of the period in seconds.
        published: The publishings. A confirmed one is a success.
        consumed: The deliveries. One that was acknowledged, and neither retried nor parked, is a success.
        transit: Seconds from the publishing to the read, of messages with the header `x-leveret-sent-at`.
        waiting: Seconds from the read that brought a delivery to its handler.
        handling: Seconds in handlers.
        parked: Deliveries that were parked in the period.
        received: Bytes per second that were read from sockets.
        sent: Bytes per second that were given to sockets.
        outstanding: Publishings without an outcome.
        unsettled: Deliveries being worked on.
        prefetch: Deliveries that the broker may send ahead, of all consumers together.
        connections: Open connections.
        lost: Connections that were lost in the period.
        blocked: Connections whose publishings the broker blocks.
        consumers_expected: Consumers that should get deliveries.
        consumers_live: Consumers that do.
        silent: Seconds without a delivery, in whole periods, while at least one consumer was expected to get some.
        blocked_for: Seconds for which the broker has blocked publishings, in whole periods.
        process: Memory, CPU time and garbage collections of the whole process.
        queues: The depths of `report_queues` by name; None where the broker refused or did not answer.
    """

    client: str
    seconds: float
    published: Flow
    consumed: Flow
    transit: Distribution
    waiting: Distribution
    handling: Distribution
    parked: int
    received: float
    sent: float
    outstanding: int
    unsettled: int
    prefetch: int
    connections: int
    lost: int
    blocked: int
    consumers_expected: int
    consumers_live: int
    silent: float
    blocked_for: float
    process: ProcessUsage
    queues: Mapping[str, QueueDepth | None] = field(default_factory=dict)

    @classmethod
    def between(
        cls,
        client: str,
        seconds: float,
        before: Totals,
        now: Totals,
        process: ProcessUsage,
        queues: Mapping[str, QueueDepth | None],
        last: Report | None,
    ) -> Report:
        """Makes the report of the period between two snapshots; `last` is that of the period before, or None."""

        def counted(name: str) -> int:
            return max(0, now.number(name) - before.number(name))

        def came(name: str) -> Distribution:
            return now.distribution(name) - before.distribution(name)

        confirmed = counted("publishings_confirmed")
        unconfirmed = sum(map(counted, _UNCONFIRMED))
        failed = sum(map(counted, _FAILED))
        # A message that is retried or parked is acknowledged once its copy is safe.
        succeeded = max(0, counted("deliveries_acked") - counted("deliveries_retried") - counted("deliveries_parked"))
        published, delivered = counted("publishings"), counted("deliveries")
        expected, blocked = now.number("consumers_expected"), now.number("connections_blocked")
        return cls(
            client=client,
            seconds=seconds,
            published=Flow(
                published, published / seconds, _share(confirmed, unconfirmed), came("publishings_confirm_time")
            ),
            consumed=Flow(delivered, delivered / seconds, _share(succeeded, failed), came("deliveries_settled_time")),
            transit=came("deliveries_transit_time"),
            waiting=came("deliveries_waiting_time"),
            handling=came("handler_time"),
            parked=counted("deliveries_parked"),
            received=counted("received") / seconds,
            sent=counted("sent") / seconds,
            outstanding=now.number("publishings_outstanding"),
            unsettled=now.number("deliveries_unsettled"),
            prefetch=now.number("prefetch"),
            connections=now.number("connections_open"),
            lost=counted("connections_lost"),
            blocked=blocked,
            consumers_expected=expected,
            consumers_live=now.number("consumers_live"),
            silent=(seconds + (last.silent if last else 0.0)) if expected and not delivered else 0.0,
            blocked_for=(seconds + (last.blocked_for if last else 0.0)) if blocked else 0.0,
            process=process,
            queues=queues,
        )

    def as_dict(self) -> dict[str, Any]:
        """Returns the report as numbers and texts alone, for logs and JSON; durations in seconds."""
        return {
            "client": self.client,
            "seconds": round(self.seconds, 3),
            "published": _flow(self.published),
            "consumed": _flow(self.consumed),
            "transit": durations(self.transit),
            "waiting": durations(self.waiting),
            "handling": durations(self.handling),
            "parked": self.parked,
            "received_bytes_per_second": round(self.received),
            "sent_bytes_per_second": round(self.sent),
            "outstanding": self.outstanding,
            "unsettled": self.unsettled,
            "prefetch": self.prefetch,
            "connections": {"open": self.connections, "lost": self.lost, "blocked": self.blocked},
            "consumers": {"expected": self.consumers_expected, "live": self.consumers_live},
            "silent": round(self.silent, 3),
            "blocked_for": round(self.blocked_for, 3),
            "process": {
                "rss_bytes": self.process.rss,
                "cpu_percent": round(self.process.cpu, 1),
                "gc_collections": self.process.gc_collections,
                "gc_pause": self.process.gc_pause,
            },
            "queues": {
                name: None if depth is None else {"messages": depth.messages, "consumers": depth.consumers}
                for name, depth in self.queues.items()
            },
        }

    def __str__(self) -> str:
        parts = []
        if self.published.count or self.published.duration or self.published.success is not None:
            parts.append(f"published {_line(self.published)}")
        if self.consumed.count or self.consumed.duration:
            parts.append(f"consumed {_line(self.consumed)}")
            if self.transit:
                parts.append(f"on the way {_spread(self.transit)}")
            if self.handling:
                parts.append(f"handlers {_spread(self.handling)}, waited before {_spread(self.waiting)}")
        if not parts:
            parts.append("no messages")
        if self.parked:
            parts.append(f"parked {self.parked:,}")
        rss = "unknown" if self.process.rss is None else f"{self.process.rss / 1e6:,.1f} MB"
        parts += [
            f"window {self.outstanding:,}, unsettled {self.unsettled:,}, prefetch {self.prefetch:,}",
            f"network {self.received / 1e6:,.2f} MB/s in, {self.sent / 1e6:,.2f} MB/s out",
            f"rss {rss}, cpu {self.process.cpu:.1f} %",
            f"gc {self.process.gc_collections} ({_time(self.process.gc_pause)})",
        ]
        if self.blocked:
            parts.append(f"{self.blocked} connections blocked")
        if self.lost:
            parts.append(f"{self.lost} connections lost")
        if self.consumers_live < self.consumers_expected:
            parts.append(f"{self.consumers_live} of {self.consumers_expected} consumers live")
        parts += [
            f"queue {name!r}: unknown"
            if depth is None
            else f"queue {name!r}: ready {depth.messages:,}, consumers {depth.consumers:,}"
            for name, depth in self.queues.items()
        ]
        return f"{self.client}, {self.seconds:.1f} s: {'; '.join(parts)}"


def _share(good: int, bad: int) -> float | None:
    return good / (good + bad) if good + bad else None


def _flow(flow: Flow) -> dict[str, Any]:
    success = None if flow.success is None else round(flow.success, 6)
    return {"count": flow.count, "rate": round(flow.rate, 1), "success": success, "duration": durations(flow.duration)}


def durations(distribution: Distribution) -> dict[str, float]:
    """Returns count, mean, highest and percentiles of a distribution as plain numbers."""
    found = {"count": distribution.count, "mean": distribution.mean, "max": distribution.highest}
    return found | {f"p{percent:g}": distribution.percentile(percent) for percent in _PERCENTILES}


def _line(flow: Flow) -> str:
    success = "" if flow.success is None else f", success {100 * flow.success:.4g} %"
    spread = f", {_spread(flow.duration)}" if flow.duration else ""
    return f"{flow.count:,} ({flow.rate:,.1f}/s){success}{spread}"


def _spread(distribution: Distribution) -> str:
    middle, high = distribution.percentile(50), distribution.percentile(99)
    return f"mean {_time(distribution.mean)}, p50 {_time(middle)}, p99 {_time(high)}"


def _time(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
