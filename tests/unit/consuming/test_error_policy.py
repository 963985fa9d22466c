"""Error policies: which action an error gets, what is refused, and what is believed of a message's headers."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.corpus import strategies

import leveret
from leveret import DeadLetter, Drop, ErrorPolicy, Park, Requeue, Retry, Stop
from leveret.consuming.failing.error_policy import Refused, attempts_of, checked_refusal, error_text, policy_of
from leveret.errors import CodecError, ConfigurationError, DecodeFailed, NotFound
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.template import PublishTemplate
from leveret.wire.buffers import SendBuffer
from leveret.wire.encoding import encode_table
from leveret.wire.message import redelivered_copy
from leveret.wire.properties import Properties
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun

if TYPE_CHECKING:
    from leveret.wire.message import Message

assert strategies  # its import loads the hypothesis profile

ACTIONS = (Requeue(), Retry(), DeadLetter(), Park(), Drop(), Stop())


def message(
    headers: dict[str, Any] | None = None, *, raw_properties: bytes | None = None, redelivered: bool = False
) -> Message:
    out = SendBuffer(lambda: None, lambda: None)
    raw = Properties(headers=headers).encode() if raw_properties is None else raw_properties
    PublishBatch(out, None).add(PublishTemplate("x", "key", raw), b"secret body")
    (run,) = FrameReader(server=True, frame_max=131072).feed(out.take())
    assert isinstance(run, ContentRun)
    return redelivered_copy(run.messages[0]) if redelivered else run.messages[0]


# ---------------------------------------------------------------------- Retry


def test_the_default_is_four_retries_within_two_minutes_and_then_parking() -> None:
    assert Retry() == Retry(delays=(1, 5, 30, 60), then="park")
    assert Retry().delays == (1.0, 5.0, 30.0, 60.0)
    assert policy_of(None).default == ErrorPolicy({}).default == Retry()


def test_delays_are_those_that_were_listed() -> None:
    assert Retry((3, 1, 3)).delays == (3.0, 1.0, 3.0)
    assert Retry([0.1] * 1000).delays == (0.1,) * 1000
    assert Retry(delays=(1 / 3,)).delays == (0.334,)
    assert repr(Retry(delays=(5,), then="drop")) == "Retry(delays=(5.0,), then='drop')"
    assert Retry(delays=(5, 10, 20, 40, 80)) == Retry(delay=5)


@pytest.mark.parametrize("name", ["delay", "max_attempts", "factor", "max_delay"])
def test_delays_are_listed_or_computed_and_not_both(name: Any) -> None:
    options: Any = {name: 2}
    with pytest.raises(ConfigurationError, match=f"{name} computes the delays of a Retry, and delays lists") as refused:
        Retry(delays=(1, 2), **options)
    assert refused.value.option == name


def test_delays_grow_by_the_factor_up_to_the_longest() -> None:
    assert Retry(delay=5).delays == (5.0, 10.0, 20.0, 40.0, 80.0)
    assert Retry(delay=1, factor=10, max_attempts=4, max_delay=60).delays == (1.0, 10.0, 60.0, 60.0)
    assert Retry(delay=0.1, factor=1, max_attempts=1000).delays == (0.1,) * 1000
    assert Retry(delay=1 / 3).delays[0] == 0.334


@given(
    delay=st.floats(0.1, 604_800),
    max_attempts=st.integers(1, 1000),
    factor=st.floats(1, 100),
    stretch=st.floats(1, 1000),
)
def test_delays_are_few_and_never_shorter_than_was_asked_for(
    delay: float, max_attempts: int, factor: float, stretch: float
) -> None:
    longest = min(delay * stretch, 604_800)
    action = Retry(delay=delay, max_attempts=max_attempts, factor=factor, max_delay=longest)
    assert len(action.delays) == max_attempts
    assert len(set(action.delays)) <= 16
    assert list(action.delays) == sorted(action.delays)
    wanted = delay
    for given_delay in action.delays:
        assert round(given_delay * 1000) == pytest.approx(given_delay * 1000)
        assert wanted - 1e-6 <= given_delay <= longest + 0.001
        wanted = min(wanted * factor, longest)


@pytest.mark.parametrize(
    ("options", "option", "text"),
    [
        ({"delay": 0.05}, "delay", "delay is 0.05 s; it must be 0.1 to 604800 s"),
        ({"delay": 604_801, "max_delay": 604_800}, "delay", "it must be 0.1 to 604800 s"),
        ({"delay": float("nan")}, "delay", "delay is nan s"),
        ({"delay": "5"}, "delay", "delay is of type str; it must be a number"),
        ({"delay": True}, "delay", "delay is of type bool"),
        ({"max_attempts": 0}, "max_attempts", "max_attempts is 0; it must be 1 to 1000"),
        ({"max_attempts": 1001}, "max_attempts", "max_attempts is 1001; it must be 1 to 1000"),
        ({"max_attempts": 2.0}, "max_attempts", "max_attempts is of type float; it must be a whole number"),
        ({"factor": 0.5}, "factor", "factor is 0.5; it must be 1 to 100"),
        ({"factor": float("inf")}, "factor", "factor is inf; it must be 1 to 100"),
        ({"max_delay": 1e9}, "max_delay", "max_delay is 1e.09 s; it must be 0.1 to 604800 s"),
        ({"max_delay": 4}, "max_delay", "max_delay is 4 s; it must be delay, 5 s, or more"),
        ({"delays": ()}, "delays", "delays is of 0 values; it must be of 1 to 1000"),
        ({"delays": [1] * 1001}, "delays", "delays is of 1001 values; it must be of 1 to 1000"),
        ({"delays": range(1, 18)}, "delays", "delays is of 17 different values; it must be of at most 16"),
        ({"delays": (1, 0.05)}, "delays", "delays is 0.05 s; it must be 0.1 to 604800 s"),
        ({"delays": (1, float("nan"))}, "delays", "delays is nan s"),
        ({"delays": (1, "2")}, "delays", "delays is of type str; it must be a number"),
        ({"delays": "12"}, "delays", "delays is of type str; it must be a sequence of seconds"),
        ({"delays": 5}, "delays", "delays is of type int; it must be a sequence of seconds"),
        ({"then": "retry"}, "then", "then is 'retry'; it must be 'park' or 'dead_letter' or 'drop'"),
        ({"then": []}, "then", r"then is \[\]; it must be"),
    ],
)
def test_an_option_that_is_out_of_range_is_refused_with_its_name_value_and_bounds(
    options: dict[str, Any], option: str, text: str
) -> None:
    with pytest.raises(ConfigurationError, match=text) as refused:
        Retry(**options)
    assert refused.value.option == option


@pytest.mark.parametrize("action", ACTIONS)
def test_actions_cannot_be_changed_and_are_equal_when_their_options_are(action: Any) -> None:
    assert action == type(action)()
    assert hash(action) == hash(type(action)())
    with pytest.raises((AttributeError, TypeError)):
        action.then = 1
    assert not hasattr(action, "__dict__")


# ---------------------------------------------------------------------- rules


class A(Exception): ...


class B(A): ...


class C(A): ...


class D(B, C): ...


def test_the_most_specific_class_counts() -> None:
    policy = ErrorPolicy({Exception: Drop(), A: Park(), C: DeadLetter(), OSError: Stop()}, default=Retry())
    expected = {A: Park(), B: Park(), C: DeadLetter(), D: DeadLetter(), KeyError: Drop(), ConnectionError: Stop()}
    assert {cls: policy.decide(cls(), message()) for cls in expected} == expected
    assert policy.decide(asyncio.CancelledError(), message()) == Retry()
    assert policy.has_rule_for(D())
    assert not policy.has_rule_for(asyncio.CancelledError())


classes = st.sampled_from([BaseException, Exception, A, B, C, D, OSError, ConnectionError, TimeoutError, ValueError])


@given(st.dictionaries(classes, st.sampled_from(ACTIONS)), classes, st.sampled_from(ACTIONS))
def test_the_action_is_that_of_the_first_class_in_the_order_of_the_error(
    rules: dict[Any, Any], cls: Any, default: Any
) -> None:
    action = ErrorPolicy(rules, default).decide(cls(), message())
    assert action == next((rules[each] for each in cls.__mro__ if each in rules), default)


def test_a_message_is_requeued_once_and_refused_when_it_fails_again() -> None:
    policy = policy_of(Requeue())
    assert policy.decide(ValueError(), message()) == Requeue()
    assert policy.decide(ValueError(), message(redelivered=True)) == Refused()
    assert policy_of({ValueError: Requeue()}).decide(ValueError(), message(redelivered=True)) == Refused()
    again = ErrorPolicy(lambda error, message: True, default=Requeue())
    assert again.decide(ValueError(), message(redelivered=True)) == Refused()
    for action in ACTIONS[1:]:
        assert policy_of(action).decide(ValueError(), message(redelivered=True)) == action


def test_rules_are_kept_when_the_callers_mapping_changes() -> None:
    rules: dict[type[BaseException], Any] = {ValueError: Park()}
    policy = ErrorPolicy(rules)
    rules[ValueError] = Drop()
    assert policy.decide(ValueError(), message()) == Park()


def test_a_policy_knows_its_delays() -> None:
    policy = ErrorPolicy({ValueError: Retry([1, 2]), KeyError: Retry([2, 4])}, default=Retry([1]))
    assert policy.delays == (1.0, 2.0, 4.0)
    assert ErrorPolicy({ValueError: Drop()}, default=Park()).delays == ()


@pytest.mark.parametrize("refused", [None, DeadLetter(), Park(), Drop()])
def test_what_becomes_of_refused_messages_is_one_of_three_actions(refused: Any) -> None:
    assert checked_refusal(refused) is refused


@pytest.mark.parametrize(
    ("refused", "text"),
    [
        (Park, r"refused is Park; it must be DeadLetter\(\), Park\(\), Drop\(\) or None; write Park\(\)"),
        (Retry(), "refused is a Retry; it must be"),
        (Requeue, "refused is Requeue; it must be .* or None$"),
        ("park", "refused is a str"),
    ],
)
def test_anything_else_is_refused_by_name(refused: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text) as raised:
        checked_refusal(refused)
    assert raised.value.option == "refused"


# ---------------------------------------------------------------------- functions


@pytest.mark.parametrize(
    ("answer", "default", "expected"),
    [
        (True, None, Retry()),
        (True, Retry([1]), Retry([1])),
        (True, Requeue(), Requeue()),
        (True, Park(), Retry()),
        (False, Retry([1]), Refused()),
        *((action, None, action) for action in ACTIONS),
    ],
)
def test_what_a_function_answers_is_done(answer: Any, default: Any, expected: Any) -> None:
    seen = []

    def on_error(error: BaseException, failed: Message) -> Any:
        seen.append((error, failed))
        return answer

    error, failed = ValueError(), message()
    assert ErrorPolicy(on_error, default).decide(error, failed) == expected
    assert seen == [(error, failed)]


@pytest.mark.parametrize("answer", [None, 1, 0, "retry", Retry, DeadLetter, [Drop()]])
def test_the_default_happens_when_a_function_answers_nonsense(answer: Any, caplog: pytest.LogCaptureFixture) -> None:
    def chooses(error: BaseException, failed: Message) -> Any:
        return answer

    with caplog.at_level(logging.WARNING, "leveret"):
        assert ErrorPolicy(chooses, Park()).decide(KeyError("secret"), message()) == Park()
    assert "chooses" in caplog.text
    assert type(answer).__name__ in caplog.text
    assert "secret" not in caplog.text


def test_the_default_happens_when_a_function_raises_and_no_body_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def breaks(error: BaseException, failed: Message) -> bool:
        raise RuntimeError(f"cannot judge {failed.body!r}")

    with caplog.at_level(logging.WARNING, "leveret"):
        assert ErrorPolicy(breaks).decide(KeyError("secret"), message()) == Retry()
    assert "breaks raised RuntimeError at breaks:" in caplog.text
    assert "secret" not in caplog.text


def test_a_coroutine_that_a_function_returns_is_not_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    async def later() -> bool:
        return True

    assert ErrorPolicy(lambda error, message: later()).decide(KeyError(), message()) == Retry()  # type: ignore[arg-type, return-value]
    assert "coroutine" in caplog.text


class AsyncCall:
    async def __call__(self, error: BaseException, message: Message) -> bool:
        return True


async def async_function(error: BaseException, message: Message) -> bool:
    return True


@pytest.mark.parametrize(
    ("on_error", "text"),
    [
        ("retry", "on_error is a str; it must be an action, a mapping"),
        (5, "on_error is a int"),
        (True, "on_error is a bool"),
        (async_function, "on_error is the `async def` function async_function"),
        (AsyncCall(), "`async def` function a AsyncCall"),
        (Retry, r"on_error is Retry, which is no action .*; write Retry\(\)"),
        (ValueError, "on_error is ValueError; it must be"),
        ({ValueError: Drop}, r"rules\[ValueError\] is Drop, which is no action .*; write Drop\(\)"),
        ({ValueError: True}, r"rules\[ValueError\] is a bool, which is no action"),
        ({ValueError(): Drop()}, "rules has a ValueError, which is no exception class"),
        ({int: Drop()}, "rules has int, which is no exception class"),
        ({"ValueError": Drop()}, "rules has a str, which is no exception class"),
    ],
)
def test_what_is_no_policy_is_refused(on_error: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        policy_of(on_error)


def test_a_default_that_is_no_action_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="default is a str") as refused:
        ErrorPolicy({}, default="drop")  # type: ignore[arg-type]
    assert refused.value.option == "default"


def test_every_form_of_a_policy_becomes_one() -> None:
    policy = ErrorPolicy()
    assert policy_of(policy) is policy
    assert repr(policy_of(None)) == "ErrorPolicy({}, default=Retry(delays=(1.0, 5.0, 30.0, 60.0), then='park'))"
    assert repr(policy_of(Drop())) == "ErrorPolicy({}, default=Drop())"
    default = "default=Retry(delays=(1.0, 5.0, 30.0, 60.0), then='park')"
    assert repr(policy_of({KeyError: Park()})) == f"ErrorPolicy({{KeyError: Park()}}, {default})"
    assert repr(policy_of(attempts_of)) == f"ErrorPolicy(attempts_of, {default})"  # type: ignore[arg-type]


def test_actions_are_at_hand_in_the_package() -> None:
    names = ("ErrorPolicy", "Requeue", "Retry", "DeadLetter", "Park", "Drop", "Stop")
    assert all(getattr(leveret, name).__module__ == "leveret.consuming.failing.error_policy" for name in names)


# ---------------------------------------------------------------------- headers


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (0, 0), (3, 3), (-1, 0), (2**62, 1_000_000), (1_000_001, 1_000_000), (True, 0), ("3", 0), (3.0, 0), (None, 0),
        ([3], 0), ({"a": 3}, 0), (b"33", 0),
    ],
)  # fmt: skip
def test_attempts_are_read_from_the_header_when_it_is_a_count(value: Any, count: int) -> None:
    assert attempts_of(message({"x-leveret-attempt": value})) == count


def test_a_message_without_readable_headers_has_not_failed() -> None:
    assert attempts_of(message()) == 0
    assert attempts_of(message({})) == 0
    broken = b"\x20\x00" + encode_table({"x-leveret-attempt": 3})[:-1]
    assert attempts_of(message(raw_properties=broken)) == 0


@given(strategies.tables, strategies.values)
def test_attempts_are_a_count_whatever_the_headers_say(table: dict[str, Any], value: Any) -> None:
    assert 0 <= attempts_of(message({**table, "x-leveret-attempt": value})) <= 1_000_000


class OwnError(leveret.LeveretError): ...


OwnError.__module__ = "shop.errors"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ValueError("secret"), "ValueError"),
        (OwnError("secret"), "OwnError"),
        (NotFound("no queue 'q'"), "NotFound: no queue 'q'"),
        (DecodeFailed("a\nb"), "DecodeFailed: a\\nb"),
        (CodecError("x" * 500), "CodecError: " + "x" * 185 + "..."),
        (CodecError("\n" * 500), "CodecError: " + "\\n" * 92 + "\\..."),
    ],
)
def test_an_error_is_told_by_its_class_and_by_its_text_only_when_it_is_ours(error: BaseException, text: str) -> None:
    assert error_text(error) == text
    assert len(text) <= 200


@given(st.text(), st.text(max_size=300))
def test_the_text_of_any_error_fits_a_header(name: str, text: str) -> None:
    error = type(name.replace("\0", "") or "E", (CodecError,), {"__module__": "leveret.errors"})(text)
    told = error_text(error)
    assert len(told) <= 200
    assert told.isprintable()
    Properties(headers={"x-leveret-error": told}).encode()
