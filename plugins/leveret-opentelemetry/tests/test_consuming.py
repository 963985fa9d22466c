"""`traced`: what handlers may be, what becomes of their results and errors, and headers that are no context."""

from __future__ import annotations

import asyncio
import functools
import inspect
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import baggage, trace
from opentelemetry.propagators.textmap import TextMapPropagator
from opentelemetry.trace import StatusCode

from leveret.errors import ConfigurationError, TableSyntaxError
from leveret_opentelemetry import traced

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    import leveret

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Letter:
    """A delivery with any headers at all, as `leveret.plugins.Delivery` describes it."""

    headers: Any = field(default_factory=dict)
    exchange: str = "orders"
    routing_key: str = "order.created"
    delivery_tag: int = 1
    consumer_tag: str = "c"
    redelivered: bool = False
    body_size: int = 0
    content_type: str | None = None
    correlation_id: str | None = None
    message_id: str | None = None


async def result_of(value: Any, message: Any) -> Any:
    return value


class Service:
    """A handler that is an object."""

    def __init__(self) -> None:
        self.state = 41

    async def __call__(self, value: Any, message: Any) -> Any:
        self.state += 1
        return value

    async def method(self, value: Any, message: Any) -> Any:
        return value


# ---------------------------------------------------------------------- handlers


@pytest.mark.parametrize(
    "handler",
    [result_of, Service(), Service().method, functools.partial(result_of), traced(result_of)],
    ids=["function", "object", "method", "partial", "traced already"],
)
async def test_result_is_the_handlers_own_whatever_kind_of_handler_it_is(
    handler: Any, tracer_provider: TracerProvider
) -> None:
    wrapped = traced(handler, tracer_provider)
    value = object()

    assert inspect.iscoroutinefunction(wrapped)
    assert await wrapped(value, Letter()) is value


def test_name_and_documentation_are_the_handlers_own() -> None:
    @traced
    async def charge(order: Any, message: Any) -> None:
        """Charges an order."""

    assert (charge.__name__, charge.__doc__) == ("charge", "Charges an order.")


async def test_state_of_a_handler_object_is_not_copied(tracer_provider: TracerProvider) -> None:
    service = Service()
    wrapped = traced(service, tracer_provider)

    await wrapped(1, Letter())

    assert service.state == 42
    assert not hasattr(wrapped, "state")


@pytest.mark.parametrize(
    "handler", [lambda value, message: None, None, Service], ids=["plain function", "none", "class"]
)
def test_handler_is_refused_when_it_is_no_coroutine_function(handler: Any) -> None:
    with pytest.raises(ConfigurationError, match="async def") as caught:
        traced(handler)

    assert caught.value.option == "handler"


@pytest.mark.parametrize("option", ["tracer_provider", "propagator"])
def test_argument_is_refused_when_it_is_something_else(option: str) -> None:
    options: dict[str, Any] = {option: "console"}
    with pytest.raises(ConfigurationError, match=option) as caught:
        traced(result_of, **options)

    assert caught.value.option == option


@pytest.mark.parametrize(
    ("queue", "name", "destination"),
    [
        ("work", "process work", "orders:order.created:work"),
        ("order.created", "process order.created", "orders:order.created"),
        ("", "process orders", "orders:order.created"),
        ("amq.gen-JzTY20BRgKO", "process orders", "orders:order.created:amq.gen-JzTY20BRgKO"),
    ],
    ids=["queue", "queue like the key", "unknown queue", "server-named queue"],
)
async def test_span_is_named_after_the_queue(
    queue: str, name: str, destination: str, tracer_provider: TracerProvider, spans: Any
) -> None:
    await traced(result_of, tracer_provider, queue=queue)(1, Letter())

    assert spans.one(name).attributes["messaging.destination.name"] == destination


# ---------------------------------------------------------------------- errors


async def test_exception_is_recorded_and_raised_again_when_the_handler_raises(
    tracer_provider: TracerProvider, spans: Any
) -> None:
    error = LookupError("no such order")

    async def fail(value: Any, message: Any) -> None:
        raise error

    with pytest.raises(LookupError) as caught:
        await traced(fail, tracer_provider)(1, Letter())

    span = spans.one("process orders")
    assert caught.value is error
    assert span.attributes["error.type"] == "LookupError"
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "no such order")
    (event,) = span.events
    assert event.name == "exception"
    assert event.attributes["exception.message"] == "no such order"
    assert "in fail" in event.attributes["exception.stacktrace"]


