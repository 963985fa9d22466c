"""The prefetch by formula (S25), and the one that adapts (S26) against a simulated broker. No clock, no loop."""

from __future__ import annotations

import math
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import strategies
from tests.support.consuming import Seen, Simulation

import leveret
from leveret.consuming.prefetch import AdaptivePrefetch, prefetch_for
from leveret.errors import ConfigurationError

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

assert strategies  # its import loads the hypothesis profile

# ------------------------------------------------------------------------------------------------ the formula


@pytest.mark.parametrize(
    ("rate", "seconds", "expected"),
    [
        (1000, 0.1, 100),  # the guide's example
        (300, 0.1, 30),  # 30.000000000000004 as floats have it
        (100, 0.29, 29),  # 28.999999999999996
        (15, 0.1, 2),  # rounded up, or the rate would not be reached
        (10, 0.001, 1),
        (0, 5, 1),
        (5, 0, 1),
        (1000, 1, 1000),
        (1000.0, 1.001, 1000),
        (1e308, 1e308, 1000),
        (1e-300, 1e-300, 1),
    ],
)
def test_s25_prefetch_is_rate_times_seconds_within_1_and_1000(rate: float, seconds: float, expected: int) -> None:
    assert prefetch_for(rate, seconds) == expected


def test_s25_prefetch_for_is_public() -> None:
    assert leveret.prefetch_for is prefetch_for
    assert "prefetch_for" in leveret.__all__
    assert leveret.prefetch_for(target_rate=1000, processing_time=0.05) == 50


@pytest.mark.parametrize(
    "value",
    [math.nan, math.inf, -math.inf, -1, -0.001, 10**400, True, False, "100", b"1", None, [1], 1j, Decimal(1)],
    ids=repr,
)
@pytest.mark.parametrize("option", ["target_rate", "processing_time"])
def test_s25_error_names_the_argument_when_it_is_nonsense(option: str, value: Any) -> None:
    arguments: dict[str, Any] = {"target_rate": 1000, "processing_time": 0.1, option: value}
    with pytest.raises(ConfigurationError, match=f"^{option} is ") as caught:
        prefetch_for(**arguments)
    assert caught.value.option == option


AMOUNTS = st.floats(0, 1e6) | st.integers(0, 10**6)


@given(AMOUNTS, AMOUNTS, AMOUNTS)
def test_s25_prefetch_never_falls_when_rate_or_time_rises(rate: float, seconds: float, more: float) -> None:
    found = prefetch_for(rate, seconds)
    assert isinstance(found, int)
    assert 1 <= found <= 1000
    assert found <= prefetch_for(rate + more, seconds)
    assert found <= prefetch_for(rate, seconds + more)
    assert found >= min(rate * seconds, 1000) - 1e-3


# ------------------------------------------------------------------------------------------------ what it reaches

FIXED: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
HANDLERS: Final[dict[str, Callable[[random.Random, float], float]]] = {
    "1ms": lambda dice, now: 0.001,
    "20ms": lambda dice, now: 0.02,
    "100ms": lambda dice, now: 0.1,
    "mix": lambda dice, now: dice.choice((0.001, 0.02, 0.1)),
}
#: Seconds until it has settled, and then so many are measured: messages that take different times need more.
SETTLED: Final = 5.0
MEASURED: Final = {"1ms": 4.0, "20ms": 20.0, "100ms": 20.0, "mix": 60.0}
ROUND_TRIPS: Final = (0.0002, 0.001, 0.005)


