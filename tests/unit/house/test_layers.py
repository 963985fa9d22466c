"""Holds what import-linter cannot see: edges of compiled modules, imports of ``leveret`` itself, uses of private names.

The edges between .py modules are in pyproject.toml, [tool.importlinter].
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING

import pytest
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path


#: The lowest first. A compiled module may import from its own room and from those that stand before it.
ROOMS = [
    "errors",
    "message",
    "settings",
    "wire",
    "plugins",
    "codecs",
    "monitoring",
    "transport",
    "publishing",
    "consuming",
]


SOURCES = ROOT / "cext" / "leveret"


def module_of(path: Path, root: Path) -> str:
    return ".".join(["leveret", *path.relative_to(root).with_suffix("").parts])


COMPILED = sorted(module_of(path, SOURCES) for path in SOURCES.rglob("*.pyx"))


def test_each_compiled_module_is_found_in_a_room() -> None:
    assert len(COMPILED) >= 5
    assert {module.split(".")[1] for module in COMPILED} <= set(ROOMS)


def ours(edges: set[str]) -> set[str]:
    return {edge for edge in edges if edge.split(".")[0] == "leveret"}


CYTHON_IMPORT = re.compile(
    r"^\s*(?:from\s+(?P<source>[\w.]+)\s+)?c?import\s+(?P<names>\([^)]*\)|[\w., *]+)", re.MULTILINE
)


def imports_of_cython(text: str) -> set[str]:
    """Returns the modules that Cython source imports or cimports."""
    found = set()
    for match in CYTHON_IMPORT.finditer(text):
        names = [name.split()[0] for name in match["names"].strip("() ").split(",") if name.strip()]
        source = match["source"]
        if source is None:
            found.update(names)
        elif source == "leveret":
            found.update(f"leveret.{name}" for name in names)
        else:
            found.add(source)
    return found


def edges_of_extensions() -> dict[str, set[str]]:
    edges: defaultdict[str, set[str]] = defaultdict(set)
    for path in SOURCES.rglob("*.p[yx][xd]"):
        if path.stem != "__init__":
            edges[module_of(path, SOURCES)] |= imports_of_cython(path.read_text())
    return edges


def test_headers_without_code_import_nothing_of_ours() -> None:
    headers = {name: edges for name, edges in edges_of_extensions().items() if name not in COMPILED}
    assert {name: ours(edges) for name, edges in headers.items() if ours(edges)} == {}


NEVER = {"asyncio", "selectors", "socket", "ssl", "time", "uvloop", "pluggy", "posix.time", "libc.time"}


def room_of(module: str) -> int:
    return ROOMS.index(module.split(".")[1])


@pytest.mark.parametrize("module", COMPILED)
def test_extensions_import_downward_only(module: str) -> None:
    edges = edges_of_extensions()[module]
    assert {edge for edge in ours(edges) if room_of(edge) > room_of(module)} == set()
    assert not edges & NEVER, "extension modules do no input or output and read no clock"


def test_extensions_of_a_room_import_each_other_in_one_direction() -> None:
    edges = edges_of_extensions()
    graph = {module: {edge for edge in edges[module] if edge in COMPILED and edge != module} for module in COMPILED}
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError


PACKAGE = ROOT / "sdk" / "leveret"


def imports_of_python(text: str) -> set[str]:
    """Returns the modules that Python source imports at run time; ``from leveret import x`` also as ``leveret.x``."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for other in node.orelse:
                visit(other)
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


@pytest.mark.parametrize("room", ["errors", "message", "settings"])
def test_words_that_all_share_do_not_need_extensions(room: str) -> None:
    found = PACKAGE.joinpath(room)
    for source in found.rglob("*.py") if found.is_dir() else [found.with_suffix(".py")]:
        assert not imports_of_python(source.read_text()) & set(COMPILED)


TOP = {"__init__.py", "__main__.py", "cli", "testing"}


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
        ("from leveret.wire.buffers cimport SendBuffer, RecvBuffer", {"leveret.wire.buffers"}),
        ("from leveret cimport wire", {"leveret.wire"}),
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
        ("import leveret.wire.reader as f", {"leveret.wire.reader"}),
        ("from leveret import wire", {"leveret", "leveret.wire"}),
        ("def f():\n    from leveret.wire.reader import X", {"leveret.wire.reader"}),
        ("if TYPE_CHECKING:\n    from leveret.wire.reader import X\nelse:\n    import time", {"time"}),
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


#: Private names of others that a module may use, by module: what it uses, and why.
USED_ANYWAY = {
    "leveret.app.process": {"os._exit": "the documented name of the function"},
    "leveret.testing.child": {"os._exit": "the documented name of the function"},
    "leveret.runtime.loop_watch": {
        "sys._current_frames": "the documented name of the function that shows another thread's stack",
    },
    "leveret.publishing.writing": {
        "asyncio._get_running_loop": "asyncio.get_running_loop, which raises, costs more for each message",
    },
    "leveret.settings.functions": {
        "function._is_coroutine": "the mark of a coroutine function that Cython compiled; inspect does not know it",
    },
}


