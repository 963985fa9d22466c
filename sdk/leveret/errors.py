"""The exception tree.

Callers branch on types and fields, never on text. No message of ours carries credentials or message bodies.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from leveret.message import Outcome

E = TypeVar("E", bound="LeveretError")


def printable(text: str, limit: int = 256) -> str:
    """Makes text that came from the network safe to print.

    Args:
        text: Any string, for example a reply text.
        limit: The longest result in characters; longer text is cut and marked.

    Returns:
        The text with control characters escaped, so that a peer cannot forge log lines.
    """
    safe = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text[:limit]
    )
    return safe + "..." if len(text) > limit else safe


class LeveretError(Exception):
    """The root of every error that Leveret raises. Errors pickle and copy with their fields, without their cause."""

    def __reduce__(self) -> tuple[object, ...]:
        # An exception's own way calls the class with `args`, but fields such as `outcome` are keyword arguments.
        return _bare, (self.__class__, self.args), self.__dict__


def _bare(kind: type[E], args: tuple[object, ...]) -> E:
    error = kind.__new__(kind)
    error.args = args
    return error


def again(error: E, text: str | None = None) -> E:
    """A copy of a stored error, to raise: raising one object again and again grows its traceback.

    Args:
        error: The stored error.
        text: What the copy says instead.

    Returns:
        An equal error with the same cause; with a text of its own, the stored error is its cause.
    """
    copy = _bare(error.__class__, error.args if text is None else (text,))
    copy.__dict__.update(error.__dict__)
    copy.__cause__ = error.__cause__ if text is None else error
    return copy


class ConfigurationError(LeveretError, ValueError):
    """An option, URL or argument is unknown, of the wrong type or out of range.

    Attributes:
        option: The name of the option or argument, or an empty string.
    """

    def __init__(self, message: str, *, option: str = "") -> None:
        super().__init__(message)
        self.option = option


class NotOpened(ConfigurationError, AttributeError):
    """What `connect` or `dedicated_connection` returns was used before it was opened, by `async with` or `await`."""


class PluginError(LeveretError):
    """A plugin cannot be loaded or used.

    Attributes:
        plugin: The plugin's name.
        distribution: The distribution that it was installed with, or an empty string.
        version: The distribution's version, or an empty string.
        entry_point: The module that its entry point names, or an empty string.
    """

    def __init__(
        self, message: str, *, plugin: str = "", distribution: str = "", version: str = "", entry_point: str = ""
    ) -> None:
        super().__init__(message)
        self.plugin = plugin
        self.distribution = distribution
        self.version = version
        self.entry_point = entry_point


class PluginLoadError(PluginError):
    """A plugin cannot be imported, or its hooks are wrong."""


class PluginVersionError(PluginError):
    """A plugin was written for another version of the plugin interface."""


class PluginConflictError(PluginError):
    """Two plugins bring the same thing, and the settings do not choose.

    Attributes:
        distributions: Both distributions with their versions.
    """

    def __init__(self, message: str, *, distributions: tuple[str, str]) -> None:
        super().__init__(message)
        self.distributions = distributions


class WrongLoopError(LeveretError, RuntimeError):
    """An object was used from another event loop, thread or process (after a fork) than the one it was made in."""


class ProtocolError(LeveretError):
    """The AMQP conversation went wrong.

    Attributes:
        reply_code: The AMQP reply code that describes it (AMQP 0-9-1 section 1.1; named in `leveret.wire.numbers`).
    """

    reply_code = 541

    def __init__(self, message: str, *, reply_code: int | None = None) -> None:
        super().__init__(message)
        if reply_code is not None:
            self.reply_code = reply_code


class LocalProtocolError(ProtocolError):
    """This side asked for something that the protocol does not allow; nothing was sent."""

    reply_code = 503


class RemoteProtocolError(ProtocolError):
    """The peer sent something that the protocol does not allow."""

    reply_code = 503


class FrameError(RemoteProtocolError):
    """The peer sent a frame that is malformed or larger than negotiated (reply code 501)."""

    reply_code = 501


class TableSyntaxError(RemoteProtocolError):
    """A field table or method argument from the peer is malformed or over a limit (reply code 502)."""

    reply_code = 502


class IncompatibleProtocol(RemoteProtocolError):
    """The peer does not speak AMQP 0-9-1.

    Attributes:
        began_with: The first bytes that it sent, at most 8; empty when they are not what is wrong.
    """

    def __init__(self, message: str, *, reply_code: int | None = None, began_with: bytes = b"") -> None:
        super().__init__(message, reply_code=reply_code)
        self.began_with = began_with


class TransportError(LeveretError):
    """The connection could not be made, or was lost below AMQP."""


class ConnectFailed(TransportError):
    """No connection could be made to any of the addresses within the deadline."""


class TLSVerificationError(ConnectFailed):
    """The server's certificate was refused; no AMQP byte was sent."""


class ConnectionLost(TransportError):
    """The socket was closed or reset by the peer or by the network without connection.close."""


class HeartbeatTimeout(ConnectionLost):
    """Nothing was received for two heartbeat intervals."""


class OperationTimeout(LeveretError, TimeoutError):
    """A deadline passed. The result of the operation is unknown."""


