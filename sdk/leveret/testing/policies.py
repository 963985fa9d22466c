"""The conformance kits of retry and backoff policies."""

from __future__ import annotations

import asyncio
import math
import statistics
from typing import TYPE_CHECKING, Any, ClassVar, Final

import pytest

from leveret import errors
from leveret.errors import PluginError
from leveret.message import Outcome
from leveret.plugins.interfaces import BackoffPolicy, PolicySpec, RetryPolicy
from leveret.testing.base import Conformance, fail, in_threads, ordinary, override, registry_of, require

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["BackoffConformance", "RetryConformance", "require_kind", "some_errors"]

#: Attempts from the first to more than a process reaches, with the limits of 32-bit numbers.
_ATTEMPTS: Final = sorted(
    {
        *range(1, 200),
        *(10**power for power in range(3, 10)),
        *(2**power + extra for power in (31, 32) for extra in (0, -1)),
    }
)
#: How many delays show the range of a policy with jitter.
_SAMPLES: Final = 200


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("the kit's error cannot be printed")

    __repr__ = __str__


class _Base(BaseException):
    pass


def some_errors() -> list[BaseException]:
    """Errors of every kind that a policy or breaker may get, and some unusual ones."""
    found: list[BaseException] = [
        Exception("the kit's error"),
        OSError(111, "refused"),
        ConnectionResetError(),
        TimeoutError(),
        MemoryError(),
        RecursionError(),
        _Unprintable(),
        ExceptionGroup("the kit's group", [ValueError(), OSError()]),
        _Base(),
        KeyboardInterrupt(),
        SystemExit(1),
        GeneratorExit(),
        asyncio.CancelledError(),
        BaseExceptionGroup("the kit's group", [_Base(), asyncio.CancelledError()]),
        errors.BackpressureError("full"),
        errors.CircuitOpen("open"),
        errors.ConnectionLost("lost"),
        errors.ConfigurationError("wrong", option="model"),
        errors.EncodeFailed("no"),
        errors.OperationTimeout("late"),
    ]
    found.extend(errors.PublishError("failed", outcome=outcome) for outcome in Outcome)
    for kind, outcome in (
        (errors.MessageNacked, Outcome.NACKED),
        (errors.MessageReturned, Outcome.RETURNED),
        (errors.ConfirmTimeout, Outcome.UNKNOWN),
    ):
        found.append(kind("failed", outcome=outcome, delivery_tag=1))
    return found


