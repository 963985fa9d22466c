"""The life of a connection as its users see it; `protocol.connection` has the phases of its conversation."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CONNECTION_STAGES", "ConnectionStage"]


class ConnectionStage(enum.Enum):
    """The stage of a connection."""

    OPENING = "not open yet"
    OPEN = "open"
    ENDED = "ended"


#: Which stage may follow which. `Connection.error` is set with ENDED, and only then.
CONNECTION_STAGES: Final[Mapping[ConnectionStage, frozenset[ConnectionStage]]] = {
    ConnectionStage.OPENING: frozenset({ConnectionStage.OPEN, ConnectionStage.ENDED}),
    ConnectionStage.OPEN: frozenset({ConnectionStage.ENDED}),
    ConnectionStage.ENDED: frozenset(),
}
