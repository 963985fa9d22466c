from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Protocol, final, type_check_only

from leveret.consuming.channel_deliveries import Acknowledger
from leveret.consuming.delivery_buffer import DeliveryBuffer
from leveret.consuming.states import WorkerCancellation, WorkerState
from leveret.wire.message import Message

__test__: dict[str, str]

# tests/unit/house/test_upcalls.py holds that the .pyx calls these names, and no others.

@type_check_only
class FailureSink(Protocol):
    """Carries out the error policy: `FailureActions`. A worker awaits the result, unless it is None."""

    def undecodable(self, message: Message, error: BaseException) -> Coroutine[Any, Any, None] | None: ...
    def redelivered(self, message: Message) -> Coroutine[Any, Any, None] | None: ...
    def refused(self, message: Message) -> Coroutine[Any, Any, None] | None: ...
    def nonsense(self, message: Message, result: object) -> Coroutine[Any, Any, None] | None: ...
    def abandoned(self, message: Message) -> None: ...

@type_check_only
class WorkerOwner(Protocol):
    """The tasks that the worker belongs to: `Workers`."""

    def ends(self, task: asyncio.Task[Any]) -> bool: ...
    def failed(self, message: Message, error: BaseException | None) -> Coroutine[Any, Any, None] | None: ...

@final
class Worker:
    @property
    def sequence(self) -> int: ...
    @property
    def message(self) -> Message | None: ...
    @property
    def state(self) -> WorkerState: ...
    @property
    def cancellation(self) -> WorkerCancellation: ...
    @property
    def is_handling(self) -> bool: ...
    def __new__(
        cls,
        buffer: DeliveryBuffer,
        acks: Acknowledger,
        failures: FailureSink,
        owner: WorkerOwner,
        handler: Callable[[Any, Message], Awaitable[object]],
        task: asyncio.Task[Any],
        results_settle: bool,
        results_count: bool,
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
