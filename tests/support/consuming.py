"""A broker, a network and a consumer's workers in simulated time, to see what a prefetch does."""

from __future__ import annotations

import random
from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.consuming.prefetch import AdaptivePrefetch

#: As the consumer does it: seconds that an acknowledgement waits at most, and the share of the prefetch that need not.
ACK_DELAY: Final = 0.005
ACK_SHARE: Final = 4
#: What the broker sends is read in pieces of at most so many.
_READ: Final = 16
#: Up to this share a way takes longer, at random.
_NOISE: Final = 0.2

_FINISHED, _ARRIVED, _ACKED, _FLUSH, _PUBLISHED, _BEGUN, _CANCELLED, _UPDATE = range(8)


class Seen(NamedTuple):
    """What was measured from one time to another.

    Attributes:
        rate: Messages finished per second.
        held: Deliveries that were not finished, on average over time.
        changes: How often the prefetch changed.
    """

    rate: float
    held: float
    changes: int


class Simulation:
    """Workers that take messages from a queue.

    A change of the prefetch is what the consumer does: basic.qos and its answer, a new consumer on the channel, and
    when that is there the old one is cancelled. What was delivered stays, and is finished first.

    Args:
        prefetch: A fixed one, or what decides.
        concurrency: How many workers.
        handler: Returns the seconds that a message takes, from a source of chance and the time.
        round_trip: Seconds to the broker and back.
        capacity: Deliveries that the broker sends in a second.
        arrivals: Messages that are published in a second; None for a queue that always has more.
    """

    def __init__(
        self,
        prefetch: int | AdaptivePrefetch,
        concurrency: int,
        handler: Callable[[random.Random, float], float],
        round_trip: float,
        *,
        capacity: float = 30_000.0,
        arrivals: Callable[[float], float] | None = None,
    ) -> None:
        self.now = 0.0
        self.controller = None if isinstance(prefetch, int) else prefetch
        self.prefetch = prefetch if isinstance(prefetch, int) else prefetch.limit
        self.concurrency, self.handler, self.arrivals = concurrency, handler, arrivals
        self.way, self.capacity = round_trip / 2, capacity
        self.services, self.network = random.Random(1), random.Random(2)
        self.events: list[tuple[float, int, int, int, int]] = []
        self.number = 0
        # The broker: what each consumer may still get, and what is in the queue.
        self.credits: dict[int, int] = {}
        self.queued = 0
        self.free_at = self.arrives_at = 0.0
        # The consumer; deliveries are numbered from 0 on.
        self.consumer = 0
        self.owners: list[int] = []
        self.done = bytearray()  # 1: finished, 2: acknowledged as well
        self.first = 0
        self.ready: list[int] = []
        self.buffer: deque[int] = deque()
        self.idle = concurrency
        self.timer = False
        # What is measured.
        self.finished = 0
        self.looked_at = self.idle_seconds = self.held_seconds = 0.0
        self.lowest = self.highest = self.unacknowledged = 0
        self.changes: list[tuple[float, int]] = []
        self._at(0.0, _BEGUN, 0, self.prefetch)
        if arrivals is not None:
            self._at(self.network.expovariate(arrivals(0.0)), _PUBLISHED)
        if self.controller is not None:
            self._at(0.0, _UPDATE)

    def _at(self, when: float, what: int, which: int = 0, count: int = 0) -> None:
        self.number += 1
        heappush(self.events, (when, self.number, what, which, count))

    def run(self, seconds: float = float("inf"), messages: int = 10**9) -> Seen:
        """Lets so much time pass, or until so many more messages are finished."""
        self._look()
        began, finished, held, changes = self.now, self.finished, self.held_seconds, len(self.changes)
        end, last = self.now + seconds, self.finished + messages
        events = self.events
        while events and self.finished < last:
            if events[0][0] > end:
                self.now = end
                break
            self.now, _, what, which, count = heappop(events)
            if what == _FINISHED:
                self._finish(which)
            elif what == _ARRIVED:
                self._arrive(which, count)
            elif what == _ACKED:
                if which in self.credits:
                    self.credits[which] += count
                    self._send(which)
            elif what == _FLUSH:
                self.timer = False
                self._flush(stragglers=True)
            elif what == _PUBLISHED:
                self.queued += 1
                for consumer in list(self.credits):
                    self._send(consumer)
                assert self.arrivals is not None
                self._at(self.now + self.network.expovariate(self.arrivals(self.now)), _PUBLISHED)
            elif what == _BEGUN:
                self.credits[which] = count
                self._send(which)
            elif what == _CANCELLED:
                self.credits.pop(which, None)
            else:
                self._update()
        self._look()
        passed = self.now - began
        return Seen(
            (self.finished - finished) / passed, (self.held_seconds - held) / passed, len(self.changes) - changes
        )

    def _look(self) -> None:
        passed = self.now - self.looked_at
        self.idle_seconds += passed * self.idle
        self.held_seconds += passed * (len(self.owners) - self.finished)
        self.looked_at = self.now

    def _send(self, consumer: int) -> None:
        count = self.credits[consumer]
        if self.arrivals is not None:
            count = min(count, self.queued)
            self.queued -= count
        self.credits[consumer] -= count
        while count > 0:
            piece = min(count, _READ)
            count -= piece
            self.free_at = max(self.free_at, self.now) + piece / self.capacity
            way = self.way * (1 + _NOISE * self.network.random())
            self.arrives_at = max(self.arrives_at, self.free_at + way)
            self._at(self.arrives_at, _ARRIVED, consumer, piece)

    def _arrive(self, consumer: int, count: int) -> None:
        self._look()
        self.lowest = min(self.lowest, len(self.buffer))
        begin = len(self.owners)
        self.owners.extend([consumer] * count)
        self.done.extend(bytes(count))
        self.buffer.extend(range(begin, begin + count))
        self.unacknowledged += count
        self.highest = max(self.highest, self.unacknowledged)
        while self.idle and self.buffer:
            self.idle -= 1
            self._work()

    def _work(self) -> None:
        self._at(self.now + self.handler(self.services, self.now), _FINISHED, self.buffer.popleft())

    def _finish(self, number: int) -> None:
        self._look()
        self.finished += 1
        self.done[number] = 1
        self.ready.append(number)
        if len(self.ready) >= max(1, self.prefetch // ACK_SHARE):
            self._flush()
        if self.ready and not self.timer:
            self.timer = True
            self._at(self.now + ACK_DELAY, _FLUSH)
        if self.buffer:
            self._work()
        else:
            self.idle += 1

    def _flush(self, *, stragglers: bool = False) -> None:
        done, first, end = self.done, self.first, len(self.done)
        while first < end and done[first]:
            first += 1
        self.first = first
        acked = self.ready if stragglers else [number for number in self.ready if number < first]
        self.ready = [] if stragglers else [number for number in self.ready if number >= first]
        by_consumer: dict[int, int] = {}
        for number in acked:
            by_consumer[self.owners[number]] = by_consumer.get(self.owners[number], 0) + 1
        self.unacknowledged -= len(acked)
        for consumer, count in by_consumer.items():
            self._at(self.now + self.way * (1 + _NOISE * self.network.random()), _ACKED, consumer, count)

    def _update(self) -> None:
        controller = self.controller
        assert controller is not None
        self._look()
        lowest = min(self.lowest, len(self.buffer))
        limit = controller.update(self.now, self.finished, self.idle_seconds, lowest, self.highest)
        self.lowest, self.highest = len(self.buffer), self.unacknowledged
        if limit != self.prefetch:
            self.changes.append((self.now, limit))
            old, self.consumer = self.consumer, self.consumer + 1
            self.prefetch = limit
            self._at(self.now + 3 * self.way, _BEGUN, self.consumer, limit)
            self._at(self.now + 5 * self.way, _CANCELLED, old)
        self._at(self.now + controller.INTERVAL, _UPDATE)
