"""Sinks read the counters when they like, and one that misbehaves stays outside."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import until
from tests.support.metrics import values
from tests.support.plugins import plugin

import leveret
from leveret.errors import ConfigurationError, PluginError
from leveret.monitoring.catalogue import METRICS
from leveret.plugins import MetricsSource, MetricsSpec, PluginRegistry
from leveret.settings import MonitoringSettings

if TYPE_CHECKING:
    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")


class Sink:
    """Keeps its source; the tests pull by hand."""

    def __init__(self) -> None:
        self.source: MetricsSource | None = None
        self.closed = 0
        self.threads: set[str] = set()

    def start(self, source: MetricsSource) -> None:
        self.source = source
        self.threads.add(threading.current_thread().name)

    def close(self) -> None:
        self.closed += 1
        self.threads.add(threading.current_thread().name)


def registry_of(sink: Any) -> PluginRegistry:
    return PluginRegistry.from_plugins(plugin("gauges", metrics=[MetricsSpec(name="test", factory=lambda: sink)]))


MONITORING = MonitoringSettings(sinks=["test"], sink_timeout=0.2)


async def test_a_sink_reads_the_live_counters_until_it_is_closed(embedded: EmbeddedBroker) -> None:
    sink = Sink()
    async with leveret.connect(embedded.url, plugins=registry_of(sink), monitoring=MONITORING) as client:
        assert sink.source is not None
        await client.declare(leveret.Topology().queue("q"))
        async with client.producer() as producer:
            for count in (1, 2, 3):
                await producer.publish(count, "q")
                read = await asyncio.to_thread(lambda: values(sink.source.snapshot()))  # type: ignore[union-attr]
                assert read["publishings_confirmed", ""] == count
        assert sink.source.metrics == METRICS
        assert sink.closed == 0
    assert sink.closed == 1
    assert sink.threads == {"leveret metrics sink test"}


async def test_an_unknown_sink_is_an_error_before_anything_is_connected() -> None:
    with pytest.raises(ConfigurationError, match=r"no metrics 'prometeus'; known are") as caught:
        await leveret.connect("amqp://127.0.0.1:1", monitoring=MonitoringSettings(sinks=["prometeus"]))
    assert caught.value.option == "sinks"


class HangsAtClose(Sink):
    def __init__(self) -> None:
        super().__init__()
        self.release = threading.Event()

    def close(self) -> None:
        self.release.wait()


class HangsAtStart(HangsAtClose):
    def start(self, source: MetricsSource) -> None:
        self.release.wait()


class RaisesAtStart(Sink):
    def start(self, source: MetricsSource) -> None:
        raise OSError("port is taken")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (
            HangsAtStart,
            "the metrics sink 'test' of the plugin object 'gauges' did not start within sink_timeout of 0.2 s",
        ),
        (
            RaisesAtStart,
            "the metrics sink 'test' of the plugin object 'gauges' failed to start: OSError: port is taken",
        ),
    ],
)
async def test_connecting_fails_and_leaves_nothing_when_a_sink_does_not_start(
    embedded: EmbeddedBroker, kind: type[Sink], text: str
) -> None:
    sink = kind()
    with pytest.raises(PluginError) as caught:
        await leveret.connect(embedded.url, plugins=registry_of(sink), monitoring=MONITORING)
    assert str(caught.value) == text
    assert (caught.value.plugin, caught.value.distribution) == ("gauges", "")
    if isinstance(sink, HangsAtClose):
        sink.release.set()


class RaisesAtClose(Sink):
    def close(self) -> None:
        raise SystemExit("not today")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (HangsAtClose, "did not close within sink_timeout of 0.2 s"),
        (RaisesAtClose, "failed to close: SystemExit: not today"),
    ],
)
async def test_closing_goes_on_when_a_sink_does_not(
    embedded: EmbeddedBroker, caplog: pytest.LogCaptureFixture, kind: type[Sink], text: str
) -> None:
    sink = kind()
    async with leveret.connect(embedded.url, plugins=registry_of(sink), monitoring=MONITORING) as client:
        await client.declare(leveret.Topology().queue("q"))
    assert not client.connection.is_open
    assert f"the metrics sink 'test' of the plugin object 'gauges' {text}" in caplog.text
    if isinstance(sink, HangsAtClose):
        sink.release.set()


class NotingSink:
    """Notes what happens to it; it waits where a test says so."""

    def __init__(self, waits_in: str = "") -> None:
        self.waits_in = waits_in
        self.entered: list[str] = []
        self.done: list[str] = []
        self.go_on = threading.Event()

    def _do(self, what: str) -> None:
        self.entered.append(what)
        if what == self.waits_in:
            self.go_on.wait(10)
        self.done.append(what)

    def start(self, source: MetricsSource, /) -> None:
        self._do("start")

    def close(self) -> None:
        self._do("close")


def with_sinks(**sinks: NotingSink) -> dict[str, Any]:
    specs = [MetricsSpec(name=name, factory=lambda sink=sink: sink) for name, sink in sinks.items()]  # type: ignore[misc]
    return {
        "plugins": PluginRegistry.from_plugins(plugin("sinks", metrics=specs)),
        "monitoring": MonitoringSettings(sinks=tuple(sinks), sink_timeout=0.2),
    }


async def test_every_sink_is_closed_when_closing_is_cancelled_and_done_again(embedded: EmbeddedBroker) -> None:
    slow, other = NotingSink("close"), NotingSink()
    client = await leveret.connect(embedded.url, **with_sinks(slow=slow, other=other))
    closing = asyncio.create_task(client.close())
    await until(lambda: "close" in slow.entered)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    slow.go_on.set()
    await client.close()
    assert other.done == ["start", "close"]


async def test_a_sink_does_not_start_behind_its_end_when_it_starts_too_slowly(embedded: EmbeddedBroker) -> None:
    slow = NotingSink("start")
    with pytest.raises(PluginError, match="did not start within"):
        await leveret.connect(embedded.url, **with_sinks(slow=slow))
    slow.go_on.set()
    await until(lambda: len(slow.done) >= 2)
    assert slow.done == ["start", "close"]
