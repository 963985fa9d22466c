"""`leveret.App`: registration, models from annotations, hooks, and what keeps consumers running."""

from __future__ import annotations

import asyncio
import functools
import threading
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import pytest
from tests.support.leftovers import nothing_left_behind

import leveret
from leveret.app import supervision
from leveret.app.process import run_process
from leveret.broker import EmbeddedBroker
from leveret.errors import (
    AuthenticationError,
    ConfigurationError,
    ConnectionClosed,
    OperationTimeout,
    PreconditionFailed,
)
from leveret.settings import ConsumerSettings, Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from decimal import Decimal  # for type checkers only


class Order(msgspec.Struct):
    id: int


async def plain(value, message):  # type: ignore[no-untyped-def]
    """Has no annotations."""


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    async with nothing_left_behind(), EmbeddedBroker() as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr(supervision, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(supervision, "LONGEST_DELAY", 0.02)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - it looks at what no event tells
            await asyncio.sleep(0.005)


async def publish(broker: EmbeddedBroker, queue: str, count: int) -> None:
    async with leveret.connect(broker.url) as client, client.producer() as producer:
        await producer.publish_batch((Order(i) for i in range(count)), queue)


# ---------------------------------------------------------------------- registration


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


def test_one_function_serves_several_queues_and_one_queue_several_functions() -> None:
    app = leveret.App("amqp://localhost")
    app.consumer("a")(plain)
    app.consumer("b")(plain)

    @app.consumer("a")
    def other(value: object, message: object) -> None: ...

    assert [it.queue for it in app.registrations] == ["a", "b", "a"]


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


# ---------------------------------------------------------------------- models


T = TypeVar("T")


class Billing:
    async def handle(self, order: Order, message: leveret.Message) -> None: ...

    async def __call__(self, order: Order, message: leveret.Message) -> None: ...


async def annotated(order: Order, message: NotThere) -> None: ...  # type: ignore[name-defined] # noqa: F821
async def constrained(number: Annotated[int, msgspec.Meta(ge=1)], message: object) -> None: ...
async def listed(orders: list[Order], message: object) -> None: ...
async def anything(value: Any, message: object) -> None: ...
async def an_object(value: object, message: object) -> None: ...
async def raw(value: leveret.Message, message: object) -> None: ...
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
        (Billing(), Order),
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


# ---------------------------------------------------------------------- running


def test_app_that_does_not_run_has_no_client() -> None:
    app = leveret.App("amqp://localhost")
    with pytest.raises(ConnectionClosed, match="not running"):
        _ = app.client
    app.stop()  # does nothing
    assert app.counters() == {}


async def test_app_without_consumers_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no consumers"):
        await leveret.App("amqp://localhost").serve()


async def test_app_declares_calls_hooks_and_handles(broker: EmbeddedBroker) -> None:
    app = leveret.App(broker.url, name="shop")
    app.topology = leveret.Topology().queue("a").queue("b")
    told: list[object] = []
    threads = set()

    @app.on_startup
    async def first(client: leveret.Client) -> None:
        assert app.client is client
        assert client.settings.client_name == "shop"
        await client.message({"id": 1}).routing_key("a").publish()
        told.append("first")

    @app.on_startup
    def second(client: leveret.Client) -> None:
        told.append("second")

    @app.on_shutdown
    async def last(client: leveret.Client) -> None:
        await client.message({"id": 2}).routing_key("b").publish()
        told.append("last")

    @app.consumer("a")
    async def pass_on(order: Order, message: leveret.Message) -> None:
        told.append(order)
        await app.client.message(order).routing_key("b").publish()

    @app.consumer("b", concurrency=2)
    def count(order: Order, message: leveret.Message) -> None:
        threads.add(threading.current_thread())
        app.stop()

    assert await app.serve()
    assert told == ["first", "second", Order(1), "last"]
    assert threads
    assert threading.main_thread() not in threads
    counters = app.counters()
    assert (counters["delivered"], counters["acked"], counters["unsettled"], counters["restarts"]) == (2, 2, 0, 0)
    with pytest.raises(ConnectionClosed):
        _ = app.client


async def test_shutdown_hook_that_fails_does_not_keep_others_from_being_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    called = []
    async with EmbeddedBroker() as broker:
        app = leveret.App(broker.url)
        app.topology = leveret.Topology().queue("a")
        app.consumer("a")(plain)
        app.on_shutdown(called.append)

        @app.on_shutdown
        async def failing(client: leveret.Client) -> None:
            raise ZeroDivisionError

        app.on_startup(lambda client: app.stop())
        assert await app.serve()
    assert len(called) == 1
    assert "failing failed" in caplog.text


async def test_app_may_run_again_but_not_twice_at_once(broker: EmbeddedBroker) -> None:
    app = leveret.App(broker.url)
    app.topology = leveret.Topology().queue("a")
    app.consumer("a")(plain)
    started = asyncio.Event()
    app.on_startup(lambda client: started.set())
    for _ in range(2):
        started.clear()
        stop = asyncio.Event()
        running = asyncio.create_task(app.serve(stop))
        await started.wait()
        with pytest.raises(ConfigurationError, match="running already"):
            await app.serve()
        stop.set()
        assert await running


async def test_drain_finishes_what_was_begun_and_gives_the_rest_back(broker: EmbeddedBroker) -> None:
    app = leveret.App(broker.url)
    app.topology = leveret.Topology().queue("a")
    await_it = asyncio.Event()
    begun, done = [], []

    @app.consumer("a", concurrency=2, prefetch=50)
    async def handle(order: Order, message: leveret.Message) -> None:
        begun.append(order.id)
        await await_it.wait()
        done.append(order.id)

    app.on_startup(lambda client: client.message(Order(0)).routing_key("a").publish())
    stop = asyncio.Event()
    running = asyncio.create_task(app.serve(stop))
    await until(lambda: begun)
    await publish(broker, "a", 10)
    await until(lambda: len(begun) == 2)
    stop.set()
    await asyncio.sleep(0.05)
    await_it.set()
    assert await running
    assert begun == done
    assert app.counters()["acked"] == 2
    async with leveret.connect(broker.url) as client:
        assert await client.purge("a") == 9


async def test_handlers_are_cut_off_after_the_drain_timeout(broker: EmbeddedBroker) -> None:
    app = leveret.App(broker.url, drain_timeout=0.1)
    app.topology = leveret.Topology().queue("a")
    begun = []

    @app.consumer("a")
    async def handle(order: Order, message: leveret.Message) -> None:
        begun.append(order)
        await asyncio.Event().wait()

    stop = asyncio.Event()
    running = asyncio.create_task(app.serve(stop))
    await until(lambda: app.counters().get("delivered") is not None)
    await publish(broker, "a", 1)
    await until(lambda: begun)
    stop.set()
    assert not await running
    async with leveret.connect(broker.url) as client:
        assert await client.purge("a") == 1


async def test_cancelling_ends_everything(broker: EmbeddedBroker) -> None:
    app = leveret.App(broker.url)
    app.topology = leveret.Topology().queue("a")
    cancelled = []

    @app.consumer("a")
    async def handle(order: Order, message: leveret.Message) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(order)

    running = asyncio.create_task(app.serve())
    await until(lambda: app.counters().get("delivered") is not None)
    await publish(broker, "a", 1)
    await until(lambda: app.counters()["delivered"])
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert cancelled == [Order(0)]


@pytest.mark.usefixtures("quick")
async def test_consumers_start_again_after_lost_connections_and_deleted_queues(
    broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app = leveret.App(broker.url)
    app.topology = leveret.Topology().queue("a")
    handled = []

    @app.consumer("a")
    async def handle(order: Order, message: leveret.Message) -> None:
        handled.append(order.id)

    @app.consumer("not-there-yet")
    async def other(order: Order, message: leveret.Message) -> None:
        handled.append(-1)

    stop = asyncio.Event()
    running = asyncio.create_task(app.serve(stop))
    await until(lambda: app.counters().get("restarts", 0) >= 2)
    assert "'not-there-yet'" in caplog.text
    broker.close_connections()
    await publish(broker, "a", 1)
    await until(lambda: handled == [0])
    async with leveret.connect(broker.url) as client:
        await client.delete_queue("a")
        await asyncio.sleep(0.05)
        await client.declare(leveret.Topology().queue("a").queue("not-there-yet"))
    await publish(broker, "a", 1)
    await publish(broker, "not-there-yet", 1)
    await until(lambda: sorted(handled) == [-1, 0, 0])
    stop.set()
    assert await running
    assert app.counters()["acked"] == 3


@pytest.mark.usefixtures("quick")
async def test_broker_that_is_not_there_yet_is_waited_for(
    unused_tcp_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    app = leveret.App(f"amqp://guest:guest@127.0.0.1:{unused_tcp_port}")
    app.topology = leveret.Topology().queue("a")
    app.consumer("a")(plain)
    app.on_startup(lambda client: app.stop())
    running = asyncio.create_task(app.serve())
    await until(lambda: "it is tried again" in caplog.text)
    async with EmbeddedBroker(port=unused_tcp_port):
        assert await running


async def test_stop_while_the_broker_is_waited_for_ends_at_once(unused_tcp_port: int) -> None:
    app = leveret.App(f"amqp://guest:guest@127.0.0.1:{unused_tcp_port}")
    app.consumer("a")(plain)
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, stop.set)
    async with asyncio.timeout(5):
        assert await app.serve(stop)


async def test_wrong_password_ends_the_app(broker: EmbeddedBroker) -> None:
    app = leveret.App(broker.url, password="wrong")
    app.consumer("a")(plain)
    with pytest.raises(AuthenticationError):
        await app.serve()


async def test_topology_that_contradicts_ends_the_app(broker: EmbeddedBroker) -> None:
    async with leveret.connect(broker.url) as client:
        await client.declare(leveret.Topology().queue("a", leveret.Classic(max_length=5)))
    app = leveret.App(broker.url)
    app.topology = leveret.Topology().queue("a")
    app.consumer("a")(plain)
    with pytest.raises(PreconditionFailed):
        await app.serve()


async def test_serializer_that_nobody_has_ends_the_app_before_others_begin(broker: EmbeddedBroker) -> None:
    app = leveret.App(broker.url)
    app.topology = leveret.Topology().queue("a")
    handled = []
    app.on_startup(lambda client: client.message(Order(0)).routing_key("a").publish())

    @app.consumer("a")
    async def handle(order: Order, message: leveret.Message) -> None:
        handled.append(order)

    app.consumer("a", serializer="nobody-has-it")(plain)
    with pytest.raises(ConfigurationError, match="nobody-has-it"):
        await app.serve()
    assert handled == []


async def test_start_up_hook_that_fails_ends_the_app_without_shutdown_hooks(broker: EmbeddedBroker) -> None:
    app = leveret.App(broker.url, hook_timeout=0.05)
    app.consumer("a")(plain)
    called: list[object] = []
    app.on_shutdown(called.append)

    @app.on_startup
    async def slow(client: leveret.Client) -> None:
        await asyncio.sleep(60)

    with pytest.raises(OperationTimeout, match=r"slow took longer than 0\.05 s"):
        await app.serve()

    failing = leveret.App(broker.url)
    failing.consumer("a")(plain)
    failing.on_shutdown(called.append)
    failing.on_startup(lambda client: {}["no such key"])
    with pytest.raises(KeyError):
        await failing.serve()
    assert called == []


def test_signals_need_the_main_thread() -> None:
    app = leveret.App("amqp://localhost")
    app.consumer("a")(plain)
    errors = []

    def run() -> None:
        for start in (app.run, lambda: run_process(app)):
            try:
                start()
            except ConfigurationError as error:
                errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert len(errors) == 2
    assert all("main thread" in text for text in errors)


def test_run_says_in_one_line_what_no_attempt_can_mend() -> None:
    with pytest.raises(SystemExit, match=r"shop: the app has no consumers") as ended:
        leveret.App("amqp://localhost", name="shop").run()
    assert isinstance(ended.value.__cause__, ConfigurationError)
