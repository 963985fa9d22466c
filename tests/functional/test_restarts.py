"""Short forms of `make restarts` (docs/long-runs.md): no process is aborted, and every client comes back."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.support.paths import ROOT


def run(*options: str) -> None:
    """Runs the program with these options; it judges by itself."""
    command = [sys.executable, "-m", "asv_bench.restarts", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no process was aborted, every error was a LeveretError, every client published again" in done.stdout


@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_no_process_is_aborted_when_its_connections_are_reset(loop: str) -> None:
    run("--part", "resets", "--loop", loop, "--times", "1", "--seconds", "4")


@pytest.mark.integration
def test_every_client_publishes_again_when_the_broker_of_many_is_killed() -> None:
    run("--part", "restarts", "--loop", "uvloop", "--times", "1", "--clients", "30", "--max-delay", "1")
