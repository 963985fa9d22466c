"""`leveret plugins`, and the commands that plugins add; the distributions lie on `sys.path` as pip leaves them."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner, Result
from rich import box, progress, table, text  # noqa: F401 - where the tests look for distributions there is no rich
from tests.support.distributions import PLUGIN, Installed

from leveret.broker import EmbeddedBroker
from leveret.cli import plugin_checks, plugin_commands  # noqa: F401
from leveret.cli.app import app
from leveret.cli.plugins import _KINDS
from leveret.cli.template import KINDS, files
from leveret.plugins.registry import GROUP
from leveret.testing import check_plugin  # noqa: F401

if TYPE_CHECKING:
    from pathlib import Path

COMMAND = """
from leveret.plugins import CommandSpec, hookimpl

def load():
    import click
    {body}

@hookimpl
def leveret_cli():
    return [CommandSpec(name={name!r}, help="Draw traces.", load=load, api_version=1)]
"""
GREET = """
    @click.command()
    @click.argument("name")
    @click.option("--loud", is_flag=True)
    def greet(name, loud):
        click.echo("HELLO " + name if loud else "hello " + name)
    return greet
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installed:
    site = tmp_path / "site"
    site.mkdir()
    return Installed(site, monkeypatch)


def run(*arguments: str, **environment: str) -> Result:
    runner = CliRunner(env=environment)
    return runner.invoke(app, arguments, prog_name="leveret", terminal_width=200)


def command(name: str = "trace", body: str = GREET) -> str:
    return COMMAND.format(name=name, body=body.strip())


def rows(**environment: str) -> dict[str, dict[str, Any]]:
    result = run("plugins", "list", "--json", "-", **environment)
    assert result.exit_code == 0, result.output
    return {row["name"]: row for row in json.loads(result.stdout)["plugins"]}


# ---------------------------------------------------------------------- list


def test_list_shows_what_the_core_brings_as_leveret_s(installed: Installed) -> None:
    (row,) = rows().values()
    assert (row["distribution"], row["status"], row["error"]) == ("leveret", "built in", None)
    assert {"kind": "serializer", "name": "json", "keys": ["application/json", "text/json"]} in row["provides"]
    printed = run("plugins", "list").stdout
    assert "serializer json (application/json, text/json)" in printed
    assert "compressor gzip (gzip, x-gzip)" in printed


def test_list_shows_plugins_with_distribution_version_and_what_they_bring(installed: Installed) -> None:
    module = installed.add("leveret-upside", plugin="upside", version="2.5")
    row = rows()["upside"]
    assert row["load_time_ms"] > 0
    assert {**row, "load_time_ms": 0} == {
        "name": "upside",
        "status": "active",
        "hooks": ["leveret_serializers"],
        "distribution": "leveret-upside",
        "version": "2.5",
        "entry_point": module,
        "provides": [{"kind": "serializer", "name": "upside", "keys": ["text/x-upside"]}],
        "load_time_ms": 0,
        "error": None,
    }
    (line,) = [line for line in run("plugins", "list").stdout.splitlines() if "leveret-upside" in line]
    for shown in ("upside", "active", "2.5", "serializer upside (text/x-upside)"):
        assert shown in line


def test_list_shows_plugins_that_are_blocked_or_not_allowed(installed: Installed) -> None:
    installed.add("one")
    installed.add("other")
    found = rows(LEVERET_PLUGINS_ALLOW="one,other", LEVERET_PLUGINS_BLOCK="one")
    assert (found["one"]["status"], found["other"]["status"]) == ("blocked", "active")
    found = rows(LEVERET_PLUGINS_ALLOW="none")
    assert (found["one"]["status"], found["other"]["status"]) == ("not allowed", "not allowed")
    assert "not allowed" in run("plugins", "list", LEVERET_PLUGINS_ALLOW="none").stdout


def test_list_shows_the_error_of_a_plugin_that_failed(installed: Installed) -> None:
    installed.add("good")
    installed.add("bad", "raise RuntimeError('[red]no such \\x1b[2Jdevice')")
    result = run("plugins", "list")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "cannot be imported: RuntimeError: [red]no such \\x1b[2Jdevice" in " ".join(result.stdout.split())
    found = rows()
    assert (found["bad"]["status"], found["good"]["status"]) == ("failed", "active")
    assert "RuntimeError" in found["bad"]["error"]


