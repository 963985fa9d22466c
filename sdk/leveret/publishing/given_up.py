"""The log of publishings that end UNKNOWN while their producer is being closed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from leveret.errors import printable
from leveret.publishing.lifecycle import ProducerState

if TYPE_CHECKING:
    from leveret.publishing.confirms import ConfirmWindow
    from leveret.publishing.lifecycle import ProducerLife

__all__ = ["GivenUp"]

logger = logging.getLogger("leveret.publishing")

#: How many publishings are named.
_NAMED: Final = 20


class GivenUp:
    """Names the publishings of a closing producer that end UNKNOWN between its making and `log`.

    Args:
        window: The publishings of the producer.
        life: The producer's state; it does nothing unless that is CLOSING.
        exchange: The producer's exchange.
    """

    def __init__(self, window: ConfirmWindow, life: ProducerLife, exchange: str) -> None:
        self._window = window
        self._exchange = exchange
        self._is_closing = life.at(ProducerState.CLOSING)
        self._unknown = window.unknown
        self._open = window.in_flight(_NAMED) if self._is_closing else []

    def log(self, reason: object) -> None:
        """Logs them, if there are any: the broker may have them or not.

        Args:
            reason: Why no outcome will come.
        """
        window = self._window
        count = window.unknown - self._unknown
        if not count or not self._is_closing:
            return
        ended = [(tag, message_id) for tag, message_id in self._open if not window.is_open(tag)]
        named = ", ".join(
            str(tag) if message_id is None else f"{tag} ({printable(message_id, 64)!r})" for tag, message_id in ended
        )
        more = f" and {count - len(ended)} more" if count > len(ended) else ""
        logger.warning(
            "closing a producer of exchange %r: %d publishings end UNKNOWN, with delivery tags (and message ids) "
            "%s%s: %s",
            self._exchange,
            count,
            named,
            more,
            reason,
        )
