"""Reads, checks and compares the arguments of queues, exchanges and consumers.

Names, limits and texts are those of RabbitMQ 3.10.8. An argument that RabbitMQ knows and this broker does not
implement is refused with 540. An unknown argument that starts with `x-` is refused too, because a newer RabbitMQ may
give it a meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from leveret.broker.refusals import not_implemented, precondition_failed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from leveret.broker.tables import TypedValue

__all__ = [
    "Arguments",
    "QueueOptions",
    "alternate_exchange",
    "assert_equivalent",
    "assert_queue_arguments",
    "consumer_priority",
    "queue_options",
]

Arguments = dict[str, "TypedValue"]

#: Ten years, in milliseconds: RabbitMQ's longest expiration.
EXPIRY_MAX_MS: Final = 315_360_000_000

#: Arguments by queue type, in the order in which RabbitMQ compares them.
_CLASSIC: Final = (
    "x-expires", "x-message-ttl", "x-dead-letter-exchange", "x-dead-letter-routing-key", "x-max-length",
    "x-max-length-bytes", "x-max-priority", "x-overflow", "x-queue-mode", "x-queue-version",
    "x-single-active-consumer", "x-queue-type", "x-queue-master-locator",
)  # fmt: skip
_QUORUM: Final = (
    "x-dead-letter-exchange", "x-dead-letter-routing-key", "x-dead-letter-strategy", "x-expires", "x-max-length",
    "x-max-length-bytes", "x-max-in-memory-length", "x-max-in-memory-bytes", "x-overflow",
    "x-single-active-consumer", "x-queue-type", "x-quorum-initial-group-size", "x-delivery-limit", "x-message-ttl",
    "x-queue-leader-locator",
)  # fmt: skip
_STREAM: Final = (
    "x-max-length-bytes", "x-queue-type", "x-max-age", "x-stream-max-segment-size-bytes", "x-initial-cluster-size",
    "x-queue-leader-locator",
)  # fmt: skip
_KNOWN: Final = frozenset((*_CLASSIC, *_QUORUM, *_STREAM))
_IMPLEMENTED: Final = frozenset({
    "x-queue-type", "x-expires", "x-message-ttl", "x-dead-letter-exchange", "x-dead-letter-routing-key",
    "x-max-length", "x-max-length-bytes", "x-overflow", "x-single-active-consumer", "x-delivery-limit",
})  # fmt: skip
_BY_TYPE: Final = {"classic": _CLASSIC, "quorum": _QUORUM}
#: RabbitMQ's modules, which its texts name.
_MODULES: Final = {"classic": "rabbit_classic_queue", "quorum": "rabbit_quorum_queue"}
_OVERFLOWS: Final = ("drop-head", "reject-publish", "reject-publish-dlx")


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """The options in a queue's arguments.

    Attributes:
        queue_type: `classic` or `quorum`; both are kept in memory only.
        dead_letter_exchange: The exchange for rejected, expired and dropped messages; None drops them.
        dead_letter_routing_key: The routing key of dead-lettered messages; None keeps their own.
        max_length: The most ready messages.
        max_length_bytes: The most bytes in bodies of ready messages.
        overflow: `drop-head`, `reject-publish` or `reject-publish-dlx`.
        message_ttl_ms: The milliseconds after which a ready message expires.
        expires_ms: The milliseconds after which an unused queue is deleted.
        delivery_limit: How often a message may be requeued before it is dead-lettered.
        single_active_consumer: True: only one consumer gets messages at a time.
    """

    queue_type: str = "classic"
    dead_letter_exchange: str | None = None
    dead_letter_routing_key: str | None = None
    max_length: int | None = None
    max_length_bytes: int | None = None
    overflow: str = "drop-head"
    message_ttl_ms: int | None = None
    expires_ms: int | None = None
    delivery_limit: int | None = None
    single_active_consumer: bool = False


class _ArgumentsReader:
    """Reads checked values from an arguments table."""

    def __init__(self, arguments: Mapping[str, TypedValue], what: str) -> None:
        self._arguments = arguments
        self._what = what

    def _fail(self, key: str, reason: str) -> None:
        raise precondition_failed(f"invalid arg '{key}' for {self._what}: {reason}")

    def text(self, key: str) -> str | None:
        entry = self._arguments.get(key)
        if entry is None:
            return None
        if not entry.is_string:
            self._fail(key, f"{{unacceptable_type,{entry.type_name}}}")
        return str(entry.value)

    def choice(self, key: str, choices: Iterable[str], reason: str, default: str) -> str:
        value = self.text(key)
        if value is None:
            return default
        if value not in choices:
            self._fail(key, reason.format(value))
        return value

    def flag(self, key: str) -> bool:
        entry = self._arguments.get(key)
        if entry is not None and entry.letter != "t":
            self._fail(key, f"{{unacceptable_type,{entry.type_name}}}")
        return entry is not None and bool(entry.value)

    def integer(self, key: str) -> int | None:
        entry = self._arguments.get(key)
        if entry is None:
            return None
        if not entry.is_integer:
            # RabbitMQ prints its own string as an Erlang term, quotes included.
            self._fail(key, f'"expected integer, got {entry.type_name}"')
        return int(entry.value)

    def count(self, key: str) -> int | None:
        value = self.integer(key)
        if value is not None and value < 0:
            self._fail(key, f"{{value_negative,{value}}}")
        return value

    def milliseconds(self, key: str, *, zero: bool) -> int | None:
        value = self.integer(key)
        if value is not None:
            if value == 0 and not zero:
                self._fail(key, "{value_zero,0}")
            reason = expiry_error(value)
            if reason:
                self._fail(key, reason)
        return value


def expiry_error(milliseconds: int) -> str | None:
    """Returns RabbitMQ's text for an expiration that it refuses; None for a valid one."""
    if milliseconds < 0:
        return f"{{value_negative,{milliseconds}}}"
    if milliseconds > EXPIRY_MAX_MS:
        return f"{{value_too_large,{milliseconds}}}"
    return None


