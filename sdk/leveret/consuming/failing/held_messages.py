"""Failed messages that the consumer holds, unsettled, until their next attempt: where a copy is not possible."""

from __future__ import annotations

import enum
import heapq
from typing import TYPE_CHECKING, Final

from leveret.consuming.channel_deliveries import reserve, restore
from leveret.protocol.transitions import moved

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from leveret.consuming.failing.renewal import Renewal
    from leveret.monitoring.meters import ConsumerMeter
    from leveret.wire.message import Message

__all__ = ["INTAKE_TRANSITIONS", "LONGEST_HOLD", "MOST_BYTES", "MOST_HELD", "HeldMessages", "Intake", "hold_delay"]

#: The longest wait in seconds. RabbitMQ closes the channel of a delivery that is not settled within 30 minutes.
LONGEST_HOLD: Final = 600.0
#: More than half of the prefetch is held up to so many messages, and so many bytes of bodies and properties.
MOST_HELD: Final = 1000
MOST_BYTES: Final = 64 * 1024 * 1024
#: Seconds between two looks at whether the deliveries that are here have been handled.
_LOOK_AGAIN: Final = 0.05


class Intake(enum.Enum):
    """Whether a consumer with held messages gets deliveries. Those that are here are handled in any case."""

    OPEN = "deliveries come"
    FULL = "as many are held as may be: no deliveries come"


#: The intakes that may follow each.
INTAKE_TRANSITIONS: Final[Mapping[Intake, frozenset[Intake]]] = {
    Intake.OPEN: frozenset({Intake.FULL}),
    Intake.FULL: frozenset({Intake.OPEN}),
}


def hold_delay(delays: Sequence[float], attempts: int) -> float:
    """Returns the seconds that a message is held: its delay and, beyond the last one, twice as long each time.

    Args:
        delays: The delays of its retries, at least one.
        attempts: How often it had failed before.
    """
    if attempts < len(delays):
        return min(delays[attempts], LONGEST_HOLD)
    doublings = min(attempts - len(delays) + 1, 16)  # more would not be used
    return min(delays[-1] * 2.0**doublings, LONGEST_HOLD)


class HeldMessages:
    """Holds failed messages of one consumer, and gives each back to the workers when it is due.

    A held message is reserved: nothing else settles it. Half of the prefetch may be held in any case, and more up to
    `MOST_HELD` messages and `MOST_BYTES`. Then no more deliveries come until fewer are held, and those that are here
    were begun with. Those are handled all the same, and the ones that fail are held, too.

    Args:
        loop: The event loop, for its clock and one timer.
        meter: Its `held` is how many there are.
        share: Returns how many may be held in any case.
        unstarted: Returns how many messages wait for a handler.
        give: Puts messages that are due behind those that wait for a handler.
        renewal: Returns what has the broker send more when held messages use up the prefetch, and none when FULL.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        meter: ConsumerMeter,
        *,
        share: Callable[[], int],
        unstarted: Callable[[], int],
        give: Callable[[list[Message]], None],
        renewal: Callable[[], Renewal],
    ) -> None:
        self._loop = loop
        self._meter = meter
        self._share = share
        self._unstarted = unstarted
        self._give = give
        self._renewal = renewal
        # (when it is due, a number that tells those of one time apart, message), the next one first.
        self._heap: list[tuple[float, int, Message]] = []
        self._number = 0
        self._bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self.intake = Intake.OPEN

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Message]:
        return (message for _, _, message in self._heap)

    def __contains__(self, message: object) -> bool:
        return any(held is message for held in self)

    def hold(self, message: Message, delay: float) -> None:
        """Holds a message for so many seconds, at most `LONGEST_HOLD`."""
        reserve(message)  # does nothing when its copy was being published
        self._number += 1
        heapq.heappush(self._heap, (self._loop.time() + min(delay, LONGEST_HOLD), self._number, message))
        self._bytes += _size(message)
        self.look()

    def take(self) -> list[Message]:
        """Takes all messages, which can be settled again, in the order in which they came to be held."""
        messages = [message for _, _, message in sorted(self._heap, key=lambda held: held[1])]
        self._heap.clear()
        self._bytes = 0
        for message in messages:
            restore(message)
        self._meter.held = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.intake is not Intake.OPEN:
            self._become(Intake.OPEN)
        return messages

    def forget(self, kept: Callable[[list[Message]], list[Message]]) -> None:
        """Forgets the messages of a channel that is gone.

        Args:
            kept: Returns those of some messages that the broker does not deliver again: they are held on.
        """
        stay = {id(message) for message in kept(list(self))}
        self._heap = [held for held in self._heap if id(held[2]) in stay]
        heapq.heapify(self._heap)
        self._bytes = sum(_size(message) for message in self)
        self.look()

    def look(self) -> None:
        """Gives back what is due, and computes everything that depends on how many are held."""
        due: list[Message] = []
        now = self._loop.time()
        while self._heap and self._heap[0][0] <= now:
            message = heapq.heappop(self._heap)[2]
            self._bytes -= _size(message)
            restore(message)
            due.append(message)
        self._meter.held = len(self._heap)
        if due:
            self._give(due)
        self._change_intake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.intake is Intake.FULL and not self._is_full:
            self._timer = self._loop.call_later(_LOOK_AGAIN, self.look)
        elif self._heap:
            self._timer = self._loop.call_at(self._heap[0][0], self.look)

    # ------------------------------------------------------------------ inside

    @property
    def _is_full(self) -> bool:
        count = len(self._heap)
        return (count >= MOST_HELD or self._bytes >= MOST_BYTES) and count >= self._share()

    def _change_intake(self) -> None:
        if self._is_full:
            after = Intake.FULL
        elif self.intake is Intake.FULL and self._unstarted():
            # Each new subscription brings as many as the prefetch, so those of the last one have to be gone before.
            after = Intake.FULL
        else:
            after = Intake.OPEN
        if after is not self.intake:
            self._become(after)
        if after is Intake.OPEN and self._heap:
            self._renewal().look()

    def _become(self, after: Intake) -> None:
        self.intake = moved(INTAKE_TRANSITIONS, self.intake, after)
        self._renewal().withhold(after is Intake.FULL)


def _size(message: Message) -> int:
    """Returns the bytes that are kept of a message: none of a body that was too large."""
    return len(message.raw_properties) + (0 if message.body is None else message.body_size)
