"""The server's side of a connection without a socket: bytes in, answers out, and what is left behind."""

from __future__ import annotations

import asyncio
import gc
import logging
import struct
import sys
from typing import TYPE_CHECKING, Any

import pytest

from leveret.broker import EmbeddedBroker
from leveret.broker import session as session_module
from leveret.broker.dead_letters import DEATHS_COUNT
from leveret.broker.session import BrokerSession
from leveret.broker.transport import BrokerTransport
from leveret.broker.virtual_host import Scheduler, VirtualHost
from leveret.protocol.commands import (
    PROTOCOL_HEADER,
    Basic,
    Channel,
    Confirm,
    Connection,
    Exchange,
    Method,
    Queue,
    Tx,
    decode,
    encode,
    make,
    spec_of,
)
from leveret.publishing.template import PublishTemplate
from leveret.wire.encoding import encode_method
from leveret.wire.numbers import HEARTBEAT_FRAME
from leveret.wire.properties import Properties
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun, MethodFrame, SettlementRun

if TYPE_CHECKING:
    from collections.abc import Iterator


class Wire(asyncio.Transport):
    """What asyncio would give: notes what is written, and is as full as the test says."""

    def __init__(self) -> None:
        super().__init__()
        self.protocol: asyncio.BufferedProtocol | None = None
        self.written = bytearray()
        self.unsent = 0
        self.reading = True
        self.closed = ""
        self.gone = asyncio.Event()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        assert isinstance(protocol, asyncio.BufferedProtocol)
        self.protocol = protocol

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def write(self, data: Any) -> None:
        assert not self.closed, "written to a closed transport"
        self.written += data

    def pause_reading(self) -> None:
        assert self.reading, "paused twice"
        assert not self.closed
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading, "resumed twice"
        assert not self.closed
        self.reading = True

    def close(self) -> None:
        self.closed = self.closed or "closed"
        self.gone.set()

    def abort(self) -> None:
        self.closed = self.closed or "aborted"
        self.gone.set()