def _check_names(arguments: Arguments, what: str, queue_type: str) -> None:
    allowed = _BY_TYPE[queue_type]
    for key in arguments:
        if key in _KNOWN and key not in allowed:
            raise precondition_failed(f"invalid arg '{key}' for {what} of queue type {_MODULES[queue_type]}")
        if key.startswith("x-") and key not in _IMPLEMENTED:
            raise not_implemented(f"argument '{key}' of {what}")


def queue_options(
    arguments: Arguments, what: str, *, durable: bool, exclusive: bool, auto_delete: bool
) -> QueueOptions:
    """Reads the arguments of a new queue.

    Args:
        arguments: The arguments of queue.declare.
        what: The queue's description in texts.
        durable: Whether the queue is declared durable and not exclusive.
        exclusive: Whether the queue is declared exclusive.
        auto_delete: Whether the queue is deleted with its last consumer.

    Returns:
        The options.

    Raises:
        Refusal: 406 for a wrong type or value, 540 for an argument that is not implemented.
    """
    letters = arguments.get("x-dead-letter-exchange")
    if letters is not None and not letters.is_string:
        raise precondition_failed(f"invalid type '{letters.type_name}' for arg 'x-dead-letter-exchange' in {what}")
    read = _ArgumentsReader(arguments, what)
    queue_type = read.choice(
        "x-queue-type", ("classic", "quorum", "stream"), "\"unsupported queue type '{}'\"", "classic"
    )
    if queue_type == "stream":
        raise not_implemented(f"argument 'x-queue-type' = 'stream' of {what}")
    _check_names(arguments, what, queue_type)
    options = QueueOptions(
        queue_type=queue_type,
        expires_ms=read.milliseconds("x-expires", zero=False),
        message_ttl_ms=read.milliseconds("x-message-ttl", zero=True),
        dead_letter_exchange=read.text("x-dead-letter-exchange"),
        dead_letter_routing_key=read.text("x-dead-letter-routing-key"),
        max_length=read.count("x-max-length"),
        max_length_bytes=read.count("x-max-length-bytes"),
        overflow=read.choice("x-overflow", _OVERFLOWS, "invalid_overflow", "drop-head"),
        single_active_consumer=read.flag("x-single-active-consumer"),
        delivery_limit=read.count("x-delivery-limit"),
    )
    if options.dead_letter_routing_key is not None and options.dead_letter_exchange is None:
        raise precondition_failed(f"invalid arg 'x-dead-letter-routing-key' for {what}: routing_key_but_no_dlx_defined")
    if queue_type == "quorum":
        if options.overflow == "reject-publish-dlx":
            raise not_implemented(f"argument 'x-overflow' = 'reject-publish-dlx' of quorum {what}")
        for wrong, name in ((auto_delete, "auto-delete"), (exclusive, "exclusive-owner"), (not durable, "non-durable")):
            if wrong:
                raise precondition_failed(f"invalid property '{name}' for {what}")
    return options


