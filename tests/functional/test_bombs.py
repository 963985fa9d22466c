"""Decompressing a hostile body takes bounded memory; a child process decompresses many and reports what each took."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.support.bombs import MAX_SIZE, bombs

pytestmark = pytest.mark.usefixtures("no_leftovers")


MIB = 1 << 20


def test_at_least_twenty_bombs_stay_within_the_limit_and_one_mebibyte() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.bombs"], capture_output=True, text=True, timeout=120, check=True
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["name"] for result in results] == list(bombs())
    assert len(results) >= 20
    for result in results:
        assert result["raised"] in ("BodyTooLarge", "DecodeFailed"), result
        assert 0 <= result["grown"] <= MAX_SIZE + MIB, result
