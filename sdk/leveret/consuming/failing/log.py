"""The log of failures: with their tracebacks, and not of each one when thousands fail."""

from __future__ import annotations

import logging
import time
from typing import Final

__all__ = ["FailureLog"]

# A user looks for what happens to a consumer's messages under the consumer's name.
logger = logging.getLogger("leveret.consuming")

#: At most this many failures are logged in a second, those of handlers with their tracebacks.
_MOST_LOGGED: Final = 20


class FailureLog:
    """Logs the failures of one consumer, and only counts those beyond 20 in a second.

    Writing the log would take most of the time otherwise.

    Args:
        queue: The queue, for the log.
    """

    def __init__(self, queue: str) -> None:
        self._queue = queue
        # How many were logged in the second that began then, and how many were not since the last that was.
        self._since = float("-inf")
        self._logged = self._unlogged = 0

    def failure(self, text: str, *args: object, error: BaseException | None = None) -> None:
        """Logs a failure of a message as a warning, with the traceback of an error."""
        self._write(logging.WARNING, text, args, error)

    def program_error(self, text: str, *args: object) -> None:
        """Logs an error of the program, which no retry mends."""
        self._write(logging.ERROR, f"error of the program: {text}", args, None)

    def _write(self, level: int, text: str, args: tuple[object, ...], error: BaseException | None) -> None:
        now = time.monotonic()
        if now - self._since >= 1.0:
            self._since, self._logged = now, 0
        if self._logged == _MOST_LOGGED:
            self._unlogged += 1
            return
        self._logged += 1
        if self._unlogged:
            logger.warning("queue %r: %d failures were not logged one by one", self._queue, self._unlogged)
            self._unlogged = 0
        logger.log(level, f"queue %r: {text}", self._queue, *args, exc_info=error)
