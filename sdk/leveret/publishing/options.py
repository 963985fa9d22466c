"""What is said about a message beside its value: options, templates, and the fluent way to write them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol, TypedDict

from leveret.errors import (
    ChannelClosed,
    ConfigurationError,
    EncodeFailed,
    ExchangeAccessRefused,
    ExchangeNotFound,
    LeveretError,
)
from leveret.message import PERSISTENT, TRANSIENT
from leveret.wire.numbers import ACCESS_REFUSED, BASIC, BASIC_PUBLISH, NOT_FOUND
from leveret.wire.properties import Properties

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime
    from typing import Self, Unpack

    from leveret.message import Outcome
    from leveret.publishing.confirms import Receipt, Ticket

__all__ = [
    "PublishOptions",
    "Publishing",
    "Template",
    "closed_by_publishing",
    "exchange_error",
    "pack_properties",
    "refuse_confirm_timeout",
    "repeats",
]

_EXCHANGE_ERRORS: Final[dict[int, type[ExchangeNotFound | ExchangeAccessRefused]]] = {
    ACCESS_REFUSED: ExchangeAccessRefused,
    NOT_FOUND: ExchangeNotFound,
}

#: Options that are no properties of the message.
_NO_PROPERTIES: Final = frozenset({"exchange", "mandatory", "confirm_timeout"})
#: Options whose value is another one for each message, as a rule.
_UNIQUE: Final = frozenset({"message_id", "correlation_id", "timestamp", "confirm_timeout"})
#: Values that cannot change.
_PLAIN: Final = frozenset({str, int, float, bool, bytes, type(None)})


class PublishOptions(TypedDict, total=False):
    """The keyword arguments of the publish methods, beside value and routing key."""

    exchange: str
    """The exchange; the producer's by default."""
    mandatory: bool
    """Have the broker return the message when no queue takes it; the producer's by default."""
    confirm_timeout: float
    """Seconds to wait for the confirm, at most the producer's, which are the default. For `publish` alone, which waits
    for one message."""
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


#: Every option that there is.
OPTIONS: Final = frozenset(PublishOptions.__annotations__)


class Template:
    """A routing key with options, packed once by its producer; see `Producer.template`.

    Attributes:
        routing_key: The routing key.
        options: The options.
    """

    __slots__ = ("options", "routing_key")

    def __init__(self, routing_key: str, options: PublishOptions) -> None:
        self.routing_key = routing_key
        self.options = options

    def __repr__(self) -> str:
        return f"<Template routing_key={self.routing_key!r} options={sorted(self.options)}>"


class _Publisher(Protocol):
    """Who publishes what was put together: a producer, or a client with its own."""

    async def publish(self, value: Any, routing_key: str, **options: Unpack[PublishOptions]) -> Receipt: ...

    def publish_nowait(self, value: Any, routing_key: str, **options: Unpack[PublishOptions]) -> Ticket: ...


