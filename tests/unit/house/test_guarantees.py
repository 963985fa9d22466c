"""The table at the head of docs/guarantees.md links each row to tests, and each of them exists."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING, NamedTuple

import pytest
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGE = ROOT / "docs" / "guarantees.md"
LINK = re.compile(r"\[(?P<name>test_\w+)\]\((?P<path>[^)#]+)\)")


class Row(NamedTuple):
    when: str
    then: str
    held_by: str


def rows() -> list[Row]:
    """The rows of the page's first table, without its heading."""
    lines = [line for line in PAGE.read_text().partition("\n## Publishing")[0].splitlines() if line.startswith("| ")]
    return [Row(*(cell.strip() for cell in line.strip("|").split(" | "))) for line in lines[1:]]


def names_of_tests_in(path: Path) -> set[str]:
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, functions)}


def test_the_table_has_a_row_for_each_thing_that_goes_wrong() -> None:
    assert len(rows()) == 9


@pytest.mark.parametrize("row", [pytest.param(row, id=row.when) for row in rows()])
def test_each_row_is_held_by_tests_that_exist(row: Row) -> None:
    links = [(match["name"], (PAGE.parent / match["path"]).resolve()) for match in LINK.finditer(row.held_by)]
    assert links, "no test is linked"
    assert [name for name, path in links if not path.is_file() or name not in names_of_tests_in(path)] == []
