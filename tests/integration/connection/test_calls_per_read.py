"""The number of Python-level calls per read does not grow with the messages in it: the loops are compiled."""

from __future__ import annotations

import asyncio
import gc
import sys
from typing import TYPE_CHECKING, Any

import pytest
from pamqp import frame
from pamqp.commands import Basic, Channel, Confirm
from tests.support.conversation import content
from tests.support.peers import FakeServer, Peer

import leveret

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from leveret.transport.frame_transport import FrameTransport

pytestmark = pytest.mark.usefixtures("no_leftovers")


HEARTBEAT = b"\x08\x00\x00\x00\x00\x00\x00\xce"


def python_calls(function: Callable[..., object], *arguments: object) -> list[str]:
    """Calls a function; returns the names of the Python functions that ran for it. Compiled ones do not appear."""
    names: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call":
            names.append(frame.f_code.co_qualname)

    gc.disable()  # a collection runs the callbacks of others
    sys.setprofile(note)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
        gc.enable()
    return names


def read(transport: FrameTransport, data: bytes) -> list[str]:
    """Hands bytes to a transport as the event loop does after one read; returns the names of the calls it made."""
    while len(memory := memoryview(transport.get_buffer(-1))) < len(data):
        # The buffer grows when a read takes all of it.
        memory[:] = HEARTBEAT * (len(memory) // len(HEARTBEAT))
        transport.buffer_updated(len(memory))
    memory[: len(data)] = data
    return python_calls(transport.buffer_updated, len(data))


def deliveries(first: int, count: int, *, consumer_tag: str = "tag", channel: int = 1) -> bytes:
    """So many small messages to one consumer, as a broker sends them."""
    return b"".join(
        content(
            Basic.Deliver(consumer_tag, tag, False, "orders", "order.created"), channel, b'{"id":1}', delivery_mode=2
        )
        for tag in range(first, first + count)
    )


async def obliging(peer: Peer) -> None:
    await peer.handshake()
    await peer.linger()


@pytest.fixture
async def consumer() -> Any:
    """A consumer that a server has accepted; no message is taken from it."""
    async with FakeServer(obliging) as server, leveret.connect(server.url) as client:
        consuming = client.consumer("q", consumer_tag="tag", prefetch=5000)
        await consuming.subscribe()
        yield consuming


async def test_calls_do_not_grow_when_a_read_brings_more_deliveries(consumer: leveret.Consumer[Any]) -> None:
    transport = consumer._connection.transport
    read(transport, deliveries(1, 1))  # the first one starts the timer of the read collector
    few = read(transport, deliveries(2, 100))
    many = read(transport, deliveries(102, 1000))

    assert consumer.counters()["delivered"] == 1101
    assert consumer.counters()["unsettled"] == 1101
    # What a read brings alone is compiled from the transport to the consumer's buffer.
    assert few == many == []


async def test_a_read_calls_nothing_in_python_when_it_brings_deliveries_to_many_consumers() -> None:
    async with FakeServer(obliging) as server, leveret.connect(server.url) as client:
        consumers = [client.consumer("q", consumer_tag=f"tag-{number}") for number in range(20)]
        for consuming in consumers:
            await consuming.subscribe()
        transport = client.consuming_link.connection.transport  # type: ignore[union-attr]

        def round_of(first: int) -> bytes:
            # Channels are numbered from 1 in the order of subscribing.
            return b"".join(
                deliveries(first, 3, consumer_tag=f"tag-{number}", channel=number + 1)
                for number in range(len(consumers))
            )

        read(transport, round_of(1))  # the first ones show whether this is a stream
        assert read(transport, round_of(4)) == []
        assert [consuming.counters()["delivered"] for consuming in consumers] == [6] * 20
        for consuming in consumers:
            await consuming.close()


@pytest.mark.parametrize("count", [100, 1000])
async def test_calls_do_not_grow_when_workers_wait_for_the_deliveries(
    consumer: leveret.Consumer[Any], count: int
) -> None:
    transport = consumer._connection.transport
    read(transport, deliveries(1, 1))  # the first one shows whether this is a stream
    await anext(consumer)
    waiting = [asyncio.create_task(anext(consumer)) for _ in range(8)]
    await asyncio.sleep(0)
    calls: list[str] = []
    # Not in this task: no other one can go on in it.
    asyncio.get_running_loop().call_soon(lambda: calls.extend(read(transport, deliveries(2, count))))
    assert len(await asyncio.gather(*waiting)) == 8
    # One of them went on during the read, and woke the others. Waking is compiled, too: uvloop's call_soon is.
    assert calls == ["Consumer.__anext__"]


async def test_calls_do_not_grow_when_a_read_brings_more_confirms() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        while True:
            await peer.receive()

    def confirms(first: int, count: int) -> bytes:
        return b"".join(frame.marshal(Basic.Ack(tag, False), 1) for tag in range(first, first + count))

    async with FakeServer(script) as server, leveret.connect(server.url, close_timeout=0.2) as client:
        producer = await client.producer(confirm_timeout=5).open()
        tickets = [producer.publish_nowait(number, "key") for number in range(1100)]
        transport = client.connection.transport
        few = read(transport, confirms(1, 100))
        many = read(transport, confirms(101, 1000))
        assert all(ticket.done for ticket in tickets)
        # As above, to the producer.
        assert few == many == []


def test_every_call_is_seen_when_it_is_counted() -> None:
    def inner() -> None:
        pass

    def outer() -> None:
        for _ in range(10):
            inner()

    assert len(python_calls(outer)) == 11
