"""The options of consumers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from leveret.errors import printable
from leveret.records import dataclass
from leveret.settings.environment import Section
from leveret.settings.rules import MIB, NAME_STYLES, Rule, option, seconds, size, wrong

if TYPE_CHECKING:
    from collections.abc import Sequence

_ACK_MODES: Final = ("coalesced", "each", "manual", "handoff", "none")
_ON_CANCEL: Final = ("resubscribe", "stop")
_STREAM_OFFSETS: Final = ("first", "last", "next")
_WHY_NO_ZERO: Final = " (AMQP's 0 means unlimited: memory would be unbounded)"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings(Section):
    """How to consume.

    Attributes:
        prefetch: How many deliveries the broker sends ahead of their acknowledgements, 1 to 65535. "auto" begins with
            two for each worker and moves with what the handlers need, between `prefetch_min` and `prefetch_max`.
        prefetch_min: The least that "auto" uses, 1 to 65535. It is never less than `concurrency`.
        prefetch_max: The most that "auto" uses, 1 to 65535.
        concurrency: How many handlers run at once, 1 to 10000.
        ordered_by: What keeps messages in order when several handlers run: those with an equal "routing_key", or an
            equal header, written "header:<name>", are handled one after the other. None keeps no order.
        ack: When messages are acknowledged. "coalesced": after their handlers, many with one basic.ack. "each": after
            their handlers, each with its own. "manual": by the program, with `ack`. "handoff": when they are taken
            over, before they are handled, so that a crash loses up to `handoff_size` of them. "none": the broker
            forgets them as it sends them (`no_ack`), and what is lost on the way is lost.
        ack_delay: Seconds an acknowledgement may wait to be sent with others, 0 to 1.
        read_delay: Seconds that deliveries may wait in the kernel for others, so that one read brings many of them, 0
            to 1, while 25 or more come in that time. It costs up to twice that latency then, and none otherwise; 0
            reads each at once.
        handoff_size: With "handoff": how many messages may be acknowledged and not handled yet, 1 to 1000000.
        processing_timeout: Seconds after which a handler is cancelled and has failed, 0.01 to 86400; it may run a tenth
            longer. None: no limit. A plain function cannot be cancelled: it goes on in its thread, and its worker takes
            no other message before it ends.
        on_cancel: "resubscribe" goes on when the broker cancels the consumer, for example because its queue was
            deleted; "stop" ends it with `ConsumerCancelled`.
        queue_missing_timeout: Seconds that a consumer waits for a queue that was there and is missing now, 0 to 86400;
            then it ends with `NotFound`.
        exclusive: True refuses other consumers of the queue.
        consumer_tag: At most 240 bytes; empty has a new one made, `leveret-` and 16 digits. When the consumer begins
            again on its channel, after a pause or with another prefetch, `~` and a number follow it.
        stream_offset: Where to begin in a stream (`x-stream-offset`): "first", "last" (the last chunk), "next" (what is
            published from now on), or an offset, 0 to 2**63 - 1. None means the broker's default, "next"; other queues
            refuse an offset. After a loss it goes on at the first message that was not handled. Refused together with
            `ack="none"`.
        priority: The consumer's priority (`x-priority`), a 32-bit number; None means the broker's default of 0.
        accept: The content types to take, each of 1 to 255 bytes; empty means those of all serializers that can make
            the model and are safe. Refused together with `serializer`.
        serializer: The serializer that decodes everything; None chooses by content type. "bytes" takes bodies as they
            came, compressed ones too.
        rename: The names that fields have in bodies, as in `ProducerSettings`. The model's own names are read as
            well. Without a model names stay as they come.
        omit_none: True makes fields None that a body does not have, where the model allows None and has no default.
        max_decompressed_size: The largest body after decompression, 1 to 2**40 bytes.
        max_decompression_ratio: How many times its compressed size a body may have, 1 to 1000000.
        body_view_size: Bodies of at least so many bytes, 1 to 2**40, are memoryviews of pooled memory; None: all are
            bytes.

    Example:
        >>> ConsumerSettings(prefetch=500, accept=("application/json",)).replace(concurrency=8).prefetch
        500
    """

    _family = "CONSUMER_"

    prefetch: int | Literal["auto"] = option(100, minimum=1, maximum=65_535, note=_WHY_NO_ZERO, words=("auto",))
    prefetch_min: int = option(1, minimum=1, maximum=65_535)
    prefetch_max: int = option(1000, minimum=1, maximum=65_535)
    concurrency: int = option(1, minimum=1, maximum=10_000)
    ordered_by: str | None = option(None, str, minimum=1, maximum=255)
    ack: Literal["coalesced", "each", "manual", "handoff", "none"] = option("coalesced", str, choices=_ACK_MODES)
    ack_delay: float = seconds(0.005, 0, 1)
    read_delay: float = seconds(0.001, 0, 1)
    handoff_size: int = option(5000, minimum=1, maximum=1_000_000)
    processing_timeout: float | None = option(None, float, unit="s", minimum=0.01, maximum=86_400)
    on_cancel: Literal["resubscribe", "stop"] = option("resubscribe", str, choices=_ON_CANCEL)
    queue_missing_timeout: float = seconds(60.0, 0)
    exclusive: bool = option(False)
    consumer_tag: str = option("", maximum=240)
    stream_offset: int | Literal["first", "last", "next"] | None = option(
        None, int, minimum=0, maximum=2**63 - 1, words=_STREAM_OFFSETS
    )
    priority: int | None = option(None, int, minimum=-(2**31), maximum=2**31 - 1)
    accept: Sequence[str] = option((), items=Rule(kind=str, minimum=1, maximum=255))
    serializer: str | None = option(None, str, minimum=1, maximum=255)
    rename: Literal["camel", "pascal", "kebab"] | None = option(None, str, choices=NAME_STYLES)
    omit_none: bool = option(False)
    max_decompressed_size: int = size(64 * MIB)
    max_decompression_ratio: float = option(200.0, minimum=1, maximum=1_000_000)
    body_view_size: int | None = option(None, int, unit="bytes", minimum=1, maximum=2**40)

    def _check_together(self) -> None:
        if self.prefetch_min > self.prefetch_max:
            text = f"prefetch_min is {self.prefetch_min}; it must not be more than prefetch_max, {self.prefetch_max}"
            raise wrong("prefetch_min", text)
        if self.ordered_by is not None and self.ordered_by != "routing_key":
            kind, _, header = self.ordered_by.partition(":")
            if kind != "header" or not header:
                shown = repr(printable(self.ordered_by, 64))
                raise wrong("ordered_by", f"ordered_by is {shown}; it must be 'routing_key' or 'header:<name>'")
        if self.prefetch == "auto" and self.exclusive:
            # The consumer with the new prefetch has to be there before the old one goes, and two cannot be exclusive.
            raise wrong("prefetch", "prefetch cannot be 'auto' for an exclusive consumer: it cannot be changed")
        if self.prefetch == "auto" and self.ack == "none":
            raise wrong("prefetch", "prefetch cannot be 'auto' without acknowledgements: the broker has no limit then")
        if self.stream_offset is not None and self.ack == "none":
            # RabbitMQ would end the connection (540).
            raise wrong("ack", "ack cannot be 'none' with stream_offset: a stream needs acknowledgements")
