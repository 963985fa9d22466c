"""The conformance kit of circuit breakers."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Final

import pytest

from leveret.errors import CircuitOpen
from leveret.plugins.interfaces import BreakerPolicy
from leveret.testing.base import Conformance, fail, ordinary, override, require
from leveret.testing.policies import require_kind, some_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.plugins.interfaces import PolicySpec

__all__ = ["CircuitBreakerConformance", "KitClock"]

#: Failures in a row after which a breaker must be open.
_MANY: Final = 10_000
#: Trials with the same result after which a breaker must have closed or opened.
_TRIALS: Final = 1000
#: Seconds within which an open breaker must allow a trial.
_PATIENCE: Final = 3600
_DESCRIPTOR_CHECK: Final = "test_descriptor_is_accepted_by_the_registry"


class KitClock:
    """A monotonic clock that shows `now`, which only the kit changes.

    Attributes:
        now: The time in seconds.
    """

    def __init__(self) -> None:
        # Not 0, because a breaker may use 0 for "never".
        self.now = 1000.0

    def __call__(self) -> float:
        """Returns the time in seconds."""
        return self.now


class CircuitBreakerConformance(Conformance):
    """Checks a circuit breaker against `leveret.plugins.BreakerPolicy`, with a clock that the kit moves.

    Subclass it in a class named `Test...` and override the fixture `make_breaker`, which returns a function that takes
    a clock (a function that returns seconds as a float, like `time.monotonic`) and returns a new, closed breaker that
    reads no other clock. The breaker must open after at most 10,000 failures in a row, and allow a trial after an hour
    at the latest. To have the descriptor checked as well, override the fixture `spec`, which returns the `PolicySpec`.

    Example:
        >>> import pytest
        >>> class TestMyBreaker(CircuitBreakerConformance):
        ...     @pytest.fixture
        ...     def make_breaker(self):
        ...         return lambda clock: MyBreaker(threshold=5, clock=clock)
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if _DESCRIPTOR_CHECK not in vars(cls):
            kit = vars(CircuitBreakerConformance)
            given = inspect.getattr_static(cls, "spec") is not kit["spec"]
            # Without a descriptor this check is left out, so that it does not count as passed.
            setattr(cls, _DESCRIPTOR_CHECK, kit[_DESCRIPTOR_CHECK] if given else None)

    @pytest.fixture
    def spec(self) -> PolicySpec:
        """The descriptor to check; override it, or leave the check out."""
        override(type(self), "spec", "your PolicySpec")

    @pytest.fixture
    def make_breaker(self) -> Callable[[Callable[[], float]], BreakerPolicy]:
        """A function that makes a breaker for a clock; override it."""
        override(type(self), "make_breaker", "a function that takes a clock and returns your breaker")

    @pytest.fixture
    def clock(self) -> KitClock:
        """The clock that the kit moves."""
        return KitClock()

    @pytest.fixture
    def breaker(self, make_breaker: Callable[[Callable[[], float]], BreakerPolicy], clock: KitClock) -> BreakerPolicy:
        """A breaker that reads the kit's clock."""
        made = make_breaker(clock)
        require(
            isinstance(made, BreakerPolicy),
            f"make_breaker returned a {type(made).__name__}; a breaker has `closed`, `before_call` and `record`",
        )
        return made

    # ------------------------------------------------------------------ the descriptor

    def test_descriptor_is_accepted_by_the_registry(self, spec: PolicySpec) -> None:
        """The name has the right syntax, the kind is "circuit_breaker", and the factory makes a closed breaker."""
        require_kind(spec, "circuit_breaker", BreakerPolicy)
        breaker = spec.factory()
        assert isinstance(breaker, BreakerPolicy)
        require(breaker.closed is True, f"`closed` of a new breaker is {breaker.closed!r}, not True")

    # ------------------------------------------------------------------ closed

    def test_is_closed_at_first(self, breaker: BreakerPolicy) -> None:
        """A new breaker allows every call."""
        require(breaker.closed is True, f"`closed` of a new breaker is {breaker.closed!r}, not True")
        for _ in range(_TRIALS):
            require(_allowed(breaker), "a new breaker refused a call with CircuitOpen")
            breaker.record(1, 0)

    def test_closed_is_a_plain_attribute(self, breaker: BreakerPolicy) -> None:
        """`closed` is read for each call, so reading it must not run code."""
        try:
            found = inspect.getattr_static(breaker, "closed")
        except AttributeError:
            fail("`closed` is made by __getattr__; make it a plain attribute, which costs nothing to read")
        require(
            not isinstance(found, property) and not inspect.isfunction(getattr(type(found), "__get__", None)),
            "`closed` is a property; make it a plain attribute, which costs nothing to read, and set it when the state "
            "changes",
        )

    def test_stays_closed_while_calls_succeed(self, breaker: BreakerPolicy, clock: KitClock) -> None:
        """Successes alone never open a breaker, in any number and at any rate."""
        for step in (0.0, 0.001, 1.0, 100.0):
            for _ in range(_TRIALS):
                clock.now += step
                breaker.record(10, 0, seconds=step)
        require(breaker.closed is True, "the breaker opened although no call failed")

    def test_takes_every_error(self, breaker: BreakerPolicy) -> None:
        """`record` takes every error, and None, and never raises."""
        for error in (None, *some_errors()):
            try:
                breaker.record(1, 1, error=error)
            except BaseException as raised:
                ordinary(raised, f"record(1, 1, error={type(error).__name__})")
                fail(f"record(1, 1, error={type(error).__name__}) raised {type(raised).__name__}; it must never raise")

    def test_two_breakers_do_not_share_state(
        self, make_breaker: Callable[[Callable[[], float]], BreakerPolicy], clock: KitClock
    ) -> None:
        """When one breaker opens, another stays closed."""
        one, other = make_breaker(clock), make_breaker(clock)
        require(one is not other, "make_breaker returned one object twice")
        _open(one)
        require(other.closed is True, "opening one breaker opened another: they share state")
        require(_allowed(other), "opening one breaker made another refuse calls: they share state")

    # ------------------------------------------------------------------ opening

    def test_opens_after_many_failures(self, breaker: BreakerPolicy) -> None:
        """A breaker opens after at most 10,000 failures in a row."""
        _open(breaker)

    def test_opens_after_failures_that_come_at_once(self, breaker: BreakerPolicy) -> None:
        """One `record` may report many failures, as it does for a batch."""
        breaker.record(0, _MANY, error=OSError())
        require(breaker.closed is False, f"record(0, {_MANY}) did not open the breaker: count all failures of one call")

    def test_opens_although_old_successes_are_recorded_late(self, breaker: BreakerPolicy, clock: KitClock) -> None:
        """The core reports successes with the next failure; `seconds` is the time over which they happened.

        A million old successes, one every ten seconds, must not hide ten thousand failures that happen now.
        """
        clock.now += 1e7
        breaker.record(1_000_000, 1, seconds=1e7, error=OSError())
        for _ in range(_MANY):
            if breaker.closed is False:
                return
            breaker.record(0, 1, error=OSError())
        fail(
            f"after record(1_000_000, 1, seconds=1e7), {_MANY} failures in a row did not open the breaker: the "
            "successes happened over 10,000,000 seconds, so all but a few are older than any window"
        )

    def test_refuses_calls_while_open(self, breaker: BreakerPolicy, clock: KitClock) -> None:
        """While no time passes, `before_call` of an open breaker raises CircuitOpen each time, and nothing else."""
        _open(breaker)
        for _ in range(_TRIALS):
            require(
                not _allowed(breaker),
                "the breaker is open and no time has passed, but before_call allowed a call; raise "
                "leveret.errors.CircuitOpen",
            )
            require(breaker.closed is False, "a call that was refused closed the breaker")

    def test_stays_open_until_a_trial_succeeds(self, breaker: BreakerPolicy, clock: KitClock) -> None:
        """Time alone does not close a breaker: `closed` stays False, so that the core asks before the next call."""
        _open(breaker)
        clock.now += _PATIENCE
        require(
            breaker.closed is False,
            "`closed` became True when time passed; a breaker that was open allows trials and closes when they succeed",
        )

    # ------------------------------------------------------------------ trials

    def test_allows_a_trial_after_some_time(self, breaker: BreakerPolicy, clock: KitClock) -> None:
        """An open breaker allows a call after an hour at the latest."""
        _half_open(breaker, clock)

    def test_limits_how_many_trials_run_at_once(self, breaker: BreakerPolicy, clock: KitClock) -> None:
        """A breaker that is not closed allows only so many trials at once, and refuses further calls."""
        _half_open(breaker, clock)
        _take_all_trials(breaker)

    def test_closes_when_trials_succeed(self, breaker: BreakerPolicy, clock: KitClock) -> None:
        """One or several successful trials close the breaker. Then it allows calls, and can open again."""
        _half_open(breaker, clock)
        breaker.record(1, 0)
        _succeed_until_closed(breaker, clock)
        require(_allowed(breaker), "the breaker closed, but before_call still refuses")
        breaker.record(1, 0)
        _open(breaker)
        require(not _allowed(breaker), "the breaker opened for the second time, but before_call allowed a call")

    def test_opens_again_when_a_trial_fails(self, breaker: BreakerPolicy, clock: KitClock) -> None:
        """One or several failed trials open the breaker again. After some time it allows another trial."""
        for _ in range(3):
            _half_open(breaker, clock)
            for _ in range(_TRIALS):
                breaker.record(0, 1, error=OSError())
                require(breaker.closed is False, "a trial failed, and the breaker closed")
                if not _allowed(breaker):
                    break
            else:
                fail(f"{_TRIALS} trials failed one after the other, and the breaker allows still more: open it again")

    def test_a_trial_without_result_is_given_back(self, breaker: BreakerPolicy, clock: KitClock) -> None:
        """`record(0, 0)` ends a trial without a result. Another trial may take its place at once."""
        _half_open(breaker, clock)
        _take_all_trials(breaker)
        for _ in range(_TRIALS):
            breaker.record(0, 0)
            require(
                breaker.closed is False,
                "a trial that ended without a result (record(0, 0)) closed the breaker: only a success may",
            )
            require(
                _allowed(breaker),
                "a trial ended without a result (record(0, 0)), and the next call was refused: give its place back, or "
                "a cancelled trial blocks the breaker for ever",
            )

    def test_recovers_after_cancelled_trials(self, breaker: BreakerPolicy, clock: KitClock) -> None:
        """After many cancelled trials, a trial that succeeds still closes the breaker."""
        _half_open(breaker, clock)
        for _ in range(_TRIALS):
            breaker.record(0, 0)
            clock.now += 1
            _advance_until_allowed(breaker, clock, "after a trial was cancelled")
        breaker.record(1, 0)
        _succeed_until_closed(breaker, clock)


