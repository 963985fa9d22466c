"""$distribution: a retry policy for Leveret.

It allows three more attempts, after 0.1, 0.2 and 0.4 seconds. Replace this by your own
rules. `leveret.plugins.RetryPolicy` tells what the method must do.
"""

from __future__ import annotations

from leveret.errors import BackpressureError, PublishError, TransportError
from leveret.message import Outcome
from leveret.plugins import PolicySpec, hookimpl

__all__ = ["ThreeRetries", "leveret_policies"]

_RETRIES = 3
_FIRST_DELAY = 0.1  # seconds


class ThreeRetries:
    """Three retries, each after twice the delay of the one before.

    It has no state, so concurrent calls may share it.
    """

    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        """Decides about the next attempt.

        Args:
            attempt: The number of failed attempts: 1 after the first.
            error: The exception of the last attempt.

        Returns:
            Seconds to wait before the next attempt, or None to give up.
        """
        if attempt > _RETRIES or not _worth_another(error):
            return None
        return _FIRST_DELAY * 2.0 ** (attempt - 1)


def _worth_another(error: BaseException) -> bool:
    # A publishing with an unknown outcome may have arrived; another attempt could duplicate it.
    if isinstance(error, PublishError):
        return error.outcome in (Outcome.NACKED, Outcome.NOT_SENT)
    return isinstance(error, BackpressureError | TransportError)


@hookimpl
def leveret_policies() -> list[PolicySpec]:
    """Returns the plugin's policies. Called once, when plugins are discovered."""
    return [
        PolicySpec(
            kind="retry",
            name="$name",
            factory=ThreeRetries,
            api_version=1,
        )
    ]
