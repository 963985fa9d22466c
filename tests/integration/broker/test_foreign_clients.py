"""The embedded broker with clients that are not ours: pika, aio-pika, and sockets that speak badly or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

import aio_pika
import aiormq.exceptions
import pika
import pika.exceptions
import pytest
from aio_pika import DeliveryMode, Message
from tests.support.leftovers import nothing_left_behind
from tests.support.loops import every_loop

from leveret.broker import EmbeddedBroker
from leveret.protocol.commands import PROTOCOL_HEADER, Basic, Channel, Connection, Method, Queue, decode, encode, make
from leveret.wire.reader import FrameReader
from leveret.wire.runs import MethodFrame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path


@pytest.fixture
async def broker() -> AsyncIterator[EmbeddedBroker]:
    async with nothing_left_behind(), EmbeddedBroker(handshake_timeout=0.5) as running:
        yield running


@pytest.fixture
async def connection(broker: EmbeddedBroker) -> AsyncIterator[aio_pika.abc.AbstractConnection]:
    async with await aio_pika.connect(broker.url) as made:
        yield made


async def with_pika(broker: EmbeddedBroker, talk: Callable[[pika.BlockingConnection], Any], **options: Any) -> Any:
    """Runs a conversation of pika's blocking connection in a thread."""

    def run() -> Any:
        parameters = pika.URLParameters(broker.url)
        for option, value in options.items():
            setattr(parameters, option, value)
        client = pika.BlockingConnection(parameters)
        try:
            return talk(client)
        finally:
            if client.is_open:
                client.close()

    return await asyncio.to_thread(run)


# ---------------------------------------------------------------------- pika


async def test_pika_publishes_consumes_and_acknowledges(broker: EmbeddedBroker) -> None:
    def talk(client: pika.BlockingConnection) -> list[tuple[bytes, str, dict[str, Any]]]:
        channel = client.channel()
        channel.exchange_declare("orders", "topic", durable=True)
        channel.queue_declare("billing", durable=True)
        channel.queue_bind("billing", "orders", "order.*")
        channel.confirm_delivery()
        properties = pika.BasicProperties(
            content_type="application/json", delivery_mode=2, headers={"tenant": 7}, message_id="m-1"
        )
        for number in range(20):
            channel.basic_publish("orders", "order.created", str(number).encode(), properties, mandatory=True)
        channel.basic_qos(prefetch_count=5)
        seen = []
        for method, received, body in channel.consume("billing", inactivity_timeout=5):
            assert method is not None
            seen.append((body, received.message_id, received.headers))
            channel.basic_ack(method.delivery_tag)
            if len(seen) == 20:
                break
        channel.cancel()
        assert channel.queue_declare("billing", passive=True).method.message_count == 0
        return seen

    seen = await with_pika(broker, talk)
    assert seen == [(str(number).encode(), "m-1", {"tenant": 7}) for number in range(20)]
    assert broker.queue_depth("billing") == 0


