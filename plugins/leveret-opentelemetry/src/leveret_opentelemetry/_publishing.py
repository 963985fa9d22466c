"""Spans around publishing."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.trace import Link, SpanKind

from leveret.errors import LeveretError, PublishError
from leveret_opentelemetry._conventions import (
    CONFIRMED_COUNT,
    CONVERSATION_ID,
    FAILED_COUNT,
    MESSAGE_COUNT,
    MESSAGE_ID,
    OUTCOME,
    SCHEMA_URL,
    SCOPE,
    __version__,
    checked,
    describe,
    error_text,
    set_error,
    text,
)
from leveret_opentelemetry._propagation import creation_context, headers_with_context

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Iterator

    from opentelemetry.propagators.textmap import TextMapPropagator
    from opentelemetry.trace import Span, TracerProvider

    from leveret import Receipt
    from leveret.message import BatchResult
    from leveret.plugins import Publisher

__all__ = ["TracingPublisher"]


class TracingPublisher:
    """Publishes through another publisher, with a span for each call. The span's context goes into the headers.

    * `publish`: a span from the call to the outcome.
    * `publish_batch`: one span for the batch. All its messages have the span's context.
    * `publish_nowait`: a span for the call only. It ends before the outcome is known, with outcome "pending".

    The spans are PRODUCER spans of OpenTelemetry's conventions for RabbitMQ. They have the outcomes of publishings, and
    never a body. The caller's headers are kept, and their mapping is not changed. If they have a trace context already,
    as when a message is forwarded, the context stays, and the span (then a CLIENT span) is linked to it.

    To get one span for all attempts, wrap a retrying publisher with this class; to get one for each attempt, the
    reverse.

    Args:
        publisher: A `leveret.Producer` or another wrapper.
        tracer_provider: The tracer provider; by default that of the process.
        propagator: The propagator that writes the context; by default that of the process: W3C `traceparent`,
            `tracestate` and `baggage`, unless `OTEL_PROPAGATORS` is set.
        exchange: The exchange to name when a call does not; by default that of the producer's settings. Only publishers
            without settings need it.

    Raises:
        ConfigurationError: An argument has the wrong type.
    """

    def __init__(
        self,
        publisher: Publisher,
        tracer_provider: TracerProvider | None = None,
        propagator: TextMapPropagator | None = None,
        *,
        exchange: str | None = None,
    ) -> None:
        checked("publisher", publisher, "publish", "publish_nowait", "publish_batch", "flush")
        if tracer_provider is not None:
            checked("tracer_provider", tracer_provider, "get_tracer")
        if propagator is not None:
            checked("propagator", propagator, "inject", "extract")
        self._publisher = publisher
        self._propagator = propagator
        self._exchange = getattr(getattr(publisher, "settings", None), "exchange", "") if exchange is None else exchange
        self._tracer = trace.get_tracer(SCOPE, __version__, tracer_provider, SCHEMA_URL)

    def __repr__(self) -> str:
        return f"<TracingPublisher {self._publisher!r}>"

    async def publish(self, value: Any, routing_key: str = "", **options: Any) -> Receipt:
        """Publishes one value and waits for its outcome; see `leveret.Producer.publish`."""
        with self._span(routing_key, options, single=True) as span:
            receipt = await self._publisher.publish(value, routing_key, **options)
            span.set_attribute(OUTCOME, receipt.outcome.name.lower())
            return receipt

    def publish_nowait(self, value: Any, routing_key: str = "", **options: Any) -> Awaitable[Receipt]:
        """Publishes one value without waiting; see `leveret.Producer.publish_nowait`.

        Returns:
            The publisher's own ticket. The span does not have its outcome; use `publish` for that.
        """
        with self._span(routing_key, options, single=True) as span:
            ticket = self._publisher.publish_nowait(value, routing_key, **options)
            span.set_attribute(OUTCOME, "pending")
            return ticket

    async def publish_batch(self, values: Iterable[Any], routing_key: str = "", **options: Any) -> BatchResult:
        """Publishes values and waits for all their outcomes; see `leveret.Producer.publish_batch`.

        If a publishing fails, the span has the status error, with the type of the first failure.
        """
        with self._span(routing_key, options, single=False) as span:
            if isinstance(values, Sized):
                span.set_attribute(MESSAGE_COUNT, len(values))
            result = await self._publisher.publish_batch(values, routing_key, **options)
            span.set_attribute(MESSAGE_COUNT, result.count)
            span.set_attribute(CONFIRMED_COUNT, result.confirmed)
            span.set_attribute(FAILED_COUNT, len(result.failures))
            if result.failures:
                first = result.failures[min(result.failures)]
                set_error(span, first, f"{len(result.failures)} of {result.count} publishings failed")
            return result

    async def flush(self, timeout: float | None = None) -> None:
        """Waits for the outcomes of all publishings, without a span; see `leveret.Producer.flush`."""
        await self._publisher.flush(timeout)

    @contextmanager
    def _span(self, routing_key: str, options: dict[str, Any], *, single: bool) -> Iterator[Span]:
        """Makes a span, sets it as the current span, and adds its context to the headers in `options`."""
        exchange = options.get("exchange", self._exchange)
        name, attributes = describe("publish", "send", text(exchange), text(routing_key))
        if single:
            for attribute, option in ((MESSAGE_ID, "message_id"), (CONVERSATION_ID, "correlation_id")):
                if value := text(options.get(option)):
                    attributes[attribute] = value
        headers = options.get("headers")
        custom = creation_context(self._propagator, headers)
        span = self._tracer.start_span(
            name,
            kind=SpanKind.CLIENT if custom.is_valid else SpanKind.PRODUCER,
            attributes=attributes,
            links=[Link(custom)] if custom.is_valid else None,
        )
        context = contexts.get_current()
        if span.get_span_context().is_valid:  # without an SDK, older APIs drop the context, so it is set here
            context = trace.set_span_in_context(span, context)
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            if not custom.is_valid and (headers is None or isinstance(headers, Mapping)):
                # Other types than mappings are left to the producer, which refuses them.
                enriched = headers_with_context(self._propagator, headers, context)
                if enriched is not headers:
                    options["headers"] = enriched
            try:
                yield span
            except BaseException as error:
                if isinstance(error, PublishError):
                    span.set_attribute(OUTCOME, error.outcome.name.lower())
                # No exception event: a traceback has the texts of causes, which may quote the value. Texts of Leveret's
                # own errors never do.
                set_error(span, error, error_text(error) if isinstance(error, LeveretError) else None)
                raise
