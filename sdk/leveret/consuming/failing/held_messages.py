"""Failed messages that the consumer holds, unsettled, until their next attempt: where a copy is not possible."""

from __future__ import annotations

import enum
import heapq
from typing import TYPE_CHECKING, Final

from leveret.consuming.channel_deliveries import reserve, restore
from leveret.protocol.transitions import moved

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping, Sequence

    from leveret.monitoring.meters import ConsumerMeter
    from leveret.wire.message import Message

__all__ = ["INTAKE_TRANSITIONS", "LONGEST_HOLD", "HeldMessages", "Intake", "hold_delay"]

#: The longest wait in seconds. RabbitMQ closes the channel of a delivery that is not settled within 30 minutes.
LONGEST_HOLD: Final = 600.0
#: Seconds between two looks at whether the deliveries that are here have been handled.
_LOOK_AGAIN: Final = 0.05


class Intake(enum.Enum):
    """Which messages a consumer with held messages takes."""

    OPEN = "deliveries come and are handled"
    FULL = "as many are held as may be: nothing is handled, and no deliveries come"
    CLEARING = "deliveries that are here are handled, and no more come"


#: The intakes that may follow each.
INTAKE_TRANSITIONS: Final[Mapping[Intake, frozenset[Intake]]] = {
    Intake.OPEN: frozenset({Intake.FULL}),
    Intake.FULL: frozenset({Intake.CLEARING, Intake.OPEN}),
    Intake.CLEARING: frozenset({Intake.OPEN, Intake.FULL}),
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

    A held message is reserved: nothing else settles it. At most `limit` are held while further ones are handled. At
    that many the consumer rests, and takes no more deliveries until one is due and those that are here were handled.
    Handlers that are at work then may still fail: their messages are held, too.

    Args:
        loop: The event loop, for its clock and one timer.
        meter: Its `held` is how many there are.
        limit: Returns how many may be held.
        unstarted: Returns how many messages wait for a handler.
        give: Puts messages that are due before those that wait for a handler.
        rest: Called with whether workers shall take no messages.
        withhold: Called with whether the broker shall send no deliveries.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        meter: ConsumerMeter,
        *,
        limit: Callable[[], int],
        unstarted: Callable[[], int],
        give: Callable[[list[Message]], None],
        rest: Callable[[bool], None],
        withhold: Callable[[bool], None],
    ) -> None:
        self._loop = loop
        self._meter = meter
        self._limit = limit
        self._unstarted = unstarted
        self._give = give
        self._rest = rest
        self._withhold = withhold
        # (when it is due, a number that tells those of one time apart, message), the next one first.
        self._heap: list[tuple[float, int, Message]] = []
        self._number = 0
        self._timer: asyncio.TimerHandle | None = None
        self.intake = Intake.OPEN

    def __len__(self) -> int:
        return len(self._heap)

    def __contains__(self, message: object) -> bool:
        return any(held is message for _, _, held in self._heap)

    def hold(self, message: Message, delay: float) -> None:
        """Holds a message for so many seconds, at most `LONGEST_HOLD`."""
        reserve(message)  # does nothing when its copy was being published
        self._number += 1
        heapq.heappush(self._heap, (self._loop.time() + min(delay, LONGEST_HOLD), self._number, message))
        self._look()

    def take(self) -> list[Message]:
        """Takes all messages, which can be settled again, in the order in which they came to be held."""
        messages = [message for _, _, message in sorted(self._heap, key=lambda held: held[1])]
        self._heap.clear()
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
        stay = {id(message) for message in kept([message for _, _, message in self._heap])}
        self._heap = [held for held in self._heap if id(held[2]) in stay]
        heapq.heapify(self._heap)
        self._look()

    # ------------------------------------------------------------------ inside

    def _look(self) -> None:
        """Gives back what is due, and computes everything that depends on how many are held."""
        due: list[Message] = []
        now = self._loop.time()
        while self._heap and self._heap[0][0] <= now:
            due.append(heapq.heappop(self._heap)[2])
        self._meter.held = len(self._heap)
        if due:
            for message in due:
                restore(message)
            self._give(due)
        self._change_intake()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.intake is Intake.CLEARING:
            self._timer = self._loop.call_later(_LOOK_AGAIN, self._look)
        elif self._heap:
            self._timer = self._loop.call_at(self._heap[0][0], self._look)

    def _change_intake(self) -> None:
        before = self.intake
        if len(self._heap) >= self._limit():
            after = Intake.FULL
        elif before is not Intake.OPEN and self._unstarted():
            after = Intake.CLEARING
        else:
            after = Intake.OPEN
        if after is not before:
            self._become(after)

    def _become(self, after: Intake) -> None:
        before = self.intake
        self.intake = moved(INTAKE_TRANSITIONS, before, after)
        if after is Intake.FULL or before is Intake.FULL:
            self._rest(after is Intake.FULL)
        if after is Intake.OPEN or before is Intake.OPEN:
            self._withhold(after is not Intake.OPEN)