async def test_only_the_type_is_told_when_exceptions_are_not_to_be_recorded(
    tracer_provider: TracerProvider, spans: Any
) -> None:
    async def fail(value: Any, message: Any) -> None:
        raise LookupError("card 4111")

    with pytest.raises(LookupError):
        await traced(fail, tracer_provider, record_exceptions=False)(1, Letter())

    span = spans.one("process orders")
    assert span.attributes["error.type"] == "LookupError"
    assert span.status.status_code is StatusCode.ERROR
    assert "card 4111" not in span.to_json()


class Unspeakable(Exception):
    """An exception that cannot be told."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


@pytest.mark.parametrize("error", [Unspeakable(), ValueError("caf\udce9")], ids=["no text", "not UTF-8"])
async def test_handlers_error_is_raised_when_its_text_is_unfit(
    error: Exception, tracer_provider: TracerProvider, spans: Any
) -> None:
    async def fail(value: Any, message: Any) -> None:
        raise error

    with pytest.raises(type(error)):
        await traced(fail, tracer_provider)(1, Letter())

    span = spans.one("process orders")
    assert span.status.status_code is StatusCode.ERROR
    assert span.to_json().encode()
    for event in span.events:
        assert all(str(value).encode() for value in event.attributes.values())


async def test_span_ends_as_an_error_when_the_handler_is_cancelled(tracer_provider: TracerProvider, spans: Any) -> None:
    entered = asyncio.Event()

    async def hang(value: Any, message: Any) -> None:
        entered.set()
        await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(traced(hang, tracer_provider)(1, Letter()))
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    span = spans.one("process orders")
    assert task.cancelled()
    assert span.attributes["error.type"] == "asyncio.exceptions.CancelledError"
    assert span.events == ()


async def test_handler_ends_and_message_comes_again_when_a_consumer_is_cancelled(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    entered = asyncio.Event()

    async def hang(value: Any, message: Any) -> None:
        entered.set()
        await asyncio.get_running_loop().create_future()

    async with client.producer() as producer:
        await producer.publish(7, "work")
    running = asyncio.create_task(client.consumer("work").run(traced(hang, tracer_provider, queue="work")))
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    async with client.consumer("work") as consumer:
        message = await anext(consumer)
    assert (message.value, message.redelivered) == (7, True)
    assert spans.one("process work").status.status_code is StatusCode.ERROR


# ---------------------------------------------------------------------- headers


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"traceparent": "garbage"}, id="garbage"),
        pytest.param({"traceparent": ""}, id="empty"),
        pytest.param({"traceparent": PARENT.replace("00-", "ff-", 1)}, id="forbidden version"),
        pytest.param({"traceparent": PARENT.upper()}, id="upper case"),
        pytest.param({"traceparent": f"{PARENT}\n"}, id="line feed"),
        pytest.param({"traceparent": "00-" + "0" * 32 + "-b7ad6b7169203331-01"}, id="zero trace id"),
        pytest.param({"traceparent": PARENT + "-" + "x" * 100_000}, id="100 kB"),
        pytest.param({"traceparent": 17}, id="integer"),
        pytest.param({"traceparent": None}, id="void"),
        pytest.param({"traceparent": {"deep": [PARENT]}}, id="table"),
        pytest.param({"traceparent": [PARENT, PARENT]}, id="array"),
        pytest.param({"traceparent": "\udcff" * 55}, id="not UTF-8"),
        pytest.param({"traceparent": b"\xff" * 55}, id="binary"),
        pytest.param({"baggage": "a=" + "x" * 100_000}, id="100 kB of baggage"),
        pytest.param({"baggage": ",;=,=;%%%zz" * 100}, id="baggage of separators"),
        pytest.param({"baggage": 3}, id="baggage that is an integer"),
        pytest.param(None, id="no headers"),
        pytest.param(17, id="headers that are an integer"),
        pytest.param([("traceparent", PARENT)], id="headers that are a list"),
    ],
)
async def test_message_is_handled_without_a_parent_when_headers_are_malformed(
    headers: Any, tracer_provider: TracerProvider, spans: Any
) -> None:
    assert await traced(result_of, tracer_provider)(5, Letter(headers)) == 5

    span = spans.one("process orders")
    assert span.parent is None
    assert span.status.is_unset


@pytest.mark.parametrize(
    "tracestate", ["=", "a" * 100_000, "k=v," * 1000, 17, b"\xff", ["a=b"], "Ü=1"], ids=lambda state: repr(state)[:20]
)
async def test_parent_is_kept_when_only_the_tracestate_is_malformed(
    tracestate: Any, tracer_provider: TracerProvider, spans: Any
) -> None:
    await traced(result_of, tracer_provider)(1, Letter({"traceparent": PARENT, "tracestate": tracestate}))

    span = spans.one("process orders")
    assert f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert dict(span.context.trace_state) == {}


async def test_parent_is_read_when_a_client_sent_bytes(tracer_provider: TracerProvider, spans: Any) -> None:
    await traced(result_of, tracer_provider)(1, Letter({"traceparent": PARENT.encode()}))

    assert f"{spans.one('process orders').parent.span_id:016x}" == "b7ad6b7169203331"


async def test_message_is_handled_when_its_properties_cannot_be_decoded(
    tracer_provider: TracerProvider, spans: Any
) -> None:
    class Malformed(Letter):
        @property
        def message_id(self) -> str:
            raise TableSyntaxError("cut off")

        @message_id.setter
        def message_id(self, value: Any) -> None: ...

    assert await traced(result_of, tracer_provider)(5, Malformed({"traceparent": PARENT})) == 5
    assert spans.one("process orders").status.is_unset


async def test_message_is_handled_when_the_propagator_fails(tracer_provider: TracerProvider, spans: Any) -> None:
    class Broken(TextMapPropagator):
        fields: Any = frozenset()

        def inject(self, *arguments: Any, **options: Any) -> None: ...

        def extract(self, *arguments: Any, **options: Any) -> Any:
            raise IndexError("not mine")

    assert await traced(result_of, tracer_provider, Broken())(5, Letter({"a": 1})) == 5
    assert spans.one("process orders").parent is None


async def test_surrounding_span_is_the_parent_when_the_propagator_finds_an_invalid_one(
    tracer_provider: TracerProvider, spans: Any
) -> None:
    class Nothing(TextMapPropagator):
        """As some formats' propagators do when they find nothing."""

        fields: Any = frozenset()

        def inject(self, *arguments: Any, **options: Any) -> None: ...

        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
            invalid = trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT)
            return trace.set_span_in_context(invalid, context)

    with tracer_provider.get_tracer("test").start_as_current_span("service"):
        await traced(result_of, tracer_provider, Nothing())(5, Letter({"a": 1}))

    assert spans.one("process orders").parent.span_id == spans.one("service").context.span_id


