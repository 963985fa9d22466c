"""A server that breaks the protocol ends the connection, and everything that waits is told why."""

from __future__ import annotations

import asyncio

import pytest
from pamqp.commands import Basic, Channel, Confirm, Connection, Queue
from tests.corpus.frames import frame
from tests.support.conversation import content, raw_method
from tests.support.outcomes import refusal
from tests.support.peers import FakeServer, Peer, start_with, two_connections
from tests.support.secrets import assert_not_shown

import leveret
from leveret import Outcome
from leveret.errors import ConnectionLost, FrameError, RemoteProtocolError, TableSyntaxError

pytestmark = pytest.mark.usefixtures("no_leftovers")


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
        client = await leveret.connect(server.url, close_timeout=0.5, auto_recovery=False)
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

    async with (
        two_connections(script) as url,
        leveret.connect(url, close_timeout=0.5, auto_recovery=False) as client,
    ):
        consumer = client.consumer("q", consumer_tag="tag")
        error = await refusal(anext(consumer), within=1)
        assert type(error) is ConnectionLost
        assert consumer.counters()["delivered"] == 0