@cache
def sweep(handler: str, concurrency: int, round_trip: float) -> dict[int, Seen]:
    """What each fixed prefetch reaches."""
    messages = 3000 if handler == "mix" else max(400, 20 * concurrency)
    found = {}
    for prefetch in FIXED:
        simulation = Simulation(prefetch, concurrency, HANDLERS[handler], round_trip)
        simulation.run(messages=max(messages // 4, min(2 * prefetch, 400)))
        found[prefetch] = simulation.run(messages=messages)
    return found


def test_simulation_does_what_littles_law_says() -> None:
    # One message at once: its work and the way there and back, which takes a tenth longer on average.
    seen = Simulation(1, 10, HANDLERS["20ms"], 0.005).run(messages=300)
    assert seen.rate == pytest.approx(1 / 0.0255, rel=0.05)
    assert seen.held == pytest.approx(0.02 / 0.0255, rel=0.05)
    # With more than enough all workers are busy, or the broker is.
    assert Simulation(100, 10, HANDLERS["20ms"], 0.005).run(messages=3000).rate == pytest.approx(500, rel=0.05)
    assert Simulation(1000, 50, HANDLERS["1ms"], 0.005).run(messages=20_000).rate == pytest.approx(30_000, rel=0.05)
    empty = Simulation(10, 1, HANDLERS["1ms"], 0.0002, arrivals=lambda now: 50.0).run(seconds=100)
    assert empty.rate == pytest.approx(50, rel=0.1)


@pytest.mark.parametrize("round_trip", ROUND_TRIPS)
@pytest.mark.parametrize("concurrency", [1, 10, 50])
@pytest.mark.parametrize("handler", HANDLERS)
def test_s26_reaches_the_best_fixed_prefetch_and_holds_little(
    handler: str, concurrency: int, round_trip: float
) -> None:
    fixed = sweep(handler, concurrency, round_trip)
    best = max(seen.rate for seen in fixed.values())
    smallest = next(seen for seen in fixed.values() if seen.rate >= 0.9 * best)
    prefetch = AdaptivePrefetch(concurrency=concurrency, initial=2 * concurrency)
    simulation = Simulation(prefetch, concurrency, HANDLERS[handler], round_trip)
    simulation.run(seconds=SETTLED)
    seconds = MEASURED[handler]
    seen = simulation.run(seconds=seconds)
    assert seen.rate >= 0.9 * best
    assert seen.held <= 2 * smallest.held
    # A change takes three round trips: one in twenty intervals at most.
    assert seen.changes <= seconds / (20 * prefetch.INTERVAL)


@pytest.mark.parametrize("initial", [1, 100, 1000])
@pytest.mark.parametrize("handler", ["1ms", "mix"])
def test_s26_where_it_begins_does_not_matter_when_that_is_finished(handler: str, initial: int) -> None:
    fixed = sweep(handler, 10, 0.001)
    best = max(seen.rate for seen in fixed.values())
    smallest = next(seen for seen in fixed.values() if seen.rate >= 0.9 * best)
    prefetch = AdaptivePrefetch(concurrency=10, initial=initial)
    simulation = Simulation(prefetch, 10, HANDLERS[handler], 0.001)
    simulation.run(seconds=SETTLED, messages=20_000)
    simulation.run(seconds=SETTLED)
    seen = simulation.run(seconds=MEASURED[handler])
    assert seen.rate >= 0.9 * best
    assert seen.held <= 2 * smallest.held


@pytest.mark.parametrize("round_trip", [0.0002, 0.005])
@pytest.mark.parametrize("concurrency", [1, 10, 50])
def test_s26_follows_within_seconds_when_handlers_become_slow_and_fast_again(
    concurrency: int, round_trip: float
) -> None:
    def handler(dice: random.Random, now: float) -> float:
        return 0.1 if 4 <= now < 16 else 0.001

    best = {name: max(seen.rate for seen in sweep(name, concurrency, round_trip).values()) for name in HANDLERS}
    held = {
        name: next(seen.held for seen in sweep(name, concurrency, round_trip).values() if seen.rate >= 0.9 * best[name])
        for name in HANDLERS
    }
    prefetch = AdaptivePrefetch(concurrency=concurrency, initial=2 * concurrency)
    simulation = Simulation(prefetch, concurrency, handler, round_trip)
    simulation.run(seconds=8)
    slow = simulation.run(seconds=8)
    assert slow.rate >= 0.9 * best["100ms"]
    assert slow.held <= 2 * held["100ms"]
    simulation.run(seconds=2)
    fast = simulation.run(seconds=2)
    assert fast.rate >= 0.9 * best["1ms"]
    assert fast.held <= 2 * held["1ms"]


@pytest.mark.parametrize(("concurrency", "arrivals"), [(1, 400.0), (10, 100.0), (10, 2000.0), (50, 400.0)])
def test_s26_trials_become_rare_when_the_queue_is_empty(concurrency: int, arrivals: float) -> None:
    prefetch = AdaptivePrefetch(concurrency=concurrency, initial=2 * concurrency)
    simulation = Simulation(prefetch, concurrency, HANDLERS["1ms"], 0.001, arrivals=lambda now: arrivals)
    simulation.run(seconds=40)
    seen = simulation.run(seconds=40)
    assert seen.changes <= 2
    assert prefetch.limit <= 100


def test_s26_is_left_when_the_queue_is_empty_and_few_are_unsettled() -> None:
    prefetch = AdaptivePrefetch(concurrency=10, initial=100)
    simulation = Simulation(prefetch, 10, HANDLERS["1ms"], 0.001, arrivals=lambda now: 200.0)
    assert simulation.run(seconds=60).changes == 0
    assert prefetch.limit == 100


def test_s26_grows_when_a_burst_comes_after_growing_was_in_vain() -> None:
    prefetch = AdaptivePrefetch(concurrency=10, initial=10)
    simulation = Simulation(prefetch, 10, HANDLERS["1ms"], 0.005, arrivals=lambda now: 400.0 if now < 30 else 20_000.0)
    simulation.run(seconds=30)
    before = prefetch.limit
    simulation.run(seconds=3)
    seen = simulation.run(seconds=2)
    assert prefetch.limit > before
    assert seen.rate >= 0.9 * 10_000


def test_s26_a_pause_of_all_handlers_does_not_count_as_surplus() -> None:
    def handler(dice: random.Random, now: float) -> float:
        return 2.0 if 4 <= now < 4.001 else 0.001

    prefetch = AdaptivePrefetch(concurrency=10, initial=20)
    simulation = Simulation(prefetch, 10, handler, 0.005)
    simulation.run(seconds=4)
    before = prefetch.limit
    assert simulation.run(seconds=1.9).changes == 0
    assert prefetch.limit == before


# ------------------------------------------------------------------------------------------------ single decisions


def decided(
    *,
    idle: float = 0.0,
    backlog: int = 0,
    unsettled: int | None = None,
    rate: float = 1000.0,
    minimum: int = 1,
    maximum: int = 1000,
    concurrency: int = 10,
    initial: int = 40,
) -> int:
    """The prefetch when all was the same until it decided, or for three seconds."""
    prefetch = AdaptivePrefetch(minimum, maximum, concurrency, initial)
    seen = initial if unsettled is None else unsettled
    for turn in range(30):
        now = turn * prefetch.INTERVAL
        limit = prefetch.update(7.0 + now, 1 + int(rate * now), idle * concurrency * now, backlog, seen)
        if limit != prefetch._minimum and limit != initial:
            return limit
    return prefetch.limit


SHARES = st.floats(0, 1)
COUNTS = st.integers(0, 200)


@given(SHARES, SHARES, COUNTS)
def test_s26_more_idle_workers_never_make_it_smaller(one: float, other: float, unsettled: int) -> None:
    low, high = sorted((one, other))
    assert decided(idle=low, unsettled=unsettled) <= decided(idle=high, unsettled=unsettled)


@given(COUNTS, COUNTS, st.floats(0, 0.07), st.integers(10, 1000))
def test_s26_a_larger_backlog_never_makes_it_larger(one: int, other: int, idle: float, initial: int) -> None:
    low, high = sorted((one, other))
    assert decided(idle=idle, backlog=low, initial=initial) >= decided(idle=idle, backlog=high, initial=initial)


@given(COUNTS, COUNTS, SHARES, st.floats(1, 1000))
def test_s26_more_unsettled_never_make_it_smaller(one: int, other: int, idle: float, rate: float) -> None:
    low, high = sorted((one, other))
    assert decided(idle=idle, rate=rate, unsettled=low) <= decided(idle=idle, rate=rate, unsettled=high)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        ({"idle": 0.5}, 100),  # 40 / 0.5, and a quarter more
        ({"idle": 0.2}, 63),
        ({"idle": 0.1}, 56),
        ({"idle": 0.9}, 160),  # by 4 at most
        ({"idle": 0.05}, 30),  # a quarter less is tried
        ({"idle": 0.9, "maximum": 100}, 100),
        ({"idle": 0.9, "unsettled": 5, "rate": 100.0}, 40),  # the queue is empty
        ({"idle": 0.9, "unsettled": 39, "rate": 100.0}, 160),
        ({"backlog": 25}, 15),  # what was never needed
        ({"backlog": 35}, 10),  # down to one for each worker
        ({"backlog": 35, "minimum": 20}, 20),
        ({"backlog": 2}, 30),
        ({"initial": 10}, 10),
        ({"initial": 11}, 10),
    ],
)
def test_s26_decision(given_: dict[str, Any], expected: int) -> None:
    assert decided(**given_) == expected


