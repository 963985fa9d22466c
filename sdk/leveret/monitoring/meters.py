"""Metrics that are pulled: the core counts in plain numbers, and whoever wants them reads them.

Nothing here runs for a message. A meter belongs to a producer, consumer or connection; a `Monitor` adds up those of a
client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import weakref
from collections import Counter, deque
from typing import TYPE_CHECKING, Any, Final, Protocol

from leveret.errors import PluginError, printable
from leveret.plugins.interfaces import Metric, Sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.consuming.acks import AckWindow
    from leveret.message import BatchResult
    from leveret.plugins.interfaces import MetricsSink
    from leveret.plugins.registry import PluginRegistry, Provided
    from leveret.publishing.confirms import ConfirmWindow
    from leveret.publishing.publisher import PublishBatch
    from leveret.settings import MonitoringSettings

__all__ = ["METRICS", "ConnectionMeter", "ConsumerMeter", "Meter", "Monitor", "ProducerMeter", "Sinks"]

logger = logging.getLogger("leveret.monitoring")

#: More different exchanges or queues than this are counted together, as "(other)".
_MAX_LABELS: Final = 1000
_OTHER: Final = "(other)"

_PRODUCER, _CONSUMER, _CONNECTION = ("client", "exchange"), ("client", "queue"), ("client", "connection")
_GENERATION = ("client", "generation")

#: Everything that is counted. The first word of each entry is the counter's name in the meters.
_CATALOGUE: Final = {
    "published": Metric("publishings", "counter", "messages", "Publishings that were written.", _PRODUCER),
    "published_bytes": Metric("publishing", "counter", "bytes", "Bodies of publishings that were written.", _PRODUCER),
    "confirmed": Metric("publishings_confirmed", "counter", "messages", "Publishings the broker confirmed.", _PRODUCER),
    "returned": Metric("publishings_returned", "counter", "messages", "Publishings that no queue took.", _PRODUCER),
    "nacked": Metric("publishings_nacked", "counter", "messages", "Publishings the broker refused.", _PRODUCER),
    "unknown": Metric("publishings_unknown", "counter", "messages", "Publishings whose confirm never came.", _PRODUCER),
    "outstanding": Metric(
        "publishings_outstanding", "gauge", "messages", "Publishings without an outcome yet.", _PRODUCER
    ),
    "batches": Metric("batches", "counter", "batches", "Batches that were published.", _PRODUCER),
    "batch_confirmed": Metric(
        "batches_confirmed", "counter", "messages", "Publishings of batches the broker confirmed.", _PRODUCER
    ),
    "batch_milliseconds": Metric(
        "batches_time", "counter", "milliseconds", "Time from the start of batches to their last confirms.", _PRODUCER
    ),
    "delivered": Metric("deliveries", "counter", "messages", "Deliveries taken from the broker.", _CONSUMER),
    "acked": Metric("deliveries_acked", "counter", "messages", "Deliveries acknowledged.", _CONSUMER),
    "requeued": Metric("deliveries_requeued", "counter", "messages", "Failed deliveries given back.", _CONSUMER),
    "released": Metric("deliveries_released", "counter", "messages", "Deliveries given back untried.", _CONSUMER),
    "dead_lettered": Metric("deliveries_dead_lettered", "counter", "messages", "Deliveries rejected.", _CONSUMER),
    "delayed": Metric("deliveries_delayed", "counter", "messages", "Failed deliveries to be retried later.", _CONSUMER),
    "parked": Metric("deliveries_parked", "counter", "messages", "Failed deliveries that were parked.", _CONSUMER),
    "dropped": Metric("deliveries_dropped", "counter", "messages", "Failed deliveries that were dropped.", _CONSUMER),
    "undecodable": Metric(
        "deliveries_undecodable", "counter", "messages", "Deliveries whose body could not be decoded.", _CONSUMER
    ),
    "handler_errors": Metric("handler_errors", "counter", "messages", "Deliveries whose handler raised.", _CONSUMER),
    "unsettled": Metric("deliveries_unsettled", "gauge", "messages", "Deliveries being worked on.", _CONSUMER),
    "prefetch": Metric(
        "prefetch", "gauge", "messages", "Deliveries that consumers let the broker send ahead.", _CONSUMER
    ),
    "expected": Metric(
        "consumers_expected", "gauge", "consumers", "Consumers that should get deliveries now.", _CONSUMER
    ),
    "live": Metric("consumers_live", "gauge", "consumers", "Consumers that the broker has on its list.", _CONSUMER),
    "opened": Metric("connections_opened", "counter", "connections", "Connections that were opened.", _CONNECTION),
    "failed": Metric(
        "connections_failed", "counter", "connections", "Attempts to connect that did not succeed.", _CONNECTION
    ),
    "lost": Metric("connections_lost", "counter", "connections", "Connections that were lost.", _CONNECTION),
    "open": Metric("connections_open", "gauge", "connections", "Connections that are open.", _CONNECTION),
    "blocked": Metric(
        "connections_blocked", "gauge", "connections", "Connections whose publishings the broker blocks.", _CONNECTION
    ),
    "received_bytes": Metric("received", "counter", "bytes", "Read from sockets.", _CONNECTION),
    "sent_bytes": Metric("sent", "counter", "bytes", "Given to sockets.", _CONNECTION),
    "gc_collections": Metric(
        "gc_collections", "counter", "collections", "Garbage collections of the process.", _GENERATION
    ),
    "gc_collected": Metric(
        "gc_collected", "counter", "objects", "Objects that garbage collections freed.", _GENERATION
    ),
    "gc_uncollectable": Metric(
        "gc_uncollectable", "counter", "objects", "Objects that garbage collections could not free.", _GENERATION
    ),
    "gc_milliseconds": Metric("gc_time", "counter", "milliseconds", "Time in garbage collections.", _GENERATION),
}

#: What sinks get as `MetricsSource.metrics`.
METRICS: Final = tuple(_CATALOGUE.values())


class Meter(Protocol):
    """Reads the counters of one thing. It outlives the thing, so that what it counted is not lost."""

    def read(self) -> dict[str, int]:
        """The counters by name; callable from any thread."""
        ...


class ProducerMeter:
    """Reads what a producer's compiled parts count."""

    __slots__ = ("_batch_seconds", "batch", "batch_confirmed", "batches", "window")

    def __init__(self, window: ConfirmWindow) -> None:
        self.window = window
        self.batch: PublishBatch | None = None
        self.batches = 0
        self.batch_confirmed = 0
        self._batch_seconds = 0.0

    def add_batch(self, result: BatchResult) -> None:
        """A call of `publish_batch` has its outcomes."""
        self.batches += 1
        self.batch_confirmed += result.confirmed
        self._batch_seconds += result.elapsed

    def read(self) -> dict[str, int]:
        """How many publishings were written and how they ended so far, by outcome."""
        window, batch = self.window, self.batch
        return {
            "published": batch.published if batch is not None else 0,
            "published_bytes": batch.published_bytes if batch is not None else 0,
            "outstanding": window.outstanding,
            "confirmed": window.confirmed,
            "returned": window.returned,
            "nacked": window.nacked,
            "unknown": window.unknown,
            "batches": self.batches,
            "batch_confirmed": self.batch_confirmed,
            "batch_milliseconds": int(self._batch_seconds * 1000),
        }


