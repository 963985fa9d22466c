"""The retry policies: they decide after which errors to try again, and how often."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from leveret.errors import (
    AuthenticationError,
    BackpressureError,
    ConfigurationError,
    ConnectFailed,
    ConnectionClosed,
    ConnectionLost,
    EncodeFailed,
    LeveretError,
    OperationTimeout,
    PolicyError,
    PublishError,
    ResourceLocked,
    TLSVerificationError,
)
from leveret.message import Outcome
from leveret_resilience._checks import check_callable, check_count, check_flag
from leveret_resilience.backoffs import BaseBackoff, ExponentialBackoff, FixedBackoff, LinearBackoff

__all__ = ["BaseRetry", "ExponentialRetry", "FixedRetry", "LinearRetry", "NoRetry", "RetryOn", "is_transient"]

#: Exception types, or a function that returns whether to try again after an error.
RetryOn: TypeAlias = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]

_MOST_RETRIES: Final = 1_000_000
#: Never retried, whatever `retry_on` says: another policy has decided, or the same call would fail in the same way.
_FINAL: Final = (ConfigurationError, EncodeFailed, PolicyError)
#: After these errors it is unknown whether the broker has done what was requested.
_UNCERTAIN: Final = (ConnectionClosed, ConnectionLost, OperationTimeout)


def is_transient(error: BaseException, *, retry_unknown: bool = False) -> bool:
    """Returns whether trying again may help and is safe. `retry_on=None` stands for this function.

    | error | |
    |---|---|
    | `PublishError` with outcome NACKED or NOT_SENT, `BackpressureError` | yes: the broker does not have the message |
    | outcome UNKNOWN, `OperationTimeout`, `ConnectionLost`, `ConnectionClosed` | only with `retry_unknown` |
    | `PublishError` with outcome RETURNED | no: there is no binding for it |
    | `ConnectFailed`, `ResourceLocked` | yes, but not `TLSVerificationError` and `AuthenticationError` |
    | every other error of Leveret, such as `ConfigurationError`, `EncodeFailed`, `NotFound`, `CircuitOpen` | no |
    | every other `Exception` | yes: nothing is known about it |
    | other `BaseException`s, such as `CancelledError` and `KeyboardInterrupt` | no |

    Args:
        error: The error.
        retry_unknown: Whether to try again when the first attempt may have succeeded. A message may then be published
            twice.

    Returns:
        True when it should be tried again.
    """
    if isinstance(error, PublishError):
        return error.outcome in (Outcome.NACKED, Outcome.NOT_SENT) or (
            retry_unknown and error.outcome == Outcome.UNKNOWN
        )
    if isinstance(error, TLSVerificationError | AuthenticationError):
        return False
    if isinstance(error, BackpressureError | ConnectFailed | ResourceLocked):
        return True
    if isinstance(error, LeveretError):
        return retry_unknown and isinstance(error, _UNCERTAIN)
    return isinstance(error, Exception)


@dataclass(frozen=True, kw_only=True)
class BaseRetry(BaseBackoff):
    """The base of the retry policies. Subclasses choose the delays.

    A policy has no state, so any number of calls may share one; each call counts its own attempts. Cancellation,
    `KeyboardInterrupt` and other exceptions that are not an `Exception` are never retried, nor are
    `ConfigurationError`, `EncodeFailed`, `CircuitOpen` and `RetriesExhausted`, whatever `retry_on` says.

    Attributes:
        retries: The most attempts after the first one, 0 to 1000000.
        retry_on: The errors to try again after: exception types, or a function that gets the error. None stands for
            `is_transient`.
        retry_unknown: True: also tries again after a publishing with outcome UNKNOWN, which may then arrive twice.
            Without it such publishings are not retried, whatever `retry_on` says.
    """

    retries: int = 3
    retry_on: RetryOn | None = None
    retry_unknown: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("retries", self.retries, 0, _MOST_RETRIES)
        check_flag("retry_unknown", self.retry_unknown)
        chosen: object = self.retry_on
        if chosen is None or isinstance(chosen, type):
            chosen = () if chosen is None else (chosen,)
        if isinstance(chosen, tuple):
            for each in chosen:
                if not (isinstance(each, type) and issubclass(each, Exception)):
                    raise ConfigurationError(
                        f"retry_on must name types of Exception; {each!r} is not one", option="retry_on"
                    )
        else:
            check_callable("retry_on", chosen)

    def retries_error(self, error: BaseException) -> bool:
        """Returns whether this policy tries again after an error, if attempts are left.

        Args:
            error: The exception of an attempt.
        """
        if not isinstance(error, Exception) or isinstance(error, _FINAL):
            return False
        if isinstance(error, PublishError) and error.outcome == Outcome.UNKNOWN and not self.retry_unknown:
            return False
        chosen = self.retry_on
        if chosen is None:
            return is_transient(error, retry_unknown=self.retry_unknown)
        if isinstance(chosen, type | tuple):
            return isinstance(error, chosen)
        return bool(chosen(error))

    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        """See `leveret.plugins.RetryPolicy`."""
        return self.delay(attempt) if attempt <= self.retries and self.retries_error(error) else None


@dataclass(frozen=True, kw_only=True)
class ExponentialRetry(BaseRetry, ExponentialBackoff):
    """Tries again after delays that double, with full jitter; see `ExponentialBackoff` and `BaseRetry` for the options.

    Example:
        >>> policy = ExponentialRetry(retries=2, jitter=False)
        >>> [policy.next_delay(attempt, OSError()) for attempt in (1, 2, 3)]
        [1.0, 2.0, None]
    """


@dataclass(frozen=True, kw_only=True)
class LinearRetry(BaseRetry, LinearBackoff):
    """Tries again after 1, 2, 3 and so on seconds; see `LinearBackoff` and `BaseRetry` for the options."""


@dataclass(frozen=True, kw_only=True)
class FixedRetry(BaseRetry, FixedBackoff):
    """Always waits for the same time before it tries again; see `FixedBackoff` and `BaseRetry` for the options."""


@dataclass(frozen=True)
class NoRetry:
    """Never tries again: the first failure is the last."""

    def next_delay(self, attempt: int, error: BaseException, /) -> None:
        """Returns None."""
