"""Trying again: what another attempt may bring after an error, and how long to wait before it.

There is no clock here: the caller waits, and says how long things went well.
"""

from __future__ import annotations

import enum
import logging
import random
from typing import TYPE_CHECKING, Final

from leveret.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectionClosed,
    EncodeFailed,
    IncompatibleProtocol,
    PluginError,
    TLSVerificationError,
    WrongLoopError,
    printable,
)
from leveret.wire.numbers import ACCESS_REFUSED, NOT_ALLOWED

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.errors import LeveretError

__all__ = ["Backoff", "Prospect", "SparseLog", "may_mend", "prospect_of"]

logger = logging.getLogger("leveret.connection")

#: Errors that only another program, or other options, can avoid.
_LASTING: Final = (TLSVerificationError, ConfigurationError, EncodeFailed, PluginError, WrongLoopError)
#: Reply codes of a refusal: what has to change is the broker's users, virtual hosts, rights or limits.
_REFUSALS: Final = (ACCESS_REFUSED, NOT_ALLOWED)
#: Seconds in which failed attempts with the same reason are logged once.
_SPARSE: Final = 10.0
#: 0.001 s doubled this often is longer than a day, the longest delay of the settings; a larger exponent would overflow.
_MAX_DOUBLINGS: Final = 40


class Prospect(enum.Enum):
    """What another attempt may bring after one failed."""

    SOON = "the broker or the network is away, and may be back at any moment"
    LATER = "the broker refused: its users, virtual hosts, rights or limits have to change first"
    NEVER = "the program or its options have to change"


def prospect_of(error: LeveretError) -> Prospect:
    """Returns what another attempt to connect, declare or consume may bring after one failed with this error.

    A refusal is not final: passwords are rotated, and a broker that imports its definitions knows neither its users nor
    its virtual hosts yet. Further attempts cost a login each, so they come seldom.
    """
    if isinstance(error, _LASTING):
        return Prospect.NEVER
    if isinstance(error, AuthenticationError):
        # A broker that stops while it checks the credentials hangs up without a reply text. It refused nothing.
        return Prospect.SOON if error.reply_code == ACCESS_REFUSED and not error.reply_text else Prospect.LATER
    if isinstance(error, ConnectionClosed):
        return Prospect.LATER if error.reply_code in _REFUSALS else Prospect.SOON
    return Prospect.LATER if isinstance(error, IncompatibleProtocol) else Prospect.SOON


def may_mend(error: LeveretError) -> bool:
    """Returns whether another attempt may succeed, soon or later, after one failed with this error."""
    return prospect_of(error) is not Prospect.NEVER


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

    def delay(self, prospect: Prospect = Prospect.SOON) -> float:
        """Returns the seconds to wait before the next attempt.

        Args:
            prospect: LATER waits at the long end: for at least half of the largest bound. A policy chooses for itself.
        """
        if self._policy is not None:
            try:
                seconds: object = self._policy(self.attempts + 1)
                if isinstance(seconds, int | float) and 0 <= seconds < float("inf"):
                    return float(seconds)
                raise ValueError(f"the delay is {printable(repr(seconds), 64)}; it must be seconds")
            except Exception as error:
                logger.warning("the backoff policy failed: %s: %s", type(error).__name__, printable(str(error)))
        least, most = (self._maximum / 2, self._maximum) if prospect is Prospect.LATER else (0.0, self.longest)
        return random.uniform(least, most)  # noqa: S311 - it keeps no secret


class SparseLog:
    """Chooses the failed attempts that are logged: the first, one in ten seconds, and those with another reason."""

    def __init__(self) -> None:
        self._logged_at = float("-inf")
        self._reason: tuple[type[LeveretError], int] | None = None

    def is_due(self, error: LeveretError, now: float) -> bool:
        """Returns whether to log an attempt.

        Args:
            error: Why it failed.
            now: A monotonic time in seconds.
        """
        reason = type(error), getattr(error, "reply_code", 0)
        if reason == self._reason and now - self._logged_at < _SPARSE:
            return False
        self._logged_at, self._reason = now, reason
        return True
