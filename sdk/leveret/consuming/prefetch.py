"""How many deliveries a broker may send ahead: by a formula, or by what the consumer measures."""

from __future__ import annotations

import math
from typing import Final

from leveret.errors import ConfigurationError

__all__ = ["AdaptivePrefetch", "prefetch_for"]

#: The largest prefetch of the formula, and of "auto". RabbitMQ's own tests find nothing to gain above some hundred.
_MAXIMUM: Final = 1000

#: A measurement takes at least so many seconds, and so many messages (twice as many as there are workers, if that is
#: more). Where messages are few it ends after the longer time, when each worker had one on average.
_LEAST_SECONDS: Final = 0.2
_LEAST_COUNT: Final = 20
_LONG_SECONDS: Final = 1.0
#: Workers may stand idle for this share of their time before more is asked for. Up to the second share that is the
#: edge, where a short measurement is as often wrong as right. Below the third one a smaller prefetch was enough, even
#: if a larger one would bring more.
_TOO_IDLE: Final = 0.08
_CLEARLY_IDLE: Final = 0.2
_IDLE: Final = 0.065
#: When workers do less than by this factor with the prefetch before, then a larger one was not in vain.
_NO_LESS: Final = 1.25
#: Above this share, or with this share of the prefetch never used, something has changed, and nothing waits for a hold.
_CLEAR: Final = 0.5
#: One step up is at most by this factor, and goes so far beyond what the measurement asks for: acknowledgements are
#: collected until a share of the prefetch is ready, so those of a larger one take longer to leave. What is too much is
#: given up again.
_LARGEST_STEP: Final = 4.0
_BEYOND: Final = 1.25
#: Work in proportion to the prefetch has exponent 1; from this one on a larger prefetch is worth it. Near the edge a
#: share of what workers were idle is enough.
_WORTH: Final = 0.12
_WORTH_IDLE: Final = 1 / 3
#: With this factor a larger prefetch is worth it at once; smaller gains are measured for a longer time.
_CLEARLY_WORTH: Final = 1.5
#: Seconds from an acknowledgement to the delivery that it allows, at most. When more deliveries are missing than can be
#: on their way for so long, the queue is empty.
_FARTHEST: Final = 0.25
#: What all workers handle in so many seconds may wait here in any case, up to so many messages: it is gone before
#: anybody could miss it, and each read, acknowledgement and change of task serves many messages.
_QUICK_SECONDS: Final = 0.001
_MOST_QUICK: Final = 100
#: Seconds after a trial that brought nothing until the next; twice as many after each, up to the longest.
_HOLD: Final = 10.0
_LONGEST_HOLD: Final = 160.0


def prefetch_for(target_rate: float, processing_time: float) -> int:
    """Computes a prefetch from a rate and the time that one message takes (Little's law).

    It is the number of messages that are being worked on at once at that rate, rounded up, so at least as many workers
    (`concurrency`) are needed. The way to the broker and back is not in it: where it counts, add it to the time.

    Args:
        target_rate: Messages per second, 0 or more.
        processing_time: Seconds per message, 0 or more.

    Returns:
        `target_rate * processing_time`, at least 1 and at most 1000.

    Raises:
        ConfigurationError: An argument is no finite number or is negative; `option` names it.

    Example:
        >>> prefetch_for(1000, 0.1)
        100
    """
    rate = _amount("target_rate", target_rate)
    seconds = _amount("processing_time", processing_time)
    # Rounded first: 300 * 0.1 is a little more than 30.
    return max(1, math.ceil(round(min(rate * seconds, float(_MAXIMUM)), 6)))


