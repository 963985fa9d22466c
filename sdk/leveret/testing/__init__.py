"""For tests: a proxy that makes the faults of networks, and conformance kits for plugin authors.

`FaultProxy` stands between a client and a broker, and resets, stalls, delays or cuts what passes. The kits are abstract
pytest classes that check plugins against the plugin interfaces.

This package may import every other one except `cli`, and needs pytest. A kit makes the plugin's objects through a
registry of its own, calls them as the core does, and uses them in a real client on an embedded broker.
Subclass a kit in a class named `Test...`, and override its fixture:

    import pytest
    import leveret_upper
    from leveret.testing import SerializerConformance

    class TestUpper(SerializerConformance):
        @pytest.fixture
        def spec(self):
            return leveret_upper.UPPER

Names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leveret.testing.breakers import CircuitBreakerConformance as CircuitBreakerConformance
    from leveret.testing.compressors import CompressorConformance as CompressorConformance
    from leveret.testing.faults import Fault as Fault
    from leveret.testing.faults import draw_faults as draw_faults
    from leveret.testing.measuring import measure_decompression as measure_decompression
    from leveret.testing.metrics import MetricsConformance as MetricsConformance
    from leveret.testing.plugins import CheckResult as CheckResult
    from leveret.testing.plugins import check_plugin as check_plugin
    from leveret.testing.policies import BackoffConformance as BackoffConformance
    from leveret.testing.policies import RetryConformance as RetryConformance
    from leveret.testing.proxy import FaultProxy as FaultProxy
    from leveret.testing.relay import Pending as Pending
    from leveret.testing.serializers import SerializerConformance as SerializerConformance

_HOMES = {
    "BackoffConformance": "policies",
    "CheckResult": "plugins",
    "CircuitBreakerConformance": "breakers",
    "CompressorConformance": "compressors",
    "Fault": "faults",
    "FaultProxy": "proxy",
    "MetricsConformance": "metrics",
    "Pending": "relay",
    "RetryConformance": "policies",
    "SerializerConformance": "serializers",
    "check_plugin": "plugins",
    "draw_faults": "faults",
    "measure_decompression": "measuring",
}

__all__ = sorted(_HOMES)  # noqa: PLE0605

if importlib.util.find_spec("pytest") is None:
    raise ImportError("leveret.testing needs pytest, which is not installed: pip install pytest", name="pytest")


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
