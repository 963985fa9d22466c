"""Measures the memory of decompressing a body, in a new process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

__all__ = ["Measured", "measure_decompression"]

# Resident memory, because tracemalloc does not see malloc of libraries. Linux has ru_maxrss, too, but it begins
# with the memory of the parent before exec and cannot be reset. The body is in a file, so that memory for making it
# does not count. Three rounds, because malloc behaves differently after large frees.
_PROGRAM = """
import ctypes, importlib, pathlib, re, resource, sys

module, _, name = sys.argv[1].partition(":")
compressor = getattr(importlib.import_module(module), name).factory(None)
status = pathlib.Path("/proc/self/status")

def peak():
    if status.exists():
        return int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

assert compressor.decompress(compressor.compress(b"warm up"), 100) == b"warm up"
data, max_size = pathlib.Path(sys.argv[2]).read_bytes(), int(sys.argv[3])
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
    """The result of a measurement.

    Attributes:
        outcome: The name of the exception's type, or the size, for example "100 bytes".
        memory: The bytes by which the process's peak memory grew.
    """

    outcome: str
    memory: int


def measure_decompression(spec: str, data: bytes, max_size: int, *, timeout: float = 60.0) -> Measured:
    """Decompresses a body with a compressor's default level, in a new process.

    Args:
        spec: The place of the `CompressorSpec`, for example `"leveret_lz4:COMPRESSOR"`.
        data: The compressed body.
        max_size: The limit for the decompressed body in bytes.
        timeout: Seconds that the process may take.

    Returns:
        Outcome and memory. A correct compressor takes at most `max_size` bytes and 1 MiB.

    Raises:
        AssertionError: The process failed. The text has its output.
        subprocess.TimeoutExpired: The process took too long and was killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        body = Path(folder, "body")
        body.write_bytes(data)
        command = [sys.executable, "-c", _PROGRAM, spec, str(body), str(max_size)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)  # noqa: S603
    if done.returncode:
        raise AssertionError(f"decompressing with {spec} ended with status {done.returncode}: {done.stderr}")
    outcome, memory = done.stdout.strip().split(", ")
    return Measured(outcome, int(memory))