async def test_pika_gets_unroutable_and_refused_messages_back(broker: EmbeddedBroker) -> None:
    def talk(client: pika.BlockingConnection) -> None:
        channel = client.channel()
        channel.confirm_delivery()
        with pytest.raises(pika.exceptions.UnroutableError) as returned:
            channel.basic_publish("", "nowhere", b"lost", mandatory=True)
        assert returned.value.messages[0].body == b"lost"
        channel.queue_declare("full", arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
        channel.basic_publish("", "full", b"first")
        with pytest.raises(pika.exceptions.NackError):
            channel.basic_publish("", "full", b"second")

    await with_pika(broker, talk)


async def test_pika_gets_requeued_messages_as_redelivered(broker: EmbeddedBroker) -> None:
    def talk(client: pika.BlockingConnection) -> list[tuple[bytes, bool]]:
        channel = client.channel()
        channel.queue_declare("q")
        for number in range(3):
            channel.basic_publish("", "q", str(number).encode())
        tags = [channel.basic_get("q")[0].delivery_tag for _ in range(2)]
        channel.basic_reject(tags[0], requeue=True)
        channel.close()  # gives the second one back
        channel = client.channel()
        got = [channel.basic_get("q", auto_ack=True) for _ in range(4)]
        assert got[3] == (None, None, None)
        return [(body, method.redelivered) for method, _, body in got[:3]]

    assert await with_pika(broker, talk) == [(b"0", True), (b"1", True), (b"2", False)]


async def test_pika_learns_that_its_queue_is_gone(broker: EmbeddedBroker) -> None:
    def talk(client: pika.BlockingConnection) -> list[str]:
        channel = client.channel()
        cancelled: list[str] = []
        channel.add_on_cancel_callback(lambda frame: cancelled.append(frame.method.consumer_tag))
        channel.queue_declare("q")
        channel.basic_consume("q", lambda *_: None, consumer_tag="mine")
        client.channel().queue_delete("q")
        client.process_data_events(time_limit=1)
        return cancelled

    assert await with_pika(broker, talk) == ["mine"]


async def test_pika_uses_server_named_exclusive_queues(broker: EmbeddedBroker) -> None:
    def talk(client: pika.BlockingConnection) -> str:
        channel = client.channel()
        name = str(channel.queue_declare("", exclusive=True).method.queue)
        other = pika.BlockingConnection(pika.URLParameters(broker.url))
        with pytest.raises(pika.exceptions.ChannelClosedByBroker) as closed:
            other.channel().queue_declare(name, passive=True)
        assert closed.value.reply_code == 405
        other.close()
        return name

    name = await with_pika(broker, talk)
    assert name.startswith("amq.gen-")
    assert name not in broker.vhosts["/"].queues


async def test_pika_negotiates_limits_and_heartbeats(broker: EmbeddedBroker) -> None:
    def talk(client: pika.BlockingConnection) -> tuple[int, int, int]:
        parameters = client._impl.params
        channel = client.channel()
        channel.queue_declare("q")
        body = bytes(20_000)
        channel.basic_publish("", "q", body)
        assert channel.basic_get("q", auto_ack=True)[2] == body
        # Nobody says anything for more than two intervals but heartbeats.
        client.sleep(2.6)
        assert channel.queue_declare("q", passive=True).method.message_count == 0
        return parameters.heartbeat, parameters.frame_max, parameters.channel_max

    assert await with_pika(broker, talk, heartbeat=1, frame_max=4096, channel_max=7) == (1, 4096, 7)


async def test_pika_is_told_when_it_is_blocked(broker: EmbeddedBroker) -> None:
    loop = asyncio.get_running_loop()

    def talk(client: pika.BlockingConnection) -> list[object]:
        seen: list[object] = []

        def on_blocked(_: object, frame: Any) -> None:
            seen.append(frame.method.reason)
            loop.call_soon_threadsafe(broker.unblock)

        client.add_on_connection_blocked_callback(on_blocked)
        client.add_on_connection_unblocked_callback(lambda *_: seen.append("unblocked"))
        channel = client.channel()
        channel.queue_declare("q")
        loop.call_soon_threadsafe(broker.block, "low on carrots")
        while broker.blocked_reason is None:
            client.process_data_events(time_limit=0.01)
        channel.basic_publish("", "q", b"waits")
        while len(seen) < 2:
            client.process_data_events(time_limit=5)
        seen.append(channel.queue_declare("q", passive=True).method.message_count)
        return seen

    assert await with_pika(broker, talk) == ["low on carrots", "unblocked", 1]


async def test_pika_uses_transactions(broker: EmbeddedBroker) -> None:
    def talk(client: pika.BlockingConnection) -> list[int]:
        channel = client.channel()
        channel.queue_declare("q")
        channel.tx_select()
        depths = []
        for end in (channel.tx_rollback, channel.tx_commit):
            channel.basic_publish("", "q", b"body")
            end()
            depths.append(channel.queue_declare("q", passive=True).method.message_count)
        return depths

    assert await with_pika(broker, talk) == [0, 1]


# ---------------------------------------------------------------------- aio-pika


async def test_aio_pika_publishes_consumes_and_acknowledges(
    broker: EmbeddedBroker, connection: aio_pika.abc.AbstractConnection
) -> None:
    channel = await connection.channel(publisher_confirms=True)
    await channel.set_qos(prefetch_count=10)
    exchange = await channel.declare_exchange("orders", aio_pika.ExchangeType.DIRECT, durable=True)
    queue = await channel.declare_queue("billing", durable=True)
    await queue.bind(exchange, "order")
    messages = [
        Message(str(number).encode(), delivery_mode=DeliveryMode.PERSISTENT, headers={"number": number})
        for number in range(50)
    ]
    await asyncio.gather(*[exchange.publish(message, "order") for message in messages])
    seen: list[int] = []
    async with queue.iterator(timeout=5) as iterator:
        async for message in iterator:
            async with message.process():
                assert message.headers["number"] == int(message.body)
                seen.append(int(message.body))
            if len(seen) == 50:
                break
    assert sorted(seen) == list(range(50))
    assert broker.queue_depth("billing") == 0


async def test_aio_pika_requeues_and_dead_letters(connection: aio_pika.abc.AbstractConnection) -> None:
    channel = await connection.channel()
    dead = await channel.declare_queue("dead")
    queue = await channel.declare_queue(
        "q", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"}
    )
    await channel.default_exchange.publish(Message(b"body"), "q")
    message = await queue.get(timeout=5)
    assert not message.redelivered
    await message.nack(requeue=True)
    message = await queue.get(timeout=5)
    assert message.redelivered
    await message.reject(requeue=False)
    message = await dead.get(timeout=5, no_ack=True)
    death: Any = message.headers["x-death"]
    assert (death[0]["queue"], death[0]["reason"], death[0]["count"]) == ("q", "rejected", 1)


async def test_aio_pika_gets_unroutable_messages_back(connection: aio_pika.abc.AbstractConnection) -> None:
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    with pytest.raises(aio_pika.exceptions.DeliveryError):
        await channel.default_exchange.publish(Message(b"lost"), "nowhere", mandatory=True)


async def test_aio_pika_sees_reply_codes(connection: aio_pika.abc.AbstractConnection) -> None:
    channel = await connection.channel()
    await channel.declare_queue("q")
    with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed, match="inequivalent arg 'durable'"):
        await channel.declare_queue("q", durable=True)
    channel = await connection.channel()
    with pytest.raises(aiormq.exceptions.ChannelNotFoundEntity, match="no queue 'missing'"):
        await channel.get_queue("missing", ensure=True)


