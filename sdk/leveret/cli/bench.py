"""`leveret bench`: the performance guide's five benchmarks, and one with many tasks that publish at once."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from leveret.cli.failures import Incomplete
from leveret.cli.measure import Clocks, Figures, Percentiles, peak_rss_bytes, reset_peak_rss
from leveret.cli.orders import Order, encode, orders
from leveret.cli.pacing import pace, schedule
from leveret.cli.progress import supervise
from leveret.cli.stage import STALL, Stage, together
from leveret.plugins.builtin import JSONSerializer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    import leveret
    from leveret.cli.progress import Bars
    from leveret.cli.stage import Target

__all__ = [
    "BENCHMARKS",
    "NEEDS_NO_BROKER",
    "PACED_MESSAGES",
    "PACED_RATE",
    "PUBLISHING_TASKS",
    "BenchmarkResult",
    "Plan",
    "Workload",
    "run_benchmarks",
]

#: Messages before the measurement: they let Python specialize code, buffers grow and RabbitMQ wake its queues.
_WARM_UP: Final = 500
#: Messages between two updates of the progress.
_CHUNK: Final = 50
#: Messages that measure the latency from publish to consume, and their rate per second.
PACED_MESSAGES: Final = 2000
PACED_RATE: Final = 1000
_DUE: Final = "scheduled-ns"
#: Tasks of concurrent-publish.
PUBLISHING_TASKS: Final = 200


class Workload:
    """The orders of all benchmarks, made before the clocks start.

    Args:
        count: The number of orders.
        size: Bytes of each, or 0 for the guide's order without padding.

    Attributes:
        orders: The orders.
        amount: The sum of their amounts.
        smallest_bytes: Bytes of the smallest body.
        largest_bytes: Bytes of the largest body.

    Raises:
        ValueError: The size is smaller than an order needs.
    """

    def __init__(self, count: int, size: int = 0) -> None:
        self.orders = list(orders(count, size))
        self.amount = sum(order.amount for order in self.orders)
        lengths = [len(encode(order)) for order in self.orders]
        self.smallest_bytes = min(lengths)
        self.largest_bytes = max(lengths)

    def __len__(self) -> int:
        return len(self.orders)


@dataclass(frozen=True, slots=True)
class Plan:
    """The options and tools of all benchmarks.

    Attributes:
        target: The broker.
        workload: The orders to publish.
        clocks: The clocks.
        bars: The progress bars.
        concurrency: How many consumers share the queue of concurrent-consume.
        confirms: Whether publishing waits for confirms.
    """

    target: Target
    workload: Workload
    clocks: Clocks
    bars: Bars
    concurrency: int
    confirms: bool

    async def run(
        self, name: str, work: Coroutine[Any, Any, None], done: Callable[[], int], *, total: int = 0, draw: bool = True
    ) -> None:
        """Runs work under a progress bar.

        Args:
            name: The work's name on the bar and in errors.
            work: The work.
            done: Returns how many messages are done.
            total: The number of messages; by default that of the workload.
            draw: Whether the bar is drawn while the work runs.

        Raises:
            Incomplete: There was no progress for `STALL` seconds.
        """
        with self.bars.bar(name, total or len(self.workload), done):
            await supervise(work, self.bars, name=name, stall=STALL, draw=draw)


@dataclass(frozen=True, slots=True)
class BenchmarkResult:
    """The figures of one benchmark.

    Attributes:
        name: The benchmark's name.
        messages: Messages of each run.
        runs: The figures of each run.
    """

    name: str
    messages: int
    runs: list[Figures]

    @property
    def median(self) -> Figures:
        """The median of each figure over the runs."""
        medians: Figures = {}
        for figure in self.runs[0]:
            values = [value for run in self.runs if (value := run[figure]) is not None]
            medians[figure] = statistics.median(values) if values else None
        return medians


async def run_benchmarks(plan: Plan, names: Sequence[str], repeat: int) -> list[BenchmarkResult]:
    """Runs the benchmarks one after the other, and repeats that, so that a slow minute affects all of them.

    Args:
        plan: The options and tools.
        names: Names in `BENCHMARKS`.
        repeat: How often each benchmark runs.

    Returns:
        The results in the order of the names.

    Raises:
        Incomplete: A message was lost or came twice.
        LeveretError: The broker refused something, or the connection was lost.
    """
    works = {name: BENCHMARKS[name] for name in names}
    results = [BenchmarkResult(name, len(plan.workload), []) for name in works]
    # The garbage collector would traverse the workload again and again; ordinary programs hold no such list.
    gc.collect()
    gc.freeze()
    try:
        for _ in range(repeat):
            for result in results:
                reset_peak_rss()
                figures = await works[result.name](plan)
                result.runs.append(figures | {"peak_rss_mib": peak_rss_bytes() / 2**20})
    finally:
        gc.unfreeze()
    return results


async def basic_publish(plan: Plan) -> Figures:
    """One message at a time, each awaited with its confirm."""
    name, key, values = "basic-publish", "basic.publish", plan.workload.orders
    latencies: list[int] = []
    published = 0
    async with Stage(plan.target, f"benchmark-{name}", key) as stage:
        async with stage.producer(confirms=plan.confirms) as producer:
            await _warm_up(plan, stage, producer)

            async def publish_all() -> None:
                nonlocal published
                while published < len(values):
                    for order in values[published : published + _CHUNK]:
                        began = time.perf_counter_ns()
                        await producer.publish(order, key)
                        latencies.append(time.perf_counter_ns() - began)
                    published = len(latencies)
                    # No message waits for the drawing here.
                    plan.bars.draw()
                await _reach_the_broker(plan, producer)

            start = plan.clocks.now()
            await plan.run(name, publish_all(), lambda: published, draw=False)
            figures = plan.clocks.since(start).figures(len(values))
        await stage.expect(len(values))
    if plan.confirms:
        figures |= Percentiles.of(latencies).figures("publish_to_confirm")
    return figures


async def batch_publish(plan: Plan) -> Figures:
    """Batches that are all started at once. The clock stops when the last message is confirmed."""
    name, key, values = "batch-publish", "batch.publish", plan.workload.orders
    size = plan.target.batch_size
    batches = [values[start : start + size] for start in range(0, len(values), size)]
    async with Stage(plan.target, f"benchmark-{name}", key) as stage:
        async with stage.producer(confirms=plan.confirms) as producer:
            await _warm_up(plan, stage, producer)
            before = producer.counters()
            kind = "confirmed" if plan.confirms else "published"

            async def publish_all() -> None:
                results = await asyncio.gather(*(producer.publish_batch(batch, key) for batch in batches))
                for result in results:
                    result.raise_for_failures()
                await _reach_the_broker(plan, producer)

            start = plan.clocks.now()
            await plan.run(name, publish_all(), lambda: producer.counters()[kind] - before[kind])
            figures = plan.clocks.since(start).figures(len(values))
        await stage.expect(len(values))
    return figures | {"batches": len(batches)}


async def concurrent_publish(plan: Plan) -> Figures:
    """Many tasks that each publish one message at a time and await its confirm."""
    name, key, values = "concurrent-publish", "concurrent.publish", plan.workload.orders
    async with Stage(plan.target, f"benchmark-{name}", key) as stage:
        async with stage.producer(confirms=plan.confirms) as producer:
            await _warm_up(plan, stage, producer)
            before = producer.counters()
            kind = "confirmed" if plan.confirms else "published"
            remaining = iter(values)

            async def publish_some() -> None:
                for order in remaining:
                    await producer.publish(order, key)

            async def publish_all() -> None:
                await together(*(publish_some() for _ in range(PUBLISHING_TASKS)))
                await _reach_the_broker(plan, producer)

            start = plan.clocks.now()
            await plan.run(name, publish_all(), lambda: producer.counters()[kind] - before[kind])
            figures = plan.clocks.since(start).figures(len(values))
        await stage.expect(len(values))
    return figures


async def basic_consume(plan: Plan) -> Figures:
    """One consumer, one message at a time, each acknowledged after its handler."""
    return await _consume(plan, "basic-consume", "basic.consume", 1)


async def concurrent_consume(plan: Plan) -> Figures:
    """Several consumers on one queue, each with one message at a time."""
    return await _consume(plan, "concurrent-consume", "concurrent.consume", plan.concurrency)


async def serialization(plan: Plan) -> Figures:
    """Encodes to JSON and decodes with Leveret's own serializer, without a broker."""
    values = plan.workload.orders
    json = JSONSerializer()
    to_bytes, to_order = json.encode, json.decoder(Order)
    for order in values[:_WARM_UP]:
        if to_order(to_bytes(order)) != order:
            raise Incomplete("serialization: a decoded order differs from the encoded one")
    done = 0

    async def serialize_all() -> None:
        nonlocal done
        while done < len(values):
            chunk = values[done : done + 20 * _CHUNK]
            for order in chunk:
                to_order(to_bytes(order))
            done += len(chunk)
            await asyncio.sleep(0)

    start = plan.clocks.now()
    await plan.run("serialization", serialize_all(), lambda: done)
    return plan.clocks.since(start).figures(len(values)) | {"broker_cpu_us_per_msg": None}


