"""Measures what decompressing takes, in a process that has done nothing else."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Resident memory, not tracemalloc: zstd allocates with malloc, which tracemalloc does not see. Not ru_maxrss, where the
# system has better: it begins with what the parent had before exec, and cannot be set back. The frame is in a file, so
# that nothing that was needed to make it counts. Three rounds, because malloc changes its ways after large frees.
_PROGRAM = """
import ctypes, pathlib, re, resource, sys

from leveret_zstd import ZstdCompressor

status = pathlib.Path("/proc/self/status")

def peak():
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

compressor = ZstdCompressor()
assert compressor.decompress(compressor.compress(b"warm up"), 100) == b"warm up"
data, max_size = pathlib.Path(sys.argv[1]).read_bytes(), int(sys.argv[2])
if status.exists():
    getattr(ctypes.CDLL(None), "malloc_trim", lambda padding: None)(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
baseline = peak()
for _ in range(3):
    try:
        outcome = f"{len(compressor.decompress(data, max_size))} bytes"
    except Exception as error:
        outcome = type(error).__name__
print(outcome, peak() - baseline, sep=", ")
"""


class Measured(NamedTuple):
    """What decompressing came to, and by how many bytes it raised the process's peak memory."""

    outcome: str
    memory: int


@pytest.fixture
def measure(tmp_path: Path) -> Callable[[bytes, int], Measured]:
    def run(data: bytes, max_size: int) -> Measured:
        frame = tmp_path / "frame"
        frame.write_bytes(data)
        command = [sys.executable, "-c", _PROGRAM, str(frame), str(max_size)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        outcome, memory = done.stdout.strip().split(", ")
        return Measured(outcome, int(memory))

    return run