def test_list_shows_the_commands_that_plugins_add_and_what_is_wrong_with_them(installed: Installed) -> None:
    installed.add("a-first", command())
    installed.add("b-second", command())
    found = rows()
    assert found["a-first"]["provides"] == [{"kind": "command", "name": "trace", "keys": []}]
    assert found["b-second"]["provides"] == []
    assert "both bring the command 'trace'" in found["b-second"]["error"]


@pytest.mark.parametrize(
    ("arguments", "environment", "status"),
    [((), {}, 0), (("--strict",), {}, 1), ((), {"LEVERET_PLUGINS_STRICT": "true"}, 1)],
)
def test_list_exits_with_1_when_a_plugin_failed_and_that_is_asked_for(
    installed: Installed, arguments: tuple[str, ...], environment: dict[str, str], status: int
) -> None:
    installed.add("bad", "import no_such_module_anywhere")
    result = run("plugins", "list", *arguments, **environment)
    assert result.exit_code == status
    assert "no_such_module_anywhere" in result.stdout


def test_list_exits_with_0_when_strict_and_all_is_well(installed: Installed) -> None:
    installed.add("good")
    assert run("plugins", "list", "--strict").exit_code == 0


def test_list_names_both_distributions_in_one_line_when_plugins_conflict(installed: Installed) -> None:
    installed.add("leveret-one", plugin="one", content_type="text/x-same", version="1.5")
    installed.add("leveret-other", plugin="other", content_type="text/x-same", version="2.5")
    result = run("plugins", "list")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    for said in ("leveret-one 1.5", "leveret-other 2.5", "text/x-same", "LEVERET_PLUGINS_BLOCK"):
        assert said in result.stderr
    assert run("plugins", "list", LEVERET_PLUGINS_BLOCK="leveret-one").exit_code == 0


def test_list_writes_json_into_a_file_beside_the_table(installed: Installed, tmp_path: Path) -> None:
    from leveret import __version__

    installed.add("upside")
    file = tmp_path / "plugins.json"
    result = run("plugins", "list", "--json", str(file))
    assert "upside" in result.stdout
    written = json.loads(file.read_text())
    assert written["leveret"] == __version__
    assert [row["name"] for row in written["plugins"]] == ["builtin", "upside"]


def test_list_refuses_a_json_file_that_cannot_be_written(installed: Installed, tmp_path: Path) -> None:
    result = run("plugins", "list", "--json", str(tmp_path / "missing" / "file"))
    assert result.exit_code == 2
    assert "--json" in result.stderr


# ---------------------------------------------------------------------- commands of plugins


def test_help_lists_commands_of_plugins_with_their_distribution(installed: Installed) -> None:
    installed.add("leveret-trace", command(), version="3.1")
    result = run("--help")
    assert result.exit_code == 0
    (line,) = [line.split() for line in result.stdout.splitlines() if line.startswith("  trace ")]
    assert line == ["trace", "Draw", "traces.", "[leveret-trace", "3.1]"]


def test_a_command_of_a_plugin_gets_its_arguments(installed: Installed) -> None:
    installed.add("leveret-trace", command())
    assert run("trace", "hare").stdout == "hello hare\n"
    assert run("trace", "hare", "--loud").stdout == "HELLO hare\n"
    assert "--loud" in run("trace", "--help").stdout
    refused = run("trace")
    assert refused.exit_code == 2
    assert "NAME" in refused.stderr


def test_a_command_is_loaded_only_when_it_is_run(installed: Installed, tmp_path: Path) -> None:
    proof = tmp_path / "loaded"
    installed.add("leveret-trace", command(body=f"open({str(proof)!r}, 'a').close()\n{GREET}"))
    assert "trace" in run("--help").stdout
    assert not proof.exists()
    assert run("trace", "hare").exit_code == 0
    assert proof.exists()


