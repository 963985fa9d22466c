"""Clients that break the rules of AMQP are answered by the embedded broker as RabbitMQ answers them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

import pika
import pika.exceptions
import pytest

from leveret.protocol.commands import (
    PROTOCOL_HEADER,
    Basic,
    Channel,
    Confirm,
    Connection,
    Method,
    Queue,
    decode,
    encode,
    make,
    spec_of,
)
from leveret.wire.encoding import encode_method
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun, MethodFrame

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.rabbitmq import RabbitMQNode

    from leveret.broker import EmbeddedBroker

pytestmark = [pytest.mark.integration, pytest.mark.server_version]


class Stranger:
    """A client on a bare socket that may say anything."""

    def __init__(self, url: str, *, frame_max: int = 131072, channel_max: int = 2047, vhost: str = "/") -> None:
        parameters = pika.URLParameters(url)
        self.socket = socket.create_connection((parameters.host, parameters.port), timeout=30)
        self._reader = FrameReader(frame_max=1 << 24)
        self._events: list[Any] = []
        self.raw(PROTOCOL_HEADER)
        self.next()
        capabilities = {"authentication_failure_close": True, "consumer_cancel_notify": True}
        self.send(0, Connection.StartOk, client_properties={"capabilities": capabilities}, response="\0guest\0guest")
        self.next()
        self.send(0, Connection.TuneOk, channel_max=channel_max, frame_max=frame_max, heartbeat=0)
        self.send(0, Connection.Open, virtual_host=vhost)

    def opened(self, *channels: int) -> Stranger:
        assert self.next() == "connection.open-ok"
        for channel in channels:
            self.send(channel, Channel.Open)
            assert self.next() == "channel.open-ok"
        return self

    def raw(self, data: bytes) -> Stranger:
        self.socket.sendall(data)
        return self

    def send(self, channel: int, cls: type[Method], **values: object) -> Stranger:
        return self.raw(encode(channel, make(cls, **values)))

    def frame(self, kind: int, channel: int, payload: bytes) -> Stranger:
        return self.raw(struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce")

    def publish(self, channel: int, key: str, body: bytes = b"", bits: int = 0) -> Stranger:
        self.raw(encode_method(channel, 60, 40, "hsso", (0, "", key, bits)))
        self.frame(2, channel, struct.pack(">HHQH", 60, 0, len(body), 0))
        return self.frame(3, channel, body) if body else self

    def next(self) -> object:
        while not self._events:
            self._events += self._reader.feed(self.socket.recv(65536))
        event = self._events.pop(0)
        if isinstance(event, MethodFrame):
            method = decode(event)
            if isinstance(method, (Connection.Close, Channel.Close)):
                return (type(method).name, method.reply_code, method.reply_text, method.class_id, method.method_id)
            return spec_of(type(method)).name
        return [message.body for message in event.messages] if isinstance(event, ContentRun) else list(event)


STRANGE: dict[str, Callable[[Callable[..., Stranger]], object]] = {
    "unopened channel": lambda s: s().opened().send(5, Queue.Declare, queue="q").next(),
    "publish on unopened channel": lambda s: s().opened().publish(5, "q").next(),
    "ack on unopened channel": lambda s: s().opened().send(5, Basic.Ack, delivery_tag=1).next(),
    "close-ok on unopened channel": lambda s: s().opened().send(5, Channel.CloseOk).next(),
    "channel opened twice": lambda s: s().opened(1).send(1, Channel.Open).next(),
    "a server's method": lambda s: (
        s().opened(1).send(1, Queue.DeclareOk, queue="q", message_count=0, consumer_count=0).next()
    ),
    "channel method on channel 0": lambda s: s().opened().send(0, Queue.Declare, queue="q").next(),
    "ack on channel 0": lambda s: s().opened().send(0, Basic.Ack, delivery_tag=1).next(),
    "publish on channel 0": lambda s: s().opened().publish(0, "q").next(),
    "connection method on a channel": lambda s: (
        s().opened(1).send(1, Connection.Close, reply_code=200, class_id=0, method_id=0).next()
    ),
    "handshake again": lambda s: s().opened().send(0, Connection.StartOk, client_properties={}, response="").next(),
    "immediate": lambda s: s().opened(1).publish(1, "q", bits=2).next(),
    "unknown delivery tag": lambda s: s().opened(1).send(1, Basic.Ack, delivery_tag=9).next(),
    "unknown delivery tag in nack": lambda s: s().opened(1).send(1, Basic.Nack, delivery_tag=9).next(),
    "prefetch size": lambda s: s().opened(1).send(1, Basic.Qos, prefetch_size=1).next(),
    "update-secret": lambda s: s().opened().send(0, Connection.UpdateSecret, new_secret="s", reason="r").next(),
    "missing vhost": lambda s: s(vhost="nowhere").next(),
    "too many channels": lambda s: s(channel_max=2).opened(1, 2).send(3, Channel.Open).next(),
    "a channel number above channel_max": lambda s: s(channel_max=2).opened().send(9, Channel.Open).next(),
    "name with line breaks": lambda s: s().opened(1).send(1, Queue.Declare, queue="a\r\nb", exclusive=True).next(),
    "close": lambda s: s().opened(1).send(0, Connection.Close, reply_code=200, class_id=0, method_id=0).next(),
    "frame type": lambda s: s().opened(1).frame(7, 1, b"").next(),
    "body without header": lambda s: s().opened(1).frame(3, 1, b"x").next(),
    "oversized frame": lambda s: s().opened(1).raw(struct.pack(">BHI", 1, 1, 1 << 31)).next(),
}
#: Here the texts tell what the reader saw, each in its own words.
OWN_WORDS = {"frame type", "body without header", "oversized frame"}


def reuse_tag(s: Callable[..., Stranger]) -> object:
    stranger = s().opened(1).send(1, Queue.Declare, queue="", exclusive=True)
    stranger.next()
    stranger.send(1, Basic.Consume, queue="", consumer_tag="t").send(1, Basic.Consume, queue="", consumer_tag="t")
    return stranger.next(), stranger.next()


def go_on_after_channel_close(s: Callable[..., Stranger]) -> object:
    stranger = s().opened(1).send(1, Queue.Declare, queue="missing", passive=True)
    seen = [stranger.next()]
    stranger.send(1, Queue.Declare, queue="missing", passive=True).publish(1, "missing").send(1, Basic.Ack)
    stranger.send(1, Channel.Close, reply_code=200, class_id=0, method_id=0)
    seen.append(stranger.next())
    stranger.send(1, Channel.CloseOk).send(1, Channel.Open)
    return [*seen, stranger.next()]


def go_on_after_connection_close(s: Callable[..., Stranger]) -> object:
    stranger = s().opened(1).send(1, Basic.Qos, prefetch_size=1)
    seen = stranger.next()
    stranger.send(1, Queue.Declare, queue="missing", passive=True)
    return seen, stranger.send(0, Connection.Close, reply_code=200, class_id=0, method_id=0).next()


def confirm_and_return(s: Callable[..., Stranger]) -> object:
    stranger = s().opened(1).send(1, Confirm.Select)
    seen = [stranger.next()]
    stranger.publish(1, "no such queue", b"body", bits=1)
    return [*seen, stranger.next(), stranger.next()]


def _publish_with_header(stranger: Stranger, value: bytes) -> Stranger:
    table = b"\1k" + value
    stranger.raw(encode_method(1, 60, 40, "hsso", (0, "", "nowhere", 0)))
    return stranger.frame(2, 1, struct.pack(">HHQHI", 60, 0, 0, 0x2000, len(table)) + table)


def second_close_ok(s: Callable[..., Stranger]) -> object:
    stranger = s().opened(1).send(1, Queue.Declare, queue="missing", passive=True)
    seen = stranger.next()
    return seen, stranger.send(1, Channel.CloseOk).send(1, Channel.CloseOk).next()


_NAN = b"d\x7f\xf8" + bytes(6)
STRANGE |= {
    "second close-ok": second_close_ok,
    "queue name that is no UTF-8": lambda s: s().opened(1).send(1, Queue.Declare, queue=b"q\xff").next(),
    "consumer tag that is no UTF-8": lambda s: s().opened(1).send(1, Basic.Consume, consumer_tag=b"\xc3(").next(),
    "infinite header": lambda s: _publish_with_header(s().opened(1), b"d\x7f\xf0" + bytes(6)).next(),
    "header that is no number": lambda s: _publish_with_header(s().opened(1), b"f\x7f\xc0\0\0").next(),
    "header that is no number, in a list in a table": lambda s: _publish_with_header(
        s().opened(1), b"F\0\0\0\x10\1kA\0\0\0\x09" + _NAN
    ).next(),
}
STRANGE |= {
    "consumer tag in use": reuse_tag,
    "going on after channel.close": go_on_after_channel_close,
    "going on after connection.close": go_on_after_connection_close,
    "confirm after return": confirm_and_return,
}


def _stranger(url: str, what: str) -> object:
    strangers: list[Stranger] = []

    def make_one(**options: Any) -> Stranger:
        strangers.append(Stranger(url, **options))
        return strangers[-1]

    try:
        for _ in range(4):
            # Now and then a RabbitMQ resets the connection before its reason is read.
            with contextlib.suppress(ConnectionResetError):
                return STRANGE[what](make_one)
        return STRANGE[what](make_one)
    finally:
        for stranger in strangers:
            stranger.socket.close()


@pytest.mark.parametrize("what", STRANGE)
async def test_strange_behaviour_is_answered_as_rabbitmq_answers_it(
    rabbitmq: RabbitMQNode, embedded: EmbeddedBroker, what: str
) -> None:
    ours: Any
    theirs: Any
    ours, theirs = await asyncio.gather(
        asyncio.to_thread(_stranger, embedded.url, what), asyncio.to_thread(_stranger, rabbitmq.url, what)
    )
    if what in OWN_WORDS:
        ours, theirs = ours[:2], theirs[:2]
    assert ours == theirs