class ConsumerMeter:
    """What a consumer counts: for each read, each failure, or in its compiled part."""

    __slots__ = (
        "_now",
        "dead_lettered",
        "delayed",
        "delivered",
        "dropped",
        "expected",
        "handler_errors",
        "live",
        "parked",
        "prefetch",
        "released",
        "requeued",
        "stale",
        "undecodable",
    )

    def __init__(self, acks: AckWindow) -> None:
        self.prefetch = 0
        self.expected = False
        self.live = False
        self.delivered = 0
        self.undecodable = 0
        self.handler_errors = 0
        self.requeued = 0
        self.released = 0
        self.dead_lettered = 0
        self.delayed = 0
        self.parked = 0
        self.dropped = 0
        # Settlements that came when their channel was gone.
        self.stale = 0
        # The channel's window, and what was acknowledged and ignored on those before it: together, because another
        # thread may read between two assignments.
        self._now = (acks, 0, 0)

    @property
    def acks(self) -> AckWindow:
        """The deliveries of the channel that are not settled."""
        return self._now[0]

    def replace(self, acks: AckWindow) -> None:
        """Another channel has begun, or this one is over and what it had is the broker's again."""
        now, acked, ignored = self._now
        self._now = (acks, acked + now.acked, ignored + now.ignored)

    def read(self) -> dict[str, int]:
        """Deliveries so far, what became of them, and `unsettled`: those that are being worked on."""
        acks, acked, ignored = self._now
        return {
            "delivered": self.delivered,
            "undecodable": self.undecodable,
            "handler_errors": self.handler_errors,
            "requeued": self.requeued,
            "released": self.released,
            "dead_lettered": self.dead_lettered,
            "delayed": self.delayed,
            "parked": self.parked,
            "dropped": self.dropped,
            "acked": acked + acks.acked,
            "unsettled": acks.unsettled,
            "stale_acks": ignored + acks.ignored + self.stale,
            "prefetch": self.prefetch if self.live else 0,
            "expected": int(self.expected),
            "live": int(self.live),
        }


