"""Counts what a message costs, in numbers that do not drift with the load and heat of a machine.

Compare them between versions of Leveret on one machine, Python and compiler, never between machines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .counted import messages
from .former import need
from .workloads import OWN, WORKLOADS

Programs = Sequence[Sequence[str]]

HERE = Path(__file__).parent
#: The workloads by the processes that run them. The metrics of a process are those of all its clients, so a monitored
#: workload has a process of its own.
PROGRAMS: Programs = (OWN, *([name] for name in WORKLOADS if name not in OWN))
#: What a program that connects imports; names are loaded when first used.
IMPORT = "import leveret; leveret.connect, leveret.run"
_TIMEOUT = 1_500.0


def environment(paths: list[Path] | None = None) -> dict[str, str]:
    """The environment of counted programs.

    Args:
        paths: The folders to import from, in place of that of the Leveret that can be imported here.
    """
    if paths is None:
        package = need("leveret").__file__
        assert package is not None
        paths = [Path(package).parents[1]]
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONDONTWRITEBYTECODE", "LD_PRELOAD")}
    # Makes hashing repeatable. The suite is not installed.
    return kept | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(map(str, [*paths, HERE.parent]))}


def has_valgrind() -> bool:
    """Is valgrind installed? `make valgrind` installs it."""
    return shutil.which("valgrind") is not None


def _run(command: list[str], variables: dict[str, str]) -> tuple[str, str]:
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=_TIMEOUT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return done.stdout, done.stderr


def _library(name: str, folder: str) -> str:
    library = f"{folder}/{name}.so"
    compiler = os.environ.get("CC", "cc")
    source = HERE / f"{name}.c"
    _run([compiler, "-O2", "-fPIC", "-shared", "-fno-builtin", "-o", library, str(source), "-ldl"], {**os.environ})
    return library


def _callgrind(out: str, *options: str) -> list[str]:
    return ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", *options, sys.executable]


def instructions(paths: list[Path] | None = None, programs: Programs = PROGRAMS) -> dict[str, float]:
    """Counts the instructions of workloads per message.

    Args:
        paths: As for `environment`.
        programs: The names of workloads, by the processes that run them.

    Returns:
        The counts by workload, without those that this version cannot run.

    Raises:
        RuntimeError: A counted program failed.
    """
    found: dict[str, float] = {}
    for names in programs:
        with tempfile.TemporaryDirectory() as folder:
            library = _library("callgrind", folder)
            command = [*_callgrind(f"{folder}/counts", "--instr-atstart=no"), "-m", f"{__package__}.counted"]
            _run([*command, "instructions", library, *names], environment(paths) | {"LD_PRELOAD": library})
            found |= taken(Path(folder))
    return found


def counted_instructions(programs: Programs = PROGRAMS) -> dict[str, float]:
    """The counts for a benchmark of asv; none without valgrind."""
    return instructions(programs=programs) if has_valgrind() else {}


class Counted:
    """The base of asv's benchmarks of instructions per message.

    Each has its workloads as `params`, and a `setup_cache` of its own: asv keeps one result for each such function.
    """

    param_names = ("workload",)
    version = "1"
    unit = "instructions/message"

    def setup(self, counts: dict[str, float], workload: str) -> None:
        """Skips a workload that has no count.

        Raises:
            NotImplementedError: This is how asv is told; the text says why.
        """
        if workload not in counts:
            reason = f"this version cannot run {workload}" if has_valgrind() else "valgrind is not installed"
            raise NotImplementedError(reason)

    def track_instructions(self, counts: dict[str, float], workload: str) -> float:
        return counts[workload]


def taken(folder: Path) -> dict[str, float]:
    """Reads the files that callgrind wrote: three for each workload, the first before anything was counted."""
    taken: dict[str, list[int]] = {}
    # Callgrind numbers them in the order of writing.
    for file in sorted(folder.glob("counts.*"), key=lambda path: int(path.suffix[1:])):
        text = file.read_text()
        name = re.search(r"^desc: Trigger: Client Request: (\w+)$", text, re.MULTILINE)
        total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
        if name and total:
            taken.setdefault(name[1], []).append(int(total[1]))
    return {name: round((twice - once) / messages(name), 1) for name, (_, once, twice) in taken.items()}


def calls(paths: list[Path] | None = None) -> dict[str, float]:
    """Counts the Python functions that each workload calls or resumes per message, its own among them."""
    return {name: counts["calls"] for name, counts in _counted("calls", "", environment(paths)).items()}


def memory(paths: list[Path] | None = None) -> dict[str, dict[str, float]]:
    """Counts the allocations of each workload per message, and the bytes that are copied.

    Objects that Python or Cython takes from a list of free ones are no allocations. See memory.c for the copies that
    are not seen; the workload `consume` copies each frame once where a socket would have the kernel do it.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = _library("memory", folder)
        # Without Python's own allocator each block comes from malloc.
        return _counted("memory", library, environment(paths) | {"LD_PRELOAD": library, "PYTHONMALLOC": "malloc"})


def _counted(meter: str, library: str, variables: dict[str, str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for names in PROGRAMS:
        printed, _ = _run([sys.executable, "-m", f"{__package__}.counted", meter, library, *names], variables)
        for name, counts in json.loads(printed).items():
            found[name] = {key: round(value, 2) for key, value in counts.items()}
    return found


def import_instructions(paths: list[Path] | None = None) -> int:
    """Counts the instructions of importing what a program that connects needs, with bytecode files."""
    return instructions_of("-c", IMPORT, paths=paths) - instructions_of("-c", "pass", paths=paths)


def instructions_of(*arguments: str, paths: list[Path] | None = None) -> int:
    """Counts the instructions of a whole program, from the start of its process to the end, with bytecode files.

    Args:
        *arguments: The arguments of Python.
        paths: As for `environment`.

    Raises:
        RuntimeError: The program failed.
    """
    variables = environment(paths)
    _run([sys.executable, *arguments], variables)  # writes the bytecode files
    _, said = _run([*_callgrind(os.devnull), *arguments], variables)
    counted = re.search(r"Collected : (\d+)", said)
    assert counted is not None, said
    return int(counted[1])
