"""Counts the commits whose counts are missing, and builds the site and docs/speed-history: `make history`.

    python -m asv_bench.history.run             the commits of commits.txt and the tip
    python -m asv_bench.history.run COMMIT ...  these as well
    python -m asv_bench.history.run --again     all of them anew, for another compiler, Python or valgrind
    python -m asv_bench.history.run --check     none; fails when a count is missing or the page shows others

A commit takes one to three minutes. The results are asv's, for a machine called callgrind: the counts depend on the
compiler, on Python and on valgrind, which its machine.json names, and hardly on the processor.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from asv import console, util
from asv.benchmarks import Benchmarks
from asv.commands.publish import Publish
from asv.commands.run import Run
from asv.config import Config
from asv.environment import get_environments
from asv.plugin_manager import plugin_manager
from asv.repo import get_repo
from asv.results import iter_results_for_machine
from asv_bench.benchmarks.counting import has_valgrind
from asv_bench.benchmarks.workloads import OWN
from asv_bench.history.page import CHART, COUNTS, PAGE, Point, contents
from asv_bench.repository import ROOT, changed, commit_of

HERE: Final = Path(__file__).parent
MACHINE: Final = "callgrind"
KEPT: Final = HERE.parent / "results" / MACHINE
#: The benchmarks whose results are kept, as regular expressions.
WANTED: Final = [r"^bench_instructions\.", r"^bench_counts\.", r"^bench_import\.track_"]


@dataclass(frozen=True, slots=True)
class Reason:
    """A line of commits.txt: the beginning of a commit's hash, and why its counts are kept."""

    commit: str
    why: str


def reasons() -> list[Reason]:
    """Reads commits.txt."""
    lines = (HERE / "commits.txt").read_text().splitlines()
    return [Reason(*line.split(" ", 1)) for line in lines if line and not line.startswith("#")]


def known(name: str) -> str:
    """Returns the hash of a commit.

    Raises:
        SystemExit: This clone does not have it.
    """
    found = commit_of(name)
    if found is None:
        sys.exit(f"this clone has no commit {name}; if it is a shallow one, run: git fetch --unshallow")
    return found


def reasons_of(points: list[Point]) -> dict[str, str]:
    """Why commits are kept, by their whole hashes."""
    return {point.commit: each.why for each in reasons() for point in points if point.commit.startswith(each.commit)}


