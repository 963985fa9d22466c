"""Spans around handlers."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind

from leveret.errors import ConfigurationError
from leveret.plugins import Delivery
from leveret_opentelemetry._conventions import (
    CONVERSATION_ID,
    DELIVERY_TAG,
    MESSAGE_ID,
    SCHEMA_URL,
    SCOPE,
    __version__,
    checked,
    describe,
    error_text,
    logger,
    record_exception,
    set_error,
    text,
)
from leveret_opentelemetry._propagation import extract

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import TracerProvider

__all__ = ["traced"]

T = TypeVar("T")
D = TypeVar("D", bound=Delivery)
R = TypeVar("R")


def traced(
    handler: Callable[[T, D], Awaitable[R]],
    tracer_provider: TracerProvider | None = None,
    propagator: TextMapPropagator | None = None,
    *,
    queue: str = "",
    linked: bool = False,
    record_exceptions: bool = True,
) -> Callable[[T, D], Coroutine[Any, Any, R]]:
    """Wraps a consumer's handler with a span.

    The span is a CONSUMER span of OpenTelemetry's conventions for RabbitMQ. It is the current span while the handler
    runs. It is a child of the publishing's span, whose context the message's headers have, and is linked to that span
    and to the span that was current when the handler was called. Messages of a batch are children of the batch's span.
    Invalid headers are ignored.

    The wrapper returns the handler's result. It records and re-raises the handler's exception, also cancellation.

    Args:
        handler: A handler for `Consumer.run`: `async def handler(value, message)`, or an object with such a `__call__`.
        tracer_provider: The tracer provider; by default that of the process.
        propagator: The propagator that reads the context; by default that of the process.
        queue: The consumer's queue for the span's name. `leveret.plugins.Delivery` does not have it.
        linked: True: the span is not a child of the publishing's span. It begins a trace of its own, or is a child of
            the current span, and is linked to the publishing's span. For batches of thousands of messages, and for
            messages that wait for hours.
        record_exceptions: True: records exceptions with text and traceback. The handler's text may quote the message.
            False: records the type only.

    Returns:
        A coroutine function with the same parameters.

    Raises:
        ConfigurationError: An argument has the wrong type.

    Example:
        >>> @traced
        ... async def handler(order, message):
        ...     print(order)
    """
    candidate: object = handler  # the type promises a coroutine function; a caller without a type checker may not
    if not (
        inspect.iscoroutinefunction(candidate)
        or (callable(candidate) and inspect.iscoroutinefunction(type(candidate).__call__))
    ):
        raise ConfigurationError(
            f"the handler must be an `async def` function of (value, message), not {handler!r}", option="handler"
        )
    if tracer_provider is not None:
        checked("tracer_provider", tracer_provider, "get_tracer")
    if propagator is not None:
        checked("propagator", propagator, "inject", "extract")
    tracer = trace.get_tracer(SCOPE, __version__, tracer_provider, SCHEMA_URL)

    @functools.wraps(handler, updated=())  # not the handler's __dict__: that of an object is its state
    async def handle(value: T, message: D) -> R:
        ambient = contexts.get_current()
        name, attributes, headers = _read(message, queue)
        context, creation = extract(propagator, headers, ambient)
        links = [Link(creation)] if creation.is_valid else []
        outer = trace.get_current_span(ambient)
        if creation.is_valid:
            if linked:
                context = trace.set_span_in_context(outer, context)
            elif outer.get_span_context().is_valid:
                links.append(Link(outer.get_span_context()))
        span = tracer.start_span(name, context, SpanKind.CONSUMER, attributes, links)
        if span.get_span_context().is_valid:  # without an SDK, older APIs drop the context, so it is set here
            context = trace.set_span_in_context(span, context)
        token = contexts.attach(context)
        try:
            return await handler(value, message)
        except BaseException as error:
            if span.is_recording():
                set_error(span, error, error_text(error) if record_exceptions else None)
                if record_exceptions and isinstance(error, Exception):
                    record_exception(span, error)
            raise
        finally:
            contexts.detach(token)
            span.end()

    return handle


def _read(message: Delivery, queue: str) -> tuple[str, dict[str, Any], object]:
    """Returns the span's name and attributes for a message, and the message's headers."""
    name, attributes = describe("process", "process", text(message.exchange), text(message.routing_key), text(queue))
    attributes[DELIVERY_TAG] = message.delivery_tag
    try:
        # Properties are decoded at the first access, and may be malformed.
        for attribute, value in ((MESSAGE_ID, message.message_id), (CONVERSATION_ID, message.correlation_id)):
            if printed := text(value):
                attributes[attribute] = printed
        return name, attributes, message.headers
    except Exception as error:
        logger.debug("the properties of a message are ignored: %s", type(error).__name__, exc_info=True)
        return name, attributes, None
