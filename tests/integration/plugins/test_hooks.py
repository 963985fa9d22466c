"""Each hook is called when it is due, and what it returns arrives; a test of a hook begins with the hook's name."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import TYPE_CHECKING, Any

import click
import pytest
from tests.support.bodies import body_of

import leveret
from leveret.broker import EmbeddedBroker
from leveret.errors import MessageNacked
from leveret.plugins import (
    CommandSpec,
    CompositeSpec,
    CompressorSpec,
    ConnectionEvent,
    ConnectionEventKind,
    MetricsSpec,
    PluginRegistry,
    PolicySpec,
    SerializerSpec,
    hookimpl,
)
from leveret.plugins.builtin import TextSerializer

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.plugins import MetricsSource


class Reversing:
    """A serializer and a compressor at once: it turns round whatever it gets."""

    def encode(self, value: str) -> bytes:
        return value[::-1].encode()

    def decoder(self, model: Any) -> Callable[[bytes], Any]:
        return lambda body: body.decode()[::-1]

    def compress(self, data: bytes, /) -> bytes:
        return data[: len(data) // 4]

    def decompress(self, data: bytes, /, max_size: int) -> bytes:
        return data * 4


class Sink:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.source: MetricsSource | None = None

    def start(self, source: MetricsSource, /) -> None:
        self.calls.append("start")
        self.source = source

    def close(self) -> None:
        self.calls.append("close")


class Once:
    def __init__(self) -> None:
        self.asked: list[tuple[int, type[BaseException]]] = []

    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        self.asked.append((attempt, type(error)))
        return 0.0 if attempt == 1 else None


class Plugin:
    """A plugin with all hooks, which counts their calls and keeps what its factories made."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.events: list[ConnectionEvent] = []
        self.told = asyncio.Event()
        self.sinks: list[Sink] = []
        self.policies: list[Once] = []
        self.levels: list[int | None] = []

    def _sink(self) -> Sink:
        self.sinks.append(Sink())
        return self.sinks[-1]

    def _policy(self) -> Once:
        self.policies.append(Once())
        return self.policies[-1]

    def _compressor(self, level: int | None) -> Reversing:
        self.levels.append(level)
        return Reversing()

    @hookimpl
    def leveret_serializers(self) -> list[SerializerSpec | CompositeSpec]:
        self.calls["leveret_serializers"] += 1
        return [
            SerializerSpec(name="reversing", content_type="text/x-reversed", factory=Reversing, api_version=1),
            CompositeSpec(
                name="long-or-short",
                parts=("reversing", "text"),
                select=lambda value: "reversing" if len(value) > 3 else "text",
                api_version=1,
            ),
        ]

    @hookimpl
    def leveret_compressors(self) -> list[CompressorSpec]:
        self.calls["leveret_compressors"] += 1
        return [
            CompressorSpec(
                name="quarter", content_encoding="x-quarter", factory=self._compressor, levels=(1, 5), api_version=1
            )
        ]

    @hookimpl
    def leveret_metrics(self) -> list[MetricsSpec]:
        self.calls["leveret_metrics"] += 1
        return [MetricsSpec(name="kept", factory=self._sink, api_version=1)]

    @hookimpl
    def leveret_policies(self) -> list[PolicySpec]:
        self.calls["leveret_policies"] += 1
        return [PolicySpec(kind="retry", name="once", factory=self._policy, api_version=1)]

    @hookimpl
    def leveret_connection_event(self, event: ConnectionEvent) -> None:
        assert asyncio.get_running_loop()
        assert threading.current_thread() is threading.main_thread()
        self.calls["leveret_connection_event"] += 1
        self.events.append(event)
        self.told.set()

    @hookimpl
    def leveret_cli(self) -> list[CommandSpec]:
        self.calls["leveret_cli"] += 1
        return [CommandSpec(name="trace", help="Draws.", load=lambda: click.Command("trace"), api_version=1)]

    def kinds(self, purpose: str) -> list[str]:
        return [event.kind.value for event in self.events if event.connection_name.endswith(f"({purpose})")]


#: What is called for each registry, and no more.
DISCOVERED = {"leveret_serializers": 1, "leveret_compressors": 1, "leveret_metrics": 1, "leveret_policies": 1}


def test_hooks_are_called_once_for_each_registry() -> None:
    plugin = Plugin()
    first = PluginRegistry.from_plugins(plugin)
    assert plugin.calls == DISCOVERED
    PluginRegistry.from_plugins(plugin)
    assert plugin.calls == dict.fromkeys(DISCOVERED, 2)
    first.make_serializer(first.provided("serializer", "reversing"))
    first.make_compressor(first.provided("compressor", "quarter"))
    first.make_sink("kept")
    first.retry_policy("once")
    assert plugin.calls == dict.fromkeys(DISCOVERED, 2)