def limits(idle: Callable[[int, int], float], turns: int, *, initial: int = 20) -> list[int]:
    """The prefetch at each call, when `idle(turn, limit)` is the share that ten workers are idle until the next."""
    prefetch = AdaptivePrefetch(concurrency=10, initial=initial)
    seconds, seen = 0.0, []
    for turn in range(turns):
        seen.append(prefetch.update(turn * prefetch.INTERVAL, 1 + 800 * turn, seconds, 0, prefetch.limit))
        seconds += 10 * prefetch.INTERVAL * idle(turn, prefetch.limit)
    return seen


def test_s26_does_not_grow_when_workers_are_too_idle_for_a_moment_only() -> None:
    # 0.4 s of 12 % and 0.6 s of 4 %: 7 % of the time.
    seen = limits(lambda turn, limit: 0.3 if limit < 20 else 0.12 if turn % 10 < 4 else 0.04, 600)
    assert max(seen) == 20


def test_s26_grows_when_workers_are_a_little_too_idle_all_the_time() -> None:
    seen = limits(lambda turn, limit: 0.1 if limit < 28 else 0.04, 200)
    assert seen.index(28) <= 25  # 20 * 1.25 / 0.9, when two seconds said the same
    assert max(seen) == 28
    assert sum(limit == 28 for limit in seen) >= 150  # less is tried now and then


