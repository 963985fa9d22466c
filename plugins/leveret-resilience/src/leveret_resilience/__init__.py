"""Retry, backoff and circuit breaker policies for Leveret. They also work around any other asynchronous call.

from leveret_resilience import CircuitBreaker, ExponentialRetry, retrying

breaker = CircuitBreaker(name="stock")
await retrying(ExponentialRetry(), stock.reserve, order, breaker=breaker)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from leveret.plugins import PolicySpec, hookimpl
from leveret_resilience.backoffs import BaseBackoff, ExponentialBackoff, FixedBackoff, LinearBackoff
from leveret_resilience.breaker import BreakerChange, BreakerState, CircuitBreaker, is_failure
from leveret_resilience.calls import guard, retry, retrying
from leveret_resilience.retries import (
    BaseRetry,
    ExponentialRetry,
    FixedRetry,
    LinearRetry,
    NoRetry,
    RetryOn,
    is_transient,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BaseBackoff",
    "BaseRetry",
    "BreakerChange",
    "BreakerState",
    "CircuitBreaker",
    "ExponentialBackoff",
    "ExponentialRetry",
    "FixedBackoff",
    "FixedRetry",
    "LinearBackoff",
    "LinearRetry",
    "NoRetry",
    "RetryOn",
    "guard",
    "is_failure",
    "is_transient",
    "leveret_policies",
    "retry",
    "retrying",
]


@hookimpl
def leveret_policies() -> Iterable[PolicySpec]:
    """Returns the policies with their default options. Each producer that names one gets its own object."""
    return [
        PolicySpec(kind="retry", name="exponential", factory=ExponentialRetry),
        PolicySpec(kind="retry", name="linear", factory=LinearRetry),
        PolicySpec(kind="retry", name="fixed", factory=FixedRetry),
        PolicySpec(kind="retry", name="none", factory=NoRetry),
        PolicySpec(kind="backoff", name="exponential", factory=ExponentialBackoff),
        PolicySpec(kind="backoff", name="linear", factory=LinearBackoff),
        PolicySpec(kind="backoff", name="fixed", factory=FixedBackoff),
        PolicySpec(kind="circuit_breaker", name="failure-rate", factory=CircuitBreaker),
    ]
