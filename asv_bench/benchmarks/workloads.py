"""The workloads whose cost per message is counted (`counted`), and a program that runs one of them for a profiler:

    python -m benchmarks.workloads NAME COUNT

A workload prepares a number of messages, and returns a function that handles so many of them.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import gc
import gzip
import itertools
import struct
import sys
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from . import corpus
from .former import (
    channel_deliveries,
    discarding_buffer,
    find,
    need,
    options_once,
    template_maker,
    without_plugins,
)
from .support import Broker, runner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    Workload = Callable[[int], Callable[[int], None]]

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
    reader = find("FrameReader")(frame_max=corpus.FRAME_MAX)
    data = corpus.deliveries(GROUP, 1024)
    return _by_group(lambda: reader.feed(data))


# ---------------------------------------------------------------------- through a client


class _Socket:
    """A client's socket that is the real one, to a broker that answers the handshake, until `mute` is called.

    From then on it drops what is written.
    """

    def __init__(self, socket: asyncio.Transport, protocol: Any) -> None:
        self._socket = socket
        self._protocol = protocol
        self._muted = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def write(self, data: bytes) -> None:
        if self._muted:
            self._written()
        else:
            self._socket.write(data)

    def mute(self) -> None:
        self._muted = True

    def _written(self) -> None:
        pass

    def receive(self, data: bytes) -> None:
        """Gives bytes to the client, as a loop does: the copy here stands for the kernel's."""
        rest = memoryview(data)
        while rest:
            buffer = self._protocol.get_buffer(len(rest))
            size = min(len(buffer), len(rest))
            buffer[:size] = rest[:size]
            rest = rest[size:]
            self._protocol.buffer_updated(size)


class _Confirming(_Socket):
    """Confirms each write in the next turn of the event loop."""

    producer: Any = None
    _sent = _confirmed = 0

    def _written(self) -> None:
        if self._sent == self._confirmed:
            asyncio.get_running_loop().call_soon(self._confirm)
        self._sent = self.producer.next_delivery_tag - 1

    def _confirm(self) -> None:
        self._confirmed = self._sent
        # basic.ack on channel 1, multiple (AMQP 0-9-1 section 1.8.3.13)
        self.receive(struct.pack(">BHIHHQBB", 1, 1, 13, 60, 80, self._sent, 1, 0xCE))


@contextlib.contextmanager
def _sockets(kind: type[_Socket]) -> Iterator[list[Any]]:
    """Lists the sockets of the connections that are made meanwhile, the newest last; they are of this kind."""
    transport = find("FrameTransport")
    connected = transport.connection_made
    sockets: list[Any] = []

    def connection_made(protocol: Any, socket: asyncio.Transport) -> None:
        sockets.append(kind(socket, protocol))
        connected(protocol, sockets[-1])

    transport.connection_made = connection_made
    try:
        yield sockets
    finally:
        transport.connection_made = connected


@cache
def _broker() -> Broker:
    broker = Broker()
    atexit.register(broker.close)
    return broker


