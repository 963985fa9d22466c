"""The server's side of a connection without a socket, and a client that speaks to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from leveret.broker.session import BrokerSession
from leveret.broker.transport import BrokerTransport
from leveret.protocol.commands import (
    PROTOCOL_HEADER,
    Channel,
    Connection,
    Method,
    decode,
    encode,
    make,
    spec_of,
)
from leveret.publishing.template import PublishTemplate
from leveret.wire.properties import Properties
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun, MethodFrame

if TYPE_CHECKING:
    from leveret.broker import EmbeddedBroker


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
            server=True, protocol_header=True, handshake=True, max_body_size=broker.max_message_size, capacity=65536
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
            buffer = memoryview(self.wire.protocol.get_buffer(len(data)))
            size = min(len(buffer), len(data))
            buffer[:size] = data[:size]
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
    from leveret.publishing.publish_batch import PublishBatch
    from leveret.wire.buffers import SendBuffer

    out = SendBuffer(lambda: None, lambda: None)
    PublishBatch(out, None, channel=channel).add(template, body)
    return out.take()


def bodies(events: list[Any]) -> list[bytes | memoryview | None]:
    return [message.body for event in events if isinstance(event, ContentRun) for message in event.messages]
