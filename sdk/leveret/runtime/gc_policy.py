"""Python's garbage collector at moments that suit an event loop. Off until the program starts a `GcPolicy`.

Nothing here forces a full collection while messages are handled: it would stop the loop for as long as it takes to look
at every object of the process, and free what Python frees sooner or later anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sysconfig
import threading
import time
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Protocol

from leveret.errors import ConfigurationError
from leveret.settings import GcSettings

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Self

    from leveret.monitoring.meters import Monitor

__all__ = ["GcPolicy", "GcStatistics"]

logger = logging.getLogger("leveret.gc")

_GENERATIONS: Final = 3
#: After this many collections of one generation the next one is due, where `gc.set_threshold` has no number. It is
#: Python's own default; 3.14 has none for the oldest.
_DUE: Final = 10
#: Python 3.12 begins with some hundred frozen objects; a program that was frozen has more than this.
_FROZEN_BY_PYTHON: Final = 1000
#: One new object starts a due collection on 3.11; from 3.12 on it waits for the next call or turn of a loop.
_PROBES: Final = 8


class GcStatistics(NamedTuple):
    """The collections of one generation while the policy was active.

    Attributes:
        collections: How many there were, started by Python, the policy or the program.
        collected: Objects that they freed.
        uncollectable: Objects that were garbage and could not be freed.
        seconds: Time that they took; the whole process stood still for it.
    """

    collections: int
    collected: int
    uncollectable: int
    seconds: float


class _HasMonitor(Protocol):
    """A client, as far as the policy needs one."""

    @property
    def monitor(self) -> Monitor: ...


class _GenerationMeter:
    """Counts the collections of one generation; a `leveret.monitoring.meters.Meter`."""

    __slots__ = ("collected", "collections", "seconds", "uncollectable")

    def __init__(self) -> None:
        self.collections = 0
        self.collected = 0
        self.uncollectable = 0
        self.seconds = 0.0

    def read(self) -> dict[str, int]:
        return {
            "gc_collections": self.collections,
            "gc_collected": self.collected,
            "gc_uncollectable": self.uncollectable,
            "gc_milliseconds": int(self.seconds * 1000),
        }


class _Lifetime:
    """Dies with the policy. A monitor holds it weakly, and reads the meter that was added with it while it lives."""

    __slots__ = ("__weakref__",)


class _TrackedObject:
    """A new object for the collector to count."""


class GcPolicy:
    """Collects garbage while the event loop is idle, so that Python does it less often while messages are handled.

    While it is active:

    * What was alive at the start is left out of all collections (`gc.freeze`), after one full collection, which is
      before the work begins. Cycles among those objects that become garbage later are freed after `close`.
    * Python collects by itself only at `threshold` new objects. That bounds garbage while the loop is busy.
    * A timer collects the youngest objects when the loop is idle, or `max_delay` seconds after the last collection when
      it never is, if there are as many as Python would have collected at. Every eleventh time it takes the middle
      generation (an increment, where Python 3.14 collects in increments).
    * It never collects the oldest generation. After eleven collections of the middle one it has Python apply its own
      rule at such a moment: a full collection is made when what grew old since the last one is a quarter of what was.
    * A line in the log says every minute what collections there were (`leveret.gc`, INFO).

    Whether it helps depends on the program; measure before you keep it. Only one can be active in a process, because
    the collector is the process's. It needs CPython with the GIL: without one every collection is a full one.

    Args:
        settings: All options at once; the defaults when None.
        **options: Single options of `GcSettings`, over those of `settings`.

    Raises:
        ConfigurationError: An option is unknown, of the wrong type or out of range.

    Attributes:
        settings: What it was made with.

    Example:
        async with leveret.connect(url) as client:
            await client.declare(topology)
            async with leveret.GcPolicy(threshold=20_000) as policy:
                policy.attach(client)
                await client.consumer("orders", Order).run(handler)
    """

    _lock: ClassVar = threading.Lock()
    _active: ClassVar[GcPolicy | None] = None

    def __init__(self, settings: GcSettings | None = None, **options: Any) -> None:
        self.settings = (settings or GcSettings()).replace(**options)
        self._meters = tuple(_GenerationMeter() for _ in range(_GENERATIONS))
        self._lifetimes = tuple(_Lifetime() for _ in range(_GENERATIONS))
        self._monitors: list[Monitor] = []
        self._loop: asyncio.AbstractEventLoop
        self._timer: asyncio.Handle | None = None
        self._log_timer: asyncio.TimerHandle | None = None
        self._former = self._raised = (0, 0, 0)
        self._has_frozen = False
        # Since the next older generation was collected, or was due and Python left it.
        self._youngs = 0
        self._middles = 0
        # Times of `time.perf_counter`: when the collection that runs began, when the turn of the loop that is measured
        # began, and when a collection ended last.
        self._began_at: float | None = None
        self._turn_at = 0.0
        self._collected_at = 0.0

    def __repr__(self) -> str:
        return f"<GcPolicy {'active' if self.is_active else 'not active'} threshold={self.settings.threshold}>"

    @property
    def is_active(self) -> bool:
        """True from `start` to `close`."""
        return GcPolicy._active is self

    # ------------------------------------------------------------------ life

    def start(self) -> Self:
        """Begins; call it in the event loop, when what the program needs is loaded.

        With `freeze` it makes one full collection, which takes some milliseconds for each 100,000 objects. Where
        a program is frozen already, for example before a fork, it freezes nothing: `close` could not tell them apart.

        Returns:
            Itself.

        Raises:
            ConfigurationError: One is active already, the collector is switched off, or this Python has none like
                CPython's with the GIL.
        """
        loop = asyncio.get_running_loop()
        if sysconfig.get_config_var("Py_GIL_DISABLED") or not hasattr(gc, "freeze"):
            raise ConfigurationError("GcPolicy needs CPython with the GIL: elsewhere each collection is a full one")
        if not gc.isenabled() or gc.get_threshold()[0] <= 0:
            raise ConfigurationError("garbage collection is switched off (gc.disable or gc.set_threshold(0))")
        self._become_active(loop)
        former = gc.get_threshold()
        if self.settings.freeze and gc.get_freeze_count() <= _FROZEN_BY_PYTHON:
            gc.collect()
            gc.freeze()
            self._has_frozen = True
        self._former = former
        self._raised = (max(former[0], self.settings.threshold), *former[1:])
        self._youngs = self._middles = 0
        self._began_at = None
        self._collected_at = time.perf_counter()
        gc.callbacks.append(self._observe)
        gc.set_threshold(*self._raised)
        self._wait()
        self._log_timer = self._loop.call_later(self.settings.log_interval, self._log, self.statistics())
        return self

    def close(self) -> None:
        """Gives the collector its former thresholds, and what was frozen back to it; call it in the same event loop.

        Thresholds that the program has set meanwhile stay. A second call does nothing. The counters keep their values.
        """
        with GcPolicy._lock:
            if GcPolicy._active is not self:
                return
            GcPolicy._active = None
        self._restore()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _become_active(self, loop: asyncio.AbstractEventLoop) -> None:
        with GcPolicy._lock:
            other = GcPolicy._active
            # A policy whose loop is closed can no longer be closed by its program.
            if other is not None and not other._loop.is_closed():
                raise ConfigurationError("a GcPolicy is active in this process already; close it first")
            self._loop, GcPolicy._active = loop, self
        if other is not None:
            other._restore()

    def _restore(self) -> None:
        for timer in (self._timer, self._log_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._log_timer = None
        with contextlib.suppress(ValueError):  # the program may have cleared the list
            gc.callbacks.remove(self._observe)
        if gc.get_threshold() == self._raised:
            gc.set_threshold(*self._former)
        if self._has_frozen:
            self._has_frozen = False
            gc.unfreeze()
        self._monitors.clear()

    # ------------------------------------------------------------------ what it saw

    def attach(self, client: _HasMonitor) -> None:
        """Shows the counters among those of a client, and so to its metrics sinks, as the metrics `gc_...`.

        They are of the whole process. The client keeps them when the policy is gone. Again, it does nothing.

        Args:
            client: Usually a `Client`. While the policy is active, lines in the log say how many deliveries it
                acknowledged so far.
        """
        monitor = client.monitor
        if monitor in self._monitors:
            return
        self._monitors.append(monitor)
        for generation, (lifetime, meter) in enumerate(zip(self._lifetimes, self._meters, strict=True)):
            monitor.add(lifetime, "gc", str(generation), meter)

    def statistics(self) -> tuple[GcStatistics, ...]:
        """Returns the statistics so far; any thread may call it.

        Returns:
            The statistics of the generations 0, 1 and 2. An increment of Python 3.14 counts as generation 1.
        """
        return tuple(
            GcStatistics(meter.collections, meter.collected, meter.uncollectable, meter.seconds)
            for meter in self._meters
        )

    def _observe(self, phase: str, info: dict[str, int]) -> None:
        """Called by Python around each collection, in the thread that collects; collections do not overlap."""
        now = time.perf_counter()
        if phase == "start":
            self._began_at = now
            return
        generation = info["generation"]
        meter = self._meters[generation]
        meter.collections += 1
        meter.collected += info["collected"]
        meter.uncollectable += info["uncollectable"]
        if self._began_at is not None:
            meter.seconds += now - self._began_at
            self._began_at = None
        self._collected_at = now
        if generation == 0:
            self._youngs += 1
        else:
            self._youngs = 0
            self._middles = self._middles + 1 if generation == 1 else 0

    def _log(self, before: tuple[GcStatistics, ...]) -> None:
        after = self.statistics()
        parts = [
            f"generation {generation}: {new.collections - old.collections} collections, "
            f"{new.collected - old.collected} objects freed, {new.uncollectable - old.uncollectable} not, "
            f"{(new.seconds - old.seconds) * 1000:.1f} ms"
            for generation, (old, new) in enumerate(zip(before, after, strict=True))
        ]
        if self._monitors:
            samples = [sample for monitor in self._monitors for sample in monitor.snapshot()]
            acked = sum(sample.value for sample in samples if sample.metric.name == "deliveries_acked")
            parts.append(f"{acked} deliveries acknowledged so far")
        logger.info("garbage collection in %g s: %s", self.settings.log_interval, "; ".join(parts))
        self._log_timer = self._loop.call_later(self.settings.log_interval, self._log, after)

    # ------------------------------------------------------------------ when to collect, and what

    def _wait(self) -> None:
        self._timer = self._loop.call_later(self.settings.interval, self._look)

    def _look(self) -> None:
        # Less than this Python would have left alone, too.
        if gc.get_count()[0] <= self._former[0]:
            self._wait()
        else:
            self._timer = self._loop.call_soon(self._begin_turn)

    def _begin_turn(self) -> None:
        # From here to the next call_soon everything else that is ready has its turn, sockets included. How late a timer
        # is would say less: uvloop's clock has whole milliseconds.
        self._turn_at = time.perf_counter()
        self._timer = self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        now = time.perf_counter()
        is_idle = now - self._turn_at <= self.settings.idle_turn
        if is_idle or now - self._collected_at >= self.settings.max_delay:
            self._collect()
        self._wait()

    def _collect(self) -> None:
        _, middle_due, oldest_due = self._former
        if self._middles > (oldest_due or _DUE) and self._have_python_decide():
            self._middles = 0
            return
        gc.collect(1 if self._youngs >= (middle_due or _DUE) else 0)

    def _have_python_decide(self) -> bool:
        """Provokes a collection by Python's own rules; returns whether there was one.

        Without this there would be none for as long as the loop is often idle, because collections of ours keep the
        count of new objects below every threshold, and cycles that grew old would never be freed.
        """
        if gc.get_threshold() != self._raised:
            return False  # the program has set thresholds of its own
        before = self._collected_at
        gc.set_threshold(1, *self._former[1:])
        probes: list[_TrackedObject] = []
        while self._collected_at == before and len(probes) < _PROBES:
            probes.append(_TrackedObject())
        gc.set_threshold(*self._raised)
        return self._collected_at != before
