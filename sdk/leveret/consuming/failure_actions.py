"""Carries out what the error policy decides for messages that were not handled, counts and logs it."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from leveret.consuming.error_policy import Action, DeadLetter, Drop, Park, Requeue, Retry, Stop
from leveret.consuming.retry_queues import RetryQueues
from leveret.errors import BodyTooLarge, CircuitOpen, EncodeFailed, LeveretError, TableSyntaxError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from leveret.connection.link import Link
    from leveret.consuming.error_policy import ErrorPolicy
    from leveret.monitoring.meters import ConsumerMeter
    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import ConsumerSettings
    from leveret.wire.message import Message

__all__ = ["FailureActions"]

# A user looks for what happens to a consumer's messages under the consumer's name.
logger = logging.getLogger("leveret.consuming")

#: A worker waits at most this many seconds after its handler raised CircuitOpen.
_BREAKER_PAUSE: Final = 1.0
#: At most this many failures are logged in a second, those of handlers with their tracebacks.
_MOST_LOGGED: Final = 20

#: What settles a message for an action that needs nothing else; "drop" acknowledges it and is counted.
_VERBS: Final = {Requeue: "requeue", DeadLetter: "dead_letter", Drop: "drop"}

_FATES: Final[dict[type[Action], str]] = {
    Requeue: "was requeued",
    Retry: "is retried later",
    DeadLetter: "was dead-lettered",
    Drop: "was dropped",
    Stop: "was given back, and the consumer stops",
}


class FailureActions:
    """Settles the messages of one consumer that were not handled, as the error policy decides.

    Its methods settle the message, or return a coroutine that does.

    Args:
        meter: Counts them.
        queue: The queue that they came from.
        settings: The consumer's.
        policy: Chooses the action for each.
        link: The connection that publishes copies of messages.
        registry: The client's.
        stop: Ends the consumer with an error.

    Raises:
        ConfigurationError: The policy needs copies, and the queues for them could have no names.
    """

    def __init__(
        self,
        meter: ConsumerMeter,
        queue: str,
        settings: ConsumerSettings,
        policy: ErrorPolicy,
        link: Link,
        registry: PluginRegistry,
        stop: Callable[[BaseException], None],
    ) -> None:
        self._meter = meter
        self._queue = queue
        self._policy = policy
        self._link = link
        self._registry = registry
        self._stop = stop
        self._no_ack = settings.ack == "none"
        self._handoff = settings.ack == "handoff"
        self._retry_queues: RetryQueues | None = None
        # How many failures were logged in the second that began then, and how many were not since the last that was.
        self._logged_since = float("-inf")
        self._logged = self._unlogged = 0
        # An impossible name is an error now, not at the first failure.
        if policy.uses_queues:
            self._open_queues()

    def _open_queues(self) -> RetryQueues:
        queues = self._retry_queues = RetryQueues(self._link, self._queue, self._registry)
        return queues

    async def close(self) -> None:
        """Closes the producer that publishes copies."""
        if self._retry_queues is not None:
            await self._retry_queues.close()

    def refused(self, message: Message) -> None:
        """Dead-letters a message whose handler returned False."""
        self._unless_settled(message, "dead_letter")

    def nonsense(self, message: Message, result: object) -> Coroutine[Any, Any, None] | None:
        """Treats a message as failed, because its handler returned neither None, True nor False."""
        if inspect.iscoroutine(result):
            result.close()  # it will not be awaited
        return self.failed(message, TypeError(f"a handler returns None, True or False, not {type(result).__name__}"))

    def undecodable(self, message: Message, error: BaseException) -> Coroutine[Any, Any, None] | None:
        """Does what a rule of the policy says about a body that cannot be decoded; dead-letters it without a rule."""
        action = self._policy.decide(error, message) if self._policy.has_rule_for(error) else DeadLetter()
        self._meter.undecodable += 1
        count = self._meter.undecodable
        if count in (1, 10, 100) or count % 1000 == 0:
            logger.warning(
                "queue %r: %s could not be decoded; %s %s (message id %s): %s",
                self._queue,
                "1 message" if count == 1 else f"{count} messages",
                "it" if count == 1 else "the last one",
                self._fate(action),
                _id_of(message),
                error,
            )
        return self._act(message, action, error)

    def _fate(self, action: Action) -> str:
        """Returns what the log says about the message of an action."""
        if (self._no_ack or self._handoff) and not isinstance(action, Retry | Park | Drop):
            return "is lost, because the broker does not have it any more"
        if isinstance(action, Park):
            return f"goes to {self._queue + '.parked'!r}"
        return _FATES[type(action)]

    def without_key(self, message: Message, error: BaseException) -> None:
        """Dead-letters a message that has no key, so that it cannot be handled in order."""
        self._meter.undecodable += 1
        self._log("ordered_by raised %s for %r, which %s", type(error).__name__, message, self._fate(DeadLetter()))
        self._unless_settled(message, "dead_letter")

    def failed(self, message: Message, error: BaseException) -> Coroutine[Any, Any, None] | None:
        """Does what the policy says about a message whose handler raised this."""
        if isinstance(error, CircuitOpen):
            return self._circuit_open(message, error)
        self._meter.handler_errors += 1
        self._log("the handler failed for %r: %s", message, type(error).__name__, error=error)
        if self._is_done(message):
            return None  # the policy is not asked
        return self._act(message, self._policy.decide(error, message), error)

    def _log(self, text: str, *args: object, error: BaseException | None = None) -> None:
        """Logs a failure, and only counts those beyond 20 in a second: writing the log would take most of the time."""
        now = time.monotonic()
        if now - self._logged_since >= 1.0:
            self._logged_since, self._logged = now, 0
        if self._logged == _MOST_LOGGED:
            self._unlogged += 1
            return
        self._logged += 1
        if self._unlogged:
            logger.warning("queue %r: %d failures were not logged one by one", self._queue, self._unlogged)
            self._unlogged = 0
        logger.warning(f"queue %r: {text}", self._queue, *args, exc_info=error)

    def _is_done(self, message: Message) -> bool:
        """Returns whether the handler has settled the message itself, or its channel is gone."""
        return message.is_settled and not self._handoff and not self._no_ack

    def _act(self, message: Message, action: Action, error: BaseException) -> Coroutine[Any, Any, None] | None:
        """Carries out an action."""
        if self._is_done(message):
            return None
        if isinstance(action, Retry | Park):
            return self._copy(message, action, error)
        if isinstance(action, Stop):
            self._unless_settled(message, "release")
            self._stop(error)
        else:
            self._settle_failed(message, _VERBS[type(action)])
        return None

    def _settle_failed(self, message: Message, verb: str) -> None:
        if verb == "drop":
            self._meter.dropped += 1
            verb = "ack"
        self._unless_settled(message, verb)

    async def _copy(self, message: Message, action: Retry | Park, error: BaseException) -> None:
        """Publishes a copy that waits elsewhere, and then acknowledges the message."""
        queues = self._retry_queues
        if queues is None:
            # The policy is a function: it was not known that it needs them.
            queues = self._open_queues()
        then: str = "park"
        try:
            if isinstance(action, Retry):
                then = await queues.retry(message, action, error)
            if then == "park":
                await queues.park(message, error)
                self._meter.parked += 1
                then = "ack"
            elif then == "retried":
                self._meter.retried += 1
                then = "ack"
        except (BodyTooLarge, EncodeFailed, TableSyntaxError) as failure:
            # No attempt can succeed, so giving it back would repeat this for ever.
            self._log("%r cannot be published again and %s: %s", message, self._fate(DeadLetter()), failure)
            then = "dead_letter"
        except LeveretError as failure:
            self._log("the copy of %r was not published, and it %s: %s", message, self._fate(Requeue()), failure)
            self._unless_settled(message, "release")
            await asyncio.sleep(_BREAKER_PAUSE)
            return
        self._settle_failed(message, then)

    def _circuit_open(self, message: Message, error: CircuitOpen) -> Coroutine[Any, Any, None]:
        # The message was not tried, so it has not failed. The pause keeps it from coming back at once, again and again.
        if self._no_ack or self._handoff:
            # The broker does not have it any more.
            self._meter.handler_errors += 1
            self._log("the circuit breaker was open for %r, which is lost", message)
        self._unless_settled(message, "release")
        return asyncio.sleep(min(error.retry_after, _BREAKER_PAUSE) if error.retry_after > 0 else _BREAKER_PAUSE)

    def _unless_settled(self, message: Message, verb: str) -> None:
        # A message of a lost channel is settled: the broker has it again.
        if not self._no_ack and not message.is_settled:
            getattr(message, verb)()


def _id_of(message: Message) -> str:
    """Returns the message id for a log."""
    try:
        return printable(repr(message.message_id), 100)
    except TableSyntaxError:
        return "unreadable"
