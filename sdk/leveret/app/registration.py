"""Registrations: handlers with their queues and options, checked when they are registered."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from leveret.client.client import Client
from leveret.errors import ConfigurationError
from leveret.settings import ConsumerSettings
from leveret.settings.names import refuse_unknown
from leveret.settings.rules import rules_of
from leveret.wire.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["INFERRED", "Registration", "annotated_model", "check_handler", "check_options", "checked_hook", "name_of"]

H = TypeVar("H", bound="Callable[..., Any]")

#: Says that a consumer's model is the annotation of its handler's first parameter.
INFERRED: Final = object()


@dataclass(frozen=True, slots=True)
class Registration:
    """A handler and what it consumes.

    Attributes:
        queue: The queue.
        handler: The function that was decorated.
        model: What values are made into; None for plain values.
        settings: All options at once; None for those of the app's target.
        options: Single options, over those of `settings`.
    """

    queue: str
    handler: Callable[..., Any]
    model: Any
    settings: ConsumerSettings | None
    options: dict[str, Any]


def check_options(settings: object, options: dict[str, Any]) -> None:
    """Checks the options of `Client.consumer` as far as that is possible without its plugins.

    Raises:
        ConfigurationError: An option is unknown or out of range, or the settings are none of a consumer.
    """
    if not isinstance(settings, ConsumerSettings):
        raise ConfigurationError(
            f"settings is of type {type(settings).__name__}, not ConsumerSettings", option="settings"
        )
    # The other keyword arguments of `Client.consumer` are checked by it, when the app starts.
    parameters = inspect.signature(Client.consumer).parameters.values()
    others = {it.name for it in parameters if it.kind is inspect.Parameter.KEYWORD_ONLY}
    refuse_unknown(options, (*rules_of(ConsumerSettings), *others))
    settings.replace(**{name: value for name, value in options.items() if name not in others})


def check_handler(handler: object, queue: str) -> None:
    """Checks that a handler can be called with a value and a message.

    Raises:
        ConfigurationError: It cannot.
    """
    if not callable(handler):
        raise ConfigurationError(
            f"consumer of queue {queue!r}: the handler is a {type(handler).__name__}, not a function", option="handler"
        )
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return  # some functions in C do not tell their signature
    try:
        signature.bind(None, None)
    except TypeError as error:
        raise ConfigurationError(
            f"consumer of queue {queue!r}: {name_of(handler)} must take (value, message): {error}", option="handler"
        ) from None


def annotated_model(handler: Callable[..., Any]) -> Any:
    """Returns the annotation of a handler's first parameter; None when it means plain values or cannot be resolved."""
    try:
        first = next(iter(inspect.signature(handler).parameters.values()))
        inner: Any = handler
        while isinstance(inner, functools.partial):
            inner = inner.func
        inner = inspect.unwrap(inner if inspect.isroutine(inner) else type(inner).__call__)
        # Only this one: the others may be names that are there for type checkers only.
        alone = types.SimpleNamespace(__annotations__={first.name: first.annotation})
        model = typing.get_type_hints(alone, inner.__globals__, include_extras=True)[first.name]
    except Exception:
        # An annotation is any expression, and fails as one.
        return None
    nothing = (inspect.Parameter.empty, Any, object, type(None), Message)
    return None if isinstance(model, TypeVar) or any(model is it for it in nothing) else model


def checked_hook(hook: H, what: str) -> H:
    """Returns a start-up or shutdown hook.

    Raises:
        ConfigurationError: It is not callable; `what` is the decorator's name.
    """
    candidate: object = hook
    if not callable(candidate):
        raise ConfigurationError(f"{what} takes a function, not a {type(hook).__name__}", option=what)
    return hook


def name_of(function: object) -> str:
    """Returns a function's name for logs and errors."""
    return getattr(function, "__qualname__", None) or repr(function)
