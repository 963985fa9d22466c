"""Floods of what no peer should send, in short (docs/long-runs.md); and that the check of them can fail."""

from __future__ import annotations

import asyncio
import dataclasses
import subprocess
import sys

import pytest
from asv_bench import floods
from tests.support.paths import ROOT

pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.time_limit(170)]


@pytest.mark.parametrize(
    "names", ["login,unopened", "bytes,huge", "client-login,client-bytes", "client-huge,client-prefetch", "sockets"]
)
async def test_victim_stays_within_its_limit(names: str) -> None:
    command = [sys.executable, "-m", "asv_bench.floods", "--floods", names, "--sockets", "500"]
    done = await asyncio.to_thread(subprocess.run, command, cwd=ROOT, capture_output=True, text=True, timeout=160)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every flood stayed within its limit" in done.stdout


RESULT = floods.Result(
    name="huge",
    victim="broker",
    title="large bodies",
    sent_mib=20,
    before=40,
    peak=72,
    allowed=32,
    ended="506",
    ends="506",
    back=4.9,
)


def test_flood_within_its_limit_is_no_problem() -> None:
    assert floods.problems([RESULT, dataclasses.replace(RESULT, ended="anything", ends="")]) == []


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"peak": 72.1}, "huge: memory grew by 32.1 MiB; 32.0 are allowed"),
        ({"back": None}, "huge: memory was not back 5 s after the peer's end"),
        ({"ended": "socket closed"}, "huge: it ended with 'socket closed', not '506'"),
    ],
)
def test_flood_fails_when_a_limit_is_exceeded(changed: dict[str, object], said: str) -> None:
    assert floods.problems([dataclasses.replace(RESULT, **changed)]) == [said]  # type: ignore[arg-type]