class _Halving:
    """A compressor that costs nothing: what is counted is what a producer does for one."""

    def __init__(self) -> None:
        self._half = bytes(len(BODY) // 2)

    def compress(self, data: bytes) -> bytes:
        return self._half

    def decompress(self, data: bytes, max_size: int) -> bytes:
        return BODY


class _Retry:
    """Asked when something fails, which it does not."""

    def next_delay(self, attempt: int, error: Exception) -> float | None:
        return None


class _Closed:
    """A circuit breaker that is closed."""

    closed = True

    def before_call(self) -> None:
        pass

    def record(self, successes: int, failures: int, *, seconds: float, error: BaseException | None) -> None:
        pass


def _everyday_plugins() -> Any:
    """A registry with the compressor "halving", and the policies "retry" and "closed"."""
    plugins = need("leveret.plugins")
    compressor = plugins.CompressorSpec(
        name="halving", content_encoding="halving", factory=lambda level: _Halving(), levels=(0, 9)
    )
    policies = [
        plugins.PolicySpec(kind="retry", name="retry", factory=_Retry),
        plugins.PolicySpec(kind="circuit_breaker", name="closed", factory=_Closed),
    ]
    found = {"leveret_compressors": [compressor], "leveret_policies": policies}
    hooks = {
        name: staticmethod(plugins.hookimpl(specname=name)(lambda specs=specs: specs)) for name, specs in found.items()
    }
    return need("leveret.plugins.registry").PluginRegistry.from_plugins(type("Hooks", (), hooks)())


async def _client(monitored: bool, plugins: bool = False) -> Any:
    leveret = need("leveret")
    options = {"plugins": _everyday_plugins()} if plugins else without_plugins()
    if monitored:
        need("leveret.monitoring.report")
        need("leveret_prometheus")
        options = {
            "plugins": leveret.PluginSettings(allow=["prometheus"]),
            "monitoring": leveret.MonitoringSettings(sinks=["prometheus"]),
        }
    return await leveret.connect(_broker().url, heartbeat=0, **options)


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
    workload: Callable[[Any, int], Coroutine[Any, Any, None]], *, monitored: bool = False, **chosen: Any
) -> Workload:
    """A workload that gets a producer and a number of messages.

    The producer has default options, except `confirm_timeout` and those that are `chosen`.
    """

    async def open_producer() -> tuple[Any, Any]:
        with _sockets(_Confirming) as sockets:
            client = await _client(monitored, bool(chosen.keys() & {"compressor", "retry"}))
            known = need("leveret").ProducerSettings.__dataclass_fields__
            if not known.keys() >= chosen.keys():
                raise NotImplementedError(f"this version has no {', '.join(chosen.keys() - known.keys())}")
            # A distant deadline, because the timer of deadlines runs by time, not by messages.
            producer = client.producer(exchange="orders", serializer="bytes", confirm_timeout=86400, **chosen)
            await producer.open()
        sockets[-1].producer = producer
        sockets[-1].mute()
        return client, producer

    def prepare(total: int) -> Callable[[int], None]:
        running = runner()
        client, producer = running.run(open_producer())

        def run(count: int) -> None:
            running.run(workload(producer, count))
            if monitored:
                _look(client, count)

        return run

    return prepare


def _plain(producer: Any, method: str) -> tuple[Callable[..., Any], Any]:
    """A method of a producer, and the routing key for it."""
    return getattr(producer, method), "order.created"


def _with_template(producer: Any, method: str) -> tuple[Callable[..., Any], Any]:
    """A method of a producer, and a template for it, with a priority and a header."""
    publish = getattr(producer, method)
    template, options = options_once(producer, "order.created", priority=5, headers={"tenant": 7})
    return (partial(publish, **options) if options else publish), template