TIMEOUT = 10.0


async def test_no_hook_is_called_for_messages() -> None:
    plugin = Plugin()
    registry = PluginRegistry.from_plugins(plugin)
    monitoring = leveret.MonitoringSettings(sinks=["kept"])
    async with (
        EmbeddedBroker() as broker,
        leveret.connect(broker.url, plugins=registry, monitoring=monitoring) as client,
    ):
        await client.declare(leveret.Topology().queue("q"))
        consumer = client.consumer("q", prefetch=1000)
        async with client.producer(serializer="long-or-short", compressor="quarter", retry="once") as producer:
            (await producer.publish_batch(["warm"], "q")).raise_for_failures()
            seen = 0

            async def handle(value: str, message: leveret.Message) -> None:
                nonlocal seen
                seen += 1
                if seen == 1:
                    before.update(plugin.calls)
                    values = ["long enough", "not"] * 500
                    (await producer.publish_batch(values, "q")).raise_for_failures()
                    for value in values[:10]:
                        await producer.publish(value, "q")
                if seen == 1011:
                    after.update(plugin.calls)
                    consumer.stop()

            before: Counter[str] = Counter()
            after: Counter[str] = Counter()
            await asyncio.wait_for(consumer.run(handle), TIMEOUT)
    assert before == after == {**DISCOVERED, "leveret_connection_event": 2}


async def test_leveret_serializers_brings_serializers_by_name_and_content_type() -> None:
    plugin = Plugin()
    registry = PluginRegistry.from_plugins(plugin)
    assert {"reversing", "long-or-short"} <= set(registry.names("serializer"))
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q"))
        async with client.producer(serializer="reversing") as producer:
            await producer.publish("hare", "q")
        async with client.producer(serializer="long-or-short") as producer:
            await producer.publish("leveret", "q")
            await producer.publish("doe", "q")
        found = []
        async for message in client.consumer("q"):
            found.append((message.content_type, body_of(message), message.value))
            message.ack()
            if len(found) == 3:
                break
    assert found == [
        ("text/x-reversed", b"erah", "hare"),
        ("text/x-reversed", b"terevel", "leveret"),
        ("text/plain", b"doe", "doe"),
    ]


async def test_leveret_compressors_brings_compressors_by_name_and_content_encoding() -> None:
    plugin = Plugin()
    registry = PluginRegistry.from_plugins(plugin)
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q"))
        options: dict[str, Any] = {"serializer": "text", "compressor": "quarter", "compression_threshold": 0}
        async with client.producer(**options, compression_level=3) as producer:
            await producer.publish("harehareharehare", "q")
        async for message in client.consumer("q"):
            assert message.content_encoding == "x-quarter"
            assert message.value == "harehareharehare"
            message.ack()
            break
    assert plugin.levels == [3, None]


async def test_leveret_metrics_brings_a_sink_for_each_client_that_names_it() -> None:
    plugin = Plugin()
    registry = PluginRegistry.from_plugins(plugin)
    async with EmbeddedBroker() as broker:
        async with leveret.connect(broker.url, plugins=registry):
            assert plugin.sinks == []
        monitoring = leveret.MonitoringSettings(sinks=["kept"])
        async with leveret.connect(broker.url, plugins=registry, monitoring=monitoring) as client:
            (sink,) = plugin.sinks
            assert sink.calls == ["start"]
            await client.declare(leveret.Topology().queue("q"))
            async with client.producer() as producer:
                await producer.publish_batch(range(7), "q")
            assert sink.source is not None
            numbers = Counter[str]()
            for sample in sink.source.snapshot():
                numbers[sample.metric.name] += sample.value
            assert numbers["publishings"] == 7
    assert plugin.sinks == [sink]
    assert sink.calls == ["start", "close"]


async def test_leveret_policies_brings_policies_that_are_asked_after_failures() -> None:
    plugin = Plugin()
    registry = PluginRegistry.from_plugins(plugin)
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q", leveret.Classic(max_length=1, overflow="reject-publish")))
        async with client.producer(retry="once") as producer:
            (policy,) = plugin.policies
            await producer.publish(1, "q")
            assert policy.asked == []
            with pytest.raises(MessageNacked):
                await producer.publish(2, "q")
    assert policy.asked == [(1, MessageNacked), (2, MessageNacked)]


