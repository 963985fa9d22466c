"""Retries around any asynchronous call, and around handlers."""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, TypeVarTuple

from leveret.errors import ConfigurationError, RetriesExhausted
from leveret.plugins import RetryPolicy
from leveret_resilience._checks import check_coroutine_function, check_number, started
from leveret_resilience.breaker import CircuitBreaker
from leveret_resilience.retries import NoRetry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = ["guard", "retry", "retrying"]

logger = logging.getLogger("leveret.resilience")

P = ParamSpec("P")
T = TypeVar("T")
Arguments = TypeVarTuple("Arguments")
Value = TypeVar("Value")
Incoming = TypeVar("Incoming")

_LONGEST: Final = 31 * 86_400.0


async def retrying(
    policy: RetryPolicy,
    function: Callable[[*Arguments], Awaitable[T]],
    /,
    *args: *Arguments,
    breaker: CircuitBreaker | None = None,
    timeout: float | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> T:
    """Calls a function until it succeeds, the policy gives up or the timeout passes.

    Attempts are counted for this call only. Cancellation ends it at once, during an attempt or between two.

    Args:
        policy: Decides after each failure.
        function: An `async def`, or another function that returns an awaitable. For keyword arguments use
            `functools.partial`.
        *args: Its arguments.
        breaker: Allows each attempt, and counts its result. When it is open, `CircuitOpen` ends the retries.
        timeout: Seconds for all attempts, 0.001 to 2678400; None sets no limit. An attempt that is still running then
            is cancelled and fails with `TimeoutError`. A wait that would end later is not begun.
        sleep: Waits for some seconds; for tests.

    Returns:
        The function's result.

    Raises:
        RetriesExhausted: The policy gave up after several attempts, or the timeout passed. Its cause is the last
            failure, and `attempts` is the number of attempts.
        CircuitOpen: The breaker refused the call.
        Exception: The function's exception, unchanged, after which the policy does not try again.
        ConfigurationError: An argument is of the wrong type or out of bounds.
    """
    _check(policy, breaker, timeout, sleep)
    return await _attempts(policy, function, args, breaker, timeout, sleep)


def retry(
    policy: RetryPolicy,
    *,
    breaker: CircuitBreaker | None = None,
    timeout: float | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Callable[[Callable[P, Awaitable[T]]], Callable[P, Coroutine[Any, Any, T]]]:
    """Makes a decorator for `async def` functions that retries their calls; see `retrying`.

    Args:
        policy: Decides after each failure. It may be shared: each call counts its own attempts.
        breaker: Allows each attempt, and counts its result.
        timeout: Seconds for all attempts of one call, 0.001 to 2678400; None sets no limit.
        sleep: Waits for some seconds; for tests.

    Returns:
        The decorator.

    Raises:
        ConfigurationError: An argument is of the wrong type or out of bounds, or the decorated function is not an
            `async def`.
    """
    _check(policy, breaker, timeout, sleep)

    def decorate(function: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        check_coroutine_function("function", function)

        @functools.wraps(function)
        async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
            bound = functools.partial(function, *args, **kwargs)
            return await _attempts(policy, bound, (), breaker, timeout, sleep)

        return wrapped

    return decorate


def guard(
    handler: Callable[[Value, Incoming], Awaitable[bool | None]],
    /,
    *,
    retry: RetryPolicy | None = None,
    breaker: CircuitBreaker | None = None,
    timeout: float | None = None,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> Callable[[Value, Incoming], Coroutine[Any, Any, bool | None]]:
    """Wraps a consumer's handler with a retry policy and a circuit breaker.

    The handler is tried again within the same delivery, before the message returns to its queue, and occupies its
    worker meanwhile. Any result is a success, also False. A handler that settles its message itself must do so last.

    When the breaker is open, the handler is not called, and the consumer gets `CircuitOpen`. It releases the message
    and waits for up to a second. With `retry`, a failure that opens the breaker ends in the same way, unless it was the
    last attempt; then the consumer gets the failure.

    Args:
        handler: `async def handler(value, message)`.
        retry: Decides after each failure; None: one attempt.
        breaker: Allows each attempt, and counts its result.
        timeout: Seconds for all attempts at one message, 0.001 to 2678400; None sets no limit.
        sleep: Waits for some seconds; for tests.

    Returns:
        A handler for `Consumer.run`. It returns the result of `handler`, and raises like `retrying`.

    Raises:
        ConfigurationError: An argument is of the wrong type or out of bounds.
    """
    check_coroutine_function("handler", handler)
    policy = NoRetry() if retry is None else retry
    _check(policy, breaker, timeout, sleep)

    @functools.wraps(handler)
    async def guarded(value: Value, message: Incoming) -> bool | None:
        return await _attempts(policy, handler, (value, message), breaker, timeout, sleep)

    return guarded


def _check(policy: object, breaker: object, timeout: object, sleep: object) -> None:
    # isinstance of a runtime-checkable Protocol accepts a class as well as its instances.
    if isinstance(policy, type) or not isinstance(policy, RetryPolicy):
        raise ConfigurationError(
            f"retry must be a policy such as ExponentialRetry(), with next_delay(), not {policy!r}", option="retry"
        )
    if breaker is not None and not isinstance(breaker, CircuitBreaker):
        raise ConfigurationError(f"breaker must be a CircuitBreaker, not {breaker!r}", option="breaker")
    if timeout is not None:
        check_number("timeout", timeout, 0.001, _LONGEST, " s")
    if not callable(sleep):
        raise ConfigurationError(f"sleep must be a function, not {type(sleep).__name__}", option="sleep")


async def _attempts(
    policy: RetryPolicy,
    function: Callable[[*Arguments], Awaitable[T]],
    args: tuple[*Arguments],
    breaker: CircuitBreaker | None,
    timeout: float | None,
    sleep: Callable[[float], Awaitable[object]],
) -> T:
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout

    async def once() -> T:
        if deadline is None:
            return await started(function, *args)
        async with asyncio.timeout_at(deadline):
            return await started(function, *args)

    attempt = 0
    while True:
        attempt += 1
        try:
            # The timeout is inside the breaker's call, so that an attempt that hangs counts as a failure.
            return await (once() if breaker is None else breaker.call(once))
        except Exception as error:
            delay = policy.next_delay(attempt, error)
            if delay is None:
                # An error that the policy never retries is raised itself, not as RetriesExhausted.
                if attempt == 1 or policy.next_delay(1, error) is None:
                    raise
                raise _exhausted(attempt, error, "") from error
            if deadline is not None and loop.time() + delay >= deadline:
                raise _exhausted(attempt, error, f" in {timeout:g} s") from error
            logger.info("attempt %d failed with %s; the next one in %.3g s", attempt, type(error).__name__, delay)
        await sleep(delay)


def _exhausted(attempts: int, error: Exception, within: str) -> RetriesExhausted:
    # Without the error's text, which may show arguments of the function.
    return RetriesExhausted(
        f"gave up after {attempts} attempt{'s' if attempts > 1 else ''}{within}; the last one failed with "
        f"{type(error).__name__}",
        attempts=attempts,
    )
