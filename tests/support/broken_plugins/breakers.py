"""Sound circuit breakers, each broken in one way, with the conformance kit as their tests."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from leveret.errors import CircuitOpen
from leveret.plugins import PolicySpec
from leveret.testing import (
    CircuitBreakerConformance,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class SoundBreaker:
    """Opens when most of at least ten calls of the last minute failed; allows two trials after ten seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.closed = True
        self.good: Counter[int] = Counter()
        self.bad: Counter[int] = Counter()
        self.opened_at = 0.0
        self.trials = 0

    def before_call(self) -> None:
        if self.closed:
            return
        if self.clock() < self.opened_at + 10 or self.trials >= 2:
            raise CircuitOpen("not now")
        self.trials += 1

    def record(
        self, successes: int, failures: int, /, *, seconds: float = 0.0, error: BaseException | None = None
    ) -> None:
        if not self.closed:
            self.decide(successes, failures)
            return
        now = int(self.clock())
        self.good[now] += round(successes * min(1.0, 60.0 / seconds)) if seconds else successes
        self.bad[now] += failures
        for calls in (self.good, self.bad):
            for second in [second for second in calls if second < now - 60]:
                del calls[second]
        if self.bad.total() >= 10 and self.bad.total() > self.good.total():
            self.open()

    def decide(self, successes: int, failures: int) -> None:
        self.trials = max(self.trials - 1, 0)
        if failures:
            self.open()
        elif successes:
            self.close()

    def open(self) -> None:
        self.closed = False
        self.opened_at = self.clock()
        self.trials = 0

    def close(self) -> None:
        self.closed = True
        self.good.clear()
        self.bad.clear()


class BrokenBreaker(CircuitBreakerConformance):
    caught_by: ClassVar[str]
    because: ClassVar[str]
    make: ClassVar[type[Any]]

    @pytest.fixture
    def make_breaker(self) -> Any:
        return type(self).make


class TestSoundBreaker(BrokenBreaker):
    make = SoundBreaker

    @pytest.fixture
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="circuit_breaker", name="sound", factory=SoundBreaker)


class NeverHalfOpens(SoundBreaker):
    def before_call(self) -> None:
        if not self.closed:
            raise CircuitOpen("never")


class TestBrokenByNeverHalfOpening(BrokenBreaker):
    make = NeverHalfOpens
    caught_by = "test_allows_a_trial_after_some_time"
    because = "it stays open for ever"


class IgnoresOpen(SoundBreaker):
    def before_call(self) -> None:
        """Lets everything through."""


class TestBrokenByIgnoringOpen(BrokenBreaker):
    make = IgnoresOpen
    caught_by = "test_refuses_calls_while_open"
    because = "the breaker is open and no time has passed, but before_call allowed a call"


class RefusesOtherwise(SoundBreaker):
    def before_call(self) -> None:
        try:
            super().before_call()
        except CircuitOpen:
            raise RuntimeError("open") from None


class TestBrokenByRefusingOtherwise(BrokenBreaker):
    make = RefusesOtherwise
    caught_by = "test_refuses_calls_while_open"
    because = "the interface wants leveret.errors.CircuitOpen"


class NeverOpens(SoundBreaker):
    def open(self) -> None:
        self.good.clear()
        self.bad.clear()


class TestBrokenByNeverOpening(BrokenBreaker):
    make = NeverOpens
    caught_by = "test_opens_after_many_failures"
    because = "failures in a row did not open the breaker"


class CountsBatchesAsOne(SoundBreaker):
    def record(self, successes: int, failures: int, /, **options: Any) -> None:
        super().record(successes, min(failures, 1), **options)


class TestBrokenByCountingBatchesAsOne(BrokenBreaker):
    make = CountsBatchesAsOne
    caught_by = "test_opens_after_failures_that_come_at_once"
    because = "count all failures of one call"


class IgnoresSeconds(SoundBreaker):
    def record(self, successes: int, failures: int, /, *, seconds: float = 0.0, error: Any = None) -> None:
        super().record(successes, failures, error=error)


class TestBrokenByIgnoringSeconds(BrokenBreaker):
    make = IgnoresSeconds
    caught_by = "test_opens_although_old_successes_are_recorded_late"
    because = "older than any window"


class OpensOnSuccess(SoundBreaker):
    def record(self, successes: int, failures: int, /, **options: Any) -> None:
        super().record(0, successes + failures, **options)


class TestBrokenByOpeningOnSuccess(BrokenBreaker):
    make = OpensOnSuccess
    caught_by = "test_stays_closed_while_calls_succeed"
    because = "the breaker opened although no call failed"