class _Connection(Protocol):
    """What a meter reads of a connection."""

    @property
    def is_open(self) -> bool: ...

    @property
    def blocked(self) -> str | None: ...

    @property
    def received_bytes(self) -> int: ...

    @property
    def sent_bytes(self) -> int: ...


class ConnectionMeter:
    """Counts the connections that took each other's place, and the attempts that `failed`."""

    __slots__ = ("_now", "failed", "lost", "opened")

    def __init__(self) -> None:
        self.opened = 0
        self.failed = 0
        self.lost = 0
        # The connection, and the bytes received and sent by those before it: together, because another thread may read
        # between two assignments.
        self._now: tuple[_Connection | None, int, int] = (None, 0, 0)

    def replace(self, connection: _Connection) -> None:
        """A new connection is open."""
        before = self.read()
        self._now = (connection, before["received_bytes"], before["sent_bytes"])
        self.opened += 1

    def read(self) -> dict[str, int]:
        """The counters."""
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


class Monitor:
    """Adds up the meters of one client; what sinks get as their `MetricsSource`.

    What was counted by something that is gone stays in the sums, so counters never fall. Any thread may read it.

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
        # Appended to when something is garbage collected, which may be anywhere, so without the lock.
        self._gone: deque[int] = deque()
        self._sums: Counter[tuple[str, tuple[str, str]]] = Counter()

    def add(self, owner: object, kind: str, label: str, meter: Meter) -> None:
        """Begins to count something, until it is garbage collected.

        Args:
            owner: What is counted.
            kind: "producer", "consumer", "connection" or "gc".
            label: Its exchange, queue, purpose or generation.
            meter: Its meter, which does not hold the owner.
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
        """Keeps the sums of what is gone."""
        while self._gone:
            key = self._gone.popleft()
            del self._references[key]
            labels, meter = self._meters.pop(key)
            for name, value in meter.read().items():
                if name in _CATALOGUE and _CATALOGUE[name].kind == "counter":
                    self._sums[name, labels] += value

    def snapshot(self) -> list[Sample]:
        """Reads all counters."""
        with self._lock:
            self._fold()
            values = Counter(self._sums)
            meters = list(self._meters.values())
        for labels, meter in meters:
            for name, value in meter.read().items():
                if name in _CATALOGUE:
                    values[name, labels] += value
        return [Sample(_CATALOGUE[name], (self._client_name, label), n) for (name, (_, label)), n in values.items()]


class Sinks:
    """The metrics sinks of one client.

    Args:
        registry: Where they come from.
        settings: Names them.

    Raises:
        ConfigurationError: There is no such sink.
        PluginError: One could not be made.
    """

    def __init__(self, registry: PluginRegistry, settings: MonitoringSettings) -> None:
        self._timeout = settings.sink_timeout
        self._sinks: list[tuple[MetricsSink, Provided]] = [registry.make_sink(name) for name in settings.sinks]
        self._locks: dict[str, threading.Lock] = {}
        self._started: list[tuple[MetricsSink, Provided]] = []

    async def start(self, monitor: Monitor) -> None:
        """Starts them.

        Raises:
            PluginError: One raised, or did not return in time.
        """
        for sink, provided in self._sinks:
            self._started.append((sink, provided))
            self._locks[provided.name] = threading.Lock()
            error = await self._call(provided, "start", sink.start, monitor)
            if error is not None:
                raise error

    async def close(self) -> None:
        """Closes them; what goes wrong is logged, and a sink that hangs is left behind."""
        while self._started:
            sink, provided = self._started.pop()
            error = await self._call(provided, "close", sink.close)
            if error is not None:
                logger.warning("%s", error)

    async def _call(
        self, provided: Provided, what: str, function: Callable[..., object], *arguments: object
    ) -> PluginError | None:
        """Calls a plugin in a thread, which may hang without taking the loop or the program's end with it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[BaseException | None] = loop.create_future()

        def finish(error: BaseException | None) -> None:
            if not future.done():
                future.set_result(error)

        lock = self._locks[provided.name]

        def work() -> None:
            error: BaseException | None = None
            try:
                # A start that takes too long ends before its close begins.
                with lock:
                    function(*arguments)
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                loop.call_soon_threadsafe(finish, error)

        threading.Thread(target=work, name=f"leveret metrics sink {provided.name}", daemon=True).start()
        who = f"the metrics sink {provided.name!r} of {provided.origin}"
        try:
            async with asyncio.timeout(self._timeout):
                error = await future
        except TimeoutError:
            text = f"{who} did not {what} within sink_timeout of {self._timeout:g} s"
        else:
            if error is None:
                return None
            text = f"{who} failed to {what}: {type(error).__name__}: {printable(str(error))}"
        return PluginError(text, plugin=provided.plugin, distribution=provided.distribution)
