"""Compares the instructions per message of this tree with its parent's, and fails when they rose: `make regressions`.

    python -m asv_bench.regressions                  with the first parent of HEAD
    python -m asv_bench.regressions --base COMMIT    with another commit

The tree counts as it is, with uncommitted changes, and with the modules that `make setup` built. The parent is built
with the same compiler in a temporary folder. A rise of more than 5 % fails, unless the Unreleased section of
CHANGELOG.md got a line about it since the parent:

    slower: publish_batch +7 %, because it checks each body
"""

from __future__ import annotations

import argparse
import enum
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asv_bench.benchmarks import counting
from asv_bench.benchmarks.workloads import OWN
from asv_bench.repository import ROOT, SOURCES, changed, commit_of, git

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: The rise in per cent that needs no reason.
LIMIT: Final = 5.0
#: A rise may be this much above what the changelog says, because it rounds.
_ROUNDING: Final = 1.0
#: How often a tree that seems slower is counted again. Addresses differ from run to run, and where two names meet in
#: Python's cache of methods, a workload takes a few per cent more: the lowest count is the one.
_AGAIN: Final = 2
_UNRELEASED: Final = re.compile(r"^## [^\n]*\bUnreleased\b.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
_SLOWER: Final = re.compile(r"^[-* ]*slower: (\w+) \+(\d+(?:\.\d+)?) ?%, because \S", re.MULTILINE)


class Verdict(enum.StrEnum):
    """What is to be said of a workload."""

    FINE = ""
    NAMED = "CHANGELOG.md says why"
    SLOWER = f"more than {LIMIT:g} % slower, and CHANGELOG.md does not say why"
    NEW = "new"
    GONE = "cannot be run any more"


@dataclass(frozen=True, slots=True)
class Row:
    """A workload: instructions per message of the parent and of this tree, None when it cannot be run there."""

    workload: str
    before: float | None
    after: float | None
    verdict: Verdict

    @property
    def rise(self) -> float | None:
        return percent(self.before, self.after)


def percent(before: float | None, after: float | None) -> float | None:
    """The rise from one value to another in per cent."""
    return 100 * (after - before) / before if before and after is not None else None


def slower(changelog: str) -> dict[str, float]:
    """Reads the lines of the Unreleased section that say how much slower a workload is: per cent by workload."""
    section = _UNRELEASED.search(changelog)
    return {name: float(rise) for name, rise in _SLOWER.findall(section[0])} if section else {}


def compare(before: Mapping[str, float], after: Mapping[str, float], named: Mapping[str, float]) -> list[Row]:
    """Judges the counts of two versions.

    Args:
        before: Instructions per message by workload, of the parent.
        after: The same of this tree.
        named: The rises in per cent that were announced since the parent.

    Returns:
        The workloads, in the order of `after`; then those that are gone.
    """
    rows = []
    for workload in dict.fromkeys([*after, *before]):
        old, new = before.get(workload), after.get(workload)
        rise = percent(old, new)
        if old is None:
            verdict = Verdict.NEW
        elif new is None:
            verdict = Verdict.GONE
        elif rise is None or rise <= LIMIT:
            verdict = Verdict.FINE
        else:
            verdict = Verdict.NAMED if rise <= named.get(workload, 0) + _ROUNDING else Verdict.SLOWER
        rows.append(Row(workload, old, new, verdict))
    return rows


def least(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    """Returns the lower count of each workload."""
    return {name: min(value, other.get(name, value)) for name, value in one.items()}


def table(rows: Sequence[Row]) -> str:
    """Formats rows for a terminal."""
    lines = [f"{'instructions per message':24} {'parent':>10} {'now':>10} {'change':>9}"]
    for row in rows:
        before, after = ("-" if value is None else f"{value:,.0f}" for value in (row.before, row.after))
        rise = "" if row.rise is None else f"{row.rise:+.1f} %"
        lines.append(f"{row.workload:24} {before:>10} {after:>10} {rise:>9}  {row.verdict}".rstrip())
    return "\n".join(lines)


# ---------------------------------------------------------------------- building


def check_out(commit: str, folder: Path) -> None:
    """Writes the files of a commit into a folder, as old as the commit."""
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")


def reuse(commit: str, folder: Path) -> int:
    """Copies the compiled modules of this tree whose sources are the same in a checkout; returns how many.

    A change of a .pxd file or of setup.py may concern all modules, so none is copied then.
    """
    files = changed(commit)
    if any(file == "setup.py" or file.endswith(".pxd") for file in files):
        return 0
    copied = 0
    for source in sorted((ROOT / "cext").rglob("*.pyx")):
        if str(source.relative_to(ROOT)) in files:
            continue
        module = Path("sdk") / source.relative_to(ROOT / "cext").with_suffix("")
        generated = Path("build/cython") / source.relative_to(ROOT).with_suffix(".c")
        built = list((ROOT / module.parent).glob(f"{module.name}.*.so"))
        if len(built) != 1 or not (ROOT / generated).exists():
            continue
        for path in (generated, built[0].relative_to(ROOT)):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, folder / path)
        copied += 1
    return copied


def build(folder: Path) -> None:
    """Builds the compiled modules of a checkout in place, optimized.

    Raises:
        SystemExit: They cannot be built.
    """
    variables = {key: value for key, value in os.environ.items() if key != "LEVERET_BUILD"}
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the parent cannot be built:\n{done.stdout[-1000:]}{done.stderr[-3000:]}")


def parent() -> str | None:
    """Returns the first parent of HEAD, or None when HEAD has none.

    Raises:
        SystemExit: This clone does not have it.
    """
    found = commit_of("HEAD^1")
    if found is None and git("rev-parse", "--is-shallow-repository") == "true":
        sys.exit("this clone is shallow and lacks the parent of HEAD; run: git fetch --deepen=1")
    return found


def count(package: Path) -> dict[str, float]:
    """Counts the workloads of the Leveret in a folder, without those that need plugins: only this tree's are here."""
    return counting.instructions([package], [OWN])


def judge(base: str) -> list[Row]:
    """Builds a commit, counts it and this tree, and compares."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    announced = dict(slower(changelog).items() - slower(git("show", f"{base}:CHANGELOG.md")).items())
    with tempfile.TemporaryDirectory(prefix="leveret-regressions-") as temporary:
        # Both in folders with names of one length: counts depend on where objects and frames lie in memory, by several
        # per cent of the cheapest workloads.
        folder, here = Path(temporary, "base"), Path(temporary, "this", "sdk")
        shutil.copytree(ROOT / "sdk", here, ignore=shutil.ignore_patterns("__pycache__"))
        check_out(base, folder)
        copied = reuse(base, folder)
        print(
            f"building {describe(base)}{f', without {copied} modules that are the same here' if copied else ''}",
            flush=True,
        )
        build(folder)
        print("counting the instructions of both with callgrind", flush=True)
        with ThreadPoolExecutor(2) as pool:
            before, after = pool.map(count, (folder / "sdk", here))
        rows = compare(before, after, announced)
        for _ in range(_AGAIN):
            if any(row.verdict is Verdict.SLOWER for row in rows):
                print("counting this tree again, because something is slower", flush=True)
                after = least(after, count(here))
                rows = compare(before, after, announced)
    return rows


def describe(commit: str) -> str:
    """A commit's short hash and subject."""
    return git("log", "-1", "--format=%h (%s)", commit)


def main() -> int:
    """Compares; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", metavar="COMMIT", help="compare with this commit (default: the first parent of HEAD)")
    options = parser.parse_args()
    started = time.monotonic()
    base = commit_of(options.base) if options.base else parent()
    if base is None:
        if options.base:
            parser.error(f"this clone has no commit {options.base}")
        print("HEAD has no parent: there is nothing to compare with")
        return 0
    if not changed(base):
        print(f"{', '.join(SOURCES)} are those of {describe(base)}: there is nothing to compare")
        return 0
    if not counting.has_valgrind():
        sys.exit("valgrind is not installed; run: make valgrind (or: apt-get install valgrind)")
    rows = judge(base)
    print(f"\n{table(rows)}\n")
    bad = [row for row in rows if row.verdict in (Verdict.SLOWER, Verdict.GONE)]
    print(f"{len(bad)} of {len(rows)} workloads failed; it took {time.monotonic() - started:.0f} s")
    for row in bad:
        if row.rise is not None:
            print(f"Make {row.workload} faster again, or say why in the Unreleased section of CHANGELOG.md:")
            print(f"    slower: {row.workload} +{row.rise:.0f} %, because ...")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
