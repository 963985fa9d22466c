"""Guards: every hook is documented with its exact signature, and has a test that carries its name."""

from __future__ import annotations

import ast
import inspect
import re

import pytest
from tests.support.paths import ROOT

from leveret.plugins import hookspecs

PAGE = ROOT / "docs" / "plugins" / "hooks.md"


def signatures() -> dict[str, str]:
    """The hooks with their signatures, as the source writes them."""
    tree = ast.parse(inspect.getsource(hookspecs))
    (specs,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "HookSpecs")
    return {
        node.name: f"{node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns)}"
        for node in specs.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("leveret_") and node.returns is not None
    }


HOOKS = signatures()


def test_every_hook_is_found() -> None:
    assert set(HOOKS) == {name for name in vars(hookspecs.HookSpecs) if name.startswith("leveret_")}
    assert {"leveret_serializers", "leveret_cli"} <= set(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_hook_is_documented_with_its_signature(name: str) -> None:
    heading = f"### `{HOOKS[name]}`\n"
    page = PAGE.read_text()
    assert page.count(heading) == 1, f"docs/plugins/hooks.md wants this heading: {heading}"
    section = re.split(r"^#", page.split(heading)[1], maxsplit=1, flags=re.MULTILINE)[0]
    assert "Called" in section, f"docs/plugins/hooks.md does not say when {name} is called"
    assert "Returns" in section, f"docs/plugins/hooks.md does not say what {name} returns"


def test_page_documents_no_hook_that_is_not_there() -> None:
    headings = re.findall(r"^### `(leveret_\w+)", PAGE.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(HOOKS)


@pytest.mark.parametrize("name", HOOKS)
def test_hook_has_a_test_that_carries_its_name(name: str) -> None:
    tests = [*(ROOT / "tests").rglob("test_*.py"), *ROOT.glob("plugins/*/tests/test_*.py")]
    found = [path for path in tests if re.search(rf"^\s*(async )?def test_\w*{name}", path.read_text(), re.MULTILINE)]
    assert found, f"there is no test whose name contains {name}"
