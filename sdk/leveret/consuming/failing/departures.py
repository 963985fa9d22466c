"""The log and the counters of messages that leave a consumer without being handled: parked, rejected or dropped."""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

from leveret.errors import TableSyntaxError, printable

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from leveret.monitoring.meters import ConsumerMeter
    from leveret.wire.message import Message

__all__ = ["Departures", "id_of"]

# A user looks for what happens to a consumer's messages under the consumer's name.
logger = logging.getLogger("leveret.consuming")

#: So many messages in a second have a log record of their own. Further ones share records, which name each of them.
_MOST_ALONE: Final = 20
#: Messages that share a record at most.
_MOST_TOGETHER: Final = 100
_SECOND: Final = 1.0


class _Departure(NamedTuple):
    """What the log says of a message."""

    fate: str
    reason: str


class Departures:
    """Logs each message that leaves one consumer other than by being handled, with its id, and counts it.

    Args:
        queue: The queue.
        meter: Counts them.
        loop: The event loop.
    """

    def __init__(self, queue: str, meter: ConsumerMeter, loop: asyncio.AbstractEventLoop) -> None:
        self._queue = queue
        self._meter = meter
        self._loop = loop
        # How many records were written in the second that ends with the timer, and what else left in it.
        self._written = 0
        self._rest: dict[_Departure, list[str]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def parked(self, message: Message, where: str, reason: str) -> None:
        """Notes a message whose copy is in a parking queue."""
        self._meter.parked += 1
        self._note(message, _Departure(f"parked in {where!r}", reason))

    def rejected(self, message: Message, reason: str) -> None:
        """Notes a message that was rejected, and is lost unless its queue has a dead-letter exchange."""
        self._meter.rejected += 1
        self._note(message, _Departure("rejected; lost unless the queue has a dead-letter exchange", reason))

    def dropped(self, message: Message, reason: str) -> None:
        """Notes a message that is gone."""
        self._meter.dropped += 1
        self._note(message, _Departure("dropped", reason))

    def all_dropped(self, messages: Iterable[Message], reason: str) -> None:
        """Notes messages that are gone, several in one record."""
        names = [_named(message) for message in messages]
        self._meter.dropped += len(names)
        self._write_together(_Departure("dropped", reason), names)

    def flush(self) -> None:
        """Writes what waits to be written."""
        if self._timer is not None:
            self._timer.cancel()
            self._second_ended()

    def _note(self, message: Message, departure: _Departure) -> None:
        if self._timer is None:
            self._timer = self._loop.call_later(_SECOND, self._second_ended)
        if self._written < _MOST_ALONE:
            self._written += 1
            self._write_together(departure, [_named(message)])
            return
        names = self._rest.setdefault(departure, [])
        names.append(_named(message))
        if len(names) == _MOST_TOGETHER:
            self._write_together(departure, self._rest.pop(departure))

    def _second_ended(self) -> None:
        self._timer = None
        self._written = 0
        rest, self._rest = self._rest, {}
        for departure, names in rest.items():
            self._write_together(departure, names)

    def _write_together(self, departure: _Departure, names: list[str]) -> None:
        for first in range(0, len(names), _MOST_TOGETHER):
            part = names[first : first + _MOST_TOGETHER]
            what = f"message {part[0]}" if len(part) == 1 else f"{len(part)} messages"
            # Messages without an id look alike.
            counted = [name if count == 1 else f"{name} {count} times" for name, count in Counter(part).items()]
            listed = "" if len(part) == 1 else f": {', '.join(counted)}"
            logger.warning("queue %r: %s %s: %s%s", self._queue, what, departure.fate, departure.reason, listed)


def _named(message: Message) -> str:
    return f"{id_of(message)} ({message.body_size} bytes)"


def id_of(message: Message) -> str:
    """Returns the message id for a log."""
    try:
        return printable(repr(message.message_id), 100)
    except TableSyntaxError:
        return "with an unreadable id"
