"""The performance guide's five benchmarks, and one more row: many tasks that publish at once."""

from __future__ import annotations

import asyncio
import gc
import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from leveret.cli.failures import Incomplete
from leveret.cli.measure import Figures, Meter, Percentiles, peak_rss_bytes, reset_peak_rss
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
    "Plan",
    "Result",
    "Workload",
    "run_benchmarks",
]

#: Messages that are not measured, so that code is specialized, buffers have grown and queues are awake.
_WARM_UP: Final = 500
#: Messages between two looks at the progress.
_CHUNK: Final = 50
#: How many messages show the latency from publish to consume, and how many of them are published per second.
PACED_MESSAGES: Final = 2000
PACED_RATE: Final = 1000
_DUE: Final = "scheduled-ns"
#: How many tasks of concurrent-publish publish at once.
PUBLISHING_TASKS: Final = 200


class Workload:
    """The orders of all benchmarks, made before any clock starts.

    Args:
        count: How many.
        size: Bytes of each, or 0 for the guide's order as it is.

    Attributes:
        orders: The orders.
        amount: The sum of their amounts.
        smallest_bytes: The shortest body.
        largest_bytes: The longest body.

    Raises:
        ValueError: The size is less than an order needs.
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
    """What the benchmarks share.

    Attributes:
        target: The broker.
        workload: What to publish.
        meter: Clocks.
        bars: Progress.
        concurrency: How many consumers share the queue of concurrent-consume.
        confirms: Whether publishing waits for confirms.
    """

    target: Target
    workload: Workload
    meter: Meter
    bars: Bars
    concurrency: int
    confirms: bool

    async def run(
        self, name: str, work: Coroutine[Any, Any, None], done: Callable[[], int], *, total: int = 0, draw: bool = True
    ) -> None:
        """Runs work under a progress bar.

        Args:
            name: What the bar and errors say.
            work: The work.
            done: Reads how many messages are done.
            total: How many there are; by default all of the workload.
            draw: Whether the bar moves meanwhile.

        Raises:
            Incomplete: The work stood still.
        """
        with self.bars.bar(name, total or len(self.workload), done):
            await supervise(work, self.bars, name=name, stall=STALL, draw=draw)


@dataclass(frozen=True, slots=True)
class Result:
    """What was found about one benchmark.

    Attributes:
        name: The benchmark.
        messages: How many messages each run had.
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


async def run_benchmarks(plan: Plan, names: Sequence[str], repeat: int) -> list[Result]:
    """Runs benchmarks one after the other, and all of them again, so that a slow minute is not one benchmark's.

    Args:
        plan: How.
        names: Which, of `BENCHMARKS`. batch-publish brings concurrent-publish along, which compares with it.
        repeat: How often.

    Returns:
        The results in the order of the names.

    Raises:
        Incomplete: A message was lost or came twice.
        LeveretError: The broker refused something, or the connection was lost.
    """
    works = {name: BENCHMARKS[name] for name in names}
    results = [Result(name, len(plan.workload), []) for name in works]
    # What the garbage collector would look through again and again is the workload, which no program would hold.
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
                    # Here, where no message waits for it.
                    plan.bars.draw()
                await _reach_the_broker(plan, producer)

            start = plan.meter.now()
            await plan.run(name, publish_all(), lambda: published, draw=False)
            figures = plan.meter.since(start).figures(len(values))
        await stage.expect(len(values))
    if plan.confirms:
        figures |= Percentiles.of(latencies).figures("publish_to_confirm")
    return figures


async def batch_publish(plan: Plan) -> Figures:
    """Batches that are all started together; the clock stops when the last message is confirmed."""
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

            start = plan.meter.now()
            await plan.run(name, publish_all(), lambda: producer.counters()[kind] - before[kind])
            figures = plan.meter.since(start).figures(len(values))
        await stage.expect(len(values))
    return figures | {"batches": len(batches)}


