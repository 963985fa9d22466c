"""The options of a message, and how they become its properties on the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypedDict

from leveret.errors import ConfigurationError, EncodeFailed, printable
from leveret.publishing.template import Template
from leveret.settings.names import unknown
from leveret.wire.encoding import FieldValue

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = [
    "OPTIONS",
    "PublishOptions",
    "confirm_timeout_of",
    "joined",
    "keep",
    "milliseconds",
    "refuse_confirm_timeout",
    "unknown_option",
]

#: Types of values that cannot change.
_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})
#: Deeper than any field table may be. What is deeper is not copied, and is refused when it is packed.
_DEEPEST: Final = 100


class PublishOptions(TypedDict, total=False):
    """The keyword arguments of the publish methods, beside value and routing key."""

    exchange: str
    """The exchange; the producer's by default."""
    mandatory: bool
    """Have the broker return the message when no queue takes it; the producer's by default, which is True."""
    confirm_timeout: float
    """Seconds that the confirm may take after the message is written, at most the producer's, which are the default.
    For `publish` alone, which waits for one message."""
    headers: Mapping[str, Any] | None
    """See `leveret.encode_table` for the values."""
    delivery_mode: int
    """1 transient, 2 persistent; the producer's by default."""
    priority: int | None
    """0 to 255."""
    expiration: float | None
    """Seconds that the message may wait in a queue."""
    correlation_id: str | None
    reply_to: str | None
    message_id: str | None
    timestamp: datetime | int | None
    """Seconds since 1970, or a datetime with a time zone."""
    type: str | None
    user_id: str | None
    app_id: str | None
    content_type: str | None
    """The serializer's by default."""
    content_encoding: str | None
    """The compressor's by default. A value that comes with an encoding of its own is not compressed."""


#: All options.
OPTIONS: Final = frozenset(PublishOptions.__annotations__)
#: What a caller may have meant by another name.
_KNOWN: Final = ("value", "values", "routing_key", *PublishOptions.__annotations__)


def unknown_option(options: PublishOptions) -> ConfigurationError:
    """Returns the error for options of which one does not exist."""
    return unknown(min(options.keys() - OPTIONS), _KNOWN, what="publish has no option")


def joined(routing_key: str | Template, options: PublishOptions) -> tuple[str, PublishOptions]:
    """Returns the routing key and options of a template, with these options over its own."""
    if isinstance(routing_key, Template):
        return routing_key.routing_key, {**routing_key.options, **options}
    return routing_key, options


def keep(options: PublishOptions) -> PublishOptions:
    """Copies the headers of options that are used after the call that took them: its caller may change them then."""
    headers = options.get("headers")
    return {**options, "headers": _copied(headers, {})} if headers else options


def _copied(value: Any, copies: dict[int, tuple[object, Any]], depth: int = 0) -> Any:
    """Copies a value of a field table; see `leveret.encode_table` for the values.

    Args:
        value: The value.
        copies: Tables and arrays with their copies, by the `id` of each: what stands in several places is copied once.
        depth: In how many tables and arrays the value lies.
    """
    if type(value) in _PLAIN or depth > _DEEPEST:
        return value
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, FieldValue):
        return FieldValue(value.type, _copied(value.value, copies, depth))
    if id(value) in copies:
        return copies[id(value)][1]
    if isinstance(value, list | tuple):
        array: list[Any] = []
        copies[id(value)] = value, array
        array += [_copied(item, copies, depth + 1) for item in value]
        return array
    if hasattr(value, "items"):
        table: dict[Any, Any] = {}
        copies[id(value)] = value, table
        table |= {key: _copied(item, copies, depth + 1) for key, item in dict(value).items()}
        return table
    return value


def refuse_confirm_timeout(options: PublishOptions) -> None:
    """Refuses the option that only `publish` has, because it waits for one message.

    Raises:
        ConfigurationError: `confirm_timeout` is among the options.
    """
    if "confirm_timeout" in options:
        raise ConfigurationError(
            "confirm_timeout is an option of `publish` of a producer alone; elsewhere the producer's holds",
            option="confirm_timeout",
        )


def confirm_timeout_of(options: PublishOptions, default: float) -> float:
    """Returns the option `confirm_timeout` in seconds, or the default.

    Raises:
        ConfigurationError: It is no number of seconds, or out of range.
    """
    seconds: object = options.get("confirm_timeout", default)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0.001 <= seconds <= 86400:
        shown = printable(repr(seconds), 64)
        raise ConfigurationError(f"confirm_timeout is {shown}; it must be 0.001 to 86400 s", option="confirm_timeout")
    return float(seconds)


def milliseconds(seconds: object) -> str:
    """The wire's form of an expiration (RabbitMQ: per-message TTL)."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 4294967.295:
        raise EncodeFailed(f"expiration is 0 to 4294967.295 seconds, not {seconds!r}")
    return str(round(seconds * 1000))
