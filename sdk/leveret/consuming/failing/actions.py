"""Carries out what the error policy decides for messages that were not handled, counts and logs it."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, Final

from leveret.consuming.channel_deliveries import reserve, restore
from leveret.consuming.failing.departures import Departures, id_of
from leveret.consuming.failing.error_policy import (
    DeadLetter,
    Drop,
    Park,
    Refused,
    Requeue,
    Retry,
    Stop,
    attempts_of,
    error_text,
)
from leveret.consuming.failing.held_messages import hold_delay
from leveret.consuming.failing.log import FailureLog
from leveret.consuming.failing.means import Means, default_delivery_limit, delivery_count, fitting_action, means_for
from leveret.consuming.failing.retry_queues import RetryQueues
from leveret.errors import (
    AccessRefused,
    BodyTooLarge,
    CircuitOpen,
    EncodeFailed,
    LeveretError,
    TableSyntaxError,
    printable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from leveret.connection.connection import Connection
    from leveret.connection.link import Link
    from leveret.consuming.failing.error_policy import Action, ErrorPolicy
    from leveret.consuming.failing.held_messages import HeldMessages
    from leveret.consuming.streams import StreamPosition
    from leveret.monitoring.meters import ConsumerMeter
    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import ConsumerSettings
    from leveret.topology.declared import Declared
    from leveret.wire.message import Message

__all__ = ["FailureActions"]

# A user looks for what happens to a consumer's messages under the consumer's name.
logger = logging.getLogger("leveret.consuming")

#: A message whose handler raised CircuitOpen is held for at most so many seconds: others may close the breaker sooner
#: than the error says.
_BREAKER_HOLD: Final = 1.0
#: Closing a consumer waits so many seconds for copies that are being published.
_LAST_COPIES: Final = 2.0

#: The delays of messages that are held because they cannot be parked.
_DELAYS: Final = Retry().delays
_AFTER_RETRIES: Final[dict[str, Action]] = {"park": Park(), "dead_letter": DeadLetter(), "drop": Drop()}


class FailureActions:
    """Settles the messages of one consumer that were not handled, as the error policy decides.

    Its methods settle the message, or return a coroutine that does.

    Args:
        meter: Counts them.
        queue: The queue that they came from.
        settings: The consumer's.
        policy: Chooses the action for each.
        refused: What becomes of a message that a handler refuses; None: dead-lettered where the client has declared the
            queue with a dead-letter exchange, and parked otherwise.
        link: The connection that publishes copies of messages.
        registry: The client's.
        declared: What the client has declared.
        position: Says whether the queue is a stream, and takes back what a stream does not.
        held: Holds messages that no copy could be made of.
        may_hold: Returns whether messages may be held: the consumer goes on.
        stop: Ends the consumer with an error.

    Attributes:
        handler_name: The handler's name, for the log.
    """

    def __init__(
        self,
        meter: ConsumerMeter,
        queue: str,
        settings: ConsumerSettings,
        policy: ErrorPolicy,
        refused: DeadLetter | Park | Drop | None,
        link: Link,
        registry: PluginRegistry,
        declared: Declared,
        position: StreamPosition,
        *,
        held: HeldMessages,
        may_hold: Callable[[], bool],
        stop: Callable[[BaseException], None],
    ) -> None:
        self._meter = meter
        self._queue = queue
        self._policy = policy
        self._refused = refused
        self._link = link
        self._registry = registry
        self._declared = declared
        self._position = position
        self._held = held
        self._may_hold = may_hold
        self._stop = stop
        # The broker does not have the messages any more.
        self._is_last = settings.ack in ("none", "handoff")
        self._no_ack = settings.ack == "none"
        self._log = FailureLog(queue)
        self.handler_name = ""
        self._departures = Departures(queue, meter, asyncio.get_running_loop())
        self._retry_queues: dict[Means, RetryQueues] = {}
        # Messages whose copy is being published, and the tasks that do it for `retry` and `park` of a message.
        self._moving: set[Message] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._default_limit: int | None = None
        # What was logged once.
        self._is_right_logged = False
        self._is_limit_logged = False
        self._is_parking_prepared = False

    def connected(self, connection: Connection) -> None:
        """Notes the connection that brings the messages."""
        self._default_limit = default_delivery_limit(connection.negotiated.server_properties)

    async def finish(self) -> None:
        """Waits for the copies that `retry` and `park` of messages began, for at most 2 s."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=_LAST_COPIES)

    async def close(self) -> None:
        """Ends what is under way, and closes the producer that publishes copies."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        try:
            if tasks:
                await asyncio.wait(tasks)
            for queues in self._retry_queues.values():
                await queues.close()
        finally:
            self._departures.flush()

    # ------------------------------------------------------------------ what a worker reports

    def refused(self, message: Message) -> Coroutine[Any, Any, None] | None:
        """Does what `refused` says about a message whose handler returned False."""
        return self._act(message, Refused(), "refused by the handler")

    def nonsense(self, message: Message, result: object) -> Coroutine[Any, Any, None] | None:
        """Treats a message as failed, because its handler returned neither None, True nor False."""
        if inspect.iscoroutine(result):
            result.close()  # it will not be awaited
        error = TypeError(f"a handler returns None, True or False, not {type(result).__name__}")
        self._meter.handler_errors += 1
        self._log.program_error("%s, for %r", error, message)
        return None if self._is_done(message) else self._act(message, self._policy.decide(error, message), error)

    def undecodable(self, message: Message, error: BaseException) -> Coroutine[Any, Any, None] | None:
        """Does what a rule of the policy says about a body that cannot be decoded; parks it without a rule."""
        if self._count_undecodable(message):
            count = self._meter.undecodable
            if count in (1, 10, 100) or count % 1000 == 0:
                logger.warning(
                    "queue %r: %s could not be decoded, the last one with message id %s: %s",
                    self._queue,
                    "1 message" if count == 1 else f"{count} messages",
                    id_of(message),
                    error,
                )
        action = self._policy.decide(error, message) if self._policy.has_rule_for(error) else Park()
        return self._act(message, action, error)

    def without_key(self, message: Message, error: BaseException) -> None:
        """Parks a message that has no key, so that it cannot be handled in order."""
        self._count_undecodable(message)
        self._log.failure("ordered_by raised %s for %r", type(error).__name__, message)
        action = self._act(message, Park(), error)
        if action is not None:
            self._begin(action)

    def failed(self, message: Message, error: BaseException) -> Coroutine[Any, Any, None] | None:
        """Does what the policy says about a message whose handler raised this."""
        if isinstance(error, CircuitOpen):
            # The message was not tried, so it has not failed.
            if not self._is_done(message):
                delay = min(error.retry_after, _BREAKER_HOLD) if error.retry_after > 0 else _BREAKER_HOLD
                self._hold_or_return(message, delay, "the circuit breaker was open")
            return None
        self._meter.handler_errors += 1
        self._log.failure("the handler failed for %r: %s", message, type(error).__name__, error=error)
        if self._is_done(message):
            return None  # the policy is not asked
        return self._act(message, self._policy.decide(error, message), error)

    def nears_limit(self, message: Message) -> bool:
        """Returns whether `redelivered` has anything to do for a message."""
        limit = None if self._is_last else self._delivery_limit()
        return limit is not None and 2 * delivery_count(message) >= limit

    def redelivered(self, message: Message) -> Coroutine[Any, Any, None] | None:
        """Parks a message that the broker would drop if it came back once more: before its handler is called."""
        if not self.nears_limit(message):
            return None
        limit, count = self._delivery_limit(), delivery_count(message)
        assert limit is not None
        refusal = self._queues_for(Means.QUEUES).refused
        if refusal is not None:
            self._log_limit(count, limit, refusal)
        elif count >= limit - 1:
            return self._act(message, Park(), f"delivered {count + 1} times; the limit of its queue is {limit}")
        elif not self._is_parking_prepared:
            # Whether it can be parked in time is known early enough for a person to do something.
            self._is_parking_prepared = True
            self._begin(self._prepare_parking(count, limit))
        return None

    def abandoned(self, message: Message) -> None:
        """Notes that a handler was broken off because its consumer ends."""
        if self._is_last and not self._is_done(message):
            self._departures.dropped(message, "its handler was broken off, and the broker does not have it any more")

    def slow(self, message: Message, seconds: float) -> None:
        """Reports a handler that took longer than `slow_handler`."""
        self._log.failure("the handler %s took %.3g s for message %s", self.handler_name, seconds, id_of(message))

    def still_running(self, message: Message, seconds: float) -> None:
        """Reports a handler that takes longer than `slow_handler` and has not ended."""
        self._log.failure(
            "the handler %s has been at work for %.3g s on message %s", self.handler_name, seconds, id_of(message)
        )

    # ------------------------------------------------------------------ what a user asks for

    def claim(self, message: Message) -> bool:
        """Keeps a message from being settled by others; false when it is settled, or moved or held already."""
        if message in self._held if self._is_last else not reserve(message):
            return False
        if message in self._moving:
            return False
        self._moving.add(message)
        return True

    def retry(self, message: Message, delay: float) -> asyncio.Task[None] | None:
        """Has a claimed message handled again after so many seconds; returns the task that does it, if one has to."""
        means = self._means_for(message)
        if means is Means.HERE:
            message.failed_here += 1
            self._hold_or_return(message, delay, "retried by the handler")
            self._meter.retried += 1
            return None
        action = fitting_action(Retry((delay,)), means)
        assert isinstance(action, Retry | Park)
        return self._begin(self._move(message, action, 0, "retried by the handler"))

    def park(self, message: Message, reason: str | None) -> asyncio.Task[None]:
        """Parks a claimed message; returns the task that does it."""
        return self._begin(self._move(message, Park(), 0, reason or "parked by the handler"))

    def refuse(self, message: Message) -> bool:
        """Does what `refused` does, in a task where a copy is to be published; false when the message is settled."""
        if self._is_done(message):
            return False
        action = self.refused(message)
        if action is not None:
            self._begin(action)
        return True

    def note_rejected(self, message: Message, reason: str | None) -> None:
        """Notes that basic.reject was written for a message."""
        if self._declared.has_dead_letter_exchange(self._queue):
            self._meter.dead_lettered += 1
        else:
            self._departures.rejected(message, reason or "message.dead_letter()")

    def note_lost(self, messages: list[Message]) -> None:
        """Notes messages that were not handled when the consumer ended, and that the broker does not have any more."""
        if messages:
            self._departures.all_dropped(messages, "not handled when the consumer ended; the broker has forgotten them")

    def give_back_unstarted(self, messages: list[Message]) -> None:
        """Gives messages back that no handler has begun with."""
        if self._position.is_stream:
            self._position.put_back(messages)
        else:
            for message in messages:
                message.release()

    def give_back(self, messages: list[Message]) -> None:
        """Gives messages back that were held."""
        for message in messages:
            self._return(message, "the consumer ended before its next attempt")

    # ------------------------------------------------------------------ actions

    def _act(
        self, message: Message, action: Action | Refused, error: BaseException | str
    ) -> Coroutine[Any, Any, None] | None:
        """Carries out an action."""
        if self._is_done(message):
            return None
        if isinstance(action, Refused):
            action = self._refused or self._safe_refusal()
        means = self._means_for(message)
        action = fitting_action(action, means)
        attempts = attempts_of(message)
        if isinstance(action, Retry):
            if attempts >= len(action.delays):
                return self._act(message, _AFTER_RETRIES[action.then], error)
            if means is Means.HERE:
                message.failed_here += 1
                self._hold_or_return(message, hold_delay(action.delays, attempts), error)
                self._meter.retried += 1
                return None
        if isinstance(action, Retry | Park):
            self.claim(message)
            return self._move(message, action, attempts, error)
        reason = _reason_of(error)
        if isinstance(action, Drop):
            self._departures.dropped(message, reason)
            if not self._no_ack:
                message.ack()
        elif self._is_last:
            self._departures.dropped(message, f"{reason}; the broker does not have it any more")
        elif isinstance(action, DeadLetter):
            message.dead_letter(reason)
        elif isinstance(action, Requeue):
            message.requeue()
        elif means is not Means.STREAM:
            message.release()
        if isinstance(action, Stop):
            assert isinstance(error, BaseException)
            self._stop(error)
        return None

    def _safe_refusal(self) -> DeadLetter | Park:
        """Returns what becomes of a refused message when `refused` was not given."""
        is_kept = self._declared.has_dead_letter_exchange(self._queue) and not self._is_last
        return DeadLetter() if is_kept else Park()

    def _is_done(self, message: Message) -> bool:
        """Returns whether the handler has settled the message itself, or its channel is gone."""
        if self._is_last:
            return message in self._moving or message in self._held
        return message.is_settled

    def _means_for(self, message: Message) -> Means:
        return Means.STREAM if self._position.is_stream else means_for(self._queue, self._declared)

    def _queues_for(self, means: Means) -> RetryQueues:
        queues = self._retry_queues.get(means)
        if queues is None:
            is_shared = means is Means.HERE
            queues = RetryQueues(self._link, self._queue, self._registry, is_shared=is_shared)
            self._retry_queues[means] = queues
        return queues

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"leveret: move a message of {self._queue}")
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("queue %r: a message could not be moved", self._queue, exc_info=error)

    # ------------------------------------------------------------------ copies

    async def _move(self, message: Message, action: Retry | Park, attempts: int, error: BaseException | str) -> None:
        """Publishes a copy of a claimed message that waits elsewhere, and then acknowledges the message."""
        queues = self._queues_for(self._means_for(message))
        try:
            if isinstance(action, Retry):
                await queues.delay(message, action.delays[attempts], error)
                self._meter.retried += 1
            else:
                await queues.park(message, error)
                self._departures.parked(message, queues.parked, _reason_of(error))
        except LeveretError as failure:
            self._unclaim(message)
            self._after_failed_copy(message, action, error, failure)
        except BaseException:
            self._unclaim(message)
            self.abandoned(message)
            raise
        else:
            self._unclaim(message)
            if not self._no_ack:
                # A message of a lost channel is settled: the broker delivers it again, and there are two of it.
                message.ack()

    def _after_failed_copy(
        self, message: Message, action: Retry | Park, error: BaseException | str, failure: LeveretError
    ) -> None:
        """Holds a message that no copy could be published of; never gives it back to be delivered at once."""
        if self._is_done(message):
            return  # its channel is gone, and the broker delivers it again
        delays = action.delays if isinstance(action, Retry) else _DELAYS
        if isinstance(failure, TableSyntaxError) and isinstance(action, Retry):
            # A copy that is to be handled needs its properties; one that is parked does not.
            self.claim(message)
            self._begin(self._move(message, Park(), 0, error))
            return
        if (
            isinstance(failure, (BodyTooLarge, EncodeFailed, TableSyntaxError))
            and not self._position.is_stream
            and (self._is_last or isinstance(self._refused or self._safe_refusal(), DeadLetter))
        ):
            # No attempt can succeed. The broker can move the message by itself.
            self._log.failure("%r cannot be copied: %s", message, failure)
            self._act(message, DeadLetter(), f"{_reason_of(error)}; it cannot be copied: {failure}")
            return
        if isinstance(failure, AccessRefused):
            self._log_right(failure)
        else:
            self._log.failure("%r is held, because it could not be copied: %s", message, failure)
        delay = hold_delay(delays, attempts_of(message))
        message.failed_here += 1
        self._hold_or_return(message, delay, error)

    def _unclaim(self, message: Message) -> None:
        self._moving.discard(message)
        if not self._is_last:
            restore(message)

    def _hold_or_return(self, message: Message, delay: float, error: BaseException | str) -> None:
        if self._may_hold():
            self._moving.discard(message)
            self._held.hold(message, delay)
        else:
            self._return(message, _reason_of(error))

    def _return(self, message: Message, reason: str) -> None:
        """Gives a message back, because the consumer ends or pauses."""
        self._moving.discard(message)
        if self._is_last:
            self._departures.dropped(message, f"{reason}; the broker does not have it any more")
            return
        restore(message)
        if not message.is_settled:
            self.give_back_unstarted([message])

    def _count_undecodable(self, message: Message) -> bool:
        """Counts a message, unless it was held here and is tried again; returns whether it did."""
        if message.failed_here:
            return False
        self._meter.undecodable += 1
        return True

    # ------------------------------------------------------------------ delivery limits and rights

    def _delivery_limit(self) -> int | None:
        """Returns how often a message may come back before the broker drops it, as far as this client knows."""
        found = self._declared.queue(self._queue)
        if found is None:
            return self._default_limit
        arguments = found.entity.arguments
        if arguments.get("x-dead-letter-exchange") is not None:
            return None  # the broker does not drop it
        limit: object = arguments.get("x-delivery-limit")
        if type(limit) is int:
            return limit if limit > 0 else None
        return self._default_limit

    async def _prepare_parking(self, count: int, limit: int) -> None:
        try:
            await self._queues_for(Means.QUEUES).prepare_parking()
        except AccessRefused as refusal:
            self._log_limit(count, limit, refusal)
        except LeveretError:
            self._is_parking_prepared = False  # the broker is away

    def _log_limit(self, count: int, limit: int, refusal: AccessRefused) -> None:
        if self._is_limit_logged:
            return
        self._is_limit_logged = True
        logger.warning(
            "queue %r: a message has come back %d times, and the broker drops it after %d; it cannot be parked: %s",
            self._queue,
            count,
            limit,
            refusal,
        )
        self._log_right(refusal)

    def _log_right(self, refusal: AccessRefused) -> None:
        """Says once which right is missing, and what to grant."""
        if self._is_right_logged:
            return
        self._is_right_logged = True
        own = self._queue
        logger.warning(
            "queue %r: failed messages can be neither retried in queues of the broker nor parked, and are held here "
            "until they are handled: %s. Grant the user configure, write and read on %s, and write on the default "
            "exchange 'amq.default'",
            own,
            refusal,
            printable(f"'{own}.retry.*', '{own}.parked' and 'leveret.parked'", 1000),
        )


def _reason_of(error: BaseException | str) -> str:
    return printable(error, 200) if isinstance(error, str) else error_text(error)
