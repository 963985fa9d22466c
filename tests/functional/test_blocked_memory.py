"""A client's memory stays bounded while the broker takes no publishings; `make blocked` measures it for a minute."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from tests.support.paths import ROOT

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.mark.parametrize("obstacle", ["blocked", "silent"])
@pytest.mark.parametrize("kind", ["nowait", "publish", "batch"])
async def test_resident_memory_grows_by_no_more_than_the_settings_allow(obstacle: str, kind: str) -> None:
    command = [sys.executable, "-m", "asv_bench.blocked", "--seconds", "1", "--kinds", kind, "--obstacles", obstacle]
    done = await asyncio.to_thread(
        subprocess.run, [*command, "--sizes", "16k"], cwd=ROOT, capture_output=True, text=True, timeout=25
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the client's memory stayed within its settings" in done.stdout
