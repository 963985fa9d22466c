"""Importing Leveret loads no more than is used."""

from __future__ import annotations

import asyncio
import importlib.metadata
import subprocess
import sys
from pathlib import Path

from leveret import settings as package
from leveret.broker import EmbeddedBroker

#: Publishes one message and prints which of some modules were imported for that.
PUBLISH = """
import sys
import leveret

async def main():
    async with leveret.connect(sys.argv[1]) as client, client.producer() as producer:
        await producer.publish({"id": 1}, "q", mandatory=False)

leveret.run(main())
print(sorted(set(sys.argv[2:]) & sys.modules.keys()))
"""


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


async def test_a_first_publish_imports_no_plugin_and_nothing_that_only_others_need() -> None:
    names = {entry.value for entry in importlib.metadata.entry_points(group="leveret.plugins")}
    assert len(names) >= 8, "the plugins are not installed beside the tests"
    needless = {"dataclasses", "email", "importlib.metadata", "pluggy", "urllib.parse", "zipfile"}
    ours = {"app.app", "consuming.consumer", "topology.topology", "plugins.field_names", "plugins.loading"}
    asked = names | needless | {f"leveret.{name}" for name in ours}
    async with EmbeddedBroker() as broker:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PUBLISH, broker.url, *asked, stdout=subprocess.PIPE
        )
        output, _ = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, output.decode()) == (0, "[]\n")