async def test_attributes_can_be_exported_when_the_message_has_hostile_names(
    tracer_provider: TracerProvider, spans: Any
) -> None:
    letter = Letter(exchange="\udcff", routing_key="a\nb\x1b[31m", message_id="\udcff" * 300, correlation_id="\x00")

    await traced(result_of, tracer_provider)(1, letter)

    (name,) = spans.names
    span = spans.one(name)
    assert name == r"process \udcff"
    assert span.attributes["messaging.rabbitmq.destination.routing_key"] == r"a\nb\x1b[31m"
    for value in span.attributes.values():
        assert str(value).isprintable()
        assert str(value).encode()


async def test_baggage_of_a_message_ends_with_its_handler(tracer_provider: TracerProvider) -> None:
    seen = []

    async def look(value: Any, message: Any) -> None:
        seen.append(baggage.get_baggage("tenant"))

    handler = traced(look, tracer_provider)
    await handler(1, Letter({"traceparent": PARENT, "baggage": "tenant=seven"}))
    await handler(1, Letter())

    assert seen == ["seven", None]


async def test_foreign_headers_are_no_context_when_sent_over_a_broker(
    client: leveret.Client, tracer_provider: TracerProvider, spans: Any
) -> None:
    consumer = client.consumer("work")

    async def handler(value: int, message: leveret.Message) -> None:
        consumer.stop()

    async with client.producer() as producer:
        await producer.publish(
            1, "work", headers={"traceparent": {"nested": [1, "x"]}, "tracestate": 17, "baggage": b"\xff"}
        )
    await consumer.run(traced(handler, tracer_provider, queue="work"))

    assert spans.one("process work").parent is None