async def concurrent_publish(plan: Plan) -> Figures:
    """Many tasks, each of which publishes one message at a time and awaits its confirm."""
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

            start = plan.meter.now()
            await plan.run(name, publish_all(), lambda: producer.counters()[kind] - before[kind])
            figures = plan.meter.since(start).figures(len(values))
        await stage.expect(len(values))
    return figures


async def basic_consume(plan: Plan) -> Figures:
    """One consumer, one message at a time, each acknowledged after its handler."""
    return await _consume(plan, "basic-consume", "basic.consume", 1)


async def concurrent_consume(plan: Plan) -> Figures:
    """Several consumers on one queue, each with one message at a time."""
    return await _consume(plan, "concurrent-consume", "concurrent.consume", plan.concurrency)


async def serialization(plan: Plan) -> Figures:
    """JSON to bytes and back with the SDK's own serializer; no broker."""
    values = plan.workload.orders
    json = JSONSerializer()
    to_bytes, to_order = json.encode, json.decoder(Order)
    for order in values[:_WARM_UP]:
        if to_order(to_bytes(order)) != order:
            raise Incomplete("serialization: an order did not come back as it was")
    done = 0

    async def serialize_all() -> None:
        nonlocal done
        while done < len(values):
            chunk = values[done : done + 20 * _CHUNK]
            for order in chunk:
                to_order(to_bytes(order))
            done += len(chunk)
            await asyncio.sleep(0)

    start = plan.meter.now()
    await plan.run("serialization", serialize_all(), lambda: done)
    return plan.meter.since(start).figures(len(values)) | {"broker_cpu_us_per_msg": None}


async def _reach_the_broker(plan: Plan, producer: leveret.Producer) -> None:
    """Without confirms the last thing to wait for is channel.close-ok, which the broker sends after all messages."""
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
    workload, meter = plan.workload, plan.meter
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
                first = meter.now()
            received += 1
            amount += order.amount
            if received == total:
                for consumer in consumers:
                    consumer.stop()

        subscribed = meter.now()
        # It ends when the broker has closed the channels, which it does after the last acknowledgement.
        await plan.run(name, together(*(consumer.run(handle) for consumer in consumers)), lambda: received)
        acked = sum(consumer.counters()["acked"] for consumer in consumers)
        if first is None or (received, acked, amount) != (total, total, workload.amount):
            raise Incomplete(
                f"{name}: of {total} messages {received} came and {acked} were acknowledged; the sum of amounts is "
                f"{amount} and should be {workload.amount}"
            )
        from_subscribe, from_first = meter.since(subscribed), meter.since(first)
        await stage.expect(0, consumers=0)
    figures = from_first.figures(total)
    whole = from_subscribe.figures(total)
    # What came in with the first delivery was read before it: CPU counts from the start, and time as in the guide.
    figures |= {figure: whole[figure] for figure in ("client_cpu_us_per_msg", "broker_cpu_us_per_msg")}
    figures |= {f"from_subscribe_{figure}": whole[figure] for figure in ("elapsed_s", "rate_msgs_per_s")}
    return figures | Percentiles.of(latencies).figures("publish_to_consume")


async def _latencies(plan: Plan, stage: Stage, name: str, consumer_count: int) -> list[int]:
    """Publishes at a moderate, steady rate to waiting consumers; returns nanoseconds from the scheduled times."""
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
        raise Incomplete(f"{name}: {len(samples)} of {len(values)} paced messages came")
    await stage.expect(0, consumers=0)
    return samples


def _discard(ticket: object) -> None:
    """Producer.flush raises what went wrong with tickets that nobody awaited."""


#: In the guide's order; `concurrent_publish` is not the guide's.
BENCHMARKS: Final[dict[str, Callable[[Plan], Awaitable[Figures]]]] = {
    "basic-publish": basic_publish,
    "batch-publish": batch_publish,
    "concurrent-publish": concurrent_publish,
    "basic-consume": basic_consume,
    "concurrent-consume": concurrent_consume,
    "serialization": serialization,
}
NEEDS_NO_BROKER: Final = frozenset({"serialization"})
