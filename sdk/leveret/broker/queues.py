"""Queues: ready messages in order, consumers that take turns, and requeued messages.

Work is done for slices of messages, not for single ones. A message's place in its queue is its sequence number. For
messages that were never delivered the number follows from the index, so it costs nothing to publish or deliver them.
"""

from __future__ import annotations

import operator
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from leveret.broker.tables import rebuilt
from leveret.wire.encoding import FieldValue
from leveret.wire.header_bytes import replace_headers
from leveret.wire.message import redelivered_copy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from leveret.broker.arguments import Arguments, QueueOptions
    from leveret.broker.exchanges import Binding, Exchange
    from leveret.wire.message import Message

__all__ = ["BrokerConsumer", "BrokerQueue", "Deliverer", "Host", "Timer"]

#: The most messages of one slice. Larger slices are less fair and hardly faster.
SLICE_COUNT: Final = 256
#: The most bytes of bodies in a slice with more than one message, as a socket's write buffer holds 1 MiB.
SLICE_BYTES: Final = 1024 * 1024
#: The most messages that a queue delivers before other connections get their turn.
TURN_COUNT: Final = 4096
#: The capacity of a consumer without a limit; larger than any slice.
UNLIMITED: Final = 1 << 30

_body_size = operator.attrgetter("body_size")
_sequence = operator.itemgetter(0)


class Timer(Protocol):
    """The handle that `asyncio.loop.call_later` returns."""

    def cancel(self) -> None:
        """Prevents the call."""


class Host(Protocol):
    """The part of a virtual host that a queue uses."""

    def time(self) -> float:
        """Returns the seconds on a monotonic clock."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        """Calls back after `delay` seconds."""

    def wake(self, queue: BrokerQueue) -> None:
        """Schedules `dispatch` of a queue that may have something to deliver."""

    def dead_letter(self, queue: BrokerQueue, messages: list[Message], reason: str) -> None:
        """Schedules the dead-lettering of messages; it does not happen inside this call."""

    def delete_queue(self, queue: BrokerQueue) -> None:
        """Deletes the queue with its bindings."""


class Deliverer(Protocol):
    """The channel of a consumer."""

    def capacity(self, consumer: BrokerConsumer) -> int:
        """Returns how many messages the consumer may get now."""

    def deliver(self, consumer: BrokerConsumer, messages: list[Message], sequences: Sequence[int]) -> None:
        """Sends messages to the consumer and records them as unacknowledged."""

    def cancelled(self, consumer: BrokerConsumer) -> None:
        """Tells the client that the consumer's queue was deleted."""


class BrokerConsumer:
    """A consumer of one queue.

    Attributes:
        channel: The channel that sends its deliveries.
        tag: The consumer tag.
        queue: The queue.
        no_ack: True: deliveries need no acknowledgement.
        prefetch_count: The most unacknowledged deliveries; 0 for any number.
        priority: The priority; consumers with a higher one get messages first.
        unacked: The number of unacknowledged deliveries.
    """

    __slots__ = ("channel", "no_ack", "prefetch_count", "priority", "queue", "tag", "unacked")

    def __init__(
        self, channel: Deliverer, tag: str, queue: BrokerQueue, *, no_ack: bool, prefetch_count: int, priority: int
    ) -> None:
        self.channel = channel
        self.tag = tag
        self.queue = queue
        self.no_ack = no_ack
        self.prefetch_count = prefetch_count
        self.priority = priority
        self.unacked = 0


