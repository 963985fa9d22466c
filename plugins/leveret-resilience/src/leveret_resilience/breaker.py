"""The circuit breaker: it opens when too large a share of the calls in a sliding window failed."""

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
#: Errors of the caller, and refusals of a working broker. They do not show that the called service fails.
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
    """Returns whether an error counts as a failure of the called service. `counts=None` stands for this function.

    Errors of the caller and refusals of a working broker do not count: `ConfigurationError`, `EncodeFailed` and other
    `CodecError`s, `MessageReturned`, `NotFound`, `AccessRefused`, `ResourceLocked`, `PreconditionFailed`,
    `BackpressureError`, `WrongLoopError`, `LocalProtocolError`, `PluginError`, and `CircuitOpen` of another breaker.

    Args:
        error: The exception of a call.
    """
    return isinstance(error, Exception) and not isinstance(error, _NOT_COUNTED)


class BreakerState(enum.Enum):
    """The states of a circuit breaker."""

    CLOSED = "closed"
    """Calls are allowed and counted."""
    OPEN = "open"
    """Calls are refused."""
    HALF_OPEN = "half-open"
    """A few calls are allowed as trials. Others are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerChange:
    """A change of state. `on_change` gets these.

    Attributes:
        breaker: The circuit breaker's name.
        old: The earlier state.
        new: The new state.
        reason: The reason, as text that is safe to print.
        time: The time in seconds of the breaker's clock.
    """

    breaker: str
    old: BreakerState
    new: BreakerState
    reason: str
    time: float


class _Trial:
    """A call that was allowed in the half-open state."""

    __slots__ = ("anonymous", "started")

    def __init__(self, started: float, *, anonymous: bool) -> None:
        self.started = started
        #: True for a trial of `before_call`, which the next `record` ends. A trial of `call` is ended by its call.
        self.anonymous = anonymous


class CircuitBreaker:
    """Refuses calls to a service while too many fail, and after a while allows trial calls.

    *Closed*, it allows all calls. It opens when a call fails and the last `window` seconds have at least
    `minimum_calls` calls, of which a share of `threshold` or more failed. *Open*, it refuses all calls for `open_time`
    seconds. The first call after that makes it *half-open*: `half_open_calls` trials may run at once, and other calls
    are refused. When that many trials have succeeded it closes, with all counts cleared. A trial that fails opens it
    again. The `retry_after` of a refusal is the time until a call may be allowed; while trials run, it is an upper
    bound.

    A trial that ends without a result, by cancellation or with an error that does not count, makes room for another. So
    does a trial that runs for longer than `open_time`. Results of calls that were allowed before the last change of
    state are ignored: a late success does not close the breaker.

    The window has a fixed number of buckets, so memory does not grow with the calls, and calls leave the window in
    steps of a tenth of `window`. There is no timer: an open breaker becomes half-open at the next call.

    A breaker belongs to one event loop, whose tasks may share it. It is not safe to use from several threads.

    It has the interface `leveret.plugins.BreakerPolicy`, for producers. For other calls use `call` or `wrap`. A
    producer's results do not tell which call they belong to. In the half-open state `record` therefore ends the oldest
    trial, and a failure from before the opening may open the breaker once more.

    Attributes:
        name: The name in errors, logs and events.
        state: The state. Read-only.
        closed: True when `state` is `BreakerState.CLOSED`. Read-only.

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
            name: The name in errors, logs and events.
            window: The length of the window in seconds, 0.001 to 86400.
            threshold: The share of failed calls at which it opens, above 0 and up to 1.
            minimum_calls: The least calls in the window for the breaker to open, 1 to 1000000.
            open_time: Seconds for which it stays open, 0.001 to 86400.
            half_open_calls: The most trials at once, and the successful trials that close it, 1 to 1000.
            counts: Returns whether an error counts as a failure. None stands for `is_failure`. It is not called for
                exceptions that are not an `Exception`, such as cancellation, which never count. When it raises, the
                error counts.
            on_change: Called after each change of state, in the task that caused it. It must not block. Its exceptions
                are logged and have no other effect.
            clock: A monotonic clock in seconds; for tests.

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
        #: Grows with each change of state. Results of calls from an earlier period are ignored.
        self._period = 0
        self._opened_at = 0.0
        self._reason = ""
        self._trials: list[_Trial] = []
        self._passed = 0

    def __repr__(self) -> str:
        return f"<CircuitBreaker {self.name!r} {self.state.value}>"

    # ------------------------------------------------------------------ around any call

    async def call(self, function: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Calls a function and counts its result.

        Args:
            function: An `async def`, or another function that returns an awaitable.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Returns:
            The function's result.

        Raises:
            CircuitOpen: The call is not allowed now, and the function was not called. `retry_after` tells when to try
                again.
            Exception: The function's exception, unchanged.
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
        """Returns a function whose calls go through `call`. It may be used as a decorator.

        Args:
            function: An `async def`.

        Returns:
            The coroutine function.

        Raises:
            ConfigurationError: The function is not an `async def`.
        """
        check_coroutine_function("function", function)

        @functools.wraps(function)
        async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            return await self.call(function, *args, **kwargs)

        return wrapped

    # ------------------------------------------------------------------ leveret.plugins.BreakerPolicy

    def before_call(self) -> None:
        """Allows a call. Unless the breaker is closed, one `record` must follow.

        Raises:
            CircuitOpen: The call is not allowed now. `retry_after` tells when to try again.
        """
        if not self.closed:
            self._admit(anonymous=True)

    def record(
        self, successes: int, failures: int, /, *, seconds: float = 0.0, error: BaseException | None = None
    ) -> None:
        """Counts results; see `leveret.plugins.BreakerPolicy`.

        Successes are spread evenly over `seconds`, so that those from before the window do not count. Failures are
        ignored if `error` does not count.

        Args:
            successes: How many calls succeeded.
            failures: How many calls failed.
            seconds: The length of the time before now in which the successes happened.
            error: The exception of one of the failed calls, which decides for all of them. With None they count.
        """
        counted = failures if error is None or self._is_failure(error) else 0
        if self.closed:
            self._count(successes, counted, seconds)
        elif self.state is BreakerState.HALF_OPEN:
            trial = next((trial for trial in self._trials if trial.anonymous), None)
            if trial is not None:
                # A success counts only in a report without failures: reports of calls from before the opening have one.
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
