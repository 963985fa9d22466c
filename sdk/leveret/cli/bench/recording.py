"""Records a run while it lasts: progress, CPU, memory and network, a sample every few milliseconds."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, NamedTuple

from leveret.cli.bench.results import Series
from leveret.monitoring.usage import resident_memory
from leveret.plugins.distributions import Distribution

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    import leveret
    from leveret.cli.measure import Clocks, Figures, Span

__all__ = ["Counts", "Recorder"]

#: Seconds between two samples of a run that begins. A sample takes about 0.1 ms, so it lengthens a run by 0.5 %.
_INTERVAL: Final = 0.02
#: The most samples; then every other one is dropped, and the interval doubles.
_MOST_SAMPLES: Final = 300


@dataclass(frozen=True, slots=True)
class Counts:
    """What a client has counted: traffic of all its connections, and how long confirms took."""

    sent: int
    received: int
    confirm_time: Distribution

    @classmethod
    def of(cls, client: leveret.Client) -> Counts:
        """Reads a client's metrics, which takes 40 us or so."""
        sent = received = 0
        confirm_time = Distribution()
        for sample in client.metrics():
            match sample.metric.name:
                case "sent":
                    sent += int(sample.value)
                case "received":
                    received += int(sample.value)
                case "publishings_confirm_time" if sample.distribution is not None:
                    confirm_time += sample.distribution
        return cls(sent, received, confirm_time)

    def __sub__(self, earlier: Counts) -> Counts:
        return Counts(
            self.sent - earlier.sent, self.received - earlier.received, self.confirm_time - earlier.confirm_time
        )


_NOTHING: Final = Counts(0, 0, Distribution())


class _Sample(NamedTuple):
    span: Span
    done: int
    rss: int | None
    counts: Counts


class Recorder:
    """Records what happens inside its context. The event loop takes the samples, so a busy loop takes them late.

    Args:
        clocks: The clocks.
        done: Returns how many messages are done.
        client: The client whose traffic is counted; None for none.

    Attributes:
        start: The moment at its beginning.
        end: The moment at its end.
        counts: What the client counted in between.
    """

    start: Span
    end: Span
    counts: Counts

    def __init__(self, clocks: Clocks, done: Callable[[], int], client: leveret.Client | None = None) -> None:
        self._clocks = clocks
        self._done = done
        self._client = client
        self._interval = _INTERVAL
        self._samples: list[_Sample] = []
        #: CPU time of the samples, which is not the client's.
        self._cpu_ns = 0

    def __enter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._before = self._count()
        self.start = self._clocks.now()
        self._sample()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end = self._clocks.now()
        self._span = self._own(self.end)
        self._timer.cancel()
        self._take()
        self.counts = self._count() - self._before

    def _count(self) -> Counts:
        return _NOTHING if self._client is None else Counts.of(self._client)

    def _sample(self) -> None:
        self._take()
        if len(self._samples) >= _MOST_SAMPLES:
            del self._samples[1::2]
            self._interval *= 2
        self._timer = self._loop.call_later(self._interval, self._sample)

    def _take(self) -> None:
        before = time.thread_time_ns()
        span = self._own(self._clocks.now())
        self._samples.append(_Sample(span, self._done(), resident_memory(), self._count() - self._before))
        self._cpu_ns += time.thread_time_ns() - before

    def _own(self, moment: Span) -> Span:
        """The span until a moment, without the CPU time of samples and not below 0, as clocks have a resolution."""
        span = self.start.until(moment)
        return replace(span, client_cpu_ns=max(0, span.client_cpu_ns - self._cpu_ns))

    def figures(self, messages: int) -> Figures:
        """The figures of the run for this many messages."""
        figures = self._span.figures(messages)
        if self._client is None:
            return figures
        sent, received = self.counts.sent, self.counts.received
        return figures | {
            "sent_bytes_per_msg": sent / messages,
            "received_bytes_per_msg": received / messages,
            "network_mb_per_s": (sent + received) * 1e3 / max(1, self._span.wall_ns),
        }

    def series(self) -> Series:
        """The samples."""
        samples = self._samples
        return Series(
            seconds=[sample.span.wall_ns / 1e9 for sample in samples],
            messages=[float(sample.done) for sample in samples],
            client_cpu_s=[sample.span.client_cpu_ns / 1e9 for sample in samples],
            broker_cpu_s=[cpu / 1e9 for sample in samples if (cpu := sample.span.broker_cpu_ns) is not None],
            rss_mib=[sample.rss / 2**20 for sample in samples if sample.rss is not None],
            network_mb=[(sample.counts.sent + sample.counts.received) / 1e6 for sample in samples]
            if self._client is not None
            else [],
        )
