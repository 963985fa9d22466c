"""`prefetch="auto"`: measures a consumer's workers, and applies what `AdaptivePrefetch` decides."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, NamedTuple

from leveret.consuming.prefetch import AdaptivePrefetch
from leveret.errors import LeveretError

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.consuming.subscription import Subscription
    from leveret.monitoring.meters import ConsumerMeter
    from leveret.settings import ConsumerSettings

__all__ = ["Load", "PrefetchTuner"]

logger = logging.getLogger("leveret.consuming")

#: Seconds from the first deliveries to the first look: it finds messages that are handled at once.
_FIRST_LOOK: Final = 0.01


class Load(NamedTuple):
    """How busy the workers of a consumer are.

    Attributes:
        unstarted: Messages that no worker has begun with.
        waiting: Workers that wait for a message.
        idle_seconds: Seconds that all workers together waited so far.
        lowest: The fewest messages that no worker had begun with, since the last look.
        highest: The most deliveries that the broker counted as unsettled, since the last look.
    """

    unstarted: int
    waiting: int
    idle_seconds: float
    lowest: int
    highest: int


class PrefetchTuner:
    """Changes the prefetch of one consumer from time to time.

    Args:
        queue: The queue.
        settings: The consumer's.
        loop: The event loop.
        meter: Has the deliveries that are not settled, and the times of handlers.
        measure: Returns the load now, and begins to look for the lowest and highest anew.
        rested: Called when it does not look any more, until `begin`.

    Attributes:
        initial: The prefetch to begin with.
    """

    def __init__(
        self,
        queue: str,
        settings: ConsumerSettings,
        loop: asyncio.AbstractEventLoop,
        meter: ConsumerMeter,
        measure: Callable[[], Load],
        rested: Callable[[], None],
    ) -> None:
        workers = settings.concurrency
        self._controller = AdaptivePrefetch(settings.prefetch_min, settings.prefetch_max, workers, 2 * workers)
        self.initial = self._controller.limit
        self._queue = queue
        self._loop = loop
        self._meter = meter
        self._measure = measure
        self._rested = rested
        self._timer: asyncio.TimerHandle | None = None
        self._change: asyncio.Task[None] | None = None
        # What handlers had taken, in nanoseconds, and how many had ended, when it last looked.
        self._handling = self._handled = 0
        self._delay = _FIRST_LOOK

    def begin(self, subscription: Subscription) -> None:
        """Looks at the load again and again, until there is none; called when there are deliveries.

        Args:
            subscription: Changes the prefetch.
        """
        if self._timer is None:
            self._timer = self._loop.call_later(self._delay, self._look, subscription)
            self._delay = AdaptivePrefetch.INTERVAL

    def _handling_seconds(self) -> float | None:
        """Returns the seconds that handlers took on average since the last look; None when none has ended."""
        times = self._meter.handler_time
        total, count = times.total - self._handling, times.count - self._handled
        self._handling, self._handled = times.total, times.count
        return total / count * 1e-9 if count else None

    def _look(self, subscription: Subscription) -> None:
        """Tells the controller what was measured, and does what it says."""
        self._timer = None
        if not subscription.wants_deliveries:
            self._rested()
            return
        acks, load = self._meter.acks, self._measure()
        limit = self._controller.update(
            self._loop.time(),
            acks.acked + acks.rejected,
            load.idle_seconds,
            load.lowest,
            load.highest,
            self._handling_seconds(),
        )
        if limit != subscription.prefetch and self._change is None and subscription.tags:
            logger.debug("queue %r: the prefetch goes from %d to %d", self._queue, subscription.prefetch, limit)
            self._change = self._loop.create_task(
                self._apply(limit, subscription), name=f"leveret: prefetch {self._queue}"
            )
        if acks.unsettled or acks.ready or not load.waiting:
            self.begin(subscription)
        else:
            self._rested()

    async def _apply(self, prefetch: int, subscription: Subscription) -> None:
        try:
            await subscription.change_prefetch(prefetch)
        except LeveretError as error:
            # The consumer's user is told of a lost channel in any case.
            logger.warning("queue %r: the prefetch could not be changed to %d: %s", self._queue, prefetch, error)
        finally:
            self._change = None

    async def close(self) -> None:
        """Ends the measurements, and a change that is under way."""
        if self._timer is not None:
            self._timer.cancel()
        if self._change is not None:
            self._change.cancel()
            await asyncio.wait([self._change])
