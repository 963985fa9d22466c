"""Cases, peers and driver programs for the tests of the comparison (asv_bench/compare)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from asv_bench.compare.children import Program
from asv_bench.compare.job import KINDS, Task
from asv_bench.compare.plan import CASES, Peer, Way

if TYPE_CHECKING:
    from pathlib import Path


MEBIBYTE = 1024 * 1024
BY_NAME = {case.name: case for case in CASES}
TASK = Task(
    kind="publish",
    how="some way",
    host="127.0.0.1",
    port=5672,
    queue="q",
    warm_up_queue="w",
    count=7,
    warm_up_count=1,
    size=5,
)


def peer(name: str = "one", kinds: tuple[str, ...] = KINDS, **details: Any) -> Peer:
    return Peer(name, name, "1.0", tuple(Way(kind, f"its {kind}", 1.0, best=True) for kind in kinds), **details)


def program(tmp_path: Path, code: str) -> Program:
    script = tmp_path / "driver.py"
    script.write_text(code)
    return Program((sys.executable, str(script)))
