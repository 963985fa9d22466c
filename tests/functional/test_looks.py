"""`make looks` says what it needs, and which pages there are."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def looks(*arguments: str, path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "looks.py", *arguments],
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=30,
    )


def test_what_to_install_is_said_before_anything_is_made(tmp_path: Path) -> None:
    done = looks("--out", str(tmp_path / "looks"), path=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == "chromium is needed for pictures, and is not installed (Debian: apt-get install chromium)\n"
    assert not (tmp_path / "looks").exists()


def test_unknown_page_is_refused_with_those_there_are(tmp_path: Path) -> None:
    done = looks("bnech", path=str(tmp_path))
    assert done.returncode == 2
    assert "no such page: bnech; there are bench, bench-consume" in done.stderr
