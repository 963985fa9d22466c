"""A work queue: typed jobs, four at a time, with a dead-letter queue for jobs that cannot be done.

Run it against a broker of your own, or against `leveret broker` in another terminal:

    python examples/work_queue.py [amqp://guest:guest@localhost]
"""

from __future__ import annotations

import asyncio
import sys

from msgspec import Struct

import leveret

URL = sys.argv[1] if len(sys.argv) > 1 else "amqp://guest:guest@localhost"


class Resize(Struct):
    """One job."""

    picture: str
    width: int


TOPOLOGY = (
    leveret.Topology()
    .exchange("pictures", "topic")
    .exchange("pictures.dead", "fanout")
    .queue("pictures.resize", leveret.Classic(dead_letter_exchange="pictures.dead"))
    .queue("pictures.failed")
    .bind("pictures.resize", "pictures", "resize.*")
    .bind("pictures.failed", "pictures.dead")
)


async def main() -> None:
    """Publishes a hundred jobs and handles them."""
    async with leveret.connect(URL, client_name="work-queue") as client:
        await client.declare(TOPOLOGY)
        async with client.producer(exchange="pictures", mandatory=True) as producer:
            jobs = (Resize(f"{i}.png", width=i) for i in range(100))
            result = await producer.publish_batch(jobs, "resize.png")
            result.raise_for_failures()

        done = 0
        consumer = client.consumer("pictures.resize", Resize, prefetch=20, concurrency=4)

        async def resize(job: Resize, message: leveret.Message) -> bool:
            nonlocal done
            await asyncio.sleep(0.001)
            done += 1
            if done == 100:
                consumer.stop()
            return job.width > 0  # False: to the dead-letter queue

        await consumer.run(resize)
        print(f"{done} jobs, {consumer.counters()['dead_lettered']} could not be done")

        for queue in ("pictures.resize", "pictures.failed"):
            await client.delete_queue(queue)
        for exchange in ("pictures", "pictures.dead"):
            await client.delete_exchange(exchange)


if __name__ == "__main__":
    leveret.run(main())
