"""The benchmarks of consuming. Each first measures latencies at a moderate rate, then the rate of a full queue."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

from leveret.cli.bench.latencies import Sampled, curve_of, figures_of
from leveret.cli.bench.plan import WARM_UP, Measured
from leveret.cli.failures import Incomplete
from leveret.cli.orders import Order
from leveret.cli.pacing import pace, schedule
from leveret.cli.stage import Stage, together

if TYPE_CHECKING:
    import leveret
    from leveret.cli.bench.plan import Plan, Way

__all__ = ["PACED_MESSAGES", "PACED_RATE", "basic", "concurrent"]

#: Messages that measure the latency from publish to consume, and their rate per second.
PACED_MESSAGES: Final = 2000
PACED_RATE: Final = 1000
_DUE: Final = "scheduled-ns"


async def basic(plan: Plan, way: Way) -> Measured:
    """One consumer, one message at a time, each acknowledged after its handler."""
    return await _consume(plan, "basic-consume", way, 1)


async def concurrent(plan: Plan, way: Way) -> Measured:
    """Several consumers on one queue, each with one message at a time."""
    return await _consume(plan, "concurrent-consume", way, plan.concurrency)


async def _consume(plan: Plan, name: str, way: Way, consumer_count: int) -> Measured:
    workload, clocks = plan.workload, plan.clocks
    label = f"{name}, {way.variant}"
    total = len(workload)
    received = amount = 0
    async with Stage(plan.target, f"benchmark-{name}", name.replace("-", ".")) as stage:
        latencies = Sampled(await _latencies(plan, stage, label, way, consumer_count))
        await stage.fill(workload.orders, total)
        consumers = [stage.consumer(Order, **way.options) for _ in range(consumer_count)]
        first = None

        async def handle(order: Order, message: leveret.Message) -> None:
            nonlocal received, amount, first
            if first is None:
                first = clocks.now()
            received += 1
            amount += order.amount
            if received == total:
                for consumer in consumers:
                    consumer.stop()

        # `run` returns when the broker has closed the channels, which follows the last acknowledgement.
        recorded = await plan.record(
            label, together(*(consumer.run(handle) for consumer in consumers)), lambda: received, client=stage.client
        )
        acked = sum(consumer.counters()["acked"] for consumer in consumers)
        if first is None or (received, acked, amount) != (total, total, workload.amount):
            raise Incomplete(
                f"{name}: of {total} messages {received} were delivered and {acked} acknowledged; the amounts add up "
                f"to {amount} instead of {workload.amount}"
            )
        await stage.expect(0, consumers=0)
    figures = recorded.figures(total)
    # The read that brought the first delivery brought others, too. So CPU and traffic count from the subscription, and
    # time from the first delivery, as in the guide.
    from_first = first.until(recorded.end).figures(total)
    timed = ("elapsed_s", "rate_msgs_per_s", "guide_avg_latency_ms")
    figures |= {f"from_subscribe_{figure}": figures[figure] for figure in timed[:2]}
    figures |= {figure: from_first[figure] for figure in timed}
    figures |= figures_of(latencies, "publish to consume")
    return Measured(figures, recorded.series(), curve_of(latencies, "publish to consume"))


async def _latencies(plan: Plan, stage: Stage, label: str, way: Way, consumer_count: int) -> list[int]:
    """Publishes at a steady, moderate rate to consumers; returns the nanoseconds from each scheduled time."""
    values = plan.workload.orders[:PACED_MESSAGES]
    samples: list[int] = []
    warm_ups = 0
    warm = asyncio.Event()
    consumers = [stage.consumer(Order, **way.options) for _ in range(consumer_count)]

    async def handle(order: Order, message: leveret.Message) -> None:
        nonlocal warm_ups
        due = message.headers.get(_DUE)
        if due is None:
            warm_ups += 1
            if warm_ups == len(values[:WARM_UP]):
                warm.set()
            return
        samples.append(time.perf_counter_ns() - due)
        if len(samples) == len(values):
            for consumer in consumers:
                consumer.stop()

    async def publish_all(producer: leveret.Producer) -> None:
        await stage.expect(0, consumers=consumer_count)
        await producer.publish_batch(values[:WARM_UP], stage.routing_key)
        await warm.wait()
        remaining = iter(values)
        await pace(
            schedule(len(values), PACED_RATE),
            lambda due: _discard(producer.publish_nowait(next(remaining), stage.routing_key, headers={_DUE: due})),
        )
        await producer.flush()

    async with stage.producer(confirms=plan.confirms) as producer:
        await plan.run(
            f"{label}, latency",
            together(publish_all(producer), *(consumer.run(handle) for consumer in consumers)),
            lambda: warm_ups + len(samples),
            total=len(values),
            draw=False,
        )
    if len(samples) != len(values):
        raise Incomplete(f"{label}: {len(samples)} of {len(values)} paced messages were delivered")
    await stage.expect(0, consumers=0)
    return samples


def _discard(ticket: object) -> None:
    """Drops a ticket. `Producer.flush` raises the errors of tickets that were not awaited."""
