"""Importing Leveret loads no more than is used."""

from __future__ import annotations

import subprocess
import sys


def test_importing_leveret_imports_no_plugin() -> None:
    code = (
        "import sys, importlib.metadata as m, leveret, leveret.client, leveret.plugins\n"
        "names = {e.value for e in m.entry_points(group='leveret.plugins')}\n"
        "assert names, 'no plugin is installed beside the tests'\n"
        "print(sorted(names & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