@pytest.mark.parametrize(
    "arguments", [("--version",), ("bench", "--help"), ("plugins", "new", "demo", "--kind", "policy", "--directory")]
)
def test_commands_of_the_core_import_no_plugin(
    installed: Installed, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    module = installed.add("leveret-trace", command())
    assert run(*arguments, *([str(tmp_path)] if "--directory" in arguments else [])).exit_code == 0
    assert module not in sys.modules


def test_no_plugin_is_imported_for_help_when_none_is_allowed(installed: Installed) -> None:
    module = installed.add("leveret-trace", "raise SystemExit(77)")
    result = run("--help", LEVERET_PLUGINS_ALLOW="none")
    assert result.exit_code == 0
    assert "trace" not in result.stdout
    assert module not in sys.modules
    assert run("trace", LEVERET_PLUGINS_ALLOW="none").exit_code == 2


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise SystemExit(77)", "SystemExit"),
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
        ("from leveret.plugins import hookimpl\n@hookimpl\ndef leveret_cli(): return 1 / 0", "ZeroDivisionError"),
        ("from leveret.plugins import hookimpl\n@hookimpl\ndef leveret_cli(): return 5", "int"),
        ("from leveret.plugins import hookimpl\n@hookimpl\ndef leveret_cli(): return ['trace']", "str"),
        ("def leveret_cli(): return []", "@hookimpl"),
        ("x = 1", "none of the hooks"),
    ],
)
def test_help_goes_on_and_says_why_when_a_plugin_fails(installed: Installed, code: str, said: str) -> None:
    installed.add("leveret-broken", code)
    installed.add("leveret-trace", command())
    result = run("--help")
    assert result.exit_code == 0
    assert "\n  bench " in result.stdout
    assert "\n  trace " in result.stdout
    printed = " ".join(result.stdout.split())
    assert "leveret-broken 1.0" in printed
    assert said in printed
    assert result.stderr == ""


def test_help_goes_on_when_plugins_conflict(installed: Installed) -> None:
    installed.add("leveret-one", plugin="one", content_type="text/x-same")
    installed.add("leveret-other", plugin="other", content_type="text/x-same")
    result = run("--help")
    assert result.exit_code == 0
    assert "\n  bench " in result.stdout
    printed = " ".join(result.stdout.split())
    assert "leveret-one 1.0" in printed
    assert "leveret-other 1.0" in printed


def test_help_goes_on_when_the_environment_is_wrong(installed: Installed) -> None:
    installed.add("upside")
    result = run("--help", LEVERET_PLUGINS_ALLOW="upsidedown")
    assert result.exit_code == 0
    assert "'upsidedown', which is not installed" in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise RuntimeError('no\\ndisplay')", "RuntimeError: no\\ndisplay"),
        ("import no_such_module_anywhere", "no_such_module_anywhere"),
        ("raise SystemExit(77)", "SystemExit: 77"),
        ("return print", "builtin_function_or_method, not a click.Command"),
        ("return None", "NoneType, not a click.Command"),
    ],
)
def test_a_command_that_does_not_load_is_one_line_with_its_distribution(
    installed: Installed, body: str, said: str
) -> None:
    installed.add("leveret-trace", command(body=body), version="3.1")
    for arguments in (("trace",), ("trace", "--help")):
        result = run(*arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: command 'trace' of leveret-trace 3.1 cannot be loaded: ")
        assert result.stderr.count("\n") == 1
        assert said in result.stderr
    assert run("--help").exit_code == 0


def test_errors_of_leveret_in_a_command_of_a_plugin_are_one_line(installed: Installed) -> None:
    body = """
    from leveret.errors import ConfigurationError
    @click.command()
    def fail():
        raise ConfigurationError("no such exchange", option="exchange")
    return fail
"""
    installed.add("leveret-trace", command(body=body))
    result = run("trace")
    assert (result.exit_code, result.stderr) == (1, "Error: no such exchange\n")


def test_a_command_of_the_core_wins_over_a_plugin_s_and_that_is_said(installed: Installed) -> None:
    installed.add("leveret-thief", command("broker"))
    assert "embedded broker" in run("broker", "--help").stdout
    result = run("--help")
    assert "Draw traces." not in result.stdout
    assert "command 'broker' of leveret-thief 1.0 is not used" in " ".join(result.stdout.split())


def test_an_unknown_command_is_blamed_on_a_plugin_that_failed(installed: Installed) -> None:
    assert run("trace").stderr.endswith("Error: No such command 'trace'.\n")
    installed.add("leveret-trace", "raise RuntimeError('no display')")
    importlib.invalidate_caches()
    result = run("trace")
    assert result.exit_code == 2
    assert "No such command 'trace'." in result.stderr
    assert "leveret-trace 1.0" in result.stderr
    assert "leveret plugins list" in result.stderr


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("leveret tr", ["trace"]),
        ("leveret inf", ["info"]),
        ("leveret trace --l", ["--loud"]),
        ("leveret broken --l", []),
        ("leveret plugins new x --kind ", [*KINDS]),
    ],
)
def test_shell_completes(installed: Installed, words: str, completions: list[str]) -> None:
    installed.add("leveret-trace", command())
    installed.add("leveret-broken", command("broken", "raise RuntimeError"))
    position = str(words.count(" "))
    result = run(_LEVERET_COMPLETE="bash_complete", COMP_WORDS=words, COMP_CWORD=position)
    assert [line.partition(",")[2] for line in result.stdout.splitlines() if line] == completions
    assert result.stderr == ""


