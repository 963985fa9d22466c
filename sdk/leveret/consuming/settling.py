"""Settling deliveries one by one, as the verbs of a message ask for it, and those that are handed off."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from leveret.consuming.failing.error_policy import checked_delay
from leveret.wire.content import append_settlement
from leveret.wire.numbers import BASIC_NACK, BASIC_REJECT, NACK_REQUEUE, REJECT_REQUEUE

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from leveret.consuming.channel_deliveries import Acknowledger, ChannelDeliveries
    from leveret.consuming.failing.actions import FailureActions
    from leveret.consuming.streams import StreamPosition
    from leveret.consuming.subscription import Subscription
    from leveret.monitoring.meters import ConsumerMeter
    from leveret.wire.message import Message

#: Without acknowledgements no more than this many times the prefetch may wait.
_MOST_WAITING: Final = 10

__all__ = ["Handoff", "Moved", "Settled", "Settler", "Unlimited"]


class Settled:
    """The result of `ack`, `requeue`, `release` and `dead_letter`, and of `retry` and `park` that took nothing over.

    True when the call settled the message, false when it was settled before or its channel is gone. It may be awaited
    and then waits for nothing: the acknowledgement leaves with the next write, and AMQP does not answer it.
    """

    __slots__ = ("_settled",)

    def __init__(self, settled: bool) -> None:
        self._settled = settled

    def __bool__(self) -> bool:
        return self._settled

    def __await__(self) -> Generator[Any, None, bool]:
        yield from ()
        return self._settled

    def __repr__(self) -> str:
        return f"Settled({self._settled})"


_YES, _NO = Settled(True), Settled(False)


class Moved:
    """The result of `retry` and `park` that took a message over: true, and waits for the end when it is awaited.

    Args:
        task: Publishes the copy and acknowledges the message, or has the consumer hold it; None when that is done.
    """

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[None] | None) -> None:
        self._task = task

    def __bool__(self) -> bool:
        return True

    def __await__(self) -> Generator[Any, None, bool]:
        if self._task is not None:
            # Not the task itself: cancelling one that waits must not break the move off.
            yield from asyncio.wait((self._task,)).__await__()
        return True

    def __repr__(self) -> str:
        return f"Moved({'done' if self._task is None or self._task.done() else 'under way'})"


class Settler:
    """Settles messages of one consumer one by one.

    Args:
        acks: Acknowledges them.
        meter: Counts them.
        failures: Moves those that are to be retried or parked, and notes those that are rejected.
        check_loop: Raises when it is called in another thread or event loop than the connection's.
        position: Says whether the queue is a stream.
        no_ack: Deliveries are not acknowledged, so there is nothing to settle.
        each: Write each acknowledgement at once.
    """

    def __init__(
        self,
        acks: Acknowledger,
        meter: ConsumerMeter,
        failures: FailureActions,
        check_loop: Callable[[], None],
        position: StreamPosition,
        *,
        no_ack: bool,
        each: bool,
    ) -> None:
        self._acks = acks
        self._meter = meter
        self._failures = failures
        self._position = position
        self._check_loop = check_loop
        self._no_ack = no_ack
        self._each = each
        if not no_ack and not each:
            acks.settled = _YES

    def settle(self, deliveries: ChannelDeliveries, message: Message, verb: str, detail: Any) -> Settled | Moved:
        """Does what a verb of `Message` says; see there."""
        if verb in ("retry", "park"):
            return self._move(message, verb, detail)
        if not deliveries.alive or self._no_ack:
            self._meter.stale += not deliveries.alive
            return _NO
        self._check_loop()
        tag, window = message.delivery_tag, deliveries.acks
        if verb == "ack":
            if not window.ack(tag):
                return _NO
            self._meter.settled_time.record_since(message.received_at)
            if self._each:
                deliveries.flush(stragglers=True)
            else:
                self._acks.write_in_time()
            return _YES
        self._position.check_takes_nothing_back(verb, verb)
        if not window.reject(tag):
            return _NO
        self._meter.settled_time.record_since(message.received_at)
        if verb == "dead_letter":
            append_settlement(deliveries.out, deliveries.channel, BASIC_REJECT, tag)
            self._failures.note_rejected(message, detail)
        elif verb == "requeue":
            append_settlement(deliveries.out, deliveries.channel, BASIC_REJECT, tag, REJECT_REQUEUE)
            self._meter.requeued += 1
        else:
            append_settlement(deliveries.out, deliveries.channel, BASIC_NACK, tag, NACK_REQUEUE)
            self._meter.released += 1
        return _YES

    def _move(self, message: Message, verb: str, detail: Any) -> Settled | Moved:
        delay = checked_delay("delay", detail) if verb == "retry" else None
        self._check_loop()
        if not self._failures.claim(message):
            self._meter.stale += 1
            return _NO
        if delay is not None:
            return Moved(self._failures.retry(message, delay))
        return Moved(self._failures.park(message, detail))

    def acknowledge(self, messages: list[Message]) -> int:
        """Acknowledges those of some messages that are not settled, and writes that at once.

        Returns:
            How many it acknowledged.
        """
        deliveries = self._acks.current
        if deliveries is None or not deliveries.alive or self._no_ack:
            return 0
        self._check_loop()
        count = 0
        for message in messages:
            if not message.is_settled and deliveries.acks.ack(message.delivery_tag):
                count += 1
                self._meter.settled_time.record_since(message.received_at)
        deliveries.flush()
        self._acks.write_in_time()
        return count


class Handoff:
    """Acknowledges deliveries before they are handled, as long as not too many of them are unfinished.

    Args:
        acks: Acknowledges them.
        size: How many acknowledged messages may be unfinished (`handoff_size`).
    """

    def __init__(self, acks: Acknowledger, size: int) -> None:
        self._acks = acks
        self._size = size
        # Delivery tags that are not acknowledged yet, because too many messages are unfinished.
        self._withheld: deque[int] = deque()

    @property
    def is_full(self) -> bool:
        """True when deliveries are not acknowledged until others are finished."""
        return bool(self._withheld)

    def delivered(self, messages: Iterable[Message], unstarted: int, running: int) -> None:
        """Takes new deliveries over.

        Args:
            messages: The deliveries.
            unstarted: How many messages wait, with these.
            running: How many are being worked on.
        """
        self._withheld.extend(message.delivery_tag for message in messages)
        self.taken(unstarted, running)

    def taken(self, unstarted: int, running: int) -> None:
        """Acknowledges as many as may be unfinished."""
        unfinished = unstarted + running
        deliveries = self._acks.current
        if deliveries is None:
            return
        room = self._size - (unfinished - len(self._withheld))
        while self._withheld and room > 0:
            deliveries.acks.finish(self._withheld.popleft())
            room -= 1
        self._acks.write_in_time()

    def forget(self) -> None:
        """Forgets the deliveries of a channel that is gone."""
        self._withheld.clear()


class Unlimited:
    """Takes no more deliveries while too many wait: without acknowledgements the broker knows no limit.

    Reading goes on meanwhile, because others need what comes on the connection. What the broker has sent before it
    answers basic.cancel is still taken.

    Args:
        subscription: Has its deliveries withheld.

    Attributes:
        is_full: True when no deliveries are wanted.
    """

    def __init__(self, subscription: Subscription) -> None:
        self.is_full = False
        self._subscription = subscription

    def delivered(self, messages: Iterable[Message], unstarted: int, running: int) -> None:
        """Notes that so many messages wait; arguments as those of `Handoff.delivered`."""
        if not self.is_full and unstarted > _MOST_WAITING * self._subscription.prefetch:
            self.is_full = True
            self._subscription.withhold(self)

    def taken(self, unstarted: int, running: int) -> None:
        """Notes that a message was taken, and so many are left."""
        if unstarted <= self._subscription.prefetch:
            self.is_full = False
            self._subscription.allow(self)

    def forget(self) -> None:
        """Does nothing: what the broker has forgotten is handled all the same."""
