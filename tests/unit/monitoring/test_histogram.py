"""Histograms and the distributions that are read from them, against the values themselves."""

from __future__ import annotations

import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leveret.monitoring.histogram import Histogram
from leveret.plugins import Distribution
from leveret.plugins.distributions import lower_bound

VALUES = st.lists(st.one_of(st.integers(0, 40), st.integers(0, 2**45 - 1)), min_size=1, max_size=60)


def histogram_of(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(st.integers(0, 2**45 - 1))
def test_a_value_is_known_to_a_sixteenth_of_it(value: int) -> None:
    (bucket,) = histogram_of([value]).read(1.0).buckets
    assert lower_bound(bucket) <= value < lower_bound(bucket + 1)
    assert lower_bound(bucket + 1) - lower_bound(bucket) <= max(1, value / 16)


@given(VALUES, st.floats(0, 100))
def test_percentiles_are_right_within_a_thirtieth(values: list[int], percent: float) -> None:
    distribution = histogram_of(values).read(1.0)
    exact = sorted(values)[max(1, math.ceil(len(values) * percent / 100)) - 1]
    assert distribution.percentile(percent) == pytest.approx(exact, rel=1 / 30, abs=0.5)
    assert (distribution.count, distribution.total, distribution.highest) == (len(values), sum(values), max(values))
    assert distribution.mean == pytest.approx(sum(values) / len(values))


@given(VALUES, VALUES)
def test_a_sum_has_the_values_of_both_and_a_difference_those_that_came_between(one: list[int], two: list[int]) -> None:
    first, both = histogram_of(one).read(1.0), histogram_of([*one, *two]).read(1.0)
    second = histogram_of(two).read(1.0)
    assert first + second == both
    between = both - first
    assert (between.count, between.total, between.buckets) == (second.count, second.total, second.buckets)
    assert second.highest <= between.highest * (1 + 1e-9) <= max(second.highest * 17 / 16, second.highest + 1)


def test_what_lies_beyond_both_ends_is_counted_at_them() -> None:
    histogram = Histogram()
    histogram.record(-5)  # a clock that was set back
    histogram.record(2**60)
    distribution = histogram.read(1.0)
    assert list(distribution.buckets.values()) == [1, 1]
    assert distribution.percentile(0) == 0
    assert distribution.highest == 2**60


def test_an_empty_one_has_zeros_and_is_false() -> None:
    empty = Histogram().read()
    assert not empty
    assert (empty.count, empty.mean, empty.percentile(99), empty.at_most([1, 2])) == (0, 0, 0, [0, 0])
    one = histogram_of([7]).read(1.0)
    assert (empty + one, one + empty, (one + one).count) == (one, one, 2)


def test_durations_are_seconds_and_many_values_are_counted_at_once() -> None:
    histogram = Histogram()
    histogram.record(1_500_000, 1000)
    durations = histogram.read()
    assert durations.mean == pytest.approx(0.0015)
    assert durations.percentile(50) == pytest.approx(0.0015, rel=1 / 30)
    assert durations.at_most([0.001, 0.002]) == [0, 1000]


@pytest.mark.parametrize("percent", [-1, 100.5, float("nan")])
def test_a_percentile_that_is_none_is_refused(percent: float) -> None:
    with pytest.raises(ValueError, match="percent is from 0 to 100"):
        Distribution().percentile(percent)


def test_a_distribution_pickles() -> None:
    distribution = histogram_of([1, 2, 300]).read()
    assert pickle.loads(pickle.dumps(distribution)) == distribution