def test_group_is_the_registry_s() -> None:
    assert plugin_commands.GROUP == GROUP


# ---------------------------------------------------------------------- new


def new(folder: Path, name: str, kind: str) -> Path:
    result = run("plugins", "new", name, "--kind", kind, "--directory", str(folder))
    assert result.exit_code == 0, result.output
    (made,) = [path for path in folder.iterdir() if path.name.startswith("leveret-")]
    return made


def install(package: Path, site: Path) -> None:
    """Does what pip would do with a package's sources and metadata."""
    # A plugin of another kind may be left from another test.
    sys.modules.pop("leveret_demo", None)
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    for source in (package / "src").rglob("*.*"):
        target = site / source.relative_to(package / "src")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())
    information = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    information.mkdir()
    lines = ["Metadata-Version: 2.4", f"Name: {project['name']}", f"Version: {project['version']}"]
    lines += [f"Requires-Dist: {each}" for each in project["dependencies"]]
    (information / "METADATA").write_text("\n".join([*lines, "", ""]))
    entries = "".join(f"{name} = {value}\n" for name, value in project["entry-points"][GROUP].items())
    (information / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}")


def succeed(*command: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_kinds_in_options_are_those_there_are() -> None:
    assert tuple(KINDS) == _KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_new_plugin_has_all_files_and_says_what_comes_next(tmp_path: Path, kind: str) -> None:
    result = run("plugins", "new", "demo", "--kind", kind, "--directory", str(tmp_path))
    folder = tmp_path / "leveret-demo"
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert made == {
        "pyproject.toml", "README.md", "CHANGELOG.md", "src/leveret_demo/__init__.py", "src/leveret_demo/py.typed",
        "src/leveret_demo/leveret.json", "tests/test_leveret_demo.py",
    }  # fmt: skip
    steps = [shlex.split(line) for line in result.stdout.splitlines() if line.startswith("  ")]
    assert steps[0] == ["cd", str(folder)]
    assert steps[-1] == ["leveret", "plugins", "check", "demo"]
    assert not any("$" in (folder / name).read_text() or "noqa" in (folder / name).read_text() for name in made)


@pytest.mark.parametrize("kind", KINDS)
def test_new_plugin_passes_ruff_and_its_own_tests(tmp_path: Path, kind: str) -> None:
    folder = new(tmp_path, "demo", kind)
    succeed("-m", "ruff", "check", "--isolated", "--no-cache", ".", cwd=folder)
    succeed("-m", "ruff", "format", "--isolated", "--no-cache", "--check", ".", cwd=folder)
    printed = succeed("-m", "pytest", "-q", "-p", "no:asyncio", "-W", "error", cwd=folder, PYTHONPATH="src")
    assert " passed" in printed
    assert "skipped" not in printed


def test_new_plugins_of_all_kinds_pass_mypy_when_it_is_strict(tmp_path: Path) -> None:
    folders = [tmp_path / f"leveret-demo-{kind}" for kind in KINDS]
    for kind in KINDS:
        run("plugins", "new", f"demo-{kind}", "--kind", kind, "--directory", str(tmp_path))
    sources = [folder / part for folder in folders for part in ("src", "tests")]
    path = os.pathsep.join(str(folder / "src") for folder in folders)
    command = ("-m", "mypy", "--strict", "--config-file=", "--cache-dir", tmp_path / "mypy")
    assert "no issues found in 8 source files" in succeed(*command, *sources, cwd=tmp_path, MYPYPATH=path)


@pytest.mark.parametrize("kind", KINDS)
def test_check_finds_nothing_wrong_with_a_new_plugin(installed: Installed, tmp_path: Path, kind: str) -> None:
    install(new(tmp_path, "demo", kind), tmp_path / "site")
    result = run("plugins", "check", "demo")
    assert result.exit_code == 0, result.output
    assert " 0 failed" in result.stdout


@pytest.mark.parametrize("kind", KINDS)
async def test_program_of_a_new_plugin_s_readme_runs(tmp_path: Path, kind: str) -> None:
    import asyncio

    site = tmp_path / "site"
    install(new(tmp_path, "demo", kind), site)
    readme = (tmp_path / "leveret-demo" / "README.md").read_text()
    program = readme.partition("```python\n")[2].partition("```")[0]
    async with EmbeddedBroker() as broker:
        (tmp_path / "program.py").write_text(program.replace("amqp://guest:guest@localhost", broker.url))
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            tmp_path / "program.py",
            env=os.environ | {"PYTHONPATH": str(site)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, output.decode()) == (0, "{'hello': 'world'}\n")


@pytest.mark.parametrize(
    ("given", "plugin"),
    [
        ("demo", "demo"),
        ("leveret-demo", "demo"),
        ("Leveret_Demo", "demo"),
        ("my.demo", "my-demo"),
        ("My__demo-2", "my-demo-2"),
        ("3d", "3d"),
        ("a" * 64, "a" * 64),
    ],
)
def test_new_makes_one_name_of_what_means_one_distribution(tmp_path: Path, given: str, plugin: str) -> None:
    folder = new(tmp_path, given, "serializer")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    module = "leveret_" + plugin.replace("-", "_")
    assert folder.name == project["name"] == f"leveret-{plugin}"
    assert project["entry-points"][GROUP] == {plugin: module}
    assert (folder / "src" / module / "__init__.py").is_file()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "not a valid name"),
        ("-demo", "No such option"),
        ("demo-", "not a valid name"),
        ("de mo", "not a valid name"),
        ("../demo", "not a valid name"),
        ("demo\n", "not a valid name"),
        ("démo", "not a valid name"),
        ("a" * 65, "65 characters; at most 64 are allowed"),
        ("json", "leveret itself provides 'json'"),
        ("leveret-JSON", "leveret itself provides 'json'"),
        ("builtin", "leveret itself provides 'builtin'"),
    ],
)
def test_new_refuses_a_name_that_is_none(tmp_path: Path, name: str, said: str) -> None:
    result = run("plugins", "new", name, "--kind", "serializer", "--directory", str(tmp_path))
    assert result.exit_code == 2
    assert said in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_new_refuses_a_folder_with_something_in_it_and_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "leveret-demo"
    folder.mkdir()
    (folder / "README.md").write_text("mine")
    result = run("plugins", "new", "demo", "--kind", "policy", "--directory", str(tmp_path))
    assert result.exit_code == 1
    assert "not empty; nothing was written" in result.stderr
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("README.md", "mine")]


