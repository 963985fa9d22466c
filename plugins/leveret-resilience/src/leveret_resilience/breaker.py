"""The circuit breaker: it opens when too large a share of the calls of the last minute failed."""

from __future__ import annotations

import enum
import functools
import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

from leveret.errors import (
    AccessRefused,
    BackpressureError,
    CircuitOpen,
    CodecError,
    ConfigurationError,
    LocalProtocolError,
    MessageReturned,
    NotFound,
    PluginError,
    PreconditionFailed,
    ResourceLocked,
    WrongLoopError,
)
from leveret_resilience._checks import (
    check_callable,
    check_coroutine_function,
    check_count,
    check_number,
    started,
)
from leveret_resilience._window import Window

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = ["BreakerChange", "BreakerState", "CircuitBreaker", "is_failure"]

logger = logging.getLogger("leveret.resilience")

P = ParamSpec("P")
T = TypeVar("T")

_DAY: Final = 86_400.0
#: Mistakes of the caller, which say nothing about what it called, and refusals that came from a broker that works.
_NOT_COUNTED: Final = (
    AccessRefused,
    BackpressureError,
    CircuitOpen,
    CodecError,
    ConfigurationError,
    LocalProtocolError,
    MessageReturned,
    NotFound,
    PluginError,
    PreconditionFailed,
    ResourceLocked,
    WrongLoopError,
)


def is_failure(error: BaseException) -> bool:
    """Says whether an error counts against what was called. It is what `counts=None` stands for.

    Not counted are mistakes of the caller and refusals by a broker that works: `ConfigurationError`, `EncodeFailed` and
    the other `CodecError`, `MessageReturned`, `NotFound`, `AccessRefused`, `ResourceLocked`, `PreconditionFailed`,
    `BackpressureError`, `WrongLoopError`, `LocalProtocolError`, `PluginError`, and `CircuitOpen` of another breaker.

    Args:
        error: What a call raised.

    Returns:
        True when it counts.
    """
    return isinstance(error, Exception) and not isinstance(error, _NOT_COUNTED)


