"""Plugins: `hookimpl`, the descriptors that hooks return, the interfaces of serializers and others, the registry.

This package may use settings and errors, and is the only one that uses pluggy. The registry finds, checks and freezes
the plugins once per process. Producers, consumers and clients then get bound functions from it, so that no message
passes through a hook. Names are loaded when they are first used, as those of `leveret`.

    from leveret.plugins import SerializerSpec, hookimpl

    @hookimpl
    def leveret_serializers():
        return [SerializerSpec(name="upper", content_type="text/x-upper", factory=Upper)]

A plugin declares an entry point in the group `leveret.plugins`; its value is a module. A plugin may import this
package, `leveret.errors` and `leveret.message`, and `leveret.testing` in its tests. Other modules of Leveret may change
in any release.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leveret.plugins.distributions import Distribution
    from leveret.plugins.field_names import FieldNames
    from leveret.plugins.hookspecs import hookimpl
    from leveret.plugins.interfaces import (
        API_VERSION,
        SUPPORTED_API_VERSIONS,
        BackoffPolicy,
        BreakerPolicy,
        CommandSpec,
        CompositeSpec,
        Compressor,
        CompressorSpec,
        ConnectionEvent,
        ConnectionEventKind,
        Delivery,
        Metric,
        MetricsSink,
        MetricsSource,
        MetricsSpec,
        PolicyKind,
        PolicySpec,
        Publisher,
        RetryPolicy,
        Sample,
        Serializer,
        SerializerSpec,
    )
    from leveret.plugins.registry import PluginRegistry
    from leveret.plugins.sums import MetricsFeed, MetricsSums

__all__ = [
    "API_VERSION",
    "SUPPORTED_API_VERSIONS",
    "BackoffPolicy",
    "BreakerPolicy",
    "CommandSpec",
    "CompositeSpec",
    "Compressor",
    "CompressorSpec",
    "ConnectionEvent",
    "ConnectionEventKind",
    "Delivery",
    "Distribution",
    "FieldNames",
    "Metric",
    "MetricsFeed",
    "MetricsSink",
    "MetricsSource",
    "MetricsSpec",
    "MetricsSums",
    "PluginRegistry",
    "PolicyKind",
    "PolicySpec",
    "Publisher",
    "RetryPolicy",
    "Sample",
    "Serializer",
    "SerializerSpec",
    "hookimpl",
]

#: The modules of names that are not in `interfaces`.
_HOMES = {
    "Distribution": "distributions",
    "FieldNames": "field_names",
    "MetricsFeed": "sums",
    "MetricsSums": "sums",
    "PluginRegistry": "registry",
    "hookimpl": "hookspecs",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'interfaces')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
