"""Functions that callers pass in: handlers, hooks and providers may be `async def`; what is only called is refused.

A coroutine that nothing awaits does nothing, and says so only when it is collected.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.plugins import plugin, serializer_plugin

import leveret
from leveret import ErrorPolicy, ObjectPool
from leveret.connection.connection import Connection
from leveret.errors import ConfigurationError, PluginError
from leveret.plugins import CompressorSpec, MetricsSpec, PluginRegistry, PolicySpec
from leveret.settings import ConnectionSettings, MonitoringSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def function(*_: Any) -> Any:
    """What nothing would await."""


class Listener:
    """Has the function as a method, and is one."""

    async def method(self, *_: Any) -> Any: ...

    async def __call__(self, *_: Any) -> Any: ...


async def generator(*_: Any) -> Any:
    yield 1


ASYNC = [function, Listener().method, Listener(), functools.partial(function, 1), generator]
every_kind = pytest.mark.parametrize("given", ASYNC, ids=["function", "method", "object", "partial", "generator"])


@every_kind
async def test_a_function_that_is_called_and_not_awaited_is_no_async_def(client: leveret.Client, given: Any) -> None:
    async with client.producer() as producer:
        calls: dict[str, Callable[[], object]] = {
            "listener": lambda: producer.on_confirm(given),
            "on_error": lambda: client.consumer("q", on_error=given),
            "ordered_by": lambda: client.consumer("q", ordered_by=given),
            "create": lambda: ObjectPool(given),
            "reset": lambda: ObjectPool(list, given),
        }
        for option, call in calls.items():
            with pytest.raises(ConfigurationError, match=r"`async def`.*(not awaited|must not wait)") as caught:
                call()
            assert caught.value.option == option
    with pytest.raises(ConfigurationError, match="on_error"):
        ErrorPolicy(given)
    with pytest.raises(ConfigurationError, match="on_event is the `async def`"):
        await Connection.open(ConnectionSettings(), on_event=given)


@pytest.mark.parametrize("given", [5, "name", None])
async def test_what_is_no_function_is_refused(client: leveret.Client, given: Any) -> None:
    async with client.producer() as producer:
        with pytest.raises(ConfigurationError, match=f"listener is a {type(given).__name__}, not a function"):
            producer.on_confirm(given)


async def test_a_listener_that_returns_a_coroutine_is_named_in_the_log(
    client: leveret.Client, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "leveret")
    async with client.producer() as producer:
        producer.on_confirm(lambda *confirm: function(*confirm))  # noqa: PLW0108 - it is no `async def` itself
        await producer.publish(1, queue)
    assert "<lambda> must not return a coroutine" in caplog.text


async def test_the_handler_of_batches_is_an_async_def(client: leveret.Client, queue: str) -> None:
    def store(values: list[Any], batch: Any) -> None:
        """Would be called in the event loop."""

    batches: Any = client.batches(queue, size=1)
    for wrong, text in (
        (store, "must be an `async def` function"),
        (lambda values, batch: function(), "must be an `async def` function"),
        (5, "must be a function of"),
    ):
        with pytest.raises(ConfigurationError, match=text) as caught:
            await batches.run(wrong)
        assert caught.value.option == "handler"
    async with client.producer() as producer:
        await producer.publish(1, queue)
    got: list[Any] = []

    class Store:
        async def __call__(self, values: list[Any], batch: Any) -> None:
            got.extend(values)
            batches.consumer.stop()

    async with asyncio.timeout(5):
        await batches.run(Store())
    assert got == [1]


class Sink:
    async def start(self, source: object) -> None: ...

    async def close(self) -> None: ...


class Policy:
    closed = True

    async def next_delay(self, attempt: int, error: BaseException) -> None: ...

    async def delay(self, attempt: int) -> None: ...

    async def before_call(self) -> None: ...

    async def record(self, *_: Any, **__: Any) -> None: ...


@pytest.mark.parametrize(
    ("made", "options", "said"),
    [
        (serializer_plugin("odd", encode=function), {"serializer": "odd"}, r"odd' of .* `async def` encode\(\)"),
        (
            plugin(metrics=[MetricsSpec(name="odd", factory=Sink)]),  # type: ignore[arg-type]
            {"sinks": ["odd"]},
            r"odd' of .* `async def` start\(\)",
        ),
        (
            plugin(policies=[PolicySpec(kind="retry", name="odd", factory=Policy)]),  # type: ignore[arg-type]
            {"retry": "odd"},
            r"odd' of .* `async def` next_delay\(\)",
        ),
        (
            plugin(policies=[PolicySpec(kind="circuit_breaker", name="odd", factory=Policy)]),  # type: ignore[arg-type]
            {"circuit_breaker": "odd"},
            r"odd' of .* `async def` before_call\(\)",
        ),
        (
            plugin(policies=[PolicySpec(kind="backoff", name="odd", factory=Policy)]),  # type: ignore[arg-type]
            {"recovery_backoff": "odd"},
            r"odd' of .* `async def` delay\(\)",
        ),
    ],
    ids=["serializer", "metrics", "retry", "breaker", "backoff"],
)
async def test_plugins_objects_have_no_async_methods(
    embedded: EmbeddedBroker, made: Any, options: dict[str, Any], said: str
) -> None:
    registry = PluginRegistry.from_plugins(made)
    sinks = options.pop("sinks", ())
    connection = {name: options.pop(name) for name in ("recovery_backoff",) if name in options}
    with pytest.raises(PluginError, match=said):
        async with leveret.connect(
            embedded.url, plugins=registry, monitoring=MonitoringSettings(sinks=sinks), **connection
        ) as client:
            client.producer(**options)


async def test_policies_given_as_objects_have_no_async_methods(client: leveret.Client) -> None:
    odd: Any = Policy()
    for option in ("retry", "circuit_breaker"):
        with pytest.raises(ConfigurationError, match=rf"{option} is a Policy with an `async def`") as caught:
            client.producer(**{option: odd})
        assert caught.value.option == option


def test_descriptors_have_no_async_functions() -> None:
    wrong: Any = function
    specs: Any = {
        "compressors": CompressorSpec(name="odd", content_encoding="odd", factory=wrong, levels=(1, 9)),
        "metrics": MetricsSpec(name="odd", factory=wrong),
    }
    for hook, spec in specs.items():
        with pytest.raises(PluginError, match=r"its factory is an `async def`"):
            PluginRegistry.from_plugins(plugin("odd", **{hook: [spec]}))
    with pytest.raises(PluginError, match=r"its models is an `async def`"):
        PluginRegistry.from_plugins(serializer_plugin("odd", models=wrong))
