"""`make regressions`: what fails, what the changelog may allow, and with what a tree is compared."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from asv_bench.regressions import Verdict, compare, least, slower, table
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

#: Instructions per message of one commit, as counted.
COUNTED = {"decode": 2161.6, "publish": 8741.4, "publish_batch": 885.2, "confirm": 219.3, "consume": 4900.6}

CHANGELOG = """\
# Changelog

## [0.2.0] - Unreleased

### Changed

- Batches check each body.
- slower: publish_batch +7 %, because each body is checked
slower: consume +12.5%, because deliveries are timed

## [0.1.0] - 2026-01-01

- slower: decode +30 %, because of an older change
"""


def verdicts(now: dict[str, float], named: dict[str, float] | None = None) -> dict[str, Verdict]:
    return {row.workload: row.verdict for row in compare(COUNTED, now, named or {})}


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.10, Verdict.SLOWER), (1.06, Verdict.SLOWER), (1.04, Verdict.FINE), (0.5, Verdict.FINE)]
)
def test_a_rise_of_more_than_5_percent_fails(factor: float, verdict: Verdict) -> None:
    found = verdicts(COUNTED | {"publish": COUNTED["publish"] * factor})
    assert found.pop("publish") is verdict
    assert set(found.values()) == {Verdict.FINE}


def test_a_rise_that_the_changelog_names_passes_up_to_what_it_says() -> None:
    now = COUNTED | {"publish": COUNTED["publish"] * 1.104, "confirm": COUNTED["confirm"] * 1.2}
    assert verdicts(now, {"publish": 10.0, "confirm": 10.0})["publish"] is Verdict.NAMED
    assert verdicts(now, {"publish": 10.0, "confirm": 10.0})["confirm"] is Verdict.SLOWER
    assert verdicts(now, {"consume": 10.0})["publish"] is Verdict.SLOWER


def test_a_workload_that_cannot_be_run_any_more_fails_and_a_new_one_does_not() -> None:
    now = {name: count for name, count in COUNTED.items() if name != "confirm"} | {"settle": 100.0}
    found = verdicts(now)
    assert found["confirm"] is Verdict.GONE
    assert found["settle"] is Verdict.NEW


def test_only_the_unreleased_section_names_rises() -> None:
    assert slower(CHANGELOG) == {"publish_batch": 7.0, "consume": 12.5}


@pytest.mark.parametrize("line", ["slower: publish", "slower: publish +7 %", "slower: publish +7 %, because "])
def test_a_rise_without_a_number_or_a_reason_is_not_named(line: str) -> None:
    assert slower(f"## Unreleased\n\n{line}\n") == {}


def test_the_form_is_that_of_contributing() -> None:
    documented = (ROOT / "CONTRIBUTING.md").read_text()
    example = next(line for line in documented.splitlines() if line.startswith("- slower: "))
    assert slower(f"## Unreleased\n\n{example}\n")


def test_the_lower_of_two_counts_is_taken() -> None:
    assert least({"publish": 9000.0, "decode": 2000.0}, {"publish": 8700.0, "decode": 2100.0}) == {
        "publish": 8700.0,
        "decode": 2000.0,
    }


def test_the_table_says_what_is_wrong() -> None:
    lines = table(compare(COUNTED, COUNTED | {"publish": 9615.5}, {})).splitlines()
    assert lines[0].split() == ["instructions", "per", "message", "parent", "now", "change"]
    assert "2,162      2,162    +0.0 %" in lines[1]
    assert "8,741      9,616   +10.0 %  more than 5 % slower, and CHANGELOG.md does not say why" in lines[2]


# ---------------------------------------------------------------------- what a tree is compared with


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository with one commit, of the program and of a source."""
    folder = tmp_path / "repository"
    ignored = shutil.ignore_patterns(".asv", "results", "__pycache__")
    shutil.copytree(ROOT / "asv_bench", folder / "asv_bench", ignore=ignored)
    for name in ("sdk/module.py", "cext/module.pyx", "setup.py", "pyproject.toml", "CHANGELOG.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


def regressions(folder: Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "asv_bench.regressions"]
    environment = {"PATH": path} if path else None
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


def test_a_first_commit_has_nothing_to_be_compared_with(repository: Path) -> None:
    done = regressions(repository)
    assert (done.returncode, done.stdout) == (0, "HEAD has no parent: there is nothing to compare with\n")


def test_a_commit_with_the_same_sources_is_not_counted(repository: Path) -> None:
    (repository / "README.md").write_text("text\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "second")
    done = regressions(repository)
    assert done.returncode == 0, done.stderr
    assert "sdk, cext, setup.py, pyproject.toml are those of" in done.stdout


@pytest.mark.parametrize("file", ["sdk/module.py", "sdk/new.py"])
def test_uncommitted_changes_count(repository: Path, tmp_path: Path, file: str) -> None:
    (repository / "README.md").write_text("text\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-qm", "second")
    (repository / file).write_text("changed = True\n")
    programs = tmp_path / "programs"
    programs.mkdir()
    found = shutil.which("git")
    assert found is not None
    (programs / "git").symlink_to(found)
    done = regressions(repository, path=str(programs))  # where no valgrind is
    assert done.returncode == 1
    assert done.stderr == "valgrind is not installed; run: make valgrind (or: apt-get install valgrind)\n"


def test_a_clone_of_depth_1_says_what_it_lacks(repository: Path, tmp_path: Path) -> None:
    (repository / "sdk" / "module.py").write_text("changed = True\n")
    git(repository, "commit", "-qam", "second")
    git(tmp_path, "clone", "-q", "--depth", "1", repository.as_uri(), "shallow")
    done = regressions(tmp_path / "shallow")
    assert done.returncode == 1
    assert done.stderr == "this clone is shallow and lacks the parent of HEAD; run: git fetch --deepen=1\n"
