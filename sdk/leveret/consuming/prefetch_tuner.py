"""`prefetch="auto"`: measures a consumer's workers, and applies what `AdaptivePrefetch` decides."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, NamedTuple

from leveret.consuming.prefetch import AdaptivePrefetch
from leveret.errors import LeveretError

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.consuming.subscription import Subscription
    from leveret.monitoring.meters import ConsumerMeter
    from leveret.settings import ConsumerSettings

__all__ = ["Load", "PrefetchTuner"]

logger = logging.getLogger("leveret.consuming")


class Load(NamedTuple):
    """How busy the workers of a consumer are.

    Attributes:
        unstarted: Messages that no worker has begun with.
        waiting: Workers that wait for a message.
        idle_seconds: Seconds that all workers together waited so far.
    """

    unstarted: int
    waiting: int
    idle_seconds: float


class PrefetchTuner:
    """Changes the prefetch of one consumer from time to time.

    Args:
        queue: The queue.
        settings: The consumer's.
        loop: The event loop.
        meter: Has the deliveries that are not settled.
        measure: Returns the load now.

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
    ) -> None:
        workers = settings.concurrency
        self._controller = AdaptivePrefetch(settings.prefetch_min, settings.prefetch_max, workers, 2 * workers)
        self.initial = self._controller.limit
        self._queue = queue
        self._loop = loop
        self._meter = meter
        self._measure = measure
        self._timer: asyncio.TimerHandle | None = None
        self._change: asyncio.Task[None] | None = None
        # Since the last look: the fewest messages that waited, and the most that the broker counted.
        self._lowest = self._highest = 0

    def delivered(self, count: int, subscription: Subscription) -> None:
        """Notes a read that brought deliveries, and looks at the load a little later.

        Args:
            count: How many.
            subscription: Changes the prefetch.
        """
        acks = self._meter.acks
        self._lowest = min(self._lowest, self._measure().unstarted - count)
        self._highest = max(self._highest, acks.unsettled + acks.ready)
        if self._timer is None:
            self._timer = self._loop.call_later(AdaptivePrefetch.INTERVAL, self._look, subscription)

    def _look(self, subscription: Subscription) -> None:
        """Tells the controller what was measured, and does what it says."""
        self._timer = None
        if not subscription.wants_deliveries:
            return
        acks, load = self._meter.acks, self._measure()
        limit = self._controller.update(
            self._loop.time(),
            acks.acked + acks.rejected,
            load.idle_seconds,
            min(self._lowest, load.unstarted),
            self._highest,
        )
        self._lowest, self._highest = load.unstarted, acks.unsettled + acks.ready
        if limit != subscription.prefetch and self._change is None and subscription.tags:
            logger.debug("queue %r: the prefetch goes from %d to %d", self._queue, subscription.prefetch, limit)
            self._change = self._loop.create_task(
                self._apply(limit, subscription), name=f"leveret: prefetch {self._queue}"
            )
        if self._highest or not load.waiting:
            self._timer = self._loop.call_later(AdaptivePrefetch.INTERVAL, self._look, subscription)

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
