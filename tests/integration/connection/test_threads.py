"""One client for each thread, each with a loop of its own: nothing of one gets into another."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

import leveret

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")

THREADS = 6
MESSAGES = 1500


def body(thread: int, number: int) -> bytes:
    """Of a size whose memory is used again, and not the same in any two messages."""
    return f"{thread}:{number};".encode() * (40 + 13 * (number % 40))


async def send_and_take(
    url: str, queue: str, thread: int, together: threading.Barrier
) -> list[tuple[bytes, dict[str, Any]]]:
    """Publishes while a consumer takes; returns what came, all of it held until the end."""
    async with leveret.connect(url) as client:
        await client.declare(leveret.Topology().queue(queue))
        consumer = client.consumer(queue, serializer="bytes", prefetch=100)
        taken: list[tuple[bytes, dict[str, Any]]] = []

        async def handle(value: bytes, message: leveret.Message) -> None:
            taken.append((value, dict(message.headers or {})))
            if len(taken) == MESSAGES:
                consumer.stop()

        await asyncio.to_thread(together.wait, 30)
        running = asyncio.create_task(consumer.run(handle))
        async with client.producer(serializer="bytes") as producer:
            for first in range(0, MESSAGES, 100):
                await asyncio.gather(
                    *(
                        producer.publish(body(thread, number), queue, headers={"thread": thread, "number": number})
                        for number in range(first, first + 100)
                    )
                )
        await asyncio.wait_for(running, 60)
    return taken


async def test_clients_of_several_threads_get_their_own_messages_and_nothing_else(
    broker: Broker, name: Callable[[str], str]
) -> None:
    together = threading.Barrier(THREADS)
    queues = [name(f"thread{thread}") for thread in range(THREADS)]

    def run(thread: int) -> list[tuple[bytes, dict[str, Any]]]:
        factory = uvloop.new_event_loop if thread % 2 else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(send_and_take(broker.url, queues[thread], thread, together))

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(THREADS) as threads:
        taken = await asyncio.gather(*(loop.run_in_executor(threads, run, thread) for thread in range(THREADS)))
    for thread, came in enumerate(taken):
        assert came == [(body(thread, number), {"thread": thread, "number": number}) for number in range(MESSAGES)]
