"""Makes the dead-lettered copy of a message that was rejected, expired, or dropped by a limit.

The header `x-death` has one entry with a count for each queue and reason, the latest first (RabbitMQ: dead letter
exchanges). Every other header and property stays as the publisher packed it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from leveret.broker.tables import rebuilt
from leveret.errors import EncodeFailed, TableSyntaxError
from leveret.wire.encoding import FieldValue
from leveret.wire.header_bytes import replace_headers
from leveret.wire.properties import decode_properties

if TYPE_CHECKING:
    from collections.abc import Mapping

    from leveret.broker.queues import BrokerQueue
    from leveret.wire.message import Message

__all__ = ["DeadLetteredMessage"]

#: The most entries of `x-death`; a message with more is dropped. The header and the work to extend it grow with each
#: entry, so without a limit one client could keep the broker busy for minutes with one message.
DEATHS_COUNT: Final = 255


class DeadLetteredMessage(NamedTuple):
    """A message on its way to a dead-letter exchange.

    Attributes:
        message: The copy that the exchange gets.
        headers: The headers of the copy, for a headers exchange.
        deaths: The entries of `x-death`.
        reason: `rejected`, `expired`, `maxlen` or `delivery_limit`.
    """

    message: Message
    headers: Mapping[str, Any]
    deaths: list[dict[str, Any]]
    reason: str

    @classmethod
    def of(cls, message: Message, queue: BrokerQueue, exchange: str, reason: str) -> DeadLetteredMessage | None:
        """Makes the dead-lettered copy of a message.

        Args:
            message: The message in the queue.
            queue: The queue.
            exchange: The dead-letter exchange's name.
            reason: The reason for `x-death`.

        Returns:
            The copy; None when `x-death` would have more than `DEATHS_COUNT` entries.
        """
        properties = decode_properties(message.raw_properties)
        headers = properties.headers or {}
        earlier = headers.get("x-death")
        death = {
            "count": 1,
            "reason": reason,
            "queue": queue.name,
            "time": FieldValue("T", int(time.time())),
            "exchange": message.exchange,
            "routing-keys": [message.routing_key],
            **({} if properties.expiration is None else {"original-expiration": properties.expiration}),
        }
        deaths = _deaths([d for d in earlier if isinstance(d, dict)] if isinstance(earlier, list) else [], death)
        if len(deaths) > DEATHS_COUNT:
            return None
        changes: dict[str, Any] = {}
        if earlier is None:
            changes["x-first-death-reason"] = reason
            changes["x-first-death-queue"] = queue.name
            changes["x-first-death-exchange"] = message.exchange
        try:
            letter = _changed(message, queue, exchange, {**changes, "x-death": _packable(deaths)})
        except (EncodeFailed, TableSyntaxError):
            # The header sent by the publisher is so large, or so deep, that it cannot be extended.
            deaths = [death]
            letter = _changed(message, queue, exchange, {**changes, "x-death": _packable(deaths)})
        return cls(letter, {**headers, **changes}, deaths, reason)

    def is_cycle(self, queue: str) -> bool:
        """Returns True if the message would return to a queue without a rejection on the way, and circulate forever."""
        if self.reason == "rejected":
            return False
        for death in self.deaths:
            if death.get("reason") == "rejected":
                return False
            if death.get("queue") == queue:
                return True
        return False


def _changed(message: Message, queue: BrokerQueue, exchange: str, headers: dict[str, Any]) -> Message:
    routing_key = queue.options.dead_letter_routing_key
    return rebuilt(
        message,
        exchange=exchange,
        routing_key=message.routing_key if routing_key is None else routing_key,
        raw_properties=replace_headers(
            message.raw_properties,
            headers,
            # The delivery count of a quorum queue holds for that queue only.
            drop=("x-delivery-count",) if queue.options.queue_type == "quorum" else (),
            # Removed, or the message would expire in the next queue as well (RabbitMQ: dead letter exchanges).
            drop_properties=("expiration",),
        ),
    )


def _packable(deaths: list[dict[str, Any]]) -> Any:
    return [{**death, "count": FieldValue("l", death["count"])} for death in deaths]


def _deaths(earlier: list[dict[str, Any]], death: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns `x-death` with one entry for each queue and reason. The new death's entry comes first, counted up."""
    grouped: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in earlier:
        count = entry.get("count")
        # A publisher may have sent any value as count; an invalid one counts as 1.
        grouped.setdefault(
            (str(entry.get("queue")), str(entry.get("reason"))),
            {**entry, "count": count if type(count) is int and 0 < count < 1 << 62 else 1},
        )
    again = grouped.pop((death["queue"], death["reason"]), None)
    first = death if again is None else {**again, "count": again["count"] + 1}
    return [first, *grouped.values()]
