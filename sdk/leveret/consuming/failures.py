"""What becomes of messages that could not be handled: said by the error policy, counted and logged."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
from typing import TYPE_CHECKING, Any, Final

from leveret.consuming.error_policy import DeadLetter, Drop, Park, Requeue, Retry, Stop
from leveret.consuming.retry_queues import RetryQueues
from leveret.errors import BodyTooLarge, CircuitOpen, EncodeFailed, LeveretError, TableSyntaxError

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from leveret.connection.link import Link
    from leveret.consuming.error_policy import ErrorPolicy
    from leveret.monitoring.meters import ConsumerMeter
    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import ConsumerSettings
    from leveret.wire.message import Message

__all__ = ["Failures"]

# A user looks for what happens to a consumer's messages under the consumer's name.
logger = logging.getLogger("leveret.consuming")

#: The longest time in seconds that a worker stands still after its handler raised CircuitOpen.
_BREAKER_PAUSE: Final = 1.0
#: How many failures are logged in a second, those of handlers with their tracebacks.
_MOST_LOGGED: Final = 20

#: What settles a message for an action that needs nothing else; "drop" acknowledges it and is counted.
_VERBS: Final = {Requeue: "requeue", DeadLetter: "dead_letter", Drop: "drop"}


class Failures:
    """The messages of one consumer that could not be handled.

    Its methods settle the message, or return a coroutine that does.

    Args:
        meter: Counts them.
        queue: Where they came from.
        settings: The consumer's.
        policy: Says what becomes of them.
        connect: Where copies of messages are published.
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
        connect: Link,
        registry: PluginRegistry,
        stop: Callable[[BaseException], None],
    ) -> None:
        self._meter = meter
        self._queue = queue
        self._policy = policy
        self._connect = connect
        self._registry = registry
        self._stop = stop
        self._no_ack = settings.ack == "none"
        self._handoff = settings.ack == "handoff"
        self._retry_queues: RetryQueues | None = None
        # In the second that began then: how many were logged; and how many were not since the last that was.
        self._logged_since = float("-inf")
        self._logged = self._unlogged = 0
        # It is known at once whether they can be.
        if policy.uses_queues:
            self._open_queues()

    def _open_queues(self) -> RetryQueues:
        queues = self._retry_queues = RetryQueues(self._connect, self._queue, self._registry)
        return queues

    async def close(self) -> None:
        """Closes what copies are published with."""
        if self._retry_queues is not None:
            await self._retry_queues.close()

    def refused(self, message: Message) -> None:
        """The handler returned False."""
        self._unless_settled(message, "dead_letter")

    def nonsense(self, message: Message, result: object) -> Coroutine[Any, Any, None] | None:
        """The handler returned what means nothing."""
        if inspect.iscoroutine(result):
            result.close()
        return self.failed(message, TypeError(f"a handler returns None, True or False, not {type(result).__name__}"))

    def undecodable(self, message: Message, error: BaseException) -> Coroutine[Any, Any, None] | None:
        """Its body could not be decoded."""
        self._meter.undecodable += 1
        if self._meter.undecodable in (1, 10, 100) or self._meter.undecodable % 1000 == 0:
            logger.warning(
                "queue %r: %d bodies could not be decoded; the last: %s", self._queue, self._meter.undecodable, error
            )
        if self._policy.has_rule_for(error):
            return self._act(message, error)
        self._unless_settled(message, "dead_letter")
        return None

    def without_key(self, message: Message, error: BaseException) -> None:
        """Its key could not be found, so it cannot be handled in order."""
        self._meter.undecodable += 1
        self._log("ordered_by failed for %r, which was dead-lettered: %s", message, type(error).__name__)
        self._unless_settled(message, "dead_letter")

    def failed(self, message: Message, error: BaseException) -> Coroutine[Any, Any, None] | None:
        """The handler raised this."""
        if isinstance(error, CircuitOpen):
            return self._circuit_open(message, error)
        self._meter.handler_errors += 1
        self._log("the handler failed for %r: %s", message, type(error).__name__, error=error)
        return self._act(message, error)

    def _log(self, text: str, *args: object, error: BaseException | None = None) -> None:
        """Logs a failure, but not so many of them that the log is what takes the time."""
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

    def _act(self, message: Message, error: BaseException) -> Coroutine[Any, Any, None] | None:
        """Does what the error policy says."""
        if message.is_settled and not self._handoff and not self._no_ack:
            return None  # by the handler itself, or its channel is gone
        action = self._policy.decide(error, message)
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
            # A function decided so.
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
                self._meter.delayed += 1
                then = "ack"
        except (BodyTooLarge, EncodeFailed, TableSyntaxError) as failure:
            # It can never be published, and would go round and round.
            self._log("%r cannot be published again: %s", message, failure)
            then = "dead_letter"
        except LeveretError as failure:
            self._log("%r goes back to the queue: %s", message, failure)
            self._unless_settled(message, "release")
            await asyncio.sleep(_BREAKER_PAUSE)
            return
        self._settle_failed(message, then)

    def _circuit_open(self, message: Message, error: CircuitOpen) -> Coroutine[Any, Any, None]:
        # Not tried, so it is no failure. The pause keeps what comes back from going round and round.
        if self._no_ack or self._handoff:
            # It cannot come again.
            self._meter.handler_errors += 1
            self._log("the circuit was open for %r, which is lost", message)
        self._unless_settled(message, "release")
        return asyncio.sleep(min(error.retry_after, _BREAKER_PAUSE) if error.retry_after > 0 else _BREAKER_PAUSE)

    def _unless_settled(self, message: Message, verb: str) -> None:
        # One that came on a channel before this one is the broker's again.
        if not self._no_ack and not message.is_settled:
            getattr(message, verb)()
