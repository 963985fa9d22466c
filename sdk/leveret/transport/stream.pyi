from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Protocol, Self, type_check_only

from typing_extensions import disjoint_base

from leveret.errors import ProtocolError
from leveret.monitoring.histogram import Histogram
from leveret.wire.buffers import SendBuffer
from leveret.wire.reader import FrameReader
from leveret.wire.runs import ContentRun, SettlementRun

__test__: dict[str, str]

# tests/unit/house/test_upcalls.py holds that the .pyx calls these names, and no others.

@type_check_only
class StreamSession(Protocol):
    """The session above a stream: `Connection`. An embedded broker's session has no `event_failed`, nor `channels`."""

    def events_received(self, events: list[Any]) -> None: ...
    def stream_failed(self, error: ProtocolError) -> None: ...
    def event_failed(self, error: Exception) -> None: ...

@type_check_only
class StreamChannel(Protocol):
    """A value of `Stream.channels`: `Channel`."""

    consumers: dict[str, DeliverySink]
    publisher: ConfirmSink | None

@type_check_only
class DeliverySink(Protocol):
    """A value of `StreamChannel.consumers`: `Consumer`."""

    def delivered(self, run: ContentRun) -> None: ...

@type_check_only
class ConfirmSink(Protocol):
    """`StreamChannel.publisher`: `CompiledPublisher`, the base of `Producer`."""

    def settled(self, run: SettlementRun) -> None: ...

@disjoint_base
class Stream:
    out: SendBuffer
    closed: bool
    channels: Mapping[int, Any]
    session: Any
    write_sizes: Histogram | None
    _transport: asyncio.Transport | None
    _loop: asyncio.AbstractEventLoop
    @property
    def reader(self) -> FrameReader: ...
    def __new__(cls, session: Any, reader: FrameReader, *args: Any, **kwargs: Any) -> Self: ...
    def buffer_updated(self, nbytes: int) -> None: ...
    def flush(self) -> None: ...
    def _schedule_flush(self) -> None: ...
    def _flush_turn(self) -> None: ...
    def _stop_timers(self) -> None: ...
