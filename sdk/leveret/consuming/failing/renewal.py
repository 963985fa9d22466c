"""Further deliveries for a consumer whose prefetch is used up by messages that it holds."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from leveret.errors import LeveretError

if TYPE_CHECKING:
    from leveret.consuming.failing.held_messages import HeldMessages
    from leveret.consuming.subscription import Subscription
    from leveret.settings import ConsumerSettings
    from leveret.topology.declared import Declared

__all__ = ["Renewal"]

# A user looks for what happens to a consumer's messages under the consumer's name.
logger = logging.getLogger("leveret.consuming")

#: Seconds between two looks at whether a cancelled subscription is gone.
_STEP: Final = 0.01


class Renewal:
    """Renews the subscription of a consumer when held messages use up its prefetch, and withholds it when it is full.

    The broker counts a held message towards the prefetch of the subscription that brought it, and of no other. So a
    new subscription on the same channel brings as many messages as the prefetch, whatever is held.

    Args:
        subscription: The subscription.
        settings: The consumer's.
        declared: Says whether the queue is deleted with its last consumer.
        held: The consumer's held messages.

    Attributes:
        lock: Held while the subscription is renewed, so that a prefetch that is set meanwhile is not undone.
    """

    def __init__(
        self, subscription: Subscription, settings: ConsumerSettings, declared: Declared, held: HeldMessages
    ) -> None:
        self.lock = asyncio.Lock()
        self._subscription = subscription
        self._settings = settings
        self._declared = declared
        self._held = held
        self._task: asyncio.Task[None] | None = None
        # What was logged once.
        self._is_full_logged = False

    def withhold(self, is_withheld: bool) -> None:
        """Says whether deliveries are withheld, because as many messages are held as may be."""
        subscription = self._subscription
        if is_withheld and not self._is_full_logged:
            self._is_full_logged = True
            logger.warning(
                "queue %r: %d failed messages are held, which is the most; the consumer takes no more until one of "
                "them is handled or parked",
                subscription.queue,
                len(self._held),
            )
        if self._goes_with_consumer:
            return  # without renewals the prefetch is the limit
        if is_withheld:
            subscription.withhold(self._held)
        else:
            subscription.allow(self._held)

    def look(self) -> None:
        """Begins to renew the subscription when half of its prefetch is held.

        Messages that were not tried, because a circuit breaker was open, do not count: others would not be tried
        either.
        """
        subscription = self._subscription
        if self._task is not None or not subscription.tags or self._settings.ack not in ("coalesced", "each"):
            return
        if self._settings.exclusive and self._goes_with_consumer:
            return  # two cannot be, and without one the queue would be deleted
        tag = subscription.tags[-1]
        used = sum(message.consumer_tag == tag and message.failed_here > 0 for message in self._held)
        if used >= max(1, subscription.prefetch // 2):
            self._task = asyncio.get_running_loop().create_task(
                self._renew(), name=f"leveret: renew the subscription to {subscription.queue}"
            )

    async def close(self) -> None:
        """Ends a renewal that is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    @property
    def _goes_with_consumer(self) -> bool:
        return self._declared.is_transient(self._subscription.queue)

    async def _renew(self) -> None:
        try:
            async with self.lock:
                if self._settings.exclusive:
                    await self._begin_again()
                else:
                    await self._subscription.change_prefetch(self._subscription.prefetch)
        except LeveretError as error:
            # A lost channel is taken care of where its loss is noted.
            logger.warning("queue %r: the subscription was not renewed: %s", self._subscription.queue, error)
        finally:
            self._task = None
            # What was held meanwhile may have used up the new one.
            self._held.look()

    async def _begin_again(self) -> None:
        """Cancels the subscription of an exclusive consumer, and then subscribes again."""
        subscription = self._subscription
        subscription.withhold(self)
        try:
            while subscription.tags and subscription.wants_deliveries:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(_STEP)
        finally:
            subscription.allow(self)
