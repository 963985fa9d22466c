from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from types import TracebackType
from typing import Any, Literal, Protocol, final

from leveret.consuming.channel_deliveries import Acknowledger
from leveret.consuming.delivery_buffer import DeliveryBuffer
from leveret.wire.message import Message

__test__: dict[str, str]

class _Failures(Protocol):
    """What a worker asks about messages that were not handled; it awaits what is returned, if anything."""

    def undecodable(self, message: Message, error: BaseException, /) -> Awaitable[None] | None: ...
    def refused(self, message: Message, /) -> None: ...
    def nonsense(self, message: Message, result: object, /) -> Awaitable[None] | None: ...

class _Owner(Protocol):
    """What a worker asks the consumer that it works for."""

    def ends(self, task: asyncio.Task[Any], /) -> bool: ...
    def failed(self, message: Message, error: BaseException | None, /) -> Awaitable[None] | None: ...

@final
class Worker:
    @property
    def sequence(self) -> int: ...
    @property
    def message(self) -> Message | None: ...
    @property
    def state(self) -> Literal["ready", "idle", "handling", "acting", "ended"]: ...
    @property
    def is_handling(self) -> bool: ...
    def __new__(
        cls,
        buffer: DeliveryBuffer,
        acks: Acknowledger,
        failures: _Failures,
        owner: _Owner,
        handler: Callable[[Any, Message], Awaitable[object]],
        task: asyncio.Task[Any],
        results_settle: bool,
    ) -> Worker: ...
    def time_out(self) -> None: ...
    def __await__(self) -> Generator[Any]: ...
    def __iter__(self) -> Generator[Any]: ...
    def __next__(self) -> Any: ...
    def send(self, value: None) -> Any: ...
    def throw(
        self,
        kind: BaseException | type[BaseException],
        value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> Any: ...
    def close(self) -> None: ...
