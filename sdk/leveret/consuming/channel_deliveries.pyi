from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, final, type_check_only

from leveret.consuming.acks import AckWindow
from leveret.monitoring.histogram import Histogram
from leveret.transport.stream import Stream
from leveret.transport.waiting import Timed, Waiters
from leveret.wire.buffers import SendBuffer
from leveret.wire.message import Message
from leveret.wire.runs import ContentRun

__test__: dict[str, str]

# tests/unit/house/test_upcalls.py holds that the .pyx calls these names, and no others.

@type_check_only
class BodyDecoding(Protocol):
    """Decodes the bodies of one consumer: `BodyDecoder`."""

    def decode(self, message: Message) -> Any: ...
    def plain(self, message: Message) -> Callable[[bytes], Any] | None: ...

@type_check_only
class StaleCounter(Protocol):
    """Counts messages that were finished when their channel was gone, and has a histogram: `ConsumerMeter`."""

    stale: int
    settled_time: Histogram

@type_check_only
class DeliveryCredit(Protocol):
    """What the consumers of a channel asked for: `Credit`."""

    spare_bytes: int
    total: int | None
    changes: int

@final
class ChannelDeliveries:
    @property
    def acks(self) -> AckWindow: ...
    @property
    def out(self) -> SendBuffer: ...
    @property
    def channel(self) -> int: ...
    @property
    def queue(self) -> str: ...
    @property
    def alive(self) -> bool: ...
    @property
    def decode(self) -> Callable[[Message], Any]: ...
    def __new__(
        cls,
        queue: str,
        channel: int,
        out: SendBuffer,
        decoder: BodyDecoding,
        settle: Callable[[ChannelDeliveries, Message, str, Any], Awaitable[bool]],
        credit: DeliveryCredit | None = None,
    ) -> ChannelDeliveries: ...
    def end(self) -> None: ...
    def now(self) -> float: ...
    def wall_time(self, at: float) -> float: ...
    def is_open(self, message: Message) -> bool: ...
    def settle(self, message: Message, verb: str, detail: Any) -> Awaitable[bool]: ...
    def adopt_one(self, message: Message, received_at: float) -> Message: ...
    def adopt(self, run: ContentRun, received_at: float) -> int: ...
    def flush(self, *, stragglers: bool = False) -> None: ...

def reserve(message: Message) -> bool: ...
def restore(message: Message) -> bool: ...

@final
class Acknowledger(Timed):
    settled: object
    write_at: int
    @property
    def current(self) -> ChannelDeliveries | None: ...
    def __new__(cls, waiters: Waiters, meter: StaleCounter, delay: float, each: bool) -> Acknowledger: ...
    def begin(self, deliveries: ChannelDeliveries, stream: Stream) -> None: ...
    def write_in_time(self) -> int: ...
    def flush(self, *, stragglers: bool = False) -> None: ...
    def stop(self) -> None: ...