async def _reach_the_broker(plan: Plan, producer: leveret.Producer) -> None:
    """Waits, without confirms, for channel.close-ok, which the broker sends after it has read all messages."""
    if not plan.confirms:
        await producer.close()


async def _warm_up(plan: Plan, stage: Stage, producer: leveret.Producer) -> None:
    some = plan.workload.orders[:_WARM_UP]
    (await producer.publish_batch(some, stage.routing_key)).raise_for_failures()
    for order in some[:_CHUNK]:
        await producer.publish(order, stage.routing_key)
    await stage.expect(len(some) + len(some[:_CHUNK]))
    await stage.client.purge(stage.queue)


async def _consume(plan: Plan, name: str, key: str, consumer_count: int) -> Figures:
    workload, clocks = plan.workload, plan.clocks
    total = len(workload)
    received = amount = 0
    async with Stage(plan.target, f"benchmark-{name}", key) as stage:
        latencies = await _latencies(plan, stage, name, consumer_count)
        await stage.fill(workload.orders, total)
        consumers = [stage.consumer(Order) for _ in range(consumer_count)]
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

        subscribed = clocks.now()
        # `run` returns when the broker has closed the channels, which follows the last acknowledgement.
        await plan.run(name, together(*(consumer.run(handle) for consumer in consumers)), lambda: received)
        acked = sum(consumer.counters()["acked"] for consumer in consumers)
        if first is None or (received, acked, amount) != (total, total, workload.amount):
            raise Incomplete(
                f"{name}: of {total} messages {received} were delivered and {acked} acknowledged; the amounts add up "
                f"to {amount} instead of {workload.amount}"
            )
        from_subscribe, from_first = clocks.since(subscribed), clocks.since(first)
        await stage.expect(0, consumers=0)
    figures = from_first.figures(total)
    whole = from_subscribe.figures(total)
    # The read that brought the first delivery brought others, too. So CPU counts from the subscription, and time from
    # the first delivery, as in the guide.
    figures |= {figure: whole[figure] for figure in ("client_cpu_us_per_msg", "broker_cpu_us_per_msg")}
    figures |= {f"from_subscribe_{figure}": whole[figure] for figure in ("elapsed_s", "rate_msgs_per_s")}
    return figures | Percentiles.of(latencies).figures("publish_to_consume")


