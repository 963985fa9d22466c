"""The speed history: what is kept is whole and shown, and counts are the same on each run."""

from __future__ import annotations

import itertools
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from asv_bench.benchmarks import counting
from asv_bench.benchmarks.counted import messages
from asv_bench.benchmarks.former import HOMES, find
from asv_bench.benchmarks.workloads import OWN
from asv_bench.history.lines import Line, Panel, apart, draw, scale_marks
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path


def test_curves_are_unbroken_and_the_page_shows_them() -> None:
    command = [sys.executable, "-m", "asv_bench.history.run", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    commits = int(done.stdout.split(maxsplit=1)[0])
    assert commits >= 20


def test_kept_results_are_small_and_of_no_certain_machine() -> None:
    kept = sorted((ROOT / "asv_bench" / "results" / "callgrind").iterdir())
    assert sum(path.stat().st_size for path in kept) < 1_000_000
    assert {path.suffix for path in kept} == {".json"}


def test_counts_are_the_same_on_each_run() -> None:
    counts = [(counting.calls(), counting.memory()) for _ in range(2)]
    calls, memory = counts[0]
    assert set(OWN) <= set(calls)
    assert set(OWN) <= set(memory)
    for name in OWN:
        assert counts[1][0][name] == pytest.approx(calls[name], abs=0.05)
        assert counts[1][1][name] == pytest.approx(memory[name], rel=0.02, abs=0.05)


def test_copies_and_allocations_are_seen() -> None:
    memory = counting.memory()
    # A publishing of 1 KiB is copied once into the send buffer, a delivery into the receive buffer and out of it.
    assert 1024 < memory["publish_batch"]["copied_bytes"] < 1300
    assert 2048 < memory["decode"]["copied_bytes"] < 2400
    assert memory["publish"]["allocations"] > 1


def test_what_callgrind_wrote_is_read(tmp_path: Path) -> None:
    for number, (name, total) in enumerate(
        [("publish", 17), ("publish", 1_000_000), ("publish", 1_900_000), ("decode", 20), ("decode", 5), ("decode", 5)]
    ):
        text = f"version: 1\ndesc: Trigger: Client Request: {name}\n\nfn=(1)\n0 {total}\n\ntotals: {total}\n"
        (tmp_path / f"counts.{number + 1}").write_text(text)
    (tmp_path / "counts.7").write_text("desc: Trigger: Program termination\ntotals: 12\n")
    assert counting.taken(tmp_path) == {"publish": 900_000 / messages("publish"), "decode": 0.0}


def test_names_that_benchmarks_use_are_found() -> None:
    older = {"Generation"}
    assert {name for name in HOMES if find_or_none(name) is None} <= older


def find_or_none(name: str) -> object:
    try:
        return find(name)
    except NotImplementedError:
        return None


def test_names_at_the_ends_of_curves_do_not_overlap() -> None:
    places = apart([100.0, 101.0, 102.0, 300.0], 15)
    assert all(below - above >= 14.9 for above, below in itertools.pairwise(places))
    assert places[3] == 300.0
    assert abs(places[1] - 101.0) < 1


@pytest.mark.parametrize(
    ("lowest", "highest", "marks"),
    [(0.2, 33.6, [0.2, 0.5, 1, 2, 5, 10, 20, 50]), (140, 150, [100, 200]), (5, 5, [5, 10])],
)
def test_a_scale_holds_all_values(lowest: float, highest: float, marks: list[float]) -> None:
    assert list(scale_marks(lowest, highest)) == marks


def test_a_picture_has_each_curve_with_its_last_value() -> None:
    panel = Panel("Instructions", [Line("publish", [9000.0, 8000.0]), Line("confirm", [300.0, 0.0])])
    picture = draw([panel], "<cost>")
    assert picture.count("<polyline") == 4  # a curve and a pointer to its name, twice
    assert "publish 8,000" in picture
    assert "&lt;cost&gt;" in picture
