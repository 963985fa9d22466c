"""The log of publishings that end UNKNOWN or NOT_SENT because their producer is closed before their outcomes came."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from leveret.errors import printable

if TYPE_CHECKING:
    from leveret.publishing.confirms import ConfirmWindow

__all__ = ["log_given_up"]

logger = logging.getLogger("leveret.publishing")

#: How many publishings are named.
_NAMED: Final = 20


def log_given_up(window: ConfirmWindow, exchange: str, reason: object) -> None:
    """Names the publishings that have no outcome yet: the broker may have them or not, unless they were not written.

    Args:
        window: The publishings of the producer.
        exchange: The producer's exchange.
        reason: Why no outcome will come.
    """
    count = window.outstanding
    if not count:
        return
    named = ", ".join(
        str(tag) if message_id is None else f"{tag} ({printable(message_id, 64)!r})"
        for tag, message_id in window.in_flight(_NAMED)
    )
    logger.warning(
        "closing a producer of exchange %r: %d publishings end %s, with delivery tags (and message ids) %s%s: %s",
        exchange,
        count,
        f"UNKNOWN or NOT_SENT ({window.held} of them)" if window.held else "UNKNOWN",
        named,
        f" and {count - _NAMED} more" if count > _NAMED else "",
        reason,
    )
