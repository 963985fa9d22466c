"""The place of a consumer in a stream, which takes no message back and does not remember who has read how far.

RabbitMQ answers basic.reject, basic.nack, `ack="none"` and basic.get on a stream with 540 and ends the connection.
"""

from __future__ import annotations

import datetime as dt
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from leveret.errors import ChannelClosed, ConfigurationError, ConnectionClosed, LeveretError, TableSyntaxError
from leveret.wire.content import append_settlement
from leveret.wire.encoding import FieldValue
from leveret.wire.numbers import BASIC, BASIC_ACK, BASIC_CONSUME, NOT_IMPLEMENTED, PRECONDITION_FAILED

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.connection.connection import Connection
    from leveret.consuming.channel_deliveries import ChannelDeliveries
    from leveret.wire.message import Message
    from leveret.wire.runs import ContentRun

__all__ = ["StreamPosition", "confirm", "offset_of"]

#: The header of a delivery with its offset, and the argument of basic.consume with the offset to begin at.
OFFSET: Final = "x-stream-offset"


def offset_of(message: Message) -> int | None:
    """Returns the offset of a delivery in its stream, or None when it says none."""
    try:
        value: object = message.headers.get(OFFSET)
    except TableSyntaxError:
        return None
    return value if type(value) is int and value >= 0 else None


