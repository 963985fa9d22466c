"""Delays: what the formulas say, and never more, however long something has been failing."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leveret.errors import ConfigurationError
from leveret.plugins import BackoffPolicy
from leveret_resilience import (
    BaseBackoff,
    ExponentialBackoff,
    ExponentialRetry,
    FixedBackoff,
    LinearBackoff,
    LinearRetry,
)

attempts = st.integers(min_value=1, max_value=10**9) | st.integers(min_value=1, max_value=100)
seconds = st.floats(min_value=0.001, max_value=86_400.0)
shares = st.floats(min_value=0.0, max_value=1.0)


@st.composite
def exponential(draw: st.DrawFn, /, **options: Any) -> ExponentialBackoff:
    initial = draw(seconds)
    maximum = draw(st.floats(min_value=initial, max_value=86_400.0))
    return ExponentialBackoff(initial=initial, maximum=maximum, factor=draw(st.floats(1.0, 100.0)), **options)


@given(exponential(jitter=False), st.integers(min_value=1, max_value=60))
def test_exponential_bound_is_initial_times_a_power_of_the_factor_up_to_the_maximum(
    backoff: ExponentialBackoff, attempt: int
) -> None:
    expected = min(backoff.maximum, backoff.initial * backoff.factor ** (attempt - 1))
    assert backoff.delay(attempt) == pytest.approx(expected)


@given(exponential(), attempts)
def test_jittered_delay_is_between_zero_and_the_bound_and_the_bound_within_the_maximum(
    backoff: ExponentialBackoff, attempt: int
) -> None:
    bound = ExponentialBackoff(
        initial=backoff.initial, maximum=backoff.maximum, factor=backoff.factor, jitter=False
    ).delay(attempt)
    assert 0.0 <= backoff.delay(attempt) <= bound <= backoff.maximum


@given(attempts, shares)
def test_jitter_is_the_random_share_of_the_bound(attempt: int, share: float) -> None:
    bound = ExponentialBackoff(jitter=False).delay(attempt)
    assert ExponentialBackoff(random=lambda: share).delay(attempt) == bound * share


@given(exponential(jitter=False), attempts)
def test_exponential_delay_never_falls(backoff: ExponentialBackoff, attempt: int) -> None:
    assert backoff.delay(attempt) <= backoff.delay(attempt + 1)


def test_jitter_spreads_over_the_whole_range_when_nothing_is_injected() -> None:
    delays = [ExponentialBackoff(initial=1.0).delay(1) for _ in range(1000)]
    # Each quarter stays empty in 1000 even draws with a probability of 0.75**1000.
    assert {int(delay * 4) for delay in delays} >= {0, 1, 2, 3}


@given(st.floats(0.001, 1000.0), attempts)
def test_linear_delay_grows_by_one_step_each_time_up_to_the_maximum(step: float, attempt: int) -> None:
    delay = LinearBackoff(step=step, maximum=1000.0).delay(attempt)
    assert delay == pytest.approx(min(1000.0, step * attempt))


def test_linear_delays_are_one_two_and_three_seconds_by_default() -> None:
    assert [LinearBackoff().delay(attempt) for attempt in (1, 2, 3)] == [1.0, 2.0, 3.0]


@given(st.floats(0.0, 86_400.0), attempts)
def test_fixed_delay_is_always_the_same(interval: float, attempt: int) -> None:
    assert FixedBackoff(interval=interval).delay(attempt) == interval


@pytest.mark.parametrize("attempt", [10**9, 10**18, 10**400])
@pytest.mark.parametrize(
    "backoff",
    [
        ExponentialBackoff(jitter=False),
        ExponentialBackoff(jitter=False, factor=10),
        ExponentialBackoff(jitter=False, initial=0.001, maximum=86_400, factor=100),
        LinearBackoff(),
    ],
    ids=repr,
)
def test_delay_is_the_maximum_when_there_were_absurdly_many_attempts(
    backoff: ExponentialBackoff | LinearBackoff, attempt: int
) -> None:
    assert backoff.delay(attempt) == backoff.maximum


def test_delay_stays_the_initial_one_when_the_factor_is_one() -> None:
    assert ExponentialBackoff(jitter=False, initial=2.0, factor=1).delay(10**9) == 2.0


@pytest.mark.parametrize("kind", [ExponentialBackoff, LinearBackoff, FixedBackoff])
def test_backoffs_have_the_plugin_interface_and_cannot_be_changed(kind: type[BaseBackoff]) -> None:
    backoff = kind()
    assert isinstance(backoff, BackoffPolicy)
    with pytest.raises(AttributeError):
        backoff.initial = 5.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "options", "option", "text"),
    [
        (ExponentialBackoff, {"initial": 0}, "initial", "initial is 0 s; it must be 0.001 to 86400"),
        (ExponentialBackoff, {"initial": 5.0, "maximum": 2.5}, "maximum", "maximum is 2.5 s; it must be 5 to 86400"),
        (ExponentialBackoff, {"maximum": math.inf}, "maximum", "maximum is inf s; it must be 1 to 86400"),
        (ExponentialBackoff, {"maximum": 10**400}, "maximum", "maximum is inf s; it must be 1 to 86400"),
        (ExponentialBackoff, {"factor": 0.5}, "factor", "factor is 0.5; it must be 1 to 100"),
        (ExponentialBackoff, {"factor": math.nan}, "factor", "factor is nan; it must be 1 to 100"),
        (ExponentialBackoff, {"initial": "1"}, "initial", "initial must be a number, not str"),
        (ExponentialBackoff, {"initial": True}, "initial", "initial must be a number, not bool"),
        (ExponentialBackoff, {"jitter": 0.1}, "jitter", "jitter must be True or False, not float"),
        (ExponentialBackoff, {"random": 0.5}, "random", "random must be a function, not float"),
        (ExponentialRetry, {"initial": -1}, "initial", "initial is -1 s; it must be 0.001 to 86400"),
        (LinearBackoff, {"step": 0}, "step", "step is 0 s; it must be 0.001 to 86400"),
        (LinearRetry, {"step": 60}, "maximum", "maximum is 30 s; it must be 60 to 86400"),
        (FixedBackoff, {"interval": -0.1}, "interval", "interval is -0.1 s; it must be 0 to 86400"),
    ],
)
def test_configuration_error_names_option_limit_and_value_when_an_option_is_wrong(
    kind: type[BaseBackoff], options: dict[str, Any], option: str, text: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        kind(**options)
    assert caught.value.option == option
    assert str(caught.value) == text
