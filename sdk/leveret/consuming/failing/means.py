"""The means that there are for a message that was not handled: copies in queues of the broker, or holding it here."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

from leveret.consuming.failing.error_policy import DeadLetter, Park, Requeue, Retry
from leveret.errors import TableSyntaxError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from leveret.consuming.failing.error_policy import Action
    from leveret.topology.declared import Declared
    from leveret.wire.message import Message

__all__ = ["SHARED_PARKING", "Means", "default_delivery_limit", "delivery_count", "fitting_action", "means_for"]

#: Where messages of transient queues are parked. One queue for all of them: a queue for each would be left behind.
SHARED_PARKING: Final = "leveret.parked"

#: A short string's limit (AMQP 0-9-1 section 4.2.5.3).
_NAME_BYTES: Final = 255
#: The longest that stands behind a queue's name: a week in milliseconds.
_LONGEST_SUFFIX: Final = ".retry.604800000"
#: How often RabbitMQ 4 lets a message of a quorum queue come back when the queue was declared without a limit.
_DELIVERY_LIMIT: Final = 20


class Means(enum.Enum):
    """What can be done with a message that is to be tried again, or put aside."""

    QUEUES = "copies: in the retry queues and the parking queue of its queue"
    HERE = "held here until its next attempt; a copy in the parking queue of all transient queues"
    STREAM = "a copy in the stream's parking queue; a stream takes nothing back, and is not written to"


def means_for(queue: str, declared: Declared) -> Means:
    """Returns the means that there are for the messages of a queue that is no stream.

    Args:
        queue: The queue. One of which nothing is known counts as durable.
        declared: What the client has declared.
    """
    has_room = len(queue.encode("utf-8", "surrogateescape")) <= _NAME_BYTES - len(_LONGEST_SUFFIX)
    return Means.QUEUES if has_room and not declared.is_transient(queue) else Means.HERE


def fitting_action(action: Action, means: Means) -> Action:
    """Returns an action, or the one in its place that the means allow.

    A stream takes nothing back, and RabbitMQ closes the connection of a consumer that rejects: what is not dropped and
    does not stop the consumer is parked.
    """
    return Park() if means is Means.STREAM and isinstance(action, Retry | Requeue | DeadLetter) else action


def delivery_count(message: Message) -> int:
    """Returns how often a quorum queue has delivered a message before, as its broker counts it; 0 when it does not."""
    try:
        count: object = message.headers.get("x-delivery-count")
    except TableSyntaxError:
        return 0
    return count if type(count) is int else 0


def default_delivery_limit(server_properties: Mapping[str, Any]) -> int | None:
    """Returns how often the broker lets a message of a quorum queue come back by default; None for any number.

    Args:
        server_properties: What the broker has told of itself.
    """
    major = str(server_properties.get("version")).partition(".")[0]
    is_limited = server_properties.get("product") == "RabbitMQ" and major.isdigit() and int(major) >= 4
    return _DELIVERY_LIMIT if is_limited else None
