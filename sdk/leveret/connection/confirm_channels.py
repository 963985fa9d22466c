"""Channels in confirm mode that closed producers leave to the next ones."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.connection.channel import Channel
    from leveret.errors import LeveretError
    from leveret.wire.runs import ContentRun, SettlementRun

__all__ = ["ConfirmChannels"]


class ConfirmChannels:
    """The idle channels in confirm mode of one connection.

    A producer that is made for each request would open and close a channel for each message, which is three round
    trips. Only a channel whose publishings are all confirmed comes here; `Channel.published` says how many there were,
    because the broker goes on counting (RabbitMQ: publisher confirms).

    An idle channel counts against `channel_max` only until another user of the connection needs its place.

    Args:
        limit: The most idle channels; those that come when there are so many are not taken.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._idle: list[Channel] = []

    def __len__(self) -> int:
        return len(self._idle)

    def take(self) -> Channel | None:
        """Returns the channel that came last, or None. The caller becomes its publisher at once."""
        return self._idle.pop() if self._idle else None

    def give(self, channel: Channel) -> bool:
        """Takes an open channel whose publishings are all confirmed; returns whether it did."""
        if len(self._idle) >= self._limit or not channel.is_open:
            return False
        channel.publisher = self
        self._idle.append(channel)
        return True

    def make_way(self, gone: Callable[[Channel], object]) -> bool:
        """Closes an idle channel so that its number becomes free.

        Args:
            gone: Called when the number is free, or the connection is lost.

        Returns:
            False when there is none.
        """
        channel = self.take()
        if channel is None:
            return False
        channel.publisher = None
        channel.on_end = gone
        channel.abandon()
        return True

    async def free_number(self, seconds: float) -> bool:
        """Closes an idle channel, and waits for its number; returns False when there is none, or no answer came."""
        gone = asyncio.Event()
        if not self.make_way(lambda _: gone.set()):
            return False
        try:
            async with asyncio.timeout(seconds):
                await gone.wait()
        except TimeoutError:
            return False
        return True

    # ------------------------------------------------------------------ called by the channels (PublisherSink)

    def settled(self, run: SettlementRun) -> None:
        """Ignores a confirm of something that is confirmed already, as producers do."""

    def returned(self, run: ContentRun) -> None:
        """Ignores a message that comes back after its confirm, as producers do."""

    def channel_lost(self, error: LeveretError) -> None:
        """Forgets the channels that are closed."""
        self._idle = [channel for channel in self._idle if channel.is_open]