def test_new_refuses_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "leveret-demo").write_text("mine")
    result = run("plugins", "new", "demo", "--kind", "policy", "--directory", str(tmp_path))
    assert result.exit_code == 1
    assert (tmp_path / "leveret-demo").read_text() == "mine"


def test_new_fills_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "leveret-demo").mkdir()
    assert (new(tmp_path, "demo", "policy") / "pyproject.toml").is_file()


def test_new_needs_a_directory_that_is_there_and_a_kind_that_there_is(tmp_path: Path) -> None:
    missing = run("plugins", "new", "demo", "--kind", "policy", "--directory", str(tmp_path / "no"))
    assert missing.exit_code == 2
    assert "--directory" in missing.stderr
    unknown = run("plugins", "new", "demo", "--kind", "codec", "--directory", str(tmp_path))
    assert unknown.exit_code == 2
    assert all(kind in unknown.stderr for kind in KINDS)


def test_new_plugin_requires_the_versions_that_it_was_made_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, wanted in (
        ("0.1.0", "leveret>=0.1,<0.2"),
        ("0.12.3", "leveret>=0.12,<0.13"),
        ("2.3.4", "leveret>=2.3,<3"),
    ):
        monkeypatch.setattr("leveret.cli.template.__version__", version)
        project = tomllib.loads(files("demo", "policy")["pyproject.toml"])["project"]
        assert project["dependencies"] == [wanted]