class RetryConformance(Conformance):
    """Checks a retry policy, as its factory makes it, against `leveret.plugins.RetryPolicy`.

    Subclass it in a class named `Test...` and override the fixture `spec`, which returns the `PolicySpec`.

    Attributes:
        longest_delay: The longest delay in seconds that the policy may return; a day by default.
        most_attempts: From this number of failed attempts on, the policy must give up.
        retried: An error that the policy retries at least once. None: the kit uses several common errors.

    Example:
        >>> import pytest
        >>> class Once:
        ...     def next_delay(self, attempt, error):
        ...         return 1.0 if attempt == 1 and isinstance(error, Exception) else None
        >>> class TestOnce(RetryConformance):
        ...     longest_delay = 1.0
        ...
        ...     @pytest.fixture
        ...     def spec(self):
        ...         return PolicySpec(kind="retry", name="once", factory=Once)
    """

    longest_delay: ClassVar[float] = 86_400.0
    most_attempts: ClassVar[int] = 1000
    retried: ClassVar[BaseException | None] = None

    @pytest.fixture
    def spec(self) -> PolicySpec:
        """The descriptor to check; override it."""
        override(type(self), "spec", "your PolicySpec")

    def test_descriptor_is_accepted_by_the_registry(self, spec: PolicySpec) -> None:
        """The name has the right syntax, the kind is "retry", and the factory makes a retry policy."""
        require_kind(spec, "retry", RetryPolicy)

    def test_delays_are_finite_and_bounded(self, spec: PolicySpec) -> None:
        """For attempts 1 to 2**32 and common errors: None, or 0 to `longest_delay` seconds."""
        policy = _retry(spec)
        if self.retried is not None:
            delay = policy.next_delay(1, self.retried)
            require(delay is not None, f"next_delay(1, {type(self.retried).__name__}) is None, yet it is `retried`")
        for attempt in _ATTEMPTS:
            for error in self._errors():
                what = f"next_delay({attempt}, {type(error).__name__})"
                delay = _ask(lambda attempt=attempt, error=error: policy.next_delay(attempt, error), what)  # type: ignore[misc]
                if delay is not None:
                    _require_delay(delay, self.longest_delay, what)

    def test_never_raises_whatever_the_error(self, spec: PolicySpec) -> None:
        """The policy takes every error, even one that is not an Exception or cannot be printed."""
        policy = _retry(spec)
        for error in some_errors():
            for attempt in (1, 2, 3, 100):
                what = f"next_delay({attempt}, {type(error).__name__})"
                _ask(lambda attempt=attempt, error=error: policy.next_delay(attempt, error), what)  # type: ignore[misc]

    def test_cancellation_is_never_retried(self, spec: PolicySpec) -> None:
        """After asyncio.CancelledError the policy returns None: the caller wants no result any more."""
        policy = _retry(spec)
        for attempt in (1, 2, 3):
            delay = policy.next_delay(attempt, asyncio.CancelledError())
            require(
                delay is None,
                f"next_delay({attempt}, CancelledError) is {delay!r}; it must be None: a caller that cancels wants no "
                "further attempt",
            )

    def test_gives_up_in_the_end(self, spec: PolicySpec) -> None:
        """The policy returns None from `most_attempts` on, and after its first None for an error."""
        policy = _retry(spec)
        for error in self._errors():
            given_up = 0
            for attempt in (*_ATTEMPTS, self.most_attempts):
                delay = policy.next_delay(attempt, error)
                if delay is None:
                    given_up = given_up or attempt
                require(
                    delay is None or (attempt < self.most_attempts and (not given_up or attempt < given_up)),
                    f"next_delay({attempt}, {type(error).__name__}) is {delay!r}"
                    + (
                        f" after it gave up at attempt {given_up}"
                        if given_up
                        else f"; after {self.most_attempts} attempts it must give up. Waiting without end is what a "
                        "backoff policy is for; if yours tries longer, set `most_attempts`"
                    ),
                )

    def test_keeps_no_state_between_calls(self, spec: PolicySpec) -> None:
        """The result depends on the arguments, and on chance, and not on earlier calls."""
        policy = _retry(spec)
        for error in self._errors():
            _require_stateless(
                lambda attempt, error=error: policy.next_delay(attempt, error),  # type: ignore[misc]
                f"next_delay(..., {type(error).__name__})",
            )

    def test_callers_at_once_do_not_disturb_each_other(self, spec: PolicySpec) -> None:
        """Two callers that share a policy each get as many attempts as a single caller."""
        policy = _retry(spec)
        for error in self._errors():

            def sequence(error: BaseException = error) -> list[bool]:
                return [policy.next_delay(attempt, error) is None for attempt in range(1, 50)]

            alone = sequence()

            def compare(sequence: Callable[[], list[bool]] = sequence, alone: list[bool] = alone) -> None:
                for _ in range(20):
                    require(
                        sequence() == alone,
                        "callers that share a policy get other numbers of attempts than a single caller: it counts "
                        "calls. Use the argument `attempt`",
                    )

            in_threads(compare, compare)

    def _errors(self) -> list[BaseException]:
        """Errors that policies are likely to retry."""
        if self.retried is not None:
            return [self.retried]
        return [
            OSError(111, "refused"),
            errors.MessageNacked("failed", outcome=Outcome.NACKED),
            errors.PublishError("failed", outcome=Outcome.NOT_SENT),
            errors.BackpressureError("full"),
            errors.ConnectionLost("lost"),
        ]


class BackoffConformance(Conformance):
    """Checks a backoff policy, as its factory makes it, against `leveret.plugins.BackoffPolicy`.

    Subclass it in a class named `Test...` and override the fixture `spec`, which returns the `PolicySpec`.

    Attributes:
        longest_delay: The longest delay in seconds that the policy may return; a day by default.

    Example:
        >>> import pytest
        >>> class Steady:
        ...     def delay(self, attempt):
        ...         return 5.0
        >>> class TestSteady(BackoffConformance):
        ...     longest_delay = 5.0
        ...
        ...     @pytest.fixture
        ...     def spec(self):
        ...         return PolicySpec(kind="backoff", name="steady", factory=Steady)
    """

    longest_delay: ClassVar[float] = 86_400.0

    @pytest.fixture
    def spec(self) -> PolicySpec:
        """The descriptor to check; override it."""
        override(type(self), "spec", "your PolicySpec")

    def test_descriptor_is_accepted_by_the_registry(self, spec: PolicySpec) -> None:
        """The name has the right syntax, the kind is "backoff", and the factory makes a backoff policy."""
        require_kind(spec, "backoff", BackoffPolicy)

    def test_delays_are_finite_and_bounded(self, spec: PolicySpec) -> None:
        """For attempts 1 to 2**32: a number of seconds from 0 to `longest_delay`, never None."""
        policy = _backoff(spec)
        for attempt in _ATTEMPTS:
            what = f"delay({attempt})"
            delay = _ask(lambda attempt=attempt: policy.delay(attempt), what)  # type: ignore[misc]
            require(delay is not None, f"{what} is None; a backoff policy never gives up: return seconds")
            _require_delay(delay, self.longest_delay, what)

    def test_keeps_no_state_between_calls(self, spec: PolicySpec) -> None:
        """The delay depends on `attempt`, and on chance, and not on earlier calls."""
        _require_stateless(_backoff(spec).delay, "delay(...)")

    def test_callers_at_once_do_not_disturb_each_other(self, spec: PolicySpec) -> None:
        """Two threads that use one policy at once get delays within its bounds, and no errors."""
        policy = _backoff(spec)

        def use() -> None:
            for attempt in _ATTEMPTS:
                what = f"delay({attempt}), called by two threads at once,"
                _require_delay(_ask(lambda attempt=attempt: policy.delay(attempt), what), self.longest_delay, what)  # type: ignore[misc]

        in_threads(use, use)


