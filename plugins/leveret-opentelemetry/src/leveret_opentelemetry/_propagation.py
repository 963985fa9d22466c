"""Reads and writes trace contexts in AMQP headers."""

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

#: The longest values that are read, in characters. W3C Trace Context section 3.3.1.5 requires 512 for tracestate, and
#: W3C Baggage section 3.3.1 requires 8192.
_LONGEST: Final = 512
_LONGEST_BAGGAGE: Final = 8192


class _Headers(Getter[Mapping[str, Any]]):
    """Gives a propagator only headers with short printable text, which can be a trace context.

    Senders may put any value into a header. Propagators log values that they cannot parse, and some fail on values that
    are not text.
    """

    def get(self, carrier: Mapping[str, Any], key: str) -> list[str] | None:
        value = carrier.get(key)
        if isinstance(value, bytes):  # some clients send strings as bytes
            value = value.decode("ascii", "replace")
        if not isinstance(value, str) or len(value) > (_LONGEST_BAGGAGE if key == "baggage" else _LONGEST):
            return None
        return [value] if value.isascii() and value.isprintable() else None

    def keys(self, carrier: Mapping[str, Any]) -> list[str]:
        return list(carrier)


_HEADERS: Final = _Headers()


def extract(propagator: TextMapPropagator | None, headers: object, context: Context) -> tuple[Context, SpanContext]:
    """Reads the trace context of a message's sender.

    Never raises: a message with invalid headers must be handled, too.

    Args:
        propagator: The propagator; None for that of the process.
        headers: The message's headers.
        context: The context to extend.

    Returns:
        The extended context, and the sender's span. Without a sender's span, the context keeps its own span, and the
        returned span is not valid.
    """
    if isinstance(headers, Mapping) and headers:
        try:
            found = (propagator or propagate.get_global_textmap()).extract(headers, context, _HEADERS)
            span = trace.get_current_span(found)
            before = trace.get_current_span(context)
            if span is not before:
                if span.get_span_context().is_valid:
                    return found, span.get_span_context()
                found = trace.set_span_in_context(before, found)  # some propagators set an invalid span
            return found, trace.INVALID_SPAN_CONTEXT
        except Exception as error:
            logger.debug("the trace context of a message is ignored: %s", type(error).__name__, exc_info=True)
    return context, trace.INVALID_SPAN_CONTEXT


def creation_context(propagator: TextMapPropagator | None, headers: object) -> SpanContext:
    """Returns the span in the headers of a publisher's call; not valid if there is none."""
    return extract(propagator, headers, Context())[1]


def headers_with_context(
    propagator: TextMapPropagator | None, headers: Mapping[str, Any] | None, context: Context
) -> Mapping[str, Any] | None:
    """Adds a context to headers.

    Args:
        propagator: The propagator; None for that of the process.
        headers: The caller's headers. They are not changed, and take precedence.
        context: The context.

    Returns:
        New headers; the caller's own when there is nothing to add.
    """
    injected: dict[str, Any] = {}
    (propagator or propagate.get_global_textmap()).inject(injected, context)
    if not injected:
        return headers
    return {**injected, **headers} if headers else injected