# ---------------------------------------------------------------------- check


@pytest.fixture
def demo(installed: Installed, tmp_path: Path) -> Path:
    """The folder with a policy, whose kit is quick, installed and right; the tests break it."""
    install(new(tmp_path, "demo", "policy"), tmp_path / "site")
    return tmp_path / "site"


def replace(file: Path, old: str, new: str) -> None:
    before = file.read_text()
    assert old in before
    file.write_text(before.replace(old, new))


def failures(result: Result) -> list[str]:
    return [line.split("  ", 1)[1].strip() for line in result.stdout.splitlines() if line.startswith("failed")]


@pytest.mark.parametrize("name", ["demo", "leveret-demo", "Leveret.Demo"])
def test_check_takes_the_plugin_s_name_or_its_distribution_s(demo: Path, name: str) -> None:
    result = run("plugins", "check", name)
    assert result.exit_code == 0
    for title in ("entry point", "version", "requirement", "types", "imports", "loading", "API version", "conflicts"):
        assert f"ok           demo  {title}" in result.stdout
    assert "retry 'demo', gives up in the end" in result.stdout
    assert result.stderr == ""


def test_check_names_what_is_installed_when_there_is_no_such_plugin(demo: Path) -> None:
    result = run("plugins", "check", "dmeo")
    assert result.exit_code == 1
    assert result.stderr == "Error: no plugin or distribution 'dmeo' is installed; installed plugins are demo\n"


def test_check_says_so_when_a_distribution_is_no_plugin(installed: Installed, tmp_path: Path) -> None:
    installed.add("pondlife")
    (entries,) = (tmp_path / "site").glob("pondlife*/entry_points.txt")
    entries.unlink()
    result = run("plugins", "check", "pondlife")
    assert result.exit_code == 1
    assert "pondlife has no plugin: it declares no entry point in the group 'leveret.plugins'" in result.stderr


def test_check_says_so_when_a_distribution_is_no_plugin_and_half_installed(
    installed: Installed, tmp_path: Path
) -> None:
    (tmp_path / "site" / "pondlife-1.0.dist-info").mkdir(parents=True)
    result = run("plugins", "check", "pondlife")
    assert result.exit_code == 1
    assert "the distribution pondlife has no plugin: it declares no entry point in the group" in result.stderr


def test_check_fails_when_the_distribution_does_not_require_leveret(demo: Path) -> None:
    replace(demo / "leveret_demo-0.1.0.dist-info" / "METADATA", "Requires-Dist: leveret>", "Requires-Dist: leveret-x>")
    result = run("plugins", "check", "demo")
    assert result.exit_code == 1
    (failed,) = failures(result)
    assert failed.startswith("demo  requirement: the distribution does not require leveret")


def test_check_fails_when_there_is_no_version(demo: Path) -> None:
    replace(demo / "leveret_demo-0.1.0.dist-info" / "METADATA", "Version: 0.1.0\n", "")
    result = run("plugins", "check", "demo")
    assert result.exit_code == 1
    assert "demo  version: the distribution has no version" in failures(result)


