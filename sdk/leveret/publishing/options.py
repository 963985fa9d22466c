"""The options of a message, and how they become its properties on the wire."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypedDict

from leveret.errors import ConfigurationError, EncodeFailed, printable
from leveret.wire.encoding import FieldValue
from leveret.wire.properties import Properties

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

__all__ = [
    "OPTIONS",
    "PublishOptions",
    "confirm_timeout_of",
    "keep",
    "pack_properties",
    "refuse_confirm_timeout",
    "repeats",
]

#: Options that are not properties of the message.
_NO_PROPERTIES: Final = frozenset({"exchange", "mandatory", "confirm_timeout"})
#: Options whose values usually differ from message to message.
_UNIQUE: Final = frozenset({"message_id", "correlation_id", "timestamp", "confirm_timeout"})
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


def pack_properties(options: PublishOptions, **defaults: Any) -> bytes:
    """Packs the properties and headers of a message (AMQP 0-9-1 section 4.2.6.1).

    Args:
        options: As the publish methods take them.
        **defaults: Properties that hold where the options say nothing.

    Returns:
        What a `PublishTemplate` takes.

    Raises:
        ConfigurationError: There is no such option.
        EncodeFailed: A value does not fit its property.
    """
    unknown = options.keys() - OPTIONS
    if unknown:
        raise ConfigurationError(f"publish has no option {min(unknown)!r}", option=min(unknown))
    properties: dict[str, Any] = {**defaults, **options}
    for name in _NO_PROPERTIES:
        properties.pop(name, None)
    if properties.get("expiration") is not None:
        properties["expiration"] = _milliseconds(properties["expiration"])
    return Properties(**properties).encode()


def repeats(routing_key: str, options: PublishOptions) -> tuple[object, ...] | None:
    """Returns a key under which the packed form of these options may be kept, or None when they hardly come again.

    Equal keys mean equal bytes: 1, 1.0 and True are equal and have other types on the wire, so types are part of it.
    """
    headers = options.get("headers")
    if type(routing_key) is not str or not _UNIQUE.isdisjoint(options):
        return None
    if not (headers is None or type(headers) is dict):
        return None
    values = tuple(value for name, value in options.items() if name != "headers")
    headed = tuple(headers.values()) if headers else ()
    kinds = tuple(map(type, values + headed))
    # A float is left out because 0.0 and -0.0 are equal as well.
    if not _PLAIN.issuperset(kinds) or float in kinds[len(values) :]:
        return None
    return (routing_key, tuple(options), values, tuple(headers) if headers is not None else None, headed, kinds)


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


def _milliseconds(seconds: object) -> str:
    """The wire's form of an expiration (RabbitMQ: per-message TTL)."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 4294967.295:
        raise EncodeFailed(f"expiration is 0 to 4294967.295 seconds, not {seconds!r}")
    return str(round(seconds * 1000))
