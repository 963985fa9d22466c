"""The options of producers."""

from __future__ import annotations

from typing import Final, Literal

from leveret.message import PERSISTENT, TRANSIENT
from leveret.records import dataclass
from leveret.settings.environment import Section
from leveret.settings.rules import MIB, NAME_STYLES, option, seconds, size

_DELIVERY_MODES: Final = {"transient": TRANSIENT, "persistent": PERSISTENT}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerSettings(Section):
    """How to publish.

    Attributes:
        exchange: Where to publish, at most 255 bytes; the empty name is the default exchange: it routes by queue name.
        serializer: The serializer's name: "json", "text", "bytes", "empty", "hybrid" or a plugin's.
        rename: The names that fields get in bodies: "camel" (`orderId`), "pascal" (`OrderId`) or "kebab" (`order-id`),
            as msgspec's `rename` makes them; None keeps them. For the serializers "json", "msgpack" and "hybrid".
        omit_none: True leaves out fields that are None, for the same serializers.
        compressor: The compressor's name: "gzip", "deflate" or a plugin's; None leaves bodies as they are, except for a
            serializer that has a compressor of its own, as "hybrid" has.
        compression_level: The compressor's level, within its own bounds; None is its default.
        compression_threshold: Bodies of up to this many bytes are not compressed, 0 to 2**40.
        compression_ratio: A compressed body is kept when it is smaller than this share of the original, 0.01 to 1.
        confirms: False publishes without asking the broker to confirm: lost messages stay unknown.
        confirm_timeout: Seconds that a confirm may take after the message is written, 0.001 to 86400; then the outcome
            is UNKNOWN. The time without a channel does not count, and what is sent again has all of them again.
        publish_timeout: Seconds from the call to the outcome of each message, 0.001 to 86400; in a batch or an iterable
            they begin when the message is taken. They cover the waits for the connection, for a broker that blocks
            publishers, for room and for the confirm, and all attempts of a retry policy. Then the outcome is NOT_SENT,
            or UNKNOWN when the message was written, and `PublishError.stage` says what it waited for.
        mandatory: True has messages returned that no queue takes: RETURNED. Events that may have no subscriber are
            published with False, which confirms and drops them. Replies to direct reply-to (keys of the default
            exchange that begin with "amq.rabbitmq.reply-to.") are never mandatory.
        on_loss: What becomes of publishings in flight when the connection or channel is lost: "resend" sends them again
            before anything new, in their order and with the header `x-leveret-resent`; "unknown" ends them UNKNOWN.
            Without confirms they are UNKNOWN in any case.
        delivery_mode: 2 (persistent) or 1 (transient); the words are understood too.
        sent_at_header: True adds the header `x-leveret-sent-at` to each message: when it was published, in microseconds
            since 1970. Consumers measure by it how long messages were on their way. It takes 27 bytes of a message, or
            31 when it has no other headers.
        message_ids: True gives each message without a `message_id` one of its own: a UUID of version 7 as text, which
            is unique, and greater than the one before in the same producer. What is sent again keeps its id.
        max_outstanding: Unconfirmed publishings above which `publish` waits, 1 to 1000000. By default there may be so
            many that bytes decide, except for small messages. "auto" begins with 200 and grows up to `max_buffered`
            while that brings a higher rate of confirms.
        max_outstanding_bytes: Bytes of unconfirmed bodies, 1 to 2**40. What a blocked broker costs is bounded by it.
        max_buffered: Publishings without an outcome above which `publish_nowait` refuses, 1 to 1000000; those that wait
            for a connection included. From the oldest unconfirmed publishing to the newest there are at most eight
            times as many as this or `max_outstanding`, whichever is larger; then calls wait or are refused.
        batch_size: Messages in a chunk of `publish_batch`, 1 to 1000000; fewer when they are large, so that a chunk has
            about 1 MiB.
        batches_in_flight: How many full chunks may be unconfirmed, 1 to 1000.
        max_body_size: The largest body as it is sent, 1 to 2**40 bytes. The default is what RabbitMQ takes from 4.0 on
            unless configured (`max_message_size`; 128 MiB before), and less than the 64 MiB that consumers take by
            default (`max_body_size` of `ConnectionSettings`).
        max_uncompressed_size: The largest body before it is compressed, 1 to 2**40 bytes; consumers refuse larger ones
            by default (`max_decompressed_size`).
        retry: The name of a retry policy, asked after each failure of `publish` and `publish_batch`; None for none.
        circuit_breaker: The name of a circuit breaker, told of failures and asked when it is not closed; None for none.

    Example:
        >>> ProducerSettings(exchange="orders").delivery_mode
        2
    """

    _family = "PRODUCER_"

    exchange: str = option("", maximum=255)
    serializer: str = option("json", minimum=1, maximum=255)
    rename: Literal["camel", "pascal", "kebab"] | None = option(None, str, choices=NAME_STYLES)
    omit_none: bool = option(False)
    compressor: str | None = option(None, str, minimum=1, maximum=255)
    compression_level: int | None = option(None, int, minimum=-(2**31), maximum=2**31 - 1)
    compression_threshold: int = size(1024, 0)
    compression_ratio: float = option(0.9, minimum=0.01, maximum=1)
    confirms: bool = option(True)
    confirm_timeout: float = seconds(5.0)
    publish_timeout: float = seconds(30.0)
    mandatory: bool = option(True)
    on_loss: Literal["resend", "unknown"] = option("resend", choices=("resend", "unknown"))
    delivery_mode: int = option(PERSISTENT, choices=(TRANSIENT, PERSISTENT), aliases=_DELIVERY_MODES)
    sent_at_header: bool = option(False)
    message_ids: bool = option(False)
    max_outstanding: int | Literal["auto"] = option(10_000, minimum=1, maximum=1_000_000, words=("auto",))
    max_outstanding_bytes: int = size(64 * MIB)
    max_buffered: int = option(10_000, minimum=1, maximum=1_000_000)
    batch_size: int = option(1000, minimum=1, maximum=1_000_000)
    batches_in_flight: int = option(2, minimum=1, maximum=1000)
    max_body_size: int = size(16 * MIB)
    max_uncompressed_size: int = size(64 * MIB)
    retry: str | None = option(None, str, minimum=1, maximum=255)
    circuit_breaker: str | None = option(None, str, minimum=1, maximum=255)