async def until(plugin: Plugin, count: int) -> None:
    """Waits until the plugin was told of so many events."""
    async with asyncio.timeout(TIMEOUT):
        while len(plugin.events) < count:
            plugin.told.clear()
            await plugin.told.wait()


async def test_leveret_connection_event_tells_of_opening_blocking_and_closing() -> None:
    plugin = Plugin()
    registry = PluginRegistry.from_plugins(plugin)
    async with EmbeddedBroker() as broker:
        async with leveret.connect(broker.url, plugins=registry, client_name="billing") as client:
            assert [(event.kind, event.connection_name) for event in plugin.events] == [
                (ConnectionEventKind.OPENED, "billing (publish)")
            ]
            await client.declare(leveret.Topology().queue("q"))
            async with client.producer() as producer:
                broker.block("low on disk")
                ticket = producer.publish_nowait(1, "q")
                await until(plugin, 2)
                assert (plugin.events[1].kind, plugin.events[1].reason) == (ConnectionEventKind.BLOCKED, "low on disk")
                broker.unblock()
                await until(plugin, 3)
                await ticket
            async for message in client.consumer("q"):
                message.ack()
                break
        assert plugin.kinds("publish") == ["opened", "blocked", "unblocked", "closed"]
        assert plugin.kinds("consume") == ["opened", "closed"]
        assert all(event.error is None for event in plugin.events)


async def test_leveret_connection_event_tells_of_a_loss_and_of_recovery() -> None:
    plugin = Plugin()
    registry = PluginRegistry.from_plugins(plugin)
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, plugins=registry) as client:
        broker.close_connections()
        await until(plugin, 2)
        lost = plugin.events[1]
        assert lost.kind is ConnectionEventKind.CLOSED
        assert isinstance(lost.error, leveret.LeveretError)
        assert lost.reason == str(lost.error)
        await client.declare(leveret.Topology().queue("q"))
        assert plugin.kinds("publish") == ["opened", "closed", "opened", "recovered"]


async def test_leveret_connection_event_changes_nothing_when_it_fails(caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        @hookimpl
        def leveret_connection_event(self, event: ConnectionEvent) -> None:
            raise RuntimeError(f"did not want {event.kind.value}")

    plugin = Plugin()
    registry = PluginRegistry.from_plugins(Failing(), plugin)
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q"))
    assert plugin.kinds("publish") == ["opened", "closed"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "plugin 'Failing'" in caplog.text
    assert "RuntimeError: did not want opened" in caplog.text


async def test_leveret_connection_event_may_leave_out_its_argument() -> None:
    class Short:
        count = 0

        @hookimpl
        def leveret_connection_event(self) -> None:
            self.count += 1

    plugin = Short()
    async with (
        EmbeddedBroker() as broker,
        leveret.connect(broker.url, plugins=PluginRegistry.from_plugins(plugin)),
    ):
        assert plugin.count == 1
    assert plugin.count == 2


def test_leveret_cli_is_called_when_commands_are_wanted() -> None:
    plugin = Plugin()
    registry = PluginRegistry.from_plugins(plugin)
    assert "leveret_cli" not in plugin.calls
    found, errors = registry.commands()
    assert plugin.calls["leveret_cli"] == 1
    assert [(info.name, spec.name, spec.help) for info, spec in found] == [("Plugin", "trace", "Draws.")]
    assert errors == []
    assert isinstance(found[0][1].load(), click.Command)


class TextPlugin:
    @hookimpl
    def leveret_serializers(self) -> list[SerializerSpec]:
        return [SerializerSpec(name="written", content_type="text/x-written", factory=TextSerializer)]

    @hookimpl
    def leveret_cli(self) -> list[CommandSpec]:
        return [CommandSpec(name="write", help="Writes.", load=lambda: click.Command("write"))]


def test_leveret_cli_that_fails_takes_nothing_else_with_it() -> None:
    class Failing(Plugin):
        @hookimpl
        def leveret_cli(self) -> list[CommandSpec]:
            raise RuntimeError("no terminal")

    registry = PluginRegistry.from_plugins(Failing(), TextPlugin())
    found, errors = registry.commands()
    assert [spec.name for _, spec in found] == ["write"]
    assert ["no terminal" in str(error) for error in errors] == [True]
    assert "reversing" in registry.names("serializer")


@pytest.mark.parametrize("name", [*DISCOVERED, "leveret_cli"])
def test_a_plugin_may_leave_out_all_hooks_but(name: str) -> None:
    def hook() -> list[object]:
        return []

    registry = PluginRegistry.from_plugins(type("Single", (), {name: staticmethod(hookimpl(hook))})())
    assert registry.plugins[-1].status == "active"
    assert registry.plugins[-1].provides == ()
