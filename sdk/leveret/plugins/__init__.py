"""Everything a plugin needs: `hookimpl`, the descriptors that hooks return, and the interfaces of what they make.

    from leveret.plugins import SerializerSpec, hookimpl

    @hookimpl
    def leveret_serializers():
        return [SerializerSpec(name="upper", content_type="text/x-upper", factory=Upper)]

A plugin is found through the entry point group `leveret.plugins`, whose values are modules. It may import this package,
`leveret.errors` and `leveret.message`, and in its tests `leveret.testing`: nothing else of Leveret is promised to it.
"""

from __future__ import annotations

from leveret.plugins.hookspecs import hookimpl
from leveret.plugins.interfaces import (
    API_VERSION,
    SUPPORTED_API_VERSIONS,
    BackoffPolicy,
    CircuitBreaker,
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
    "CircuitBreaker",
    "CommandSpec",
    "CompositeSpec",
    "Compressor",
    "CompressorSpec",
    "ConnectionEvent",
    "ConnectionEventKind",
    "Delivery",
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