async def _latencies(plan: Plan, stage: Stage, name: str, consumer_count: int) -> list[int]:
    """Publishes at a steady, moderate rate to consumers; returns the nanoseconds from each scheduled time."""
    values = plan.workload.orders[:PACED_MESSAGES]
    samples: list[int] = []
    warm_ups = 0
    warm = asyncio.Event()
    consumers = [stage.consumer(Order) for _ in range(consumer_count)]

    async def handle(order: Order, message: leveret.Message) -> None:
        nonlocal warm_ups
        due = message.headers.get(_DUE)
        if due is None:
            warm_ups += 1
            if warm_ups == len(values[:_WARM_UP]):
                warm.set()
            return
        samples.append(time.perf_counter_ns() - due)
        if len(samples) == len(values):
            for consumer in consumers:
                consumer.stop()

    async def publish_all(producer: leveret.Producer) -> None:
        await stage.expect(0, consumers=consumer_count)
        await producer.publish_batch(values[:_WARM_UP], stage.routing_key)
        await warm.wait()
        remaining = iter(values)
        await pace(
            schedule(len(values), PACED_RATE),
            lambda due: _discard(producer.publish_nowait(next(remaining), stage.routing_key, headers={_DUE: due})),
        )
        await producer.flush()

    async with stage.producer(confirms=plan.confirms) as producer:
        await plan.run(
            f"{name}, latency",
            together(publish_all(producer), *(consumer.run(handle) for consumer in consumers)),
            lambda: warm_ups + len(samples),
            total=len(values),
            draw=False,
        )
    if len(samples) != len(values):
        raise Incomplete(f"{name}: {len(samples)} of {len(values)} paced messages were delivered")
    await stage.expect(0, consumers=0)
    return samples


def _discard(ticket: object) -> None:
    """Drops a ticket. `Producer.flush` raises the errors of tickets that were not awaited."""


#: The benchmarks in the guide's order; `concurrent_publish` is an addition.
BENCHMARKS: Final[dict[str, Callable[[Plan], Awaitable[Figures]]]] = {
    "basic-publish": basic_publish,
    "batch-publish": batch_publish,
    "concurrent-publish": concurrent_publish,
    "basic-consume": basic_consume,
    "concurrent-consume": concurrent_consume,
    "serialization": serialization,
}
NEEDS_NO_BROKER: Final = frozenset({"serialization"})
