"""Returned messages that no caller waits for: they are logged, and not one by one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from leveret.errors import LeveretError, printable

if TYPE_CHECKING:
    from leveret.wire.message import Message

__all__ = ["ReturnLog"]

logger = logging.getLogger("leveret.publishing")

#: Seconds between two log records.
_PAUSE: Final = 10.0


class ReturnLog:
    """Logs returned messages that are not in flight: those of producers without confirms, whose callers do not wait.

    It logs the first at once, and then at most one record in ten seconds, which counts the others.

    It reads no clock: time is passed in.
    """

    def __init__(self) -> None:
        self._quiet_until = float("-inf")
        self._unlogged = 0

    def add(self, now: float, message: Message) -> None:
        """Takes a message.

        Args:
            now: Seconds of a monotonic clock.
            message: What the broker returned.
        """
        if now < self._quiet_until:
            self._unlogged += 1
            return
        self._quiet_until = now + _PAUSE
        others, self._unlogged = self._unlogged, 0
        logger.warning(
            "no queue took a message without a caller that waits for it: %d %s (exchange %r, routing key %r, message "
            "id %r)%s; publish events that may have no subscriber with mandatory=False",
            message.reply_code,
            printable(message.reply_text),
            printable(message.exchange),
            printable(message.routing_key),
            _id_of(message),
            f", and {others} others since the last record" if others else "",
        )


def _id_of(message: Message) -> str | None:
    try:
        return message.message_id
    except LeveretError:  # properties are decoded when they are read
        return None
