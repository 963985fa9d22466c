"""Bad input: from the caller, in the handshake, and after it. Each has its own typed error, within its deadline."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Basic, Channel, Confirm, Connection, Queue
from tests.corpus.frames import frame
from tests.support.conversation import content, nested_table, raw_method
from tests.support.loops import every_loop
from tests.support.outcomes import refusal
from tests.support.peers import FakeServer, Peer, silent_address, start_with, two_connections
from tests.support.rabbitmq import free_ports
from tests.support.secrets import PASSWORD, assert_not_shown

import leveret
from leveret import Outcome, Topology
from leveret.errors import (
    AuthenticationError,
    BodyTooLarge,
    ConfigurationError,
    ConnectFailed,
    ConnectionClosed,
    ConnectionLost,
    EncodeFailed,
    FrameError,
    IncompatibleProtocol,
    LeveretError,
    OperationTimeout,
    RemoteProtocolError,
    TableSyntaxError,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


def with_credentials(url: str, user: str = "guest", password: str = PASSWORD) -> str:
    return url.replace("guest:guest@", f"{user}:{password}@")


# ---------------------------------------------------------------------- what the caller says


GOOD_URL = f"amqp://guest:{PASSWORD}@localhost"
WRONG_URLS = {
    "scheme": (f"http://guest:{PASSWORD}@localhost", "url"),
    "no scheme": (f"guest:{PASSWORD}@localhost", "url"),
    "no host": (f"amqp://guest:{PASSWORD}@", "endpoints"),
    "port": (f"{GOOD_URL}:70000", "endpoints"),
    "virtual host": (f"{GOOD_URL}/a/b", "virtual_host"),
    "unknown option": (f"{GOOD_URL}?heartbeet=5", "heartbeet"),
    "option of another type": (f"{GOOD_URL}?heartbeat=often", "heartbeat"),
    "option below its range": (f"{GOOD_URL}?frame_max=100", "frame_max"),
    "option above its range": (f"{GOOD_URL}?frame_max=1048577", "frame_max"),
    "at sign in the password": (f"amqp://guest:@{PASSWORD}@localhost", "url"),
}


@pytest.mark.parametrize(("url", "option"), WRONG_URLS.values(), ids=WRONG_URLS)
def test_the_option_is_named_when_a_url_is_wrong(url: str, option: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        leveret.connect(url)
    assert refused.value.option == option
    assert_not_shown(refused.value, in_locals=False)


def test_the_option_is_named_when_a_keyword_is_wrong() -> None:
    for options in ({"heartbeet": 5}, {"heartbeat": "often"}, {"heartbeat": -1}, {"frame_max": 4095}, {"tls": True}):
        with pytest.raises(ConfigurationError) as refused:
            leveret.connect(GOOD_URL, **options)
        assert refused.value.option in options
        assert_not_shown(refused.value, in_locals=False)
    with pytest.raises(ConfigurationError, match="not int"):
        leveret.connect(5)  # type: ignore[arg-type]


@every_loop
@pytest.mark.parametrize(
    "host", ["no-such-host.invalid", "a..b", "x" * 64, "é" * 70], ids=["unknown", "empty_label", "long_label", "idna"]
)
async def test_the_host_is_named_when_it_has_no_address(host: str) -> None:
    error = await refusal(leveret.connect(f"amqp://guest:{PASSWORD}@{host}:5672"), within=20)
    assert type(error) is ConnectFailed
    assert f"{host}:5672" in str(error)


@every_loop
async def test_the_address_is_named_when_nobody_listens_there() -> None:
    (port,) = free_ports(1)
    error = await refusal(leveret.connect(f"amqp://guest:{PASSWORD}@127.0.0.1:{port}"))
    assert type(error) is ConnectFailed
    assert f"127.0.0.1:{port}" in str(error)
    assert "refused" in str(error).lower()


async def test_each_endpoint_is_named_when_none_answers() -> None:
    ports = free_ports(3)
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    error = await refusal(leveret.connect(f"amqp://guest:{PASSWORD}@{hosts}"))
    assert type(error) is ConnectFailed
    assert all(f"127.0.0.1:{port}" in str(error) for port in ports)


async def test_the_next_endpoint_is_used_when_the_first_is_out_of_order(broker: Broker) -> None:
    async def wrong(peer: Peer) -> None:
        peer.send_bytes(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    (closed,) = free_ports(1)
    settings = leveret.ConnectionSettings.from_url(broker.url)
    async with FakeServer(wrong) as server:
        endpoints = (
            leveret.settings.Endpoint("127.0.0.1", closed),
            leveret.settings.Endpoint("127.0.0.1", server.port),
            *settings.endpoints,
        )
        async with leveret.connect(settings, endpoints=endpoints) as client:
            assert client.connection.is_open


async def test_the_path_is_named_when_there_is_no_unix_socket(tmp_path: Any) -> None:
    error = await refusal(leveret.connect(f"amqp+unix://guest:{PASSWORD}@/?socket={tmp_path}/none"))
    assert type(error) is ConnectFailed
    assert f"{tmp_path}/none" in str(error)


async def test_s6_the_attempt_ends_when_the_network_swallows_it() -> None:
    assert leveret.ConnectionSettings().connect_timeout == 30.0
    assert str(leveret.ConnectionSettings().endpoints[0]) == "localhost:5672"
    with silent_address() as port:
        url = f"amqp://guest:{PASSWORD}@127.0.0.1:{port}"
        error = await refusal(leveret.connect(url, connect_timeout=0.2), within=1)
        assert type(error) is ConnectFailed
        assert "connect_timeout of 0.2 s" in str(error)


@every_loop
async def test_the_credentials_are_refused_when_the_password_is_wrong(broker: Broker) -> None:
    for user in ("guest", "nobody"):
        error = await refusal(leveret.connect(with_credentials(broker.url, user)))
        assert type(error) is AuthenticationError
        assert error.reply_code == 403
        assert "ACCESS_REFUSED" in error.reply_text


async def test_the_mechanism_is_named_when_the_broker_does_not_offer_it(broker: Broker) -> None:
    error = await refusal(leveret.connect(with_credentials(broker.url), mechanism="EXTERNAL"))
    assert type(error) is AuthenticationError
    assert "EXTERNAL" in str(error)
    assert "PLAIN" in str(error)


async def test_the_virtual_host_is_named_when_there_is_none(broker: Broker) -> None:
    error = await refusal(leveret.connect(broker.url, virtual_host="nowhere", password="guest"))
    assert type(error) is ConnectionClosed
    assert error.reply_code == 530
    assert "nowhere" in error.reply_text


# ---------------------------------------------------------------------- the server in the handshake


async def http(peer: Peer) -> None:
    await peer.read(8)
    peer.send_bytes(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
    peer.hang_up()


async def banner(peer: Peer) -> None:
    peer.send_bytes(b"SSH-2.0-OpenSSH_9.2\r\n")


async def amqp_1_0(peer: Peer) -> None:
    await peer.read(8)
    peer.send_bytes(b"AMQP\x00\x01\x00\x00")
    peer.hang_up()


async def amqp_0_8(peer: Peer) -> None:
    await peer.read(8)
    peer.send(Connection.Start(0, 8))


@every_loop
@pytest.mark.parametrize(
    ("script", "words"),
    [(http, "HTTP/1.1"), (banner, "SSH-2.0"), (amqp_1_0, "1-0-0"), (amqp_0_8, "0-8")],
    ids=["http", "ssh", "amqp_1_0", "amqp_0_8"],
)
async def test_the_peer_is_described_when_it_does_not_speak_this_protocol(
    script: Callable[[Peer], Awaitable[None]], words: str
) -> None:
    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url))
    assert isinstance(error, IncompatibleProtocol)
    assert words in str(error)


async def silent(peer: Peer) -> None:
    await peer.read(8)


async def silent_after_start(peer: Peer) -> None:
    await peer.read(8)
    peer.send(Connection.Start())
    await peer.expect(Connection.StartOk)


async def silent_after_tune(peer: Peer) -> None:
    await silent_after_start(peer)
    peer.send(Connection.Tune(0, 131_072, 0))
    await peer.expect(Connection.TuneOk, Connection.Open)


async def trickling(peer: Peer) -> None:
    from pamqp import frame

    for byte in frame.marshal(Connection.Start(), 0):
        peer.send_bytes(bytes([byte]))
        await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("script", "phase"),
    [
        (silent, "connection.start"),
        (silent_after_start, "connection.tune"),
        (silent_after_tune, "connection.open-ok"),
        (trickling, "connection.start"),
    ],
    ids=["after_header", "after_start", "after_tune", "trickling"],
)
async def test_the_attempt_ends_when_the_server_is_silent_in_the_handshake(
    script: Callable[[Peer], Awaitable[None]], phase: str
) -> None:
    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url, handshake_timeout=0.3), within=1)
        assert type(error) is OperationTimeout
        assert f"127.0.0.1:{server.port}" in str(error)
        assert phase in str(error)
        assert "0.3 s" in str(error)


async def hangs_up_at_once(peer: Peer) -> None:
    peer.hang_up()


async def hangs_up_after_header(peer: Peer) -> None:
    await peer.read(8)
    peer.hang_up()


async def hangs_up_after_credentials(peer: Peer) -> None:
    await silent_after_start(peer)
    peer.hang_up()


async def hangs_up_after_open(peer: Peer) -> None:
    await silent_after_tune(peer)
    peer.hang_up()


@every_loop
@pytest.mark.parametrize(
    ("script", "kind"),
    [
        (hangs_up_at_once, ConnectionLost),
        (hangs_up_after_header, ConnectionLost),
        (hangs_up_after_credentials, AuthenticationError),
        (hangs_up_after_open, ConnectionLost),
    ],
    ids=["at_once", "after_header", "after_credentials", "after_open"],
)
async def test_the_attempt_ends_when_the_server_hangs_up_in_the_handshake(
    script: Callable[[Peer], Awaitable[None]], kind: type[LeveretError]
) -> None:
    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url), within=1)
    assert type(error) is kind


NONSENSE = {
    "table nested 600 deep": (start_with(nested_table(600)), TableSyntaxError, ["connection.start", "32"]),
    # 1,000 levels do not fit the frames that may come before tune, and are refused for that.
    "table nested 1000 deep": (start_with(nested_table(1000)), FrameError, ["4096"]),
    "table longer than its frame": (start_with(b"\0\0\xff\xff\1ax"), TableSyntaxError, ["connection.start"]),
    "text longer than its table": (
        start_with(b"\0\0\0\x07\1aS\xff\xff\xff\xff"),
        TableSyntaxError,
        ["connection.start"],
    ),
    "unknown field type": (start_with(b"\0\0\0\4\1aZ\0"), TableSyntaxError, ["connection.start"]),
    "key longer than its table": (start_with(b"\0\0\0\1\5"), TableSyntaxError, ["connection.start"]),
    "no arguments": (raw_method(0, 10, 10), TableSyntaxError, ["connection.start"]),
    "unknown method": (raw_method(0, 10, 9999), RemoteProtocolError, ["10.9999"]),
    "tune before start": (
        raw_method(0, 10, 30, b"\0\0\0\2\0\0\0\0"),
        RemoteProtocolError,
        ["connection.tune", "connection.start"],
    ),
    "a channel's method": (raw_method(1, 20, 11), RemoteProtocolError, ["channel 1"]),
    "frame of 4 GiB": (b"\1\0\0\xff\xff\xff\xff", FrameError, ["4294967303", "4096"]),
    "frame over the limit before tune": (b"\1\0\0\0\0\x10\0", FrameError, ["4104", "4096"]),
    "wrong frame end": (b"\1\0\0\0\0\0\4\0\x0a\0\x0aX", FrameError, ["0x58", "0xce"]),
    "method of two bytes": (b"\1\0\0\0\0\0\2\0\x0a\xce", FrameError, ["2 bytes"]),
    "heartbeat on a channel": (b"\x08\0\1\0\0\0\0\xce", FrameError, ["heartbeat", "channel 1"]),
    "content header": (b"\2\0\1\0\0\0\x0e" + bytes(14) + b"\xce", RemoteProtocolError, ["channel 1"]),
}


@pytest.mark.parametrize(("data", "kind", "words"), NONSENSE.values(), ids=NONSENSE)
async def test_the_attempt_ends_when_the_server_begins_with_nonsense(
    data: bytes, kind: type[LeveretError], words: list[str]
) -> None:
    async def script(peer: Peer) -> None:
        await peer.read(8)
        peer.send_bytes(data)

    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url), within=1)
    assert type(error) is kind
    for word in words:
        assert word in str(error)


@pytest.mark.parametrize("frame_max", [1, 4095])
async def test_the_attempt_ends_when_the_server_wants_frames_that_are_too_small(frame_max: int) -> None:
    async def script(peer: Peer) -> None:
        await silent_after_start(peer)
        peer.send(Connection.Tune(0, frame_max, 0))

    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url), within=1)
    assert type(error) is RemoteProtocolError
    assert str(frame_max) in str(error)
    assert "4096" in str(error)


async def test_a_challenge_is_refused_when_the_server_sends_one() -> None:
    async def script(peer: Peer) -> None:
        await silent_after_start(peer)
        peer.send(Connection.Secure("sentinel"))

    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url), within=1)
    assert type(error) is RemoteProtocolError
    assert "PLAIN" in str(error)


async def test_a_server_text_cannot_forge_a_log_line_when_it_refuses() -> None:
    async def script(peer: Peer) -> None:
        await silent_after_start(peer)
        peer.send(Connection.Close(403, "no\nINFO all is well\x1b[2J", 0, 0))
        await peer.expect(Connection.CloseOk)

    async with FakeServer(script) as server:
        error = await refusal(leveret.connect(server.url), within=1)
    assert isinstance(error, AuthenticationError)
    assert "\n" not in str(error)
    assert "\x1b" not in str(error)
    assert r"no\nINFO all is well" in error.reply_text


# ---------------------------------------------------------------------- the server after the handshake

HEADER = b"\0\x3c\0\0" + (10).to_bytes(8, "big") + b"\0\0"


DELIVER = raw_method(1, 60, 60, b"\3tag" + (1).to_bytes(8, "big") + b"\0\0\1q")

CORRUPT = {
    "unknown frame type": (b"\x09\0\1\0\0\0\0\xce", FrameError, 501),
    "wrong frame end": (frame(1, 1, b"\0\x14\0\x0b\0\0\0\0", end=0xCD), FrameError, 501),
    "frame over frame_max": (b"\3\0\1\0\1\xff\xf9", FrameError, 501),
    "frame of 4 GiB": (b"\3\0\1\xff\xff\xff\xff", FrameError, 501),
    "method of three bytes": (frame(1, 1, b"\0\x3c\0"), FrameError, 501),
    "unknown method": (raw_method(1, 60, 9999), RemoteProtocolError, 503),
    "unknown class": (raw_method(1, 9999, 1), RemoteProtocolError, 503),
    "method of a client": (raw_method(1, 60, 20, b"\0\0\1q\0\0\0\0\0\0"), RemoteProtocolError, 503),
    "answer that nobody asked for": (raw_method(1, 50, 41, b"\0\0\0\0"), RemoteProtocolError, 503),
    "answer with too few arguments": (raw_method(1, 50, 11, b"\1q\0\0"), TableSyntaxError, 502),
    "channel that is not open": (raw_method(7, 50, 11, b"\1q\0\0\0\0\0\0\0\0"), RemoteProtocolError, 504),
    "delivery on a channel that is not open": (
        raw_method(7, 60, 60, b"\3tag" + (1).to_bytes(8, "big") + b"\0\0\1q") + frame(2, 7, HEADER[:4] + bytes(10)),
        RemoteProtocolError,
        504,
    ),
    "delivery to nobody": (DELIVER + frame(2, 1, HEADER[:4] + bytes(10)), RemoteProtocolError, 503),
    "delivery with too few arguments": (raw_method(1, 60, 60, b"\3tag\0"), TableSyntaxError, 502),
    "body without header": (DELIVER + frame(3, 1, b"body"), RemoteProtocolError, 505),
    "body without method": (frame(3, 1, b"body"), RemoteProtocolError, 505),
    "header without method": (frame(2, 1, HEADER), RemoteProtocolError, 505),
    "two headers": (DELIVER + frame(2, 1, HEADER) * 2, RemoteProtocolError, 505),
    "method inside a body": (DELIVER + frame(2, 1, HEADER) + DELIVER, RemoteProtocolError, 505),
    "body longer than declared": (DELIVER + frame(2, 1, HEADER) + frame(3, 1, bytes(11)), FrameError, 501),
    "header of another class": (DELIVER + frame(2, 1, b"\0\x32" + HEADER[2:]), FrameError, 501),
    "header with a weight": (DELIVER + frame(2, 1, b"\0\x3c\0\1" + HEADER[4:]), FrameError, 501),
    "header too short": (DELIVER + frame(2, 1, HEADER[:13]), FrameError, 501),
    "negative body size": (DELIVER + frame(2, 1, HEADER[:4] + b"\xff" * 8 + b"\0\0"), FrameError, 501),
    "confirm without confirm mode": (raw_method(2, 60, 80, bytes(9)), RemoteProtocolError, 503),
    "confirm of the wrong size": (raw_method(1, 60, 80, bytes(8)), TableSyntaxError, 502),
    "heartbeat with a body": (b"\x08\0\0\0\0\0\1x\xce", FrameError, 501),
    "start again": (start_with(bytes(4)), RemoteProtocolError, 503),
    "close-ok that nobody asked for": (raw_method(1, 20, 41), RemoteProtocolError, 503),
    "open-ok again": (raw_method(1, 20, 11, bytes(4)), RemoteProtocolError, 503),
}


@pytest.mark.parametrize("what", CORRUPT)
async def test_everything_ends_with_the_reason_when_the_server_breaks_the_protocol(what: str) -> None:
    data, kind, reply_code = CORRUPT[what]
    go = asyncio.Event()
    farewell: asyncio.Future[Connection.Close] = asyncio.get_running_loop().create_future()

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select, Channel.Open)
        _, published = await peer.receive()
        assert isinstance(published, Basic.Publish)
        await peer.receive()
        await peer.receive()
        await peer.expect(Queue.Declare)
        await go.wait()
        peer.send_bytes(data)
        farewell.set_result(await peer.expect(Connection.Close))

    async with FakeServer(script) as server:
        client = await leveret.connect(server.url, close_timeout=0.5)
        producer = await client.producer().open()
        channel = await client.channel()
        publishing = asyncio.create_task(producer.publish("in flight", "key"))
        declaring = asyncio.create_task(channel.queue_declare("q"))
        await asyncio.sleep(0)
        go.set()
        lost = await refusal(publishing, within=1)
        assert isinstance(lost, leveret.PublishError)
        assert lost.outcome is Outcome.UNKNOWN
        for error in (await refusal(declaring, within=1), lost.__cause__):
            assert type(error) is kind, repr(error)
            assert error.reply_code == reply_code
            assert_not_shown(error)
        async with asyncio.timeout(1):
            close = await farewell  # the server is told why
        assert close.reply_code == reply_code
        assert close.reply_text
        await client.close()


@pytest.mark.parametrize("size", [1, 4, 7, 8, 20, 27, 35, 36, 50, 59])
async def test_nothing_is_delivered_when_the_connection_ends_inside_a_message(size: int) -> None:
    delivery = content(Basic.Deliver("tag", 1, False, "", "q"), 1, b"0123456789")
    assert len(delivery) > size

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Basic.Qos, Basic.Consume)
        peer.send_bytes(delivery[:size])
        peer.hang_up()

    async with two_connections(script) as url, leveret.connect(url, close_timeout=0.5) as client:
        consumer = client.consumer("q", consumer_tag="tag")
        error = await refusal(anext(consumer), within=1)
        assert type(error) is ConnectionLost
        assert consumer.counters()["delivered"] == 0


async def test_the_consumer_goes_on_when_a_message_has_properties_that_are_malformed() -> None:
    deliveries = {
        1: b"\x20\0" + nested_table(1000),  # headers nested 1,000 deep
        2: b"\x20\0" + b"\xff\xff\xff\xff",  # headers that lie about their length
        3: b"\x80\0" + b"\x20application",  # a content type that ends too soon
        4: b"\xff\xff",  # properties that do not exist
        5: b"\0\0",
    }
    settled: list[tuple[str, int]] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Basic.Qos, Basic.Consume)
        for tag, properties in deliveries.items():
            peer.send(Basic.Deliver("tag", tag, False, "", "q"), 1)
            peer.send_bytes(frame(2, 1, b"\0\x3c\0\0" + (2).to_bytes(8, "big") + properties) + frame(3, 1, b"{}"))
        while len(settled) < len(deliveries):
            _, value = await peer.receive()
            settled.append((value.name, value.delivery_tag))
        await peer.linger()

    seen = []
    async with two_connections(script) as url, leveret.connect(url, close_timeout=0.5) as client:
        consumer = client.consumer("q", consumer_tag="tag")

        async def handler(value: Any, message: leveret.Message) -> None:
            seen.append(value)
            consumer.stop()

        async with asyncio.timeout(5):
            await consumer.run(handler)
        assert seen == [b"{}"]
        assert consumer.counters()["undecodable"] == 4
        assert client.connection.is_open
    assert settled == [("Basic.Reject", tag) for tag in range(1, 5)] + [("Basic.Ack", 5)]


async def test_the_consumer_goes_on_when_a_body_is_larger_than_the_limit(
    broker: Broker, client: leveret.Client, queue: str
) -> None:
    async with client.producer(serializer="bytes") as producer:
        await producer.publish_batch([bytes(1000), bytes(1001), bytes(300_000), b"last"], queue)
    async with leveret.connect(broker.url, max_body_size=1000) as limited:
        consumer = limited.consumer(queue)
        sizes = []

        async def handler(value: bytes, message: leveret.Message) -> None:
            sizes.append(message.body_size)
            if value == b"last":
                consumer.stop()

        await consumer.run(handler)
        assert sizes == [1000, 4]
        assert consumer.counters()["undecodable"] == 2
    async with client.consumer(queue) as consumer:
        assert await consumer.get() is None


# ---------------------------------------------------------------------- what the caller publishes


NOT_ENCODABLE: dict[str, tuple[Any, str, dict[str, Any], list[str]]] = {
    "value": (object(), "q", {}, ["json", "object"]),
    "part of the value": ({1, 2, object()}, "q", {}, ["json"]),
    "routing key": (1, "k" * 256, {}, ["routing_key", "256", "255"]),
    "routing key of wide characters": (1, "é" * 128, {}, ["routing_key", "256", "255"]),
    "routing key that is no text": (1, "q\ud800", {}, ["routing_key", "UTF-8"]),
    "exchange": (1, "q", {"exchange": "x" * 256}, ["exchange", "256", "255"]),
    "short string": (1, "q", {"correlation_id": "c" * 300}, ["correlation_id", "300", "255"]),
    "header key": (1, "q", {"headers": {"k" * 256: 1}}, ["256", "255"]),
    "header value": (1, "q", {"headers": {"bad": object()}}, ["bad", "object"]),
    "header out of range": (1, "q", {"headers": {"large": 2**64}}, ["large"]),
    "headers over frame_max": (1, "q", {"headers": {"x": "x" * 140_000}}, ["headers", "frame_max", "131072"]),
    "headers that are no table": (1, "q", {"headers": "none"}, ["headers", "str"]),
    "priority": (1, "q", {"priority": 256}, ["priority", "256"]),
    "delivery mode": (1, "q", {"delivery_mode": 3}, ["delivery_mode", "3"]),
    "expiration": (1, "q", {"expiration": -1}, ["expiration", "-1"]),
    "timestamp": (1, "q", {"timestamp": "now"}, ["timestamp"]),
    "property of another type": (1, "q", {"reply_to": 5}, ["reply_to", "int"]),
}


@pytest.mark.parametrize(("value", "key", "options", "words"), NOT_ENCODABLE.values(), ids=NOT_ENCODABLE)
async def test_nothing_is_sent_when_a_message_cannot_be_encoded(
    client: leveret.Client, queue: str, value: Any, key: str, options: dict[str, Any], words: list[str]
) -> None:
    async with client.producer() as producer:
        publishes = [
            lambda: producer.publish(value, key, **options),
            lambda: asyncio.sleep(0, producer.publish_nowait(value, key, **options)),
        ]
        for publish in publishes:
            with pytest.raises(EncodeFailed) as refused:
                await publish()
            for word in words:
                assert word in str(refused.value)
        assert producer.next_delivery_tag == 1
        assert (await producer.publish("good", queue)).delivery_tag == 1


async def test_the_options_are_named_when_publish_has_no_such(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        with pytest.raises(ConfigurationError, match="routing_keys") as refused:
            await producer.publish(1, queue, routing_keys="x")  # type: ignore[call-arg]
        assert refused.value.option == "routing_keys"


async def test_only_the_bad_values_fail_when_they_stand_in_a_batch(client: leveret.Client, queue: str) -> None:
    bad = {0, 7, 8, 150, 299}
    values: list[Any] = [object() if index in bad else index for index in range(300)]
    async with client.producer(batch_size=100) as producer:
        result = await producer.publish_batch(values, queue)
        assert sorted(result.failures) == sorted(bad)
        assert all(type(error) is EncodeFailed for error in result.failures.values())
        assert (result.count, result.confirmed) == (300, 295)
        assert [result.outcome(index) for index in (0, 1)] == [Outcome.NOT_SENT, Outcome.CONFIRMED]
        with pytest.raises(EncodeFailed):
            result.raise_for_failures()
        assert producer.next_delivery_tag == 296
    async with client.consumer(queue) as consumer:
        received = []
        while message := await consumer.get():
            received.append(message.value)
            message.ack()
    assert received == [index for index in range(300) if index not in bad]


async def test_the_size_and_the_limit_are_named_when_a_body_is_too_large(client: leveret.Client, queue: str) -> None:
    async with client.producer(serializer="bytes", max_body_size=1000) as producer:
        await producer.publish(bytes(1000), queue)
        with pytest.raises(BodyTooLarge, match=r"1001 bytes.*1000"):
            await producer.publish(bytes(1001), queue)
        with pytest.raises(BodyTooLarge):
            producer.publish_nowait(bytes(1001), queue)
        bodies = [bytes(1), bytes(1001), bytes(2), bytes(1001), bytes(5000)]
        result = await producer.publish_batch(bodies, queue)
        assert sorted(result.failures) == [1, 3, 4]
        assert all(type(error) is BodyTooLarge for error in result.failures.values())
        assert result.confirmed == 2
        assert (await producer.publish(b"good", queue)).delivery_tag == 4
    assert await client.purge(queue) == 4


async def test_the_error_of_the_iterable_comes_through_when_it_fails(client: leveret.Client, queue: str) -> None:
    def values() -> Any:
        yield from range(150)
        raise ValueError("the application's")

    async with client.producer() as producer:
        with pytest.raises(ValueError, match="the application's"):
            await producer.publish_batch(values(), queue)
        await producer.flush()
        assert producer.counters()["confirmed"] == producer.counters()["published"] == 150
        await producer.publish("good", queue)


async def test_no_value_is_shown_when_it_cannot_be_encoded(client: leveret.Client, queue: str) -> None:
    class Account:
        def __init__(self) -> None:
            self.password = PASSWORD

        def __repr__(self) -> str:
            return f"Account({self.password!r})"

    async with client.producer() as producer:
        with pytest.raises(EncodeFailed) as refused:
            await producer.publish({"account": Account()}, queue)
        assert PASSWORD not in str(refused.value)
        assert PASSWORD not in str(refused.value.__cause__)
        with pytest.raises(EncodeFailed) as refused:
            await producer.publish(1, queue, headers={"authorization": [PASSWORD, Account()]})
        assert PASSWORD not in str(refused.value)
    with pytest.raises(EncodeFailed) as refused:
        await client.declare(Topology().queue("q", leveret.Classic(arguments={"x-password": Account()})))
    assert PASSWORD not in str(refused.value)
