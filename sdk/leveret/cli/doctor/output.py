"""The table and the JSON of an examination."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from rich import box
from rich.table import Table
from rich.text import Text

from leveret import __version__
from leveret.cli.doctor.finding import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leveret.cli.doctor.finding import Finding

__all__ = ["examination_json", "examination_table", "has_failed"]

_STYLES: Final = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "bold red", State.SKIPPED: "dim"}


def has_failed(rows: Sequence[tuple[str, Finding]]) -> bool:
    """Returns whether a check failed."""
    return any(finding.state is State.FAILED for _, finding in rows)


def examination_table(rows: Sequence[tuple[str, Finding]]) -> Table:
    """Makes a table with a row for each check."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("found", ratio=3)
    table.add_column("what to do", ratio=2)
    for name, finding in rows:
        state = Text(finding.state.value, style=_STYLES[finding.state])
        table.add_row(Text(name), state, Text(finding.found), Text(finding.advice))
    return table


def examination_json(url: str, rows: Sequence[tuple[str, Finding]]) -> dict[str, Any]:
    """Returns an examination for JSON."""
    return {
        "leveret": __version__,
        "url": url,
        "failed": has_failed(rows),
        "checks": [
            {
                "check": name,
                "state": finding.state.value,
                "found": finding.found,
                "advice": finding.advice,
                "figures": dict(finding.figures),
            }
            for name, finding in rows
        ],
    }
