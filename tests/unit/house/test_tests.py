"""The tests read as a manual: one module for each chapter, none too long, none that leans on another, none at large."""

from __future__ import annotations

import ast
import re

from tests.support.paths import ROOT

TESTS = ROOT / "tests"
MODULES = sorted(TESTS.rglob("test_*.py"))
#: More lines than this are more than one chapter.
MOST_LINES = 800


def imported(source: str) -> set[str]:
    """The modules that a module imports, those of `from package import module` included."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def is_of_tests(name: str) -> bool:
    """Whether a module is in tests/ and neither in tests/support nor in tests/corpus, which tests share."""
    return name.startswith("tests.") and not name.startswith(("tests.support", "tests.corpus"))


def test_no_module_of_tests_imports_another() -> None:
    shared = [
        *MODULES,
        *TESTS.rglob("conftest.py"),
        *(TESTS / "support").rglob("*.py"),
        *(TESTS / "corpus").glob("*.py"),
    ]
    found = {str(path): sorted(filter(is_of_tests, imported(path.read_text()))) for path in shared}
    assert {path: names for path, names in found.items() if names} == {}


def test_imports_of_other_modules_of_tests_are_found() -> None:
    source = "from tests.unit.wire.test_reader import read\nfrom tests.unit import wire\nimport tests.support.peers\n"
    assert sorted(filter(is_of_tests, imported(source))) == [
        "tests.unit",
        "tests.unit.wire",
        "tests.unit.wire.test_reader",
        "tests.unit.wire.test_reader.read",
    ]


def test_each_module_begins_with_a_sentence() -> None:
    docstrings = {str(path): ast.get_docstring(ast.parse(path.read_text())) or "" for path in MODULES}
    assert [path for path, text in docstrings.items() if not re.search(r"[.:]$", text.partition("\n\n")[0])] == []


def test_no_module_is_longer_than_a_chapter() -> None:
    lengths = {str(path): path.read_text().count("\n") for path in MODULES}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}


def test_modules_of_unit_and_integration_tests_lie_in_the_folder_of_their_chapter() -> None:
    assert [
        *TESTS.glob("test_*.py"),
        *(TESTS / "unit").glob("test_*.py"),
        *(TESTS / "integration").glob("test_*.py"),
    ] == []


def test_modules_of_tests_that_pages_name_are_there() -> None:
    names = {path.name for path in MODULES}
    pages = [ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md"), *ROOT.glob("docs/decisions/*.md")]
    lost = {
        (page.name, name)
        for page in pages
        for name in re.findall(r"\btests?[\w/]*/test_\w+\.py|\btest_\w+\.py", page.read_text())
        if name.rpartition("/")[2] not in names or ("/" in name and not (ROOT / name).is_file())
    }
    assert lost == set()
