"""A source whose numbers the test sets, in a registry of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from leveret.plugins import Metric, Sample

if TYPE_CHECKING:
    from collections.abc import Callable

PUBLISHINGS = Metric("publishings", "counter", "messages", "Publishings that were written.", ("client", "exchange"))
UNSETTLED = Metric("deliveries_unsettled", "gauge", "messages", "Deliveries being worked on.", ("client", "queue"))


class Numbers:
    """A metrics source that says what the test put into it, and raises when the test says so."""

    def __init__(self, values: dict[tuple[Metric, tuple[str, ...]], int]) -> None:
        self.values = values
        self.error: Exception | None = None
        self.reads = 0

    @property
    def metrics(self) -> tuple[Metric, ...]:
        return tuple({metric for metric, _ in self.values})

    def snapshot(self) -> list[Sample]:
        self.reads += 1
        if self.error is not None:
            raise self.error
        return [Sample(metric, labels, value) for (metric, labels), value in self.values.items()]


@pytest.fixture
def publishings() -> Callable[..., Numbers]:
    """Makes a source with one counter."""

    def make(value: int, client: str = "billing", exchange: str = "orders") -> Numbers:
        return Numbers({(PUBLISHINGS, (client, exchange)): value})

    return make


@pytest.fixture
def numbers() -> type[Numbers]:
    """The class of sources."""
    return Numbers


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry that no other test uses; as strict about names as the default one."""
    return CollectorRegistry(auto_describe=True)


@pytest.fixture
def scrape(registry: CollectorRegistry) -> Callable[[], dict[str, float]]:
    """What a scrape returns: values by metric name and labels, as they are printed."""

    def read() -> dict[str, float]:
        lines = generate_latest(registry).decode().splitlines()
        samples = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        assert len({name for name, _, _ in samples}) == len(samples), "a series was exported twice"
        return {name: float(value) for name, _, value in samples}

    return read
