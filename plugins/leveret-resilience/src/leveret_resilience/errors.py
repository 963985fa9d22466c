"""The core's errors, with what this plugin knows beyond them. Catching the core's types is enough."""

from __future__ import annotations

from leveret.errors import CircuitOpen, RetriesExhausted

__all__ = ["AttemptsExhausted", "BreakerOpen"]


class BreakerOpen(CircuitOpen):
    """The circuit breaker does not let calls through; the operation was not tried.

    Attributes:
        breaker: The circuit breaker's name.
        retry_after: Seconds until a call may be let through as a trial. When all trials are running this is the latest
            moment: it may be earlier.
    """

    def __init__(self, message: str, *, breaker: str, retry_after: float) -> None:
        super().__init__(message)
        self.breaker = breaker
        self.retry_after = retry_after


class AttemptsExhausted(RetriesExhausted):
    """The operation failed as often, or for as long, as the policy allows; its cause is the last failure.

    Attributes:
        attempts: How often it was tried.
    """

    def __init__(self, message: str, *, attempts: int) -> None:
        super().__init__(message)
        self.attempts = attempts
