"""What a check has found: its state, a text, and what to do."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Finding", "State", "count", "failed", "milliseconds", "ok", "skipped", "some", "warning"]

#: A text names so many things of one kind, and counts the others.
_MOST_NAMED: Final = 8


class State(enum.Enum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check.

    Attributes:
        state: How it ended.
        found: What was found.
        advice: What to do; empty when there is nothing to do.
        figures: Numbers for programs, by name; the names end with their unit.
    """

    state: State
    found: str
    advice: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


def ok(found: str, advice: str = "", figures: Mapping[str, float] | None = None) -> Finding:
    """Makes a finding: all is well. The advice is a suggestion."""
    return Finding(State.OK, found, advice, figures or {})


def warning(found: str, advice: str, figures: Mapping[str, float] | None = None) -> Finding:
    """Makes a finding: it works, and something should be done."""
    return Finding(State.WARNING, found, advice, figures or {})


def failed(found: str, advice: str = "") -> Finding:
    """Makes a finding: it does not work."""
    return Finding(State.FAILED, found, advice)


def skipped(found: str, advice: str = "") -> Finding:
    """Makes a finding: it was not tried, or cannot be known; the text says why."""
    return Finding(State.SKIPPED, found, advice)


def milliseconds(seconds: float) -> str:
    """Formats a duration in milliseconds, to about three digits."""
    value = seconds * 1000
    return f"{value:.0f} ms" if value >= 100 else f"{value:.{1 if value >= 10 else 2}f} ms"


def count(number: int, what: str) -> str:
    """Formats a number of things."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def some(texts: list[str]) -> str:
    """Joins texts with commas, and only counts those beyond the eighth."""
    left = len(texts) - _MOST_NAMED
    return ", ".join(texts[:_MOST_NAMED]) + (f" and {left} more" if left > 0 else "")
