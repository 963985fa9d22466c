from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, final, type_check_only

__test__: dict[str, str]

# tests/unit/house/test_upcalls.py holds that the .pyx calls these names, and no others.

@type_check_only
class ByteCounter(Protocol):
    """Counts received bytes: `FrameReader`."""

    @property
    def received_bytes(self) -> int: ...

@final
class ReadCollector:
    def __new__(
        cls, loop: asyncio.AbstractEventLoop, collect: Callable[[int], object], reader: ByteCounter, delay: float
    ) -> ReadCollector: ...
    def stop(self) -> None: ...
