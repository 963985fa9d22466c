"""The benchmark of serializers, without a broker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from msgspec.structs import replace

from leveret.cli.bench.plan import CHUNK, WARM_UP, Measured
from leveret.cli.failures import Incomplete
from leveret.cli.orders import Order
from leveret.plugins.registry import PluginRegistry

if TYPE_CHECKING:
    from leveret.cli.bench.plan import Plan, Way

__all__ = ["serialization"]


async def serialization(plan: Plan, way: Way) -> Measured:
    """Encodes orders with the serializer that the variant names, and decodes them.

    Raises:
        ConfigurationError: No plugin that is installed has this serializer.
    """
    values = plan.workload.orders
    registry = PluginRegistry.shared()
    serializer = registry.make_serializer(registry.provided("serializer", way.variant))
    to_bytes, to_order = serializer.encode, serializer.decoder(Order)
    some = values[:WARM_UP]
    bodies = [to_bytes(order) for order in some]
    for order, body in zip(some, bodies, strict=True):
        if to_order(body) != order:
            raise Incomplete(f"serialization, {way.variant}: a decoded order differs from the encoded one")
    done = 0

    async def serialize_all() -> None:
        nonlocal done
        while done < len(values):
            chunk = values[done : done + 20 * CHUNK]
            for order in chunk:
                to_order(to_bytes(order))
            done += len(chunk)
            await asyncio.sleep(0)

    recorded = await plan.record(f"serialization, {way.variant}", serialize_all(), lambda: done)
    figures = recorded.figures(len(values)) | {
        "broker_cpu_us_per_msg": None,
        "body_bytes": sum(map(len, bodies)) / len(bodies),
    }
    return Measured(figures, replace(recorded.series(), broker_cpu_s=[]), None)
