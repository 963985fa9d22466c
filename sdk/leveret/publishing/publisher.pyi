from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, Unpack, type_check_only

from typing_extensions import disjoint_base

from leveret.codecs.encoding import BodyEncoder
from leveret.errors import EncodeFailed
from leveret.plugins.interfaces import BreakerPolicy
from leveret.publishing.builder import MessagePublisher
from leveret.publishing.confirms import ConfirmWindow
from leveret.publishing.guard import PublishGuard
from leveret.publishing.options import PublishOptions
from leveret.publishing.packing import Packer
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.publishing import Publishing, Receipt, Ticket
from leveret.publishing.template import PublishTemplate, Template
from leveret.transport.frame_transport import FrameTransport
from leveret.transport.waiting import Waiter, Waiters
from leveret.wire.runs import SettlementRun

__test__: dict[str, str]

# tests/unit/house/test_upcalls.py holds that the .pyx calls these names, and no others.

@type_check_only
class PublisherUpcalls(Protocol):
    """The methods of `Producer` that `CompiledPublisher` calls."""

    def _publish(
        self,
        publishing: Publishing[Receipt],
        value: Any,
        routing_key: str | Template,
        options: PublishOptions,
        deadline: float | None = None,
    ) -> None: ...
    def _enqueue(
        self,
        publishing: Publishing[Ticket],
        value: Any,
        routing_key: str | Template,
        options: PublishOptions,
        deadline: float | None = None,
    ) -> None: ...
    def _publish_nowait(self, value: Any, routing_key: str | Template, options: PublishOptions) -> Ticket: ...
    def _try_again(self, publishing: Publishing[Receipt]) -> None: ...
    def _remember(self, ticket: Ticket) -> None: ...
    def _settle(self, run: SettlementRun) -> None: ...
    def _start_clock(self) -> None: ...

@type_check_only
class Encoder(Protocol):
    """`CompiledPublisher._encoder`, which has the rarer ways of a body and the errors: `BodyEncoder`."""

    def failed(self, error: BaseException, value: object) -> EncodeFailed: ...
    def not_bytes(self, body: object) -> EncodeFailed: ...
    def given(self, value: object, misfit: str | None) -> bytes | None: ...

@type_check_only
class Policies(Protocol):
    """`CompiledPublisher._guard`: `PublishGuard`."""

    def finished(self, ticket: Ticket) -> bool: ...

@type_check_only
class Breaker(Protocol):
    """`CompiledPublisher._breaker`: a plugin's."""

    @property
    def closed(self) -> bool: ...

@type_check_only
class Flushing(Protocol):
    """`CompiledPublisher._transport`: `FrameTransport`."""

    def flush(self) -> None: ...

@disjoint_base
class CompiledPublisher(MessagePublisher):
    _window: ConfirmWindow
    _batch: PublishBatch
    _encoder: BodyEncoder
    _encode: Callable[[Any], bytes]
    _loop: asyncio.AbstractEventLoop
    _timer: asyncio.TimerHandle | None
    _waiting: deque[tuple[int, int, float, Waiter]]
    _last_key: str | Template | None
    _last_template: PublishTemplate
    _packer: Packer
    _limit: int
    _max_buffered: int
    _max_bytes: int
    _max_span: int
    _ready: bool
    _alive: bool
    _confirms: bool
    _waiters: Waiters
    _watched: bool
    _guard: PublishGuard | None
    _breaker: BreakerPolicy | None
    _publish_timeout: float
    _flushing: list[tuple[int, asyncio.Future[None]]]
    def settled(self, run: SettlementRun) -> None: ...
    _transport: FrameTransport
    def _encoded(self, value: Any) -> bytes: ...
    def _complete(self, finished: list[Ticket]) -> None: ...
    def _put_values(
        self,
        template: PublishTemplate,
        values: list[Any],
        start: int,
        ticket: Ticket,
        index: int,
        max_bytes: int,
        kind: type,
    ) -> int: ...
    def publish(
        self, value: Any, routing_key: str | Template = "", **options: Unpack[PublishOptions]
    ) -> Publishing[Receipt]: ...
    def enqueue(
        self, value: Any, routing_key: str | Template = "", **options: Unpack[PublishOptions]
    ) -> Publishing[Ticket]: ...
    def publish_nowait(
        self, value: Any, routing_key: str | Template = "", **options: Unpack[PublishOptions]
    ) -> Ticket: ...