class BreakerState(enum.Enum):
    """What a circuit breaker does with calls."""

    CLOSED = "closed"
    """They are let through and counted."""
    OPEN = "open"
    """They are refused."""
    HALF_OPEN = "half-open"
    """A few are let through as trials; the others are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChange:
    """What `on_change` gets.

    Attributes:
        breaker: The circuit breaker's name.
        old: The state that it left.
        new: The state that it has now.
        reason: Why, as text that is safe to print.
        time: When, in seconds of the breaker's clock.
    """

    breaker: str
    old: BreakerState
    new: BreakerState
    reason: str
    time: float


class _Trial:
    """A call that was let through while half-open."""

    __slots__ = ("anonymous", "started")

    def __init__(self, started: float, *, anonymous: bool) -> None:
        self.started = started
        #: Made by `before_call`, so that the next `record` ends it; those of `call` end only themselves.
        self.anonymous = anonymous


class CircuitBreaker:
    """Stops calls to something that fails too often, and lets a few through after a while to see whether it works.

    *Closed*, it lets everything through. When a call fails, and of at least `minimum_calls` calls of the last `window`
    seconds a share of `threshold` or more has failed, it opens. *Open*, it refuses everything for `open_time` seconds.
    The first call after that makes it *half-open*: `half_open_calls` trials may run at once, and the others are
    refused. It closes, with nothing counted, when as many trials have succeeded, and one that fails opens it again.
    The `retry_after` of each refusal is the time until a call may be let through; while trials run it is the latest
    moment, and it may be earlier.

    A trial that ends without a result, by cancellation or with an error that is not counted, gives its place back. One
    that runs for longer than `open_time` has lost its place. Results of calls that were let through before the last
    change of state count for nothing: a late success does not close the breaker.

    The window has a fixed number of buckets, so memory does not grow with the calls, and calls leave it in steps of a
    tenth of `window`. There is no timer: an open breaker becomes half-open when it is asked.

    One breaker belongs to one event loop, whose tasks may share it. It is not safe to use from several threads.

    It has the interface `leveret.plugins.BreakerPolicy`, for producers; use `call` or `wrap` around everything else.
    A producer's results come without the call that they belong to, so while it is half-open `record` takes the oldest
    trial's place, and a failure from before the opening may open it once more.

    Attributes:
        name: Its name in errors, logs and events.
        state: What it does now. Read it only.
        closed: True when `state` is `BreakerState.CLOSED`. Read it only.

    Example:
        >>> breaker = CircuitBreaker(name="stock", minimum_calls=2)
        >>> breaker.record(1, 1)
        >>> breaker
        <CircuitBreaker 'stock' open>
    """

    def __init__(
        self,
        *,
        name: str = "",
        window: float = 60.0,
        threshold: float = 0.5,
        minimum_calls: int = 5,
        open_time: float = 60.0,
        half_open_calls: int = 1,
        counts: Callable[[Exception], bool] | None = None,
        on_change: Callable[[BreakerChange], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes a closed circuit breaker.

        Args:
            name: Its name in errors, logs and events.
            window: Seconds over which calls are counted, 0.001 to 86400.
            threshold: The share of failed calls at which it opens, above 0 and up to 1.
            minimum_calls: How many calls the window must have before it may open, 1 to 1000000.
            open_time: Seconds for which it stays open, 0.001 to 86400.
            half_open_calls: How many trials may run at once, and must succeed to close it, 1 to 1000.
            counts: Says of an error whether it counts as a failure. None stands for `is_failure`. Not asked for what
                is no `Exception`, such as cancellation: that never counts. When it raises, the error counts.
            on_change: Called after each change of state, in the task that caused it; it must not block. What it
                raises is logged and changes nothing.
            clock: Seconds that never go back; for tests.

        Raises:
            ConfigurationError: An option is out of bounds or of the wrong type.
        """
        if not isinstance(name, str):
            raise ConfigurationError(f"name must be text, not {type(name).__name__}", option="name")
        check_number("window", window, 0.001, _DAY, " s")
        check_number("threshold", threshold, 0, 1)
        if not threshold:
            raise ConfigurationError("threshold is 0; it must be above 0 and up to 1", option="threshold")
        check_count("minimum_calls", minimum_calls, 1, 1_000_000)
        check_number("open_time", open_time, 0.001, _DAY, " s")
        check_count("half_open_calls", half_open_calls, 1, 1000)
        for option, function in (("counts", counts), ("on_change", on_change)):
            if function is not None:
                check_callable(option, function)
        check_callable("clock", clock)
        self.name = name
        self.state = BreakerState.CLOSED
        self.closed = True
        self._window_seconds = window
        self._threshold = threshold
        self._minimum_calls = minimum_calls
        self._open_time = open_time
        self._half_open_calls = half_open_calls
        self._counts = is_failure if counts is None else counts
        self._on_change = on_change
        self._clock = clock
        self._window = Window(window)
        #: Grows with each change of state: what was let through in another period is late.
        self._period = 0
        self._opened_at = 0.0
        self._reason = ""
        self._trials: list[_Trial] = []
        self._passed = 0

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.name!r} {self.state.value}>"

    # ------------------------------------------------------------------ around any call

    async def call(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function and counts how it ended.

        Args:
            function: An `async def`, or another function that returns an awaitable.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            What it returned.

        Raises:
            CircuitOpen: Not now: the function was not called. Its `retry_after` says when to ask again.
            Exception: What the function raised, unchanged.
        """
        trial = None if self.closed else self._admit(anonymous=False)
        period = self._period
        try:
            result = await started(function, *args, **kwargs)
        except BaseException as error:
            self._end(period, trial, successes=0, failures=int(self._is_failure(error)))
            raise
        self._end(period, trial, successes=1, failures=0)
        return result

    def wrap(self, function: Callable[P, Awaitable[T]], /) -> Callable[P, Coroutine[Any, Any, T]]:
        """Makes a function whose calls go through `call`; it may be used as a decorator.

        Args:
            function: An `async def`.

        Returns:
            The coroutine function.

        Raises:
            ConfigurationError: It is not an `async def`.
        """
        check_coroutine_function("function", function)

        @functools.wraps(function)
        async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.call(function, *args, **kwargs)

        return wrapped

    # ------------------------------------------------------------------ leveret.plugins.BreakerPolicy

    def before_call(self) -> None:
        """Allows a call, which one `record` must follow unless it was allowed while closed.

        Raises:
            CircuitOpen: Not now. Its `retry_after` says when to ask again.
        """
        if not self.closed:
            self._admit(anonymous=True)

    def record(
        self, successes: int, failures: int, /, *, seconds: float = 0.0, error: BaseException | None = None
    ) -> None:
        """Counts results; see `leveret.plugins.BreakerPolicy`.

        Successes are spread evenly over the time in which they happened, so those from before the window do not count.
        Failures that are not counted, going by `error`, are as if they had not been.

        Args:
            successes: How many calls succeeded.
            failures: How many failed.
            seconds: The time over which the successes happened, before now.
            error: What one of the failed calls raised; all of them are judged by it. None counts.
        """
        counted = failures if error is None or self._is_failure(error) else 0
        if self.closed:
            self._count(successes, counted, seconds)
        elif self.state is BreakerState.HALF_OPEN:
            trial = next((trial for trial in self._trials if trial.anonymous), None)
            if trial is not None:
                # A trial succeeds with all it did: reports of calls from before the opening always have a failure.
                self._end(self._period, trial, successes=0 if failures else successes, failures=counted)

    # ------------------------------------------------------------------ inside

    def _is_failure(self, error: BaseException) -> bool:
        if not isinstance(error, Exception):
            return False
        try:
            return bool(self._counts(error))
        except Exception:
            logger.exception("circuit breaker %r: counts failed for %s, which counts", self.name, type(error).__name__)
            return True

    def _admit(self, *, anonymous: bool) -> _Trial:
        now = self._clock()
        if self.state is BreakerState.OPEN:
            remaining = self._opened_at + self._open_time - now
            if remaining > 0:
                raise self._refusal(f"is open: {self._reason}; it may be tried again in {remaining:.3g} s", remaining)
            self._change(BreakerState.HALF_OPEN, f"it was open for {self._open_time:g} s", now)
        self._trials = [trial for trial in self._trials if now - trial.started < self._open_time]
        if len(self._trials) >= self._half_open_calls:
            remaining = self._trials[0].started + self._open_time - now
            raise self._refusal(
                f"is half-open and waits for {len(self._trials)} trial calls; it may be tried again in at most "
                f"{remaining:.3g} s",
                remaining,
            )
        trial = _Trial(now, anonymous=anonymous)
        self._trials.append(trial)
        return trial

    def _refusal(self, text: str, retry_after: float) -> CircuitOpen:
        name = f"the circuit breaker {self.name!r}" if self.name else "the circuit breaker"
        return CircuitOpen(f"{name} {text}", retry_after=retry_after)

    def _end(self, period: int, trial: _Trial | None, *, successes: int, failures: int) -> None:
        if period != self._period:
            return
        if trial is None:
            self._count(successes, failures, 0.0)
        elif trial in self._trials:
            self._trials.remove(trial)
            if failures:
                self._change(BreakerState.OPEN, "a trial call failed", self._clock())
            elif successes:
                self._passed += 1
                if self._passed >= self._half_open_calls:
                    what = "a trial call" if self._passed == 1 else f"{self._passed} trial calls"
                    self._change(BreakerState.CLOSED, f"{what} succeeded", self._clock())

    def _count(self, successes: int, failures: int, seconds: float) -> None:
        now = self._clock()
        self._window.add(now, successes, failures, seconds)
        if failures:
            calls, failed = self._window.totals()
            if calls >= self._minimum_calls and failed / calls >= self._threshold:
                text = f"{failed} of {round(calls)} calls failed within {self._window_seconds:g} s"
                self._change(BreakerState.OPEN, text, now)

    def _change(self, new: BreakerState, reason: str, now: float) -> None:
        old, self.state = self.state, new
        self.closed = new is BreakerState.CLOSED
        self._period += 1
        self._trials = []
        self._passed = 0
        self._reason = reason
        if new is BreakerState.OPEN:
            self._opened_at = now
        elif new is BreakerState.CLOSED:
            self._window.clear()
        level = logging.WARNING if new is BreakerState.OPEN else logging.INFO
        logger.log(level, "circuit breaker %r is %s, was %s: %s", self.name, new.value, old.value, reason)
        if self._on_change is not None:
            try:
                self._on_change(BreakerChange(breaker=self.name, old=old, new=new, reason=reason, time=now))
            except Exception:
                logger.exception("circuit breaker %r: on_change failed", self.name)
