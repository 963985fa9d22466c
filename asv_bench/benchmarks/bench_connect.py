"""What it costs to connect a client with default settings, and to keep it connected."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

from .counting import environment, has_valgrind

#: The clients of the shorter of two counted runs. The other one has three times as many.
COUNTED = 20
#: The clients of a run that is timed.
TIMED = 500


def _connect(count: int, *command: str) -> subprocess.CompletedProcess[str]:
    program = [*command, sys.executable, "-m", f"{__package__}.connecting", str(count)]
    return subprocess.run(program, env=environment(), check=True, capture_output=True, text=True, timeout=600)


def track_instructions() -> float:
    """Thousands of instructions of connecting and closing a client, counted by callgrind."""
    if not has_valgrind():
        raise NotImplementedError("valgrind is not installed")
    found = []
    for count in (COUNTED, 3 * COUNTED):
        said = _connect(count, "valgrind", "--tool=callgrind", f"--callgrind-out-file={os.devnull}").stderr
        counted = re.search(r"Collected : (\d+)", said)
        assert counted is not None, said
        found.append(int(counted[1]))
    return round((found[1] - found[0]) / (2 * COUNTED) / 1e3, 1)


def track_cpu() -> float:
    """Milliseconds of CPU of connecting a client; the least of three runs."""
    return min(float(json.loads(_connect(TIMED).stdout)["cpu_us"]) for _ in range(3)) / 1e3


def track_memory() -> float:
    """KiB of resident memory of a connected client."""
    return float(json.loads(_connect(TIMED).stdout)["bytes"]) / 1024


for _function, _unit, _name in (
    (track_instructions, "thousand instructions", "Instructions of a connect"),
    (track_cpu, "ms", "CPU of a connect"),
    (track_memory, "KiB", "Memory of a connection"),
):
    _function.unit = _unit  # type: ignore[attr-defined] # asv reads these from the functions
    _function.pretty_name = _name  # type: ignore[attr-defined]
    _function.version = "1"  # type: ignore[attr-defined]
    _function.timeout = 900  # type: ignore[attr-defined]
