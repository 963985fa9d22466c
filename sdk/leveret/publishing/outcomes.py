"""How publishings end: the errors of those that were not confirmed, and the tickets that carry them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from leveret.errors import (
    ChannelClosed,
    ConfirmTimeout,
    ExchangeAccessRefused,
    ExchangeNotFound,
    LeveretError,
    MessageNacked,
    MessageReturned,
    OperationTimeout,
    PublishError,
    again,
    printable,
)
from leveret.message import Outcome
from leveret.wire.numbers import ACCESS_REFUSED, BASIC, BASIC_PUBLISH, NOT_FOUND

if TYPE_CHECKING:
    from leveret.publishing.confirms import ConfirmWindow
    from leveret.publishing.publishing import Ticket
    from leveret.wire.message import Message

__all__ = [
    "NO_CHANNEL",
    "TicketBook",
    "closed_by_publishing",
    "error_of",
    "exchange_error",
    "failure",
    "held_too_long",
    "late",
    "not_sent",
]

_EXCHANGE_ERRORS: Final[dict[int, type[ExchangeNotFound | ExchangeAccessRefused]]] = {
    ACCESS_REFUSED: ExchangeAccessRefused,
    NOT_FOUND: ExchangeNotFound,
}
#: What a message waits for while a producer has no channel.
NO_CHANNEL: Final = "the channel was lost, and another one is not open yet"
#: How many failed tickets `flush` keeps; it only counts further ones.
_KEPT: Final = 100


def not_sent(text: str, stage: str = "", cause: BaseException | None = None) -> PublishError:
    """Makes the error of a message that was not written.

    Args:
        text: What kept it.
        stage: Where a deadline passed; empty when the producer will never publish again.
        cause: Why the producer ended, if it did.

    Returns:
        The error, with the outcome NOT_SENT.
    """
    error = PublishError(f"not sent: {text}", outcome=Outcome.NOT_SENT, stage=stage)
    error.__cause__ = cause
    return error


def held_too_long(option: str, seconds: float, cause: LeveretError | None = None) -> PublishError:
    """Makes the error of a message for which no channel came in time.

    Args:
        option: The option that set the deadline.
        seconds: Its value.
        cause: Why there is no connection, as far as that is known.

    Returns:
        The error, with the outcome NOT_SENT.
    """
    why = "" if cause is None else f": {cause}"
    return not_sent(f"{NO_CHANNEL}; waited {option} of {seconds:g} s{why}", "connection", cause)


def late(option: str, seconds: float, *, connected: bool = True) -> ConfirmTimeout:
    """Makes the error of a message whose confirm did not come in time.

    Args:
        option: The option that set the deadline.
        seconds: Its value.
        connected: False when the producer has no channel at the moment.

    Returns:
        The error, with the outcome UNKNOWN.
    """
    what = "no confirm" if connected else "the channel was lost, and no other channel brought a confirm"
    return ConfirmTimeout(
        f"{what} within {option} of {seconds:g} s; the broker may have the message",
        outcome=Outcome.UNKNOWN,
        stage="confirm" if connected else "connection",
    )


def failure(
    reason: int | Message | LeveretError, delivery_tag: int, confirm_timeout: float, attempts: int = 1
) -> PublishError:
    """Makes the error of a publishing from what its ticket recorded.

    Args:
        reason: An `Outcome` value, the returned message, or an error.
        delivery_tag: The publishing's delivery tag.
        confirm_timeout: The producer's option, for the text.
        attempts: How often it was written, if it was.

    Returns:
        A new error, which the caller may raise.
    """
    error = _failure(reason, delivery_tag, confirm_timeout)
    error.attempts = 0 if error.outcome is Outcome.NOT_SENT else attempts
    return error


def _failure(reason: int | Message | LeveretError, delivery_tag: int, confirm_timeout: float) -> PublishError:
    if isinstance(reason, PublishError):
        copy = again(reason)
        assert isinstance(copy, PublishError)
        if copy.outcome is not Outcome.NOT_SENT:
            copy.delivery_tag = delivery_tag
        return copy
    if isinstance(reason, LeveretError):
        lost = PublishError(
            f"no confirm came before the channel was lost: {reason}",
            outcome=Outcome.UNKNOWN,
            delivery_tag=delivery_tag,
        )
        lost.__cause__ = reason
        return lost
    if isinstance(reason, int):
        if reason == Outcome.NACKED:
            return MessageNacked(
                "the broker refused the message (basic.nack)", outcome=Outcome.NACKED, delivery_tag=delivery_tag
            )
        if reason == Outcome.NOT_SENT:
            return not_sent(NO_CHANNEL, "connection")
        expired = late("confirm_timeout", confirm_timeout)
        expired.delivery_tag = delivery_tag
        return expired
    returned = MessageReturned(
        f"no queue took the message: {reason.reply_code} {printable(reason.reply_text)} (exchange "
        f"{printable(reason.exchange)!r}, routing key {printable(reason.routing_key)!r}); publish events that may have "
        "no subscriber with mandatory=False",
        outcome=Outcome.RETURNED,
        delivery_tag=delivery_tag,
    )
    returned.reply_code, returned.reply_text = reason.reply_code, printable(reason.reply_text)
    returned.exchange, returned.routing_key = reason.exchange, reason.routing_key
    return returned


def error_of(ticket: Ticket, confirm_timeout: float) -> PublishError:
    """Makes the error of the first failed publishing of a ticket that has one."""
    assert ticket.failures
    index, reason = next(iter(ticket.failures.items()))
    return failure(reason, ticket.delivery_tag, confirm_timeout, ticket.attempts(index))


def closed_by_publishing(error: LeveretError) -> bool:
    """Returns True when the broker closed the channel because of a basic.publish."""
    return isinstance(error, ChannelClosed) and (error.class_id, error.method_id) == (BASIC, BASIC_PUBLISH)


def exchange_error(error: LeveretError, text: str, outcome: Outcome) -> ExchangeNotFound | ExchangeAccessRefused | None:
    """Makes the error of a publishing for which the broker closed the channel.

    Args:
        error: Why the channel is closed.
        text: What the new error says.
        outcome: How the publishing ended.

    Returns:
        The error with the broker's code and text, or None when the exchange was not the reason.
    """
    if not isinstance(error, ChannelClosed) or not closed_by_publishing(error):
        return None
    kind = _EXCHANGE_ERRORS.get(error.reply_code)
    if kind is None:
        return None
    found = kind(text, outcome=outcome)
    found.reply_code, found.reply_text = error.reply_code, error.reply_text
    found.class_id, found.method_id = error.class_id, error.method_id
    return found


class TicketBook:
    """The tickets that a task awaits, those that failed without one, and the calls of `flush`.

    Args:
        window: The publishings without an outcome.
        loop: The event loop.
        confirm_timeout: The producer's option.

    Attributes:
        flushing: Per waiting call of `flush`: the first delivery tag that it does not wait for, and its future.
    """

    def __init__(self, window: ConfirmWindow, loop: asyncio.AbstractEventLoop, confirm_timeout: float) -> None:
        self.flushing: list[tuple[int, asyncio.Future[None]]] = []
        self._window = window
        self._loop = loop
        self._confirm_timeout = confirm_timeout
        self._unobserved: dict[Ticket, None] = {}
        # How many more there are, and the last of them.
        self._unobserved_more = 0
        self._last_unobserved: Ticket | None = None

    def observe(self, ticket: Ticket) -> asyncio.Future[None] | None:
        """Marks the ticket observed, so that `flush` does not report it; returns its future unless it is finished."""
        seen, ticket.observed = ticket.observed, True
        if not ticket.pending:
            if ticket in self._unobserved:
                del self._unobserved[ticket]
            elif ticket.failures and not seen and self._unobserved_more:
                self._unobserved_more -= 1
            return None
        future: asyncio.Future[None] | None = ticket.future
        if future is None:
            future = ticket.future = self._loop.create_future()
        return future

    def remember(self, ticket: Ticket) -> None:
        """Keeps a failed ticket that no task observed; `flush` reports it."""
        if len(self._unobserved) < _KEPT:
            self._unobserved[ticket] = None
        else:
            self._unobserved_more += 1
            self._last_unobserved = ticket

    async def flush(self, seconds: float) -> None:
        """Waits until everything published before this call has its outcome.

        Raises:
            OperationTimeout: It has not within these seconds.
            PublishError: Unobserved tickets failed.
        """
        if self._window.outstanding:
            await self._wait(self._window.next_delivery_tag, seconds)
        unobserved, self._unobserved = self._unobserved, {}
        more, self._unobserved_more = self._unobserved_more, 0
        last, self._last_unobserved = self._last_unobserved, None
        count = len(unobserved) + more
        which, ticket = ("first", next(iter(unobserved))) if unobserved else ("last", last)
        if count and ticket is not None:
            error = error_of(ticket, self._confirm_timeout)
            error.args = (f"{count} publishings that were not awaited failed; the {which}: {error}",)
            raise error

    async def _wait(self, target: int, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                future = self.ended(target)
                try:
                    await future
                finally:
                    self.wake()  # takes the call off the list
        except TimeoutError:
            if self._window.first < target:
                raise OperationTimeout(
                    f"{self._window.outstanding} publishings have no outcome after {seconds:g} s"
                ) from None

    def ended(self, delivery_tag: int) -> asyncio.Future[None]:
        """Returns a future that is done once everything before this publishing has its outcome.

        A caller that stops waiting calls `wake` after that.
        """
        future: asyncio.Future[None] = self._loop.create_future()
        if delivery_tag <= self._window.first:
            future.set_result(None)
        else:
            self.flushing.append((delivery_tag, future))
        return future

    def wake(self) -> None:
        """Ends the calls of `flush` whose publishings all have their outcomes."""
        if self.flushing:
            first = self._window.first
            for target, flushed in self.flushing:
                if target <= first and not flushed.done():
                    flushed.set_result(None)
            # In place: the compiled publisher looks at this list.
            self.flushing[:] = [entry for entry in self.flushing if not entry[1].done()]
