"""Retries around any call and around handlers: attempts, cancellation, deadlines, and what the caller gets."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from leveret.errors import CircuitOpen, ConfigurationError, EncodeFailed, RetriesExhausted
from leveret_resilience import (
    BreakerState,
    CircuitBreaker,
    ExponentialRetry,
    FixedRetry,
    LinearRetry,
    NoRetry,
    guard,
    retry,
    retrying,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Clock, Sleep


class Flaky:
    """Fails some times, then succeeds; `run` is what is called."""

    def __init__(self, failures: int, error: BaseException | None = None) -> None:
        self.failures = failures
        self.error = OSError("down") if error is None else error
        self.calls = 0

    async def run(self, *args: Any) -> tuple[Any, ...]:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return args


# ---------------------------------------------------------------------- attempts


async def test_returns_at_once_when_the_first_attempt_succeeds(sleep: Sleep) -> None:
    flaky = Flaky(0)
    assert await retrying(ExponentialRetry(), flaky.run, 1, "two", sleep=sleep) == (1, "two")
    assert (flaky.calls, sleep.delays) == (1, [])


async def test_tries_again_with_the_same_arguments_after_the_policys_delays(sleep: Sleep) -> None:
    flaky = Flaky(3)
    assert await retrying(LinearRetry(), flaky.run, 1, "two", sleep=sleep) == (1, "two")
    assert (flaky.calls, sleep.delays) == (4, [1.0, 2.0, 3.0])


async def test_raises_retries_exhausted_from_the_last_error_when_three_retries_failed(sleep: Sleep) -> None:
    flaky = Flaky(99, OSError("the password is hidden"))
    with pytest.raises(RetriesExhausted) as caught:
        await retrying(LinearRetry(), flaky.run, sleep=sleep)
    assert (flaky.calls, sleep.delays) == (4, [1.0, 2.0, 3.0])
    assert caught.value.attempts == 4
    assert caught.value.__cause__ is flaky.error
    assert str(caught.value) == "gave up after 4 attempts; the last one failed with OSError"


@pytest.mark.parametrize("policy", [NoRetry(), FixedRetry(retries=0), FixedRetry(retry_on=ValueError)], ids=repr)
async def test_raises_the_error_itself_when_the_policy_does_not_try_again(policy: Any, sleep: Sleep) -> None:
    flaky = Flaky(1)
    with pytest.raises(OSError, match="down"):
        await retrying(policy, flaky.run, sleep=sleep)
    assert flaky.calls == 1


async def test_raises_the_error_itself_when_a_later_attempt_fails_with_one_that_is_not_retried(sleep: Sleep) -> None:
    errors = [OSError("down"), EncodeFailed("not a value")]

    async def fail() -> NoReturn:
        raise errors.pop(0)

    with pytest.raises(EncodeFailed):
        await retrying(FixedRetry(), fail, sleep=sleep)
    assert errors == []


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), asyncio.CancelledError()], ids=repr)
async def test_what_is_no_exception_passes_even_when_a_policy_would_retry_everything(
    error: BaseException, sleep: Sleep
) -> None:
    class Everything:
        def next_delay(self, attempt: int, error: BaseException, /) -> float:
            return 0.0

    flaky = Flaky(1, error)
    # Not through a task, which would stop the event loop for KeyboardInterrupt.
    calls = retrying(Everything(), flaky.run, sleep=sleep)
    with pytest.raises(type(error)):
        calls.send(None)
    assert flaky.calls == 1


async def test_concurrent_calls_count_their_own_attempts_when_they_share_a_policy(sleep: Sleep) -> None:
    policy = FixedRetry(retries=3)
    flaky = [Flaky(failures) for failures in (3, 3, 3, 99, 0)]
    results = await asyncio.gather(
        *(retrying(policy, each.run, number, sleep=sleep) for number, each in enumerate(flaky)), return_exceptions=True
    )
    assert [each.calls for each in flaky] == [4, 4, 4, 4, 1]
    assert results[:3] == [(0,), (1,), (2,)]
    assert isinstance(results[3], RetriesExhausted)
    assert results[4] == (4,)


async def test_keyword_arguments_go_through_functools_partial(sleep: Sleep) -> None:
    async def add(one: int, *, other: int) -> int:
        return one + other

    assert await retrying(FixedRetry(), functools.partial(add, other=2), 1, sleep=sleep) == 3


async def test_function_that_returns_no_awaitable_is_called_once(sleep: Sleep) -> None:
    calls: list[int] = []
    with pytest.raises(ConfigurationError, match=r"must return an awaitable; .* returned NoneType"):
        await retrying(FixedRetry(), calls.append, 1, sleep=sleep)  # type: ignore[arg-type]
    assert calls == [1]


async def test_waits_are_logged_without_what_the_error_says(sleep: Sleep, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="leveret.resilience")
    await retrying(FixedRetry(), Flaky(1, OSError("the password is hidden")).run, sleep=sleep)
    assert caplog.messages == ["attempt 1 failed with OSError; the next one in 1 s"]


# ---------------------------------------------------------------------- cancellation


async def cancelled_while(start: Callable[[], Any], reached: asyncio.Event) -> None:
    task = asyncio.create_task(start())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("timeout", [None, 1000.0])
async def test_cancellation_in_an_attempt_ends_it_at_once(timeout: float | None, sleep: Sleep) -> None:
    reached = asyncio.Event()
    calls = 0

    async def hang() -> None:
        nonlocal calls
        calls += 1
        reached.set()
        await asyncio.Event().wait()

    await cancelled_while(lambda: retrying(FixedRetry(), hang, timeout=timeout, sleep=sleep), reached)
    assert (calls, sleep.delays) == (1, [])


async def test_cancellation_between_two_attempts_ends_it_at_once() -> None:
    reached = asyncio.Event()
    flaky = Flaky(99)

    async def hang(seconds: float) -> None:
        reached.set()
        await asyncio.Event().wait()

    await cancelled_while(lambda: retrying(FixedRetry(), flaky.run, sleep=hang), reached)
    assert flaky.calls == 1


async def test_cancellation_in_an_attempt_is_no_failure_for_the_breaker(clock: Clock, sleep: Sleep) -> None:
    breaker = CircuitBreaker(minimum_calls=1, clock=clock)
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    await cancelled_while(lambda: retrying(FixedRetry(), hang, breaker=breaker, sleep=sleep), reached)
    assert breaker.state is BreakerState.CLOSED


async def test_cancelled_trial_leaves_its_place_to_the_next_one(clock: Clock, sleep: Sleep) -> None:
    breaker = CircuitBreaker(minimum_calls=1, clock=clock)
    breaker.record(0, 1)
    clock.advance(60.0)
    reached = asyncio.Event()

    async def hang() -> None:
        reached.set()
        await asyncio.Event().wait()

    await cancelled_while(lambda: guard(hang_with(hang), breaker=breaker, sleep=sleep)(None, None), reached)
    assert breaker.state is BreakerState.HALF_OPEN
    await retrying(FixedRetry(), Flaky(0).run, breaker=breaker, sleep=sleep)
    assert breaker.closed


def hang_with(hang: Callable[[], Any]) -> Callable[[Any, Any], Any]:
    async def handler(value: Any, message: Any) -> None:
        await hang()

    return handler


# ---------------------------------------------------------------------- deadlines


async def test_gives_up_at_once_when_the_next_delay_would_end_after_the_timeout(sleep: Sleep) -> None:
    flaky = Flaky(99)
    with pytest.raises(RetriesExhausted) as caught:
        await retrying(FixedRetry(interval=3600.0), flaky.run, timeout=1800.0, sleep=sleep)
    assert (flaky.calls, sleep.delays) == (1, [])
    assert caught.value.attempts == 1
    assert str(caught.value) == "gave up after 1 attempt in 1800 s; the last one failed with OSError"
    assert caught.value.__cause__ is flaky.error


async def test_attempt_that_hangs_is_cancelled_when_the_time_is_over(sleep: Sleep) -> None:
    cancelled = False

    async def hang() -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    with pytest.raises(RetriesExhausted) as caught:
        await retrying(FixedRetry(), hang, timeout=0.01, sleep=sleep)
    assert cancelled
    assert isinstance(caught.value.__cause__, TimeoutError)


async def test_attempt_that_hangs_until_the_timeout_is_a_failure_for_the_breaker(clock: Clock, sleep: Sleep) -> None:
    breaker = CircuitBreaker(minimum_calls=1, clock=clock)
    with pytest.raises(RetriesExhausted):
        await retrying(FixedRetry(), asyncio.Event().wait, breaker=breaker, timeout=0.01, sleep=sleep)
    assert breaker.state is BreakerState.OPEN


async def test_timeout_does_not_end_what_is_done_in_time(sleep: Sleep) -> None:
    assert await retrying(FixedRetry(), Flaky(2).run, "value", timeout=1000.0, sleep=sleep) == ("value",)


# ---------------------------------------------------------------------- with a breaker


async def test_each_attempt_is_counted_and_an_opening_ends_the_retries(clock: Clock, sleep: Sleep) -> None:
    breaker = CircuitBreaker(name="stock", clock=clock)
    flaky = Flaky(99)
    with pytest.raises(CircuitOpen, match="'stock' is open: 5 of 5 calls failed"):
        await retrying(FixedRetry(retries=100), flaky.run, breaker=breaker, sleep=sleep)
    assert flaky.calls == 5
    with pytest.raises(CircuitOpen):
        await retrying(FixedRetry(), flaky.run, breaker=breaker, sleep=sleep)
    assert flaky.calls == 5


async def test_retry_succeeds_as_the_trial_when_it_waits_for_longer_than_the_breaker_is_open(clock: Clock) -> None:
    breaker = CircuitBreaker(minimum_calls=2, open_time=5.0, clock=clock)

    async def pass_time(seconds: float) -> None:
        clock.advance(seconds)

    flaky = Flaky(2)
    policy = FixedRetry(interval=6.0)
    assert await retrying(policy, flaky.run, "value", breaker=breaker, sleep=pass_time) == ("value",)
    assert breaker.state is BreakerState.CLOSED


# ---------------------------------------------------------------------- decorator


async def test_decorated_function_is_retried_and_keeps_its_name_and_arguments(sleep: Sleep) -> None:
    calls = []

    @retry(FixedRetry(), sleep=sleep)
    async def fetch(item: str, *, count: int = 1) -> str:
        """Fetches."""
        calls.append(item)
        if len(calls) < 3:
            raise OSError("down")
        return item * count

    assert await fetch("ab", count=2) == "abab"
    assert calls == ["ab", "ab", "ab"]
    assert (fetch.__name__, fetch.__doc__) == ("fetch", "Fetches.")
    assert inspect.iscoroutinefunction(fetch)


async def test_concurrent_calls_of_a_decorated_function_count_their_own_attempts(sleep: Sleep) -> None:
    attempts: dict[int, int] = {}

    @retry(FixedRetry(), sleep=sleep)
    async def fetch(number: int) -> int:
        attempts[number] = attempts.get(number, 0) + 1
        await asyncio.sleep(0)
        if attempts[number] <= 3:
            raise OSError("down")
        return number

    assert await asyncio.gather(*map(fetch, range(10))) == list(range(10))
    assert set(attempts.values()) == {4}


def test_decorator_refuses_a_plain_function() -> None:
    with pytest.raises(ConfigurationError, match="function must be an `async def` function"):
        retry(FixedRetry())(len)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- handlers


@pytest.mark.parametrize("result", [None, True, False])
async def test_guard_keeps_the_handlers_result_and_arguments(result: bool | None, sleep: Sleep) -> None:
    seen = []

    async def handler(value: int, message: str) -> bool | None:
        seen.append((value, message))
        if len(seen) < 3:
            raise OSError("down")
        return result

    guarded = guard(handler, retry=FixedRetry(), sleep=sleep)
    assert inspect.iscoroutinefunction(guarded)
    assert guarded.__name__ == "handler"
    assert await guarded(1, "message") is result
    assert seen == [(1, "message")] * 3


async def test_guard_does_not_run_the_handler_when_the_breaker_is_open(clock: Clock) -> None:
    flaky = Flaky(99)

    async def handler(value: int, message: str) -> None:
        await flaky.run()

    guarded = guard(handler, breaker=CircuitBreaker(clock=clock))
    for _ in range(5):
        with pytest.raises(OSError, match="down"):
            await guarded(1, "message")
    with pytest.raises(CircuitOpen):
        await guarded(1, "message")
    assert flaky.calls == 5


async def test_guard_takes_false_for_a_success(clock: Clock) -> None:
    async def handler(value: int, message: str) -> bool:
        return False

    breaker = CircuitBreaker(minimum_calls=1, clock=clock)
    assert await guard(handler, breaker=breaker)(1, "message") is False
    assert breaker.state is BreakerState.CLOSED


async def test_guard_takes_objects_with_an_async_call(sleep: Sleep) -> None:
    class Handler:
        async def __call__(self, value: int, message: str) -> bool:
            return value == 1

    assert await guard(Handler(), retry=FixedRetry(), sleep=sleep)(1, "message") is True


def test_guard_refuses_a_handler_that_is_a_plain_function() -> None:
    def handler(value: int, message: str) -> None: ...

    with pytest.raises(ConfigurationError, match="handler must be an `async def` function"):
        guard(handler)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"policy": "exponential"}, "retry"),
        ({"policy": ExponentialRetry}, "retry"),
        ({"policy": None}, "retry"),
        ({"breaker": "failure-rate"}, "breaker"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "5"}, "timeout"),
        ({"sleep": 5}, "sleep"),
    ],
)
async def test_configuration_error_names_the_argument_when_it_is_wrong(arguments: dict[str, Any], option: str) -> None:
    flaky = Flaky(0)
    policy = arguments.pop("policy", FixedRetry())
    with pytest.raises(ConfigurationError) as caught:
        await retrying(policy, flaky.run, **arguments)
    assert caught.value.option == option
    assert str(caught.value).startswith(f"{option} ")
    with pytest.raises(ConfigurationError):
        retry(policy, **arguments)
    assert flaky.calls == 0
