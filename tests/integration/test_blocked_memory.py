"""What waits inside the client is bounded while a broker holds publishers back; `make blocked` takes a minute of it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.support.paths import ROOT

from leveret.errors import BackpressureError, ConfirmTimeout, PublishError
from leveret.message import Outcome
from leveret.transport.frame_transport import FrameTransport
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.support.brokers import Broker

    import leveret

pytestmark = pytest.mark.usefixtures("no_leftovers")

KiB = 1024
WATERMARK = 256 * KiB
BODY = 16 * KiB


@pytest.mark.parametrize("obstacle", ["blocked", "silent"])
@pytest.mark.parametrize("kind", ["nowait", "publish", "batch"])
async def test_resident_memory_grows_by_no_more_than_the_settings_allow(obstacle: str, kind: str) -> None:
    command = [sys.executable, "-m", "asv_bench.blocked", "--seconds", "1", "--kinds", kind, "--obstacles", obstacle]
    done = await asyncio.to_thread(
        subprocess.run, [*command, "--sizes", "16k"], cwd=ROOT, capture_output=True, text=True, timeout=25
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the client's memory stayed within its settings" in done.stdout


async def test_nothing_is_written_when_publishers_try_again_and_again_while_they_are_blocked(
    broker: Broker, client: leveret.Client, queue: str
) -> None:
    transport = client.connection.transport
    async with client.producer(serializer="bytes", confirm_timeout=0.3, publish_timeout=0.3) as producer:
        await broker.block()
        try:
            async with asyncio.timeout(5):
                while client.connection.blocked is None:
                    with contextlib.suppress(ConfirmTimeout):
                        await producer.publish(b"", queue)
            published = producer.counters()["published"]
            read: list[int] = []

            def bodies() -> Iterator[bytes]:
                while True:
                    read.append(BODY)
                    yield bytes(BODY)

            async def once() -> None:
                await producer.publish(bytes(BODY), queue)

            tries = [asyncio.create_task(once()) for _ in range(1000)]
            batch = asyncio.create_task(producer.publish_batch(bodies(), queue))
            refused = 0
            while not batch.done() or not all(task.done() for task in tries):
                with pytest.raises(BackpressureError):
                    producer.publish_nowait(bytes(BODY), queue)
                refused += 1
                await asyncio.sleep(0)
            assert refused
            errors = await asyncio.gather(*tries, return_exceptions=True)
            assert {error.outcome for error in errors if isinstance(error, PublishError)} == {Outcome.NOT_SENT}
            assert len(errors) == 1000
            assert (await batch).confirmed == 0
            assert sum(read) <= 2 * 1024 * KiB, "an iterable is not read while its values cannot be sent"
            assert producer.counters()["published"] == published
            assert transport.pending_bytes == 0
        finally:
            await broker.unblock()


# ---------------------------------------------------------------------- a socket that nobody reads


class Deaf:
    """A session that takes no notice."""

    def connected(self, transport: FrameTransport) -> None:
        pass

    def events_received(self, events: list[object]) -> None:
        pass

    def stream_failed(self, error: leveret.ProtocolError) -> None:
        pass

    def transport_lost(self, error: Exception | None) -> None:
        pass


@pytest.fixture
async def full() -> AsyncIterator[tuple[FrameTransport, asyncio.StreamReader]]:
    """A transport whose socket is full, and its other end, which has read nothing."""
    accepted: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Future()
    server = await asyncio.start_server(lambda *pair: accepted.set_result(pair), "127.0.0.1", 0, limit=64 * KiB)
    port = server.sockets[0].getsockname()[1]
    _, transport = await asyncio.get_running_loop().create_connection(
        lambda: FrameTransport(Deaf(), FrameReader(), write_high_watermark=WATERMARK, write_low_watermark=64 * KiB),
        "127.0.0.1",
        port,
    )
    reader, writer = await accepted
    while not transport.paused:
        transport.out.append(bytes(BODY))
        await asyncio.sleep(0)
    yield transport, reader
    transport.abort()
    writer.close()
    server.close()
    await server.wait_closed()


async def read_until_done(reader: asyncio.StreamReader, tasks: list[asyncio.Task[None]]) -> None:
    """Reads for as long as tasks wait."""
    async with asyncio.timeout(20):
        while not all(task.done() for task in tasks):
            await reader.read(WATERMARK)
            await asyncio.sleep(0)


async def test_writers_have_their_turns_in_order_when_the_socket_is_full(
    full: tuple[FrameTransport, asyncio.StreamReader],
) -> None:
    transport, reader = full
    written: list[int] = []
    most = 0

    async def write(number: int) -> None:
        nonlocal most
        await transport.drain()
        written.append(number)
        transport.out.append(bytes(BODY))
        transport.flush()
        most = max(most, transport.pending_bytes)

    tasks = [asyncio.create_task(write(number)) for number in range(500)]
    await asyncio.sleep(0)
    assert not written
    await read_until_done(reader, tasks)
    assert written == list(range(500))
    assert most <= WATERMARK + BODY


async def test_others_have_their_turns_when_writers_are_cancelled(
    full: tuple[FrameTransport, asyncio.StreamReader],
) -> None:
    transport, reader = full
    tasks = [asyncio.create_task(transport.drain()) for _ in range(100)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    await read_until_done(reader, tasks)
    assert [task.cancelled() for task in tasks] == [number % 3 == 0 for number in range(100)]


async def test_everybody_is_woken_when_the_transport_is_lost(full: tuple[FrameTransport, asyncio.StreamReader]) -> None:
    transport, _ = full
    tasks = [asyncio.create_task(transport.drain()) for _ in range(100)]
    await asyncio.sleep(0)
    transport.abort()
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert transport.closed
