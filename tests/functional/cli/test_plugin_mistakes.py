"""`leveret plugins` says in few words what is wrong with a plugin, and shows the others."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner
from rich import box, table, text  # noqa: F401 - where the tests look for distributions there is no rich
from tests.support.distributions import PLUGIN, Installed

from leveret.cli import plugin_checks  # noqa: F401
from leveret.cli.app import app
from leveret.testing import check_plugin  # noqa: F401

if TYPE_CHECKING:
    from pathlib import Path

BROKEN = """
from leveret.plugins import SerializerSpec, hookimpl

made = []

class Broken:
    def __init__(self):
        made.append(self)
        if len(made) > 1:
            raise ZeroDivisionError("a fault of this plugin")

    def encode(self, value):
        return repr(value).encode()

    def decoder(self, model):
        return lambda body: body.decode()

@hookimpl
def leveret_serializers():
    return [SerializerSpec(name="broken", content_type="text/x-broken", factory=Broken)]
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    site = tmp_path / "site"
    site.mkdir()
    return Installed(site, monkeypatch)


@pytest.mark.parametrize("what", ["content type", "name of a serializer", "name of a plugin", "the core"])
def test_list_shows_all_plugins_and_marks_those_that_conflict(installed: Installed, tmp_path: Path, what: str) -> None:
    file = tmp_path / "plugins.json"
    installed.add("leveret-good", plugin="good", version="3.5")
    installed.add("leveret-bad", "raise RuntimeError('no device')", plugin="bad")
    if what == "content type":
        installed.add("leveret-one", plugin="one", content_type="text/x-same", version="1.5")
        installed.add("leveret-other", plugin="other", content_type="text/x-same", version="2.5")
    elif what == "name of a serializer":
        installed.add("leveret-one", PLUGIN.format(name="same", content_type="text/x-one"), plugin="one")
        installed.add("leveret-other", PLUGIN.format(name="same", content_type="text/x-other"), plugin="other")
    elif what == "name of a plugin":
        installed.add("leveret-one", plugin="one", content_type="text/x-one")
        installed.add("leveret-other", plugin="one", content_type="text/x-other")
    else:
        installed.add("leveret-one", PLUGIN.format(name="json", content_type="text/x-one"), plugin="one")
    result = CliRunner().invoke(app, ("plugins", "list", "--json", str(file)), prog_name="leveret", terminal_width=200)
    assert result.exit_code == 1
    found = {row["distribution"]: row for row in json.loads(file.read_text())["plugins"]}
    assert (found["leveret"]["status"], found["leveret-good"]["status"]) == ("built in", "active")
    assert found["leveret-good"]["provides"][0]["name"] == "good"
    assert (found["leveret-bad"]["status"], "no device" in found["leveret-bad"]["error"]) == ("failed", True)
    marked = [name for name, row in found.items() if row["status"] == "conflict"]
    assert marked == (["leveret-one"] if what == "the core" else ["leveret-one", "leveret-other"])
    for name in marked:
        assert "both bring a" in found[name]["error"]
        assert name in " ".join(result.stdout.split())
    assert "leveret-good" in result.stdout


def test_check_says_in_one_line_what_a_plugin_raised(installed: Installed) -> None:
    installed.add("leveret-broken", BROKEN, plugin="broken")
    result = CliRunner().invoke(app, ("plugins", "check", "broken", "--quiet"), prog_name="leveret")
    assert result.exit_code == 1
    failed = [line for line in result.stdout.splitlines() if line.startswith("failed") and "conformance" not in line]
    where = "ZeroDivisionError: a fault of this plugin (made_for_a_test_leveret_broken.py:10, in __init__)"
    # Here, and in a child process, where bodies are decoded that may crash it.
    for what in ("the check was ended by ", "cut off raised "):
        assert any(what + where in line for line in failed), failed
    for line in failed:
        assert len(line) < 400, line
        assert "Traceback" not in line
        assert 'File "' not in line
