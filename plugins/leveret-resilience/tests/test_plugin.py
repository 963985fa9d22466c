"""What the installed distribution brings, found through its entry point, and the conformance kits."""

from __future__ import annotations

import doctest
import importlib
import importlib.metadata
from typing import TYPE_CHECKING

import pytest

import leveret_resilience
from leveret.plugins import PluginRegistry, PolicySpec
from leveret.settings import PluginSettings
from leveret.testing import BackoffConformance, CircuitBreakerConformance, RetryConformance
from leveret_resilience import (
    CircuitBreaker,
    ExponentialBackoff,
    ExponentialRetry,
    FixedBackoff,
    FixedRetry,
    LinearBackoff,
    LinearRetry,
    NoRetry,
)

if TYPE_CHECKING:
    from collections.abc import Callable

SPECS = {(spec.kind, spec.name): spec for spec in leveret_resilience.leveret_policies()}


@pytest.fixture(scope="module")
def registry() -> PluginRegistry:
    return PluginRegistry.load(PluginSettings(allow=("resilience",), strict=True))


def test_installed_plugin_brings_every_policy_by_name(registry: PluginRegistry) -> None:
    assert {(kind, name) for kind in ("retry", "backoff", "circuit_breaker") for name in registry.names(kind)} == {
        ("retry", "exponential"),
        ("retry", "fixed"),
        ("retry", "linear"),
        ("retry", "none"),
        ("backoff", "exponential"),
        ("backoff", "fixed"),
        ("backoff", "linear"),
        ("circuit_breaker", "failure-rate"),
    }


def test_names_stand_for_the_policies_with_their_defaults(registry: PluginRegistry) -> None:
    assert registry.retry_policy("exponential") == ExponentialRetry(retries=3, initial=1.0, maximum=30.0, factor=2.0)
    assert registry.retry_policy("linear") == LinearRetry(retries=3, step=1.0)
    assert registry.retry_policy("fixed") == FixedRetry(retries=3, interval=1.0)
    assert registry.retry_policy("none") == NoRetry()
    assert registry.backoff_policy("exponential") == ExponentialBackoff()
    assert registry.backoff_policy("linear") == LinearBackoff()
    assert registry.backoff_policy("fixed") == FixedBackoff()


def test_every_producer_that_names_the_breaker_gets_one_of_its_own(registry: PluginRegistry) -> None:
    one, other = registry.circuit_breaker("failure-rate"), registry.circuit_breaker("failure-rate")
    assert isinstance(one, CircuitBreaker)
    assert one is not other


def test_distribution_says_that_it_is_typed_and_what_it_needs() -> None:
    distribution = importlib.metadata.distribution("leveret-resilience")
    assert sorted(distribution.requires or ()) == ["leveret<0.2,>=0.1", "tenacity>=9.0"]
    assert "leveret_resilience/py.typed" in {str(file) for file in distribution.files or ()}


def test_everything_exported_is_there() -> None:
    assert [name for name in leveret_resilience.__all__ if not hasattr(leveret_resilience, name)] == []


@pytest.mark.parametrize("module", ["backoffs", "breaker", "retries"])
def test_examples_in_the_docstrings_print_what_they_say(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"leveret_resilience.{module}"))
    assert result.attempted > 0
    assert result.failed == 0


class TestRetries(RetryConformance):
    longest_delay = 30.0
    most_attempts = 4

    @pytest.fixture(params=["exponential", "linear", "fixed"])
    def spec(self, request: pytest.FixtureRequest) -> PolicySpec:
        return SPECS["retry", request.param]


class TestNoRetry(RetryConformance):
    longest_delay = 0.0
    most_attempts = 1

    @pytest.fixture
    def spec(self) -> PolicySpec:
        return SPECS["retry", "none"]


class TestRetriesThatAcceptDuplicates(RetryConformance):
    longest_delay = 10.0
    most_attempts = 101

    @pytest.fixture(params=[ExponentialRetry, LinearRetry, FixedRetry])
    def spec(self, request: pytest.FixtureRequest) -> PolicySpec:
        kind = request.param
        options = {} if kind is FixedRetry else {"maximum": 10.0}
        return PolicySpec(kind="retry", name="eager", factory=lambda: kind(retries=100, retry_unknown=True, **options))


class TestBackoffs(BackoffConformance):
    longest_delay = 30.0

    @pytest.fixture(params=["exponential", "linear", "fixed"])
    def spec(self, request: pytest.FixtureRequest) -> PolicySpec:
        return SPECS["backoff", request.param]


class TestFailureRate(CircuitBreakerConformance):
    @pytest.fixture
    def spec(self) -> PolicySpec:
        return SPECS["circuit_breaker", "failure-rate"]

    @pytest.fixture
    def make_breaker(self) -> Callable[[Callable[[], float]], CircuitBreaker]:
        return lambda clock: CircuitBreaker(clock=clock)


class TestFailureRateWithManyTrials(CircuitBreakerConformance):
    @pytest.fixture
    def spec(self) -> PolicySpec:
        return SPECS["circuit_breaker", "failure-rate"]

    @pytest.fixture
    def make_breaker(self) -> Callable[[Callable[[], float]], CircuitBreaker]:
        return lambda clock: CircuitBreaker(
            window=1.0, threshold=0.01, minimum_calls=1, open_time=0.5, half_open_calls=10, clock=clock
        )
