"""AMQP from a plain socket: a handshake, and frames that are made once and sent again and again.

Nothing is encoded per message and almost nothing is decoded. So its cost is the cost that any client has for the kernel
and the broker: the ceiling of the comparison. The comparison also fills queues with it.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from typing import TYPE_CHECKING, Any, Final

from asv_bench.compare.job import CONTENT_TYPE
from pamqp import body, commands, frame, header

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

#: Bytes of one write to the socket.
WRITE_BYTES: Final = 65_536
_READ_BYTES: Final = 262_144
_FRAME_OVERHEAD: Final = 8
_FRAME_END: Final = 0xCE
_CONSUMER_TAG: Final = "c"
_HEADER = struct.Struct(">BHI")
#: A whole basic.ack frame: type, channel, size, class, method, delivery tag, multiple, end.
_ACK = struct.Struct(">BHIHHQBB")
_ACK_CONSTANTS: Final = (1, 13, 60, 80, _FRAME_END)


class WireError(Exception):
    """The broker sent something unexpected."""


class Connection:
    """A connection, which the constructor opens. Use it with `with`.

    Args:
        host: The broker's address.
        port: The broker's port.
        timeout: Seconds that the broker may take for each answer.

    Attributes:
        socket: The socket.
        frame_max: Bytes of a frame at most.
        identity: The product and version that the broker names.
    """

    def __init__(self, host: str, port: int, timeout: float = 60.0) -> None:
        self.socket = socket.create_connection((host, port), timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._channels = 0
        self.frame_max = 0
        self.identity = ""
        with contextlib.ExitStack() as stack:
            stack.callback(self.socket.close)
            self._shake_hands()
            stack.pop_all()

    def _shake_hands(self) -> None:
        self.socket.sendall(header.ProtocolHeader().marshal())
        said = self.expect(commands.Connection.Start).server_properties
        self.identity = f"{said.get('product', 'unknown broker')} {said.get('version', '')}".strip()
        tune = self.call(
            commands.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"), commands.Connection.Tune, channel=0
        )
        self.frame_max = min(tune.frame_max or 131_072, 131_072)
        self.send(commands.Connection.TuneOk(tune.channel_max, self.frame_max, 0), channel=0)
        self.call(commands.Connection.Open("/"), commands.Connection.OpenOk, channel=0)

    def send(self, method: Any, *, channel: int) -> None:
        """Sends a method."""
        self.socket.sendall(frame.marshal(method, channel))

    def expect(self, kind: type[Any]) -> Any:
        """Reads one frame and not a byte more.

        Raises:
            WireError: The frame is not a method of this kind.
        """
        head = self._read(_HEADER.size)
        size: int = _HEADER.unpack(head)[2]
        found: Any = frame.unmarshal(head + self._read(size + 1))[2]
        if not isinstance(found, kind):
            details = f" ({found.reply_code} {found.reply_text})" if hasattr(found, "reply_text") else ""
            raise WireError(f"the broker sent {found.name}{details} where {kind.__name__} was due")
        return found

    def call(self, method: Any, reply: type[Any], *, channel: int) -> Any:
        """Sends a method and waits for its reply."""
        self.send(method, channel=channel)
        return self.expect(reply)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += _received(self.socket.recv(size - len(data)))
        return data

    def open_channel(self, *, confirms: bool = False) -> int:
        """Opens the next channel and returns its number."""
        self._channels += 1
        self.call(commands.Channel.Open(), commands.Channel.OpenOk, channel=self._channels)
        if confirms:
            self.call(commands.Confirm.Select(), commands.Confirm.SelectOk, channel=self._channels)
        return self._channels

    def close_channel(self, channel: int) -> None:
        """Closes a channel. When it returns, the broker has read all that was sent on it."""
        self.call(commands.Channel.Close(200, "", 0, 0), commands.Channel.CloseOk, channel=channel)

    def close(self) -> None:
        """Closes the connection with connection.close. Errors are ignored."""
        with self.socket, contextlib.suppress(OSError, WireError):
            self.call(commands.Connection.Close(200, "", 0, 0), commands.Connection.CloseOk, channel=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def publishing(channel: int, queue: str, content: bytes, frame_max: int) -> bytes:
    """All frames of one persistent message for a queue, through the default exchange."""
    properties = commands.Basic.Properties(content_type=CONTENT_TYPE, delivery_mode=2)
    most = frame_max - _FRAME_OVERHEAD
    frames: list[Any] = [
        commands.Basic.Publish(routing_key=queue),
        header.ContentHeader(body_size=len(content), properties=properties),
        *(body.ContentBody(content[start : start + most]) for start in range(0, len(content), most)),
    ]
    return b"".join(frame.marshal(each, channel) for each in frames)


def delivery_size(queue: str, size: int, frame_max: int) -> int:
    """Returns the bytes of the delivery of such a message; all deliveries have the same size."""
    published = frame.marshal(commands.Basic.Publish(routing_key=queue), 1)
    return len(publishing(1, queue, bytes(size), frame_max)) - len(published) + _deliver_size(queue)


def _deliver_size(queue: str) -> int:
    return len(frame.marshal(commands.Basic.Deliver(_CONSUMER_TAG, 1, False, "", queue), 1))


class Confirms:
    """Counts confirms.

    Attributes:
        settled: All publishings up to this one are confirmed.
    """

    def __init__(self) -> None:
        self.settled = 0
        self._beyond: set[int] = set()
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """Takes bytes from the broker, in pieces of any size.

        Raises:
            WireError: A frame is not basic.ack.
        """
        data = self._rest + data
        whole = len(data) - len(data) % _ACK.size
        self._rest = data[whole:]
        settled, beyond = self.settled, self._beyond
        for kind, _, size, class_id, method_id, tag, multiple, end in _ACK.iter_unpack(data[:whole]):
            if (kind, size, class_id, method_id, end) != _ACK_CONSTANTS:
                raise WireError(f"the broker sent method {class_id}.{method_id} where basic.ack was due")
            if multiple:
                settled = max(settled, tag)
            else:
                beyond.add(tag)
            while settled + 1 in beyond:
                settled += 1
                beyond.discard(settled)
        self.settled = settled


def publish(
    connection: Connection, channel: int, queue: str, content: bytes, count: int, window: int, at_once: int = 0
) -> None:
    """Publishes ready-made frames, and returns when all are written and, with a window, confirmed.

    Args:
        connection: The connection.
        channel: A channel of it, in confirm mode when there is a window.
        queue: The queue's name.
        content: The body of each message.
        count: The number of messages.
        window: The most unconfirmed messages; 0 without confirms.
        at_once: Messages of one write; 0: as many as fit `WRITE_BYTES` and the window.
    """
    one = publishing(channel, queue, content, connection.frame_max)
    at_once = at_once or max(1, min(WRITE_BYTES // len(one), window or count))
    block = memoryview(one * at_once)
    confirms = Confirms()
    sock = connection.socket
    sent = 0
    while sent < count:
        n = min(at_once, count - sent)
        while window and sent + n - confirms.settled > window:
            confirms.feed(_received(sock.recv(WRITE_BYTES)))
        sock.sendall(block[: n * len(one)])
        sent += n
    while window and confirms.settled < count:
        confirms.feed(_received(sock.recv(WRITE_BYTES)))


def publish_one_by_one(connection: Connection, channel: int, queue: str, content: bytes, count: int) -> list[float]:
    """Publishes each message after the confirm of the last one; returns the seconds of each."""
    one = publishing(channel, queue, content, connection.frame_max)
    confirms = Confirms()
    sock = connection.socket
    latencies = []
    for number in range(1, count + 1):
        start = time.perf_counter()
        sock.sendall(one)
        while confirms.settled < number:
            confirms.feed(_received(sock.recv(WRITE_BYTES)))
        latencies.append(time.perf_counter() - start)
    return latencies


def consume(
    connection: Connection, channel: int, queue: str, size: int, count: int, prefetch: int, ack_every: int
) -> int:
    """Counts the bytes of deliveries and acknowledges them.

    What is delivered must have been published by `publish`, to the same queue.

    Returns:
        The bytes received: `count` times `delivery_size`, unless the broker sent something else.
    """
    connection.call(commands.Basic.Qos(0, prefetch, False), commands.Basic.QosOk, channel=channel)
    connection.call(
        commands.Basic.Consume(queue=queue, consumer_tag=_CONSUMER_TAG), commands.Basic.ConsumeOk, channel=channel
    )
    each = delivery_size(queue, size, connection.frame_max)
    sock = connection.socket
    buffer = bytearray(_READ_BYTES)
    done = acked = 0
    # Decodes the first frame, so that nothing else is taken for deliveries.
    connection.expect(commands.Basic.Deliver)
    received = _deliver_size(queue)
    while done < count:
        got = sock.recv_into(buffer)
        if not got:
            raise WireError("the broker closed the connection")
        received += got
        done = received // each
        if done - acked >= ack_every or done >= count:
            sock.sendall(_ACK.pack(1, channel, 13, 60, 80, done, 1, _FRAME_END))
            acked = done
    return received


def _received(data: bytes) -> bytes:
    if not data:
        raise WireError("the broker closed the connection")
    return data