class StreamPosition:
    """Knows whether a consumer's queue is a stream, and where its next subscription has to begin.

    A queue is a stream when the consumer has `stream_offset`, when the client has declared it as one, or when a
    delivery says its offset. A publisher can write that header, too, so the last has to be confirmed by the broker.

    The next subscription begins behind the deliveries that are here. After a loss, it begins at the lowest offset that
    was not handled, so each message is handled at least once.

    Args:
        queue: The queue.
        offset: `ConsumerSettings.stream_offset`.
        is_declared: Returns whether the client has declared the queue as a stream.

    Attributes:
        is_watching: `delivered` has to be told of the next deliveries.
    """

    def __init__(self, queue: str, offset: int | str | None, is_declared: Callable[[], bool]) -> None:
        self.is_watching = True
        self._queue = queue
        self._offset = offset
        self._is_declared = is_declared
        # What a delivery has said, and what the broker has said to that.
        self._is_seen = False
        self._is_confirmed: bool | None = None
        # The offset behind the last delivery, and the lowest one that was put back since the last subscription.
        self._next: int | None = None
        self._put_back: int | None = None
        # Messages that were put back while the broker had not confirmed that this is a stream.
        self._unsettled: list[Message] = []
        # When the first subscription began, for one that starts at the end of the stream.
        self._begun: dt.datetime | None = None
        # The deliveries of the present channel.
        self._deliveries: ChannelDeliveries | None = None
        # First delivery tag, its offset, and how many follow with a tag and an offset one higher each.
        self._runs: deque[tuple[int, int, int]] = deque()

    @property
    def is_stream(self) -> bool:
        """True when the queue is a stream, as far as this side knows."""
        return self.is_certain or (self._is_seen and self._is_confirmed is None)

    @property
    def is_certain(self) -> bool:
        """True when the queue is a stream, and that was not said by a delivery only."""
        return self._is_confirmed or self._offset is not None or self._is_declared()

    @property
    def needs_confirmation(self) -> bool:
        """True when a delivery has said that the queue is a stream, and nothing else has."""
        return self._is_seen and self._is_confirmed is None and not self.is_certain

    def check_takes_nothing_back(self, what: str, option: str) -> None:
        """Refuses what RabbitMQ would end the connection for.

        Raises:
            ConfigurationError: The queue is a stream.
        """
        if self.is_stream:
            raise ConfigurationError(
                f"queue {self._queue!r} is a stream, and {what} is not possible with a stream: RabbitMQ would end the "
                "connection",
                option=option,
            )

    def confirmed(self, is_stream: bool) -> None:
        """Notes what the broker says: whether it takes an offset for this queue."""
        self._is_confirmed = is_stream
        unsettled, self._unsettled = self._unsettled, []
        if is_stream:
            self._settle(unsettled)
            return
        self._next = self._put_back = None
        self._runs.clear()
        self.is_watching = False
        for message in unsettled:
            message.release()

    # ------------------------------------------------------------------ deliveries

    def opened(self, deliveries: ChannelDeliveries) -> None:
        """Notes that the consumer has a channel, on which delivery tags begin anew."""
        self._deliveries = deliveries
        self._unsettled.clear()
        self._runs.clear()
        self.is_watching = self._is_confirmed is not False

    def delivered(self, messages: list[Message]) -> None:
        """Notes the deliveries of a read; of a queue that is no stream, only the first ones on a channel."""
        first = offset_of(messages[0])
        if first is None:
            self.is_watching = self._is_seen
            return
        self._is_seen = True
        last = offset_of(messages[-1])
        tag = messages[0].delivery_tag
        if last == first + len(messages) - 1 and messages[-1].delivery_tag == tag + len(messages) - 1:
            # Both count upwards, so all between are known.
            self._add(tag, first, len(messages))
        else:
            for message in messages:
                offset = offset_of(message)
                if offset is not None:
                    self._add(message.delivery_tag, offset, 1)

    def _add(self, tag: int, offset: int, count: int) -> None:
        runs, deliveries = self._runs, self._deliveries
        if runs and runs[-1][0] + runs[-1][2] == tag and runs[-1][1] + runs[-1][2] == offset:
            runs[-1] = (*runs[-1][:2], runs[-1][2] + count)
        else:
            runs.append((tag, offset, count))
        self._next = offset + count
        while deliveries is not None and len(runs) > 1 and runs[0][0] + runs[0][2] <= deliveries.acks.first:
            runs.popleft()

    def put_back(self, messages: list[Message]) -> None:
        """Takes messages that were not handled and are dropped here: the next subscription begins with them."""
        messages = [message for message in messages if not message.is_settled]
        offsets = [offset for message in messages if (offset := offset_of(message)) is not None]
        if offsets:
            self._put_back = min(offsets if self._put_back is None else [self._put_back, *offsets])
        if self.is_certain:
            self._settle(messages)
        else:
            # For another queue, basic.ack would be the end of them.
            self._unsettled += messages

    def _settle(self, messages: list[Message]) -> None:
        """Acknowledges messages that were not handled, as a stream keeps them anyway.

        Unsettled ones would hold back the acknowledgement of those behind them, and RabbitMQ closes the channel after
        some time.
        """
        deliveries = self._deliveries
        for message in messages:
            if deliveries is not None and deliveries.alive and deliveries.acks.reject(message.delivery_tag):
                append_settlement(deliveries.out, deliveries.channel, BASIC_ACK, message.delivery_tag)

    def lost(self) -> None:
        """Notes that the channel is gone, and with it the deliveries that were not handled."""
        if self._deliveries is None or not self.is_stream:
            return
        tag = self._deliveries.acks.first_unhandled()
        for first, offset, count in self._runs:
            if tag < first + count:
                # A tag between two runs was no delivery with an offset.
                self._next = offset + max(0, tag - first)
                break
        self._deliveries = None
        self._runs.clear()

    # ------------------------------------------------------------------ subscriptions

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of the next basic.consume, which say where to begin."""
        if self._put_back is not None:
            self._next = self._put_back if self._next is None else min(self._next, self._put_back)
            self._put_back = None
        if not self.is_stream:
            return {}
        if self._next is not None:
            return {OFFSET: FieldValue("l", self._next)}
        if self._begun is not None and self._offset in (None, "next"):
            # Nothing has come yet, so only the time says where the end of the stream was.
            return {OFFSET: self._begun}
        return {} if self._offset is None else {OFFSET: self._offset}

    def begun(self) -> None:
        """Notes that the broker has answered basic.consume."""
        if self._begun is None:
            self._begun = dt.datetime.now(dt.UTC)

    def explained(self, error: LeveretError, *, no_ack: bool) -> LeveretError:
        """Looks at the error that came instead of the answer to basic.consume.

        Args:
            error: The error.
            no_ack: The deliveries were to come without acknowledgements.

        Returns:
            A `ConfigurationError` when no attempt can succeed, or the error itself.
        """
        if not isinstance(error, (ChannelClosed, ConnectionClosed)):
            return error
        if (error.class_id, error.method_id) != (BASIC, BASIC_CONSUME):
            return error
        explained = None
        if no_ack and error.reply_code == NOT_IMPLEMENTED:
            explained = ConfigurationError(
                f"queue {self._queue!r} cannot be consumed with ack='none', as a stream cannot: {error}", option="ack"
            )
        elif error.reply_code == PRECONDITION_FAILED and OFFSET in error.reply_text:
            if self._offset is None:
                self.confirmed(is_stream=False)
            else:
                explained = ConfigurationError(
                    f"queue {self._queue!r} is no stream, so it takes no stream_offset: {error}", option="stream_offset"
                )
        if explained is None:
            return error
        explained.__cause__ = error
        return explained


class _Unwanted:
    """The sink of a consumer that only asks a question: a stream keeps what it delivers."""

    def delivered(self, run: ContentRun) -> None:
        """Drops deliveries."""

    def cancelled(self, consumer_tag: str) -> None:
        """Does nothing."""

    def channel_lost(self, error: LeveretError) -> None:
        """Does nothing: the error is raised where the answer is awaited."""


async def confirm(position: StreamPosition, queue: str, consumer_tag: str, connection: Connection) -> None:
    """Asks the broker whether a queue is a stream: no other queue takes an offset.

    Args:
        position: Is told of the answer. It is told nothing when there is none.
        queue: The queue.
        consumer_tag: For the consumer that asks, on a channel of its own: RabbitMQ closes it to say no.
        connection: The connection.
    """
    try:
        channel = await connection.channel()
        try:
            await channel.basic_qos(1)
            await channel.basic_consume(queue, _Unwanted(), consumer_tag=consumer_tag, arguments={OFFSET: "next"})
            position.confirmed(is_stream=True)
        finally:
            await channel.close()
    except LeveretError as error:
        position.explained(error, no_ack=False)