def _publish(
    routing: Callable[..., Any], *, monitored: bool = False, tasks: int = GROUP, method: str = "publish", **chosen: Any
) -> Workload:
    """Tasks that await `publish`, one message after the other."""

    async def workload(producer: Any, count: int) -> None:
        publish, key = routing(producer, method)

        async def task() -> None:
            for _ in range(count // tasks):
                await publish(BODY, key)

        await asyncio.gather(*(task() for _ in range(tasks)))
        await producer.flush()

    return _with_producer(workload, monitored=monitored, **chosen)


def _gather(count_of_each: int) -> Workload:
    """`gather` of so many calls of `publish`, again and again."""

    async def workload(producer: Any, count: int) -> None:
        for _ in range(count // count_of_each):
            await asyncio.gather(*(producer.publish(BODY, "order.created") for _ in range(count_of_each)))

    return _with_producer(workload)


def _each(asked: Callable[[Any], Callable[[int], Any]], **chosen: Any) -> Workload:
    """GROUP tasks that await what `asked` returns for each message's number.

    Args:
        asked: Makes that function for a producer.
        **chosen: Options of the producer.
    """

    async def workload(producer: Any, count: int) -> None:
        publish = asked(producer)

        async def task(start: int) -> None:
            for number in range(start, count, GROUP):
                await publish(number)

        await asyncio.gather(*map(task, range(GROUP)))

    return _with_producer(workload, **chosen)


def _numbered(producer: Any) -> Callable[[int], Any]:
    """A routing key alone."""
    publish = producer.publish
    return lambda number: publish(BODY, "order.created")


def _header(producer: Any) -> Callable[[int], Any]:
    """A header that is always the same."""
    publish = producer.publish
    return lambda number: publish(BODY, "order.created", headers={"tenant": 7})


def _headers(producer: Any) -> Callable[[int], Any]:
    """Three headers, of which one differs."""
    publish = producer.publish
    return lambda number: publish(BODY, "order.created", headers={"tenant": 7, "source": "shop", "number": number})


@cache
def _ids() -> list[str]:
    return [f"0198b8a2-6b7c-7000-8000-{number:012x}" for number in range(2 * LOOK_EVERY)]


def _message_id(producer: Any) -> Callable[[int], Any]:
    """A message id of the caller's."""
    publish = producer.publish
    ids = _ids()
    return lambda number: publish(BODY, "order.created", message_id=ids[number % len(ids)])


def _fluent(producer: Any) -> Callable[[int], Any]:
    """A message that is put together call by call."""
    return lambda number: producer.message(BODY).routing_key("order.created").publish()


def _fluent_header(producer: Any) -> Callable[[int], Any]:
    """The same with a header."""
    return lambda number: producer.message(BODY).routing_key("order.created").header("tenant", 7).publish()


@cache
def _order_keys() -> tuple[list[str], Iterator[int]]:
    return [f"order.{number}" for number in range(100_000)], itertools.cycle(range(100_000))


def _keys(producer: Any) -> Callable[[int], Any]:
    """100,000 routing keys, one after the other; a run uses a part of them."""
    publish = producer.publish
    keys, places = _order_keys()
    return lambda number: publish(BODY, keys[next(places)])


def _for_each_request(made: Callable[[Any], Any]) -> Workload:
    """Publishes and waits for the confirm, again and again, with what `made` gives for each message.

    The broker is the embedded one, in another process.
    """

    def prepare(total: int) -> Callable[[int], None]:
        running = runner()
        client = running.run(_client(False))
        # The broker drops what no queue takes.
        options = {"exchange": "amq.fanout", "serializer": "bytes", "mandatory": False, "confirm_timeout": 86400}

        async def workload(count: int) -> None:
            async with client.producer(**options) as first:
                producer = made(first) or (lambda: client.producer(**options))
                for _ in range(count):
                    async with producer() as ready:
                        await ready.publish(BODY, "order.created")

        return lambda count: running.run(workload(count))

    return prepare


@contextlib.asynccontextmanager
async def _same(producer: Any) -> AsyncIterator[Any]:
    yield producer


def _publish_nowait(routing: Callable[..., Any]) -> Workload:
    """`publish_nowait` of GROUP messages, then `flush`."""

    async def workload(producer: Any, count: int) -> None:
        publish, key = routing(producer, "publish_nowait")
        for _ in range(count // GROUP):
            for _ in range(GROUP):
                publish(BODY, key)
            await producer.flush()

    return _with_producer(workload)


def _publish_batch(routing: Callable[..., Any]) -> Workload:
    """`publish_batch` of all messages."""

    async def workload(producer: Any, count: int) -> None:
        publish, key = routing(producer, "publish_batch")
        await publish([BODY] * count, key)

    return _with_producer(workload)


async def _run(consumer: Any, handled: Callable[[], None], handler: Any) -> None:
    await consumer.run(handler)


async def _run_function(consumer: Any, handled: Callable[[], None], _: Any) -> None:
    await consumer.run(lambda value, message: handled())


async def _run_with_headers(consumer: Any, handled: Callable[[], None], _: Any) -> None:
    async def handler(value: bytes, message: Any) -> None:
        if message.headers["tenant"] == 7:
            handled()

    await consumer.run(handler)


async def _iterate(consumer: Any, handled: Callable[[], None], _: Any) -> None:
    async for message in consumer:
        handled()
        message.ack()


def _counted_reads(read: Callable[[], None]) -> tuple[Any, Callable[[], None], Callable[[int], Any]]:
    """A handler that asks for the next read of GROUP deliveries when it has handled one.

    Args:
        read: Gives the client the next read.

    Returns:
        The handler, what ends a run, and a coroutine function that has so many messages handled.
    """
    coming = 0
    done: asyncio.Future[None]

    async def handler(value: bytes, message: object) -> None:
        nonlocal coming
        coming -= 1
        if not coming % GROUP:
            asyncio.get_running_loop().call_soon(go_on)

    def go_on() -> None:
        if coming:
            read()
        else:
            end()

    def end() -> None:
        done.set_result(None)

    async def handle(count: int) -> None:
        nonlocal coming, done
        coming = count
        done = asyncio.get_running_loop().create_future()
        read()
        await done

    return handler, end, handle


def _consume(
    take: Callable[[Any, Callable[[], None], Any], Coroutine[Any, Any, None]] = _run,
    *,
    monitored: bool = False,
    raw_properties: bytes = corpus.BYTES_PROPERTIES,
    body: bytes = BODY,
    **options: Any,
) -> Workload:
    """A consumer with default options, unless others are given, takes reads of GROUP deliveries and counts them.

    The socket drops the acknowledgements.
    """

    def prepare(total: int) -> Callable[[int], None]:
        tag = corpus.CONSUMER_TAG
        reads = iter([corpus.reads_of(tag, at, GROUP, body, raw_properties) for at in range(1, total + 1, GROUP)])
        socket: Any = None
        left: Iterator[int] = iter(())

        def handled() -> None:
            # In one step, because several threads may be here.
            now = next(left)
            if not now % GROUP:
                # Not from here: a handler may run inside the read that brought its message, or in a thread.
                running.get_loop().call_soon_threadsafe(read if now else end)

        def read() -> None:
            socket.receive(next(reads))

        # `handler` does the same for coroutines; cheaper, and as former versions were counted.
        handler, end, handle = _counted_reads(read)

        async def subscribe() -> tuple[Any, Any]:
            nonlocal socket
            client = await _client(monitored)
            await client.declare(need("leveret").Topology().queue("consumed"))
            with _sockets(_Socket) as sockets:
                consumer = client.consumer("consumed", bytes, consumer_tag=tag.decode(), **options)
                await consumer.subscribe()
            socket = sockets[-1]
            socket.mute()
            return client, asyncio.create_task(take(consumer, handled, handler))

        running = runner()
        client, consuming = running.run(subscribe())

        def run(count: int) -> None:
            nonlocal left
            left = iter(range(count - 1, -1, -1))
            running.run(handle(count))
            assert not consuming.done()
            if monitored:
                _look(client, count)

        return run

    return prepare


def _consumers(number: int) -> Workload:
    """A broker gives so many consumers of a queue one message each in turn; a read has GROUP of them."""

    def prepare(total: int) -> Callable[[int], None]:
        reads: Iterator[bytes]
        socket: Any = None

        def read() -> None:
            socket.receive(next(reads))

        handler, _, handle = _counted_reads(read)

        async def subscribe() -> list[asyncio.Task[None]]:
            nonlocal socket, reads
            client = await _client(False)
            await client.declare(need("leveret").Topology().queue("consumed"))
            with _sockets(_Socket) as sockets:
                consumers = [client.consumer("consumed", bytes) for _ in range(number)]
                for consumer in consumers:
                    await consumer.subscribe()
            socket = sockets[-1]
            socket.mute()
            places = [
                (channel, tag.encode())
                for channel, its in socket._protocol.channels.items()
                for tag in getattr(its, "consumers", ())
            ]
            turns = itertools.product(range(1, total // number + 2), places)
            deliveries = [
                corpus.delivery_to(channel, tag, delivery, BODY)
                for delivery, (channel, tag) in itertools.islice(turns, total)
            ]
            reads = iter([b"".join(deliveries[at : at + GROUP]) for at in range(0, total, GROUP)])
            return [asyncio.create_task(consumer.run(handler)) for consumer in consumers]

        running = runner()
        tasks = running.run(subscribe())

        def run(count: int) -> None:
            running.run(handle(count))
            assert not any(task.done() for task in tasks)

        return run

    return prepare


# ---------------------------------------------------------------------- confirms and acknowledgements


def confirm(total: int) -> Callable[[int], None]:
    """Settles publishings of one ticket with an acknowledgement for each."""
    window, ticket = find("ConfirmWindow")(), find("Ticket")()
    batch = find("PublishBatch")(discarding_buffer(), window)
    template = template_maker()("orders", "order.created", corpus.RAW_PROPERTIES)
    for _ in range(total):
        batch.add(template, BODY, ticket)
    make = find("SettlementRun").of
    waiting = iter(
        [
            make(1, [(tag, False, False, False) for tag in range(first, first + GROUP)])
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


def _queues(number: int) -> Workload:
    """`publish_nowait` to so many queues in turn, with the routing key of each."""
    keys = itertools.cycle([f"order.created.{queue}" for queue in range(number)])

    async def workload(producer: Any, count: int) -> None:
        publish = producer.publish_nowait
        for _ in range(count // GROUP):
            for key in itertools.islice(keys, GROUP):
                publish(BODY, key)
            await producer.flush()

    return _with_producer(workload)


def _held(number: int) -> Workload:
    """Holds so many publishings, writes them to the channel that takes over, and confirms them; again and again."""

    def prepare(total: int) -> Callable[[int], None]:
        window, ticket = find("ConfirmWindow")(), find("Ticket")
        batch = find("PublishBatch")(discarding_buffer(), window)
        template = template_maker()("orders", "order.created", corpus.RAW_PROPERTIES)
        confirm = find("SettlementRun").of(1, [(0, True, False, False)])

        def run(count: int) -> None:
            for _ in range(count // number):
                for _ in range(number):
                    batch.hold(template, BODY, ticket())
                window.renumber()
                while not batch.resend(GROUP):
                    pass
                window.settle(confirm)

        return run

    return prepare


#: Those that every commit is counted by.
WORKLOADS: dict[str, Workload] = {
    "decode": decode,
    "publish": _publish(_plain),
    "publish_nowait": _publish_nowait(_plain),
    "publish_batch": _publish_batch(_plain),
    "template": _publish(_with_template),
    "template_nowait": _publish_nowait(_with_template),
    "template_batch": _publish_batch(_with_template),
    "confirm": confirm,
    "acknowledge": acknowledge,
    "consume": _consume(),
    "publish_monitored": _publish(_plain, monitored=True),
    "consume_monitored": _consume(monitored=True),
}
#: What should cost the same however many there are, by the names that end with the number.
GROWTH: dict[str, Workload] = {
    **{f"queues_{number}": _queues(number) for number in (1, 100, 1000, 5000)},
    **{f"held_{number}": _held(number) for number in (100, 1000, 5000)},
    **{f"consumers_{number}": _consumers(number) for number in (1, 100, 1000)},
}
#: What programs do besides: options, many keys, other handlers.
EVERYDAY: dict[str, Workload] = {
    "tasks_1000": _publish(_plain, tasks=1000),
    "gather_1000": _gather(1000),
    "enqueue": _publish(_plain, method="enqueue"),
    "retry": _publish(_plain, retry="retry"),
    "policies": _publish(_plain, retry="retry", circuit_breaker="closed"),
    "header": _each(_header),
    "headers": _each(_headers),
    "message_id": _each(_message_id),
    "message_ids": _each(_numbered, message_ids=True),
    "fluent": _each(_fluent),
    "fluent_header": _each(_fluent_header),
    "keys": _each(_keys),
    "one_by_one": _for_each_request(lambda producer: partial(_same, producer)),
    "producer_each": _for_each_request(lambda producer: None),
    "compressed": _each(_numbered, compressor="halving", compression_threshold=0),
    "consume_function": _consume(_run_function),
    "consume_functions": _consume(_run_function, concurrency=10),
    "consume_auto": _consume(prefetch="auto"),
    "consume_iterating": _consume(_iterate),
    "consume_gzip": _consume(raw_properties=corpus.GZIP_PROPERTIES, body=gzip.compress(BODY, mtime=0)),
    "consume_headers": _consume(_run_with_headers, raw_properties=corpus.HEADER_PROPERTIES),
}
#: Those of `WORKLOADS` that need no installed plugin.
OWN = tuple(name for name in WORKLOADS if not name.endswith("_monitored"))


def main(name: str, count: int) -> None:
    """Runs a workload."""
    run = (WORKLOADS | EVERYDAY)[name](count)
    gc.collect()
    gc.disable()
    run(count)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
