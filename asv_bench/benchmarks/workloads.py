"""The programs that `bench_instructions` runs under callgrind: python -m benchmarks.workloads NAME TOTAL COUNT.

Prepares TOTAL messages and handles COUNT of them. Two runs with the same TOTAL and a different COUNT therefore differ
only by the instructions of the messages that one run handles more.
"""

from __future__ import annotations

import asyncio
import atexit
import gc
import struct
import sys
from functools import partial
from typing import TYPE_CHECKING, Any

from . import corpus
from .support import Broker, channel_deliveries, discarding_buffer, need, runner

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

#: In a monitored program, messages for each report and each scrape: 10 s of 1,000 per second.
LOOK_EVERY = 10_000
#: Messages in one read, in one batch, or tasks that publish at the same time.
GROUP = 100
BODY = bytes(1024)


def _by_group(group: Callable[[], object]) -> Callable[[int], None]:
    """A workload that handles GROUP messages in each call of a function."""

    def run(count: int) -> None:
        for _ in range(count // GROUP):
            group()

    return run


def decode(total: int) -> Callable[[int], None]:
    """Reads deliveries of 1 KiB and drops them."""
    from leveret.wire.reader import FrameReader

    reader = FrameReader(frame_max=corpus.FRAME_MAX)
    data = corpus.deliveries(GROUP, 1024)
    return _by_group(lambda: reader.feed(data))


# ---------------------------------------------------------------------- through a producer


class _Confirming:
    """A client's socket that drops publishings, and confirms each write in the next turn of the event loop.

    Until `producer` is set it writes to the real socket, so that a broker answers the handshake.
    """

    def __init__(self, socket: asyncio.Transport, protocol: Any) -> None:
        self._socket = socket
        self._protocol = protocol
        self._written = self._confirmed = 0
        self.producer: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def write(self, data: bytes) -> None:
        if self.producer is None:
            self._socket.write(data)
            return
        if self._written == self._confirmed:
            asyncio.get_running_loop().call_soon(self._confirm)
        self._written = self.producer.next_delivery_tag - 1

    def _confirm(self) -> None:
        self._confirmed = self._written
        # basic.ack on channel 1, multiple (AMQP 0-9-1 section 1.8.3.13)
        frame = struct.pack(">BHIHHQBB", 1, 1, 13, 60, 80, self._written, 1, 0xCE)
        self._protocol.get_buffer(len(frame))[: len(frame)] = frame
        self._protocol.buffer_updated(len(frame))


def _options(monitored: bool) -> dict[str, Any]:
    """What a client is made with. Loading plugins takes more instructions than all messages."""
    import leveret

    if not monitored:
        return {"plugins": leveret.PluginSettings(allow=[]), "heartbeat": 0}
    return {
        "plugins": leveret.PluginSettings(allow=["prometheus"]),
        "monitoring": leveret.MonitoringSettings(sinks=["prometheus"]),
        "heartbeat": 0,
    }


def _look(client: Any, count: int) -> None:
    """Makes the reports and the scrapes of a monitored client that handled so many messages."""
    from prometheus_client import generate_latest

    from leveret.monitoring.report import Report, Totals
    from leveret.monitoring.usage import UsageMeter

    usage, before = UsageMeter(), Totals()
    for _ in range(count // LOOK_EVERY):
        now = Totals(client.metrics())
        report = Report.between("bench", 10.0, before, now, usage.read(), {}, None)
        assert str(report)
        assert report.as_dict()
        assert generate_latest()
        before = now
    usage.close()


def _with_producer(
    workload: Callable[[Any, int], Coroutine[Any, Any, None]], *, monitored: bool = False
) -> Callable[[int], Callable[[int], None]]:
    """A workload that gets a producer with default options, except `confirm_timeout`, and a number of messages."""

    def prepare(total: int) -> Callable[[int], None]:
        import leveret
        from leveret.transport.frame_transport import FrameTransport

        sockets: list[Any] = []
        transport: Any = FrameTransport
        connected = transport.connection_made

        def connection_made(protocol: Any, socket: asyncio.Transport) -> None:
            sockets.append(_Confirming(socket, protocol))
            connected(protocol, sockets[-1])

        async def open_producer() -> tuple[Any, Any]:
            transport.connection_made = connection_made
            client = await leveret.connect(broker.url, **_options(monitored))
            # A distant deadline, because the timer of deadlines runs by time, not by messages.
            producer = await client.producer(exchange="orders", serializer="bytes", confirm_timeout=86400).open()
            sockets[-1].producer = producer
            return client, producer

        broker = Broker()
        atexit.register(broker.close)
        running = runner()
        client, producer = running.run(open_producer())

        def run(count: int) -> None:
            running.run(workload(producer, count))
            if monitored:
                _look(client, count)

        return run

    return prepare


def _with_routing_key(producer: Any) -> Any:
    return "order.created"


def _with_template(producer: Any) -> Any:
    return producer.template("order.created", priority=5, headers={"tenant": 7})


def _publish(routing: Callable[[Any], Any], *, monitored: bool = False) -> Callable[[int], Callable[[int], None]]:
    """GROUP tasks that await `publish`, one message after the other."""

    async def workload(producer: Any, count: int) -> None:
        key = routing(producer)

        async def task() -> None:
            publish = producer.publish
            for _ in range(count // GROUP):
                await publish(BODY, key)

        await asyncio.gather(*(task() for _ in range(GROUP)))

    return _with_producer(workload, monitored=monitored)


def _publish_nowait(routing: Callable[[Any], Any]) -> Callable[[int], Callable[[int], None]]:
    """`publish_nowait` of GROUP messages, then `flush`."""

    async def workload(producer: Any, count: int) -> None:
        publish, key = producer.publish_nowait, routing(producer)
        for _ in range(count // GROUP):
            for _ in range(GROUP):
                publish(BODY, key)
            await producer.flush()

    return _with_producer(workload)


def _publish_batch(routing: Callable[[Any], Any]) -> Callable[[int], Callable[[int], None]]:
    """`publish_batch` of all messages."""

    async def workload(producer: Any, count: int) -> None:
        await producer.publish_batch([BODY] * count, routing(producer))

    return _with_producer(workload)


# ---------------------------------------------------------------------- through a consumer


class _Delivering:
    """A client's socket that brings GROUP deliveries in each turn of the event loop, and drops what is written.

    Until `deliver` is called it writes to the real socket, so that a broker answers the handshake and the subscription.
    """

    def __init__(self, socket: asyncio.Transport, protocol: Any) -> None:
        self._socket = socket
        self._reads: Iterator[bytes] | None = None
        self.protocol = protocol

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def write(self, data: bytes) -> None:
        if self._reads is None:
            self._socket.write(data)

    def deliver(self, reads: list[bytes]) -> None:
        self._reads = iter(reads)
        self._read()

    def _read(self) -> None:
        assert self._reads is not None
        data = next(self._reads, None)
        if data is not None:
            asyncio.get_running_loop().call_soon(self._read)
            rest = memoryview(data)
            while rest:
                room = self.protocol.get_buffer(len(rest))
                size = min(len(room), len(rest))
                room[:size] = rest[:size]
                self.protocol.buffer_updated(size)
                rest = rest[size:]


def _consume(total: int, *, monitored: bool = False) -> Callable[[int], None]:
    """`Consumer.run` with a handler that waits for nothing, and default options."""
    import leveret
    from leveret.transport.frame_transport import FrameTransport

    sockets: list[Any] = []
    transport: Any = FrameTransport
    connected = transport.connection_made

    def connection_made(protocol: Any, socket: asyncio.Transport) -> None:
        sockets.append(_Delivering(socket, protocol))
        connected(protocol, sockets[-1])

    async def open_client() -> Any:
        transport.connection_made = connection_made
        client = await leveret.connect(broker.url, **_options(monitored))
        await client.declare(leveret.Topology().queue("orders"))
        return client

    async def workload(count: int) -> None:
        left = count
        handled = asyncio.get_running_loop().create_future()
        consumer = client.consumer("orders")

        async def handle(value: bytes, message: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                handled.set_result(None)

        running = asyncio.create_task(consumer.run(handle))
        for _ in range(10_000):
            if consumer.meter.live:
                break
            await asyncio.sleep(0.01)
        ((socket, tag),) = [
            (each, tag) for each in sockets for channel in each.protocol.channels.values() for tag in channel.consumers
        ]
        reads = [corpus.reads_of(tag.encode(), first, GROUP, BODY) for first in range(1, total + 1, GROUP)]
        socket.deliver(reads[: count // GROUP])
        await handled
        if monitored:
            _look(client, count)
        running.cancel()

    broker = Broker()
    atexit.register(broker.close)
    loop = runner()
    client = loop.run(open_client())
    return lambda count: loop.run(workload(count))


# ---------------------------------------------------------------------- confirms and acknowledgements


def confirm(total: int) -> Callable[[int], None]:
    """Settles publishings of one ticket with an acknowledgement for each."""
    from leveret.publishing.confirms import ConfirmWindow, Ticket
    from leveret.publishing.publisher import PublishBatch
    from leveret.publishing.template import PublishTemplate
    from leveret.wire.runs import SettlementRun

    window, ticket = ConfirmWindow(), Ticket()
    batch = PublishBatch(discarding_buffer(), window)
    template = PublishTemplate("orders", "order.created", corpus.RAW_PROPERTIES)
    for _ in range(total):
        batch.add(template, BODY, ticket)
    waiting = iter(
        [
            SettlementRun.of(1, [(tag, False, False, False) for tag in range(first, first + GROUP)])
            for first in range(1, total + 1, GROUP)
        ]
    )
    return _by_group(lambda: window.settle(next(waiting)))


def acknowledge(total: int) -> Callable[[int], None]:
    """Notes deliveries, acknowledges each and writes one basic.ack for 100 of them."""
    deliveries = channel_deliveries()
    acks = deliveries.acks

    def group() -> None:
        first = acks.next_delivery_tag
        for tag in range(first, first + GROUP):
            acks.track(tag)
        for tag in range(first, first + GROUP):
            acks.ack(tag)
        deliveries.flush()

    return _by_group(group)


WORKLOADS: dict[str, Callable[[int], Callable[[int], None]]] = {
    "decode": decode,
    "publish": _publish(_with_routing_key),
    "publish_nowait": _publish_nowait(_with_routing_key),
    "publish_batch": _publish_batch(_with_routing_key),
    "template": _publish(_with_template),
    "template_nowait": _publish_nowait(_with_template),
    "template_batch": _publish_batch(_with_template),
    "consume": _consume,
    "publish_monitored": _publish(_with_routing_key, monitored=True),
    "consume_monitored": partial(_consume, monitored=True),
    "confirm": confirm,
    "acknowledge": acknowledge,
}


def main(name: str, total: int, count: int) -> None:
    """Runs a workload."""
    need("leveret.publishing.publisher")
    run = WORKLOADS[name](total)
    gc.collect()
    gc.disable()
    run(count)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
