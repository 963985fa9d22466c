"""Handlers: what can be one."""

from __future__ import annotations

import inspect

from leveret.errors import ConfigurationError
from leveret.settings.functions import called, name_of

__all__ = ["check_handler"]


def check_handler(handler: object, queue: str, parameters: str = "(value, message)") -> None:
    """Checks that a handler can be called with two arguments: a value and a message.

    Functions, bound, static and class methods, partial functions and objects with `__call__` all can be handlers.

    Args:
        handler: What a user gave.
        queue: The queue, for the error.
        parameters: What the error calls the arguments.

    Raises:
        ConfigurationError: It cannot be called so, or is a generator.
    """
    whose = f"consumer of queue {queue!r}"
    if not callable(handler):
        raise ConfigurationError(
            f"{whose}: the handler must be a function of {parameters}, not a {type(handler).__name__}",
            option="handler",
        )
    if any(inspect.isgeneratorfunction(it) or inspect.isasyncgenfunction(it) for it in called(handler)):
        raise ConfigurationError(f"{whose}: the handler {name_of(handler)} must not be a generator", option="handler")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return  # some functions in C do not tell their signature
    try:
        signature.bind(None, None)
    except TypeError as error:
        names = list(signature.parameters)
        hint = ""
        if len(names) == 3 and names[0] in ("self", "cls"):
            hint = "; it is a method: give the one of an object, such as billing.handle"
        raise ConfigurationError(
            f"{whose}: {name_of(handler)} must take {parameters}: {error}{hint}", option="handler"
        ) from None
