"""What a broker closes channels for: the publishings at fault end, so that the others can be sent again."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

from leveret.errors import ChannelClosed, ConnectionClosed, LeveretError, MessageRefused, printable
from leveret.message import Outcome
from leveret.publishing.outcomes import exchange_error
from leveret.wire.numbers import CONNECTION_FORCED, REPLY_SUCCESS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leveret.publishing.confirms import ConfirmWindow
    from leveret.publishing.publishing import Ticket

__all__ = ["Culprits"]

#: RabbitMQ cuts a reply text to 255 bytes and ends it with "...". Up to one escaped character before that may be a part
#: of another one.
_CUT: Final = len("..." + 3 * "\\udc80")
#: RabbitMQ: "message size 20000000 is larger than configured max size 16777216".
_TOO_LARGE: Final = re.compile(r"message size \d+ is larger than (?:configured )?max size (\d+)")
#: The broker was told to close, or this side closed: no message is at fault.
_BLAMELESS: Final = (0, REPLY_SUCCESS, CONNECTION_FORCED)


class Culprits:
    """Finds the publishings that a broker closes a producer's channels for.

    The reply text of a close often tells them: those to an exchange that it names, or those over a size. They end, and
    the others are sent again. When the text names none, all are sent again. If the broker closes for the same reason
    before all of them have their outcome, they go one at a time, each after the outcome of the one before. The one that
    is alone at the next such close is at fault. After that the parts double, until a close for the same reason comes.

    Connections that the broker closes with a reply code count as channels do, because bytes that it cannot read end the
    connection.

    Args:
        window: The publishings without an outcome.
        on_loss: "unknown" ends all others, too.
    """

    def __init__(self, window: ConfirmWindow, on_loss: Literal["resend", "unknown"]) -> None:
        self._window = window
        self._on_loss = on_loss
        # Reply code, class and method of the last close that named no publishing.
        self._reason: tuple[int, int, int] | None = None
        # What was in flight then has lower tags than this one.
        self._end = 0
        # How many of those go at once; 0 for all.
        self._part = 0
        # The publishing that is alone in flight, or 0.
        self._alone = 0

    def judge(self, error: LeveretError) -> list[Ticket] | None:
        """Ends the publishings that cannot be sent again because the channel is lost.

        Args:
            error: Why it is lost.

        Returns:
            The finished tickets, as `ConfirmWindow.settle`.
        """
        window = self._window
        alone, self._alone = self._alone, 0
        finished = self._end_named(error)
        if self._on_loss == "unknown":
            return [*(finished or ()), *(window.give_up_written(error) or ())]
        if finished is not None or not isinstance(error, ChannelClosed | ConnectionClosed):
            return finished
        reason = (error.reply_code, error.class_id, error.method_id)
        if error.reply_code in _BLAMELESS:
            return None
        if reason != self._reason or window.first >= self._end:
            self._reason, self._part = reason, 0
            self._end = window.next_delivery_tag - window.held
        elif window.is_open(alone):
            self._part = 2
            return window.give_up(alone, _refused(error, str(error)))
        else:
            self._part = 1
        return None

    def part(self, delivery_tag: int) -> int:
        """How many publishings may be in flight at once from this one on; 0 for all."""
        if not self._part or delivery_tag >= self._end:
            return 0
        return self._part

    def sending(self, delivery_tag: int) -> None:
        """Notes the first publishing of a part that is sent now."""
        self._alone = delivery_tag if self._part == 1 else 0

    def passed(self) -> None:
        """Notes that the part that was sent last has its outcomes."""
        self._alone = 0
        if self._part > 1:
            self._part *= 2

    def _end_named(self, error: LeveretError) -> list[Ticket] | None:
        """Ends those that the reply text tells; returns None when it tells none."""
        window = self._window
        before = window.outstanding
        reason = exchange_error(error, str(error), Outcome.UNKNOWN)
        finished: list[Ticket] = []
        if reason is not None:
            for name in _named_exchanges(reason.reply_text, window.exchanges()):
                finished += window.give_up_written(reason, name) or ()
        elif isinstance(error, ChannelClosed) and (found := _TOO_LARGE.search(error.reply_text)):
            limit = int(found[1])
            text = f"the broker takes bodies of at most {limit} bytes (max_message_size): {error}"
            finished += window.give_up_written(_refused(error, text), None, limit) or ()
        return finished if window.outstanding < before else None


def _refused(error: ChannelClosed | ConnectionClosed, text: str) -> MessageRefused:
    refused = MessageRefused(text, outcome=Outcome.UNKNOWN)
    refused.reply_code, refused.reply_text = error.reply_code, error.reply_text
    refused.class_id, refused.method_id = error.class_id, error.method_id
    refused.__cause__ = error
    return refused


def _named_exchanges(reply_text: str, exchanges: Iterable[str]) -> list[str]:
    """Finds the exchanges that a reply text names: one, or all with the same beginning when the text was cut.

    RabbitMQ: "no exchange 'x' in vhost '/'", and "access to exchange 'x' in vhost '/' refused for user 'guest'".
    """
    text = reply_text.partition("exchange '")[2]
    starts = {exchange: f"{printable(exchange, 1024)}' in vhost '" for exchange in exchanges}
    named = [exchange for exchange, start in starts.items() if text.startswith(start)]
    if named:
        return [max(named, key=len)]
    if not text.endswith("..."):
        return []
    return [exchange for exchange, start in starts.items() if len(text) > _CUT and start.startswith(text[:-_CUT])]
