"""What `leveret doctor` makes of a version, of the times that a broker tells, and of numbers."""

from __future__ import annotations

from datetime import date
from itertools import pairwise

import pytest

from leveret import ConnectionSettings
from leveret.cli.doctor.broker import support
from leveret.cli.doctor.finding import State, count, milliseconds, some
from leveret.cli.doctor.series import NEWEST, SERIES, consumer_timeout, largest_body, version_of
from leveret.cli.doctor.trips import clock
from leveret.cli.doctor.visit import Visit

TODAY = date(2026, 11, 30)
MIB = 1024 * 1024


def test_the_series_are_in_order_and_their_dates_as_well() -> None:
    assert all(later.number > earlier.number for later, earlier in pairwise(SERIES))
    assert all(series.released < series.community <= series.commercial for series in SERIES)
    assert SERIES[0] is NEWEST


@pytest.mark.parametrize(
    ("version", "today", "state", "said"),
    [
        ("4.3.6", TODAY, State.OK, "series 4.3 of 2026-04-23, community support until 2026-11-30"),
        ("4.3.6", date(2026, 12, 1), State.WARNING, "community support ended 2026-11-30"),
        ("4.2.1", TODAY, State.WARNING, "community support ended 2026-07-31, commercial support until 2030-06-30"),
        ("4.0.5", TODAY, State.WARNING, "community support ended 2025-04-30, commercial support 2026-09-30"),
        ("3.10.8", TODAY, State.WARNING, "community support ended 2022-09-30, commercial support 2023-12-31"),
        ("3.13.0-rc.1", TODAY, State.WARNING, "series 3.13 of 2024-02-22"),
        ("3.6.16", TODAY, State.WARNING, "no release of its series is supported any more"),
        ("4.4.0", TODAY, State.OK, "newer than what this Leveret knows (4.3)"),
        ("12.0.1", TODAY, State.OK, "newer than what this Leveret knows (4.3)"),
        ("unknown", TODAY, State.WARNING, "no version of a release"),
    ],
)
def test_a_version_is_supported_or_not(version: str, today: date, state: State, said: str) -> None:
    finding = support("RabbitMQ", version, today)
    assert finding.state is state
    assert said in finding.found
    assert bool(finding.advice) is (state is State.WARNING)


@pytest.mark.parametrize(
    ("version", "body", "timeout"),
    [
        ("3.7.28", None, "none"),
        ("3.8.14", 128 * MIB, "none"),
        ("3.8.16", 128 * MIB, "15 minutes"),
        ("3.8.17", 128 * MIB, "30 minutes"),
        ("3.13.7", 128 * MIB, "30 minutes"),
        ("4.0.0", 16 * MIB, "30 minutes"),
        ("4.3.0", 16 * MIB, "30 minutes in quorum queues, none in others"),
    ],
)
def test_the_limits_of_a_version_are_known(version: str, body: int | None, timeout: str) -> None:
    numbers = version_of(version)
    assert numbers is not None
    assert (largest_body(numbers), consumer_timeout(numbers)) == (body, timeout)


def test_text_that_is_no_version_is_none() -> None:
    assert [version_of(text) for text in ("", "4", "4.3", "unknown", "v4.3.0")] == [None] * 5


@pytest.mark.parametrize(
    ("stamps", "state", "said"),
    [
        ([], State.SKIPPED, "told no time"),
        # It was between 999.9 and 1000.1 here when the broker wrote 1000, which is any time up to 1001.
        ([(1000.0, 1.0, 999.9, 1000.1)], State.OK, "no difference to this host's was seen, to 0.6 s"),
        ([(1003.0, 1.0, 999.9, 1000.1)], State.WARNING, "3.5 s ahead of this host's, give or take 0.6 s"),
        ([(990.0, 1.0, 999.9, 1000.1)], State.WARNING, "9.5 s behind this host's, give or take 0.6 s"),
        ([(1000.3, 0.001, 1000.0, 1000.003)], State.OK, "0.299 s ahead of this host's, give or take 0.002 s"),
        # Two times that are known to a second make one that is known better.
        ([(1000.0, 1.0, 1000.1, 1000.2), (1001.0, 1.0, 1000.9, 1001.1)], State.OK, "to 0.5 s"),
    ],
)
async def test_the_clocks_differ_by_what_is_certain(
    stamps: list[tuple[float, float, float, float]], state: State, said: str
) -> None:
    visit = Visit(ConnectionSettings(), None, 1.0)
    visit.stamps += stamps
    finding = await clock(visit)
    assert finding.state is state
    assert said in finding.found


def test_numbers_are_short_enough_to_read() -> None:
    assert [milliseconds(seconds) for seconds in (0.00012, 0.0123, 1.5)] == ["0.12 ms", "12.3 ms", "1500 ms"]
    assert [count(number, "message") for number in (0, 1, 12_000)] == ["0 messages", "1 message", "12,000 messages"]
    assert some(["a", "b"]) == "a, b"
    assert some([str(number) for number in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
