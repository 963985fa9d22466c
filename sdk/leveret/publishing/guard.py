"""Retry policies and circuit breakers of a producer, which cost nothing while all goes well.

The policy is asked after a failure. The breaker is told of failures and of batches that had one, and asked before each
call while it is not closed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from leveret.errors import CircuitOpen, PublishError, printable
from leveret.message import BatchResult, Outcome
from leveret.publishing.batches import Source
from leveret.publishing.outcomes import error_of
from leveret.runtime.tasks import set_within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from leveret.plugins.interfaces import BreakerPolicy, RetryPolicy
    from leveret.publishing.confirms import ConfirmWindow
    from leveret.publishing.lifecycle import ProducerLife
    from leveret.publishing.outcomes import TicketBook
    from leveret.publishing.publishing import Receipt, Ticket
    from leveret.settings import ProducerSettings

__all__ = ["PublishGuard"]

logger = logging.getLogger("leveret.publishing")

#: A batch with policies goes in parts of this many of the producer's chunks. Only the values of one part are kept for
#: further attempts.
_CHUNKS_PER_PART: Final = 10


class PublishGuard:
    """Publishes through a retry policy, a circuit breaker, or both.

    Args:
        retry: Asked after each failure; None does not try again.
        breaker: Told of failures, and asked while it is not closed; None for none.
        settings: The producer's options.
        tickets: Keeps failed tickets for `flush`.
        window: Counts what the broker has confirmed.
        life: The producer's state; there is no further attempt when it cannot publish any more.

    Attributes:
        reporting: Tickets whose failures `publish` and `publish_batch` report to the breaker themselves.
    """

    def __init__(
        self,
        retry: RetryPolicy | None,
        breaker: BreakerPolicy | None,
        settings: ProducerSettings,
        tickets: TicketBook,
        window: ConfirmWindow,
        life: ProducerLife,
    ) -> None:
        self.reporting: set[Ticket] = set()
        # The tickets of `publish_nowait` for which the breaker was asked.
        self._trials: set[Ticket] = set()
        self._retry = retry
        self._breaker = breaker
        self._settings = settings
        self._tickets = tickets
        self._window = window
        self._life = life
        # The producer has ended, and nothing is tried again.
        self._over = asyncio.Event()
        self._clock = asyncio.get_running_loop().time
        # The time and the count up to which the breaker was told of successes.
        self._told_at = self._clock()
        self._told = 0

    async def publish(
        self, once: Callable[[float], Awaitable[Receipt]], deadline: float, failed: PublishError | None = None
    ) -> Receipt:
        """Publishes one message. All attempts share its deadline.

        Args:
            once: Makes one attempt, until the deadline that it is given.
            deadline: By the event loop's clock.
            failed: How the first attempt ended, when there was one.

        Returns:
            What the attempt that succeeded returned.

        Raises:
            CircuitOpen: The breaker does not allow it; nothing was sent.
            PublishError: The last attempt failed, and the retry policy allows no more; a note counts the attempts.
        """
        attempt = 0
        failure: PublishError | None = None
        while True:
            attempt += 1
            try:
                asked = failed is None and self.ask()
            except CircuitOpen as error:
                if failure is None:
                    raise
                raise failure from error
            try:
                if failed is not None:
                    first, failed = failed, None
                    raise first
                receipt = await once(deadline)
            except PublishError as error:
                self.failed(1, error)
                delay = self._delay(attempt, error, deadline)
                failure = _more_honest(failure, error)
                if delay is None:
                    if attempt > 1:
                        failure.add_note(f"it was tried {attempt} times")
                    if failure is not error:
                        raise failure from error
                    raise
            except BaseException:
                if asked:
                    self.gave_up()  # cancelled, or not encodable
                raise
            else:
                if asked:
                    self.succeeded()
                return receipt
            await set_within(self._over, delay)

    async def publish_batch(
        self, source: Source, once: Callable[[Source, float | None, Sequence[int] | None], Awaitable[BatchResult]]
    ) -> BatchResult:
        """Publishes values in parts; what failed of a part is tried again before the next part begins.

        All attempts share a deadline: `publish_timeout` from when the last value of the part was taken for the first.

        Args:
            source: The values.
            once: Publishes values. Each has its own deadline, or all of them have the one that it is given. It is also
                given how often each was written before.

        Returns:
            The outcomes by index.

        Raises:
            CircuitOpen: The breaker did not allow the first part; nothing was sent.
            Exception: What the iterable raised, after what came before has its outcome; a note counts them.
        """
        started = self._clock()
        failures: dict[int, Exception] = {}
        count = confirmed = 0
        confirms = True
        while True:
            part = await source.take(self._settings.batch_size * _CHUNKS_PER_PART)
            if not part:
                break
            result = await self._publish_part(part, once, first=count == 0)
            failures.update((count + index, error) for index, error in result.failures.items())
            count += len(part)
            confirmed += result.confirmed
            confirms = result.confirms
            obstacle = next(filter(_is_obstacle, result.failures.values()), None)
            if obstacle is not None:
                # Nothing more can be sent. The rest of an iterable, which may have no end, is not read.
                left = range(count, source.length)
                failures.update(dict.fromkeys(left, obstacle.with_traceback(None)))
                count += len(left)
                break
        if source.error is not None:
            source.error.add_note(
                f"of the {count} values before it {confirmed} were confirmed and {len(failures)} failed"
            )
            raise source.error
        return BatchResult(count, confirmed, self._clock() - started, failures, confirms)

    async def _publish_part(
        self,
        part: list[Any],
        once: Callable[[Source, float | None, Sequence[int] | None], Awaitable[BatchResult]],
        *,
        first: bool,
    ) -> BatchResult:
        failures: dict[int, Exception] = {}
        earlier: dict[int, PublishError] = {}
        indexes = list(range(len(part)))
        # How often each value that is published now was written before.
        sends: list[int] | None = None
        attempt = confirmed = 0
        confirms = True
        deadline: float | None = None
        while True:
            attempt += 1
            try:
                asked = self.ask()
            except CircuitOpen as error:
                if first and attempt == 1:
                    raise
                # What was tried has a better answer.
                failures.update((index, earlier.get(index, error)) for index in indexes)
                break
            try:
                source = Source([part[index] for index in indexes])
                result = await once(source, deadline, sends)
            except BaseException:
                if asked:
                    self.gave_up()
                raise
            if deadline is None:
                deadline = source.taken_at + self._settings.publish_timeout
            confirmed += result.confirmed
            confirms = result.confirms
            refused = [error for error in result.failures.values() if isinstance(error, PublishError)]
            if refused:
                self.failed(len(refused), refused[0])
            elif asked:
                self._tell(max(1, result.confirmed), 0, None)
            again: dict[int, int] = {}
            delay = 0.0
            for position, failure in result.failures.items():
                index = indexes[position]
                written = failure.attempts if isinstance(failure, PublishError) else 0
                wait = self._delay(attempt, failure, deadline) if isinstance(failure, PublishError) else None
                if isinstance(failure, PublishError):
                    failure = earlier[index] = _more_honest(earlier.get(index), failure)
                if wait is None:
                    failures[index] = failure
                else:
                    again[index] = max(0 if sends is None else sends[position], written)
                    delay = max(delay, wait)
            if not again:
                break
            indexes = sorted(again)
            sends = [again[index] for index in indexes]
            await set_within(self._over, delay)
        return BatchResult(len(part), confirmed, 0.0, dict(sorted(failures.items())), confirms)

    def end(self) -> None:
        """Ends the waits between attempts: the producer will never publish again."""
        self._over.set()

    @property
    def allows(self) -> bool:
        """Whether a publishing may begin without asking the breaker."""
        return self._breaker is None or self._breaker.closed is True

    def ask(self) -> bool:
        """Asks the breaker while it is not closed.

        Returns:
            Whether it was asked, and so is owed `succeeded`, `failed` or `gave_up`.

        Raises:
            CircuitOpen: It does not allow the publishing.
        """
        breaker = self._breaker
        if breaker is None or breaker.closed:
            return False
        try:
            breaker.before_call()
        except CircuitOpen:
            raise
        except Exception as raised:
            logger.warning("the circuit breaker failed: %s: %s", type(raised).__name__, printable(str(raised)))
            return False
        return True

    def succeeded(self) -> None:
        """Tells the breaker that the message it was asked for is confirmed."""
        self._tell(1, 0, None)

    def gave_up(self) -> None:
        """Tells the breaker that the message it was asked for has no result."""
        self._record(0, 0)

    def failed(self, count: int, error: BaseException) -> None:
        """Tells the breaker of failed publishings, and of the successes since it was told last."""
        if self._breaker is not None:
            self._tell(self._window.confirmed - self._told, count, error)

    def _tell(self, successes: int, failures: int, error: BaseException | None) -> None:
        now = self._clock()
        seconds, self._told_at = now - self._told_at, now
        self._told = self._window.confirmed
        self._record(successes, failures, seconds=seconds, error=error)

    # ------------------------------------------------------------------ tickets

    def publish_trial(self, publish: Callable[[], Ticket], loop: asyncio.AbstractEventLoop) -> Ticket:
        """Publishes without waiting what the breaker was asked for, and tells it the outcome later."""
        try:
            ticket = publish()
        except PublishError as error:
            self.failed(1, error)
            raise
        except BaseException:
            self.gave_up()
            raise
        if not ticket.pending:  # there are no confirms
            self.succeeded()
            return ticket
        ticket.future = loop.create_future()  # so that the window hands it out, whatever its outcome
        self._trials.add(ticket)
        return ticket

    def finished(self, ticket: Ticket) -> bool:
        """Tells the breaker of a finished ticket; returns True when nothing else is to be done with the ticket."""
        if ticket in self.reporting:
            # Still here, so its call was cancelled or goes on right now.
            self.reporting.discard(ticket)
            return False
        if ticket.failures:
            self.failed(len(ticket.failures), error_of(ticket, self._settings.confirm_timeout))
        elif ticket in self._trials:
            self.succeeded()
        if ticket not in self._trials:
            return False
        self._trials.discard(ticket)
        if ticket.future is not None and not ticket.future.done():
            ticket.future.set_result(None)
        if ticket.failures and not ticket.observed:
            self._tickets.remember(ticket)
        return True

    # ------------------------------------------------------------------ calls of the plugin; its errors are logged

    def _record(
        self, successes: int, failures: int, *, seconds: float = 0.0, error: BaseException | None = None
    ) -> None:
        if self._breaker is None:
            return
        try:
            self._breaker.record(successes, failures, seconds=seconds, error=error)
        except Exception as raised:
            logger.warning("the circuit breaker failed: %s: %s", type(raised).__name__, printable(str(raised)))

    def _delay(self, attempt: int, error: PublishError, deadline: float) -> float | None:
        """Asks the policy; None when there is to be no further attempt, or the deadline comes before it."""
        if self._retry is None or not self._life.usable:
            return None
        try:
            delay: object = self._retry.next_delay(attempt, error)
            if delay is not None and not (isinstance(delay, int | float) and 0 <= delay < float("inf")):
                raise ValueError(f"the delay is {printable(repr(delay), 64)}; it must be seconds or None")
            if not isinstance(delay, int | float) or self._clock() + delay >= deadline:
                return None
            return float(delay)
        except Exception as raised:
            logger.warning("the retry policy failed: %s: %s", type(raised).__name__, printable(str(raised)))
            return None


def _more_honest(earlier: PublishError | None, error: PublishError) -> PublishError:
    """Chooses the failure of two attempts to report: a message that may be in the queue stays UNKNOWN."""
    return earlier if earlier is not None and earlier.outcome is Outcome.UNKNOWN else error


def _is_obstacle(error: Exception) -> bool:
    return isinstance(error, CircuitOpen) or (isinstance(error, PublishError) and error.outcome is Outcome.NOT_SENT)
