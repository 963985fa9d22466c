"""The adaptive window against a broker that is simulated: a latency, a capacity, and noise. No clock, no loop."""

from __future__ import annotations

import heapq
import random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import strategies

from leveret.publishing.adaptive_window import AdaptiveWindow

assert strategies  # its import loads the hypothesis profile


class SimulatedBroker:
    """Confirms each publishing after a latency, no more than so many in a second, one range at a time.

    Publishers always have more, so the window is what limits them: each confirm lets the next publishing in.

    Args:
        latency: Seconds from a publishing to its confirm when the broker has nothing else to do.
        capacity: Publishings that it takes in a second.
        noise: The latency of each range of confirms is longer by up to this share, at random.
        every: Confirms of so many seconds are read at once.
        range_: So many publishings are confirmed at once.
    """

    def __init__(
        self, latency: float, capacity: float, *, noise: float = 0.0, every: float = 0.0001, range_: int = 20
    ) -> None:
        self.latency, self.capacity, self.noise, self.every, self.range = latency, capacity, noise, every, range_
        self.dice = random.Random(1)
        self.now = 0.0
        self.free_at = 0.0
        self.outstanding = 0
        self.confirmed = 0
        self.coming: list[tuple[float, int]] = []

    def publish(self, count: int) -> None:
        self.outstanding += count
        while count > 0:
            piece = min(count, self.range)
            count -= piece
            self.free_at = max(self.free_at, self.now) + piece / self.capacity
            latency = self.latency * (1 + self.noise * self.dice.random())
            heapq.heappush(self.coming, (self.free_at + latency, piece))

    def confirm(self) -> None:
        """Lets time pass until the next confirms have come."""
        self.now = max(self.now + self.every, self.coming[0][0])
        while self.coming and self.coming[0][0] <= self.now:
            _, count = heapq.heappop(self.coming)
            self.outstanding -= count
            self.confirmed += count


def fixed_rate(broker: SimulatedBroker, window: int, seconds: float) -> float:
    """Confirms per second with a window that stays as it is."""
    while broker.now < seconds:
        broker.publish(max(0, window - broker.outstanding))
        broker.confirm()
    return broker.confirmed / broker.now


class Run(NamedTuple):
    """What an adaptive window did."""

    rate: float
    limits: list[int]
    changes: list[tuple[float, int]]
    latency: float


def adapted(broker: SimulatedBroker, window: AdaptiveWindow, seconds: float) -> Run:
    """Runs it for so long; the rate is that of the second half."""
    limits: list[int] = []
    changes: list[tuple[float, int]] = []
    half = (0.0, 0)
    while broker.now < seconds:
        broker.publish(max(0, window.limit - broker.outstanding))
        broker.confirm()
        before = window.limit
        limits.append(window.update(broker.now, broker.confirmed, limited=True))
        if window.limit != before:
            changes.append((broker.now, window.limit))
        if broker.now < seconds / 2:
            half = (broker.now, broker.confirmed)
    rate = (broker.confirmed - half[1]) / (broker.now - half[0])
    return Run(rate, limits, changes, window.latency)


LATENCIES = [0.0005, 0.002, 0.01, 0.05, 0.2]
CAPACITIES = [2_000.0, 20_000.0, 100_000.0]


@pytest.mark.parametrize("range_", [20, 10_000])
@pytest.mark.parametrize("noise", [0.0, 0.5])
@pytest.mark.parametrize("capacity", CAPACITIES)
@pytest.mark.parametrize("latency", LATENCIES)
def test_the_rate_is_that_of_the_best_fixed_window_when_publishers_wait(
    latency: float, capacity: float, noise: float, range_: int
) -> None:
    # A broker that syncs its disk confirms all that came before at once.
    maximum, limit = 10_000, 1.25
    best = max(
        fixed_rate(SimulatedBroker(latency, capacity, noise=noise, range_=range_), window, 5.0)
        for window in (200, 300, 500, 800, 1600, 3200, 6400, 10_000)
        if window / capacity <= limit
    )
    run = adapted(
        SimulatedBroker(latency, capacity, noise=noise, range_=range_),
        AdaptiveWindow(200, maximum, limit),
        20 + 150 * latency,
    )
    assert run.rate >= 0.9 * best
    assert max(run.limits) <= maximum


@pytest.mark.parametrize("share", [1.05, 1.1, 1.12, 1.15, 1.2, 1.3, 1.5, 1.9, 2.1, 3.3])
@pytest.mark.parametrize("latency", [0.01, 0.2, 0.5])
def test_a_window_that_is_a_little_too_small_grows(latency: float, share: float) -> None:
    # The broker would take so many times what the first window brings.
    capacity = share * 200 / latency
    best = fixed_rate(SimulatedBroker(latency, capacity), 1600, 10.0)
    run = adapted(SimulatedBroker(latency, capacity), AdaptiveWindow(200, 10_000, 10.0), 30.0)
    assert run.rate >= 0.9 * best


