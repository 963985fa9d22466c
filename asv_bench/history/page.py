"""What docs/speed-history.md and docs/speed-history.svg show."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from asv_bench.history.lines import Line, Panel, draw
from asv_bench.repository import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PAGE: Final = ROOT / "docs" / "speed-history.md"
CHART: Final = PAGE.with_suffix(".svg")
_PLACE: Final = re.compile(r"(?<=<!-- history:begin -->\n).*?(?=<!-- history:end -->)", re.DOTALL)

INSTRUCTIONS: Final = "bench_instructions.Instructions.track_instructions"
CALLS: Final = "bench_counts.Counts.track_calls"
ALLOCATIONS: Final = "bench_counts.Counts.track_allocations"
COPIED: Final = "bench_counts.Counts.track_copied_bytes"
IMPORT: Final = "bench_import.track_import_instructions"
#: The curves that are drawn; the site has the others.
_SHOWN: Final = (
    "publish",
    "template",
    "publish_nowait",
    "publish_batch",
    "consume",
    "decode",
    "acknowledge",
    "confirm",
)
_PANELS: Final = (
    ("Instructions per message", INSTRUCTIONS, _SHOWN),
    ("Allocations per message", ALLOCATIONS, ("publish", "publish_nowait", "publish_batch", "consume")),
    (
        "Python functions called or resumed per message",
        CALLS,
        ("publish", "publish_nowait", "publish_batch", "consume"),
    ),
    ("Bytes copied per message of 1 KiB", COPIED, ("publish", "publish_batch", "consume")),
    ("Million instructions of the import", IMPORT, ("",)),
)
#: The benchmarks of all workloads.
COUNTS: Final = (INSTRUCTIONS, CALLS, ALLOCATIONS, COPIED)
_COLUMNS: Final = ("publish", "publish_nowait", "publish_batch", "template", "consume")


@dataclass(frozen=True, slots=True)
class Point:
    """The counts of a commit.

    Attributes:
        commit: Its hash.
        date: When it was made, in seconds since 1970.
        counts: Values by benchmark and workload; the workload is "" for a benchmark without.
    """

    commit: str
    date: float
    counts: Mapping[str, Mapping[str, float]]


def contents(points: Sequence[Point], why: Mapping[str, str]) -> tuple[str, str]:
    """Returns the page with its marked place filled, and the picture.

    Args:
        points: The commits, at least two of them, the oldest first.
        why: Why a commit's counts are kept, by its hash.
    """
    panels = [
        Panel(heading, [Line(name or "import", [point.counts[key][name] for point in points]) for name in names])
        for heading, key, names in _PANELS
    ]
    page = _PLACE.sub(lambda _: _table(points, why), PAGE.read_text(), count=1)
    return page, draw(panels, f"What a message of Leveret cost, at {len(points)} of its commits")


def _table(points: Sequence[Point], why: Mapping[str, str]) -> str:
    lines = [
        f"| | commit | {' | '.join(f'`{name}`' for name in _COLUMNS)} | what it changed |",
        f"| ---: | --- |{' ---: |' * len(_COLUMNS)} --- |",
    ]
    for number, point in enumerate(points, 1):
        day = datetime.fromtimestamp(point.date, UTC).strftime("%Y-%m-%d")
        counts = " | ".join(f"{point.counts[INSTRUCTIONS][name]:,.0f}" for name in _COLUMNS)
        lines.append(f"| {number} | {point.commit[:8]} {day} | {counts} | {why.get(point.commit, 'the latest')} |")
    return "\n".join(lines) + "\n"
