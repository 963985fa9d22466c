"""Metrics are pulled from the core's own counters, by whoever wants them; sinks that misbehave stay outside."""

from __future__ import annotations

import asyncio
import gc
import threading
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.metrics import values
from tests.support.paths import ROOT
from tests.support.plugins import plugin

import leveret
from leveret.errors import ConfigurationError, PluginError
from leveret.monitoring.catalogue import METRICS
from leveret.monitoring.monitor import Monitor
from leveret.plugins import ConnectionEventKind, MetricsSpec, PluginRegistry
from leveret.settings import MonitoringSettings

if TYPE_CHECKING:
    from leveret.broker import EmbeddedBroker
    from leveret.plugins import ConnectionEvent, MetricsSource

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_everything_is_counted_and_stays_counted_when_its_owner_is_gone(embedded: EmbeddedBroker) -> None:
    async with leveret.connect(embedded.url, client_name="billing") as client:
        await client.declare(leveret.Topology().queue("orders"))
        async with client.producer() as producer:
            await producer.publish_batch(range(100), "orders")
        async with client.consumer("orders") as consumer:
            async for message in consumer:
                message.ack()
                if message.value == 9:
                    break
            before = values(client.metrics())
        del producer, consumer, message
        await asyncio.sleep(0)  # until its next turn the loop may hold what ended a wait, and frames with it
        gc.collect()
        after = values(client.metrics())

    assert before["publishings", ""] == before["publishings_confirmed", ""] == 100
    assert before["publishing", ""] == 190  # bytes: ten of one digit, ninety of two
    assert before["deliveries", "orders"] == 100
    assert before["deliveries_unsettled", "orders"] == 90
    assert before["connections_open", "publish"] == before["connections_open", "consume"] == 1
    assert before["received", "consume"] > 1000
    assert after.items() >= {key: value for key, value in before.items() if "connection" in key[0]}.items()
    assert after["publishings", ""] == 100
    assert after["deliveries", "orders"] == 100
    assert after["deliveries_acked", "orders"] == 10
    assert ("deliveries_unsettled", "orders") not in after
    assert {sample.labels[0] for sample in client.metrics()} == {"billing"}


async def test_counters_of_many_queues_are_bounded() -> None:
    class Owner: ...

    class One:
        def read(self) -> dict[str, int]:
            return {"delivered": 1}

    monitor = Monitor("c")
    for number in range(3000):
        monitor.add(Owner(), "consumer", f"queue-{number}", One())
    samples = monitor.snapshot()
    assert len(samples) == 1001
    assert sum(sample.value for sample in samples) == 3000
    assert values(samples)["deliveries", "(other)"] == 2000
    assert len(monitor._meters) == 0


def test_metrics_are_described_and_unique() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.help.endswith(".")
        assert metric.labels[0] == "client"


# ---------------------------------------------------------------------- sinks


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


class RaisesAtClose(Sink):
    def close(self) -> None:
        raise SystemExit("not today")


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


# ---------------------------------------------------------------------- connection events


async def test_plugins_are_told_what_happens_to_connections(embedded: EmbeddedBroker) -> None:
    told: list[ConnectionEvent] = []

    def tell(event: ConnectionEvent) -> None:
        told.append(event)

    def kinds() -> list[tuple[str, str]]:
        found = [(event.kind.value, event.connection_name) for event in told]
        told.clear()
        return found

    registry = PluginRegistry.from_plugins(plugin(connection_event=tell))
    async with leveret.connect(embedded.url, client_name="billing", plugins=registry) as client:
        await client.declare(leveret.Topology().queue("q"))
        assert kinds() == [("opened", "billing (publish)")]
        await client.consumer("q").get()
        assert kinds() == [("opened", "billing (consume)")]

        embedded.block("low on memory")
        async with client.producer() as producer:
            ticket = producer.publish_nowait(1, "q")
            await asyncio.sleep(0.05)
            assert [(event.kind, event.reason) for event in told] == [(ConnectionEventKind.BLOCKED, "low on memory")]
            embedded.unblock()
            await ticket
        assert kinds() == [("blocked", "billing (publish)"), ("unblocked", "billing (publish)")]

        channel = await client.channel()
        embedded.close_connections(320, "maintenance")
        with pytest.raises(leveret.LeveretError):
            await channel.basic_qos(1)
        lost = next(event for event in told if event.connection_name == "billing (publish)")
        assert lost.kind is ConnectionEventKind.CLOSED
        assert lost.error is client.connection.error
        assert "maintenance" in lost.reason
        told.clear()

        await client.channel()
        assert kinds() == [("opened", "billing (publish)"), ("recovered", "billing (publish)")]
    assert ("closed", "billing (publish)") in kinds()


def test_the_page_lists_every_metric_as_it_is() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{metric.name}` | {metric.kind} | {metric.unit} | `{metric.labels[1]}` |" for metric in METRICS]
