"""A consumer that stands in for another one, so that its queue is not deleted while that one takes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leveret.wire.content import append_settlement
from leveret.wire.numbers import BASIC_ACK

if TYPE_CHECKING:
    from leveret.connection.channel import Channel, ConsumerSink
    from leveret.errors import LeveretError
    from leveret.wire.runs import ContentRun

__all__ = ["StandIn"]


class StandIn:
    """Takes one message, and does not acknowledge it as long as it stands in, so that it gets no other.

    A broker deletes an auto-delete queue, with its messages, when its last consumer goes, and an expiring queue some
    time after. The message is handed on at once, between those of the other consumer: the order stays. When the channel
    is lost, the broker delivers it again.

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
        self._delivery_tags: list[int] = []

    async def begin(self) -> None:
        """Sends basic.qos and basic.consume, with acknowledgements."""
        await self._channel.basic_qos(1)
        await self._channel.basic_consume(self._queue, self, consumer_tag=self._tag)

    async def end(self) -> None:
        """Sends basic.cancel, and acknowledges the message."""
        await self._channel.basic_cancel(self._tag)
        for tag in self._delivery_tags:
            append_settlement(self._channel.connection.transport.out, self._channel.number, BASIC_ACK, tag)

    # ------------------------------------------------------------------ the channel calls these

    def delivered(self, run: ContentRun) -> None:
        """Hands the message on."""
        self._delivery_tags += [message.delivery_tag for message in run.messages]
        self._sink.delivered(run)

    def cancelled(self, consumer_tag: str) -> None:
        """Tells the consumer that the broker has cancelled it."""
        self._sink.cancelled(consumer_tag)

    def channel_lost(self, error: LeveretError) -> None:
        """Does nothing: the consumer is told by its channel."""
