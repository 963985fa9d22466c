"""Checks of options. They run when an object is made, so that a wrong option does not show only after a failure."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable
from typing import TYPE_CHECKING, TypeVar

from leveret.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


def check_number(option: str, value: object, lowest: float, highest: float, unit: str = "") -> None:
    """Raises ConfigurationError unless a value is a number within bounds. NaN is never within bounds."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigurationError(f"{option} must be a number, not {type(value).__name__}", option=option)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not lowest <= number <= highest:
        raise ConfigurationError(f"{option} is {number:g}{unit}; it must be {lowest:g} to {highest:g}", option=option)


def check_count(option: str, value: object, lowest: int, highest: int) -> None:
    """Raises ConfigurationError unless a value is a whole number within bounds."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigurationError(f"{option} must be a whole number, not {type(value).__name__}", option=option)
    if not lowest <= value <= highest:
        raise ConfigurationError(f"{option} is {value}; it must be {lowest} to {highest}", option=option)


def check_flag(option: str, value: object) -> None:
    """Raises ConfigurationError unless a value is True or False."""
    if not isinstance(value, bool):
        raise ConfigurationError(f"{option} must be True or False, not {type(value).__name__}", option=option)


def check_callable(option: str, value: object) -> None:
    """Raises ConfigurationError unless a value is a plain function. A coroutine would never be awaited."""
    if not callable(value):
        raise ConfigurationError(f"{option} must be a function, not {type(value).__name__}", option=option)
    if _is_coroutine_function(value):
        raise ConfigurationError(f"{option} must be a plain function, not an `async def`", option=option)


def check_coroutine_function(option: str, value: object) -> None:
    """Raises ConfigurationError unless a value is an `async def`. A plain function would run before it is checked."""
    if not _is_coroutine_function(value):
        raise ConfigurationError(f"{option} must be an `async def` function, not {value!r}", option=option)


def started(function: Callable[..., Awaitable[T]], *args: object, **kwargs: object) -> Awaitable[T]:
    """Calls a function that returns an awaitable.

    Raises:
        ConfigurationError: The function did not return an awaitable. No policy retries this error.
    """
    pending: object = function(*args, **kwargs)
    if not isinstance(pending, Awaitable):
        raise ConfigurationError(
            f"the function must return an awaitable; {function!r} returned {type(pending).__name__}", option="function"
        )
    return pending


def _is_coroutine_function(value: object) -> bool:
    return inspect.iscoroutinefunction(value) or (callable(value) and inspect.iscoroutinefunction(type(value).__call__))
