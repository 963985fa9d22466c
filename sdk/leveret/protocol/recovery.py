"""Trying again: which errors another attempt may mend, and how long to wait before it.

There is no clock here: the caller waits, and says how long things went well.
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Final

from leveret.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectionClosed,
    EncodeFailed,
    PluginError,
    TLSVerificationError,
    WrongLoopError,
    printable,
)
from leveret.wire.numbers import ACCESS_REFUSED, NOT_ALLOWED

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.errors import LeveretError

__all__ = ["Backoff", "may_mend"]

logger = logging.getLogger("leveret.connection")

#: Errors that every further attempt would end with, too.
_LASTING: Final = (TLSVerificationError, ConfigurationError, EncodeFailed, PluginError, WrongLoopError)
#: 0.001 s doubled this often is longer than a day, the longest delay of the settings; a larger exponent would overflow.
_MAX_DOUBLINGS: Final = 40


def may_mend(error: LeveretError) -> bool:
    """Returns whether another attempt to connect, declare or consume may succeed after one failed with this error."""
    if isinstance(error, AuthenticationError):
        # A broker that stops while it checks the credentials hangs up without a reply text. It refused nothing.
        return error.reply_code == ACCESS_REFUSED and not error.reply_text
    if isinstance(error, ConnectionClosed):
        return error.reply_code != NOT_ALLOWED
    return not isinstance(error, _LASTING)


class Backoff:
    """The delays between attempts that go on until one succeeds: wait for `delay()`, call `count_attempt()`, try.

    Each delay is a random part of a bound that doubles with every attempt, so that the clients of a restarted broker do
    not come back together. A plugin's backoff policy chooses the delays instead; while it fails, these bounds hold.

    Args:
        initial: The bound of the first delay, in seconds.
        maximum: The largest bound, in seconds.
        policy: `BackoffPolicy.delay` of a plugin: seconds to wait after so many failed attempts (1 after the first).

    Attributes:
        attempts: Attempts since the last good time.
    """

    def __init__(self, initial: float, maximum: float, policy: Callable[[int], float] | None = None) -> None:
        self.attempts = 0
        self._initial = initial
        self._maximum = maximum
        self._policy = policy

    @property
    def longest(self) -> float:
        """The bound of the next delay, in seconds."""
        return min(self._initial * 2.0 ** min(self.attempts, _MAX_DOUBLINGS), self._maximum)

    def ran_for(self, seconds: float) -> None:
        """Begins anew after a good time that was longer than the bound.

        A shorter one continues the sequence: a broker that closes each new connection at once is not dialed as fast as
        it does so.

        Args:
            seconds: How long things went well since the last attempt.
        """
        if seconds > self.longest:
            self.attempts = 0

    def count_attempt(self) -> None:
        """Counts an attempt that begins. A wait that was given up before it is none."""
        self.attempts += 1

    def delay(self) -> float:
        """Returns the seconds to wait before the next attempt."""
        if self._policy is not None:
            try:
                seconds: object = self._policy(self.attempts + 1)
                if isinstance(seconds, int | float) and 0 <= seconds < float("inf"):
                    return float(seconds)
                raise ValueError(f"the delay is {printable(repr(seconds), 64)}; it must be seconds")
            except Exception as error:
                logger.warning("the backoff policy failed: %s: %s", type(error).__name__, printable(str(error)))
        return random.uniform(0, self.longest)  # noqa: S311 - it keeps no secret
