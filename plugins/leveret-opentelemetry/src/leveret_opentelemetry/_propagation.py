"""Trace contexts in and out of AMQP headers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import Getter

from leveret_opentelemetry._conventions import logger

if TYPE_CHECKING:
    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import SpanContext

__all__ = ["creation_context", "extract", "headers_with_context"]

#: The longest values that are looked at, in characters. W3C Trace Context section 3.3.1.5 asks for 512 of tracestate,
#: and W3C Baggage section 3.3.1 for 8192.
_LONGEST: Final = 512
_LONGEST_BAGGAGE: Final = 8192


class _Headers(Getter[Mapping[str, Any]]):
    """Shows a propagator only what can be a trace context: short printable text, whatever else a sender put there.

    Propagators log what they cannot parse, and some fail on what is not text.
    """

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        if isinstance(value, bytes):  # what some clients make of strings
            value = value.decode("ascii", "replace")
        if not isinstance(value, str) or len(value) > (_LONGEST_BAGGAGE if key == "baggage" else _LONGEST):
            return None
        return [value] if value.isascii() and value.isprintable() else None

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return list(carrier)


_HEADERS: Final = _Headers()


def extract(propagator: TextMapPropagator | None, headers: object, context: Context) -> tuple[Context, SpanContext]:
    """Reads the context in which a message was made.

    Never raises: headers are foreign data, and whatever is wrong with them, the message must be handled.

    Args:
        propagator: Reads it; None for the process's.
        headers: The message's headers.
        context: What to add it to.

    Returns:
        The context with what was found, and the sender's span, which is not valid if there was none. The first has
        the span that it had before in that case.
    """
    if isinstance(headers, Mapping) and headers:
        try:
            found = (propagator or propagate.get_global_textmap()).extract(headers, context, _HEADERS)
            span = trace.get_current_span(found)
            before = trace.get_current_span(context)
            if span is not before:
                if span.get_span_context().is_valid:
                    return found, span.get_span_context()
                found = trace.set_span_in_context(before, found)  # some propagators put an invalid one there
            return found, trace.INVALID_SPAN_CONTEXT
        except Exception as error:
            logger.debug("the trace context of a message is ignored: %s", type(error).__name__, exc_info=True)
    return context, trace.INVALID_SPAN_CONTEXT


def creation_context(propagator: TextMapPropagator | None, headers: object) -> SpanContext:
    """The span in headers that a publisher was called with; not valid if there is none."""
    return extract(propagator, headers, Context())[1]


def headers_with_context(
    propagator: TextMapPropagator | None, headers: Mapping[str, Any] | None, context: Context
) -> Mapping[str, Any] | None:
    """Adds a context to headers.

    Args:
        propagator: Writes it; None for the process's.
        headers: The caller's, which are not changed, and win where names are equal.
        context: The context.

    Returns:
        New headers, or the caller's own when there is nothing to add.
    """
    injected: dict[str, Any] = {}
    (propagator or propagate.get_global_textmap()).inject(injected, context)
    if not injected:
        return headers
    return {**injected, **headers} if headers else injected
