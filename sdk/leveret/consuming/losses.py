"""Which losses end a consumer, and how long it tries to subscribe again after the others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from leveret.errors import ChannelClosed, ConsumerCancelled, DeliveryTimeout, NotFound, again
from leveret.protocol.recovery import may_mend
from leveret.wire.numbers import PRECONDITION_FAILED

if TYPE_CHECKING:
    from leveret.connection.link import Link
    from leveret.errors import LeveretError
    from leveret.settings import ConsumerSettings

__all__ = ["LossRules", "is_outage", "typed"]

#: How RabbitMQ's text begins when a delivery was not acknowledged in time.
_DELIVERY_TIMEOUT: Final = "delivery acknowledgement on channel"
#: RabbitMQ's text for a queue that does not exist. Other texts of 404 mean that it exists and its node is away.
_NO_QUEUE: Final = "no queue '"
#: How names begin that RabbitMQ has chosen. It gives none of them twice, and lets no client declare one.
_CHOSEN_BY_THE_SERVER: Final = "amq.gen-"


class LossRules:
    """Says for each loss and each failed attempt of one consumer whether it goes on.

    Args:
        settings: The consumer's.
        link: Says whether lost connections are made again; otherwise the consumer ends at its first loss.
    """

    def __init__(self, settings: ConsumerSettings, link: Link) -> None:
        self._stops_when_cancelled = settings.on_cancel == "stop"
        self._timeout = settings.queue_missing_timeout
        self._link = link
        # Whether the broker has answered a basic.consume of this consumer, and has cancelled the last one.
        self._was_live = False
        self._was_cancelled = False
        # The link's failed attempts when the consumer was started by `run` or iteration.
        self._failed_before: int | None = None
        # When the first of the present 404s came, by the loop's clock.
        self._missing_since: float | None = None

    def go_on_after(self, error: LeveretError) -> bool:
        """Returns whether the consumer tries to subscribe again after this loss."""
        if not self._link.may_recover or (self._stops_when_cancelled and isinstance(error, ConsumerCancelled)):
            return False
        return may_mend(error)

    def end_after(self, error: LeveretError, queue: str, now: float) -> LeveretError | None:
        """Returns the error that ends the consumer after an attempt has failed, or None when it goes on.

        Args:
            error: Why it failed.
            queue: The queue's name.
            now: The loop's time.
        """
        if not may_mend(error) or not self._link.may_recover:
            return error
        if not _is_missing(error):
            self._missing_since = None
            return None
        if queue.startswith(_CHOSEN_BY_THE_SERVER):
            return error
        if self._missing_since is None:
            self._missing_since = now
        if now - self._missing_since < self._timeout:
            return None
        return again(
            error, f"queue {queue!r} has been missing for queue_missing_timeout of {self._timeout:g} s: {error}"
        )

    def starts(self) -> None:
        """Notes that `run` or iteration starts the consumer, and waits for deliveries from now on."""
        self._failed_before = self._link.meter.failed

    def subscribed(self) -> None:
        """Notes that the broker has answered basic.consume: the queue is there."""
        self._missing_since = None
        self._was_live, self._was_cancelled = True, False

    def cancelled(self) -> None:
        """Notes that the broker has cancelled the consumer."""
        self._was_cancelled = True

    @property
    def is_known(self) -> bool:
        """True when the broker has answered a basic.consume, and has not cancelled the consumer since."""
        return self._was_live and not self._was_cancelled

    def is_refused(self, error: LeveretError) -> bool:
        """Returns whether the error that answers a basic.consume ends the consumer.

        It does for the first one: more likely a wrong name or right than a fault that passes. After an outage, others
        may have to declare the queue again.
        """
        outage = self._failed_before is not None and self._link.meter.failed > self._failed_before
        return not (self._was_live or outage or is_outage(error))

    def delay(self, seconds: float, now: float) -> float:
        """Shortens the delay before an attempt, so that a missing queue ends the consumer in time."""
        if self._missing_since is None:
            return seconds
        return min(seconds, max(0.0, self._missing_since + self._timeout - now))


def _is_missing(error: LeveretError) -> bool:
    return isinstance(error, NotFound) and _NO_QUEUE in error.reply_text


def is_outage(error: LeveretError) -> bool:
    """Returns whether a consumer that is started waits after this error, instead of raising it.

    A refusal of its queue is raised: it is more likely a wrong name than a fault that passes. A queue that exists, and
    whose node is away, is waited for.
    """
    if isinstance(error, ChannelClosed):
        return isinstance(error, NotFound) and not _is_missing(error)
    return may_mend(error)


def typed(error: LeveretError, queue: str) -> LeveretError:
    """Returns `DeliveryTimeout` for the error of a channel that was closed for one, and any other error as it is."""
    if not (
        isinstance(error, ChannelClosed)
        and error.reply_code == PRECONDITION_FAILED
        and _DELIVERY_TIMEOUT in error.reply_text
        and "timed out" in error.reply_text
    ):
        return error
    late = DeliveryTimeout(
        f"a delivery from queue {queue!r} was not acknowledged in the broker's time: {error}",
        reply_code=error.reply_code,
        reply_text=error.reply_text,
        class_id=error.class_id,
        method_id=error.method_id,
    )
    late.__cause__ = error
    return late
