"""The words that publishers and consumers share: outcomes and batch results.

The incoming `leveret.Message` and the `leveret.Receipt` of a publishing are compiled (`leveret.wire.message`,
`leveret.publishing.publishing`), because one is made for each message.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from leveret.errors import PublishError
from leveret.records import dataclass, field

if TYPE_CHECKING:
    from collections.abc import Mapping


class Outcome(enum.IntEnum):
    """The end of a publishing. Every publishing ends in exactly one of these."""

    PENDING = 0
    """Not ended yet."""
    CONFIRMED = 1
    """The broker took responsibility (basic.ack). With `mandatory=False` an unroutable message is confirmed too."""
    RETURNED = 2
    """Mandatory, and no queue took it (basic.return)."""
    NACKED = 3
    """The broker refused responsibility (basic.nack)."""
    NOT_SENT = 4
    """The broker does not have it: no byte of it was written, or it was in a transaction that was not committed."""
    UNKNOWN = 5
    """Written, but no confirm came in time or the connection was lost: the broker may or may not have it."""


#: AMQP 0-9-1 section 1.1: the names of the values of `delivery_mode`.
TRANSIENT: Final = 1
PERSISTENT: Final = 2


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The result of `publish_batch`. It is true when no value is known to have failed.

    Attributes:
        count: How many values the batch had.
        confirmed: How many of them the broker confirmed.
        elapsed: Seconds from the first value to the last confirm.
        failures: The error of each value that failed, by its index in the batch.
        confirms: Whether the producer asked for confirms. Without them `confirmed` is 0 and what did not fail
            is `Outcome.UNKNOWN`.
    """

    count: int
    confirmed: int
    elapsed: float
    failures: Mapping[int, Exception] = field(default_factory=dict)
    confirms: bool = True

    def __bool__(self) -> bool:
        return not self.failures

    @property
    def rate(self) -> float:
        """Confirmed messages per second."""
        return self.confirmed / self.elapsed if self.elapsed else 0.0

    def outcome(self, index: int) -> Outcome:
        """The outcome of the value with this index.

        Args:
            index: 0 for the batch's first value.

        Returns:
            What `failures` says, or else CONFIRMED.

        Raises:
            IndexError: The batch has no such index.
        """
        if not 0 <= index < self.count:
            raise IndexError(f"index {index} is outside this batch of {self.count}")
        error = self.failures.get(index)
        if error is None:
            return Outcome.CONFIRMED if self.confirms else Outcome.UNKNOWN
        return error.outcome if isinstance(error, PublishError) else Outcome.NOT_SENT

    def raise_for_failures(self) -> None:
        """Raises the first failure, if there is one.

        Raises:
            LeveretError: The error of the lowest index that was not confirmed.
        """
        if self.failures:
            raise self.failures[min(self.failures)]