class AdaptivePrefetch:
    """A prefetch that is as small as it can be while workers have something to do.

    With too small a prefetch workers wait for the broker. With too large a one messages wait in the process, where
    other consumers cannot take them, and have to be redelivered after a crash. How long workers were idle and how many
    deliveries were never needed says which it is. While workers wait for the broker, their work is in proportion to
    the prefetch (Little's law), so the share of time that they were idle says how much more is needed. The prefetch
    falls by the backlog that was always there. Now and then a little less is tried, and kept if workers do about as
    much.

    More is kept only if it brought enough more work: when the queue is empty, or the broker or this process is at its
    limit, workers are idle with any prefetch. A broker that stands still for a moment can make it grow in vain; the
    trials of less give that up. Trials that change nothing become rare, so it settles. After a change it waits until
    the deliveries of the time before are finished.

    Messages that are handled in microseconds are not worth that care: as many as are handled within a millisecond, but
    not more than 100, are always let in.

    It reads no clock and counts nothing: both are passed in. Input that cannot be true (not finite, negative, or going
    back) changes nothing, and a measurement begins anew.

    Args:
        minimum: The lowest prefetch, 1 or more; `concurrency` when that is larger.
        maximum: The highest prefetch; `minimum` or `concurrency` when those are larger.
        concurrency: How many workers there are, 1 or more.
        initial: The first prefetch, brought within the bounds.

    Attributes:
        limit: The prefetch now.

    Raises:
        ConfigurationError: An argument is no whole number of 1 or more; `option` names it.
    """

    #: Seconds between two calls of `update`. Longer is allowed, and makes it slower.
    INTERVAL: Final = 0.1

    def __init__(self, minimum: int = 1, maximum: int = _MAXIMUM, concurrency: int = 1, initial: int = 1) -> None:
        for option, value in (
            ("minimum", minimum),
            ("maximum", maximum),
            ("concurrency", concurrency),
            ("initial", initial),
        ):
            _check_count(option, value)
        self._minimum = max(minimum, concurrency)
        self._maximum = max(maximum, self._minimum)
        self._workers = concurrency
        # The minimum, or what is handled at once.
        self._least = self._minimum
        self.limit = min(max(initial, self._minimum), self._maximum)
        # The measurement: since when, from which counts on, and what was seen meanwhile.
        self._since: float | None = None
        self._last = 0.0
        self._finished_last = 0
        self._finished_since = 0
        self._idle_since = 0.0
        self._lowest = self._highest = 0
        # It begins when so many are finished: at first until deliveries come, later those of the prefetch before.
        self._settled_at = 1
        # While a change is on trial: the prefetch before, and the busy share with it.
        self._before = 0
        self._busy = 0.0
        self._grow_hold = self._shrink_hold = _HOLD
        self._grow_at = self._shrink_at = -math.inf
        # The busy share when growing brought nothing.
        self._in_vain = 0.0
        # Workers were too idle in the measurement before.
        self._waited = False

    def update(
        self,
        now: float,
        finished: int,
        idle_seconds: float,
        lowest_backlog: int,
        highest_unsettled: int,
        handling_seconds: float | None = None,
    ) -> int:
        """Takes a measurement; called every `INTERVAL` seconds while messages are delivered.

        Args:
            now: Seconds of a monotonic clock.
            finished: How many deliveries were acknowledged or rejected so far.
            idle_seconds: Seconds that workers waited for a delivery so far, of all workers together and with those of
                workers that wait now.
            lowest_backlog: The fewest deliveries that waited for a worker at any time since the last call.
            highest_unsettled: The most deliveries at any time since the last call that were delivered and not yet
                acknowledged or rejected towards the broker.
            handling_seconds: Seconds that a handler takes on average; None when that is not known.

        Returns:
            The prefetch from now on. When it differs from the one before, the caller applies it at once.
        """
        if (
            not (math.isfinite(now) and math.isfinite(idle_seconds))
            or finished < 0
            or lowest_backlog < 0
            or highest_unsettled < 0
        ):
            self._since = None
            return self.limit
        if finished < self._finished_last:
            # Another channel's: nothing of the time before is left.
            self._since, self._settled_at = None, finished + 1
        if self._let_quick_ones_in(handling_seconds):
            self._before, self._waited = 0, False
            self._settled_at = finished + 1
            self._since = None
        if self._since is None or now < self._last:
            self._begin(now, finished, idle_seconds)
            return self.limit
        self._last, self._finished_last = now, finished
        if self._finished_since < self._settled_at:
            self._begin(now, finished, idle_seconds)
            return self.limit
        self._lowest = min(self._lowest, lowest_backlog)
        self._highest = max(self._highest, highest_unsettled)
        seconds, count = now - self._since, finished - self._finished_since
        if seconds < _LEAST_SECONDS or count < (
            self._workers if seconds >= _LONG_SECONDS else max(_LEAST_COUNT, 2 * self._workers)
        ):
            return self.limit
        idle = min(max((idle_seconds - self._idle_since) / (seconds * self._workers), 0.0), 1.0)
        # Messages come and go by chance.
        chance = 1 / math.sqrt(max(count, 1))
        before = self.limit
        if seconds < _LONG_SECONDS and self._is_unclear(idle, chance):
            return before
        self._decide(now, count / seconds, idle, chance)
        if self.limit != before:
            self._settled_at = finished + before
        self._begin(now, finished, idle_seconds)
        return self.limit

    def _let_quick_ones_in(self, handling_seconds: float | None) -> bool:
        """Returns whether the prefetch was far too small for messages that are handled at once, and is not any more."""
        if handling_seconds is None or not math.isfinite(handling_seconds):
            return False
        quick = _MOST_QUICK
        if handling_seconds * quick > _QUICK_SECONDS * self._workers:
            quick = int(_QUICK_SECONDS * self._workers / handling_seconds)
        self._least = min(max(self._minimum, quick), self._maximum)
        if 2 * self.limit > self._least:
            return False
        self.limit = self._least
        return True

    def _is_unclear(self, idle: float, chance: float) -> bool:
        """Whether a short measurement says too little: at the edge, and for whether more was worth it."""
        if 0 < self._before < self.limit:
            return 1.0 - idle < self._busy * (_CLEARLY_WORTH + 3 * chance)
        return (_IDLE if self._before else _TOO_IDLE) < idle < _CLEARLY_IDLE

    def _decide(self, now: float, rate: float, idle: float, chance: float) -> None:
        """Chooses the prefetch by a complete measurement.

        Args:
            now: Seconds of the clock.
            rate: Deliveries that were finished in a second.
            idle: The share of time that workers were idle.
            chance: By about this share the rate may differ from one measurement to the next.
        """
        busy = 1.0 - idle
        waited, self._waited = self._waited, idle > _TOO_IDLE
        before, self._before = self._before, 0
        if before > self.limit and (
            idle > _TOO_IDLE or (idle > _IDLE and self._is_worth(before / self.limit, busy, self._busy, chance))
        ):
            # How idle they were with the other prefetch says nothing of this one.
            self.limit, self._waited = before, False
            self._keep(now)
        elif 0 < before < self.limit and not self._is_worth(self.limit / before, self._busy, busy, chance):
            self.limit, self._waited = before, False
            self._grow_at, self._in_vain = now + self._grow_hold, busy
            self._grow_hold = min(2 * self._grow_hold, _LONGEST_HOLD)
        elif self._waited:
            # Twice in a row: the first measurement after a pause, or after handlers became faster, is of both times.
            if waited:
                self._waited = idle > _CLEARLY_IDLE
                self._grow(now, rate, busy, chance)
        elif self.limit > self._least:
            self._shrink(now, busy)

    @staticmethod
    def _is_worth(factor: float, less: float, more: float, chance: float) -> bool:
        """Whether workers that are busy for one share of their time, and for another with more by a factor, need it."""
        return more >= min(less * (math.pow(factor, _WORTH) + chance), less + _WORTH_IDLE * (1.0 - less))

    def _grow(self, now: float, rate: float, busy: float, chance: float) -> None:
        """Tries more, if there may be more in the queue, and if that was not in vain a moment ago."""
        less, more = self._in_vain / (_NO_LESS + 3 * chance), self._in_vain * (_CLEARLY_WORTH + 3 * chance)
        if now < self._grow_at and less < busy < more:
            return
        if self.limit == self._maximum or rate * _FARTHEST < self.limit - self._highest:
            return
        if now >= self._grow_at + self._grow_hold:
            self._grow_hold = _HOLD
        factor = min(_BEYOND / busy, _LARGEST_STEP) if busy > 0 else _LARGEST_STEP
        self._before, self._busy = self.limit, busy
        self.limit = min(math.ceil(factor * self.limit), self._maximum)
        if 1.0 - busy > _CLEAR:
            self._shrink_hold = _HOLD
        else:
            self._keep(now)

    def _shrink(self, now: float, busy: float) -> None:
        """Gives up what was never needed, or tries a little less."""
        surplus = self._lowest
        if surplus > _CLEAR * self.limit:
            self._shrink_hold = _HOLD
        elif now < self._shrink_at:
            return
        spare = self.limit - self._least
        # Half of what may be given up, but no more than a quarter and no less than an eighth of the whole.
        step = min(spare, max(1, self.limit // 8, min(spare // 2, self.limit // 4)))
        if step >= surplus:
            self._before, self._busy = self.limit, busy
            self.limit -= step
        else:
            self.limit -= min(spare, surplus)

    def _keep(self, now: float) -> None:
        """Sees to it that not much less is tried for a while."""
        self._shrink_at = now + self._shrink_hold
        self._shrink_hold = min(2 * self._shrink_hold, _LONGEST_HOLD)

    def _begin(self, now: float, finished: int, idle_seconds: float) -> None:
        self._since = self._last = now
        self._finished_since = self._finished_last = finished
        self._idle_since = idle_seconds
        # Neither bound can be exceeded by a delivery with this prefetch or a larger one.
        self._lowest, self._highest = self._maximum, 0


def _check_count(option: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        shown = f"of type {type(value).__name__}"
    elif value < 1:
        shown = str(value)
    else:
        return
    raise ConfigurationError(f"{option} is {shown}; it must be a whole number of 1 or more", option=option)


def _amount(option: str, value: object) -> float:
    """Returns a finite number of 0 or more as it is."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigurationError(f"{option} is of type {type(value).__name__}; it must be a number", option=option)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not (math.isfinite(number) and number >= 0):
        raise ConfigurationError(f"{option} is {number}; it must be finite and 0 or more", option=option)
    return number
