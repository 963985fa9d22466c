"""The first message of a quiet producer is written during its call, and only in the thread of its event loop."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest

import leveret
from leveret.broker import EmbeddedBroker
from leveret.errors import WrongLoopError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.fixture
async def client() -> AsyncIterator[leveret.Client]:
    async with EmbeddedBroker() as broker, leveret.connect(broker.url) as connected:
        await connected.declare(leveret.Topology().queue("q"))
        yield connected


@pytest.mark.parametrize("size", [100, 10_000, 70_000], ids=str)
async def test_publish_writes_at_once_when_nothing_is_in_flight(client: leveret.Client, size: int) -> None:
    async with client.producer(serializer="bytes") as producer:
        await producer.publish(b"", "q")
        out = client.connection.transport.out
        before = out.sent_bytes
        publishing = asyncio.create_task(producer.publish(bytes(size), "q"))
        await asyncio.sleep(0)  # the task runs up to its wait, and nothing else does
        assert (out.sent_bytes - before > size, len(out)) == (True, 0)
        await publishing


async def test_publish_in_another_thread_leaves_the_send_buffer_alone(client: leveret.Client) -> None:
    async with client.producer() as producer, client.producer() as other:
        await producer.publish("warm", "q")
        await other.publish("warm", "q")
        out = client.connection.transport.out
        ticket = other.publish_nowait("waits for the end of this turn", "q")
        waiting = len(out)
        assert waiting

        publishings = []

        def publish() -> None:
            publishings.append(producer.publish("from a thread", "q"))
            with pytest.raises(WrongLoopError):
                producer.publish_nowait("from a thread", "q")

        # Joined without an await, so that the loop writes nothing meanwhile.
        thread = threading.Thread(target=publish)
        thread.start()
        thread.join()
        assert len(out) == waiting
        await ticket
        # It began in the loop.
        assert (await publishings[0]).delivery_tag == 2
