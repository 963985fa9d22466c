"""What all benchmarks share: the orders, the options, and how work is supervised, recorded and warmed up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from leveret.cli.bench.recording import Recorder
from leveret.cli.orders import encode, orders
from leveret.cli.progress import supervise
from leveret.cli.stage import STALL

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    import leveret
    from leveret.cli.bench.results import Curve, Series
    from leveret.cli.measure import Clocks, Figures
    from leveret.cli.progress import Bars
    from leveret.cli.stage import Stage, Target

__all__ = ["CHUNK", "WARM_UP", "Measured", "Plan", "Way", "Workload", "warm_up"]

#: Messages before the measurement: they let Python specialize code, buffers grow and RabbitMQ wake its queues.
WARM_UP: Final = 500
#: Messages between two updates of the progress.
CHUNK: Final = 50


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
class Way:
    """A way of doing a benchmark.

    Attributes:
        variant: "default", "given", "tuned", "json" or "msgpack".
        how: What it does and with which settings, for a reader.
        options: Options of its producers or consumers that differ from Leveret's defaults.
    """

    variant: str
    how: str
    options: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run of a benchmark found.

    Attributes:
        figures: The figures.
        series: Samples over the run.
        latency: Its latencies; None when none were measured.
    """

    figures: Figures
    series: Series
    latency: Curve | None


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

    async def record(
        self,
        name: str,
        work: Coroutine[Any, Any, None],
        done: Callable[[], int],
        *,
        client: leveret.Client | None = None,
        draw: bool = True,
    ) -> Recorder:
        """Runs work as `run` does, and records it.

        Args:
            name: See `run`.
            work: See `run`.
            done: See `run`.
            client: The client whose traffic is counted; None for none.
            draw: See `run`.

        Returns:
            What was recorded.
        """
        with Recorder(self.clocks, done, client) as recorder:
            await self.run(name, work, done, draw=draw)
        return recorder


async def warm_up(plan: Plan, stage: Stage, producer: leveret.Producer) -> None:
    """Publishes some orders in a batch and some one by one, and removes them from the queue."""
    some = plan.workload.orders[:WARM_UP]
    (await producer.publish_batch(some, stage.routing_key)).raise_for_failures()
    for order in some[:CHUNK]:
        await producer.publish(order, stage.routing_key)
    await stage.expect(len(some) + len(some[:CHUNK]))
    await stage.client.purge(stage.queue)
