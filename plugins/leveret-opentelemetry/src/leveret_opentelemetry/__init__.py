"""OpenTelemetry for Leveret: traces through publishers and handlers, and the metrics sink `opentelemetry`.

    publisher = TracingPublisher(producer)
    await publisher.publish(order, "order.created")

    await consumer.run(traced(handler))

Only the OpenTelemetry API is needed. Without an SDK, spans and metrics are no-ops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from leveret.plugins import MetricsSpec, hookimpl
from leveret_opentelemetry._consuming import traced
from leveret_opentelemetry._conventions import __version__ as __version__
from leveret_opentelemetry._metrics import OpenTelemetrySink
from leveret_opentelemetry._publishing import TracingPublisher

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["OpenTelemetrySink", "TracingPublisher", "leveret_metrics", "traced"]


@hookimpl
def leveret_metrics() -> Iterable[MetricsSpec]:
    """Returns the sink `opentelemetry`, which exports to the process's meter provider."""
    return [MetricsSpec(name="opentelemetry", factory=OpenTelemetrySink)]