class StartsOpen(SoundBreaker):
    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.open()


class TestBrokenByStartingOpen(BrokenBreaker):
    make = StartsOpen
    caught_by = "test_is_closed_at_first"
    because = "`closed` of a new breaker is False"


class ComputesClosed:
    """`closed` is computed each time, and becomes true when time passes."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.inner = SoundBreaker(clock)

    @property
    def closed(self) -> bool:
        return self.inner.closed or self.inner.clock() > self.inner.opened_at + 10

    def before_call(self) -> None:
        self.inner.before_call()

    def record(self, successes: int, failures: int, /, **options: Any) -> None:
        self.inner.record(successes, failures, **options)


class TestBrokenByComputingClosed(BrokenBreaker):
    make = ComputesClosed
    caught_by = "test_closed_is_a_plain_attribute"
    because = "`closed` is a property"


class TestBrokenByClosingWithTime(BrokenBreaker):
    make = ComputesClosed
    caught_by = "test_stays_open_until_a_trial_succeeds"
    because = "`closed` became True when time passed"


class AllowsAnyNumberOfTrials(SoundBreaker):
    def before_call(self) -> None:
        self.trials = 0
        super().before_call()


class TestBrokenByAllowingAnyNumberOfTrials(BrokenBreaker):
    make = AllowsAnyNumberOfTrials
    caught_by = "test_limits_how_many_trials_run_at_once"
    because = "limit the trials"


class NeverCloses(SoundBreaker):
    def close(self) -> None:
        """Waits for more."""


class TestBrokenByNeverClosing(BrokenBreaker):
    make = NeverCloses
    caught_by = "test_closes_when_trials_succeed"
    because = "the breaker is still not closed"


class ForgivesFailedTrials(SoundBreaker):
    def decide(self, successes: int, failures: int) -> None:
        self.trials = 0
        if successes:
            self.close()


class TestBrokenByForgivingFailedTrials(BrokenBreaker):
    make = ForgivesFailedTrials
    caught_by = "test_opens_again_when_a_trial_fails"
    because = "open it again"


class ClosesOnFailedTrials(SoundBreaker):
    def decide(self, successes: int, failures: int) -> None:
        self.trials = 0
        if successes or failures:
            self.close()


class TestBrokenByClosingOnFailedTrials(BrokenBreaker):
    make = ClosesOnFailedTrials
    caught_by = "test_opens_again_when_a_trial_fails"
    because = "a trial failed, and the breaker closed"


class KeepsCancelledTrials(SoundBreaker):
    def decide(self, successes: int, failures: int) -> None:
        if successes or failures:
            super().decide(successes, failures)


class TestBrokenByKeepingCancelledTrials(BrokenBreaker):
    make = KeepsCancelledTrials
    caught_by = "test_a_trial_without_result_is_given_back"
    because = "give its place back"


class TestBrokenByBlockingAfterCancelledTrials(BrokenBreaker):
    make = KeepsCancelledTrials
    caught_by = "test_recovers_after_cancelled_trials"
    because = "it stays open for ever"


class TakesCancelledForSuccess(SoundBreaker):
    def decide(self, successes: int, failures: int) -> None:
        super().decide(successes or not failures, failures)


class TestBrokenByTakingCancelledForSuccess(BrokenBreaker):
    make = TakesCancelledForSuccess
    caught_by = "test_a_trial_without_result_is_given_back"
    because = "only a success may"


class WantsAnError(SoundBreaker):
    def record(self, successes: int, failures: int, /, *, seconds: float = 0.0, error: Any = None) -> None:
        if failures and not isinstance(error, Exception):
            raise TypeError("error must be an Exception")
        super().record(successes, failures, seconds=seconds)


class TestBrokenByWantingAnError(BrokenBreaker):
    make = WantsAnError
    caught_by = "test_takes_every_error"
    because = "it must never raise"


class TestBrokenByBeingShared(BrokenBreaker):
    caught_by = "test_two_breakers_do_not_share_state"
    because = "make_breaker returned one object twice"

    @pytest.fixture
    def make_breaker(self) -> Any:
        only = SoundBreaker()
        return lambda clock: only


def _make_a_dict() -> Any:
    return {}


class TestBrokenByMakingSomethingElse(BrokenBreaker):
    make = SoundBreaker
    caught_by = "test_descriptor_is_accepted_by_the_registry"
    because = "which is no BreakerPolicy"

    @pytest.fixture
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="circuit_breaker", name="broken", factory=_make_a_dict)


class TestBrokenByMissingBreaker(CircuitBreakerConformance):
    caught_by = "test_is_closed_at_first"
    because = "must override the fixture `make_breaker`"