# ---------------------------------------------------------------------- using policies


def require_kind(spec: PolicySpec, kind: str, interface: type) -> None:
    """Fails unless the core takes a descriptor of this kind, and its factory makes an object of this interface."""
    require(isinstance(spec, PolicySpec), f"`spec` is a {type(spec).__name__}, not a PolicySpec")
    require(spec.kind == kind, f"the kind of this PolicySpec is {spec.kind!r}; this kit checks {kind!r}")
    try:
        registry = registry_of("leveret_policies", spec)
        registry.provided(kind, spec.name)
    except PluginError as error:
        fail(f"the core does not take this PolicySpec: {error}")
    made = spec.factory()
    require(isinstance(made, interface), f"the factory made a {type(made).__name__}, which is no {interface.__name__}")


def _retry(spec: PolicySpec) -> RetryPolicy:
    made = spec.factory()
    if not isinstance(made, RetryPolicy):
        fail(f"the factory made a {type(made).__name__}, which has no next_delay()")
    return made


def _backoff(spec: PolicySpec) -> BackoffPolicy:
    made = spec.factory()
    if not isinstance(made, BackoffPolicy):
        fail(f"the factory made a {type(made).__name__}, which has no delay()")
    return made


def _ask(function: Callable[[], Any], what: str) -> Any:
    try:
        return function()
    except BaseException as error:
        ordinary(error, what)
        fail(f"{what} raised {type(error).__name__}: a policy decides, and never raises")


def _require_delay(delay: Any, longest: float, what: str) -> None:
    require(
        isinstance(delay, float | int) and not isinstance(delay, bool),
        f"{what} is a {type(delay).__name__}; the interface wants seconds as a float",
    )
    require(math.isfinite(delay), f"{what} is {delay}; a delay must be finite")
    require(delay >= 0, f"{what} is {delay}; a delay must not be negative")
    require(
        delay <= longest,
        f"{what} is {delay:g} s, more than `longest_delay` ({longest:g} s): put a maximum on delays that grow",
    )


def _require_stateless(ask: Callable[[int], float | None], what: str) -> None:
    attempts = (1, 2, 3, 5, 8)
    before = {attempt: _samples(ask, attempt) for attempt in attempts}
    for attempt in (*range(1, 60), 10**6, *range(60, 0, -1)):
        ask(attempt)
    for attempt in reversed(attempts):
        old, new = before[attempt], _samples(ask, attempt)
        text = (
            f"{what} for attempt {attempt} was {_range(old)} at first and {_range(new)} after other calls: it keeps "
            "state. One policy serves all operations at once, so its result may depend only on its arguments"
        )
        require((None in old) == (None in new) and (set(old) == {None}) == (set(new) == {None}), text)
        first, second = _numbers(old), _numbers(new)
        if first and second:
            # Compares means: for so many samples of one distribution they differ by a few hundredths of its width.
            slack = 0.25 * max(max(first) - min(first), max(second) - min(second)) + 1e-9
            require(abs(statistics.fmean(first) - statistics.fmean(second)) <= slack, text)


def _samples(ask: Callable[[int], float | None], attempt: int) -> list[float | None]:
    return [ask(attempt) for _ in range(_SAMPLES)]


def _numbers(delays: Sequence[float | None]) -> list[float]:
    return [delay for delay in delays if delay is not None]


def _range(delays: Sequence[float | None]) -> str:
    numbers = _numbers(delays)
    if not numbers:
        return "None"
    low, high = min(numbers), max(numbers)
    return f"{low:g} s" if low == high else f"{low:g} to {high:g} s"
