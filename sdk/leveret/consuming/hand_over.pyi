from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from typing_extensions import disjoint_base

from leveret.consuming.states import ThreadWorkerState
from leveret.wire.message import Message

__test__: dict[str, str]

@disjoint_base
class HandOver:
    def __init__(
        self, handler: Callable[[Any, Message], object], submit: Callable[..., object], results_count: bool
    ) -> None: ...
    def run(self, worker: ThreadWorker, message: Message | None = None) -> None: ...

@final
class ThreadWorker:
    @property
    def sequence(self) -> int: ...
    @property
    def message(self) -> Message | None: ...
    @property
    def state(self) -> ThreadWorkerState: ...
    @property
    def is_handling(self) -> bool: ...
    def __new__(cls, threads: HandOver) -> ThreadWorker: ...
    def overdue(self) -> float: ...
    def time_out(self, sequence: int | None = None) -> None: ...
