"""Registrations: handlers with their queues and options, checked when they are registered."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from leveret.client.client import Client
from leveret.consuming.handlers import name_of
from leveret.errors import ConfigurationError, printable
from leveret.settings import ConsumerSettings
from leveret.wire.message import Message

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["INFERRED", "Registration", "annotated_model", "check_options", "check_shared_queue", "checked_hook"]

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

    def decoding(self, option: str) -> object:
        """Returns an option, as far as the registration says it; None where that is the app's target."""
        given = self.options.get(option)
        if given is None and self.settings is not None:
            given = getattr(self.settings, option)
        return (tuple(given) if isinstance(given, Iterable) and not isinstance(given, str) else given) or None


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
    settings.replace(**{name: value for name, value in options.items() if name not in others})


def check_shared_queue(new: Registration, others: Iterable[Registration]) -> None:
    """Checks that the handlers of one queue decode its messages alike: each gets a part of them, whatever they are.

    Raises:
        ConfigurationError: The handler is registered for its queue already, or another one of the queue has another
            model, or other options of decoding.
    """
    for it in others:
        if it.queue != new.queue:
            continue
        if it.handler == new.handler:
            raise ConfigurationError(
                f"{name_of(new.handler)} is registered for queue {new.queue!r} already; `concurrency` runs it several "
                "times at once",
                option="handler",
            )
        if it.model != new.model:
            raise ConfigurationError(
                f"queue {new.queue!r} has the handler {name_of(it.handler)} with model {_model_name(it.model)}; "
                f"{name_of(new.handler)} has {_model_name(new.model)}: each would get messages of the other, and park "
                "them. Use one model, such as a union, or a queue for each",
                option="model",
            )
        for option in ("serializer", "accept"):
            if it.decoding(option) != new.decoding(option):
                raise ConfigurationError(
                    f"queue {new.queue!r} has the handler {name_of(it.handler)} with another {option} than "
                    f"{name_of(new.handler)}: each would get messages that only the other decodes",
                    option=option,
                )


def _model_name(model: Any) -> str:
    return "none" if model is None else getattr(model, "__qualname__", None) or printable(repr(model), 80)


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
