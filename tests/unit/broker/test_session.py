"""The server's side of a connection without a socket: its handshake, its mistakes, its heartbeats and its end."""

from __future__ import annotations

import asyncio
import struct

import pytest
from tests.corpus.frames import frame
from tests.support.session import Client, bodies, publishing

from leveret.broker import EmbeddedBroker
from leveret.broker import session as session_module
from leveret.protocol.commands import PROTOCOL_HEADER, Basic, Channel, Connection, Method, Queue, encode, make, spec_of
from leveret.wire.encoding import encode_method
from leveret.wire.numbers import HEARTBEAT_FRAME

pytestmark = pytest.mark.usefixtures("no_errors_logged")


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
