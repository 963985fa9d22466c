"""An app that runs declares its topology, calls its hooks, and keeps its consumers going."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from typing import TYPE_CHECKING

import msgspec
import pytest
from tests.support.handling import until
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

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def test_app_that_does_not_run_has_no_client() -> None:
    app = leveret.App("amqp://localhost")
    with pytest.raises(ConnectionClosed, match="not running"):
        _ = app.client
    app.stop()  # does nothing
    assert app.counters() == {}


async def test_app_without_consumers_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no consumers"):
        await leveret.App("amqp://localhost").serve()


class Order(msgspec.Struct):
    id: int


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    async with nothing_left_behind(), EmbeddedBroker() as running:
        yield running


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


async def plain(value, message):  # type: ignore[no-untyped-def]
    """Has no annotations."""


async def test_shutdown_hook_that_fails_does_not_keep_others_from_being_called(
    caplog: pytest.LogCaptureFixture,
) -> None:
    called: list[object] = []
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


async def publish(broker: EmbeddedBroker, queue: str, count: int) -> None:
    async with leveret.connect(broker.url) as client, client.producer() as producer:
        await producer.publish_batch((Order(i) for i in range(count)), queue)


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
    await until(lambda: len(begun) >= 2)
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


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts follow each other at once."""
    monkeypatch.setattr(supervision, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(supervision, "LONGEST_DELAY", 0.02)


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
    await until(lambda: "cannot start, and goes on trying" in caplog.text)
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

    app.consumer("b", serializer="nobody-has-it")(plain)
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
    failing.on_startup(lambda client: dict[str, None]()["no such key"])
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


async def test_the_app_says_what_it_does_and_how_it_is(
    broker: EmbeddedBroker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "leveret.app")
    app = leveret.App(broker.url, name="shop", drain_timeout=5)
    app.topology = leveret.Topology().queue("orders")
    assert app.health() == leveret.Health(ready=False, live=False, reasons=("the app is not running",))

    @app.consumer("orders", prefetch=7, concurrency=2)
    async def handle(value: object, message: leveret.Message) -> None: ...

    @app.consumer("missing")
    async def wait(value: object, message: leveret.Message) -> None: ...

    @app.on_shutdown
    def look(client: leveret.Client) -> None:
        told.append(app.health())

    told: list[leveret.Health] = []
    running = asyncio.create_task(app.serve())
    await asyncio.sleep(0)
    assert app.health().reasons[0] == "the app is not connected yet"
    await until(lambda: app.health().consumers_live == 1 and app.counters()["restarts"] >= 1)
    health = app.health()
    assert (health.ready, health.live, health.consumers_expected) == (False, True, 2)
    assert health.reasons == ("the consumer of queue 'missing' is started again later",)
    await app.client.declare(leveret.Topology().queue("missing"))
    await until(lambda: app.health().ready)
    app.stop()
    await running
    assert [(it.ready, it.live, it.reasons[0]) for it in told] == [
        (False, True, "the app calls the shutdown hooks and closes the client")
    ]
    assert app.health().reasons == ("the app is not running",)
    texts = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    assert texts == [
        f"shop: connected to {broker.url.replace('guest:guest', 'guest:***')}",
        "shop: consumes queue 'orders' with 2 workers, prefetch 7",
        "shop: consumes queue 'missing' with 1 workers, prefetch 100",
        "shop: takes no more messages; handlers have 5 s to finish",
        "shop: stopped",
    ]


# ---------------------------------------------------------------------- checks of its own


async def ignore(value: object, message: leveret.Message) -> None:
    """A handler."""


@contextlib.asynccontextmanager
async def running(app: leveret.App) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(app.serve(stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def test_an_app_is_ready_while_its_own_checks_are_well(broker: EmbeddedBroker) -> None:
    found: list[str | None] = [None]
    app = leveret.App(broker.url)
    app.topology = leveret.Topology().queue("work")
    app.consumer("work")(ignore)

    @app.health_check(every=0.01)
    async def database(client: leveret.Client) -> str | None:
        assert client is app.client
        return found[0]

    @app.health_check(every=0.01)
    def disk(client: leveret.Client) -> None:
        if found[0] is not None:
            raise OSError("it is full")

    async with running(app):
        await app.ready()
        found[0] = "it does not answer"
        await until(lambda: len(app.health().reasons) == 2)
        assert app.health().live
        first, second = app.health().reasons
        assert first.endswith("database: it does not answer")
        assert second.endswith("disk: OSError: it is full")
        found[0] = None
        await app.ready()


@pytest.mark.parametrize("plain", [True, False])
async def test_a_check_that_hangs_is_a_reason_and_is_called_once(
    broker: EmbeddedBroker, plain: bool, caplog: pytest.LogCaptureFixture
) -> None:
    calls = []
    go_on = threading.Event()
    app = leveret.App(broker.url)
    app.topology = leveret.Topology().queue("work")
    app.consumer("work")(ignore)

    def hang(client: leveret.Client) -> None:
        calls.append(1)
        go_on.wait(20)

    async def hang_in_the_loop(client: leveret.Client) -> None:
        calls.append(1)
        await asyncio.Event().wait()

    app.health_check(every=60, timeout=0.1)(hang if plain else hang_in_the_loop)
    async with running(app):
        await until(lambda: any("did not answer within 0.1 s" in reason for reason in app.health().reasons))
        assert not app.health().ready
        go_on.set()
    assert len(calls) == 1
    assert sum("did not answer" in message for message in caplog.messages) == 1


async def test_an_app_that_is_not_ready_in_time_says_why(broker: EmbeddedBroker) -> None:
    app = leveret.App(broker.url)
    app.topology = leveret.Topology().queue("work")
    app.consumer("work")(ignore)
    with pytest.raises(OperationTimeout, match=r"not ready within 0\.05 s: the app is not running"):
        await app.ready(0.05)
    app.on_startup(lambda client: app.stop())
    serving = asyncio.create_task(app.serve())
    with pytest.raises(ConnectionClosed, match="the app has ended before it was ready"):
        await app.ready()
    await serving