async def test_aio_pika_works_with_headers_exchanges_and_large_bodies(
    connection: aio_pika.abc.AbstractConnection,
) -> None:
    channel = await connection.channel()
    exchange = await channel.declare_exchange("x", aio_pika.ExchangeType.HEADERS)
    queue = await channel.declare_queue("q")
    await queue.bind(exchange, arguments={"x-match": "any", "color": "red"})
    body = bytes(range(256)) * 8192
    await exchange.publish(Message(b"no", headers={"color": "blue"}), "", mandatory=False)
    await exchange.publish(Message(body, headers={"color": "red"}), "")
    assert (await queue.get(timeout=5, no_ack=True)).body == body
    assert await queue.get(fail=False) is None


async def test_many_clients_share_the_work(broker: EmbeddedBroker) -> None:
    count = 8
    seen: list[list[int]] = [[] for _ in range(count)]
    done = asyncio.Event()

    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await aio_pika.connect(broker.url)) for _ in range(count)]

        async def work(number: int) -> None:
            channel = await clients[number].channel()
            await channel.set_qos(prefetch_count=5)
            queue = await channel.declare_queue("q")

            async def handle(message: aio_pika.abc.AbstractIncomingMessage) -> None:
                seen[number].append(int(message.body))
                await message.ack()
                if sum(map(len, seen)) == 400:
                    done.set()

            await queue.consume(handle)

        await asyncio.gather(*map(work, range(count)))
        publisher = await clients[0].channel()
        await asyncio.gather(*[publisher.default_exchange.publish(Message(str(n).encode()), "q") for n in range(400)])
        await asyncio.wait_for(done.wait(), 10)
    assert sorted(n for part in seen for n in part) == list(range(400))
    assert min(map(len, seen)) >= 10


@every_loop
async def test_slow_client_holds_up_nobody_else(broker: EmbeddedBroker) -> None:
    """A consumer without a limit that never reads: what it should get stays in the queue, not in a socket's buffer."""
    async with await aio_pika.connect(broker.url) as fast:
        channel = await fast.channel()
        await channel.declare_queue("slow")
        with contextlib.closing(await asyncio.to_thread(handshake, broker)) as slow:
            slow.sendall(encode(1, make(Channel.Open)))
            slow.sendall(encode(1, make(Basic.Consume, queue="slow", consumer_tag="t", no_ack=True)))
            body = bytes(1024 * 1024)
            for _ in range(24):
                await channel.default_exchange.publish(Message(body), "slow")
            assert broker.queue_depth("slow") > 8
            (stuck,) = [s for s in broker.sessions if s.transport.paused]
            assert stuck.transport.pending_bytes < 4 * len(body)
            queue = await channel.declare_queue("other")
            await channel.default_exchange.publish(Message(b"quick"), "other")
            assert (await queue.get(timeout=5, no_ack=True)).body == b"quick"


# ---------------------------------------------------------------------- sockets that speak badly


def say(broker: EmbeddedBroker, data: bytes, sock: socket.socket | None = None) -> bytes:
    """Sends bytes and returns all that comes until the broker closes."""
    with contextlib.closing(sock or socket.create_connection(("127.0.0.1", broker.port), timeout=5)) as client:
        client.sendall(data)
        received = b""
        while True:
            try:
                part = client.recv(65536)
            except ConnectionResetError:
                return received
            if not part:
                return received
            received += part


def handshake(broker: EmbeddedBroker) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", broker.port), timeout=5)
    client.sendall(PROTOCOL_HEADER)
    client.sendall(encode(0, make(Connection.StartOk, client_properties={}, response="\0guest\0guest")))
    client.sendall(encode(0, make(Connection.TuneOk, channel_max=10, frame_max=131072, heartbeat=0)))
    client.sendall(encode(0, make(Connection.Open)))
    events: list[object] = []
    reader = FrameReader(frame_max=1 << 20)
    while len(events) < 3:
        events += reader.feed(client.recv(65536))
    return client


