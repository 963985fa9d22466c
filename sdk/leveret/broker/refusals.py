"""What the broker refuses, in RabbitMQ's words.

The texts are those of RabbitMQ 3.10.8, because clients parse them: an inequivalent declare, for example, names the
argument in its text only.
"""

from __future__ import annotations

from typing import Final

from leveret.errors import LeveretError
from leveret.wire.numbers import REPLY_CODES

__all__ = ["Refusal", "access_refused", "not_found", "not_implemented", "precondition_failed"]

#: AMQP 0-9-1 section 1.1: these reply codes close the connection, the others the channel.
_HARD: Final = frozenset({320, 402, 501, 502, 503, 504, 505, 506, 530, 540, 541})
#: A reply text is a short string.
_REPLY_TEXT_MAX: Final = 255


class Refusal(LeveretError):
    """A client asked for something that it does not get; becomes channel.close or connection.close.

    Args:
        reply_code: The AMQP reply code.
        explanation: What stands behind the code's name in the reply text.
        cause: Class and method to blame, when that is not the method being handled.
    """

    def __init__(self, reply_code: int, explanation: str, *, cause: tuple[int, int] | None = None) -> None:
        super().__init__(explanation)
        self.reply_code = reply_code
        self.explanation = explanation
        self.cause = cause

    @property
    def closes_connection(self) -> bool:
        """True when the reply code is one that ends the connection and not only the channel."""
        return self.reply_code in _HARD

    @property
    def reply_text(self) -> str:
        """Name and explanation, cut to the 255 bytes of a short string as RabbitMQ cuts it."""
        text = f"{REPLY_CODES[self.reply_code]} - {self.explanation}"
        raw = text.encode("utf-8", "surrogateescape")
        if len(raw) <= _REPLY_TEXT_MAX:
            return text
        # The cut may fall inside a character; surrogateescape carries the bytes through unharmed.
        return raw[: _REPLY_TEXT_MAX - 3].decode("utf-8", "surrogateescape") + "..."


def not_found(what: str) -> Refusal:
    """404 for an entity, for example `queue 'q' in vhost '/'`."""
    return Refusal(404, f"no {what}")


def access_refused(explanation: str) -> Refusal:
    """403: the entity is not the client's to use that way."""
    return Refusal(403, explanation)


def precondition_failed(explanation: str) -> Refusal:
    """406: the request contradicts the entity's or the channel's state."""
    return Refusal(406, explanation)


def not_implemented(what: str) -> Refusal:
    """540: RabbitMQ does it and this broker does not. Nothing that changes meaning is ever ignored."""
    return Refusal(540, f"the embedded broker does not implement {what}")
