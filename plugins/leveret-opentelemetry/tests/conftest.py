"""The SDK, collecting in memory, and a broker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import leveret
from leveret.broker import EmbeddedBroker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from opentelemetry.sdk.trace import ReadableSpan


class Spans:
    """What was exported, by the spans' names."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        names = [span.name for span in self._exporter.get_finished_spans()]
        assert names.count(name) == 1, names
        return self.named(name)[0]

    @property
    def names(self) -> list[str]:
        return [span.name for span in self._exporter.get_finished_spans()]


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer_provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    provider.shutdown()


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Spans:
    return Spans(exporter)


@pytest.fixture
def reader() -> InMemoryMetricReader:
    return InMemoryMetricReader()


@pytest.fixture
def meter_provider(reader: InMemoryMetricReader) -> Iterator[MeterProvider]:
    provider = MeterProvider([reader], shutdown_on_exit=False)
    yield provider
    provider.shutdown()


@pytest.fixture
def collect(
    reader: InMemoryMetricReader, meter_provider: MeterProvider
) -> Callable[[], dict[tuple[str, tuple[str, ...]], float]]:
    """What a metric reader gets: values by metric name and the values of the attributes."""

    def read() -> dict[tuple[str, tuple[str, ...]], float]:
        data: Any = reader.get_metrics_data()
        return {
            (metric.name, tuple(point.attributes.values())): point.value
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            for point in metric.data.data_points
        }

    return read


@pytest.fixture
async def client() -> AsyncIterator[leveret.Client]:
    """A client with the queue `work`, whose refused messages go to the queue `dead`."""
    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
        await client.declare(
            leveret.Topology()
            .exchange("orders", "topic")
            .exchange("refused", "fanout")
            .queue("dead")
            .bind("dead", "refused")
            .queue("work", leveret.Classic(dead_letter_exchange="refused"))
            .bind("work", "orders", "#")
        )
        yield client