def test_s26_goes_back_when_a_larger_one_brought_little_more() -> None:
    # Two fifths more for two hundredths more work, although workers are idle for less than what is too much.
    seen = limits(lambda turn, limit: 0.09 if limit <= 20 else 0.07, 200)
    assert max(seen) > 20
    assert seen[-1] == 20
    # A second for the trial and what was on its way; it is not repeated for ten.
    assert sum(limit > 20 for limit in seen[:130]) <= 15


def test_s26_gives_up_what_brings_nothing_although_workers_are_always_a_little_idle() -> None:
    seen = limits(lambda turn, limit: 0.07 if limit >= 18 else 0.15, 1000, initial=60)
    assert 18 <= seen[150] <= 24
    assert all(limit <= 24 for limit in seen[150:])
    assert sum(limit < 18 for limit in seen[150:]) <= 60  # trials become rare


NUMBERS: Final = st.floats() | st.integers(-10, 10**6)
CALLS: Final = st.lists(
    st.tuples(
        st.floats(0, 3) | NUMBERS,  # since the last call
        st.integers(-5, 5000),
        st.floats(0, 5) | NUMBERS,
        st.integers(-5, 2000),
        st.integers(-5, 2000),
    ),
    max_size=40,
)


@given(st.integers(1, 1500), st.integers(1, 1500), st.integers(1, 1500), st.integers(1, 1500), CALLS)
def test_s26_bounds_are_never_left(
    minimum: int, maximum: int, concurrency: int, initial: int, calls: list[tuple[float, int, float, int, int]]
) -> None:
    low = max(minimum, concurrency)
    high = max(low, maximum)
    prefetch = AdaptivePrefetch(minimum, maximum, concurrency, initial)
    assert low <= prefetch.limit <= high
    now = idle = 0.0
    finished = 0
    for seconds, count, waited, lowest, highest in calls:
        now, finished, idle = now + seconds, finished + count, idle + waited
        limit = prefetch.update(now, finished, idle, lowest, highest)
        assert limit == prefetch.limit
        assert low <= limit <= high
        if not (math.isfinite(now) and math.isfinite(idle)):
            now = idle = 0.0


GARBAGE: Final[dict[str, dict[str, Any]]] = {
    "nan time": {"now": math.nan},
    "endless time": {"now": math.inf},
    "nan idle": {"idle": math.nan},
    "endless idle": {"idle": math.inf},
    "negative backlog": {"backlog": -1},
    "negative unsettled": {"unsettled": -1},
    "negative finished": {"finished": -1},
    "fewer finished": {"finished": 0},
}


