"""Leveret's side of the comparison; the arguments and the output are those of rabbitmq_c.c."""

from __future__ import annotations

import json
import resource
import sys
import time
from typing import Any

import leveret


def cpu() -> float:
    """User and system CPU seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def publish(client: leveret.Client, queue: str, count: int, size: int, window: int) -> None:
    """Publishes ready bytes in batches of `window`, each awaited; without confirms when it is 0."""
    body = b"x" * size
    async with client.producer(serializer="bytes", confirms=window > 0, batch_size=window or 1000) as producer:
        for start in range(0, count, window or count):
            n = min(window or count, count - start)
            result = await producer.publish_batch([body] * n, queue)
            if not result:
                raise SystemExit(f"{len(result.failures)} publishings failed")


async def consume(client: leveret.Client, queue: str, count: int, prefetch: int) -> None:
    """Consumes with an async handler."""
    consumer = client.consumer(queue, bytes, prefetch=prefetch, serializer="bytes")
    seen = 0

    async def handler(value: bytes, message: leveret.Message) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            consumer.stop()

    await consumer.run(handler)


async def main() -> None:
    """Runs one case and prints its figures."""
    case, host, port, queue, count, number, *rest = sys.argv[1:]
    async with leveret.connect(f"amqp://guest:guest@{host}:{port}") as client:
        work: Any = (
            publish(client, queue, int(count), int(number), int(rest[0]))
            if case == "publish"
            else consume(client, queue, int(count), int(number))
        )
        wall, used = time.monotonic(), cpu()
        await work
        print(json.dumps({"messages": int(count), "seconds": time.monotonic() - wall, "cpu_seconds": cpu() - used}))


if __name__ == "__main__":
    leveret.run(main())
