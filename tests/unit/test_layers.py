"""Holds the layers that import-linter cannot see: edges of compiled modules, and imports of ``leveret`` itself.

The edges between .py modules are in pyproject.toml, [tool.importlinter].
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sdk" / "leveret"
EXTENSIONS = sorted((ROOT / "cext" / "leveret").glob("_*.pyx"))

#: Lowest first; a module may import what stands before it.
BELOW = ["leveret.errors", "leveret.message", "leveret.settings"]
COMPILED = ["leveret._buffers", "leveret._framing", "leveret._waiting", "leveret._batching", "leveret._consuming"]
TOP = {"__init__.py", "__main__.py", "cli", "testing"}
NEVER = {"asyncio", "selectors", "socket", "ssl", "time", "uvloop", "pluggy", "posix.time", "libc.time"}
CYTHON_IMPORT = re.compile(
    r"^\s*(?:from\s+(?P<source>[\w.]+)\s+)?c?import\s+(?P<names>\([^)]*\)|[\w., *]+)", re.MULTILINE
)


def imports_of_cython(text: str) -> set[str]:
    """Returns the modules that Cython source imports or cimports, relative ones resolved against ``leveret``."""
    found = set()
    for match in CYTHON_IMPORT.finditer(text):
        names = [name.split()[0] for name in match["names"].strip("() ").split(",") if name.strip()]
        source = match["source"]
        if source is None:
            found.update(names)
        elif source in {".", "leveret"}:
            found.update(f"leveret.{name}" for name in names)
        else:
            found.add("leveret" + source if source.startswith(".") else source)
    return found


def imports_of_python(text: str) -> set[str]:
    """Returns the modules that Python source imports at run time; ``from leveret import x`` also as ``leveret.x``."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for child in node.orelse:
                visit(child)
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import; write the module's whole name"
            found.add(node.module or "")
            if node.module == "leveret":
                found.update(f"leveret.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(text))
    return found


def ours(edges: set[str]) -> set[str]:
    return {edge for edge in edges if edge.split(".")[0] == "leveret"}


def edges_of_extensions() -> dict[str, set[str]]:
    edges = defaultdict(set)
    for path in (ROOT / "cext" / "leveret").iterdir():
        if path.suffix in {".pyx", ".pxd"} and path.stem != "__init__":
            edges[f"leveret.{path.stem}"] |= imports_of_cython(path.read_text())
    return edges


def test_every_extension_has_a_layer() -> None:
    assert [f"leveret.{path.stem}" for path in EXTENSIONS] == sorted(COMPILED)


def test_headers_without_code_import_nothing_of_ours() -> None:
    headers = {name: edges for name, edges in edges_of_extensions().items() if name not in COMPILED}
    assert {name: ours(edges) for name, edges in headers.items() if ours(edges)} == {}


@pytest.mark.parametrize("module", COMPILED)
def test_extensions_import_downward_only(module: str) -> None:
    edges = edges_of_extensions()
    headers = set(edges) - set(COMPILED)
    allowed = {*BELOW, *headers, *COMPILED[: COMPILED.index(module) + 1]}
    assert ours(edges[module]) <= allowed
    assert not edges[module] & NEVER, "extension modules do no input or output and read no clock"


@pytest.mark.parametrize("module", BELOW)
def test_words_that_all_share_do_not_need_extensions(module: str) -> None:
    source = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    assert not imports_of_python(source.read_text()) & set(COMPILED)


def test_only_the_top_imports_the_package_itself() -> None:
    # Further down, `from leveret import connect` would be a cycle through __init__, and hide which layer is used.
    # The version alone is no layer.
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] not in TOP:
            text = path.read_text().replace("from leveret import __version__\n", "pass\n")
            assert "leveret" not in imports_of_python(text), path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from leveret._buffers cimport SendBuffer, ReceiveBuffer", {"leveret._buffers"}),
        ("from ._endian cimport load16", {"leveret._endian"}),
        ("from leveret cimport _framing", {"leveret._framing"}),
        ("from libc.string cimport memcpy", {"libc.string"}),
        ("cimport cython", {"cython"}),
        ("import asyncio, struct as s", {"asyncio", "struct"}),
        ("    import time", {"time"}),
        ("from leveret.errors import (\n    FrameError,\n)", {"leveret.errors"}),
        ("# import time\nx = important", set()),
    ],
)
def test_imports_of_cython_are_found(text: str, expected: set[str]) -> None:
    assert imports_of_cython(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import leveret._framing as f", {"leveret._framing"}),
        ("from leveret import _framing", {"leveret", "leveret._framing"}),
        ("def f():\n    from leveret._framing import X", {"leveret._framing"}),
        ("if TYPE_CHECKING:\n    from leveret._framing import X\nelse:\n    import time", {"time"}),
    ],
)
def test_imports_of_python_are_found(text: str, expected: set[str]) -> None:
    assert imports_of_python(text) == expected


def test_plugins_import_only_what_is_promised_to_them() -> None:
    promised = {"leveret.plugins", "leveret.errors", "leveret.message"}
    sources = sorted(ROOT.glob("plugins/*/src/**/*.py"))
    assert sources
    for source in sources:
        for edge in ours(imports_of_python(source.read_text())):
            assert any(edge == name or edge.startswith(f"{name}.") for name in promised), f"{source} imports {edge}"


def test_the_core_imports_no_plugin_distribution() -> None:
    distributions = {path.name.replace("-", "_") for path in ROOT.glob("plugins/*")}
    for path in PACKAGE.rglob("*.py"):
        assert not {edge.split(".")[0] for edge in imports_of_python(path.read_text())} & distributions, path


def test_importing_leveret_loads_nothing_that_only_a_part_needs() -> None:
    heavy = {"asyncio", "dataclasses", "inspect", "msgspec", "pluggy", "ssl", "uvloop", "leveret.message"}
    program = f"import sys, leveret; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
