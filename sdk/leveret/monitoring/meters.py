"""Meters: they read the counters of one producer, consumer or connection on demand.

Producers, consumers and connections count in plain integers. No meter runs for a message.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from leveret.monitoring.histogram import Count, Histogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from leveret.codecs.compressing import BodyCompressor
    from leveret.consuming.acks import AckWindow
    from leveret.message import BatchResult
    from leveret.plugins.distributions import Distribution
    from leveret.publishing.confirms import ConfirmWindow
    from leveret.publishing.publish_batch import PublishBatch

__all__ = ["ConnectionMeter", "ConsumerMeter", "Meter", "ProducerMeter"]


class Meter(Protocol):
    """Reads the counters of one owner. It outlives the owner, so that its final counts reach the sums."""

    def read(self) -> Mapping[str, int | Distribution]:
        """Returns the counters and distributions by name. Any thread may call it."""
        ...


class ProducerMeter:
    """Reads the counters in a producer's compiled parts, and counts its batches."""

    __slots__ = (
        *("_batch_seconds", "_compressor", "batch", "batch_confirmed", "batch_sizes", "batches"),
        *("unwritten", "window"),
    )

    def __init__(self, window: ConfirmWindow, compressor: BodyCompressor | None = None) -> None:
        self.window = window
        self._compressor = compressor
        self.batch: PublishBatch | None = None
        self.batches = 0
        self.batch_confirmed = 0
        self._batch_seconds = 0.0
        self.batch_sizes = Histogram()
        # Messages that waited for room and got none.
        self.unwritten = 0

    def add_batch(self, result: BatchResult) -> None:
        """Counts a call of `publish_batch` that has all its outcomes."""
        self.batches += 1
        self.batch_confirmed += result.confirmed
        self._batch_seconds += result.elapsed
        self.batch_sizes.record(result.count)

    def read(self) -> dict[str, int | Distribution]:
        """Returns the counters, what compression saved, how long confirms took, and how large batches were."""
        return {
            **self.counters(),
            **({} if self._compressor is None else self._compressor.counters()),
            "confirm_time": self.window.confirm_time.read(),
            "batch_sizes": self.batch_sizes.read(1.0),
        }

    def counters(self) -> dict[str, int]:
        """Returns how many publishings were written, how many have which outcome, and how many wait for one."""
        window, batch = self.window, self.batch
        return {
            "published": batch.published if batch is not None else 0,
            "published_bytes": batch.published_bytes if batch is not None else 0,
            "outstanding": window.outstanding,
            "confirmed": window.confirmed,
            "returned": window.returned,
            "nacked": window.nacked,
            "unknown": window.unknown,
            "not_sent": window.not_sent + self.unwritten,
            "batches": self.batches,
            "batch_confirmed": self.batch_confirmed,
            "batch_milliseconds": int(self._batch_seconds * 1000),
        }


class ConsumerMeter:
    """Counts for a consumer: the consumer adds once per read or failure, its compiled part once per message."""

    __slots__ = (
        "_now",
        "dead_lettered",
        "delivered",
        "dropped",
        "expected",
        "handler_errors",
        "handler_time",
        "held",
        "live",
        "parked",
        "prefetch",
        "rejected",
        "released",
        "requeued",
        "retried",
        "settled_time",
        "stale",
        "transit_time",
        "undecodable",
        "waiting_time",
    )

    def __init__(self, acks: AckWindow) -> None:
        self.prefetch = 0
        self.expected = False
        self.live = False
        self.delivered = Count()
        self.undecodable = 0
        self.handler_errors = 0
        self.requeued = 0
        self.released = 0
        self.dead_lettered = 0
        self.retried = 0
        self.parked = 0
        self.dropped = 0
        self.rejected = 0
        # Failed messages that wait here for their next attempt.
        self.held = 0
        # Settlements that came after their channel was gone.
        self.stale = 0
        self.waiting_time = Histogram()
        self.handler_time = Histogram()
        self.settled_time = Histogram()
        # In microseconds.
        self.transit_time = Histogram()
        # The current channel's window, and the deliveries acknowledged and ignored on earlier channels. One tuple,
        # because another thread may read between two assignments.
        self._now = (acks, 0, 0)

    @property
    def acks(self) -> AckWindow:
        """The window with the current channel's unsettled deliveries."""
        return self._now[0]

    def replace(self, acks: AckWindow) -> None:
        """Continues with the window of another channel; the broker delivers the old one's unsettled messages again."""
        now, acked, ignored = self._now
        self._now = (acks, acked + now.acked, ignored + now.ignored)

    def read(self) -> dict[str, int | Distribution]:
        """Returns the counters, and how long deliveries took.

        The times on the way are left out until a message came that tells when it was sent.
        """
        transit = {"transit_time": self.transit_time.read(1e-6)} if self.transit_time.count else {}
        return {
            **self.counters(),
            **transit,
            "waiting_time": self.waiting_time.read(),
            "handler_time": self.handler_time.read(),
            "settled_time": self.settled_time.read(),
        }

    def counters(self) -> dict[str, int]:
        """Returns how many deliveries came, how they were settled, and how many are `unsettled`."""
        acks, acked, ignored = self._now
        return {
            "delivered": self.delivered.value,
            "undecodable": self.undecodable,
            "handler_errors": self.handler_errors,
            "requeued": self.requeued,
            "released": self.released,
            "dead_lettered": self.dead_lettered,
            "retried": self.retried,
            "parked": self.parked,
            "dropped": self.dropped,
            "rejected": self.rejected,
            "held": self.held,
            "acked": acked + acks.acked,
            "unsettled": acks.unsettled,
            "stale_acks": ignored + acks.ignored + self.stale,
            "prefetch": self.prefetch if self.live else 0,
            "expected": int(self.expected),
            "live": int(self.live),
        }


class _MeteredConnection(Protocol):
    """The part of a connection that a meter reads."""

    @property
    def is_open(self) -> bool: ...

    @property
    def blocked(self) -> str | None: ...

    @property
    def received_bytes(self) -> int: ...

    @property
    def sent_bytes(self) -> int: ...


class ConnectionMeter:
    """Counts for one link: the connections that replaced each other, and the failed attempts to connect."""

    __slots__ = ("_now", "failed", "lost", "opened", "write_sizes")

    def __init__(self) -> None:
        self.opened = 0
        self.failed = 0
        self.lost = 0
        self.write_sizes = Histogram()
        # The current connection, and the bytes received and sent by earlier ones. One tuple, because another thread
        # may read between two assignments.
        self._now: tuple[_MeteredConnection | None, int, int] = (None, 0, 0)

    def replace(self, connection: _MeteredConnection) -> None:
        """Counts a new open connection, and continues with its byte counts."""
        before = self.counters()
        self._now = (connection, before["received_bytes"], before["sent_bytes"])
        self.opened += 1

    def read(self) -> dict[str, int | Distribution]:
        """Returns the counters, and how large writes were."""
        return {**self.counters(), "write_sizes": self.write_sizes.read(1.0)}

    def counters(self) -> dict[str, int]:
        """Returns how many connections there were, what became of them, and how many bytes they took and gave."""
        connection, received, sent = self._now
        is_open = connection is not None and connection.is_open
        return {
            "opened": self.opened,
            "failed": self.failed,
            "lost": self.lost,
            "open": int(is_open),
            "blocked": int(connection is not None and is_open and connection.blocked is not None),
            "received_bytes": received + (connection.received_bytes if connection is not None else 0),
            "sent_bytes": sent + (connection.sent_bytes if connection is not None else 0),
        }
