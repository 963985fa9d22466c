"""The fluent way to write a message and its options."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from leveret.errors import ConfigurationError
from leveret.message import PERSISTENT, TRANSIENT

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from datetime import datetime
    from typing import NoReturn, Self, Unpack

    from leveret.publishing.confirms import Receipt, Ticket
    from leveret.publishing.options import PublishOptions

__all__ = ["MessageBuilder"]


class _Publisher(Protocol):
    """What publishes the message: a producer, or a client by its own producer."""

    async def publish(self, value: Any, routing_key: str, **options: Unpack[PublishOptions]) -> Receipt: ...

    def publish_nowait(self, value: Any, routing_key: str, **options: Unpack[PublishOptions]) -> Ticket: ...

    async def enqueue(self, value: Any, routing_key: str, **options: Unpack[PublishOptions]) -> Ticket: ...


class MessageBuilder:
    """A message that is put together call by call. Made by `Client.message` and `Producer.message`.

    Each call changes it and returns it, and `publish`, `publish_nowait` or `enqueue` comes last. It may be published
    more than once. It may also be one of the values of `publish_batch`; then its options go over those of the batch.

        await client.message(order).exchange("orders").routing_key("order.created").header("tenant", 7).publish()

    Attributes:
        value: What the serializer takes.
        key: The routing key so far.
        options: The options so far.
    """

    __slots__ = ("_headers", "_publisher", "key", "options", "value")

    def __init__(self, value: Any, publisher: _Publisher | None = None) -> None:
        self.value = value
        self.key = ""
        self.options: PublishOptions = {}
        self._publisher = publisher
        #: What the options have as headers, when that is a mapping of its own, which no caller changes.
        self._headers: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<MessageBuilder routing_key={self.key!r} options={sorted(self.options)}>"

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
        headers = self.options.get("headers")
        if headers is None or headers is not self._headers:
            headers = self._headers = dict(headers or ())
            self.options["headers"] = headers
        headers[name] = value
        return self

    def headers(self, headers: Mapping[str, Any]) -> Self:
        """Adds headers."""
        self._headers = {**(self.options.get("headers") or {}), **headers}
        self.options["headers"] = self._headers
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
        """Sets the encoding of a body that is encoded already; it is not compressed again."""
        self.options["content_encoding"] = content_encoding
        return self

    def correlation_id(self, correlation_id: str) -> Self:
        """Sets the id by which a reply is matched to its request."""
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
        """Sets whether the broker returns the message when no queue takes it, as it does by default."""
        self.options["mandatory"] = mandatory
        return self

    def confirm_timeout(self, seconds: float) -> Self:
        """Sets how many seconds the confirm may take after the message is written, at most the producer's own."""
        self.options["confirm_timeout"] = seconds
        return self

    def publish(self) -> Coroutine[Any, Any, Receipt]:
        """Publishes it and waits for the confirm; see `Producer.publish`."""
        return (self._publisher or _unbound()).publish(self.value, self.key, **self.options)

    def publish_nowait(self) -> Ticket:
        """Publishes it without waiting; see `Producer.publish_nowait`."""
        return (self._publisher or _unbound()).publish_nowait(self.value, self.key, **self.options)

    def enqueue(self) -> Coroutine[Any, Any, Ticket]:
        """Publishes it as `publish_nowait` does, but waits while there is no room; see `Producer.enqueue`."""
        return (self._publisher or _unbound()).enqueue(self.value, self.key, **self.options)


def _unbound() -> NoReturn:
    raise ConfigurationError("this message belongs to no producer; make it by `producer.message(value)`")
