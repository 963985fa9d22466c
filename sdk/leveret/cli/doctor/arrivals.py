"""The messages that arrive in a queue of the examination."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from leveret.errors import ConsumerCancelled, LeveretError, again

if TYPE_CHECKING:
    from leveret.wire.message import Message
    from leveret.wire.runs import ContentRun

__all__ = ["Arrivals"]


class Arrivals:
    """Gets the deliveries of a channel, without any of a consumer's retries; a `ConsumerSink`."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[float, Message] | LeveretError] = asyncio.Queue()

    async def next(self) -> tuple[float, Message]:
        """Waits for a message; the caller sets the deadline.

        Returns:
            When it arrived, by `time.perf_counter`, and the message.

        Raises:
            LeveretError: The channel was closed, or the broker cancelled the consumer.
        """
        arrived = await self._queue.get()
        if isinstance(arrived, LeveretError):
            raise again(arrived)
        return arrived

    def delivered(self, run: ContentRun) -> None:
        """Messages came."""
        now = time.perf_counter()
        for message in run.messages:
            self._queue.put_nowait((now, message))

    def cancelled(self, consumer_tag: str) -> None:
        """The broker cancelled the consumer."""
        self._queue.put_nowait(ConsumerCancelled("the broker cancelled the consumer", consumer_tag=consumer_tag))

    def channel_lost(self, error: LeveretError) -> None:
        """The channel was closed."""
        self._queue.put_nowait(error)
