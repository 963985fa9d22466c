"""With a live client on an embedded broker: what is exported, and that the dashboard asks for nothing else."""

from __future__ import annotations

import gc
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import leveret
import leveret_prometheus
from leveret.broker import EmbeddedBroker
from leveret.plugins import MetricsSpec, PluginRegistry, hookimpl
from leveret_prometheus import PrometheusSink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    Scrape = Callable[[], dict[str, float]]

METRIC = re.compile(r"\bleveret_[a-z0-9_]+")


class Exported(NamedTuple):
    kind: str
    labels: frozenset[str]


class Plugin:
    """The sink, into the test's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry

    @hookimpl
    def leveret_metrics(self) -> list[MetricsSpec]:
        return [MetricsSpec(name="prometheus", factory=lambda: PrometheusSink(self.registry))]


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    async with EmbeddedBroker() as broker:
        yield broker


def connect(broker: EmbeddedBroker, registry: CollectorRegistry, name: str = "billing") -> Any:
    return leveret.connect(
        broker.url,
        client_name=name,
        plugins=PluginRegistry.from_plugins(Plugin(registry)),
        monitoring=leveret.MonitoringSettings(sinks=["prometheus"]),
    )


async def publish_and_consume(client: leveret.Client, count: int) -> tuple[object, object]:
    """Returns the producer and the consumer: gauges are theirs, and end with them."""
    await client.declare(leveret.Topology().queue("work"))
    async with client.producer() as producer:
        (await producer.publish_batch(range(count), "work")).raise_for_failures()
    consumer = client.consumer("work", int)

    async def handle(value: int, message: leveret.Message) -> None:
        if value == count - 1:
            consumer.stop()

    await consumer.run(handle)
    return producer, consumer


async def exported(broker: EmbeddedBroker, registry: CollectorRegistry) -> dict[str, Exported]:
    """Everything that a client at work exports, by the names that PromQL uses."""
    async with connect(broker, registry) as client:
        kept = await publish_and_consume(client, 3)
        families = list(text_string_to_metric_families(generate_latest(registry).decode()))
        del kept
    return {
        sample.name: Exported(family.type, frozenset(sample.labels)) for family in families for sample in family.samples
    }


async def test_histograms_are_exported_as_buckets_with_count_and_sum_and_survive_their_client(
    broker: EmbeddedBroker, registry: CollectorRegistry
) -> None:
    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"client": "billing", **labels})

    async with connect(broker, registry) as client:
        kept = await publish_and_consume(client, 5)
        name, labels = "leveret_handler_time_seconds", {"queue": "work"}
        counts = [value(f"{name}_bucket", **labels, le=bound) for bound in ("0.0001", "0.01", "1.0", "60.0", "+Inf")]
        assert None not in counts
        assert counts == sorted(counts, key=float)  # type: ignore[arg-type]
        assert counts[-1] == value(f"{name}_count", **labels) == 5
        total = value(f"{name}_sum", **labels)
        assert total is not None
        assert 0 < total < 60
        assert value("leveret_batches_size_messages_bucket", exchange="", le="5.0") == 1
        assert value("leveret_batches_size_messages_bucket", exchange="", le="2.0") == 0
        del kept
    async with connect(broker, registry) as client:
        kept = await publish_and_consume(client, 5)
        assert value(f"{name}_count", **labels) == 10
        del kept


def expressions(value: Any) -> list[str]:
    """Every PromQL expression in the dashboard, those of variables too."""
    if isinstance(value, dict):
        found = [value[key] for key in ("expr", "definition") if isinstance(value.get(key), str)]
        return found + [text for part in value.values() for text in expressions(part)]
    if isinstance(value, list):
        return [text for part in value for text in expressions(part)]
    return []


async def test_counters_are_exported_when_a_client_publishes_and_consumes(
    broker: EmbeddedBroker, registry: CollectorRegistry, scrape: Scrape
) -> None:
    async with connect(broker, registry) as client:
        await publish_and_consume(client, 7)
        values = scrape()

    assert values['leveret_publishings_messages_total{client="billing",exchange=""}'] == 7
    assert values['leveret_publishings_confirmed_messages_total{client="billing",exchange=""}'] == 7
    assert values['leveret_deliveries_messages_total{client="billing",queue="work"}'] == 7
    assert values['leveret_deliveries_acked_messages_total{client="billing",queue="work"}'] == 7
    assert values['leveret_connections_open{client="billing",connection="publish"}'] == 1


async def test_counters_keep_their_values_when_the_client_is_closed(
    broker: EmbeddedBroker, registry: CollectorRegistry, scrape: Scrape
) -> None:
    for _ in range(2):
        async with connect(broker, registry) as client:
            await publish_and_consume(client, 5)

    values = scrape()
    assert values['leveret_publishings_messages_total{client="billing",exchange=""}'] == 10
    assert not any(name.startswith("leveret_connections_open{") for name in values)


async def test_clients_are_told_apart_when_they_have_names(
    broker: EmbeddedBroker, registry: CollectorRegistry, scrape: Scrape
) -> None:
    async with connect(broker, registry, "one") as one, connect(broker, registry, "two") as two:
        await publish_and_consume(one, 1)
        await publish_and_consume(two, 2)
        values = scrape()

    assert values['leveret_publishings_messages_total{client="one",exchange=""}'] == 1
    assert values['leveret_publishings_messages_total{client="two",exchange=""}'] == 2


async def test_s33_garbage_collections_are_exported_when_a_policy_is_attached(
    broker: EmbeddedBroker, registry: CollectorRegistry, scrape: Scrape
) -> None:
    async with connect(broker, registry) as client:
        assert not any(name.startswith("leveret_gc_") for name in scrape())
        async with leveret.GcPolicy(interval=60) as policy:
            policy.attach(client)
            gc.collect(1)
            values = scrape()

    assert values['leveret_gc_collections_total{client="billing",generation="1"}'] >= 1
    for name in ("collected_objects", "uncollectable_objects", "time_milliseconds"):
        assert f'leveret_gc_{name}_total{{client="billing",generation="0"}}' in values


async def test_dashboard_names_only_metrics_that_a_client_exports(
    broker: EmbeddedBroker, registry: CollectorRegistry
) -> None:
    known = await exported(broker, registry)
    queries = expressions(json.loads(leveret_prometheus.dashboard()))
    named = {name for text in queries for name in METRIC.findall(text)}

    assert len(named) > 10
    assert named <= known.keys()


async def test_dashboard_takes_rates_of_counters_and_of_nothing_else(
    broker: EmbeddedBroker, registry: CollectorRegistry
) -> None:
    known = await exported(broker, registry)
    checked = 0
    for text in expressions(json.loads(leveret_prometheus.dashboard())):
        rated = set(re.findall(r"\b(?:rate|irate|increase)\(\s*(leveret_[a-z0-9_]+)", text))
        counters = {name for name in METRIC.findall(text) if known[name].kind in {"counter", "histogram"}}
        if "label_values" not in text:
            assert rated == counters, text
            checked += len(rated)
    assert checked > 10


async def test_dashboard_groups_by_labels_that_the_metrics_have(
    broker: EmbeddedBroker, registry: CollectorRegistry
) -> None:
    known = await exported(broker, registry)

    for text in expressions(json.loads(leveret_prometheus.dashboard())):
        (name,) = METRIC.findall(text)
        asked = re.findall(r"by \(([^)]*)\)", text) + re.findall(r"label_values\([^,]+, (\w+)\)", text)
        asked += re.findall(r"(\w+)=~", text)
        assert {word.strip() for words in asked for word in words.split(",")} <= known[name].labels, text


def test_dashboard_can_be_imported_when_grafana_reads_it() -> None:
    board = json.loads(leveret_prometheus.dashboard())
    panels = board["panels"]
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}

    assert board["schemaVersion"] >= 36
    assert board["title"] == "Leveret"
    assert "id" not in board  # an id would make the import overwrite whatever has it
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        assert {"id", "type", "title", "gridPos"} <= panel.keys()
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["expr"].count("(") == target["expr"].count(")")
        assert panel["type"] == "row" or panel["targets"]


def test_dashboard_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(leveret_prometheus.dashboard())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