#: Methods of named tuples, which are private in name alone.
PUBLIC = {"_replace", "_asdict", "_make", "_fields", "_field_defaults"}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def class_of(annotation: ast.expr | None) -> str | None:
    """Returns the class that an annotation or a call names, without its module and without ``| None``."""
    if isinstance(annotation, ast.BinOp):
        names = {class_of(annotation.left), class_of(annotation.right)} - {"None"}
        return names.pop() if len(names) == 1 else None
    if isinstance(annotation, ast.Constant):
        return class_of(ast.parse(annotation.value, mode="eval").body) if isinstance(annotation.value, str) else "None"
    if isinstance(annotation, ast.Subscript):
        return class_of(annotation.value)
    if isinstance(annotation, ast.Attribute):
        return annotation.attr
    return annotation.id if isinstance(annotation, ast.Name) and annotation.id not in {"Any", "object"} else None


def known_classes(scope: ast.AST) -> dict[str, str]:
    """Returns the classes of parameters, of annotated variables, and of attributes that are set to them."""
    known: dict[str, str] = {}
    for node in ast.walk(scope):
        if isinstance(node, ast.arg) and (name := class_of(node.annotation)):
            known[node.arg] = name
        elif isinstance(node, ast.AnnAssign) and (name := class_of(node.annotation)):
            known[ast.unparse(node.target)] = name
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and (name := known.get(ast.unparse(node.value))):
            known.update({ast.unparse(target): name for target in node.targets})
    return known


def private_names_of_others(text: str) -> list[tuple[int, str]]:
    """Finds uses of private names of objects that are not of this module.

    An object is of this module when its class, or where that is not annotated some class of this module, defines the
    name. ``self``, ``cls`` and ``super()`` are.

    Returns:
        Line and expression of each.
    """
    tree = ast.parse(text)
    classes = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    own: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            own.update({node.attr} if ast.unparse(node.value) in {"self", "cls"} else ())
    for body in classes.values():
        for child in body.body:
            targets = child.targets if isinstance(child, ast.Assign) else [getattr(child, "target", None)]
            own.update(target.id for target in targets if isinstance(target, ast.Name))
            if "__slots__" in {target.id for target in targets if isinstance(target, ast.Name)}:
                own.update(str(text.value) for text in ast.walk(child) if isinstance(text, ast.Constant))
    found: list[tuple[int, str]] = []

    def visit(node: ast.AST, known: dict[str, str]) -> None:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            known = known | known_classes(node)
        if isinstance(node, ast.ImportFrom):
            found.extend((node.lineno, f"{node.module}.{name.name}") for name in node.names if is_private(name.name))
        elif isinstance(node, ast.Attribute) and is_private(node.attr):
            value = ast.unparse(node.value)
            is_own = node.attr in own and known.get(value, next(iter(classes), "")) in classes
            if value not in {"self", "cls", "super()", "type(self)"} and not is_own:
                found.append((node.lineno, ast.unparse(node)))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"getattr", "setattr", "hasattr", "delattr"}:
            value, name = ast.unparse(node.args[0]), node.args[1]
            if isinstance(name, ast.Constant) and is_private(str(name.value)) and value not in {"self", "cls"}:
                found.append((node.lineno, f"{value}.{name.value!s}"))
        for child in ast.iter_child_nodes(node):
            visit(child, known)

    visit(tree, {})
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: module_of(path, PACKAGE))
def test_no_module_uses_private_names_of_another(path: Path) -> None:
    allowed = USED_ANYWAY.get(module_of(path, PACKAGE), {}).keys()
    found = private_names_of_others(path.read_text())
    assert [(line, name) for line, name in found if name not in allowed] == []
    assert allowed <= {name for _, name in found}, "this is allowed and not used"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("class A:\n    def f(self, b: B):\n        self._x = b._x", ["b._x"]),
        ("class A:\n    def f(self, b: 'B | None'):\n        self._x = b._x", ["b._x"]),
        ("class A:\n    def f(self, a: A):\n        self._x = a._x", []),
        ("class A:\n    def f(self, a):\n        self._x = a._x", []),
        ("class A:\n    def f(self, a: object):\n        self._x = a._x", []),
        (
            "class A:\n    def __init__(self, b: B):\n        self._b = b\n    def _f(self):\n        self._b._f()",
            ["self._b._f"],
        ),
        ("class A:\n    __slots__ = ('_x',)\nA()._x", []),
        ("def f(a):\n    return a._x, a.__class__, a._replace()", ["a._x"]),
        ("from os import _exit", ["os._exit"]),
        ("import os\nos._exit(1)", ["os._exit"]),
        ("def f(a):\n    return getattr(a, '_x', None)", ["a._x"]),
        ("class A(B):\n    def f(self):\n        super()._x()\n        type(self)._y", []),
    ],
)
def test_private_names_of_others_are_found(text: str, expected: list[str]) -> None:
    assert [name for _, name in private_names_of_others(text)] == expected
