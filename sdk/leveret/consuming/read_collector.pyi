from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, final

__test__: dict[str, str]

class _Reader(Protocol):
    @property
    def received_bytes(self) -> int: ...

@final
class ReadCollector:
    def __new__(
        cls, loop: asyncio.AbstractEventLoop, collect: Callable[[int], object], reader: _Reader, delay: float
    ) -> ReadCollector: ...
    def stop(self) -> None: ...
