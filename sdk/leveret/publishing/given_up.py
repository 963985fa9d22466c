"""The log of publishings that end UNKNOWN or NOT_SENT while their producer is being closed."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from leveret.errors import printable
from leveret.publishing.lifecycle import ProducerState

if TYPE_CHECKING:
    from typing import Self

    from leveret.publishing.confirms import ConfirmWindow
    from leveret.publishing.lifecycle import ProducerLife

__all__ = ["GivenUp"]

logger = logging.getLogger("leveret.publishing")

#: How many publishings are named.
_NAMED: Final = 20


class GivenUp:
    """Logs the publishings of a closing producer that end in its `with` block.

    The broker may have those that end UNKNOWN, and has none of those that were kept for a channel and end NOT_SENT.

    Args:
        window: The publishings of the producer.
        life: The producer's state; nothing is logged unless it is being closed at the beginning.
        exchange: The producer's exchange.
        reason: Why no outcome will come.
    """

    def __init__(self, window: ConfirmWindow, life: ProducerLife, exchange: str, reason: object) -> None:
        self._window = window
        self._exchange = exchange
        self._reason = reason
        self._is_closing = life.at(ProducerState.DRAINING, ProducerState.CLOSING)
        self._before = window.unknown, window.not_sent
        self._open = window.in_flight(_NAMED) if self._is_closing else []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        window = self._window
        unknown, not_sent = window.unknown - self._before[0], window.not_sent - self._before[1]
        count = unknown + not_sent
        if not count or not self._is_closing:
            return
        ended = [(tag, message_id) for tag, message_id in self._open if not window.is_open(tag)]
        named = ", ".join(
            str(tag) if message_id is None else f"{tag} ({printable(message_id, 64)!r})" for tag, message_id in ended
        )
        more = f" and {count - len(ended)} more" if count > len(ended) else ""
        logger.warning(
            "closing a producer of exchange %r: %d publishings end %s, with delivery tags (and message ids) %s%s: %s",
            self._exchange,
            count,
            f"UNKNOWN or NOT_SENT ({not_sent} of them)" if not_sent else "UNKNOWN",
            named,
            more,
            self._reason,
        )
