"""The unacknowledged deliveries of a channel.

Deliveries are kept in the slices in which they were sent. An acknowledgement with `multiple` settles whole slices in
one step, and a single one searches among slices, not among messages.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from leveret.broker.queues import BrokerConsumer, BrokerQueue
    from leveret.wire.message import Message

__all__ = ["Piece", "Unacked"]

#: A delivery that continues a slice is added to it, if the slice is shorter than this.
_MERGE_COUNT: Final = 1024
#: Settled slices are removed only when there are more than this.
_TIDY_COUNT: Final = 64


class Piece:
    """Deliveries of one queue to one consumer, in order.

    Attributes:
        queue: The queue that they came from.
        consumer: The consumer that got them; None for basic.get.
        messages: The messages.
        sequences: Their sequence numbers in the queue.
        tags: Their delivery tags.
    """

    __slots__ = ("consumer", "messages", "queue", "sequences", "tags")

    def __init__(
        self,
        queue: BrokerQueue,
        consumer: BrokerConsumer | None,
        messages: list[Message],
        sequences: Sequence[int],
        tags: Sequence[int],
    ) -> None:
        self.queue = queue
        self.consumer = consumer
        self.messages = messages
        self.sequences = sequences
        self.tags = tags

    def singles(self) -> Iterator[Piece]:
        """Yields a piece for each message."""
        for i, message in enumerate(self.messages):
            yield Piece(self.queue, self.consumer, [message], self.sequences[i : i + 1], self.tags[i : i + 1])


class _Slice:
    """Deliveries with consecutive tags. Settled ones are None."""

    __slots__ = ("consumer", "first_tag", "live", "messages", "queue", "sequences", "start")

    def __init__(
        self,
        queue: BrokerQueue,
        consumer: BrokerConsumer | None,
        messages: list[Message],
        sequences: Sequence[int],
        first_tag: int,
    ) -> None:
        self.queue = queue
        self.consumer = consumer
        self.messages: list[Message | None] = [*messages]
        self.sequences = sequences
        self.first_tag = first_tag
        # All deliveries before this index are settled.
        self.start = 0
        # The number of unsettled deliveries.
        self.live = len(messages)

    def extend(self, messages: list[Message], sequences: Sequence[int]) -> bool:
        """Adds messages if they directly follow in the queue; returns False when they do not."""
        have = self.sequences
        if (
            len(self.messages) >= _MERGE_COUNT
            or not isinstance(have, range)
            or not isinstance(sequences, range)
            or have.stop != sequences.start
        ):
            return False
        self.messages += messages
        self.sequences = range(have.start, sequences.stop)
        self.live += len(messages)
        return True

    def peek(self, end: int) -> Piece:
        """Returns the unsettled deliveries before index `end`."""
        start = self.start
        live = [message for message in self.messages[start:end] if message is not None]
        sequences = self.sequences[start:end]
        tags: Sequence[int] = range(self.first_tag + start, self.first_tag + end)
        if len(live) != end - start:
            kept = [i for i in range(end - start) if self.messages[start + i] is not None]
            sequences = [sequences[i] for i in kept]
            tags = [tags[i] for i in kept]
        return Piece(self.queue, self.consumer, live, sequences, tags)

    def take_upto(self, end: int) -> Piece:
        """Settles the deliveries before index `end`."""
        piece = self.peek(end)
        self.messages[self.start : end] = [None] * (end - self.start)
        self.live -= len(piece.messages)
        self._skip(end)
        return piece

    def take_one(self, index: int, message: Message) -> Piece:
        """Settles `message`, the unsettled delivery at `index`."""
        self.messages[index] = None
        self.live -= 1
        if index == self.start:
            self._skip(index + 1)
        tag = self.first_tag + index
        return Piece(self.queue, self.consumer, [message], self.sequences[index : index + 1], range(tag, tag + 1))

    def _skip(self, start: int) -> None:
        messages = self.messages
        while start < len(messages) and messages[start] is None:
            start += 1
        self.start = start


class Unacked:
    """The unacknowledged deliveries of a channel, ordered by their tags."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._slices: list[_Slice] = []
        self._first_tags: list[int] = []
        # Slices before this index are settled.
        self._head = 0
        # Approximately how many slices after it are settled as well.
        self._settled = 0
        self._count = 0

    def __len__(self) -> int:
        """Returns how many deliveries are unacknowledged."""
        return self._count

    def add(
        self,
        queue: BrokerQueue,
        consumer: BrokerConsumer | None,
        messages: list[Message],
        sequences: Sequence[int],
        first_tag: int,
    ) -> None:
        """Adds deliveries. Their tags follow all earlier ones."""
        self._count += len(messages)
        if len(self._slices) > self._head:
            last = self._slices[-1]
            if (
                last.queue is queue
                and last.consumer is consumer
                and last.live
                and last.first_tag + len(last.messages) == first_tag
                and last.extend(messages, sequences)
            ):
                return
        self._slices.append(_Slice(queue, consumer, messages, sequences, first_tag))
        self._first_tags.append(first_tag)

    def take(self, tag: int, *, multiple: bool) -> list[Piece] | None:
        """Settles a delivery, or with `multiple` all up to it.

        Args:
            tag: The delivery tag; 0 with `multiple` means all (AMQP 0-9-1 section 1.8.3.13).
            multiple: True: settles all deliveries up to `tag`.

        Returns:
            The settled deliveries in order; None when `tag` is not outstanding, in which case nothing is settled.
        """
        if multiple and tag == 0:
            return self.take_all()
        at = bisect_right(self._first_tags, tag, lo=self._head) - 1
        if at < self._head:
            return None
        found = self._slices[at]
        index = tag - found.first_tag
        message = found.messages[index] if index < len(found.messages) else None
        if message is None:
            return None
        if multiple:
            pieces = [s.take_upto(len(s.messages)) for s in self._slices[self._head : at] if s.live]
            pieces.append(found.take_upto(index + 1))
            self._count -= sum(len(piece.messages) for piece in pieces)
        else:
            pieces = [found.take_one(index, message)]
            self._count -= 1
            if not found.live:
                self._settled += 1
        self._tidy()
        return pieces

    def take_all(self) -> list[Piece]:
        """Settles and returns all deliveries."""
        pieces = [s.take_upto(len(s.messages)) for s in self._slices[self._head :] if s.live]
        self._clear()
        return pieces

    def put_back(self, pieces: list[Piece]) -> None:
        """Adds pieces that `take` returned, as unacknowledged again (tx.rollback)."""
        outstanding = [s.peek(len(s.messages)) for s in self._slices[self._head :] if s.live]
        singles = [single for piece in (*outstanding, *pieces) for single in piece.singles()]
        singles.sort(key=lambda single: single.tags[0])
        self._clear()
        for single in singles:
            self.add(single.queue, single.consumer, single.messages, single.sequences, single.tags[0])

    def _tidy(self) -> None:
        slices = self._slices
        while self._head < len(slices) and not slices[self._head].live:
            self._head += 1
            self._settled = max(0, self._settled - 1)
        if self._head > _TIDY_COUNT and self._head * 2 > len(slices):
            del slices[: self._head]
            del self._first_tags[: self._head]
            self._head = 0
        if self._settled > _TIDY_COUNT and self._settled * 2 > len(slices):
            # A consumer that keeps one delivery and settles all others leaves many settled slices.
            self._slices = [s for s in slices[self._head :] if s.live]
            self._first_tags = [s.first_tag for s in self._slices]
            self._head = self._settled = 0
