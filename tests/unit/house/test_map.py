"""The map of the house in docs/design.md and CONTRIBUTING.md lists the rooms that there are."""

from __future__ import annotations

import re

import pytest
from tests.support.paths import ROOT


def rooms() -> set[str]:
    package = ROOT / "sdk" / "leveret"
    folders = {path.parent.name for path in package.glob("*/__init__.py")}
    return folders | {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")}


@pytest.mark.parametrize("page", ["docs/design.md", "CONTRIBUTING.md"])
def test_each_room_is_on_the_map_and_each_listed_room_exists(page: str) -> None:
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \|", (ROOT / page).read_text(), re.MULTILINE)
    listed = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row)}
    assert listed == rooms()


def test_each_decision_is_listed_once() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(r"^\* \[\d{4}\]\(([^)]+)\)", (folder / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in folder.glob("0*.md"))
    numbers = [name[:4] for name in listed]
    assert len(set(numbers)) == len(numbers)
