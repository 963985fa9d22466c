"""docs/promises.md and the tests agree: each promise is listed, and each test that it names exists."""

from __future__ import annotations

import ast
import re
from functools import cache

from tests.support.paths import ROOT

COUNT = 46
#: Of the wider documentation, these.
WIDER = ("D7", "D44", "D45", "D46", "D47", "D48", "D49", "D50")


@cache
def names_of_tests() -> frozenset[str]:
    """The names of all tests."""
    files = [*(ROOT / "tests").rglob("test_*.py"), *ROOT.glob("plugins/*/tests/test_*.py")]
    return frozenset(
        node.name
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    )


@cache
def promises() -> dict[str, str]:
    """The text of each promise, by its letter and number."""
    parts = re.split(r"^## ([SD]\d+): .*$", (ROOT / "docs" / "promises.md").read_text(), flags=re.MULTILINE)[1:]
    numbers = parts[::2]
    assert len(set(numbers)) == len(numbers), "a promise is listed twice"
    return dict(zip(numbers, parts[1::2], strict=True))


def named(text: str) -> list[str]:
    return re.findall(r"`(test_\w+)`", text)


def test_all_promises_are_listed_in_order() -> None:
    assert list(promises()) == [*(f"S{number}" for number in range(1, COUNT + 1)), *WIDER]


def test_each_promise_says_where_it_is_documented_and_what_holds_it() -> None:
    for number, text in promises().items():
        assert "* Documented: " in text, f"{number} is documented nowhere"
        assert bool(named(text)) != ("* Status: not yet." in text), f"{number} has tests, or it is not yet kept"


def test_each_named_test_exists() -> None:
    gone = {number: sorted(set(named(text)) - names_of_tests()) for number, text in promises().items()}
    assert {number: names for number, names in gone.items() if names} == {}


def test_each_test_of_a_promise_is_named_there() -> None:
    for test in sorted(names_of_tests()):
        numbers = re.match(r"test_((?:[sd]\d+_)+)", test)
        for number in numbers[1].upper().split("_")[:-1] if numbers else ():
            assert test in named(promises()[number]), f"{test} is missing at {number} of docs/promises.md"


def test_a_promise_that_is_not_kept_has_no_test_that_claims_it() -> None:
    claimed = {match[1].upper() for test in names_of_tests() if (match := re.match(r"test_([sd]\d+)_", test))}
    assert claimed.isdisjoint(number for number, text in promises().items() if "* Status: not yet." in text)
