import asyncio
from typing import final

from typing_extensions import disjoint_base

__test__: dict[str, str]

@disjoint_base
class Timed: ...

@final
class SharedTimer:
    def __new__(cls, loop: asyncio.AbstractEventLoop, delay: float) -> SharedTimer: ...
    def stop(self) -> None: ...
    def _fire(self) -> None: ...
