"""The states of a consumer and of its workers, which may follow which (see docs/states.md), and its health."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from leveret.errors import LeveretError, again

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = [
    "CANCELLATION_TRANSITIONS",
    "CONSUMER_TRANSITIONS",
    "THREAD_WORKER_TRANSITIONS",
    "WORKER_TRANSITIONS",
    "ConsumerHealth",
    "ConsumerLife",
    "ConsumerState",
    "ThreadWorkerState",
    "WorkerCancellation",
    "WorkerState",
]


class ConsumerState(enum.Enum):
    """The state of a consumer: which deliveries are wanted. Whether they come is `ConsumerHealth.live`."""

    NEW = "new"
    """No deliveries were asked for. `get` takes single messages."""
    CONSUMING = "consuming"
    """Deliveries are wanted. After a loss the consumer subscribes again, if it may."""
    PAUSED = "paused"
    """`pause`: no deliveries until `resume`."""
    DRAINING = "draining"
    """`drain`: no more deliveries; handlers that are at work may finish."""
    ENDING = "ending"
    """`cancel`: no more deliveries; what was delivered is handled, then `run` returns."""
    LOST = "lost"
    """No more deliveries can come; what was delivered is handled, then `run` raises why."""
    STOPPING = "stopping"
    """`stop`: handlers finish the message that they are at, then `run` returns."""
    FAILED = "failed"
    """The error policy said `Stop`: as STOPPING, but `run` raises the error."""
    CLOSED = "closed"
    """`close`: the channel is closed."""


_NEW, _CONSUMING, _PAUSED, _DRAINING, _ENDING, _LOST, _STOPPING, _FAILED, _CLOSED = ConsumerState

#: The states that may follow each. What asks for another one comes too late and changes nothing.
CONSUMER_TRANSITIONS: Final[Mapping[ConsumerState, frozenset[ConsumerState]]] = {
    _NEW: frozenset({_CONSUMING, _DRAINING, _ENDING, _LOST, _STOPPING, _FAILED, _CLOSED}),
    # NEW again: basic.consume could not be encoded, so nothing was sent.
    _CONSUMING: frozenset({_NEW, _PAUSED, _DRAINING, _ENDING, _LOST, _STOPPING, _FAILED, _CLOSED}),
    _PAUSED: frozenset({_CONSUMING, _DRAINING, _ENDING, _LOST, _STOPPING, _FAILED, _CLOSED}),
    _DRAINING: frozenset({_ENDING, _LOST, _STOPPING, _FAILED, _CLOSED}),
    # What was delivered cannot be settled any more when the channel is lost.
    _ENDING: frozenset({_LOST, _STOPPING, _FAILED, _CLOSED}),
    _LOST: frozenset({_STOPPING, _FAILED, _CLOSED}),
    # The handler that was at work failed, and its error is to be raised.
    _STOPPING: frozenset({_FAILED, _CLOSED}),
    # `close` does its work and leaves it at that: `run` still has to raise the error.
    _FAILED: frozenset(),
    _CLOSED: frozenset(),
}
_OVER: Final = frozenset({_ENDING, _LOST, _STOPPING, _FAILED, _CLOSED})
_STOPPED: Final = frozenset({_STOPPING, _FAILED, _CLOSED})
_WANTING: Final = frozenset({_CONSUMING, _PAUSED, _DRAINING})


class WorkerState(enum.Enum):
    """The state of a worker; `leveret.consuming.worker` has the same numbers."""

    READY = 0
    """It takes the next message when it is resumed."""
    IDLE = 1
    """It waits for a message."""
    HANDLING = 2
    """It runs the handler."""
    ACTING = 3
    """It carries out what the error policy decided."""
    ENDED = 4
    """It is done."""


#: The states of a worker that may follow each.
WORKER_TRANSITIONS: Final[Mapping[WorkerState, frozenset[WorkerState]]] = {
    WorkerState.READY: frozenset({WorkerState.HANDLING, WorkerState.ACTING, WorkerState.IDLE, WorkerState.ENDED}),
    WorkerState.IDLE: frozenset({WorkerState.READY, WorkerState.ENDED}),
    WorkerState.HANDLING: frozenset({WorkerState.READY, WorkerState.ACTING, WorkerState.ENDED}),
    WorkerState.ACTING: frozenset({WorkerState.READY, WorkerState.ENDED}),
    WorkerState.ENDED: frozenset(),
}


class ThreadWorkerState(enum.Enum):
    """The state of a worker whose handler runs in a thread; `leveret.consuming.hand_over` has the same numbers."""

    FREE = 0
    """It has no thread, and waits for a message."""
    WOKEN = 1
    """It has a thread, which is about to look for a message."""
    RESTING = 2
    """Its thread waits for a message."""
    HANDLING = 3
    """Its thread runs the handler."""
    REPORTING = 4
    """The event loop takes care of its message. It has no thread."""
    LATE = 5
    """The same, while the handler is still at work in its thread."""
    ENDED = 6
    """It is done. A handler that is at work is of no consequence any more."""


#: The states of a worker with a thread that may follow each.
THREAD_WORKER_TRANSITIONS: Final[Mapping[ThreadWorkerState, frozenset[ThreadWorkerState]]] = {
    ThreadWorkerState.FREE: frozenset({ThreadWorkerState.WOKEN, ThreadWorkerState.ENDED}),
    ThreadWorkerState.WOKEN: frozenset(
        {
            ThreadWorkerState.HANDLING,
            ThreadWorkerState.REPORTING,
            ThreadWorkerState.RESTING,
            ThreadWorkerState.FREE,
            ThreadWorkerState.ENDED,
        }
    ),
    ThreadWorkerState.RESTING: frozenset({ThreadWorkerState.WOKEN, ThreadWorkerState.FREE, ThreadWorkerState.ENDED}),
    ThreadWorkerState.HANDLING: frozenset(
        {ThreadWorkerState.WOKEN, ThreadWorkerState.REPORTING, ThreadWorkerState.LATE, ThreadWorkerState.ENDED}
    ),
    ThreadWorkerState.REPORTING: frozenset(
        {ThreadWorkerState.FREE, ThreadWorkerState.HANDLING, ThreadWorkerState.ENDED}
    ),
    ThreadWorkerState.LATE: frozenset({ThreadWorkerState.REPORTING, ThreadWorkerState.ENDED}),
    ThreadWorkerState.ENDED: frozenset(),
}


class WorkerCancellation(enum.Enum):
    """Why a worker's task was cancelled; `leveret.consuming.worker` has the same numbers."""

    NONE = 0
    """It was not."""
    TIMING_OUT = 1
    """Its handler has taken too long; the cancellation is on its way."""
    LATE = 2
    """Its handler has got the cancellation, and has not ended."""
    CANCELLED = 3
    """It is not known yet whether the worker is to end."""