@pytest.mark.parametrize("metadata", [None, b"\xff"], ids=["missing", "not UTF-8"])
def test_check_fails_when_the_distribution_says_nothing_of_itself(demo: Path, metadata: bytes | None) -> None:
    file = demo / "leveret_demo-0.1.0.dist-info" / "METADATA"
    file.unlink()
    if metadata is not None:
        file.write_bytes(metadata)
    result = run("plugins", "check", "demo")
    assert result.exit_code == 1
    version, requirement = failures(result)
    assert version == "demo  version: the distribution has no version"
    assert requirement.startswith("demo  requirement: the distribution does not require leveret")


def test_check_fails_when_the_package_is_not_typed(demo: Path) -> None:
    (demo / "leveret_demo" / "py.typed").unlink()
    result = run("plugins", "check", "demo")
    assert result.exit_code == 1
    (failed,) = failures(result)
    assert failed.startswith("demo  types: there is no leveret_demo/py.typed")


@pytest.mark.parametrize(
    ("code", "module"),
    [
        ("import leveret", "leveret"),
        ("import leveret.client.client as client", "leveret.client.client"),
        ("from leveret import connect", "leveret.connect"),
        ("from leveret.wire.message import Message", "leveret.wire.message"),
        ("def later():\n    from leveret.plugins.registry import PluginInfo", "leveret.plugins.registry"),
    ],
)
def test_check_fails_when_a_module_imports_what_is_not_promised(demo: Path, code: str, module: str) -> None:
    (demo / "leveret_demo" / "inner.py").write_text(f"\n{code}\n")
    result = run("plugins", "check", "demo")
    assert result.exit_code == 1
    (failed,) = failures(result)
    line = 1 + len(code.splitlines())
    assert f"it imports {module} (leveret_demo/inner.py:{line})" in failed


def test_check_allows_what_is_promised_and_the_kits_in_tests(demo: Path) -> None:
    code = "import leveret.plugins\nfrom leveret import errors, message\nfrom leveret.message import Outcome\n"
    (demo / "leveret_demo" / "inner.py").write_text(code + "from . import other\nimport leveretx\n")
    (demo / "leveret_demo" / "tests").mkdir()
    (demo / "leveret_demo" / "tests" / "test_it.py").write_text("from leveret.testing import SerializerConformance\n")
    assert run("plugins", "check", "demo").exit_code == 0


def test_check_does_not_judge_sources_that_it_cannot_read(demo: Path) -> None:
    (demo / "leveret_demo" / "inner.py").write_text("this is no Python\n")
    result = run("plugins", "check", "demo")
    assert result.exit_code == 0
    assert "not checked  demo  imports: leveret_demo/inner.py cannot be read" in result.stdout


def test_check_fails_when_the_plugin_was_written_for_another_interface(demo: Path) -> None:
    replace(demo / "leveret_demo" / "__init__.py", "api_version=1", "api_version=99")
    result = run("plugins", "check", "demo")
    assert result.exit_code == 1
    (failed,) = failures(result)
    assert failed.startswith("demo  API version: ")
    assert "99" in failed
    assert "not checked  demo  conformance: it does not load" in result.stdout


def test_check_fails_when_the_plugin_does_not_load(demo: Path) -> None:
    replace(demo / "leveret_demo" / "__init__.py", "__all__", "import no_such_module_anywhere\n__all__")
    result = run("plugins", "check", "demo")
    assert result.exit_code == 1
    (failed,) = failures(result)
    assert "no_such_module_anywhere" in failed


def test_check_fails_when_another_plugin_brings_the_same(demo: Path, installed: Installed) -> None:
    installed.add("leveret-twin", (demo / "leveret_demo" / "__init__.py").read_text(), plugin="twin")
    result = run("plugins", "check", "demo")
    assert result.exit_code == 1
    (failed,) = failures(result)
    assert failed.startswith("demo  conflicts: ")
    assert "leveret-twin 1.0" in failed
    assert run("plugins", "check", "demo", LEVERET_PLUGINS_BLOCK="twin").exit_code == 0


def test_check_fails_when_another_plugin_has_the_same_name(demo: Path, installed: Installed) -> None:
    installed.add("leveret-twin", plugin="demo", content_type="text/x-other")
    result = run("plugins", "check", "leveret-demo")
    assert result.exit_code == 1
    (failed,) = failures(result)
    assert "leveret-twin 1.0" in failed
    assert "both bring a plugin named 'demo'" in failed