def queue_module(arguments: Arguments) -> str:
    """Returns RabbitMQ's module for the queue type in the arguments."""
    entry = arguments.get("x-queue-type")
    return _MODULES["quorum" if entry is not None and entry.value == "quorum" else "classic"]


def alternate_exchange(arguments: Arguments, what: str) -> str | None:
    """Reads the arguments of a new exchange.

    Args:
        arguments: The arguments of exchange.declare.
        what: The exchange's description in texts.

    Returns:
        The name of the alternate exchange, which gets messages that the exchange cannot route; or None.

    Raises:
        Refusal: As `queue_options`.
    """
    entry = arguments.get("alternate-exchange")
    if entry is not None and not entry.is_string:
        raise precondition_failed(f"invalid type '{entry.type_name}' for arg 'alternate-exchange' in {what}")
    for key in arguments:
        if key.startswith("x-"):
            raise not_implemented(f"argument '{key}' of {what}")
    return None if entry is None else str(entry.value)


def consumer_priority(arguments: Arguments, what: str, queue_type: str) -> int:
    """Reads the arguments of a consumer.

    Args:
        arguments: The arguments of basic.consume.
        what: The queue's description in texts.
        queue_type: `classic` or `quorum`.

    Returns:
        The consumer's priority, 0 by default.

    Raises:
        Refusal: As `queue_options`.
    """
    foreign = {"x-stream-offset"} if queue_type == "classic" else {"x-stream-offset", "x-cancel-on-ha-failover"}
    for key in arguments:
        if key in foreign:
            raise precondition_failed(f"invalid arg '{key}' for {what} of queue type {_MODULES[queue_type]}")
        if key.startswith("x-") and key != "x-priority":
            raise not_implemented(f"argument '{key}' of a consumer of {what}")
    return _ArgumentsReader(arguments, what).integer("x-priority") or 0


# ---------------------------------------------------------------------- equivalence


def assert_equivalent(current: bool | str, received: bool | str, what: str, key: str) -> None:
    """Compares a property of an entity with that of another declaration.

    Raises:
        Refusal: 406 if they differ. The text names the property and both values.
    """
    if current != received:
        raise precondition_failed(
            f"inequivalent arg '{key}' for {what}: received '{_word(received)}' but current is '{_word(current)}'"
        )


def _word(value: bool | str) -> str:
    return value if isinstance(value, str) else str(value).lower()


def _assert_same_argument(current: TypedValue | None, received: TypedValue | None, what: str, key: str) -> None:
    if current is None and received is None:
        return
    if current is not None and received is not None:
        if current.same_value(received):
            return
        was, comes = f"'{current.printed()}'", f"'{received.printed()}'"
    else:
        present = current or received
        if key == "x-queue-type" and present is not None and present.value == "classic":
            return
        was, comes = _described(current), _described(received)
    raise precondition_failed(f"inequivalent arg '{key}' for {what}: received {comes} but current is {was}")


def _described(entry: TypedValue | None) -> str:
    return "none" if entry is None else f"the value '{entry.printed()}' of type '{entry.type_name}'"


def assert_queue_arguments(current: Arguments, received: Arguments, what: str, queue_type: str) -> None:
    """Compares the arguments that this type of queue has.

    Raises:
        Refusal: 406 if they differ. The text names the first argument that differs.
    """
    for key in _BY_TYPE[queue_type]:
        _assert_same_argument(current.get(key), received.get(key), what, key)


def assert_exchange_arguments(current: Arguments, received: Arguments, what: str) -> None:
    """Compares `alternate-exchange`, the only argument of exchanges.

    Raises:
        Refusal: 406 if it differs. The text names it.
    """
    key = "alternate-exchange"
    _assert_same_argument(current.get(key), received.get(key), what, key)