#: The cancellations of a worker that may follow each.
CANCELLATION_TRANSITIONS: Final[Mapping[WorkerCancellation, frozenset[WorkerCancellation]]] = {
    WorkerCancellation.NONE: frozenset({WorkerCancellation.TIMING_OUT, WorkerCancellation.CANCELLED}),
    WorkerCancellation.TIMING_OUT: frozenset({WorkerCancellation.LATE}),
    WorkerCancellation.LATE: frozenset({WorkerCancellation.CANCELLED}),
    WorkerCancellation.CANCELLED: frozenset({WorkerCancellation.TIMING_OUT, WorkerCancellation.NONE}),
}


class ConsumerLife:
    """The state of one consumer, and the error that ended it.

    Args:
        changed: Called after each change.

    Attributes:
        state: The state.
        error: Why the consumer cannot be used any more, or None.
    """

    __slots__ = ("_changed", "error", "state")

    def __init__(self, changed: Callable[[], None]) -> None:
        self.state = ConsumerState.NEW
        self.error: BaseException | None = None
        self._changed = changed

    def become(self, state: ConsumerState) -> bool:
        """Changes the state.

        Returns:
            False when `CONSUMER_TRANSITIONS` does not have this change; then nothing has changed.
        """
        if state not in CONSUMER_TRANSITIONS[self.state]:
            return False
        self.state = state
        self._changed()
        return True

    def fail(self, error: BaseException, state: ConsumerState) -> None:
        """Keeps the first error, and becomes LOST or FAILED."""
        if self.error is None:
            self.error = error
        self.become(state)

    def check(self) -> None:
        """Raises the error that ended the consumer, if one did."""
        if self.error is not None:
            raise again(self.error) if isinstance(self.error, LeveretError) else self.error

    @property
    def is_over(self) -> bool:
        """True when no more deliveries will come."""
        return self.state in _OVER

    @property
    def is_stopped(self) -> bool:
        """True when no more messages will be handled."""
        return self.state in _STOPPED

    @property
    def may_go_on(self) -> bool:
        """True when the consumer may go on with another channel after it has lost its own."""
        return self.state in _WANTING


@dataclass(frozen=True, slots=True)
class ConsumerHealth:
    """What `Consumer.health` returns. It is true when nothing is wrong.

    Attributes:
        expected: Deliveries should come: it has subscribed, and was neither paused, drained, cancelled nor stopped.
            True while it takes none because it holds as many failed messages as it may; False while it takes none
            because it is full, with `ack` "none".
        live: The broker has it among the queue's consumers, as far as this side knows: it has answered basic.consume.
        delivery_age: Seconds since the last delivery came, or None when none has.
        working: Messages that handlers are at work on.
        waiting: Messages that wait here for a handler.
    """

    expected: bool
    live: bool
    delivery_age: float | None
    working: int
    waiting: int

    def __bool__(self) -> bool:
        return self.live or not self.expected
