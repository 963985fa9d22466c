"""A consumer that stands in for another one, so that its queue is not deleted while that one takes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leveret.wire.content import append_settlement
from leveret.wire.numbers import BASIC_ACK, BASIC_NACK, NACK_REQUEUE

if TYPE_CHECKING:
    from leveret.connection.channel import Channel, ConsumerSink
    from leveret.errors import LeveretError
    from leveret.wire.runs import ContentRun

__all__ = ["StandIn"]


class StandIn:
    """Takes one message, and keeps it until the consumer that it stands in for wants it.

    A broker deletes an auto-delete queue, with its messages, when its last consumer goes, and an expiring queue some
    time after. The message is the next one of the queue, so it is handed on before any other: the order stays.

    Args:
        channel: The consumer's channel.
        queue: The queue.
        tag: A consumer tag that the channel has not had yet.
        sink: Gets the message.
    """

    def __init__(self, channel: Channel, queue: str, tag: str, sink: ConsumerSink) -> None:
        self._channel = channel
        self._queue = queue
        self._tag = tag
        self._sink = sink
        self._runs: list[ContentRun] = []

    async def begin(self) -> None:
        """Sends basic.qos and basic.consume, with acknowledgements."""
        await self._channel.basic_qos(1)
        await self._channel.basic_consume(self._queue, self, consumer_tag=self._tag)

    def hand_on(self) -> None:
        """Gives the message to the sink; `end` acknowledges it, when deliveries come to the sink itself."""
        for run in self._runs:
            self._sink.delivered(run)

    async def end(self, *, handed_on: bool) -> None:
        """Sends basic.cancel, and settles the message."""
        await self._channel.basic_cancel(self._tag)
        for run in self._runs:
            for message in run.messages:
                code, bits = (BASIC_ACK, 0) if handed_on else (BASIC_NACK, NACK_REQUEUE)
                append_settlement(
                    self._channel.connection.transport.out, self._channel.number, code, message.delivery_tag, bits
                )

    # ------------------------------------------------------------------ the channel calls these

    def delivered(self, run: ContentRun) -> None:
        """Keeps the message."""
        self._runs.append(run)

    def cancelled(self, consumer_tag: str) -> None:
        """Tells the consumer that the broker has cancelled it."""
        self._sink.cancelled(consumer_tag)

    def channel_lost(self, error: LeveretError) -> None:
        """Does nothing: the consumer is told by its channel, and the broker has the message again."""
