"""The key whose messages one consumer handles in order, as its settings name it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from leveret.wire.message import Message

__all__ = ["key_function"]


def key_function(ordered_by: str | None) -> Callable[[Message], Hashable] | None:
    """Returns the function that finds the key of a message, as `ConsumerSettings.ordered_by` says; None without one."""
    if ordered_by is None:
        return None
    if ordered_by == "routing_key":
        return lambda message: message.routing_key
    header = ordered_by.partition(":")[2]

    def key(message: Message) -> Hashable:
        value = message.headers.get(header)
        # Tables and arrays of AMQP have no hash.
        return value if isinstance(value, (str, int, bytes, float, type(None))) else repr(value)

    return key
