"""Sound retry and backoff policies, each broken in one way, with the conformance kits as their tests."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from leveret.plugins import PolicySpec
from leveret.testing import (
    BackoffConformance,
    RetryConformance,
)

if TYPE_CHECKING:
    from collections.abc import Callable


class BrokenRetry(RetryConformance):
    caught_by: ClassVar[str]
    because: ClassVar[str]
    make: ClassVar[Callable[[], Any]]

    @pytest.fixture
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="retry", name="broken", factory=type(self).make)


class SoundRetry:
    """Three retries with full jitter."""

    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        if attempt > 3 or not isinstance(error, Exception):
            return None
        return random.uniform(0, min(30.0, 2.0 ** (attempt - 1)))


class TestSoundRetry(BrokenRetry):
    make = SoundRetry
    longest_delay = 30.0
    most_attempts = 4
    retried = OSError()


class NeverEnds(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        return 1.0 if isinstance(error, Exception) else None


class TestBrokenByNeverEnding(BrokenRetry):
    make = NeverEnds
    caught_by = "test_gives_up_in_the_end"
    because = "after 1000 attempts it must give up"


class RetriesCancellation(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        return 1.0 if attempt < 4 else None


class TestBrokenByRetryingCancellation(BrokenRetry):
    make = RetriesCancellation
    caught_by = "test_cancellation_is_never_retried"
    because = "a caller that cancels wants no"


class Overflows(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        delay = min(30.0, 2.0**attempt)
        return delay if attempt < 4 and isinstance(error, Exception) else None


class TestBrokenByOverflowing(BrokenRetry):
    make = Overflows
    caught_by = "test_delays_are_finite_and_bounded"
    because = "raised OverflowError: a policy decides, and never raises"


class CountsCalls(SoundRetry):
    def __init__(self) -> None:
        self._calls = 0

    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        if not isinstance(error, Exception):
            return None
        self._calls += 1
        return 1.0 if self._calls % 5 and attempt < 100 else None


class TestBrokenByCountingCalls(BrokenRetry):
    make = CountsCalls
    caught_by = "test_callers_at_once_do_not_disturb_each_other"
    because = "it counts calls"


class RemembersItsDelay(SoundRetry):
    def __init__(self) -> None:
        self._delay = 0.0

    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        if attempt > 100 or not isinstance(error, Exception):
            return None
        self._delay = min(self._delay + 0.01, 30.0)
        return self._delay


class TestBrokenByRememberingItsDelay(BrokenRetry):
    make = RemembersItsDelay
    caught_by = "test_keeps_no_state_between_calls"
    because = "it keeps state"


class PrintsTheError(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        return None if "fatal" in str(error) else super().next_delay(attempt, error)


class TestBrokenByPrintingTheError(BrokenRetry):
    make = PrintsTheError
    caught_by = "test_never_raises_whatever_the_error"
    because = "raised RuntimeError: a policy decides, and never raises"


class ReRaises(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        if not isinstance(error, Exception):
            raise error
        return super().next_delay(attempt, error)


class TestBrokenByRaisingTheError(BrokenRetry):
    make = ReRaises
    caught_by = "test_never_raises_whatever_the_error"
    because = "raised _Base, which is not an Exception"


class IsNegative(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        return 1.0 - attempt if attempt < 4 and isinstance(error, Exception) else None


class TestBrokenByBeingNegative(BrokenRetry):
    make = IsNegative
    caught_by = "test_delays_are_finite_and_bounded"
    because = "must not be negative"


class ReturnsText(SoundRetry):
    def next_delay(self, attempt: int, error: BaseException, /) -> Any:
        return "1s" if attempt < 4 and isinstance(error, Exception) else None


class TestBrokenByReturningText(BrokenRetry):
    make = ReturnsText
    caught_by = "test_delays_are_finite_and_bounded"
    because = "is a str; the interface wants seconds as a float"


class TestBrokenByItsKind(BrokenRetry):
    make = SoundRetry
    caught_by = "test_descriptor_is_accepted_by_the_registry"
    because = "the kind of this PolicySpec is 'backoff'"

    @pytest.fixture
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="backoff", name="broken", factory=SoundRetry)


class BrokenBackoff(BackoffConformance):
    caught_by: ClassVar[str]
    because: ClassVar[str]
    make: ClassVar[Callable[[], Any]]

    @pytest.fixture
    def spec(self) -> PolicySpec:
        return PolicySpec(kind="backoff", name="broken", factory=type(self).make)


class SoundBackoff:
    def delay(self, attempt: int, /) -> float:
        return random.uniform(0, 30.0 if attempt > 6 else 2.0**attempt / 2)


class TestSoundBackoff(BrokenBackoff):
    make = SoundBackoff
    longest_delay = 32.0


class TestBrokenByBeingARetryPolicy(BrokenBackoff):
    make = SoundRetry
    caught_by = "test_descriptor_is_accepted_by_the_registry"
    because = "the factory made a SoundRetry, which is no BackoffPolicy"


class GrowsWithoutEnd(SoundBackoff):
    def delay(self, attempt: int, /) -> float:
        return float(attempt)


class TestBrokenByGrowingWithoutEnd(BrokenBackoff):
    make = GrowsWithoutEnd
    caught_by = "test_delays_are_finite_and_bounded"
    because = "put a maximum on delays that grow"


class GivesUp(SoundBackoff):
    def delay(self, attempt: int, /) -> Any:
        return 1.0 if attempt < 10 else None


class TestBrokenByGivingUp(BrokenBackoff):
    make = GivesUp
    caught_by = "test_delays_are_finite_and_bounded"
    because = "a backoff policy never gives up"


class CountsItsOwnAttempts(SoundBackoff):
    def __init__(self) -> None:
        self._attempt = 0

    def delay(self, attempt: int, /) -> float:
        self._attempt = min(self._attempt + 1, 10_000)
        return self._attempt * 0.01


class TestBrokenByCountingItsOwnAttempts(BrokenBackoff):
    make = CountsItsOwnAttempts
    caught_by = "test_keeps_no_state_between_calls"
    because = "it keeps state"


class IsNotForThreads(SoundBackoff):
    def __init__(self) -> None:
        self._busy = False

    def delay(self, attempt: int, /) -> float:
        if self._busy:
            raise RuntimeError("busy")
        self._busy = True
        if threading.current_thread() is not threading.main_thread():
            time.sleep(1e-5)  # where another thread may come in
        self._busy = False
        return 1.0


class TestBrokenByNotBeingForThreads(BrokenBackoff):
    make = IsNotForThreads
    caught_by = "test_callers_at_once_do_not_disturb_each_other"
    because = "called by two threads at once, raised RuntimeError"