def toolchain() -> dict[str, str]:
    """What the counts depend on, in the fields that asv has for machines."""
    compiler = os.environ.get("CC", "cc")
    version = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()
    valgrind = subprocess.run(["valgrind", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    system = " ".join(platform.libc_ver())
    return {
        "machine": MACHINE,
        "arch": platform.machine(),
        "cpu": valgrind,
        "num_cpu": "1",
        "os": f"{platform.system()}, {system}, {compiler} {version}, Python {platform.python_version()}",
        "ram": "",
    }


def check_toolchain(now: dict[str, str]) -> None:
    """Ends the program when the kept results were counted with something else, because they cannot be compared."""
    path = KEPT / "machine.json"
    if not path.exists():
        return
    kept = json.loads(path.read_text())
    different = [f"{kept[key]} there, {now[key]} here" for key in now if kept[key] != now[key]]
    if different:
        sys.exit(
            "the kept results were counted with another toolchain, and curves would jump: "
            f"{'; '.join(different)}. To count all commits anew, here: make history ARGS=--again"
        )


class History:
    """asv's results for the machine that stands for this toolchain. The working directory is asv_bench."""

    def __init__(self) -> None:
        self._configuration = Config.load("asv.conf.json")
        for plugin in self._configuration.plugins:
            plugin_manager.import_plugin(plugin)
        here = list(get_environments(self._configuration, ["existing:same"]))
        # Looks them up in this environment, without building a commit.
        repository = get_repo(self._configuration)
        self._wanted = Benchmarks.discover(self._configuration, repository, here, [None], regex=WANTED)
        self._wanted.save()

    def points(self) -> list[Point]:
        """The complete results, in the order of their commits."""
        found = []
        for result in iter_results_for_machine(self._configuration.results_dir, MACHINE):
            counts: dict[str, dict[str, Any]] = {}
            for name, benchmark in self._wanted.items():
                values = result.get_result_value(name, benchmark["params"]) if self._has(result, name) else [None]
                labels = [label.strip("'") for label in benchmark["params"][0]] if benchmark["params"] else [""]
                counts[name] = dict(zip(labels, values, strict=False))
            # NaN is what this version cannot run, None what failed.
            if all(value is not None for each in counts.values() for value in each.values()):
                found.append(Point(result.commit_hash, result.date / 1000, counts))
        return sorted(found, key=lambda point: point.date)

    def _has(self, result: Any, name: str) -> bool:
        return name in result.get_result_keys(self._wanted)

    def count(self, commits: list[str], machine: dict[str, str]) -> None:
        """Has asv build and count commits.

        Raises:
            SystemExit: Some of them could not be counted.
        """
        with tempfile.TemporaryDirectory() as folder:
            machines = Path(folder) / "machines.json"
            machines.write_text(json.dumps({MACHINE: machine, "version": 1}))
            Run.run(
                self._configuration,
                range_spec=commits,
                bench=WANTED,
                machine=MACHINE,
                _machine_file=str(machines),
                skip_successful=True,
                show_stderr=True,
            )
        counted = {point.commit for point in self.points()}
        left = [commit[:8] for commit in commits if commit not in counted]
        if left:
            sys.exit(f"not counted: {', '.join(left)}; what failed is above")

    def publish(self) -> Path:
        """Builds asv's site, and returns its folder."""
        Publish.run(self._configuration)
        return Path(self._configuration.html_dir).absolute()


def missing(names: list[str], points: list[Point]) -> list[str]:
    """The hashes of commits that are not counted yet, and that of the tip, unless its sources are counted."""
    found = [known(name) for name in names if not any(point.commit.startswith(name) for point in points)]
    tip = known("HEAD")
    here = [point.commit for point in points if commit_of(point.commit)]
    if all(changed(commit, tip) for commit in [*here, *found]):
        found.append(tip)
    return list(dict.fromkeys(found))


def check(points: list[Point], why: dict[str, str]) -> int:
    """Prints what the kept results and the page lack; returns the exit code."""
    lacking = [
        f"commits.txt has {reason.commit}, which is not counted"
        for reason in reasons()
        if not any(point.commit.startswith(reason.commit) for point in points)
    ]
    lacking += [
        f"{point.commit[:8]} has no {name} of {workload}"
        for point in points
        for name in COUNTS
        for workload in OWN
        if math.isnan(point.counts[name][workload])
    ]
    page, chart = contents(points, why)
    lacking += [
        f"{path.relative_to(ROOT)} is not of these counts: make history"
        for path, text in ((PAGE, page), (CHART, chart))
        if path.read_text() != text
    ]
    print("\n".join(lacking) or f"{len(points)} commits are counted, and the page shows them")
    return 1 if lacking else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commits", nargs="*", metavar="COMMIT", help="to be counted as well")
    parser.add_argument("--again", action="store_true", help="count all commits anew")
    parser.add_argument("--check", action="store_true", help="only check what is kept")
    options = parser.parse_args()
    os.chdir(HERE.parent)  # asv takes relative paths from there
    history = History()
    if options.check:
        points = history.points()
        return check(points, reasons_of(points))
    if not has_valgrind():
        sys.exit("valgrind is not installed; run: make valgrind (or: apt-get install valgrind)")
    machine = toolchain()
    if options.again:
        shutil.rmtree(KEPT, ignore_errors=True)
    check_toolchain(machine)
    constraints = str(HERE / "constraints.txt")
    os.environ |= {"PIP_CONSTRAINT": constraints, "PIP_BUILD_CONSTRAINT": constraints}
    os.environ.pop("LEVERET_BUILD", None)  # optimized, all of them
    console.log.enable()
    points = history.points()
    new = missing([*(reason.commit for reason in reasons()), *options.commits], points)
    print(f"{len(points)} commits are counted, {len(new)} are to be", flush=True)
    if new:
        try:
            history.count(new, machine)
        except util.UserError as error:
            sys.exit(str(error))
        points = history.points()
    site = history.publish()
    console.log.flush()
    for path, text in zip((PAGE, CHART), contents(points, reasons_of(points)), strict=True):
        path.write_text(text)
    print(f"\nthe site is in {os.path.relpath(site, ROOT)}; to look at it: cd asv_bench && ../.venv/bin/asv preview")
    print(f"{PAGE.relative_to(ROOT)} and {CHART.relative_to(ROOT)} show {len(points)} commits")
    if new:
        print(f"new results are in {KEPT.relative_to(ROOT)}: commit them; commits.txt says why each commit is kept")
    return 0


if __name__ == "__main__":
    sys.exit(main())
