"""$distribution: a retry policy for Leveret.

It tries three times more, after 0.1, 0.2 and 0.4 seconds. Decide by your own rules in
its place: what the function must do is said in `leveret.plugins.RetryPolicy`.
"""

from __future__ import annotations

from leveret.errors import BackpressureError, PublishError, TransportError
from leveret.message import Outcome
from leveret.plugins import PolicySpec, hookimpl

__all__ = ["ThreeRetries", "leveret_policies"]

_RETRIES = 3
_FIRST_DELAY = 0.1  # seconds


class ThreeRetries:
    """Three retries, each after twice the time.

    It keeps nothing between calls, so calls at the same time do not disturb each other.
    """

    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        """Decides.

        Args:
            attempt: How many attempts have failed: 1 after the first.
            error: What the last one raised.

        Returns:
            Seconds to wait before the next attempt, or None to give up.
        """
        if attempt > _RETRIES or not _worth_another(error):
            return None
        return _FIRST_DELAY * 2.0 ** (attempt - 1)


def _worth_another(error: BaseException) -> bool:
    # A publishing whose outcome is unknown may have arrived: again would make it two.
    if isinstance(error, PublishError):
        return error.outcome in (Outcome.NACKED, Outcome.NOT_SENT)
    return isinstance(error, BackpressureError | TransportError)


@hookimpl
def leveret_policies() -> list[PolicySpec]:
    """Called once, when plugins are discovered."""
    return [
        PolicySpec(
            kind="retry",
            name="$name",
            factory=ThreeRetries,
            api_version=1,
        )
    ]
