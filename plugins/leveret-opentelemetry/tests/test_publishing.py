"""The spans and headers of single calls: names, outcomes, errors, and what is left alone."""

from __future__ import annotations

import asyncio
import traceback
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.propagators.textmap import TextMapPropagator, default_getter, default_setter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind, StatusCode

import leveret
from leveret.errors import (
    BackpressureError,
    ConfigurationError,
    EncodeFailed,
    MessageNacked,
    MessageReturned,
    OperationTimeout,
)
from leveret_opentelemetry import TracingPublisher

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def take(client: leveret.Client, queue: str = "work") -> leveret.Message:
    async with client.consumer(queue) as consumer:
        message = await consumer.get()
        assert message is not None
        message.ack()
        return message


class Stub:
    """A publisher between the tracing one and nothing: for outcomes that no broker gives on request."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.options: dict[str, Any] = {}

    async def publish(self, value: Any, routing_key: str = "", **options: Any) -> leveret.Receipt:
        self.options = options
        if self.error is not None:
            raise self.error
        return leveret.Receipt(1)

    def publish_nowait(self, value: Any, routing_key: str = "", **options: Any) -> Any:
        raise BackpressureError("not sent: 10000 publishings wait for confirms")

    async def publish_batch(self, values: Any, routing_key: str = "", **options: Any) -> leveret.BatchResult:
        if self.error is not None:
            raise self.error
        return leveret.BatchResult(count=0, confirmed=0, elapsed=0.0)

    async def flush(self, timeout: float | None = None) -> None:
        raise OperationTimeout(f"timeout {timeout}")


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("exchange", "routing_key", "name", "destination"),
    [
        ("orders", "order.17.created", "publish orders", "orders:order.17.created"),
        ("orders", "", "publish orders", "orders"),
        ("", "work", "publish work", "work"),
        ("", "", "publish", "amq.default"),
        ("amq.topic", "a.b", "publish amq.topic", "amq.topic:a.b"),
        ("", "amq.gen-JzTY20BRgKO", "publish", "amq.gen-JzTY20BRgKO"),
    ],
    ids=["exchange and key", "exchange", "queue", "neither", "predeclared exchange", "server-named queue"],
)
async def test_span_is_named_after_exchange_or_queue(
    exchange: Any, routing_key: Any, name: str, destination: str, tracer_provider: TracerProvider, spans: Any
) -> None:
    await TracingPublisher(Stub(), tracer_provider).publish(1, routing_key, exchange=exchange)

    span = spans.one(name)
    assert span.attributes["messaging.destination.name"] == destination
    assert span.attributes.get("messaging.rabbitmq.destination.routing_key", "") == routing_key
    assert span.attributes.get("messaging.destination.anonymous", False) == routing_key.startswith("amq.gen-")


async def test_exchange_is_the_producers_when_the_call_names_none(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    async with client.producer(exchange="orders") as producer:
        publisher = TracingPublisher(producer, tracer_provider)
        await publisher.publish(1, "a")
        await publisher.publish(1, "work", exchange="")

    assert spans.names == ["publish orders", "publish work"]


async def test_exchange_can_be_told_when_the_publisher_has_no_settings(
    tracer_provider: TracerProvider, spans: Any
) -> None:
    await TracingPublisher(Stub(), tracer_provider, exchange="orders").publish(1, "a")

    assert spans.names == ["publish orders"]


async def test_attributes_can_be_exported_when_names_are_not_utf_8(tracer_provider: TracerProvider, spans: Any) -> None:
    await TracingPublisher(Stub(), tracer_provider).publish(1, "caf\udce9\n", message_id="\udcff")

    (span,) = spans.named(spans.names[0])
    assert r"\udce9\n" in span.name
    for value in (span.name, *span.attributes.values()):
        assert str(value).encode()


# ---------------------------------------------------------------------- headers


async def test_headers_are_kept_and_the_mapping_is_not_changed_when_the_context_is_added(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    headers = {"tenant": 7, "nested": {"a": [1, 2]}}
    async with client.producer() as producer:
        publisher = TracingPublisher(producer, tracer_provider)
        await publisher.publish(1, "work", headers=MappingProxyType(headers))
    message = await take(client)

    context = spans.one("publish work").context
    assert headers == {"tenant": 7, "nested": {"a": [1, 2]}}
    assert message.headers == {
        "tenant": 7,
        "nested": {"a": [1, 2]},
        "traceparent": f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}",
    }


async def test_context_of_the_caller_stays_and_is_linked_when_the_headers_have_one(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    headers = {"traceparent": PARENT, "tracestate": "vendor=1"}
    async with client.producer() as producer:
        await TracingPublisher(producer, tracer_provider).publish(1, "work", headers=headers)
    message = await take(client)

    span = spans.one("publish work")
    assert message.headers == headers
    assert span.kind is SpanKind.CLIENT
    assert [f"{link.context.span_id:016x}" for link in span.links] == ["b7ad6b7169203331"]
    assert span.parent is None


async def test_header_of_the_caller_wins_when_it_is_no_valid_context(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    async with client.producer() as producer:
        publisher = TracingPublisher(producer, tracer_provider)
        await publisher.publish(1, "work", headers={"traceparent": "mine"})

    assert (await take(client)).headers["traceparent"] == "mine"
    assert spans.one("publish work").kind is SpanKind.PRODUCER


async def test_context_is_propagated_when_the_trace_is_not_sampled(
    client: leveret.Client, exporter: InMemorySpanExporter
) -> None:
    provider = TracerProvider(sampler=ALWAYS_OFF, shutdown_on_exit=False)
    async with client.producer() as producer:
        await TracingPublisher(producer, provider).publish(1, "work")

    flags = int((await take(client)).headers["traceparent"].rpartition("-")[2], 16)
    assert not flags & trace.TraceFlags.SAMPLED
    assert exporter.get_finished_spans() == ()


async def test_options_are_untouched_when_there_is_no_context_to_add() -> None:
    stub = Stub()

    await TracingPublisher(stub, trace.NoOpTracerProvider()).publish(1, "work", priority=3)

    assert stub.options == {"priority": 3}


async def test_headers_are_refused_by_the_producer_when_they_are_no_mapping(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    async with client.producer() as producer:
        with pytest.raises(EncodeFailed):
            await TracingPublisher(producer, tracer_provider).publish(1, "work", headers=17)

    assert spans.one("publish work").status.status_code is StatusCode.ERROR


class OneHeader(TextMapPropagator):
    """A propagator of another format."""

    fields: Any = frozenset({"x-trace"})

    def inject(self, carrier: Any, context: Any = None, setter: Any = default_setter) -> None:
        span = trace.get_current_span(context).get_span_context()
        setter.set(carrier, "x-trace", f"{span.trace_id:x}")

    def extract(self, carrier: Any, context: Any = None, getter: Any = default_getter) -> Any:
        return context


async def test_headers_are_the_propagators_when_another_one_is_given(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    async with client.producer() as producer:
        await TracingPublisher(producer, tracer_provider, OneHeader()).publish(1, "work")

    assert (await take(client)).headers == {"x-trace": f"{spans.one('publish work').context.trace_id:x}"}


# ---------------------------------------------------------------------- outcomes and errors


async def test_span_says_returned_when_no_queue_took_the_message(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    async with client.producer(mandatory=True) as producer:
        with pytest.raises(MessageReturned) as caught:
            await TracingPublisher(producer, tracer_provider).publish(1, "nowhere")

    span = spans.one("publish nowhere")
    assert span.attributes["leveret.outcome"] == "returned"
    assert span.attributes["error.type"] == "leveret.errors.MessageReturned"
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == str(caught.value)
    assert span.events == ()


async def test_span_says_nacked_when_the_broker_refuses(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    await client.declare(leveret.Topology().queue("full", leveret.Classic(max_length=1, overflow="reject-publish")))
    async with client.producer() as producer:
        publisher = TracingPublisher(producer, tracer_provider)
        await publisher.publish(1, "full")
        with pytest.raises(MessageNacked):
            await publisher.publish(2, "full")

    confirmed, nacked = spans.named("publish full")
    assert confirmed.attributes["leveret.outcome"] == "confirmed"
    assert nacked.attributes["leveret.outcome"] == "nacked"
    assert nacked.attributes["error.type"] == "leveret.errors.MessageNacked"


async def test_span_says_unknown_when_the_producer_has_no_confirms(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    async with client.producer(confirms=False) as producer:
        await TracingPublisher(producer, tracer_provider).publish(1, "work")

    span = spans.one("publish work")
    assert span.attributes["leveret.outcome"] == "unknown"
    assert span.status.is_unset


async def test_batch_is_an_error_with_the_first_failure_when_some_fail(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    async with client.producer() as producer:
        result = await TracingPublisher(producer, tracer_provider).publish_batch([1, object(), 3, object()], "work")

    span = spans.one("publish work")
    assert sorted(result.failures) == [1, 3]
    assert span.attributes["messaging.batch.message_count"] == 4
    assert span.attributes["leveret.batch.confirmed_count"] == 2
    assert span.attributes["leveret.batch.failed_count"] == 2
    assert span.attributes["error.type"] == "leveret.errors.EncodeFailed"
    assert span.status.description == "2 of 4 publishings failed"


async def test_batch_is_counted_when_it_has_no_messages(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    async with client.producer() as producer:
        result = await TracingPublisher(producer, tracer_provider).publish_batch([], "work")

    assert result
    assert spans.one("publish work").attributes["messaging.batch.message_count"] == 0


async def test_batch_span_tells_only_the_type_when_the_iterable_raises(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    def values() -> Iterator[int]:
        yield 1
        raise LookupError("card 4111")

    async with client.producer() as producer:
        with pytest.raises(LookupError):
            await TracingPublisher(producer, tracer_provider).publish_batch(values(), "work")

    span = spans.one("publish work")
    assert span.attributes["error.type"] == "LookupError"
    assert span.status.description is None
    assert span.events == ()


async def test_span_says_why_when_publish_nowait_is_refused(tracer_provider: TracerProvider, spans: Any) -> None:
    with pytest.raises(BackpressureError):
        TracingPublisher(Stub(), tracer_provider).publish_nowait(1, "work")

    span = spans.one("publish work")
    assert span.attributes["error.type"] == "leveret.errors.BackpressureError"
    assert "leveret.outcome" not in span.attributes


async def test_no_part_of_a_value_is_in_the_span_when_it_cannot_be_encoded(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    class Card:
        def __repr__(self) -> str:
            return "card 4111"

    def enc(value: object) -> bytes:
        raise ValueError(f"cannot encode {value!r}")

    async with client.producer() as producer:
        publisher = TracingPublisher(producer, tracer_provider)
        with pytest.raises(EncodeFailed):
            await publisher.publish({"card": Card()}, "work")
    with pytest.raises(ValueError, match="card 4111"):
        await TracingPublisher(Stub(ValueError("cannot encode card 4111")), tracer_provider).publish(1, "work")

    for span in spans.named("publish work"):
        assert "card 4111" not in span.to_json()
        assert span.status.status_code is StatusCode.ERROR


async def test_span_ends_as_an_error_when_publish_is_cancelled(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    entered = asyncio.Event()

    class Hanging(Stub):
        async def publish(self, value: Any, routing_key: str = "", **options: Any) -> leveret.Receipt:
            entered.set()
            await asyncio.get_running_loop().create_future()
            raise AssertionError

    task = asyncio.create_task(TracingPublisher(Hanging(), tracer_provider).publish(1, "work"))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    span = spans.one("publish work")
    assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"
    assert span.status.status_code is StatusCode.ERROR


async def test_error_is_the_publishers_own_when_it_raises(tracer_provider: TracerProvider) -> None:
    error = MessageNacked("refused", outcome=leveret.Outcome.NACKED)

    with pytest.raises(MessageNacked) as caught:
        await TracingPublisher(Stub(error), tracer_provider).publish(1, "work")

    assert caught.value is error
    assert any(frame.name == "publish" for frame in traceback.extract_tb(caught.value.__traceback__))


async def test_flush_is_passed_on_without_a_span(tracer_provider: TracerProvider, spans: Any) -> None:
    with pytest.raises(OperationTimeout, match="timeout 2"):
        await TracingPublisher(Stub(), tracer_provider).flush(2.0)

    assert spans.names == []


# ---------------------------------------------------------------------- wrappers and arguments


async def test_one_trace_is_made_when_a_tracing_publisher_wraps_another(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    async with client.producer() as producer:
        await TracingPublisher(TracingPublisher(producer, tracer_provider), tracer_provider, exchange="").publish(
            1, "work"
        )

    inner, outer = spans.named("publish work")
    assert inner.parent.span_id == outer.context.span_id
    assert f"{outer.context.span_id:016x}" in (await take(client)).headers["traceparent"]


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"publisher": object()}, "publisher"),
        ({"publisher": Stub(), "tracer_provider": "console"}, "tracer_provider"),
        ({"publisher": Stub(), "propagator": "b3"}, "propagator"),
    ],
)
def test_argument_is_refused_when_it_is_something_else(arguments: Any, option: str) -> None:
    with pytest.raises(ConfigurationError, match=option) as caught:
        TracingPublisher(**arguments)

    assert caught.value.option == option
