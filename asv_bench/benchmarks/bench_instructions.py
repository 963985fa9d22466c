"""Instructions for each message, counted by callgrind: they do not drift with the load and heat of the machine.

Compare them between versions of Leveret on one machine and compiler, never between machines.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from .support import need
from .workloads import WORKLOADS

#: Enough to hide the instructions of start-up, which differ by a few 100,000 from run to run.
COUNT = 20_000


def _instructions(name: str, total: int, count: int) -> int:
    """Counts the instructions of a whole interpreter, from its start to its end."""
    command = [
        "valgrind",
        "--tool=callgrind",
        f"--callgrind-out-file={os.devnull}",
        sys.executable,
        *("-m", f"{__package__}.workloads", name, str(total), str(count)),
    ]
    # Makes hashing repeatable. The paths are needed because this suite, and perhaps Leveret, is not installed.
    package = need("leveret").__file__
    assert package is not None
    paths = [Path(__file__).parents[1], Path(package).parents[1]]
    environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    found = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or not found:
        raise RuntimeError(f"callgrind failed on {name}: {done.stderr[-2000:]}")
    return int(found[1])


class Instructions:
    """The difference between two runs, over the messages that one of them handled more."""

    params = tuple(WORKLOADS)
    param_names = ("workload",)
    timeout = 600

    def setup(self, workload: str) -> None:
        if shutil.which("valgrind") is None:
            raise NotImplementedError("valgrind is not installed")
        need("leveret.publishing.publisher")
        if workload.endswith("_monitored"):
            need("leveret.monitoring.report")
            need("leveret_prometheus")

    def track_instructions(self, workload: str) -> float:
        less, more = (_instructions(workload, 2 * COUNT, count) for count in (COUNT, 2 * COUNT))
        return round((more - less) / COUNT, 1)

    track_instructions.unit = "instructions/message"  # type: ignore[attr-defined] # asv reads it from the function