@pytest.mark.parametrize("what", GARBAGE)
@pytest.mark.parametrize("backlog", [0, 90])
def test_s26_garbage_decides_nothing_and_a_measurement_begins_anew(what: str, backlog: int) -> None:
    prefetch = AdaptivePrefetch(concurrency=10, initial=100)
    idle = 0.0 if backlog else 0.9
    for turn in range(60):
        now = 1000 + turn * prefetch.INTERVAL
        call: dict[str, Any] = {
            "now": now,
            "finished": 100 * turn,
            "idle": idle * 10 * now,
            "backlog": backlog,
            "unsettled": 100,
        }
        if turn % 2:
            prefetch.update(*(call | GARBAGE[what]).values())
        else:
            prefetch.update(*call.values())
        assert prefetch.limit == 100
    # Afterwards it goes on.
    limits = set()
    for turn in range(60, 80):
        now = 1000 + turn * prefetch.INTERVAL
        limits.add(prefetch.update(now, 100 * turn, idle * 10 * now, backlog, 100))
    assert limits > {100}


def test_s26_a_measurement_begins_anew_when_time_goes_back() -> None:
    prefetch = AdaptivePrefetch(concurrency=10, initial=100)
    times = [1.0, 1.1, 1.2, 1.15, 1.3]
    for finished, now in enumerate(times):
        assert prefetch.update(now, 100 * finished, 0.0, 90, 100) == 100
    assert prefetch.update(1.4, 500, 0.0, 90, 100) == 10


def test_s26_waits_until_what_came_for_the_prefetch_before_is_finished() -> None:
    prefetch = AdaptivePrefetch(concurrency=1, initial=100)
    finished = now = 0
    while prefetch.limit == 100:
        now, finished = now + 1, finished + 10
        prefetch.update(now, finished, 0.0, 98, 100)
    assert prefetch.limit == 2
    changed = finished
    while finished < changed + 100:
        # What is left of the old ones looks like a surplus, and the pause between like idle workers.
        now, finished = now + 1, finished + 10
        assert prefetch.update(now, finished, now / 2, 50, 100) == 2


@pytest.mark.parametrize("option", ["minimum", "maximum", "concurrency", "initial"])
@pytest.mark.parametrize("value", [0, -1, True, 1.0, "auto", None], ids=repr)
def test_s26_error_names_the_argument_when_it_is_no_count(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{option} is ") as caught:
        AdaptivePrefetch(**{option: value})
    assert caught.value.option == option


def test_s26_concurrency_and_minimum_rule_over_the_maximum() -> None:
    assert AdaptivePrefetch(maximum=10, concurrency=50).limit == 50
    assert AdaptivePrefetch(minimum=70, maximum=10, concurrency=50).limit == 70
    assert AdaptivePrefetch(maximum=10, initial=50).limit == 10


# ------------------------------------------------------------------------------------------------ quick messages


@pytest.mark.parametrize(
    ("seconds", "concurrency", "maximum", "expected"),
    [
        (0.000_002, 1, 1000, 100),
        (0.000_009_9, 1, 1000, 100),
        (0.000_02, 1, 1000, 50),
        (0.000_2, 4, 1000, 20),
        (0.000_02, 1, 30, 30),
        (0.000_5, 1, 1000, 2),
        (0.01, 1, 1000, 2),
        (0.0, 1, 1000, 100),
        (None, 1, 1000, 2),
        (math.nan, 1, 1000, 2),
    ],
)
def test_s26_what_is_handled_within_a_millisecond_is_let_in_at_once(
    seconds: float | None, concurrency: int, maximum: int, expected: int
) -> None:
    prefetch = AdaptivePrefetch(maximum=maximum, concurrency=concurrency, initial=2)
    assert prefetch.update(1.0, 10, 0.9, 0, 2, seconds) == max(expected, concurrency)


def test_s26_quick_messages_keep_what_they_have_and_slow_ones_give_it_up() -> None:
    prefetch = AdaptivePrefetch(initial=2)
    limits = []
    for turn in range(1, 400):
        seconds = 0.000_005 if turn < 200 else 0.001
        limits.append(prefetch.update(turn * prefetch.INTERVAL, 1000 * turn, 0.0, 90, 100, seconds))
    assert set(limits[:198]) == {100}
    assert limits[-1] == 1
