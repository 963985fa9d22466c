"""From the span of whoever publishes, through the broker, to the handler's: over an embedded broker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.context import attach, detach
from opentelemetry.trace import SpanKind

import leveret
from leveret_opentelemetry import TracingPublisher, traced

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from opentelemetry.sdk.trace import TracerProvider

    Handle = Callable[..., Callable[[Any, Any], Awaitable[Any]]]

Handler = Any


async def consume(client: leveret.Client, handler: Handler, count: int, **options: Any) -> None:
    """Runs a handler until `count` messages came back from it or raised."""
    consumer = client.consumer("work", **options)
    left = count

    class Counted:
        async def __call__(self, value: Any, message: leveret.Message) -> Any:
            nonlocal left
            try:
                return await handler(value, message)
            finally:
                left -= 1
                if not left:
                    consumer.stop()

    await consumer.run(Counted())


async def nothing(value: Any, message: leveret.Message) -> None:
    pass


@pytest.fixture
def handle(tracer_provider: TracerProvider) -> Handle:
    """Wraps a handler as a service would."""
    return lambda handler, **options: traced(handler, tracer_provider, queue="work", **options)


async def test_trace_goes_from_outer_span_to_handler_when_one_message_is_published(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any, handle: Handle
) -> None:
    inside = []

    async def handler(value: Any, message: leveret.Message) -> None:
        inside.append(trace.get_current_span().get_span_context())

    async with client.producer(exchange="orders") as producer:
        publisher = TracingPublisher(producer, tracer_provider)
        with tracer_provider.get_tracer("test").start_as_current_span("outer"):
            receipt = await publisher.publish({"id": 1}, "order.created", message_id="m-1", correlation_id="c-1")
    await consume(client, handle(handler), 1)

    outer, publish, process = spans.one("outer"), spans.one("publish orders"), spans.one("process work")
    assert receipt.outcome is leveret.Outcome.CONFIRMED
    assert publish.parent.span_id == outer.context.span_id
    assert process.parent.span_id == publish.context.span_id
    assert process.parent.is_remote
    assert len({span.context.trace_id for span in (outer, publish, process)}) == 1
    assert inside == [process.context]
    assert (publish.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert dict(publish.attributes) == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "publish",
        "messaging.operation.type": "send",
        "messaging.destination.name": "orders:order.created",
        "messaging.rabbitmq.destination.routing_key": "order.created",
        "messaging.message.id": "m-1",
        "messaging.message.conversation_id": "c-1",
        "leveret.outcome": "confirmed",
    }
    assert dict(process.attributes) == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "orders:order.created:work",
        "messaging.rabbitmq.destination.routing_key": "order.created",
        "messaging.rabbitmq.message.delivery_tag": 1,
        "messaging.message.id": "m-1",
        "messaging.message.conversation_id": "c-1",
    }
    assert publish.status.is_unset
    assert process.status.is_unset


async def test_all_messages_are_children_of_one_span_when_published_as_a_batch(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any, handle: Handle
) -> None:
    async with client.producer(exchange="orders") as producer:
        result = await TracingPublisher(producer, tracer_provider).publish_batch(iter(range(5)), "order.created")
    await consume(client, handle(nothing), 5)

    publish = spans.one("publish orders")
    assert result.confirmed == 5
    assert publish.attributes["messaging.batch.message_count"] == 5
    assert publish.attributes["leveret.batch.confirmed_count"] == 5
    assert publish.attributes["leveret.batch.failed_count"] == 0
    assert "leveret.outcome" not in publish.attributes
    assert [span.parent.span_id for span in spans.named("process work")] == [publish.context.span_id] * 5


async def test_context_is_sent_when_published_without_waiting(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any, handle: Handle
) -> None:
    async with client.producer() as producer:
        publisher = TracingPublisher(producer, tracer_provider)
        ticket = publisher.publish_nowait(1, "work")
        ended = spans.one("publish work")
        await publisher.flush()
        receipt = await ticket
    await consume(client, handle(nothing), 1)

    assert isinstance(ticket, leveret.Ticket)
    assert receipt.outcome is leveret.Outcome.CONFIRMED
    assert ended.attributes["leveret.outcome"] == "pending"
    assert spans.one("process work").parent.span_id == ended.context.span_id


async def test_contexts_are_kept_apart_when_handlers_run_at_the_same_time(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any, handle: Handle
) -> None:
    everybody = asyncio.Barrier(3)
    seen: dict[int, list[Any]] = {}

    async def handler(value: int, message: leveret.Message) -> None:
        seen[value] = [trace.get_current_span().get_span_context()]
        await everybody.wait()  # all three are inside now
        with tracer_provider.get_tracer("test").start_as_current_span(f"inner {value}"):
            await everybody.wait()
            seen[value].append(trace.get_current_span().get_span_context())
        await everybody.wait()
        seen[value].append(trace.get_current_span().get_span_context())

    async with client.producer() as producer:
        publisher = TracingPublisher(producer, tracer_provider)
        for value in range(3):
            with tracer_provider.get_tracer("test").start_as_current_span(f"outer {value}"):
                await publisher.publish(value, "work")
    await consume(client, handle(handler), 3, concurrency=3, prefetch=3)

    processed = {span.context.trace_id: span for span in spans.named("process work")}
    assert len(processed) == 3
    for value in range(3):
        process = processed[spans.one(f"outer {value}").context.trace_id]
        inner = spans.one(f"inner {value}")
        assert seen[value] == [process.context, inner.context, process.context]
        assert inner.parent.span_id == process.context.span_id


async def test_contexts_are_kept_apart_when_many_tasks_publish_through_one_publisher(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any, handle: Handle
) -> None:
    async with client.producer() as producer:
        publisher = TracingPublisher(producer, tracer_provider)

        async def publish(value: int) -> None:
            with tracer_provider.get_tracer("test").start_as_current_span(f"outer {value}"):
                await publisher.publish(value, "work")

        await asyncio.gather(*map(publish, range(20)))

    outer = {span.context.span_id for span in (spans.one(f"outer {value}") for value in range(20))}
    assert {span.parent.span_id for span in spans.named("publish work")} == outer


async def test_no_span_stays_current_when_publishing_and_handling_are_over(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any, handle: Handle
) -> None:
    handler = handle(nothing)
    async with client.producer() as producer:
        publisher = TracingPublisher(producer, tracer_provider)
        await publisher.publish(1, "work")
        publisher.publish_nowait(1, "work")
        await publisher.publish_batch([1], "work")
        assert trace.get_current_span() is trace.INVALID_SPAN
    async with client.consumer("work") as consumer:
        message = await anext(consumer)
        await handler(message.value, message)

    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_handler_begins_a_trace_when_the_message_has_no_context(
    client: leveret.Client, spans: Any, handle: Handle
) -> None:
    async with client.producer() as producer:
        await producer.publish(1, "work")
    await consume(client, handle(nothing), 1)

    process = spans.one("process work")
    assert process.parent is None
    assert process.links == ()


async def test_handler_has_a_trace_of_its_own_when_linked(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any, handle: Handle
) -> None:
    async with client.producer() as producer:
        await TracingPublisher(producer, tracer_provider).publish(1, "work")
    await consume(client, handle(nothing, linked=True), 1)

    publish, process = spans.one("publish work"), spans.one("process work")
    assert process.parent is None
    assert process.context.trace_id != publish.context.trace_id
    assert [link.context.span_id for link in process.links] == [publish.context.span_id]


async def test_surrounding_span_is_linked_when_the_consumer_runs_in_one(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any, handle: Handle
) -> None:
    async with client.producer() as producer:
        await TracingPublisher(producer, tracer_provider).publish(1, "work")
    with tracer_provider.get_tracer("test").start_as_current_span("service"):
        await consume(client, handle(nothing), 1)

    publish, service, process = spans.one("publish work"), spans.one("service"), spans.one("process work")
    assert process.parent.span_id == publish.context.span_id
    assert [link.context.span_id for link in process.links] == [publish.context.span_id, service.context.span_id]


async def test_surrounding_span_is_the_parent_when_linked_and_the_consumer_runs_in_one(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any, handle: Handle
) -> None:
    async with client.producer() as producer:
        await TracingPublisher(producer, tracer_provider).publish(1, "work")
    with tracer_provider.get_tracer("test").start_as_current_span("service"):
        await consume(client, handle(nothing, linked=True), 1)

    publish, service, process = spans.one("publish work"), spans.one("service"), spans.one("process work")
    assert process.parent.span_id == service.context.span_id
    assert [link.context.span_id for link in process.links] == [publish.context.span_id]


async def test_trace_goes_on_when_a_handler_publishes(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any, handle: Handle
) -> None:
    async with client.producer() as producer:
        publisher = TracingPublisher(producer, tracer_provider)

        async def handler(value: int, message: leveret.Message) -> None:
            await publisher.publish(value, "dead")

        await publisher.publish(1, "work")
        await consume(client, handle(handler), 1)

    assert spans.one("publish dead").parent.span_id == spans.one("process work").context.span_id


async def test_baggage_and_tracestate_arrive_when_the_publisher_has_them(
    client: leveret.Client, tracer_provider: TracerProvider, handle: Handle
) -> None:
    seen = []

    async def handler(value: int, message: leveret.Message) -> None:
        state = trace.get_current_span().get_span_context().trace_state
        seen.append((baggage.get_baggage("tenant"), dict(state)))

    remote = trace.SpanContext(
        1, 2, is_remote=True, trace_flags=trace.TraceFlags(1), trace_state=trace.TraceState([("vendor", "x:1")])
    )
    token = attach(trace.set_span_in_context(trace.NonRecordingSpan(remote), baggage.set_baggage("tenant", "seven")))
    try:
        async with client.producer() as producer:
            await TracingPublisher(producer, tracer_provider).publish(1, "work")
    finally:
        detach(token)
    await consume(client, handle(handler), 1)

    assert seen == [("seven", {"vendor": "x:1"})]


async def test_message_is_settled_by_the_handlers_result_when_traced(
    client: leveret.Client, spans: Any, handle: Handle
) -> None:
    async def refuse(value: int, message: leveret.Message) -> bool:
        return False

    async with client.producer() as producer:
        await producer.publish(7, "work")
    await consume(client, handle(refuse), 1)
    async with client.consumer("dead") as consumer:
        letter = await anext(consumer)

    assert letter.value == 7
    assert spans.one("process work").status.is_unset


async def test_message_is_given_back_and_dead_lettered_when_a_traced_handler_raises(
    client: leveret.Client, spans: Any, handle: Handle
) -> None:
    async def fail(value: int, message: leveret.Message) -> None:
        raise LookupError("no such order")

    async with client.producer() as producer:
        await producer.publish(7, "work")
    await consume(client, handle(fail), 2, on_error=leveret.Requeue())
    async with client.consumer("dead") as consumer:
        letter = await anext(consumer)

    assert letter.value == 7
    assert [span.attributes["error.type"] for span in spans.named("process work")] == ["LookupError"] * 2
