"""A consumer without a broker: deliveries come from the test, which also runs the workers by hand."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

import leveret
from leveret.consuming.consumer import Consumer
from leveret.consuming.states import ConsumerState
from leveret.consuming.worker import Worker
from leveret.errors import ConnectFailed
from leveret.plugins import PluginRegistry
from leveret.transport.stream import Stream
from leveret.wire.buffers import SendBuffer
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from leveret.wire.message import Message


class Transport(Stream):
    """Where a consumer pauses reading, and flushes."""

    def __new__(cls, loop: asyncio.AbstractEventLoop) -> Self:
        return super().__new__(cls, None, FrameReader())

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.out = SendBuffer(lambda: None, lambda: None)
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def collect(self, least_bytes: int) -> None: ...

    def flush(self) -> None: ...


class Negotiated:
    """What the broker said of itself."""

    server_properties: Mapping[str, object] = {}


class Connection:
    """What a consumer asks of its connection when deliveries come."""

    negotiated = Negotiated()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.transport = Transport(loop)

    def check_loop(self) -> None: ...


class Channel:
    """What a consumer asks of its channel when deliveries come."""

    number = 1
    is_open = True
    credit = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.connection = Connection(loop)


class Task:
    """What a worker needs of its task."""

    def cancelling(self) -> int:
        return 0


TASK: Any = Task()


class Unreachable:
    """A link to a broker that is not there."""

    connection = None

    async def __call__(self) -> None:
        await asyncio.sleep(0)
        raise ConnectFailed("there is no broker")

    recovered = __call__


def made(**options: Any) -> Consumer[Any]:
    """A consumer whose deliveries come from the test. Without a broker it copies no message that failed."""
    ordered_by = options.pop("ordered_by", None)
    on_error = options.pop("on_error", leveret.Requeue())
    consumer: Consumer[Any] = Consumer(
        Unreachable(),  # type: ignore[arg-type]
        "orders",
        bytes,
        leveret.ConsumerSettings(read_delay=0, **options),
        PluginRegistry.load(),
        ordered_by=ordered_by,
        on_error=on_error,
        refused=leveret.DeadLetter(),
    )
    begin(consumer)
    return consumer


def begin(consumer: Consumer[Any], transport: Transport | None = None) -> Transport:
    """Gives the consumer a new channel, on which deliveries come, of a new connection or of one with this transport."""
    channel = Channel(consumer._loop)
    if transport is not None:
        channel.connection.transport = transport
    consumer._subscription.channel = channel  # type: ignore[assignment]
    consumer._subscription.tags[:] = ["tag"]
    consumer._channel_opened(channel)  # type: ignore[arg-type]
    consumer._life.become(ConsumerState.CONSUMING)
    return channel.connection.transport


def worker_of(
    consumer: Consumer[Any], handler: Callable[[Any, Message], Awaitable[object]], task: Any = None
) -> Worker:
    """A worker of the consumer, for the test to drive."""
    return Worker(
        consumer,
        consumer._acks,
        consumer._failures,
        consumer._workers,
        handler,
        TASK if task is None else task,
        consumer.settings.ack in ("coalesced", "each"),
        consumer.settings.ack != "manual",
    )
