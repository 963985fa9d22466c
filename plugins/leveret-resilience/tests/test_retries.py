"""Retry policies: how often, and after which errors."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leveret import errors
from leveret.errors import ConfigurationError, PublishError
from leveret.message import Outcome
from leveret.plugins import RetryPolicy
from leveret_resilience import (
    BaseRetry,
    ExponentialRetry,
    FixedRetry,
    LinearRetry,
    NoRetry,
    RetryOn,
    is_failure,
    is_transient,
)

POLICIES = [ExponentialRetry, LinearRetry, FixedRetry]


def publishing(outcome: Outcome) -> PublishError:
    return PublishError("it failed", outcome=outcome)


RETRIED = [
    publishing(Outcome.NACKED),
    publishing(Outcome.NOT_SENT),
    errors.MessageNacked("it failed", outcome=Outcome.NACKED),
    errors.BackpressureError("full"),
    errors.ConnectFailed("nobody there"),
    errors.ResourceLocked("exclusive"),
    OSError("not one of Leveret's"),
    ValueError("not one of Leveret's"),
]
RETRIED_WHEN_UNKNOWN_IS = [
    publishing(Outcome.UNKNOWN),
    errors.ConfirmTimeout("late", outcome=Outcome.UNKNOWN),
    errors.OperationTimeout("late"),
    errors.ConnectionLost("reset"),
    errors.HeartbeatTimeout("silent"),
    errors.ConnectionClosed("closed"),
]
NOT_RETRIED = [
    publishing(Outcome.RETURNED),
    errors.MessageReturned("no route", outcome=Outcome.RETURNED),
    errors.EncodeFailed("no"),
    errors.DecodeFailed("no"),
    errors.BodyTooLarge("no"),
    errors.ConfigurationError("no"),
    errors.PluginError("no"),
    errors.WrongLoopError("no"),
    errors.LocalProtocolError("no"),
    errors.IncompatibleProtocol("no"),
    errors.TLSVerificationError("no"),
    errors.AuthenticationError("no"),
    errors.NotFound("no"),
    errors.AccessRefused("no"),
    errors.PreconditionFailed("no"),
    errors.ChannelClosed("no"),
    errors.CircuitOpen("no"),
    errors.RetriesExhausted("no"),
    asyncio.CancelledError(),
    KeyboardInterrupt(),
    SystemExit(),
    GeneratorExit(),
]


def names(error: BaseException) -> str:
    return f"{type(error).__name__}-{error.outcome.name}" if isinstance(error, PublishError) else type(error).__name__


@pytest.mark.parametrize("error", RETRIED, ids=names)
def test_is_transient_when_the_broker_has_nothing_or_nothing_is_known_about_the_error(error: Exception) -> None:
    assert is_transient(error)
    assert is_transient(error, retry_unknown=True)


@pytest.mark.parametrize("error", RETRIED_WHEN_UNKNOWN_IS, ids=names)
def test_unknown_result_is_retried_only_when_duplicates_were_accepted(error: Exception) -> None:
    assert not is_transient(error)
    assert is_transient(error, retry_unknown=True)
    assert FixedRetry().next_delay(1, error) is None
    assert FixedRetry(retry_unknown=True).next_delay(1, error) == 1.0


@pytest.mark.parametrize("error", NOT_RETRIED, ids=names)
def test_is_not_transient_when_the_same_call_would_fail_again_or_was_cancelled(error: BaseException) -> None:
    assert not is_transient(error)
    assert not is_transient(error, retry_unknown=True)


@pytest.mark.parametrize("kind", POLICIES)
@given(retries=st.integers(0, 50))
def test_retries_counts_the_attempts_after_the_first(kind: type[BaseRetry], retries: int) -> None:
    policy = kind(retries=retries)
    delays = [policy.next_delay(attempt, OSError()) for attempt in range(1, retries + 3)]
    assert None not in delays[:retries]
    assert delays[retries:] == [None, None]


@pytest.mark.parametrize("kind", POLICIES)
def test_three_retries_are_allowed_by_default(kind: type[BaseRetry]) -> None:
    policy = kind()
    assert [policy.next_delay(attempt, OSError()) is not None for attempt in (1, 2, 3, 4)] == [True, True, True, False]


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (ExponentialRetry(retries=7, random=lambda: 1.0), [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]),
        (ExponentialRetry(retries=3, random=lambda: 0.5), [0.5, 1.0, 2.0]),
        (LinearRetry(), [1.0, 2.0, 3.0]),
        (FixedRetry(), [1.0, 1.0, 1.0]),
    ],
    ids=["exponential", "exponential-jittered", "linear", "fixed"],
)
def test_delays_follow_the_policys_name(policy: BaseRetry, delays: list[float]) -> None:
    assert [policy.next_delay(attempt, OSError()) for attempt in range(1, policy.retries + 1)] == delays


@pytest.mark.parametrize("kind", [*POLICIES, NoRetry])
def test_policies_have_the_plugin_interface_and_are_equal_when_their_options_are(kind: type) -> None:
    assert isinstance(kind(), RetryPolicy)
    assert kind() == kind()
    assert hash(kind()) == hash(kind())


@pytest.mark.parametrize("error", RETRIED, ids=names)
def test_no_retry_gives_up_at_once(error: Exception) -> None:
    policy: RetryPolicy = NoRetry()
    assert policy.next_delay(1, error) is None


@pytest.mark.parametrize(
    ("retry_on", "error", "retried"),
    [
        (OSError, ConnectionResetError(), True),
        (OSError, ValueError(), False),
        ((OSError, ValueError), ValueError(), True),
        (lambda error: "again" in str(error), ValueError("try again"), True),
        (lambda error: "again" in str(error), ValueError("never"), False),
        (errors.MessageReturned, errors.MessageReturned("no route", outcome=Outcome.RETURNED), True),
        (PublishError, publishing(Outcome.NACKED), True),
    ],
)
def test_retry_on_decides_when_it_is_given(retry_on: RetryOn, error: Exception, retried: bool) -> None:
    assert (FixedRetry(retry_on=retry_on).next_delay(1, error) is not None) is retried


@pytest.mark.parametrize("retry_on", [Exception, lambda error: True], ids=["all types", "all errors"])
@pytest.mark.parametrize(
    "error",
    [
        asyncio.CancelledError(),
        KeyboardInterrupt(),
        SystemExit(),
        errors.EncodeFailed("no"),
        errors.ConfigurationError("no"),
        errors.CircuitOpen("no"),
        errors.RetriesExhausted("no"),
        publishing(Outcome.UNKNOWN),
    ],
    ids=names,
)
def test_some_errors_are_never_retried_whatever_retry_on_says(retry_on: RetryOn, error: BaseException) -> None:
    assert FixedRetry(retry_on=retry_on).next_delay(1, error) is None


def test_unknown_outcome_is_retried_when_retry_on_and_retry_unknown_both_say_so() -> None:
    policy = FixedRetry(retry_on=PublishError, retry_unknown=True)
    assert policy.next_delay(1, publishing(Outcome.UNKNOWN)) == 1.0


@pytest.mark.parametrize(
    ("options", "option", "text"),
    [
        ({"retries": -1}, "retries", "retries is -1; it must be 0 to 1000000"),
        ({"retries": 1_000_001}, "retries", "retries is 1000001; it must be 0 to 1000000"),
        ({"retries": 2.5}, "retries", "retries must be a whole number, not float"),
        ({"retries": True}, "retries", "retries must be a whole number, not bool"),
        ({"retry_unknown": "yes"}, "retry_unknown", "retry_unknown must be True or False, not str"),
        ({"retry_on": "OSError"}, "retry_on", "retry_on must be a function, not str"),
        (
            {"retry_on": asyncio.CancelledError},
            "retry_on",
            "retry_on must name types of Exception; <class 'asyncio.exceptions.CancelledError'> is not one",
        ),
        ({"retry_on": (OSError, 5)}, "retry_on", "retry_on must name types of Exception; 5 is not one"),
        ({"interval": 100_000}, "interval", "interval is 100000 s; it must be 0 to 86400"),
    ],
)
def test_configuration_error_names_option_limit_and_value_when_an_option_is_wrong(
    options: dict[str, Any], option: str, text: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        FixedRetry(**options)
    assert caught.value.option == option
    assert str(caught.value) == text


def test_retry_on_must_be_a_plain_function_because_nobody_would_await_it() -> None:
    async def later(error: Exception) -> bool:
        return True

    with pytest.raises(ConfigurationError, match="retry_on must be a plain function"):
        FixedRetry(retry_on=later)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (publishing(Outcome.NACKED), True),
        (publishing(Outcome.NOT_SENT), True),
        (publishing(Outcome.UNKNOWN), True),
        (errors.ConfirmTimeout("late", outcome=Outcome.UNKNOWN), True),
        (errors.OperationTimeout("late"), True),
        (errors.ConnectFailed("nobody there"), True),
        (errors.ConnectionClosed("closed"), True),
        (errors.RetriesExhausted("often"), True),
        (OSError(), True),
        (TimeoutError(), True),
        (errors.MessageReturned("no route", outcome=Outcome.RETURNED), False),
        (errors.EncodeFailed("no"), False),
        (errors.BodyTooLarge("no"), False),
        (errors.ConfigurationError("no"), False),
        (errors.BackpressureError("full"), False),
        (errors.WrongLoopError("no"), False),
        (errors.NotFound("no"), False),
        (errors.PreconditionFailed("no"), False),
        (errors.CircuitOpen("another one"), False),
        (asyncio.CancelledError(), False),
        (KeyboardInterrupt(), False),
    ],
    ids=lambda value: names(value) if isinstance(value, BaseException) else str(value),
)
def test_is_failure_says_what_counts_against_the_callee(error: BaseException, counts: bool) -> None:
    assert is_failure(error) is counts
