"""The benchmarks of publishing. The clock stops when the last message is confirmed."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from leveret.cli.bench.latencies import Counted, curve_of, figures_of
from leveret.cli.bench.plan import CHUNK, Measured, warm_up
from leveret.cli.stage import Stage, together

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import leveret
    from leveret.cli.bench.plan import Plan, Way

    Publish = Callable[[Plan, leveret.Producer, str], Awaitable[None]]

__all__ = ["basic", "batches", "by_tasks", "enqueued", "one_batch"]


async def basic(plan: Plan, way: Way) -> Measured:
    """One message at a time, each awaited with its confirm."""

    async def publish_all(plan: Plan, producer: leveret.Producer, key: str) -> None:
        values = plan.workload.orders
        for start in range(0, len(values), CHUNK):
            for order in values[start : start + CHUNK]:
                await producer.publish(order, key)
            # No message waits for the drawing here.
            plan.bars.draw()

    return await _publish(plan, "basic-publish", way, publish_all, draw=False)


async def enqueued(plan: Plan, way: Way) -> Measured:
    """One message at a time, handed over without waiting for its confirm; all confirms are awaited at the end."""

    async def publish_all(plan: Plan, producer: leveret.Producer, key: str) -> None:
        for order in plan.workload.orders:
            await producer.enqueue(order, key)
        await producer.flush()

    return await _publish(plan, "basic-publish", way, publish_all)


async def batches(plan: Plan, way: Way) -> Measured:
    """Batches that are all started at once."""

    async def publish_all(plan: Plan, producer: leveret.Producer, key: str) -> None:
        values, size = plan.workload.orders, way.options["batch_size"]
        parts = [values[start : start + size] for start in range(0, len(values), size)]
        for result in await asyncio.gather(*(producer.publish_batch(part, key) for part in parts)):
            result.raise_for_failures()

    return await _publish(plan, "batch-publish", way, publish_all)


async def one_batch(plan: Plan, way: Way) -> Measured:
    """One batch with all messages."""

    async def publish_all(plan: Plan, producer: leveret.Producer, key: str) -> None:
        (await producer.publish_batch(plan.workload.orders, key)).raise_for_failures()

    return await _publish(plan, "batch-publish", way, publish_all)


def by_tasks(tasks: int) -> Callable[[Plan, Way], Awaitable[Measured]]:
    """Makes the benchmark in which so many tasks each publish one message at a time and await its confirm."""

    async def publish_all(plan: Plan, producer: leveret.Producer, key: str) -> None:
        remaining = iter(plan.workload.orders)

        async def publish_some() -> None:
            for order in remaining:
                await producer.publish(order, key)

        await together(*(publish_some() for _ in range(tasks)))

    async def publish(plan: Plan, way: Way) -> Measured:
        return await _publish(plan, "concurrent-publish", way, publish_all)

    return publish


async def _publish(plan: Plan, name: str, way: Way, publish_all: Publish, *, draw: bool = True) -> Measured:
    key = name.replace("-", ".")
    count = len(plan.workload)
    kind = "confirmed" if plan.confirms else "published"
    async with Stage(plan.target, f"benchmark-{name}", key) as stage:
        async with stage.producer(confirms=plan.confirms, **way.options) as producer:
            await warm_up(plan, stage, producer)
            before = producer.counters()[kind]

            async def work() -> None:
                await publish_all(plan, producer, key)
                if not plan.confirms:
                    # Waits for channel.close-ok, which the broker sends after it has read all messages.
                    await producer.close()

            recorded = await plan.record(
                f"{name}, {way.variant}",
                work(),
                lambda: producer.counters()[kind] - before,
                client=stage.client,
                draw=draw,
            )
        await stage.expect(count)
    figures, curve = recorded.figures(count), None
    if confirm_time := recorded.counts.confirm_time:
        latencies = Counted(confirm_time)
        figures |= figures_of(latencies, "publish to confirm")
        curve = curve_of(latencies, "publish to confirm")
    return Measured(figures, recorded.series(), curve)
