#!/usr/bin/env python3
"""Updates the lists of tests in docs/promises.md: adds the tests of a promise that are missing there.

The names of a promise's tests begin with `test_s` (or `test_d`) and its number. Names of deleted tests are removed and
printed. If such a test had a name without the number, add the test that replaces it by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "promises.md"


def names_of_tests() -> set[str]:
    """Returns the names of all tests."""
    files = [*(ROOT / "tests").rglob("test_*.py"), *ROOT.glob("plugins/*/tests/test_*.py")]
    return {name for file in files for name in re.findall(r"^\s*(?:async )?def (test_\w+)\(", file.read_text(), re.M)}


def updated(page: str, tests: set[str]) -> tuple[str, list[str]]:
    """Returns the page with correct lists, and the names that were removed."""
    gone: list[str] = []
    parts = re.split(r"(?m)^(?=## [SD]\d+: )", page)
    for index, part in enumerate(parts):
        heading = re.match(r"## ([SD]\d+): ", part)
        if heading is None:
            continue
        before = re.findall(r"`(test_\w+)`", part)
        own = sorted(test for test in tests if re.match(rf"test_(?:[sd]\d+_)*{heading[1].lower()}_", test))
        named = own + [test for test in before if test in tests and test not in own]
        gone += [f"{heading[1]}: {test}" for test in before if test not in tests]
        rest = re.sub(r"\* Tests: .*\Z", "", part, flags=re.DOTALL).rstrip()
        listed = ",\n  ".join(f"`{test}`" for test in named)
        parts[index] = rest + (f"\n* Tests: {listed}.\n\n" if named else "\n\n")
    return "".join(parts).rstrip() + "\n", gone


if __name__ == "__main__":
    text, taken_out = updated(PAGE.read_text(), names_of_tests())
    PAGE.write_text(text)
    print("\n".join(taken_out) or "no test was removed")