class Client:
    """A client of a broker that does not listen."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.wire = Wire()
        reader = FrameReader(
            server=True, protocol_header=True, frame_max=4096, max_body_size=broker.max_message_size, capacity=65536
        )
        self.session = BrokerSession(broker)
        self.transport = BrokerTransport(self.session, reader)
        self.wire.protocol = self.transport
        self.transport.connection_made(self.wire)
        self.frame_max = 131072
        self._reader = FrameReader(frame_max=1 << 24)

    def feed(self, data: bytes) -> None:
        while data and not self.wire.closed:
            assert self.wire.protocol is not None
            buffer = self.wire.protocol.get_buffer(len(data))
            size = min(len(buffer), len(data))
            memoryview(buffer)[:size] = data[:size]
            self.wire.protocol.buffer_updated(size)
            data = data[size:]

    def send(self, channel: int, cls: type[Method], **values: object) -> None:
        self.feed(encode(channel, make(cls, **values)))

    def answers(self) -> list[Any]:
        """What was written since the last time: methods as objects, everything else as the reader gives it."""
        if not self.wire.closed:
            self.transport.flush()
        data, self.wire.written = bytes(self.wire.written), bytearray()
        events = self._reader.feed(data)
        assert self._reader.error is None
        return [decode(event) if isinstance(event, MethodFrame) else event for event in events]

    def ask(self, channel: int, cls: type[Method], **values: object) -> Any:
        """Sends a method and returns the one answer."""
        self.send(channel, cls, **values)
        (answer,) = self.answers()
        return answer

    def open(self, *channels: int, heartbeat: int = 0, capabilities: dict[str, bool] | None = None) -> Client:
        known = {"consumer_cancel_notify": True, "connection.blocked": True, "authentication_failure_close": True}
        self.feed(PROTOCOL_HEADER)
        self.send(
            0,
            Connection.StartOk,
            client_properties={"capabilities": known if capabilities is None else capabilities},
            response="\0guest\0guest",
        )
        self.send(0, Connection.TuneOk, channel_max=2047, frame_max=self.frame_max, heartbeat=heartbeat)
        self.send(0, Connection.Open, virtual_host="/")
        for channel in channels:
            self.send(channel, Channel.Open)
        names = [spec_of(type(answer)).name for answer in self.answers()]
        assert names == [
            "connection.start",
            "connection.tune",
            "connection.open-ok",
            *["channel.open-ok"] * len(channels),
        ]
        return self

    def lose(self) -> None:
        """The socket is gone."""
        assert self.wire.protocol is not None
        self.wire.closed = self.wire.closed or "lost"
        self.wire.protocol.connection_lost(None)


def publishing(
    body: bytes = b"body",
    *,
    channel: int = 1,
    exchange: str = "",
    key: str = "q",
    mandatory: bool = False,
    **props: Any,
) -> bytes:
    template = PublishTemplate(exchange, key, Properties(**props).encode(), mandatory=mandatory)
    return content(template, body, channel)


def content(template: PublishTemplate, body: bytes, channel: int) -> bytes:
    from leveret.publishing.publisher import PublishBatch
    from leveret.wire.buffers import SendBuffer

    out = SendBuffer(lambda: None, lambda: None)
    PublishBatch(out, None, channel=channel).add(template, body)
    return out.take()


def frame(kind: int, channel: int, payload: bytes, end: int = 0xCE) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + bytes([end])


def bodies(events: list[Any]) -> list[bytes]:
    return [message.body for event in events if isinstance(event, ContentRun) for message in event.messages]


@pytest.fixture
async def broker() -> EmbeddedBroker:
    made = EmbeddedBroker(max_message_size=1_000_000)
    made.scheduler = Scheduler(asyncio.get_running_loop())
    made.vhosts = {"/": VirtualHost("/", made.scheduler)}
    return made


@pytest.fixture
async def client(broker: EmbeddedBroker) -> Client:
    return Client(broker).open(1)


@pytest.fixture(autouse=True)
def no_errors_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


# ---------------------------------------------------------------------- handshake


async def test_start_says_that_nothing_is_kept_on_disk(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.feed(PROTOCOL_HEADER)
    (start,) = client.answers()
    properties = start.server_properties
    assert properties["product"] == "Leveret embedded broker"
    assert "nothing on disk" in properties["information"]
    assert start.mechanisms == "PLAIN"


@pytest.mark.parametrize("header", [b"AMQP\x00\x01\x00\x00", b"AMQP\x01\x01\x00\x09", b"GET / HTTP/1.1\r\n\r\n"])
async def test_other_protocols_are_answered_with_the_version_spoken(broker: EmbeddedBroker, header: bytes) -> None:
    client = Client(broker)
    client.feed(header)
    assert bytes(client.wire.written) == PROTOCOL_HEADER
    assert client.wire.closed == "closed"


@pytest.mark.parametrize("split", range(1, 8))
async def test_protocol_header_may_come_in_pieces(broker: EmbeddedBroker, split: int) -> None:
    client = Client(broker)
    client.feed(PROTOCOL_HEADER[:split])
    assert client.answers() == []
    client.feed(PROTOCOL_HEADER[split:])
    assert len(client.answers()) == 1


@pytest.mark.parametrize("response", ["\0guest\0wrong", "\0nobody\0guest", "\0\0", "\0guest\0"])
async def test_wrong_login_is_answered_when_the_client_understands_it(broker: EmbeddedBroker, response: str) -> None:
    client = Client(broker)
    client.feed(PROTOCOL_HEADER)
    client.answers()
    capabilities = {"capabilities": {"authentication_failure_close": True}}
    close = client.ask(0, Connection.StartOk, client_properties=capabilities, response=response)
    assert (close.reply_code, close.reply_text[:32]) == (403, "ACCESS_REFUSED - Login was refus")
    client.send(0, Connection.CloseOk)
    assert client.wire.closed == "closed"


async def test_wrong_login_closes_the_socket_otherwise(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.feed(PROTOCOL_HEADER)
    client.answers()
    client.send(0, Connection.StartOk, client_properties={}, response="\0guest\0wrong")
    assert (client.answers(), client.wire.closed) == ([], "closed")


@pytest.mark.parametrize(
    ("cls", "values"),
    [
        (Connection.StartOk, {"client_properties": {}, "mechanism": "EXTERNAL", "response": ""}),
        (Connection.StartOk, {"client_properties": {}, "response": "guest"}),
        (Connection.Open, {"virtual_host": "/"}),
        (Channel.Open, {}),
    ],
)
async def test_mistakes_before_open_close_the_socket_without_a_word(
    broker: EmbeddedBroker, cls: type[Method], values: dict[str, object]
) -> None:
    client = Client(broker)
    client.feed(PROTOCOL_HEADER)
    client.answers()
    client.send(0, cls, **values)
    assert (client.answers(), client.wire.closed) == ([], "closed")


@pytest.mark.parametrize(
    "tune",
    [
        {"frame_max": 4095},
        {"frame_max": 0},
        {"frame_max": 131073},
        {"channel_max": 0},
        {"channel_max": 2048},
    ],
)
async def test_tune_ok_may_lower_only(broker: EmbeddedBroker, tune: dict[str, int]) -> None:
    client = Client(broker)
    client.feed(PROTOCOL_HEADER)
    client.send(0, Connection.StartOk, client_properties={}, response="\0guest\0guest")
    client.answers()
    client.send(0, Connection.TuneOk, **{"frame_max": 4096, "channel_max": 1, "heartbeat": 0, **tune})
    assert (client.answers(), client.wire.closed) == ([], "closed")


async def test_unknown_virtual_host_is_refused_by_name(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.feed(PROTOCOL_HEADER)
    client.send(0, Connection.StartOk, client_properties={}, response="\0guest\0guest")
    client.send(0, Connection.TuneOk, channel_max=1, frame_max=4096, heartbeat=0)
    client.answers()
    close = client.ask(0, Connection.Open, virtual_host="nowhere")
    assert (close.reply_code, close.reply_text) == (530, "NOT_ALLOWED - vhost nowhere not found")


async def test_handshake_has_a_deadline() -> None:
    broker = EmbeddedBroker(handshake_timeout=0.01)
    client = Client(broker)
    async with asyncio.timeout(5):
        await client.wire.gone.wait()
    assert client.wire.closed == "aborted"


async def test_connection_that_comes_while_the_broker_stops_is_dropped(broker: EmbeddedBroker) -> None:
    broker.stopping = True
    client = Client(broker)
    assert client.wire.closed == "aborted"
    client.lose()
    assert broker.sessions == {}


async def test_frames_may_be_large_only_after_tune(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.feed(PROTOCOL_HEADER)
    client.answers()
    client.feed(struct.pack(">BHI", 1, 0, 4096))
    assert (client.answers(), client.wire.closed) == ([], "closed")


# ---------------------------------------------------------------------- bad input

BAD = {
    "end octet": (501, frame(1, 1, b"\x00\x32\x00\x0a", end=0)),
    "frame type": (501, frame(7, 1, b"")),
    "oversized frame": (501, struct.pack(">BHI", 3, 1, 1 << 31)),
    "short method": (501, frame(1, 1, b"\x00")),
    "heartbeat on a channel": (501, frame(8, 1, b"")),
    "header without method": (505, frame(2, 1, bytes(14))),
    "body without header": (505, frame(3, 1, b"x")),
    "header of another class": (501, publishing()[:-17][:25] + frame(2, 1, b"\x00\x32" + bytes(12))),
    "body longer than declared": (
        501,
        encode_method(1, 60, 40, "hsso", (0, "", "q", 0))
        + frame(2, 1, struct.pack(">HHQH", 60, 0, 2, 0))
        + frame(3, 1, b"abc"),
    ),
    "method inside content": (
        505,
        encode_method(1, 60, 40, "hsso", (0, "", "q", 0)) + encode_method(1, 85, 10, "t", (False,)),
    ),
    "truncated arguments": (502, frame(1, 1, b"\x00\x32\x00\x0a\x00\x00\x05ab")),
    "arguments too long": (502, frame(1, 1, b"\x00\x55\x00\x0a\x00xyz")),
    "unknown field type": (502, frame(1, 1, b"\x00\x32\x00\x0a\x00\x00\x01q\x00\x00\x00\x00\x04\x01aZx")),
    "unknown method": (503, encode_method(1, 50, 99, "", ())),
    "unknown class": (503, encode_method(1, 99, 10, "", ())),
    "a server's method": (503, encode_method(1, 50, 11, "sll", ("q", 0, 0))),
    "connection method on a channel": (503, encode_method(1, 10, 50, "hshh", (200, "", 0, 0))),
    "channel method on channel 0": (504, encode_method(0, 50, 10, "hstT", (0, "q", False, {}))),
    "channel opened twice": (504, encode_method(1, 20, 10, "s", ("",))),
    "unopened channel": (504, encode_method(9, 85, 10, "t", (False,))),
    "publishing on an unopened channel": (504, publishing(channel=9)),
    "acknowledgement on an unopened channel": (504, encode_method(9, 60, 80, "qt", (1, False))),
    "immediate": (
        540,
        encode_method(1, 60, 40, "hsso", (0, "", "q", 2)) + frame(2, 1, struct.pack(">HHQH", 60, 0, 0, 0)),
    ),
    "malformed properties": (
        502,
        encode_method(1, 60, 40, "hsso", (0, "", "q", 0)) + frame(2, 1, struct.pack(">HHQHB", 60, 0, 0, 0x8000, 9)),
    ),
}
BAD["header of another class"] = (
    501,
    encode_method(1, 60, 40, "hsso", (0, "", "q", 0)) + frame(2, 1, struct.pack(">HHQH", 50, 0, 0, 0)),
)


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("piecewise", [False, True])
async def test_bad_input_closes_that_connection_with_the_code_for_it(
    broker: EmbeddedBroker, client: Client, what: str, piecewise: bool
) -> None:
    other = Client(broker).open(1)
    client.send(1, Queue.Declare, queue="mine", exclusive=True)
    client.answers()
    code, data = BAD[what]
    for part in [data[i : i + 1] for i in range(len(data))] if piecewise else [data]:
        client.feed(part)
    (close,) = client.answers()
    assert isinstance(close, Connection.Close)
    assert close.reply_code == code, close.reply_text
    # Whatever comes now is ignored, until the client agrees or goes.
    client.feed(b"\xff" * 300_000)
    assert client.answers() == []
    client.lose()
    assert "mine" not in broker.vhosts["/"].queues
    assert other.ask(1, Queue.Declare, queue="fine").queue == "fine"


async def test_everything_but_close_ok_is_ignored_after_connection_close(client: Client) -> None:
    close = client.ask(1, Basic.Qos, prefetch_size=1)
    assert close.reply_code == 540
    client.send(1, Queue.Declare, queue="q")
    client.feed(publishing())
    assert client.answers() == []
    assert isinstance(client.ask(0, Connection.Close, reply_code=200, class_id=0, method_id=0), Connection.CloseOk)
    client.send(0, Connection.CloseOk)
    assert client.wire.closed == "closed"


async def test_everything_but_close_ok_is_ignored_after_channel_close(client: Client) -> None:
    close = client.ask(1, Queue.Declare, queue="q", passive=True)
    assert (close.reply_code, close.class_id, close.method_id) == (404, 50, 10)
    client.send(1, Queue.Declare, queue="q")
    client.feed(publishing() + encode_method(1, 60, 80, "qt", (9, False)))
    assert client.answers() == []
    client.send(1, Channel.CloseOk)
    assert isinstance(client.ask(1, Channel.Open), Channel.OpenOk)
    assert client.ask(1, Queue.Declare, queue="q").message_count == 0


async def test_mistake_of_ours_closes_that_connection_only(
    broker: EmbeddedBroker, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    other = Client(broker).open(1)

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(broker.vhosts["/"], "route", fail)
    client.feed(publishing())
    (close,) = client.answers()
    assert close.reply_code == 541
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]
    caplog.clear()
    assert other.ask(1, Queue.Declare, queue="q").queue == "q"


# ---------------------------------------------------------------------- publishing and confirms


async def test_confirms_of_one_read_are_one_frame(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Confirm.Select)
    client.answers()
    client.feed(b"".join(publishing(str(n).encode()) for n in range(50)))
    (run,) = client.answers()
    assert isinstance(run, SettlementRun)
    assert list(run) == [(50, True, False, False)]
    client.feed(publishing())
    (run,) = client.answers()
    assert list(run) == [(51, False, False, False)]


async def test_python_calls_do_not_grow_with_the_publishings_of_one_read(client: Client) -> None:
    def calls_of(data: bytes) -> int:
        seen: list[str] = []
        gc.disable()  # whoever is told of a collection is called, too
        sys.setprofile(lambda frame, event, arg: seen.append(event) if event in {"call", "c_call"} else None)
        try:
            client.feed(data)
        finally:
            sys.setprofile(None)
            gc.enable()
        return len(seen)

    client.send(1, Queue.Declare, queue="q")
    client.send(1, Confirm.Select)
    client.feed(publishing())
    client.answers()
    few = calls_of(publishing() * 2)
    client.answers()
    assert calls_of(publishing() * 500) == few
    assert client.session.vhost.queues["q"].next_sequence == 503


async def test_confirms_come_before_the_answer_of_a_later_method(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Confirm.Select)
    client.answers()
    client.feed(publishing() + publishing() + encode(1, make(Queue.Declare, queue="q", passive=True)) + publishing())
    first, declared, second = client.answers()
    assert list(first) == [(2, True, False, False)]
    assert declared.message_count == 2
    assert list(second) == [(3, False, False, False)]


async def test_return_comes_before_its_confirm(client: Client) -> None:
    client.send(1, Confirm.Select)
    client.answers()
    client.feed(publishing(b"lost", key="nowhere", mandatory=True, message_id="m") + publishing(key="nowhere"))
    returned, confirmed = client.answers()
    (message,) = returned.messages
    assert (message.reply_code, message.reply_text, message.routing_key) == (312, "NO_ROUTE", "nowhere")
    assert (message.body, message.message_id) == (b"lost", "m")
    assert list(confirmed) == [(2, True, False, False)]


async def test_refused_publishings_are_nacked_and_the_others_confirmed(client: Client) -> None:
    limits = {"x-max-length": 2, "x-overflow": "reject-publish"}
    client.send(1, Queue.Declare, queue="q", arguments=limits)
    client.send(1, Confirm.Select)
    client.answers()
    client.feed(publishing() * 5 + publishing(key="nowhere"))
    (run,) = client.answers()
    assert list(run) == [(2, True, False, False), (5, True, True, False), (6, False, False, False)]


async def test_publishings_before_a_bad_one_are_kept_and_confirmed(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Confirm.Select)
    client.answers()
    client.feed(publishing(b"1") + publishing(b"2") + publishing(b"3", user_id="other") + publishing(b"4"))
    confirmed, close = client.answers()
    assert list(confirmed) == [(2, True, False, False)]
    assert (close.reply_code, close.reply_text) == (
        406,
        "PRECONDITION_FAILED - user_id property set to 'other' but authenticated user was 'guest'",
    )
    client.send(1, Channel.CloseOk)
    client.send(1, Channel.Open)
    client.answers()
    assert client.ask(1, Queue.Declare, queue="q", passive=True).message_count == 2


async def test_message_over_the_limit_closes_the_channel(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.answers()
    client.feed(publishing(b"x" * 1_000_001))
    (close,) = client.answers()
    assert close.reply_text == ("PRECONDITION_FAILED - message size 1000001 is larger than configured max size 1000000")


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_sender_selected_distribution_is_refused(client: Client, header: str) -> None:
    client.feed(publishing(headers={header: ["other"]}))
    (close,) = client.answers()
    assert close.reply_code == 540
    assert header in close.reply_text


@pytest.mark.parametrize(
    ("cls", "values", "name"),
    [
        (Queue.Declare, {"queue": "q", "arguments": {"x-max-priority": 5}}, "x-max-priority"),
        (Queue.Declare, {"queue": "q", "arguments": {"x-queue-mode": "lazy"}}, "x-queue-mode"),
        (Queue.Declare, {"queue": "q", "arguments": {"x-of-tomorrow": 1}}, "x-of-tomorrow"),
        (Queue.Declare, {"queue": "q", "durable": True, "arguments": {"x-queue-type": "stream"}}, "stream"),
        (Exchange.Declare, {"exchange": "x", "arguments": {"x-delayed-type": "direct"}}, "x-delayed-type"),
        (Basic.Consume, {"queue": "there", "arguments": {"x-cancel-on-ha-failover": True}}, "x-cancel-on-ha-failover"),
        (Basic.Consume, {"queue": "there", "no_local": True}, "no_local"),
        (Basic.Consume, {"queue": "amq.rabbitmq.reply-to", "no_ack": True}, "direct reply-to"),
        (Queue.Declare, {"queue": "amq.rabbitmq.reply-to"}, "direct reply-to"),
    ],
)
async def test_what_is_not_implemented_is_refused_by_name(
    client: Client, cls: type[Method], values: dict[str, object], name: str
) -> None:
    client.send(1, Queue.Declare, queue="there")
    client.answers()
    close = client.ask(1, cls, **values)
    assert isinstance(close, Connection.Close)
    assert close.reply_code == 540
    assert name in close.reply_text


async def test_headers_exchange_routes_each_message_of_a_run(client: Client) -> None:
    for queue, wanted in (("one", 1), ("two", 2)):
        client.send(1, Queue.Declare, queue=queue)
        client.send(1, Queue.Bind, queue=queue, exchange="amq.headers", arguments={"n": wanted})
    client.send(1, Confirm.Select)
    client.answers()
    client.feed(
        b"".join(
            publishing(str(index).encode(), exchange="amq.headers", key="", headers={"n": n}, mandatory=True)
            for index, n in enumerate((1, 1, 2, 3, 2, 1))
        )
    )
    returned, confirmed = client.answers()
    assert bodies([returned]) == [b"3"]
    assert list(confirmed) == [(6, True, False, False)]
    for queue, expected in (("one", [b"0", b"1", b"5"]), ("two", [b"2", b"4"])):
        client.send(1, Basic.Consume, queue=queue, consumer_tag=queue)
        assert bodies(client.answers()) == expected


async def test_routes_follow_bindings(client: Client) -> None:
    client.send(1, Queue.Declare, queue="a")
    client.send(1, Queue.Declare, queue="b")
    client.send(1, Queue.Bind, queue="a", exchange="amq.topic", routing_key="#")

    def depths() -> list[int]:
        client.feed(publishing(exchange="amq.topic", key="k"))
        client.answers()
        return [client.ask(1, Queue.Purge, queue=name).message_count for name in ("a", "b")]

    client.answers()
    assert depths() == [1, 0]
    client.ask(1, Queue.Bind, queue="b", exchange="amq.topic", routing_key="*")
    assert depths() == [1, 1]
    client.ask(1, Queue.Unbind, queue="a", exchange="amq.topic", routing_key="#")
    assert depths() == [0, 1]
    client.ask(1, Queue.Delete, queue="b")
    client.ask(1, Queue.Declare, queue="b")
    assert depths() == [0, 0]


# ---------------------------------------------------------------------- consuming


async def test_prefetch_limits_what_is_unacknowledged(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Basic.Qos, prefetch_count=3)
    client.send(1, Basic.Consume, queue="q", consumer_tag="t")
    client.answers()
    client.feed(b"".join(publishing(str(n).encode()) for n in range(6)))
    assert bodies(client.answers()) == [b"0", b"1", b"2"]
    client.send(1, Basic.Ack, delivery_tag=2, multiple=True)
    assert bodies(client.answers()) == [b"3", b"4"]
    client.send(1, Basic.Nack, delivery_tag=3, requeue=True)
    (run,) = client.answers()
    assert [(m.body, m.redelivered, m.delivery_tag) for m in run.messages] == [(b"2", True, 6)]


async def test_global_prefetch_is_shared_by_a_channels_consumers(client: Client) -> None:
    for queue in ("a", "b"):
        client.send(1, Queue.Declare, queue=queue)
    client.send(1, Basic.Qos, prefetch_count=3, global_=True)
    for queue in ("a", "b"):
        client.send(1, Basic.Consume, queue=queue, consumer_tag=queue)
    client.answers()
    client.feed(b"".join(publishing(key=key) for key in "aaabbb"))
    assert len(bodies(client.answers())) == 3
    client.send(1, Basic.Ack, delivery_tag=0, multiple=True)
    assert len(bodies(client.answers())) == 3


async def test_channel_that_ends_gives_back_in_order(broker: EmbeddedBroker, client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.feed(b"".join(publishing(str(n).encode()) for n in range(4)))
    client.send(1, Basic.Consume, queue="q", consumer_tag="t")
    assert bodies(client.answers()) == [b"0", b"1", b"2", b"3"]
    client.send(1, Basic.Ack, delivery_tag=2)
    client.ask(1, Channel.Close, reply_code=200, class_id=0, method_id=0)
    other = Client(broker).open(1)
    other.send(1, Basic.Consume, queue="q", consumer_tag="t")
    (ok, run) = other.answers()
    assert ok.consumer_tag == "t"
    assert [(m.body, m.redelivered) for m in run.messages] == [(b"0", True), (b"2", True), (b"3", True)]


async def test_lost_connection_gives_back_and_takes_its_queues_along(broker: EmbeddedBroker, client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Queue.Declare, queue="mine", exclusive=True)
    client.send(1, Queue.Declare, queue="auto", auto_delete=True)
    for queue in ("q", "mine", "auto"):
        client.send(1, Basic.Consume, queue=queue, consumer_tag=queue)
    client.feed(publishing() + publishing(key="mine"))
    client.answers()
    client.lose()
    assert list(broker.vhosts["/"].queues) == ["q"]
    assert broker.queue_depth("q") == 1
    assert broker.vhosts["/"].queues["q"].consumer_count == 0
    assert broker.sessions == {}


async def test_deliveries_wait_while_the_client_does_not_read(broker: EmbeddedBroker, client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Basic.Consume, queue="q", consumer_tag="t", no_ack=True)
    client.answers()
    client.transport.pause_writing()
    client.feed(publishing(b"1") + publishing(b"2"))
    assert client.answers() == []
    assert broker.queue_depth("q") == 2
    client.transport.resume_writing()
    broker.scheduler.run()
    assert bodies(client.answers()) == [b"1", b"2"]


async def test_requests_wait_while_the_client_does_not_read_its_answers(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.answers()
    client.transport.pause_writing()
    client.wire.unsent = session_module.HOLD_BYTES + 1
    client.feed(encode(1, make(Queue.Declare, queue="q", passive=True)) * 3)
    assert (client.answers(), client.wire.reading) == ([], False)
    client.wire.unsent = 0
    client.transport.resume_writing()
    assert (len(client.answers()), client.wire.reading) == (3, True)


async def test_consumer_is_cancelled_when_its_queue_goes(broker: EmbeddedBroker, client: Client) -> None:
    quiet = Client(broker).open(1, capabilities={})
    client.send(1, Queue.Declare, queue="q")
    for each in (client, quiet):
        each.send(1, Basic.Consume, queue="q", consumer_tag="t")
        each.answers()
    other = Client(broker).open(1)
    other.ask(1, Queue.Delete, queue="q")
    (cancel,) = client.answers()
    assert (spec_of(type(cancel)).name, cancel.consumer_tag, cancel.nowait) == ("basic.cancel", "t", True)
    assert quiet.answers() == []
    # The tag may be used again.
    client.ask(1, Queue.Declare, queue="q")
    assert client.ask(1, Basic.Consume, queue="q", consumer_tag="t").consumer_tag == "t"


async def test_server_makes_up_names(client: Client) -> None:
    first, second = (client.ask(1, Queue.Declare, queue="").queue for _ in range(2))
    assert first.startswith("amq.gen-")
    assert first != second
    # An empty name stands for the queue declared last.
    tag = client.ask(1, Basic.Consume, queue="").consumer_tag
    assert tag.startswith("amq.ctag-")
    assert client.ask(1, Queue.Declare, queue=second, passive=True).consumer_count == 1


async def test_get_takes_one_message_and_counts_the_others(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.feed(publishing(b"1") + publishing(b"2") + publishing(b"3"))
    client.answers()
    client.send(1, Basic.Get, queue="q")
    ((message,),) = [run.messages for run in client.answers()]
    assert (message.body, message.message_count, message.delivery_tag) == (b"1", 2, 1)
    client.send(1, Basic.Get, queue="q", no_ack=True)
    client.send(1, Basic.Reject, delivery_tag=1, requeue=True)
    client.send(1, Basic.Get, queue="q")
    runs = client.answers()
    assert [(m.body, m.redelivered) for run in runs for m in run.messages] == [(b"2", False), (b"1", True)]
    client.send(1, Basic.Get, queue="q", no_ack=True)
    client.answers()
    assert isinstance(client.ask(1, Basic.Get, queue="q"), Basic.GetEmpty)


async def test_body_is_split_at_the_clients_frame_max(broker: EmbeddedBroker) -> None:
    client = Client(broker)
    client.frame_max = 4096
    client.open(1)
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Basic.Consume, queue="q", consumer_tag="t")
    client.answers()
    body = bytes(range(256)) * 100
    other = Client(broker).open(1)
    other.feed(publishing(body))
    client.transport.flush()
    assert len(client.wire.written) > len(body) + 6 * 8
    assert bodies(client.answers()) == [body]


# ---------------------------------------------------------------------- transactions


async def test_transaction_shows_nothing_before_commit_and_all_of_it_after(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.send(1, Tx.Select)
    client.answers()
    client.feed(publishing(b"1") + publishing(key="nowhere", mandatory=True) + publishing(b"2"))
    assert client.ask(1, Queue.Declare, queue="q", passive=True).message_count == 0
    client.send(1, Tx.Commit)
    returned, ok = client.answers()
    assert isinstance(ok, Tx.CommitOk)
    assert [m.routing_key for m in returned.messages] == ["nowhere"]
    assert client.ask(1, Queue.Declare, queue="q", passive=True).message_count == 2


async def test_rollback_makes_settled_deliveries_outstanding_again(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.feed(b"".join(publishing(str(n).encode()) for n in range(4)))
    client.send(1, Basic.Consume, queue="q", consumer_tag="t")
    client.send(1, Tx.Select)
    client.send(1, Basic.Ack, delivery_tag=2)
    client.send(1, Basic.Ack, delivery_tag=4, multiple=True)
    client.send(1, Tx.Rollback)
    client.answers()
    client.send(1, Basic.Ack, delivery_tag=4, multiple=True)
    assert isinstance(client.ask(1, Tx.Commit), Tx.CommitOk)
    client.send(1, Basic.Ack, delivery_tag=4)
    (close,) = client.answers()
    assert close.reply_text == "PRECONDITION_FAILED - unknown delivery tag 4"


async def test_commit_fails_when_a_queue_refuses(client: Client) -> None:
    client.send(1, Queue.Declare, queue="q", arguments={"x-max-length": 0, "x-overflow": "reject-publish"})
    client.send(1, Tx.Select)
    client.answers()
    client.feed(publishing())
    close = client.ask(1, Tx.Commit)
    assert (close.reply_code, close.reply_text) == (406, "PRECONDITION_FAILED - partial tx completion")


async def test_uncommitted_settlements_are_given_back_when_the_channel_ends(
    broker: EmbeddedBroker, client: Client
) -> None:
    client.send(1, Queue.Declare, queue="q")
    client.feed(publishing() * 3)
    client.send(1, Basic.Consume, queue="q", consumer_tag="t")
    client.send(1, Tx.Select)
    client.send(1, Basic.Ack, delivery_tag=2, multiple=True)
    client.lose()
    assert broker.queue_depth("q") == 3


# ---------------------------------------------------------------------- blocking, heartbeats, closing


async def test_blocked_publishers_are_told_and_not_read_while_consumers_go_on(
    broker: EmbeddedBroker, client: Client
) -> None:
    consumer = Client(broker).open(1)
    client.send(1, Queue.Declare, queue="q")
    client.answers()
    consumer.send(1, Basic.Consume, queue="q", consumer_tag="t", no_ack=True)
    consumer.answers()
    broker.block("low on memory")
    # Whoever does not publish notices nothing.
    assert client.ask(1, Queue.Declare, queue="q", passive=True).message_count == 0
    client.feed(publishing(b"1") + encode(1, make(Queue.Declare, queue="q", passive=True)))
    (blocked,) = client.answers()
    assert (spec_of(type(blocked)).name, blocked.reason) == ("connection.blocked", "low on memory")
    assert (client.wire.reading, client.session.is_blocked) == (False, True)
    assert consumer.answers() == []
    broker.unblock()
    unblocked, declared = client.answers()
    assert spec_of(type(unblocked)).name == "connection.unblocked"
    assert isinstance(declared, Queue.DeclareOk)
    assert (client.wire.reading, client.session.is_blocked) == (True, False)
    assert bodies(consumer.answers()) == [b"1"]


async def test_blocked_publisher_without_the_capability_is_only_not_read(broker: EmbeddedBroker) -> None:
    client = Client(broker).open(1, capabilities={})
    broker.block()
    client.feed(publishing())
    assert (client.answers(), client.wire.reading) == ([], False)
    broker.unblock()
    assert (client.answers(), client.wire.reading) == ([], True)


async def test_blocked_connection_can_be_closed_by_the_broker(broker: EmbeddedBroker, client: Client) -> None:
    broker.block()
    client.feed(publishing())
    client.answers()
    broker.close_connections(320, "go away")
    (close,) = client.answers()
    assert (close.reply_code, close.reply_text) == (320, "CONNECTION_FORCED - go away")
    assert client.wire.reading
    client.send(0, Connection.CloseOk)
    assert client.wire.closed == "closed"


async def test_heartbeats_are_sent_when_nothing_else_is(broker: EmbeddedBroker) -> None:
    client = Client(broker).open(1, heartbeat=10)
    tick = client.session._tick  # the timer's callback: the test is the clock
    tick()
    tick()
    client.transport.flush()
    assert bytes(client.wire.written).count(HEARTBEAT_FRAME) == 1
    client.wire.written.clear()
    client.ask(1, Queue.Declare, queue="q")
    tick()
    client.transport.flush()
    assert client.wire.written == b""
    tick()
    assert client.wire.written == HEARTBEAT_FRAME


async def test_silent_client_is_dropped_after_two_intervals(broker: EmbeddedBroker) -> None:
    client = Client(broker).open(1, heartbeat=10)
    for _ in range(3):
        client.session._tick()
    client.feed(HEARTBEAT_FRAME)
    for _ in range(4):
        client.session._tick()
        assert client.wire.closed == ""
    client.session._tick()
    assert client.wire.closed == "aborted"


async def test_blocked_client_is_not_taken_for_dead(broker: EmbeddedBroker) -> None:
    client = Client(broker).open(1, heartbeat=10)
    broker.block()
    client.feed(publishing())
    for _ in range(20):
        client.session._tick()
    assert client.wire.closed == ""


async def test_client_that_takes_nothing_is_dropped_also_when_it_is_not_read(broker: EmbeddedBroker) -> None:
    client = Client(broker).open(1, heartbeat=10)
    client.transport.pause_writing()
    client.wire.unsent = session_module.HOLD_BYTES + 1
    client.feed(encode(1, make(Queue.Declare, queue="q")))
    assert not client.wire.reading
    for _ in range(4):
        client.session._tick()
    assert client.wire.closed == ""
    client.wire.unsent -= 1
    for _ in range(5):
        client.session._tick()
    assert client.wire.closed == "aborted"


async def test_no_heartbeats_when_the_client_wants_none(broker: EmbeddedBroker) -> None:
    client = Client(broker).open(1, heartbeat=0)
    assert client.session._timer is None


async def test_client_that_does_not_answer_close_is_dropped(
    broker: EmbeddedBroker, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "CLOSE_TIMEOUT", 0.01)
    broker.close_connections()
    async with asyncio.timeout(5):
        await client.wire.gone.wait()
    assert client.wire.closed == "aborted"


async def test_close_is_answered_and_leaves_nothing(broker: EmbeddedBroker, client: Client) -> None:
    client.send(1, Queue.Declare, queue="mine", exclusive=True)
    client.answers()
    assert isinstance(client.ask(0, Connection.Close, reply_code=200, class_id=0, method_id=0), Connection.CloseOk)
    assert client.wire.closed == "closed"
    client.lose()
    assert (broker.sessions, broker.vhosts["/"].queues) == ({}, {})


async def test_update_secret_is_accepted(client: Client) -> None:
    answer = client.ask(0, Connection.UpdateSecret, new_secret="s", reason="rotation")
    assert isinstance(answer, Connection.UpdateSecretOk)


# ---------------------------------------------------------------------- dead letters


async def test_dead_letters_travel_through_long_chains_without_nesting(
    broker: EmbeddedBroker, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    count = DEATHS_COUNT
    for number in range(count + 1):
        arguments = {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": f"q{number + 1}",
            **({"x-max-length": 0} if number else {}),
        }
        client.send(1, Queue.Declare, queue=f"q{number}", arguments=arguments)
    client.send(1, Queue.Declare, queue=f"q{count + 1}")

    def reject() -> list[str]:
        client.feed(publishing(key="q0"))
        client.send(1, Basic.Get, queue="q0")
        (run,) = client.answers()[-1:]
        client.send(1, Basic.Reject, delivery_tag=run.messages[0].delivery_tag, requeue=False)
        return [name for name, queue in broker.vhosts["/"].queues.items() if len(queue)]

    # The header that tells of every queue has its limit.
    assert reject() == []
    assert "its x-death header has the most entries allowed" in caplog.text
    client.send(1, Queue.Delete, queue="q3")
    client.send(1, Queue.Declare, queue="q3")
    assert reject() == ["q3"]
    client.send(1, Queue.Delete, queue="q3")
    client.send(1, Queue.Declare, queue="q3", arguments={
        "x-max-length": 0, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": f"q{count - 1}"})  # fmt: skip
    assert reject() == [f"q{count + 1}"]


async def test_dead_letters_of_a_large_queue_let_others_have_their_turn(broker: EmbeddedBroker, client: Client) -> None:
    count = 1000
    client.send(1, Queue.Declare, queue="dead")
    client.send(1, Queue.Declare, queue="q", arguments={
        "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})  # fmt: skip
    client.feed(publishing() * count)
    client.send(1, Basic.Consume, queue="q", consumer_tag="t")
    client.send(1, Basic.Nack, delivery_tag=0, multiple=True, requeue=False)
    assert 0 < broker.queue_depth("dead") < count
    async with asyncio.timeout(5):
        while broker.queue_depth("dead") < count:  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_exchanges_of_a_long_chain_go_with_the_last_binding(broker: EmbeddedBroker, client: Client) -> None:
    count = 1500
    client.send(1, Queue.Declare, queue="q")
    for number in range(count):
        client.send(1, Exchange.Declare, exchange=f"x{number}", exchange_type="fanout", auto_delete=True)
        if number:
            client.send(1, Exchange.Bind, destination=f"x{number}", source=f"x{number - 1}", arguments={})
    client.send(1, Queue.Bind, queue="q", exchange=f"x{count - 1}", arguments={})
    client.feed(publishing(exchange="x0"))
    client.answers()
    assert client.ask(1, Queue.Delete, queue="q").message_count == 1
    assert [name for name in broker.vhosts["/"].exchanges if name.startswith("x")] == []


async def test_hostile_death_header_does_not_stop_dead_lettering(client: Client) -> None:
    deep: Any = []
    for _ in range(28):
        deep = [deep]
    client.send(1, Queue.Declare, queue="dead")
    client.send(1, Queue.Declare, queue="q", arguments={
        "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "dead"})  # fmt: skip
    client.answers()
    for death in ("text", [5], [{"count": "many"}], [{"count": 1 << 62, "queue": "q", "reason": "rejected"}],
                  [{"deep": deep}], {"a": 1}, [{"queue": 5, "reason": None}]):  # fmt: skip
        client.feed(publishing(headers={"x-death": death}))
        client.send(1, Basic.Get, queue="q")
        (run,) = client.answers()
        client.send(1, Basic.Reject, delivery_tag=run.messages[0].delivery_tag, requeue=False)
        client.send(1, Basic.Get, queue="dead", no_ack=True)
        (run,) = client.answers()
        first = run.messages[0].headers["x-death"][0]
        assert (first["queue"], first["reason"]) == ("q", "rejected")
        assert first["count"] >= 1
