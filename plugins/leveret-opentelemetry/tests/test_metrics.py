"""The sink `opentelemetry`: instruments that are shared, sources that end, sources that fail."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider, ObservableCounter
from opentelemetry.sdk.metrics.export import AggregationTemporality, InMemoryMetricReader, Sum

import leveret
import leveret_opentelemetry
from leveret.broker import EmbeddedBroker
from leveret.errors import ConfigurationError
from leveret.plugins import Metric, MetricsSpec, PluginRegistry, Sample, hookimpl
from leveret_opentelemetry import OpenTelemetrySink, _metrics

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[["Numbers"], OpenTelemetrySink]
    #: Values by metric name and the values of the attributes.
    Collect = Callable[[], dict[tuple[str, tuple[str, ...]], float]]

PUBLISHINGS = Metric("publishings", "counter", "messages", "Publishings that were written.", ("client", "exchange"))
UNSETTLED = Metric("deliveries_unsettled", "gauge", "messages", "Deliveries being worked on.", ("client", "queue"))
ORDERS = ("leveret.publishings", ("billing", "orders"))
WORK = ("leveret.deliveries_unsettled", ("billing", "work"))


class Numbers:
    """A metrics source that says what the test put into it, and raises when the test says so."""

    def __init__(self, values: dict[tuple[Metric, tuple[str, ...]], int]) -> None:
        self.values = values
        self.error: Exception | None = None
        self.reads = 0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple({metric: None for metric, _ in self.values})

    def snapshot(self) -> list[Sample]:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return [Sample(metric, labels, value) for (metric, labels), value in self.values.items()]


def publishings(value: int, client: str = "billing", exchange: str = "orders") -> Numbers:
    return Numbers({(PUBLISHINGS, (client, exchange)): value})


def both(value: int) -> Numbers:
    return Numbers({(PUBLISHINGS, ("billing", "orders")): value, (UNSETTLED, ("billing", "work")): value})


def collected(reader: InMemoryMetricReader) -> Any:
    return reader.get_metrics_data()


@pytest.fixture
def start(meter_provider: MeterProvider) -> Start:
    """Starts a new sink with a source."""

    def begin(source: Numbers) -> OpenTelemetrySink:
        sink = OpenTelemetrySink(meter_provider)
        sink.start(source)
        return sink

    return begin


def test_sink_is_found_when_the_wheel_is_installed() -> None:
    sink, provided = PluginRegistry.load().make_sink("opentelemetry")

    assert isinstance(sink, OpenTelemetrySink)
    assert provided.origin == f"leveret-opentelemetry {leveret_opentelemetry.__version__}"


def test_meter_provider_is_refused_when_it_is_something_else() -> None:
    console: Any = "console"
    with pytest.raises(ConfigurationError, match="get_meter") as caught:
        OpenTelemetrySink(console)

    assert caught.value.option == "meter_provider"


# ---------------------------------------------------------------------- instruments


def test_counters_are_monotonic_sums_and_gauges_are_not(start: Start, reader: InMemoryMetricReader) -> None:
    start(both(3))

    (resource,) = collected(reader).resource_metrics
    (scope,) = resource.scope_metrics
    counter, gauge = scope.metrics
    assert scope.scope.name == "leveret_opentelemetry"
    assert (counter.name, counter.unit, counter.description) == (
        "leveret.publishings",
        "{message}",
        "Publishings that were written.",
    )
    assert isinstance(counter.data, Sum)
    assert counter.data.is_monotonic
    assert dict(counter.data.data_points[0].attributes or {}) == {"client": "billing", "exchange": "orders"}
    assert gauge.name == "leveret.deliveries_unsettled"
    assert not gauge.data.is_monotonic


@pytest.mark.parametrize(
    ("unit", "ucum"),
    [("bytes", "By"), ("", "1"), ("messages", "{message}"), ("bodies", "{body}"), ("seconds", "s")],
)
def test_unit_is_ucums(unit: str, ucum: str, start: Start, reader: InMemoryMetricReader) -> None:
    start(Numbers({(Metric("things", "counter", unit, "", ()), ()): 1}))

    ((metric,),) = [
        scope.metrics for resource in collected(reader).resource_metrics for scope in resource.scope_metrics
    ]
    assert metric.unit == ucum


def test_source_is_read_once_when_collected_and_at_no_other_time(start: Start, collect: Collect) -> None:
    source = both(1)
    start(source)
    assert source.reads == 0

    for count in (1, 2, 3):
        source.values[PUBLISHINGS, ("billing", "orders")] = count
        assert collect()[ORDERS] == count
        assert source.reads == count


def test_instruments_are_made_when_a_later_source_has_other_metrics(start: Start, collect: Collect) -> None:
    start(publishings(1))
    collect()
    start(Numbers({(UNSETTLED, ("billing", "work")): 5}))

    assert collect() == {ORDERS: 1, WORK: 5}


def test_label_can_be_exported_when_it_is_not_utf_8(start: Start, collect: Collect) -> None:
    start(publishings(1, exchange="caf\udce9 é"))

    assert collect() == {("leveret.publishings", ("billing", r"caf\udce9 é")): 1}


# ---------------------------------------------------------------------- several clients, start and close


def test_equal_labels_are_added_up_when_two_clients_have_them(start: Start, collect: Collect) -> None:
    start(both(3))
    start(both(4))

    assert collect() == {ORDERS: 7, WORK: 7}


def test_source_is_counted_once_when_started_twice(meter_provider: MeterProvider, collect: Collect) -> None:
    sink = OpenTelemetrySink(meter_provider)
    source = publishings(3)
    sink.start(source)
    sink.start(source)

    assert collect() == {ORDERS: 3}


def test_nothing_is_observed_when_all_clients_are_closed(start: Start, collect: Collect) -> None:
    source = both(3)
    sink = start(source)
    collect()
    sink.close()
    sink.close()
    reads = source.reads

    assert collect() == {}
    assert source.reads == reads


def test_only_the_closed_client_ends_when_another_goes_on(start: Start, collect: Collect) -> None:
    closing = start(publishings(3, client="one"))
    start(publishings(4, client="two"))
    collect()
    closing.close()

    assert collect() == {("leveret.publishings", ("two", "orders")): 4}


def test_counters_go_on_from_their_sums_when_a_client_comes_again(start: Start, collect: Collect) -> None:
    start(both(3)).close()
    start(both(4)).close()
    start(both(1))

    assert collect() == {ORDERS: 8, WORK: 1}


def test_counters_do_not_fall_when_one_of_two_clients_closes(start: Start, collect: Collect) -> None:
    closing = start(publishings(3))
    start(publishings(4))
    closing.close()

    assert collect() == {ORDERS: 7}


def test_differences_are_never_negative_when_a_reader_wants_those_and_clients_come_and_go() -> None:
    reader = InMemoryMetricReader(preferred_temporality={ObservableCounter: AggregationTemporality.DELTA})
    provider = MeterProvider([reader], shutdown_on_exit=False)
    differences = []
    for value in (5, 2, 9):
        sink = OpenTelemetrySink(provider)
        sink.start(publishings(value))
        for resource in collected(reader).resource_metrics:
            for scope in resource.scope_metrics:
                differences += [point.value for metric in scope.metrics for point in metric.data.data_points]
        sink.close()
    provider.shutdown()

    assert differences == [5, 2, 9]


def test_providers_are_apart_when_two_are_used(start: Start, collect: Collect) -> None:
    reader = InMemoryMetricReader()
    other = MeterProvider([reader], shutdown_on_exit=False)
    OpenTelemetrySink(other).start(publishings(5))
    start(publishings(1))

    assert collect() == {ORDERS: 1}
    other.shutdown()


def test_source_is_let_go_when_the_sink_is_closed(start: Start, collect: Collect) -> None:
    source = both(1)
    reference = weakref.ref(source)
    sink = start(source)
    collect()
    sink.close()
    del source
    gc.collect()

    assert reference() is None


def test_provider_is_freed_when_nobody_else_holds_it() -> None:
    provider = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    sink = OpenTelemetrySink(provider)
    sink.start(publishings(1))
    provider.shutdown()
    reference = weakref.ref(provider)
    del provider, sink
    gc.collect()

    assert reference() is None


def test_oldest_counters_are_dropped_when_closed_clients_left_too_many(
    start: Start, collect: Collect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_metrics, "MOST_CLOSED", 2)
    for number in range(5):
        start(publishings(1, client=f"client-{number}")).close()
    for number in range(5):
        start(publishings(10, client=f"client-{number}"))

    assert list(collect().values()) == [10, 10, 10, 11, 11]


# ---------------------------------------------------------------------- failures


def test_failing_source_is_left_out_and_logged_once_when_others_work(
    start: Start, collect: Collect, caplog: pytest.LogCaptureFixture
) -> None:
    broken = both(5)
    start(broken)
    start(publishings(2))
    assert collect() == {ORDERS: 7, WORK: 5}
    broken.error = RuntimeError("gone")

    for _ in range(3):
        assert collect() == {ORDERS: 7}

    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    broken.error = None
    assert collect() == {ORDERS: 7, WORK: 5}


# ---------------------------------------------------------------------- a live client


class Plugin:
    """The sink, into the test's meter provider."""

    def __init__(self, provider: MeterProvider) -> None:
        self.provider = provider

    @hookimpl
    def leveret_metrics(self) -> list[MetricsSpec]:
        return [MetricsSpec(name="opentelemetry", factory=lambda: OpenTelemetrySink(self.provider))]


async def test_all_metrics_of_a_client_are_observed_until_it_closes(
    meter_provider: MeterProvider, collect: Collect
) -> None:
    async with EmbeddedBroker() as broker:
        connecting: Any = leveret.connect(
            broker.url,
            client_name="billing",
            plugins=PluginRegistry.from_plugins(Plugin(meter_provider)),
            monitoring=leveret.MonitoringSettings(sinks=["opentelemetry"]),
        )
        async with connecting as client:
            await client.declare(leveret.Topology().queue("work"))
            async with client.producer() as producer:
                await producer.publish_batch(range(5), "work")
            observed = collect()
            expected = {
                f"leveret.{sample.metric.name}{ending}"
                for sample in client.metrics()
                for ending in ((".count", ".sum") if sample.metric.kind == "histogram" else ("",))
            }

    assert observed["leveret.publishings", ("billing", "")] == 5
    assert observed["leveret.publishings_confirmed", ("billing", "")] == 5
    assert observed["leveret.publishings_confirm_time.count", ("billing", "")] == 5
    assert 0 < observed["leveret.publishings_confirm_time.sum", ("billing", "")] < 5 * 30
    assert {name for name, _ in observed} == expected
    assert collect() == {}
