"""docs/states.md shows the table of each state machine."""

from __future__ import annotations

import importlib
import re
from typing import Any

import pytest
from tests.support.paths import ROOT

PAGE = (ROOT / "docs" / "states.md").read_text()
MACHINES = {
    heading: (table, module)
    for heading, table, module in re.findall(
        r"^## (\w+)\n\n.*?`([A-Z_]+)` in `([\w.]+)`", PAGE, re.MULTILINE | re.DOTALL
    )
}


def documented(heading: str) -> set[tuple[str, str]]:
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| ([A-Z_, ]+) \| ([A-Z_]+) \| .+ \|$", section, re.MULTILINE)
    return {(old, new) for olds, new in rows for old in olds.split(", ")}


def test_every_heading_is_a_machine() -> None:
    assert list(MACHINES) == re.findall(r"^## (\w+)$", PAGE, re.MULTILINE)
    assert len(MACHINES) >= 6


@pytest.mark.parametrize("heading", MACHINES)
def test_the_page_has_the_transitions_of_the_table(heading: str) -> None:
    name, module = MACHINES[heading]
    table: dict[Any, Any] = getattr(importlib.import_module(module), name)
    states = getattr(importlib.import_module(module), heading)
    assert set(table) == set(states)
    assert documented(heading) == {(old.name, new.name) for old, news in table.items() for new in news}
