"""State machines as tables: which state may follow which."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, TypeVar

from leveret.errors import LocalProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

S = TypeVar("S", bound=enum.Enum)

__all__ = ["moved"]


def moved(table: Mapping[S, Set[S]], old: S, new: S) -> S:
    """Checks a change of state against its table.

    Args:
        table: The states that may follow each state.
        old: The state now.
        new: The wanted state.

    Returns:
        The new state.

    Raises:
        LocalProtocolError: The table does not have this change: a defect of Leveret.
    """
    if new not in table[old]:
        raise LocalProtocolError(f"{type(old).__name__} cannot change from {old.name} to {new.name}")
    return new