class Publishing:
    """A message that is put together call by call. Made by `Client.message` and `Producer.message`.

    Each call changes it and returns it, and `publish` or `publish_nowait` comes last. It may be published more than
    once. It may also be one of the values of `publish_batch`, with what was said about it over what is said there.

        await client.message(order).exchange("orders").routing_key("order.created").header("tenant", 7).publish()

    Attributes:
        value: What the serializer takes.
        key: The routing key so far.
        options: The options so far.
    """

    __slots__ = ("_publisher", "key", "options", "value")

    def __init__(self, value: Any, publisher: _Publisher | None = None) -> None:
        self.value = value
        self.key = ""
        self.options: PublishOptions = {}
        self._publisher = publisher

    def __repr__(self) -> str:
        return f"<Publishing routing_key={self.key!r} options={sorted(self.options)}>"

    def exchange(self, name: str) -> Self:
        """Publishes to this exchange; the empty name is the default exchange, which routes by queue name."""
        self.options["exchange"] = name
        return self

    def routing_key(self, routing_key: str) -> Self:
        """Sets the routing key."""
        self.key = routing_key
        return self

    def queue(self, name: str) -> Self:
        """Publishes straight to a queue, by the default exchange."""
        return self.exchange("").routing_key(name)

    def header(self, name: str, value: Any) -> Self:
        """Adds one header."""
        return self.headers({name: value})

    def headers(self, headers: Mapping[str, Any]) -> Self:
        """Adds headers."""
        self.options["headers"] = {**(self.options.get("headers") or {}), **headers}
        return self

    def persistent(self) -> Self:
        """Sets delivery mode 2: durable queues write it to disk."""
        return self.delivery_mode(PERSISTENT)

    def transient(self) -> Self:
        """Sets delivery mode 1: it may be lost when the broker restarts."""
        return self.delivery_mode(TRANSIENT)

    def delivery_mode(self, delivery_mode: int) -> Self:
        """Sets 1 (transient) or 2 (persistent)."""
        self.options["delivery_mode"] = delivery_mode
        return self

    def priority(self, priority: int) -> Self:
        """Sets the priority, 0 to 255."""
        self.options["priority"] = priority
        return self

    def expiration(self, seconds: float) -> Self:
        """Sets how many seconds the message may wait in a queue."""
        self.options["expiration"] = seconds
        return self

    def content_type(self, content_type: str) -> Self:
        """Sets the content type over the serializer's."""
        self.options["content_type"] = content_type
        return self

    def content_encoding(self, content_encoding: str) -> Self:
        """Says that the body is encoded already; it is not compressed then."""
        self.options["content_encoding"] = content_encoding
        return self

    def correlation_id(self, correlation_id: str) -> Self:
        """Sets what a reply is matched by."""
        self.options["correlation_id"] = correlation_id
        return self

    def reply_to(self, queue: str) -> Self:
        """Sets the queue for replies."""
        self.options["reply_to"] = queue
        return self

    def message_id(self, message_id: str) -> Self:
        """Sets the message's id."""
        self.options["message_id"] = message_id
        return self

    def timestamp(self, timestamp: datetime | int) -> Self:
        """Sets the time: seconds since 1970, or a datetime with a time zone."""
        self.options["timestamp"] = timestamp
        return self

    def type(self, name: str) -> Self:
        """Sets the message's type."""
        self.options["type"] = name
        return self

    def user_id(self, user_id: str) -> Self:
        """Sets the user; RabbitMQ refuses another one than the connection's."""
        self.options["user_id"] = user_id
        return self

    def app_id(self, app_id: str) -> Self:
        """Sets the application."""
        self.options["app_id"] = app_id
        return self

    def mandatory(self, mandatory: bool = True) -> Self:
        """Has the broker return the message when no queue takes it."""
        self.options["mandatory"] = mandatory
        return self

    def confirm_timeout(self, seconds: float) -> Self:
        """Sets how many seconds `publish` waits for the confirm, at most the producer's own."""
        self.options["confirm_timeout"] = seconds
        return self

    async def publish(self) -> Receipt:
        """Publishes it and waits for the confirm; see `Producer.publish`."""
        return await self._who().publish(self.value, self.key, **self.options)

    def publish_nowait(self) -> Ticket:
        """Publishes it without waiting; see `Producer.publish_nowait`."""
        return self._who().publish_nowait(self.value, self.key, **self.options)

    def _who(self) -> _Publisher:
        if self._publisher is None:
            raise ConfigurationError("this publishing belongs to no producer; make it by `producer.message(value)`")
        return self._publisher


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
    """A key under which the packed form of these options may be kept, or None when they will hardly come again.

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


def refuse_confirm_timeout(options: PublishOptions) -> None:
    """Raises for the option of those who wait for one message, where nobody does.

    Raises:
        ConfigurationError: `confirm_timeout` is among the options.
    """
    if "confirm_timeout" in options:
        raise ConfigurationError(
            "confirm_timeout is an option of `publish` of a producer alone; elsewhere the producer's holds",
            option="confirm_timeout",
        )


def closed_by_publishing(error: LeveretError) -> bool:
    """Whether the broker closed the channel because of something that was published."""
    return isinstance(error, ChannelClosed) and (error.class_id, error.method_id) == (BASIC, BASIC_PUBLISH)


def exchange_error(error: LeveretError, text: str, outcome: Outcome) -> ExchangeNotFound | ExchangeAccessRefused | None:
    """The error of a publishing for which the broker closed the channel.

    Args:
        error: Why the channel is closed.
        text: What the new error says.
        outcome: How the publishing ended.

    Returns:
        The error with the broker's code and text, or None when the exchange was not the reason.
    """
    if not isinstance(error, ChannelClosed) or not closed_by_publishing(error):
        return None
    kind = _EXCHANGE_ERRORS.get(error.reply_code)
    if kind is None:
        return None
    found = kind(text, outcome=outcome)
    found.reply_code, found.reply_text = error.reply_code, error.reply_text
    found.class_id, found.method_id = error.class_id, error.method_id
    return found


def _milliseconds(seconds: object) -> str:
    """The wire's form of an expiration (RabbitMQ: per-message TTL)."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 4294967.295:
        raise EncodeFailed(f"expiration is 0 to 4294967.295 seconds, not {seconds!r}")
    return str(round(seconds * 1000))