class BrokerQueue:
    """One queue.

    Args:
        name: The queue's name.
        vhost: The virtual host's name, for texts.
        host: The virtual host.
        options: The options in its arguments.
        arguments: The arguments of its declaration.
        durable: Stored and compared only: no queue outlives the process.
        auto_delete: Whether the queue is deleted with its last consumer.
        owner: The connection that it is exclusive to, or None.

    Attributes:
        inbound: Every binding of which this queue is the destination.
        exclusive_consumer: The consumer that excludes all others, or None.
        deleted: True after the queue was deleted. Messages that return to it are dropped.
    """

    def __init__(
        self,
        name: str,
        vhost: str,
        host: Host,
        options: QueueOptions,
        arguments: Arguments,
        *,
        durable: bool,
        auto_delete: bool,
        owner: object | None,
    ) -> None:
        self.name = name
        self.what = f"queue '{name}' in vhost '{vhost}'"
        self.host = host
        self.options = options
        self.arguments = arguments
        self.durable = durable
        self.auto_delete = auto_delete
        self.owner = owner
        self.inbound: dict[Binding, Exchange] = {}
        self.exclusive_consumer: BrokerConsumer | None = None
        self.deleted = False
        # Never delivered messages; the first one's sequence number is _next.
        self._ready: deque[Message] = deque()
        self._next = 0
        # Requeued messages, by descending sequence number. All of them come before those in _ready.
        self._returned: list[tuple[int, Message]] = []
        self._ready_bytes = 0
        # By sequence number, only for messages that have one: the expiration time, and the number of returns.
        self._deadlines: dict[int, float] = {}
        self._returns: dict[int, int] = {}
        # Consumers of one priority take turns; higher priorities stand first.
        self._lanes: list[tuple[int, deque[BrokerConsumer]]] = []
        self._consumer_count = 0
        # With x-single-active-consumer: the consumer that gets the messages.
        self._active: BrokerConsumer | None = None
        self._ttl_timer: Timer | None = None
        self._ttl_due = 0.0
        self._expiry_timer: Timer | None = None
        # Without these, publishing only appends to a deque.
        self._limited = options.max_length is not None or options.max_length_bytes is not None
        self._counts_returns = options.queue_type == "quorum"
        self.used()

    def __len__(self) -> int:
        """Returns how many messages are ready."""
        return len(self._ready) + len(self._returned)

    @property
    def consumer_count(self) -> int:
        """The number of consumers."""
        return self._consumer_count

    @property
    def next_sequence(self) -> int:
        """The sequence number of the next published message."""
        return self._next + len(self._ready)

    # ------------------------------------------------------------------ messages in

    def publish(self, messages: list[Message], expirations: list[int | None] | None = None) -> int:
        """Appends messages.

        Args:
            messages: The published messages, in order.
            expirations: The milliseconds of each message's own expiration; None when no message has one.

        Returns:
            How many messages were accepted. `reject-publish` refused the rest, at the end of `messages`.
        """
        if self.deleted:
            return len(messages)
        if self._limited and self.options.overflow != "drop-head":
            return self._publish_within_limits(messages, expirations)
        self._append(messages, expirations)
        if self._limited:
            # Consumers come first, as in RabbitMQ: messages that they take do not count.
            self.dispatch()
            self._drop_head()
        elif self._lanes or self._deadlines:
            self.host.wake(self)
        return len(messages)

    def _append(self, messages: list[Message], expirations: list[int | None] | None) -> None:
        if expirations is not None or self.options.message_ttl_ms is not None:
            self._set_deadlines(len(messages), expirations)
        if self._limited:
            self._ready_bytes += sum(map(_body_size, messages))
        self._ready.extend(messages)

    def _set_deadlines(self, count: int, expirations: list[int | None] | None) -> None:
        now = self.host.time()
        ttl = self.options.message_ttl_ms
        first = self.next_sequence
        for index in range(count):
            own = None if expirations is None else expirations[index]
            # The shorter of both applies (RabbitMQ: time-to-live).
            lifetime = own if ttl is None else ttl if own is None else min(own, ttl)
            if lifetime is not None:
                self._deadlines[first + index] = now + lifetime / 1000

    def _publish_within_limits(self, messages: list[Message], expirations: list[int | None] | None) -> int:
        taken = 0
        while taken < len(messages):
            room = self._room(messages, taken)
            if room == 0:
                self.dispatch()
                room = self._room(messages, taken)
                if room == 0:
                    break
            upto = taken + room
            self._append(messages[taken:upto], None if expirations is None else expirations[taken:upto])
            self.host.wake(self)
            taken = upto
        if taken < len(messages) and self.options.overflow == "reject-publish-dlx":
            self.host.dead_letter(self, messages[taken:], "maxlen")
        return taken

    def _room(self, messages: list[Message], start: int) -> int:
        count = len(messages) - start
        if self.options.max_length is not None:
            count = max(0, min(count, self.options.max_length - len(self)))
        if self.options.max_length_bytes is not None:
            free = self.options.max_length_bytes - self._ready_bytes
            for index in range(count):
                free -= messages[start + index].body_size
                if free < 0:
                    return index
        return count

    def _drop_head(self) -> None:
        dropped: list[Message] = []
        most = self.options.max_length
        most_bytes = self.options.max_length_bytes
        while len(self) and (
            (most is not None and len(self) > most) or (most_bytes is not None and self._ready_bytes > most_bytes)
        ):
            messages, sequences = self._take(1)
            self.forget(sequences)
            dropped += messages
        if dropped:
            self.host.dead_letter(self, dropped, "maxlen")

    # ------------------------------------------------------------------ messages out

    def _take(self, count: int) -> tuple[list[Message], Sequence[int]]:
        """Takes up to `count` messages from the head. The queue must not be empty."""
        messages: list[Message]
        sequences: Sequence[int]
        returned = self._returned
        if returned:
            entries = returned[: -count - 1 : -1]
            del returned[-count:]
            messages = [message for _, message in entries]
            sequences = [sequence for sequence, _ in entries]
        else:
            ready = self._ready
            if count >= len(ready):
                messages = list(ready)
                ready.clear()
            else:
                popleft = ready.popleft
                messages = [popleft() for _ in range(count)]
            first = self._next
            self._next = first + len(messages)
            sequences = range(first, self._next)
        if self._limited:
            self._ready_bytes -= sum(map(_body_size, messages))
        return messages, sequences

    def _untake(self, messages: list[Message], sequences: Sequence[int]) -> None:
        """Puts back the last of the messages that `_take` returned."""
        if self._limited:
            self._ready_bytes += sum(map(_body_size, messages))
        if isinstance(sequences, range):
            self._ready.extendleft(reversed(messages))
            self._next -= len(messages)
        else:
            self._returned.extend(zip(reversed(sequences), reversed(messages), strict=True))

    def _slice(self, count: int) -> tuple[list[Message], Sequence[int]]:
        """Takes up to `count` messages within the limits of a slice."""
        messages, sequences = self._take(min(count, SLICE_COUNT))
        if len(messages) > 1 and sum(map(_body_size, messages)) > SLICE_BYTES:
            size = keep = 0
            for message in messages:
                size += message.body_size
                if keep and size > SLICE_BYTES:
                    break
                keep += 1
            self._untake(messages[keep:], sequences[keep:])
            messages, sequences = messages[:keep], sequences[:keep]
        if self._returns:
            messages = [self._counted(m, self._returns.get(s)) for m, s in zip(messages, sequences, strict=True)]
        return messages, sequences

    def _counted(self, message: Message, count: int | None) -> Message:
        """Returns the message with the header `x-delivery-count` of quorum queues."""
        if count is None:
            return message
        copy = rebuilt(
            message,
            exchange=message.exchange,
            routing_key=message.routing_key,
            raw_properties=replace_headers(message.raw_properties, {"x-delivery-count": FieldValue("l", count)}),
        )
        return redelivered_copy(copy) if count else copy

    def get(self) -> tuple[Message, int] | None:
        """Takes one message for basic.get.

        Returns:
            The message and its sequence number, or None when the queue is empty.
        """
        self.used()
        # Consumers get the messages that were published before this call first.
        self.dispatch()
        if not len(self):
            return None
        (message,), (sequence,) = self._slice(1)
        if self._counts_returns and sequence not in self._returns:
            # RabbitMQ 3.10 sends a count of 0 for basic.get, and none to consumers.
            message = self._counted(message, 0)
        return message, sequence

    def dispatch(self) -> bool:
        """Delivers ready messages to consumers that can take them, in fair slices.

        Returns:
            True when it stopped to give other queues their turn.
        """
        if self._deadlines:
            self._expire()
        turn = TURN_COUNT
        for _, lane in self._lanes:
            while (waiting := len(self)) and (able := self._able(lane)):
                if turn <= 0:
                    return True
                share = -(-waiting // len(able))
                last = able[0]
                for consumer in able:
                    if not len(self):
                        break
                    messages, sequences = self._slice(min(consumer.channel.capacity(consumer), share))
                    if consumer.no_ack:
                        self.forget(sequences)
                    turn -= len(messages)
                    last = consumer
                    consumer.channel.deliver(consumer, messages, sequences)
                # The consumer that got the last message is the last in turn for the next one.
                lane.rotate(-1 - lane.index(last))
        if self._deadlines:
            self._expire()
        return False

    def _able(self, lane: deque[BrokerConsumer]) -> list[BrokerConsumer]:
        """Returns the consumers of a lane that can take a message now, in turn."""
        if self.options.single_active_consumer:
            active = self._active
            if active is None or active not in lane or active.channel.capacity(active) <= 0:
                return []
            return [active]
        return [consumer for consumer in lane if consumer.channel.capacity(consumer) > 0]

    def purge(self) -> int:
        """Drops all ready messages; returns how many there were."""
        self.dispatch()
        count = len(self)
        while len(self):
            _, sequences = self._take(len(self))
            self.forget(sequences)
        return count

    # ------------------------------------------------------------------ messages back

    def forget(self, sequences: Iterable[int]) -> None:
        """Drops the records of messages that left the queue for good."""
        if self._deadlines:
            for sequence in sequences:
                self._deadlines.pop(sequence, None)
        if self._returns:
            for sequence in sequences:
                self._returns.pop(sequence, None)

    def reject(self, messages: list[Message], sequences: Sequence[int]) -> None:
        """Dead-letters messages that a consumer refused."""
        self.forget(sequences)
        if not self.deleted:
            self.host.dead_letter(self, messages, "rejected")

    def requeue(self, messages: list[Message], sequences: Sequence[int], *, lost: bool) -> None:
        """Puts messages back to their places, marked as redelivered.

        Args:
            messages: The messages in order.
            sequences: Their sequence numbers.
            lost: True when their consumer is gone; False when it requeued them.
        """
        if self.deleted:
            return
        entries = [
            (sequence, message if message.redelivered else redelivered_copy(message))
            for sequence, message in zip(sequences, messages, strict=True)
        ]
        if self._counts_returns:
            entries = self._count_returns(entries, lost=lost)
        if self._limited:
            self._ready_bytes += sum(message.body_size for _, message in entries)
        self._returned.extend(entries)
        # Timsort merges the sorted parts, so a large queue of returned messages stays cheap.
        self._returned.sort(key=_sequence, reverse=True)
        if self._limited and self.options.overflow == "drop-head":
            self.dispatch()
            self._drop_head()
        self.host.wake(self)

    def _count_returns(self, entries: list[tuple[int, Message]], *, lost: bool) -> list[tuple[int, Message]]:
        limit = self.options.delivery_limit
        kept = []
        for sequence, message in entries:
            count = self._returns.get(sequence, 0) + 1
            if limit is not None and count > limit:
                self.forget((sequence,))
                self.host.dead_letter(self, [message], "delivery_limit")
                continue
            if limit is None and not lost:
                # RabbitMQ 3.10: a quorum queue without a limit puts requeued messages at its end, so that one message
                # that no consumer can handle does not stop the others.
                self.forget((sequence,))
                sequence = self.next_sequence
                self._ready.append(message)
                self._ready_bytes += message.body_size if self._limited else 0
            else:
                kept.append((sequence, message))
            self._returns[sequence] = count
        return kept

    # ------------------------------------------------------------------ time

    def _head(self) -> int:
        return self._returned[-1][0] if self._returned else self._next

    def _expire(self) -> None:
        """Dead-letters expired messages at the head, and sets the timer for the next one.

        As in RabbitMQ's classic queues, a message behind one with a later expiration expires when it reaches the head.
        """
        now = self.host.time()
        expired: list[Message] = []
        due = None
        while len(self):
            due = self._deadlines.get(self._head())
            if due is None or due > now:
                break
            messages, sequences = self._take(1)
            self.forget(sequences)
            expired += messages
            due = None
        if due is not None and (self._ttl_timer is None or due < self._ttl_due):
            if self._ttl_timer is not None:
                self._ttl_timer.cancel()
            self._ttl_due = due
            self._ttl_timer = self.host.call_later(due - now, self._ttl_passed)
        if expired:
            self.host.dead_letter(self, expired, "expired")

    def _ttl_passed(self) -> None:
        self._ttl_timer = None
        self.host.wake(self)

    def used(self) -> None:
        """Restarts the time after which an unused queue is deleted (RabbitMQ: queue TTL)."""
        if self.options.expires_ms is None:
            return
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
            self._expiry_timer = None
        if not self._consumer_count and not self.deleted:
            self._expiry_timer = self.host.call_later(self.options.expires_ms / 1000, self._unused)

    def _unused(self) -> None:
        self._expiry_timer = None
        if not self._consumer_count and not self.deleted:
            self.host.delete_queue(self)

    # ------------------------------------------------------------------ consumers

    def add_consumer(self, consumer: BrokerConsumer, *, exclusive: bool) -> None:
        """Adds a consumer. It may get messages from now on."""
        for priority, lane in self._lanes:
            if priority == consumer.priority:
                lane.append(consumer)
                break
        else:
            self._lanes.append((consumer.priority, deque((consumer,))))
            self._lanes.sort(key=_sequence, reverse=True)
        self._consumer_count += 1
        if self._active is None:
            self._active = consumer
        if exclusive:
            self.exclusive_consumer = consumer
        self.used()
        self.host.wake(self)

    def remove_consumer(self, consumer: BrokerConsumer) -> None:
        """Removes a consumer. An auto-delete queue is deleted with its last one."""
        if self.deleted:
            return
        self._discard(consumer)
        self.used()
        if self.auto_delete and not self._consumer_count:
            self.host.delete_queue(self)
        else:
            self.host.wake(self)

    def _discard(self, consumer: BrokerConsumer) -> None:
        for index, (priority, lane) in enumerate(self._lanes):
            if priority == consumer.priority:
                lane.remove(consumer)
                if not lane:
                    del self._lanes[index]
                break
        self._consumer_count -= 1
        if self.exclusive_consumer is consumer:
            self.exclusive_consumer = None
        if self._active is consumer:
            self._active = self._lanes[0][1][0] if self._lanes else None

    def delete(self) -> None:
        """Ends the queue: cancels its consumers and timers, and drops its messages."""
        self.deleted = True
        for timer in (self._ttl_timer, self._expiry_timer):
            if timer is not None:
                timer.cancel()
        self._ttl_timer = self._expiry_timer = None
        lanes, self._lanes = self._lanes, []
        self._consumer_count = 0
        self._active = self.exclusive_consumer = None
        self._ready.clear()
        self._returned.clear()
        self._deadlines.clear()
        self._returns.clear()
        for _, lane in lanes:
            for consumer in lane:
                consumer.channel.cancelled(consumer)
