"""Sockets have the options that the settings name, and writers have their turns when one is full."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.loops import every_loop

import leveret
from leveret import Topology
from leveret.broker import EmbeddedBroker
from leveret.errors import ConnectionClosed
from leveret.transport.frame_transport import FrameTransport
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="reads options as Linux has them")


#: What the kernel begins with and how far it goes when it adapts a buffer, to receive and to send (man 7 tcp).
KERNELS_OWN_SIZES = [
    tuple(map(int, path.read_text().split()[1:])) if path.exists() else (0, 0)
    for path in (Path("/proc/sys/net/ipv4/tcp_rmem"), Path("/proc/sys/net/ipv4/tcp_wmem"))
]


async def socket_options(broker: Broker, **options: Any) -> dict[str, int]:
    """What the kernel says of the socket of a client with these options."""
    async with leveret.connect(broker.url, **options) as client:
        return client.connection.socket_options()


@linux_only
@every_loop
async def test_s35_socket_buffers_are_as_large_as_the_settings_say_and_else_the_kernels_own(broker: Broker) -> None:
    def sizes(found: dict[str, int]) -> tuple[int, int]:
        return found["socket_receive_buffer_size"], found["socket_send_buffer_size"]

    # Linux doubles what it is given, for its own bookkeeping (man 7 socket).
    guides = {"socket_receive_buffer_size": 65_536, "socket_send_buffer_size": 65_536}
    assert sizes(await socket_options(broker, **guides)) == (2 * 65_536, 2 * 65_536)
    asked = {"socket_receive_buffer_size": 16_384, "socket_send_buffer_size": 32_768}
    assert sizes(await socket_options(broker, **asked)) == (2 * 16_384, 2 * 32_768)
    for found, (begins, most) in zip(sizes(await socket_options(broker)), KERNELS_OWN_SIZES, strict=True):
        assert begins <= found <= most


@linux_only
@every_loop
async def test_s36_keepalive_probes_begin_after_60_s_and_come_every_10_s(broker: Broker) -> None:
    def keepalive(found: dict[str, int]) -> tuple[int, int, int]:
        return found["tcp_keepalive"], found["tcp_keepalive_time"], found["tcp_keepalive_interval"]

    assert keepalive(await socket_options(broker)) == (1, 60, 10)
    assert keepalive(await socket_options(broker, tcp_keepalive_time=33, tcp_keepalive_interval=7)) == (1, 33, 7)
    assert keepalive(await socket_options(broker, tcp_keepalive=False))[0] == 0


@linux_only
@every_loop
async def test_s37_small_writes_are_sent_at_once_unless_tcp_nodelay_is_off(broker: Broker) -> None:
    assert (await socket_options(broker))["tcp_nodelay"] == 1
    # asyncio and uvloop turn it on for every TCP connection; the option must win.
    assert (await socket_options(broker, tcp_nodelay=False))["tcp_nodelay"] == 0


async def test_everything_works_when_the_broker_listens_on_a_unix_socket(tmp_path: Any) -> None:
    async with EmbeddedBroker(path=tmp_path / "broker") as broker, leveret.connect(broker.url) as client:
        # It has no options of TCP.
        assert {"tcp_nodelay", "tcp_keepalive_time"}.isdisjoint(client.connection.socket_options())
        await client.declare(Topology().queue("q"))
        async with client.producer() as producer:
            await producer.publish("local", "q")
        async with client.consumer("q") as consumer:
            message = await consumer.get()
            assert message is not None
            assert message.value == "local"


@every_loop
async def test_the_socket_is_closed_when_the_client_was_closed(broker: Broker, queue: str) -> None:
    async with leveret.connect(broker.url) as client:
        async with client.consumer(queue) as consumer:
            await consumer.get()
        transports = [client.connection.transport, consumer._connection.transport]
        assert not any(transport.closed for transport in transports)
    assert all(transport.closed for transport in transports)
    with pytest.raises(ConnectionClosed):
        client.connection.socket_options()


KiB = 1024


WATERMARK = 256 * KiB


BODY = 16 * KiB


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
