"""The kit that every metrics sink has to pass, in the process's default registry."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

import leveret_prometheus
from leveret.testing import MetricsConformance

if TYPE_CHECKING:
    from collections.abc import Callable

    from leveret.plugins import MetricsSpec


class TestPrometheus(MetricsConformance):
    @pytest.fixture
    def spec(self) -> MetricsSpec:
        (spec,) = leveret_prometheus.leveret_metrics()
        return spec

    @pytest.fixture
    def read(self) -> Callable[[], dict[tuple[str, tuple[str, ...]], float]]:
        def scrape() -> dict[tuple[str, tuple[str, ...]], float]:
            return {
                (sample.name, tuple(sample.labels.values())): sample.value
                for family in text_string_to_metric_families(generate_latest().decode())
                for sample in family.samples
            }

        return scrape