def test_check_fails_when_the_plugin_takes_what_the_core_has(installed: Installed) -> None:
    installed.add("thief", content_type="application/json")
    result = run("plugins", "check", "thief")
    assert result.exit_code == 1
    assert any(failed.startswith("thief  conflicts: ") and "application/json" in failed for failed in failures(result))
    assert "not checked  thief  loading: it conflicts" in result.stdout


def test_check_does_not_judge_conflicts_among_others(demo: Path, installed: Installed) -> None:
    installed.add("one", content_type="text/x-same")
    installed.add("other", content_type="text/x-same")
    result = run("plugins", "check", "demo")
    assert result.exit_code == 0
    assert "not checked  demo  conflicts: other plugins conflict" in result.stdout


def test_check_fails_when_a_command_is_the_core_s(installed: Installed) -> None:
    installed.add("leveret-thief", command("info"), plugin="thief")
    result = run("plugins", "check", "thief")
    assert "thief  conflicts: leveret has a command 'info' of its own; the plugin's is not used" in failures(result)


def test_check_looks_at_a_plugin_that_the_environment_leaves_out(demo: Path) -> None:
    for environment in ({"LEVERET_PLUGINS_ALLOW": "none"}, {"LEVERET_PLUGINS_BLOCK": "leveret-demo"}):
        result = run("plugins", "check", "demo", **environment)
        assert result.exit_code == 0, result.output
        assert "ok           demo  conflicts" in result.stdout


def test_check_fails_when_a_kit_does(installed: Installed) -> None:
    installed.add("backwards", PLUGIN.format(name="backwards", content_type="text/x-b").replace(".encode()", ""))
    result = run("plugins", "check", "backwards")
    assert result.exit_code == 1
    assert any("serializer 'backwards'" in failed and "str" in failed for failed in failures(result))


def test_check_says_how_to_install_pytest_when_it_is_missing(demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytest", None)
    result = run("plugins", "check", "demo")
    assert result.exit_code == 0
    assert "not checked  demo  conformance: pytest is not installed; run: pip install pytest" in result.stdout


def test_check_checks_every_plugin_of_a_distribution(demo: Path) -> None:
    entries = demo / "leveret_demo-0.1.0.dist-info" / "entry_points.txt"
    entries.write_text(entries.read_text() + "ghost = leveret_demo_ghost\n")
    result = run("plugins", "check", "leveret-demo")
    assert result.exit_code == 1
    (failed,) = failures(result)[-1:]
    assert failed.startswith("ghost  loading: ")
    assert "ok           demo  loading" in result.stdout


def on_terminal(*arguments: str, **environment: str) -> str:
    """Runs the command with a terminal for its output; returns what the terminal got."""
    terminal, end = os.openpty()
    command = [sys.executable, "-m", "leveret.cli", *arguments]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "200", **environment}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=end, stderr=end, env=environment) as process:
        os.close(end)
        parts = []
        with contextlib.suppress(OSError):  # Linux: when the other side is closed
            while part := os.read(terminal, 4096):
                parts.append(part)
    os.close(terminal)
    assert process.returncode == 0
    return b"".join(parts).decode()


def test_check_shows_what_it_is_at_and_wipes_it_before_results(demo: Path) -> None:
    printed = on_terminal("plugins", "check", "demo", PYTHONPATH=str(demo))
    assert "demo: conformance" in printed
    assert "demo: retry 'demo', gives up in the end" in printed
    assert printed.endswith("0 not checked\r\n")
    results = re.findall(r"([^\n]*)ok +\x1b\[0m  demo  ", printed)
    assert len(results) > 10
    assert all(before == "\x1b[32m" or before.endswith("\x1b[2K\x1b[32m") for before in results)


def test_check_draws_nothing_when_it_is_quiet(demo: Path) -> None:
    printed = on_terminal("plugins", "check", "demo", "--quiet", PYTHONPATH=str(demo))
    assert "demo: conformance" not in printed
    assert "\x1b[2K" not in printed
    assert printed.endswith("0 not checked\r\n")
