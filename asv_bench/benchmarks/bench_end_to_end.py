"""The whole way through the public API, to an embedded broker in its own process.

One queue; confirms on; bodies of 1 KiB; the broker keeps nothing on disk. So this shows the client's cost and not
what a RabbitMQ server can do. `track_cpu_*` counts the CPU time of this process alone.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import TYPE_CHECKING, Any

from . import corpus
from .former import need
from .support import Broker, runner

if TYPE_CHECKING:
    from collections.abc import Coroutine

BODY = bytes(1024)
QUEUE = "bench"


class _EndToEnd:
    """A client on a broker of its own."""

    timeout = 120
    operation = "message"
    operations = 10 * corpus.MESSAGES

    def setup(self) -> None:
        self.leveret = need("leveret")
        self.broker = Broker()
        self.runner = runner()
        self.runner.run(self._open())

    async def _open(self) -> None:
        self.client = await self.leveret.connect(self.broker.url)
        await self.client.declare(self.leveret.Topology().queue(QUEUE))
        self.producer = self.client.producer(serializer="bytes")
        await self.producer.open()

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.client.close())
            self.runner.close()
        if hasattr(self, "broker"):
            self.broker.close()

    async def _publish(self) -> None:
        values = [BODY] * corpus.MESSAGES
        for _ in range(self.operations // corpus.MESSAGES):
            result = await self.producer.publish_batch(values, QUEUE)
            result.raise_for_failures()

    def _cpu(self, coroutine: Coroutine[Any, Any, None]) -> float:
        """Microseconds of this process's CPU time for each message."""
        start = time.process_time()
        self.runner.run(coroutine)
        return (time.process_time() - start) / self.operations * 1e6


class PublishBatch(_EndToEnd):
    """`publish_batch` of 1,000 values at a time, each batch confirmed before the next; the queue is purged between."""

    number = 1

    def setup(self) -> None:
        super().setup()
        self.runner.run(self._publish())  # fills caches, and lets the broker's memory grow
        self.runner.run(self.client.purge(QUEUE))

    def time_publish_batch(self) -> None:
        self.runner.run(self._publish())

    def track_cpu_publish_batch(self) -> float:
        samples = []
        for _ in range(5):
            samples.append(self._cpu(self._publish()))
            self.runner.run(self.client.purge(QUEUE))
        return min(samples)

    track_cpu_publish_batch.unit = "us CPU/message"  # type: ignore[attr-defined] # asv reads it from the function


class ConsumeAndAck(_EndToEnd):
    """A handler that does nothing, prefetch 100, every message acknowledged; the queue is filled before."""

    number = 1
    prefetch = 100

    def setup(self) -> None:
        super().setup()
        self.runner.run(self._publish())

    async def _consume(self) -> None:
        seen = 0
        consumer = self.client.consumer(QUEUE, bytes, prefetch=self.prefetch)

        async def handler(value: bytes, message: object) -> None:
            nonlocal seen
            seen += 1
            if seen == self.operations:
                consumer.stop()

        await asyncio.wait_for(consumer.run(handler), 60)

    def time_consume_and_ack(self) -> None:
        self.runner.run(self._consume())

    def track_cpu_consume_and_ack(self) -> float:
        samples = [self._cpu(self._consume())]
        for _ in range(4):
            self.runner.run(self._publish())
            samples.append(self._cpu(self._consume()))
        return min(samples)

    track_cpu_consume_and_ack.unit = "us CPU/message"  # type: ignore[attr-defined] # asv reads it from the function


class PublishOne(_EndToEnd):
    """`publish`, each message confirmed before the next: the time of a round trip."""

    operations = 500

    async def _publish_each(self) -> None:
        publish = self.producer.publish
        for _ in range(self.operations):
            await publish(BODY, QUEUE)

    number = 1

    def time_publish(self) -> None:
        self.runner.run(self._publish_each())


class PingPong(_EndToEnd):
    """One message after the other, from the call of `publish` to the handler, with default settings."""

    operations = 2000

    async def _ping_pong(self) -> list[float]:
        loop = asyncio.get_running_loop()
        took: list[float] = []
        came = loop.create_future()

        async def handler(value: bytes, message: object) -> None:
            took.append(time.perf_counter() - began)
            came.set_result(None)

        consumer = self.client.consumer(QUEUE, bytes)
        running = asyncio.create_task(consumer.run(handler))
        await consumer.subscribe()
        for _ in range(self.operations):
            came = loop.create_future()
            began = time.perf_counter()
            await self.producer.publish(BODY, QUEUE)
            await came
        await consumer.close()
        await asyncio.wait([running])
        return took

    def track_median(self) -> float:
        """Microseconds from the call to the handler."""
        return statistics.median(self.runner.run(self._ping_pong())) * 1e6

    track_median.unit = "us"  # type: ignore[attr-defined] # asv reads it from the function
