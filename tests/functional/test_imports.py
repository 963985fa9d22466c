"""Importing Leveret loads no more than is used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from leveret import settings as package


def test_importing_leveret_imports_no_plugin() -> None:
    code = (
        "import sys, importlib.metadata as m, leveret, leveret.client, leveret.plugins\n"
        "names = {e.value for e in m.entry_points(group='leveret.plugins')}\n"
        "assert names, 'no plugin is installed beside the tests'\n"
        "print(sorted(names & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_importing_leveret_loads_nothing_that_only_a_part_needs() -> None:
    heavy = {"asyncio", "dataclasses", "inspect", "msgspec", "pluggy", "ssl", "uvloop", "leveret.message"}
    program = f"import sys, leveret; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_import_is_cheap_when_nothing_rare_is_needed() -> None:
    program = (
        "import sys, types; leveret = sys.modules['leveret'] = types.ModuleType('leveret');"
        f"leveret.__path__ = [{str(Path(package.__file__).parents[1])!r}]; import leveret.settings;"
        "print(sorted({'asyncio', 'difflib', 'socket', 'ssl', 'tomllib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_import_needs_neither_click_nor_rich() -> None:
    code = "import sys, leveret, leveret.cli; sys.exit(bool({'click', 'rich', 'asyncio'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
