"""Dead letters: what a message looks like after it left a queue in one of the ways that RabbitMQ calls dying.

The header `x-death` has one entry for each queue and reason, the latest first, and counts how often (RabbitMQ: dead
letter exchanges). Every other header and property stays as the publisher packed it.
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

    from leveret.broker.queues import Queue
    from leveret.wire.message import Message

__all__ = ["DeadLetter"]

#: A message that died in more ways than this is dropped. Its header grows with each, and with it the work for the
#: next: without a limit one client could keep the broker busy for minutes with one message.
DEATHS_COUNT: Final = 255


class DeadLetter(NamedTuple):
    """A message on its way to a dead-letter exchange.

    Attributes:
        message: As it goes there.
        headers: Its headers, for an exchange that looks at them.
        deaths: The entries of `x-death`.
        reason: `rejected`, `expired`, `maxlen` or `delivery_limit`.
    """

    message: Message
    headers: Mapping[str, Any]
    deaths: list[dict[str, Any]]
    reason: str

    @classmethod
    def of(cls, message: Message, queue: Queue, exchange: str, reason: str) -> DeadLetter | None:
        """Makes the dead letter of a message.

        Args:
            message: As it was in the queue.
            queue: The queue.
            exchange: The dead-letter exchange's name.
            reason: Why it died.

        Returns:
            The dead letter; None when it died in too many ways.
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
            # The publisher filled the header with something that only just fitted.
            deaths = [death]
            letter = _changed(message, queue, exchange, {**changes, "x-death": _packable(deaths)})
        return cls(letter, {**headers, **changes}, deaths, reason)

    def is_cycle(self, queue: str) -> bool:
        """Whether it comes back to a queue without anybody having rejected it on the way: it would never stop."""
        if self.reason == "rejected":
            return False
        for death in self.deaths:
            if death.get("reason") == "rejected":
                return False
            if death.get("queue") == queue:
                return True
        return False


def _changed(message: Message, queue: Queue, exchange: str, headers: dict[str, Any]) -> Message:
    routing_key = queue.options.dead_letter_routing_key
    return rebuilt(
        message,
        exchange=exchange,
        routing_key=message.routing_key if routing_key is None else routing_key,
        raw_properties=replace_headers(
            message.raw_properties,
            headers,
            # A quorum queue's count belongs to that queue.
            drop=("x-delivery-count",) if queue.options.queue_type == "quorum" else (),
            # It would expire in the next queue as well (RabbitMQ: dead letter exchanges).
            drop_properties=("expiration",),
        ),
    )


def _packable(deaths: list[dict[str, Any]]) -> Any:
    return [{**death, "count": FieldValue("l", death["count"])} for death in deaths]


def _deaths(earlier: list[dict[str, Any]], death: dict[str, Any]) -> list[dict[str, Any]]:
    """One entry for each queue and reason; the latest death's comes first, counted up when there was one."""
    grouped: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in earlier:
        count = entry.get("count")
        # The header came from outside: a count that is none would be taken over for ever.
        grouped.setdefault(
            (str(entry.get("queue")), str(entry.get("reason"))),
            {**entry, "count": count if type(count) is int and 0 < count < 1 << 62 else 1},
        )
    again = grouped.pop((death["queue"], death["reason"]), None)
    first = death if again is None else {**again, "count": again["count"] + 1}
    return [first, *grouped.values()]
