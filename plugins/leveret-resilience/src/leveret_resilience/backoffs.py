"""The backoff policies. Retry policies use the same delays."""

from __future__ import annotations

import abc
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from tenacity import AsyncRetrying, RetryCallState, wait_exponential, wait_incrementing

from leveret_resilience._checks import check_callable, check_flag, check_number

if TYPE_CHECKING:
    from collections.abc import Callable

    from tenacity.wait import wait_base

__all__ = ["BaseBackoff", "ExponentialBackoff", "FixedBackoff", "LinearBackoff"]

_DAY: Final = 86_400.0
#: Attempt numbers are limited to this, because larger ones do not fit a float.
_LAST_ATTEMPT: Final = 2**53
#: tenacity's strategies need the state of a retried call; this one is never run.
_NO_CALL: Final = AsyncRetrying()


@dataclass(frozen=True, kw_only=True)
class BaseBackoff(abc.ABC):
    """The base of all backoffs. A delay depends only on the number of failed attempts, and on chance."""

    def __post_init__(self) -> None:  # noqa: B027 - the end of the chain, which each class calls with super()
        """Checks the options."""

    @abc.abstractmethod
    def delay(self, attempt: int, /) -> float:
        """Returns the seconds to wait after `attempt` failed attempts (1 after the first)."""


@dataclass(frozen=True, kw_only=True)
class ExponentialBackoff(BaseBackoff):
    """Waits up to `initial`, `initial * factor`, `initial * factor**2` and so on, never longer than `maximum`.

    With `jitter` each delay is drawn uniformly from 0 to that bound ("full jitter"), so that clients that failed at the
    same time do not all try again at the same time. No delay is longer than `maximum`.

    Attributes:
        initial: The bound after the first failure in seconds, 0.001 to 86400.
        maximum: The largest bound in seconds, `initial` to 86400.
        factor: The factor of the bound after each failure, 1 to 100.
        jitter: False: waits for exactly the bound.
        random: Returns uniform numbers from 0 to 1; for tests.

    Example:
        >>> backoff = ExponentialBackoff(jitter=False)
        >>> [backoff.delay(attempt) for attempt in (1, 2, 3, 4, 5, 6, 1_000_000_000)]
        [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    """

    initial: float = 1.0
    maximum: float = 30.0
    factor: float = 2.0
    jitter: bool = True
    random: Callable[[], float] = field(default=random.random, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("initial", self.initial, 0.001, _DAY, " s")
        check_number("maximum", self.maximum, self.initial, _DAY, " s")
        check_number("factor", self.factor, 1, 100)
        check_flag("jitter", self.jitter)
        check_callable("random", self.random)

    def delay(self, attempt: int, /) -> float:  # noqa: D102
        # A float, because an int to the power of a large attempt number would have billions of digits.
        strategy = wait_exponential(multiplier=self.initial, max=self.maximum, exp_base=float(self.factor))
        bound = _wait(strategy, attempt)
        return bound * self.random() if self.jitter else bound


@dataclass(frozen=True, kw_only=True)
class LinearBackoff(BaseBackoff):
    """Waits for `step`, `2 * step`, `3 * step` and so on, never longer than `maximum`.

    Attributes:
        step: Seconds, 0.001 to 86400.
        maximum: Seconds, `step` to 86400.

    Example:
        >>> [LinearBackoff().delay(attempt) for attempt in (1, 2, 3, 1_000_000_000)]
        [1.0, 2.0, 3.0, 30.0]
    """

    step: float = 1.0
    maximum: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("step", self.step, 0.001, _DAY, " s")
        check_number("maximum", self.maximum, self.step, _DAY, " s")

    def delay(self, attempt: int, /) -> float:  # noqa: D102
        return _wait(wait_incrementing(start=self.step, increment=self.step, max=self.maximum), attempt)


@dataclass(frozen=True, kw_only=True)
class FixedBackoff(BaseBackoff):
    """Always waits for the same time.

    Attributes:
        interval: Seconds, 0 to 86400.
    """

    interval: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("interval", self.interval, 0, _DAY, " s")

    def delay(self, attempt: int, /) -> float:  # noqa: D102
        return float(self.interval)


def _wait(strategy: wait_base, attempt: int) -> float:
    state = RetryCallState(_NO_CALL, None, (), {})
    state.attempt_number = min(max(attempt, 1), _LAST_ATTEMPT)
    return float(strategy(state))
