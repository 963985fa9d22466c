from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable
from typing import Protocol, type_check_only

from typing_extensions import disjoint_base

from leveret.consuming.channel_deliveries import Acknowledger
from leveret.consuming.read_collector import ReadCollector
from leveret.monitoring.histogram import Histogram
from leveret.monitoring.meters import ConsumerMeter
from leveret.transport.waiting import Waiter, Waiters
from leveret.wire.message import Message
from leveret.wire.runs import ContentRun

__test__: dict[str, str]

# tests/unit/house/test_upcalls.py holds that the .pyx calls these names, and no others.

@type_check_only
class ConsumerUpcalls(Protocol):
    """Methods of the subclass, `Consumer`. With ordinary settings none of them is called."""

    def _delivered(self, run: ContentRun) -> None:
        """A read brought these; called when `_watched`."""

    def _taken(self) -> None:
        """A message was taken; called while `_pressed`."""

@type_check_only
class KeyFailures(Protocol):
    """Settles messages that have no key: `FailureActions`."""

    def without_key(self, message: Message, error: BaseException) -> None: ...

@type_check_only
class DeliveryCounter(Protocol):
    """Counts deliveries and has the histograms of their times: `ConsumerMeter`."""

    delivered: int
    waiting_time: Histogram
    handler_time: Histogram
    settled_time: Histogram
    transit_time: Histogram

@type_check_only
class HandledAhead(Protocol):
    """Takes messages for threads, ahead of the handlers: `HandlerThreads`."""

    def fill(self) -> None: ...
    def wake(self) -> None: ...
    def end(self, stopping: bool) -> None: ...
    def take_back(self) -> list[Message]: ...
    def counts(self) -> tuple[int, int]: ...
    def waiting(self) -> int: ...
    def idle_seconds(self, now: float) -> float: ...

@disjoint_base
class DeliveryBuffer:
    meter: ConsumerMeter
    _collector: ReadCollector | None
    _prefetch: int
    _pressed: bool
    _watched: bool
    def __init__(
        self,
        acks: Acknowledger,
        failures: KeyFailures,
        meter: ConsumerMeter,
        loop: asyncio.AbstractEventLoop,
        waiters: Waiters,
        ordered_by: Callable[[Message], Hashable] | None,
        no_ack: bool,
        watched: bool,
        measured: bool,
    ) -> None: ...
    def delivered(self, run: ContentRun) -> None: ...
    @property
    def _delivered_at(self) -> float | None: ...
    @property
    def _over(self) -> bool: ...
    @property
    def _stopping(self) -> bool: ...
    @property
    def _idle_count(self) -> int: ...
    @property
    def _running(self) -> int: ...
    @property
    def _waiting(self) -> int: ...
    @property
    def _buffered(self) -> int: ...
    @property
    def _unstarted(self) -> int: ...
    def report_slow(self, seconds: float | None) -> None: ...
    def _pop(self) -> Message | None: ...
    def _put_back(self, messages: list[Message]) -> None: ...
    def _kept(self, messages: list[Message]) -> list[Message]: ...
    def _take_unstarted(self) -> list[Message]: ...
    def _wait(self) -> Waiter: ...
    def _give_up_waiting(self, waiter: Waiter) -> None: ...
    def _idle_begins(self) -> None: ...
    def _idle_ends(self) -> None: ...
    def _idle_seconds(self, now: float) -> float: ...
    def _wake_more(self) -> None: ...
    def _wake_all(self) -> None: ...
    def _note_end(self, *, over: bool, stopping: bool) -> None: ...
