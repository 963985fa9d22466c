"""Refusals of the broker, with RabbitMQ's reply codes and texts.

The texts are those of RabbitMQ 3.10.8, because clients parse them. The refusal of an inequivalent declare, for example,
names the argument in its text only.
"""

from __future__ import annotations

from typing import Final

from leveret.errors import LeveretError
from leveret.wire.numbers import (
    ACCESS_REFUSED,
    HARD_REPLY_CODES,
    NOT_FOUND,
    NOT_IMPLEMENTED,
    PRECONDITION_FAILED,
    REPLY_CODES,
)

__all__ = ["Refusal", "access_refused", "not_found", "not_implemented", "precondition_failed"]

#: The bytes of a reply text, which is a short string.
_REPLY_TEXT_MAX: Final = 255


class Refusal(LeveretError):
    """The broker refuses a client's request. The session answers with channel.close or connection.close.

    Args:
        reply_code: The AMQP reply code.
        explanation: The part of the reply text after the code's name; empty where RabbitMQ has none.
        cause: Class and method ids to report, if not those of the method that is being handled.
    """

    def __init__(self, reply_code: int, explanation: str, *, cause: tuple[int, int] | None = None) -> None:
        super().__init__(explanation)
        self.reply_code = reply_code
        self.explanation = explanation
        self.cause = cause

    @property
    def closes_connection(self) -> bool:
        """True when the reply code closes the connection, not only the channel."""
        return self.reply_code in HARD_REPLY_CODES

    @property
    def reply_text(self) -> str:
        """The code's name and the explanation, cut to the 255 bytes of a short string as RabbitMQ does."""
        name = REPLY_CODES[self.reply_code]
        text = f"{name} - {self.explanation}" if self.explanation else name
        raw = text.encode("utf-8", "surrogateescape")
        if len(raw) <= _REPLY_TEXT_MAX:
            return text
        # The cut may fall inside a character; surrogateescape carries the bytes through unharmed.
        return raw[: _REPLY_TEXT_MAX - 3].decode("utf-8", "surrogateescape") + "..."


def not_found(what: str) -> Refusal:
    """Returns a 404 for an entity, for example `queue 'q' in vhost '/'`."""
    return Refusal(NOT_FOUND, f"no {what}")


def access_refused(explanation: str) -> Refusal:
    """Returns a 403: the client may not use the entity in this way."""
    return Refusal(ACCESS_REFUSED, explanation)


def precondition_failed(explanation: str) -> Refusal:
    """Returns a 406: the request contradicts the state of the entity or channel."""
    return Refusal(PRECONDITION_FAILED, explanation)


def not_implemented(what: str) -> Refusal:
    """Returns a 540: RabbitMQ implements the feature and this broker does not. No such request is silently ignored."""
    return Refusal(NOT_IMPLEMENTED, f"the embedded broker does not implement {what}")
