"""The kit that every metrics sink has to pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from leveret.plugins import MetricsSpec
from leveret.testing import MetricsConformance
from leveret_opentelemetry import OpenTelemetrySink

if TYPE_CHECKING:
    from collections.abc import Callable

    from opentelemetry.sdk.metrics import MeterProvider


class TestOpenTelemetry(MetricsConformance):
    @pytest.fixture
    def spec(self, meter_provider: MeterProvider) -> MetricsSpec:
        return MetricsSpec(name="opentelemetry", factory=lambda: OpenTelemetrySink(meter_provider))

    @pytest.fixture
    def read(
        self, collect: Callable[[], dict[tuple[str, tuple[str, ...]], float]]
    ) -> Callable[[], dict[tuple[str, tuple[str, ...]], float]]:
        return collect