class _PeerClosed(LeveretError):
    """The base of `ConnectionClosed` and `ChannelClosed`.

    Attributes:
        reply_code: The AMQP reply code, or 0 when the connection was lost without one.
        reply_text: The peer's text, made printable.
        class_id: The class of the method that caused it, or 0.
        method_id: The method that caused it, or 0.
    """

    def __init__(
        self, message: str, *, reply_code: int = 0, reply_text: str = "", class_id: int = 0, method_id: int = 0
    ) -> None:
        super().__init__(message)
        self.reply_code = reply_code
        self.reply_text = reply_text
        self.class_id = class_id
        self.method_id = method_id


class ConnectionClosed(_PeerClosed):
    """The connection is closed; the fields say why."""


class AuthenticationError(ConnectionClosed):
    """The server refused the credentials, or offers none of the wanted mechanisms."""


class ChannelClosed(_PeerClosed):
    """The channel is closed; the connection may still be open."""


class NotFound(ChannelClosed):
    """An exchange or queue does not exist (reply code 404)."""


class AccessRefused(ChannelClosed):
    """The user lacks the permission, or the queue is used exclusively (reply code 403)."""


class ResourceLocked(ChannelClosed):
    """The queue is exclusive to another connection (reply code 405)."""


class PreconditionFailed(ChannelClosed):
    """An entity exists with other arguments, or a precondition does not hold (reply code 406).

    Attributes:
        argument: The argument that differs, when the server named one.
        wanted: The value that was asked for, as the server printed it.
        actual: The value that the entity has, as the server printed it.
    """

    argument = ""
    wanted = ""
    actual = ""


class DeliveryTimeout(PreconditionFailed):
    """The broker closed the channel because a delivery was not acknowledged in its time, 30 minutes by default.

    RabbitMQ: delivery acknowledgement timeout (`consumer_timeout`). What was delivered goes back to its queue.
    """


class ProcessingTimeout(LeveretError, TimeoutError):
    """A handler took longer than its consumer's `processing_timeout` and was cancelled."""


class PublishError(LeveretError):
    """A publishing did not end as confirmed.

    Attributes:
        outcome: How it ended.
        delivery_tag: Its sequence number in its producer, or 0 when it was not sent.
        stage: When a deadline passed, where: "connection" (being made again), "blocked" (by the broker), "buffer" (no
            room in the window or the socket) or "confirm"; otherwise empty.
        attempts: How often it was written to a channel.
    """

    attempts = 0

    def __init__(self, message: str, *, outcome: Outcome, delivery_tag: int = 0, stage: str = "") -> None:
        super().__init__(message)
        self.outcome = outcome
        self.delivery_tag = delivery_tag
        self.stage = stage


class MessageNacked(PublishError):
    """The broker refused responsibility for the message (basic.nack)."""


class MessageReturned(PublishError):
    """A mandatory message could not be routed (basic.return).

    Attributes:
        reply_code: The broker's code, 312 for "no route".
        reply_text: The broker's text, made printable.
        exchange: The exchange it was published to.
        routing_key: The routing key it was published with.
    """

    reply_code = 0
    reply_text = ""
    exchange = ""
    routing_key = ""


class ConfirmTimeout(PublishError, TimeoutError):
    """No confirm came in time: whether the broker has the message is unknown."""


class ExchangeNotFound(PublishError, NotFound):
    """The exchange does not exist (reply code 404).

    The outcome is UNKNOWN, because messages that were published just before the exchange was deleted may be in a queue.
    In a transaction it is NOT_SENT: nothing was committed.
    """


class ExchangeAccessRefused(PublishError, AccessRefused):
    """The user may not publish to this exchange (reply code 403).

    The outcome is UNKNOWN, as with `ExchangeNotFound`.
    """


class MessageRefused(PublishError, ChannelClosed):
    """The broker closes the channel for this message: it is too large, or one of its properties is not allowed.

    The fields have the broker's reply code and text. The outcome is UNKNOWN, as with `ExchangeNotFound`.
    """


class CodecError(LeveretError):
    """A value could not be encoded, or a body not decoded."""


class EncodeFailed(CodecError):
    """The serializer refused the value, or a property or argument does not fit AMQP; nothing was sent."""


class DecodeFailed(CodecError):
    """The body is not what its content type or the model says."""


class ContentTypeNotAccepted(CodecError):
    """The message's content type or encoding is not one that this consumer accepts."""


class BodyTooLarge(CodecError):
    """A body is larger than the limit."""


class PolicyError(LeveretError):
    """A policy ended the operation."""


class CircuitOpen(PolicyError):
    """The circuit breaker is open; the operation was not tried.

    Attributes:
        retry_after: Seconds after which it may be tried again, or 0 when that is not known.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RetriesExhausted(PolicyError):
    """The operation failed as often as the retry policy allows; the cause is the last failure.

    Attributes:
        attempts: How often it was tried.
    """

    def __init__(self, message: str, *, attempts: int = 0) -> None:
        super().__init__(message)
        self.attempts = attempts


class BackpressureError(LeveretError):
    """The publish window or buffer is full; nothing was sent. Wait, or use the awaiting form."""


class ConsumerCancelled(LeveretError):
    """The broker cancelled the consumer (basic.cancel), for example because its queue was deleted.

    Attributes:
        consumer_tag: The consumer.
        queue: The queue it consumed from.
    """

    def __init__(self, message: str, *, consumer_tag: str = "", queue: str = "") -> None:
        super().__init__(message)
        self.consumer_tag = consumer_tag
        self.queue = queue
