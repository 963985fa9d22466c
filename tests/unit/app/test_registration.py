"""Handlers, models and hooks are registered with `leveret.App`, and what is wrong is refused where it is written."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import pytest

import leveret
from leveret.errors import ConfigurationError
from leveret.settings import ConsumerSettings, Settings

if TYPE_CHECKING:
    from decimal import Decimal


class Order(msgspec.Struct):
    id: int


def test_decorator_returns_the_function_and_keeps_its_options() -> None:
    app = leveret.App("amqp://localhost")

    async def bill(order: Order, message: leveret.Message) -> bool:
        return order.id > 0

    settings = ConsumerSettings(prefetch=7)
    assert app.consumer("billing", model=dict, settings=settings, concurrency=8)(bill) is bill
    [it] = app.registrations
    assert (it.queue, it.handler, it.model) == ("billing", bill, dict)
    assert (it.settings, it.options) == (settings, {"concurrency": 8})
    assert "billing" in repr(app)


async def plain(value, message):  # type: ignore[no-untyped-def]
    """Has no annotations."""


def test_one_function_serves_several_queues_and_one_queue_several_functions() -> None:
    app = leveret.App("amqp://localhost")
    app.consumer("a")(plain)
    app.consumer("b")(plain)

    @app.consumer("a")
    def other(value: object, message: object) -> None: ...

    assert [it.queue for it in app.registrations] == ["a", "b", "a"]


def test_two_handlers_of_a_queue_with_different_models_are_refused() -> None:
    app = leveret.App("amqp://localhost")
    app.consumer("a", model=Order)(plain)
    app.consumer("b", model=dict)(plain)

    def other(value: object, message: object) -> None: ...

    with pytest.raises(ConfigurationError) as raised:
        app.consumer("a")(other)
    assert raised.value.option == "model"
    text = str(raised.value)
    assert "queue 'a' has the handler plain with model Order" in text
    assert "other has none" in text
    with pytest.raises(ConfigurationError, match=r"model Order; .*other has dict"):
        app.consumer("a", model=dict)(other)
    app.consumer("a", model=Order)(other)
    assert len(app.registrations) == 3


@pytest.mark.parametrize(("option", "value"), [("serializer", "bytes"), ("accept", ["application/json"])])
def test_two_handlers_of_a_queue_that_decode_differently_are_refused(option: str, value: Any) -> None:
    app = leveret.App("amqp://localhost")
    app.consumer("a", **{option: value})(plain)

    def other(value: object, message: object) -> None: ...

    with pytest.raises(ConfigurationError, match=f"another {option} than") as raised:
        app.consumer("a")(other)
    assert raised.value.option == option
    app.consumer("a", settings=ConsumerSettings(**{option: value}))(other)
    assert len(app.registrations) == 2


def test_same_function_and_queue_is_refused() -> None:
    app = leveret.App("amqp://localhost")
    app.consumer("a")(plain)
    with pytest.raises(ConfigurationError, match="plain is registered for queue 'a' already") as raised:
        app.consumer("a", concurrency=2)(plain)
    assert raised.value.option == "handler"


@pytest.mark.parametrize(
    ("options", "named", "text"),
    [
        ({"prefetc": 1}, "prefetc", "unknown option 'prefetc'; did you mean 'prefetch'?"),
        ({"prefetch": 0}, "prefetch", "prefetch is 0; it must be 1 to 65535"),
        ({"concurrency": "many"}, "concurrency", "it must be a whole number"),
        ({"settings": {"prefetch": 1}}, "settings", "settings is of type dict"),
    ],
)
def test_wrong_option_is_refused_where_it_is_written(options: dict[str, Any], named: str, text: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        leveret.App("amqp://localhost").consumer("billing", **options)
    assert raised.value.option == named
    assert "'billing'" in str(raised.value)
    assert text in str(raised.value)


def test_options_are_checked_with_those_of_the_target() -> None:
    app = leveret.App(Settings(consumer=ConsumerSettings(exclusive=True)))
    with pytest.raises(ConfigurationError, match="exclusive"):
        app.consumer("a", prefetch="auto")


def test_what_client_consumer_takes_beside_settings_is_passed_on() -> None:
    app = leveret.App("amqp://localhost")
    app.consumer("a", ordered_by=lambda message: message.routing_key)(plain)
    assert callable(app.registrations[0].options["ordered_by"])


@pytest.mark.parametrize("queue", ["", "q" * 256, None, 5])
def test_wrong_queue_is_refused(queue: Any) -> None:
    with pytest.raises(ConfigurationError, match="1 to 255 bytes"):
        leveret.App("amqp://localhost").consumer(queue)


@pytest.mark.parametrize(
    "handler", [lambda: None, lambda value: None, lambda a, b, c: None, 5], ids=["none", "one", "three", "number"]
)
def test_handler_that_cannot_be_called_with_value_and_message_is_refused(handler: Any) -> None:
    with pytest.raises(ConfigurationError) as raised:
        leveret.App("amqp://localhost").consumer("a")(handler)
    assert raised.value.option == "handler"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"target": "http://localhost"}, "url"),
        ({"target": 5}, "target"),
        ({"heartbet": 3}, "heartbet"),
        ({"target": "amqp://localhost", "heartbeat": -1}, "heartbeat"),
        ({"drain_timeout": 0}, "drain_timeout"),
        ({"drain_timeout": float("nan")}, "drain_timeout"),
        ({"hook_timeout": True}, "hook_timeout"),
        ({"name": ""}, "client_name"),
    ],
)
def test_wrong_argument_of_the_app_is_refused_by_name(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        leveret.App(**arguments)
    assert raised.value.option == named


def test_hook_that_is_no_function_is_refused() -> None:
    app = leveret.App("amqp://localhost")
    for register in (app.on_startup, app.on_shutdown):
        with pytest.raises(ConfigurationError):
            register(5)  # type: ignore[type-var]


class Billing:
    async def handle(self, order: Order, message: leveret.Message) -> None: ...

    @staticmethod
    async def static(order: Order, message: leveret.Message) -> None: ...

    @classmethod
    async def of_class(cls, order: Order, message: leveret.Message) -> None: ...

    async def __call__(self, order: Order, message: leveret.Message) -> None: ...


async def annotated(order: Order, message: NotThere) -> None: ...  # type: ignore[name-defined] # noqa: F821


async def constrained(number: Annotated[int, msgspec.Meta(ge=1)], message: object) -> None: ...


async def listed(orders: list[Order], message: object) -> None: ...


async def anything(value: Any, message: object) -> None: ...


async def an_object(value: object, message: object) -> None: ...


async def raw(value: leveret.Message, message: object) -> None: ...


T = TypeVar("T")


async def generic(value: T, message: object) -> None: ...


async def for_type_checkers(value: Decimal, message: object) -> None: ...


async def broken(value: 1 / 0, message: object) -> None: ...  # type: ignore[valid-type]


async def many(*arguments: Any) -> None: ...


async def with_a_tool(tool: int, order: Order, message: object) -> None: ...


@functools.wraps(annotated)
async def wrapped(*arguments: Any) -> None: ...


@pytest.mark.parametrize(
    ("handler", "model"),
    [
        (annotated, Order),
        pytest.param(wrapped, Order, id="wrapped"),
        (Billing().handle, Order),
        (Billing.static, Order),
        (Billing.of_class, Order),
        (Billing(), Order),
        pytest.param(vars(Billing)["static"], Order, id="a static method in the body of its class"),
        (functools.partial(with_a_tool, 1), Order),
        (listed, list[Order]),
        (constrained, Annotated[int, msgspec.Meta(ge=1)]),
        *((handler, None) for handler in (plain, anything, an_object, raw, generic, for_type_checkers, broken, many)),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_model_is_the_annotation_of_the_first_parameter(handler: Any, model: Any) -> None:
    app = leveret.App("amqp://localhost")
    app.consumer("a")(handler)
    assert app.registrations[0].model == model


def test_a_method_without_its_object_is_refused_with_a_hint() -> None:
    with pytest.raises(ConfigurationError, match="it is a method: give the one of an object"):
        leveret.App("amqp://localhost").consumer("a")(Billing.handle)


@pytest.mark.parametrize("kind", ["function", "method"])
def test_a_generator_is_refused(kind: str) -> None:
    class Generates:
        async def __call__(self, value: object, message: object) -> Any:
            yield value

    async def generates(value: object, message: object) -> Any:
        yield value

    with pytest.raises(ConfigurationError, match="must not be a generator"):
        leveret.App("amqp://localhost").consumer("a")(generates if kind == "function" else Generates())


def test_model_that_is_given_wins_over_the_annotation() -> None:
    app = leveret.App("amqp://localhost")
    app.consumer("a", model=None)(annotated)
    app.consumer("b", model=dict)(annotated)
    assert [it.model for it in app.registrations] == [None, dict]


def test_class_that_is_local_to_a_function_cannot_be_resolved() -> None:
    class Local(msgspec.Struct): ...

    async def handle(value: Local, message: object) -> None: ...

    app = leveret.App("amqp://localhost")
    app.consumer("a")(handle)
    assert app.registrations[0].model is None
