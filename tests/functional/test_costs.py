"""`make costs` (docs/costs.md): each axis with small counts, and what is said of the figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from asv_bench import costs
from asv_bench.cost_points import Point
from asv_bench.costs import CHOICES, Row

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.time_limit(110)

SMALL_RUNS = [
    Point("channels", 3, 4000),
    Point("connections", 3, 4000),
    Point("consumers", 1, 500),
    Point("consumers", 3, 500),
    Point("queues", 3, 2500),
    Point("outage", 100, 300),
    Point("window", 100, 2000),
    Point("bare", 100, 2000),
    Point("tickets", 100, 300),
    Point("size", 64, 1000),
    Point("copying", 64, 1000),
]


def rows(axis: str, **cpu_us: float) -> list[Row]:
    """Rows of an axis; the names are `at_VALUE`."""
    found = {Point(axis, int(name[3:]), 1000): [cpu] for name, cpu in cpu_us.items()}
    return costs.summarize(found)


def test_each_axis_is_measured_in_each_round() -> None:
    seen: list[Point] = []
    identity, found = costs.measure(SMALL_RUNS, "embedded", 1, 0, seen.append)
    assert "Leveret" in identity
    # A round to warm up and a counted one.
    assert seen == SMALL_RUNS * 2
    assert {point: len(rounds) for point, rounds in found.items()} == dict.fromkeys(SMALL_RUNS, 1)
    # What an outage without messages costs is subtracted: with few messages nothing may be left of it.
    assert all(rounds[0] > 0 for point, rounds in found.items() if point.axis != "outage")
    assert {point.axis for point in SMALL_RUNS} == {*CHOICES, *costs.YARDSTICKS.values()}


def test_the_plan_has_all_points_of_the_axes_that_are_asked_for() -> None:
    every = costs.plan(CHOICES, 1.0)
    assert {point.axis for point in every} == {*CHOICES, *costs.YARDSTICKS.values()}
    assert [point.value for point in costs.plan(["connections"], 1.0)] == [1, 10, 100, 500]
    assert [point.value for point in costs.plan(["consumers"], 0.25)] == [1, 10, 100, 1000]
    assert [point.value for point in costs.plan(["queues"], 0.25)] == [1, 100, 1000, 5000]
    for point in costs.plan(["outage"], 0.25):
        assert point.count >= point.value
        assert point.count % point.value == 0
    for point in costs.plan(["channels", "connections"], 0.25):
        assert point.count >= 1000 * point.value, "a batch for each"


@pytest.mark.parametrize(
    ("point", "label"),
    [
        (Point("connections", 1, 1), "1 connection"),
        (Point("connections", 500, 1), "500 connections"),
        (Point("consumers", 1, 1), "1 consumer"),
        (Point("queues", 5000, 1), "5,000 queues"),
        (Point("outage", 100_000, 1), "outage with 100,000 held"),
        (Point("bare", 1000, 1), "window 1,000, ready-made frames"),
        (Point("copying", 65536, 1), "64 KiB copied and written"),
    ],
)
def test_a_point_has_a_name(point: Point, label: str) -> None:
    assert point.label == label


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ({"at_1": 1.0, "at_10": 1.05, "at_100": 0.99}, "the cost is flat within 6%."),
        ({"at_1": 1.0, "at_10": 1.5, "at_100": 1.5}, "the cost is flat within 50%, and from 10 on within 0%."),
        ({"at_1": 1.0, "at_10": 1.5, "at_100": 2.0}, "flat within 100%, and not within 10% from any point on."),
    ],
)
def test_the_verdict_says_from_where_on_a_cost_is_flat(figures: dict[str, float], said: str) -> None:
    (verdict,) = costs.verdicts(rows("connections", **figures))
    assert verdict.startswith("From 1 to 100 connections the cost is flat within ")
    assert verdict.endswith(said)


@pytest.mark.parametrize("axis", ["channels", "connections", "consumers", "queues", "outage"])
def test_an_axis_has_a_panel_and_lines(axis: str) -> None:
    found = rows(axis, at_1=1.0, at_10=2.0)
    (panel,) = costs.panels(found)
    assert [bar.label for bar in panel.bars] == [row.point.label for row in found]
    assert [line[3] for line in costs.cells(found)] == ["1.00 of the first", "2.00 of the first"]


@pytest.mark.parametrize(
    "arguments", [["--axes", "nothing"], ["--rounds", "0"], ["--count-scale", "0.2"], ["--send-buffer", "1"]]
)
def test_what_makes_no_sense_is_refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        costs.parse(arguments)
    assert refused.value.code not in (0, None)
