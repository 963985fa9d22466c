from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Self

from typing_extensions import disjoint_base

from leveret.wire.buffers import SendBuffer
from leveret.wire.reader import FrameReader

__test__: dict[str, str]

@disjoint_base
class Stream:
    out: SendBuffer
    closed: bool
    channels: Mapping[int, Any]
    session: Any
    _transport: asyncio.Transport | None
    _loop: asyncio.AbstractEventLoop
    @property
    def reader(self) -> FrameReader: ...
    def __new__(cls, session: Any, reader: FrameReader, *args: Any, **kwargs: Any) -> Self: ...
    def buffer_updated(self, nbytes: int) -> None: ...
    def flush(self) -> None: ...
    def _schedule_flush(self) -> None: ...
    def _flush_turn(self) -> None: ...