@given(
    latency=st.floats(0.0001, 0.5),
    capacity=st.floats(100, 200_000),
    minimum=st.integers(1, 300),
    extra=st.integers(0, 10_000),
    max_latency=st.floats(0.01, 5),
    noise=st.floats(0, 3),
)
def test_the_window_stays_between_its_bounds_whatever_the_broker_does(
    latency: float, capacity: float, minimum: int, extra: int, max_latency: float, noise: float
) -> None:
    broker = SimulatedBroker(latency, capacity, noise=noise, every=0.005)
    run = adapted(broker, AdaptiveWindow(minimum, minimum + extra, max_latency), 2.0)
    assert all(minimum <= limit <= minimum + extra for limit in run.limits)


@pytest.mark.parametrize("capacity", [1_000.0, 10_000.0, 50_000.0])
def test_confirms_do_not_come_later_than_the_bound_when_the_window_grew(capacity: float) -> None:
    # Its capacity is used up by a small window already, so that a larger one only makes confirms come later.
    bound = 0.1
    run = adapted(SimulatedBroker(0.001, capacity, noise=0.3), AdaptiveWindow(10, 1_000_000, bound), 30.0)
    assert max(run.limits) <= capacity * bound * 1.1
    assert run.latency <= bound


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0, 3.0])
def test_the_window_settles_and_does_not_swing(noise: float) -> None:
    window = AdaptiveWindow(200, 10_000, 1.25)
    adapted(broker := SimulatedBroker(0.01, 40_000, noise=noise), window, 10.0)
    adapted(broker, window, 200.0)
    # Comparisons become rare, and each takes six changes.
    late = adapted(broker, window, 400.0).changes
    assert len(late) <= 4 * 6


@pytest.mark.parametrize("swing", [0.05, 0.1, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_the_window_stays_small_when_the_rate_of_the_broker_swings(swing: float, seed: int) -> None:
    # 40 publishings in flight would do; a rate that is higher by chance is no reason for more.
    dice = random.Random(seed)
    broker = SimulatedBroker(0.002, 20_000, every=0.002, range_=50)
    window = AdaptiveWindow(200, 10_000, 1.25)
    while broker.now < 300:
        broker.capacity = 20_000 * (1 + swing * dice.uniform(-1, 1))
        adapted(broker, window, broker.now + 0.2)
    assert window.limit <= 400


def test_a_window_that_grew_shrinks_when_it_is_of_no_use_any_more() -> None:
    broker = SimulatedBroker(0.1, 100_000)
    window = AdaptiveWindow(200, 100_000, 1.25)
    adapted(broker, window, 20.0)
    assert window.limit >= 6400
    broker.latency = 0.001
    adapted(broker, window, 600.0)
    assert window.limit <= 1600


def test_a_larger_window_is_given_up_when_it_is_of_no_use() -> None:
    window = AdaptiveWindow(200, 10_000, 10.0)
    run = adapted(SimulatedBroker(0.0001, 10_000), window, 9.0)
    # Both are measured three times in turns.
    assert [limit for _, limit in run.changes] == [400, 200, 400, 200, 400, 200]
    assert run.changes[-1][0] <= 3.0
    assert window.limit == 200


def test_a_larger_window_is_tried_again_later_when_the_broker_became_faster() -> None:
    broker = SimulatedBroker(0.02, 10_000)
    window = AdaptiveWindow(200, 10_000, 10.0)
    adapted(broker, window, 5.0)
    assert window.limit <= 400
    broker.capacity = 100_000
    run = adapted(broker, window, 60.0)
    assert run.rate >= 0.9 * 100_000


def test_the_window_stays_when_nobody_waits_for_it() -> None:
    window = AdaptiveWindow(200, 10_000, 1.0)
    for step in range(1000):
        assert window.update(step * 0.01, step * 5_000, limited=False) == 200


def test_a_pause_is_no_low_rate_when_publishers_had_nothing_to_say() -> None:
    broker = SimulatedBroker(0.02, 100_000)
    window = AdaptiveWindow(200, 10_000, 1.25)
    adapted(broker, window, 3.0)
    grown = window.limit
    assert grown > 200
    broker.now += 100
    window.update(broker.now, broker.confirmed, limited=False)
    run = adapted(broker, window, broker.now + 3)
    assert max(run.limits) >= grown
    assert window.limit >= grown // 2


def test_the_window_stays_when_it_may_not_grow() -> None:
    run = adapted(SimulatedBroker(0.02, 100_000), AdaptiveWindow(200, 200, 1.25), 3.0)
    assert set(run.limits) == {200}
    assert run.changes == []


def test_nothing_is_divided_by_zero_when_all_confirms_come_at_once() -> None:
    window = AdaptiveWindow(1, 10, 1.0)
    for confirmed in range(0, 100_000, 1000):
        window.update(5.0, confirmed, limited=True)
    assert window.limit == 1
    assert window.update(5.2, 200_000, limited=True) == 2
