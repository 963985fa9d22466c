"""Backoff: the delays between attempts, and the backoff policies of plugins."""

from __future__ import annotations

import enum
from typing import Any

import pytest

from leveret.errors import LocalProtocolError
from leveret.protocol.recovery import Backoff
from leveret.protocol.transitions import moved


def delays(backoff: Backoff, count: int = 1) -> list[float]:
    found = []
    for _ in range(count):
        found.append(backoff.delay())
        backoff.count_attempt()
    return found


@pytest.fixture(autouse=True)
def longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)


def test_backoff_doubles_its_bound_and_begins_anew_after_a_good_time() -> None:
    backoff = Backoff(0.5, 30.0)
    assert delays(backoff, 8) == [0.5, 1, 2, 4, 8, 16, 30, 30]
    backoff.ran_for(29)
    assert delays(backoff) == [30]
    backoff.ran_for(31)
    assert delays(backoff) == [0.5]
    assert delays(backoff, 5000)[-1] == 30


def test_a_wait_that_is_given_up_does_not_make_the_next_one_longer() -> None:
    backoff = Backoff(0.5, 30.0)
    assert [backoff.delay() for _ in range(3)] == [0.5] * 3


def test_delays_are_random_from_zero_to_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    spans: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        spans.append((low, high))
        return 0.25

    monkeypatch.setattr("random.uniform", uniform)
    assert Backoff(0.5, 30.0).delay() == 0.25
    assert spans == [(0, 0.5)]


def test_a_policy_chooses_the_delay_of_each_attempt() -> None:
    asked: list[int] = []

    def policy(attempt: int) -> float:
        asked.append(attempt)
        return attempt * 10.0

    backoff = Backoff(0.5, 30.0, policy)
    assert delays(backoff, 3) == [10, 20, 30]
    backoff.ran_for(31)
    assert delays(backoff) == [10]
    assert asked == [1, 2, 3, 1]


@pytest.mark.parametrize("wrong", [-1, float("nan"), float("inf"), "soon", None])
def test_the_bounds_hold_while_the_policy_returns_no_seconds(wrong: Any, caplog: pytest.LogCaptureFixture) -> None:
    backoff = Backoff(0.5, 30.0, lambda attempt: wrong if attempt < 3 else 7)
    assert delays(backoff, 3) == [0.5, 1, 7]
    assert len(caplog.records) == 2
    assert "the backoff policy failed: ValueError: the delay is " in caplog.text


def test_the_bounds_hold_while_the_policy_raises(caplog: pytest.LogCaptureFixture) -> None:
    def policy(attempt: int) -> float:
        raise RuntimeError("no idea")

    assert Backoff(0.5, 30.0, policy).delay() == 0.5
    assert "the backoff policy failed: RuntimeError: no idea" in caplog.text


def test_a_change_of_state_that_is_not_in_the_table_is_refused() -> None:
    class Light(enum.Enum):
        RED = 1
        GREEN = 2

    table = {Light.RED: {Light.GREEN}, Light.GREEN: set[Light]()}
    assert moved(table, Light.RED, Light.GREEN) is Light.GREEN
    with pytest.raises(LocalProtocolError, match="Light cannot change from GREEN to RED"):
        moved(table, Light.GREEN, Light.RED)