def methods(data: bytes) -> list[Method]:
    events = FrameReader(frame_max=1 << 20).feed(data)
    return [decode(event) for event in events if isinstance(event, MethodFrame)]


@every_loop
@pytest.mark.parametrize(
    "data",
    [
        b"AMQP\x00\x01\x00\x00",
        b"AMQP\x01\x01\x09\x01",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01",
        b"\0" * 9,
    ],
    ids=["AMQP 1.0", "AMQP 0-9", "HTTP", "TLS", "zeros"],
)
async def test_other_protocols_get_the_protocol_header_and_are_closed(broker: EmbeddedBroker, data: bytes) -> None:
    assert await asyncio.to_thread(say, broker, data) == PROTOCOL_HEADER
    async with await aio_pika.connect(broker.url):
        pass


@pytest.mark.parametrize("data", [b"", b"AMQP", PROTOCOL_HEADER], ids=["nothing", "half a header", "header only"])
async def test_silence_in_the_handshake_ends_at_its_deadline(broker: EmbeddedBroker, data: bytes) -> None:
    received = await asyncio.to_thread(say, broker, data)
    assert [type(method) for method in methods(received)] == ([Connection.Start] if data == PROTOCOL_HEADER else [])
    assert broker.sessions == {}


@every_loop
@pytest.mark.parametrize(
    ("code", "data"),
    [
        (501, struct.pack(">BHI", 1, 0, 4) + b"\0\x0a\0\x28\xcf"),
        (501, struct.pack(">BHI", 3, 1, 0xFFFFFFFF)),
        (501, b"\x09" * 8),
        (504, encode(7, make(Queue.Declare, queue="q"))),
        (505, struct.pack(">BHI", 3, 1, 1) + b"x\xce"),
    ],
    ids=["corrupt end", "oversized", "unknown type", "unopened channel", "body alone"],
)
@pytest.mark.parametrize("more", [0, 5_000_000], ids=["and waits", "and goes on"])
async def test_bad_frames_are_answered_and_harm_nobody_else(
    broker: EmbeddedBroker, connection: aio_pika.abc.AbstractConnection, code: int, data: bytes, more: int
) -> None:
    def misbehave() -> bytes:
        client = handshake(broker)
        received = b""
        with contextlib.suppress(ConnectionError):
            client.sendall(data + b"\xff" * more)
        while not received.endswith(b"\xce"):
            received += client.recv(65536)
        with contextlib.suppress(ConnectionError):
            # What comes now is ignored.
            client.sendall(encode(0, make(Connection.CloseOk)))
        client.close()
        return received

    (close,) = methods(await asyncio.to_thread(misbehave))
    assert isinstance(close, Connection.Close)
    assert close.reply_code == code
    channel = await connection.channel()
    assert (await channel.declare_queue("fine")).name == "fine"


@every_loop
async def test_client_that_vanishes_in_the_middle_of_a_message_leaves_nothing(broker: EmbeddedBroker) -> None:
    def vanish() -> None:
        with contextlib.closing(handshake(broker)) as client:
            client.sendall(encode(1, make(Channel.Open)) + encode(1, make(Queue.Declare, queue="mine", exclusive=True)))
            client.sendall(struct.pack(">BHI", 3, 1, 1000) + b"half")
            # Reset instead of an orderly end.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    await asyncio.to_thread(vanish)
    async with asyncio.timeout(5):
        while broker.sessions:  # noqa: ASYNC110
            await asyncio.sleep(0)
    assert broker.vhosts["/"].queues == {}


@every_loop
async def test_stop_tells_clients_that_they_may_come_back(broker: EmbeddedBroker) -> None:
    async with await aio_pika.connect(broker.url) as connection:
        closed: asyncio.Future[BaseException | None] = asyncio.get_running_loop().create_future()

        def say(_: object, reason: BaseException | None) -> None:
            if not closed.done():
                closed.set_result(reason)

        connection.close_callbacks.add(say)
        await connection.channel()
        await broker.stop()
        reason = await asyncio.wait_for(closed, 5)
    assert "CONNECTION_FORCED" in repr(reason)


async def test_unix_socket_serves_as_tcp_does(tmp_path: Path) -> None:
    async with nothing_left_behind(), EmbeddedBroker(path=tmp_path / "b", handshake_timeout=0.5) as broker:

        def talk() -> bytes:
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(5)
            client.connect(str(tmp_path / "b"))
            return say(broker, b"GET / HTTP/1.1\r\n\r\n", client)

        assert await asyncio.to_thread(talk) == PROTOCOL_HEADER
