"""The names from OpenTelemetry's semantic conventions for RabbitMQ, version 1.44, that this plugin uses.

The package with these names keeps them in a private module and changes them in minor releases, so they are repeated
here. A test compares them with the package.
"""

from __future__ import annotations

import logging
import traceback
from typing import TYPE_CHECKING, Any, Final

from opentelemetry.trace import StatusCode

from leveret.errors import ConfigurationError, printable

if TYPE_CHECKING:
    from opentelemetry.trace import Span

__version__ = "0.1.0"

logger = logging.getLogger("leveret.opentelemetry")

SCOPE: Final = "leveret_opentelemetry"
SCHEMA_URL: Final = "https://opentelemetry.io/schemas/1.44.0"

SYSTEM: Final = "messaging.system"
RABBITMQ: Final = "rabbitmq"
OPERATION_NAME: Final = "messaging.operation.name"
OPERATION_TYPE: Final = "messaging.operation.type"
DESTINATION: Final = "messaging.destination.name"
ANONYMOUS: Final = "messaging.destination.anonymous"
ROUTING_KEY: Final = "messaging.rabbitmq.destination.routing_key"
DELIVERY_TAG: Final = "messaging.rabbitmq.message.delivery_tag"
MESSAGE_ID: Final = "messaging.message.id"
CONVERSATION_ID: Final = "messaging.message.conversation_id"
MESSAGE_COUNT: Final = "messaging.batch.message_count"
ERROR_TYPE: Final = "error.type"
EXCEPTION_MESSAGE: Final = "exception.message"
EXCEPTION_STACKTRACE: Final = "exception.stacktrace"

#: Leveret's own attributes: the outcome of a publishing (`leveret.Outcome` in lower case), and the confirmed and failed
#: publishings of a batch.
OUTCOME: Final = "leveret.outcome"
CONFIRMED_COUNT: Final = "leveret.batch.confirmed_count"
FAILED_COUNT: Final = "leveret.batch.failed_count"

#: Longest text taken from an exception, in characters.
_LONGEST_TEXT: Final = 1024
_LONGEST_STACKTRACE: Final = 16 * 1024


def text(value: object) -> str:
    """Returns an AMQP short string as text for an attribute; empty for other values.

    Names that are not UTF-8 are decoded with surrogates. Exporters cannot write those, and would drop a whole batch of
    spans because of one.
    """
    return printable(value) if isinstance(value, str) else ""


def checked(option: str, value: Any, *names: str) -> None:
    """Checks that an argument has some methods.

    Raises:
        ConfigurationError: A method is missing. The error names the argument.
    """
    for name in names:
        if not callable(getattr(value, name, None)):
            raise ConfigurationError(f"{option} has no {name}(): it is {type(value).__name__}", option=option)


def describe(operation: str, kind: str, exchange: str, routing_key: str, queue: str = "") -> tuple[str, dict[str, Any]]:
    """Returns the name of a span and its first attributes.

    The name has the queue, or else the exchange, or else (default exchange) the routing key, which then is the queue's
    name. It has no other routing keys, because these may differ for each message, and backends group spans by name. For
    the same reason it has no server-named queues ("amq.gen-...").

    Args:
        operation: The operation's name in Leveret: "publish" or "process".
        kind: The operation's type in the conventions: "send" or "process".
        exchange: The exchange.
        routing_key: The routing key.
        queue: The queue of a consumer, if it is known.
    """
    parts = [part for part in (exchange, routing_key) if part]
    if queue and queue != routing_key:
        parts.append(queue)
    attributes: dict[str, Any] = {
        SYSTEM: RABBITMQ,
        OPERATION_NAME: operation,
        OPERATION_TYPE: kind,
        DESTINATION: ":".join(parts) or "amq.default",
    }
    if routing_key:
        attributes[ROUTING_KEY] = routing_key
    target = queue or exchange or routing_key
    if (target == queue or not exchange) and target.startswith("amq."):
        # Queues with this prefix are named by the broker, or are for direct reply-to.
        attributes[ANONYMOUS] = True
        target = exchange
    return f"{operation} {target}".rstrip(), attributes


def set_error(span: Span, error: BaseException, description: str | None) -> None:
    """Marks a span as failed.

    Args:
        span: The span.
        error: The error.
        description: A text for the span's status; None for none.
    """
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    span.set_attribute(ERROR_TYPE, name)
    span.set_status(StatusCode.ERROR, description)


def error_text(error: BaseException) -> str:
    """Returns an error's text, shortened and writable for exporters; empty if `str` fails."""
    try:
        return _writable(str(error)[:_LONGEST_TEXT])
    except Exception:
        return ""  # the error's own __str__ failed


def record_exception(span: Span, error: BaseException) -> None:
    """Adds an exception event with the traceback to a span. Never raises."""
    try:
        trace = "".join(traceback.format_exception(error))[-_LONGEST_STACKTRACE:]
        span.record_exception(error, {EXCEPTION_MESSAGE: error_text(error), EXCEPTION_STACKTRACE: _writable(trace)})
    except Exception:
        # The SDK calls str(error) as well.
        logger.debug("an exception could not be recorded: %s", type(error).__name__, exc_info=True)


def _writable(value: str) -> str:
    return value.encode("utf-8", "backslashreplace").decode()
