"""Functions that callers pass in: which may be `async def`, and refusing those that would never be awaited."""

from __future__ import annotations

import functools
import inspect
import types
from typing import TYPE_CHECKING, Any, Final, TypeVar

from leveret.errors import ConfigurationError, printable

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["called", "close_unawaited", "is_async", "methods_of", "name_of", "plain_function", "refuse_async_methods"]

F = TypeVar("F", bound="Callable[..., Any]")

#: The flags of the code of an `async def`, which may be a generator, and of an old coroutine.
_ASYNC: Final = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE


def is_async(function: object) -> bool:
    """Returns whether calling a function gives something to await.

    It may be an `async def`, a method, partial or callable object that is one, or what Cython compiled from one.
    """
    if type(function) is types.MethodType:
        function = function.__func__
    if type(function) is types.FunctionType and not function.__code__.co_flags & _ASYNC and not vars(function):
        return False  # as nearly all: the rest costs microseconds, and marks of coroutine functions are attributes
    return hasattr(function, "_is_coroutine") or any(
        inspect.iscoroutinefunction(it) or inspect.isasyncgenfunction(it) for it in called(function)
    )


def called(function: object) -> tuple[object, ...]:
    """Returns what is called in the end, through partial functions and static methods, and its `__call__`."""
    while isinstance(function, functools.partial | staticmethod):
        function = function.func if isinstance(function, functools.partial) else function.__func__
    return (function, type(function).__call__) if callable(function) else (function,)


def plain_function(option: str, function: F, when: str) -> F:
    """Returns a function that Leveret calls without awaiting it.

    Args:
        option: The name of the argument.
        function: The function.
        when: When it is called, for the error: "for each confirm", for example.

    Raises:
        ConfigurationError: It cannot be called, or is an `async def`, whose coroutine would never run.
    """
    given: object = function
    if not callable(given):
        raise ConfigurationError(f"{option} is a {type(given).__name__}, not a function", option=option)
    if is_async(given):
        raise ConfigurationError(
            f"{option} is the `async def` function {name_of(given)}; it is called {when} and not awaited, so it must "
            "be a plain function",
            option=option,
        )
    return function


def methods_of(interface: type) -> tuple[str, ...]:
    """Returns the names of the public methods of an interface."""
    return tuple(name for name, member in vars(interface).items() if name[0] != "_" and inspect.isfunction(member))


def refuse_async_methods(option: str, value: object, interface: type) -> None:
    """Raises when an object has a method of an interface as `async def`: Leveret calls these and does not await them.

    Args:
        option: The name of the argument that it was given as.
        value: The object, or None.
        interface: The interface.

    Raises:
        ConfigurationError: A method is an `async def`.
    """
    for name in methods_of(interface):
        if is_async(getattr(value, name, None)):
            raise ConfigurationError(
                f"{option} is a {type(value).__name__} with an `async def` {name}(), which is not awaited",
                option=option,
            )


def close_unawaited(result: object) -> bool:
    """Closes a coroutine that a plain function returned and that will not be awaited; returns whether it was one."""
    if not inspect.iscoroutine(result):
        return False
    result.close()
    return True


def name_of(value: object) -> str:
    """Returns the name of a function or class for a text, or the type of another value, whose repr may be anything."""
    name: object = getattr(value, "__qualname__", None)
    return printable(name, 100) if isinstance(name, str) else f"a {type(value).__name__}"
