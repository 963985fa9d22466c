"""The kit that every metrics sink has to pass."""

from __future__ import annotations

import leveret_prometheus
import pytest

from leveret.plugins import MetricsSpec
from leveret.testing import MetricsConformance


class TestPrometheus(MetricsConformance):
    @pytest.fixture
    def spec(self) -> MetricsSpec:
        (spec,) = leveret_prometheus.leveret_metrics()
        return spec