# ---------------------------------------------------------------------- driving a breaker


def _allowed(breaker: BreakerPolicy) -> bool:
    """Returns whether the breaker allows a call. CircuitOpen is the only way to refuse it."""
    try:
        breaker.before_call()
    except CircuitOpen:
        return False
    except BaseException as error:
        ordinary(error, "before_call")
        fail(f"before_call raised {type(error).__name__}; the interface wants leveret.errors.CircuitOpen")
    return True


def _open(breaker: BreakerPolicy) -> None:
    for _ in range(_MANY):
        breaker.record(0, 1, error=OSError())
        if breaker.closed is False:
            return
    fail(f"{_MANY} failures in a row did not open the breaker: `closed` is still {breaker.closed!r}")


def _advance_until_allowed(breaker: BreakerPolicy, clock: KitClock, when: str) -> None:
    for _ in range(_PATIENCE):
        if _allowed(breaker):
            return
        clock.now += 1
    fail(
        f"{when} the breaker refused every call for {_PATIENCE} seconds: allow a trial after some time, or it "
        "stays open for ever"
    )


def _half_open(breaker: BreakerPolicy, clock: KitClock) -> None:
    """Opens the breaker and moves the clock until a trial is allowed. That trial is running afterwards."""
    if breaker.closed:
        _open(breaker)
    _advance_until_allowed(breaker, clock, "after the breaker opened")
    require(
        breaker.closed is False,
        "the breaker allowed a trial and is closed at once; it must close when the trial succeeded",
    )


def _take_all_trials(breaker: BreakerPolicy) -> None:
    for _ in range(_MANY):
        if not _allowed(breaker):
            return
    fail(f"the breaker is not closed, and allowed {_MANY} calls at once without a result of any: limit the trials")


def _succeed_until_closed(breaker: BreakerPolicy, clock: KitClock) -> None:
    for _ in range(_TRIALS):
        if breaker.closed is True:
            return
        _advance_until_allowed(breaker, clock, "after a trial succeeded")
        breaker.record(1, 0)
    fail(f"{_TRIALS} trials succeeded one after the other, and the breaker is still not closed")
