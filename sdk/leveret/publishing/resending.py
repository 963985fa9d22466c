"""Sending again: what has no outcome goes to the next channel, in its order, before anything new."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from leveret.publishing.outcomes import late

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.connection.connection import Connection
    from leveret.publishing.confirms import ConfirmWindow
    from leveret.publishing.culprits import Culprits
    from leveret.publishing.outcomes import TicketBook
    from leveret.publishing.publish_batch import PublishBatch
    from leveret.publishing.publishing import Ticket

__all__ = ["Resender"]

#: How many publishings are written before the socket is looked at.
_PART: Final = 100


class Resender:
    """Writes the publishings without an outcome to a new channel.

    Args:
        window: The publishings without an outcome.
        culprits: Says how many of them may be in flight at once.
        tickets: Tells when they have their outcomes.
        hand_out: Completes finished tickets.
        confirm_timeout: Seconds that the confirms of a part may take, where the next part waits for them.
    """

    def __init__(
        self,
        window: ConfirmWindow,
        culprits: Culprits,
        tickets: TicketBook,
        hand_out: Callable[[list[Ticket] | None], None],
        confirm_timeout: float,
    ) -> None:
        self._window = window
        self._culprits = culprits
        self._tickets = tickets
        self._hand_out = hand_out
        self._confirm_timeout = confirm_timeout

    async def write_all(self, batch: PublishBatch, connection: Connection) -> None:
        """Writes all of them; when this returns, new publishings may follow.

        Args:
            batch: Where they are written.
            connection: The channel's connection.
        """
        window, culprits = self._window, self._culprits
        self._hand_out(window.renumber())
        while True:
            following = self._next()
            part = culprits.part(following)
            if part:
                culprits.sending(following)
                batch.resend(part, finish=False)
                self._hand_out(window.expire(0))
                await self._outcomes(window.resend_at)
                culprits.passed()
            elif batch.resend(_PART):
                break
            await connection.transport.drain()
            await connection.wait_unblocked()
        self._hand_out(window.expire(0))  # what did not fit

    def _next(self) -> int:
        """The first publishing that has no outcome and was not written to this channel."""
        window = self._window
        tag = window.resend_at
        while tag < window.next_delivery_tag and not window.is_open(tag):
            tag += 1
        return tag

    async def _outcomes(self, delivery_tag: int) -> None:
        """Waits until everything before this publishing has its outcome, at most `confirm_timeout` seconds."""
        ended = self._tickets.ended(delivery_tag)
        try:
            async with asyncio.timeout(self._confirm_timeout):
                await ended
        except TimeoutError:
            error = late("confirm_timeout", self._confirm_timeout)
            self._hand_out(self._window.expire(delivery_tag - 1, error))
        finally:
            self._tickets.wake()  # takes it off the list
