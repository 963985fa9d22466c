"""The queues in which failed messages wait for their next attempt, or for a person to look at them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final, Literal

from leveret.consuming.error_policy import ATTEMPT_HEADER, ERROR_HEADER, Retry, attempts_of, error_text
from leveret.errors import (
    BodyTooLarge,
    ChannelClosed,
    ConfigurationError,
    MessageReturned,
    PublishError,
    again,
    printable,
)
from leveret.message import Outcome
from leveret.publishing.producer import Producer
from leveret.settings import ProducerSettings
from leveret.topology.topology import Quorum
from leveret.wire.header_bytes import replace_headers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from leveret.connection.connection import Connection
    from leveret.connection.link import Link
    from leveret.plugins.registry import PluginRegistry
    from leveret.wire.message import Message

__all__ = ["RetryQueues"]

logger = logging.getLogger("leveret.consuming")

#: A short string's limit (AMQP 0-9-1 section 4.2.5.3).
_NAME_BYTES: Final = 255
#: The longest that stands behind a queue's name: a week in milliseconds.
_LONGEST_SUFFIX: Final = ".retry.604800000"
#: A policy that is a function may come up with any delay: beyond so many queues it gets the nearest there is.
_MOST_QUEUES: Final = 64
#: Parked messages may be looked at and put back any number of times. RabbitMQ 4.0 and later drop a quorum queue's
#: message after 20, unless told otherwise; 3.10 does not take -1, which 4.x has for "never".
_NEVER: Final = 1_000_000_000


class RetryQueues:
    """Puts copies of failed messages of one queue where they wait. Made by consumers.

    A copy is confirmed by the broker before `retry` or `park` returns, and only then may the caller acknowledge the
    original. So no message is lost; when the process, a channel or a connection goes between the two, there are two of
    it. The same is true when this raises a `PublishError` whose outcome is UNKNOWN: the copy may be in its queue.

    The copy has the body, and every property and header as it came, except:
        `x-leveret-attempt`, `x-leveret-error`: how often it has failed, and what it failed with last.
        `x-leveret-exchange`, `x-leveret-routing-key`: where it was published first; when it comes back, its exchange is
            the default one and its routing key is the queue.
        `CC`, `BCC`: would route it to their queues again; `x-leveret-cc` and `x-leveret-bcc` have them.
        `user_id`: RabbitMQ takes the publisher's own only; `x-leveret-user-id` has it, unchecked from then on.
        `expiration`: would end the wait early, or drop it from the parking queue; `x-leveret-expiration` has it.
        `x-delivery-count`, `x-acquired-count`: are the queue's and begin anew.
        `x-death`: `x-leveret-death` has it, unless it only says that the message waited in retry queues; see `_copied`.

    Retry queues are quorum queues, which RabbitMQ replicates in every version from 3.10 on; mirrored classic queues are
    gone in 4.0, and others live on one node. On RabbitMQ they hand messages back at least once
    (`x-dead-letter-strategy`): what the queue does not take, because it is full, unavailable or was deleted, waits on
    and is tried again every three minutes. Other brokers do not know that argument. They have no `x-expires`, which
    would delete waiting messages.

    Args:
        link: The connection that publishes.
        queue: The queue whose consumer has the messages.
        registry: The plugins.

    Raises:
        ConfigurationError: The queue's name leaves no room for the names of retry queues, or may not begin such names.

    Attributes:
        queue: The queue.
        parked: The name of the parking queue.
    """

    def __init__(self, link: Link, queue: str, registry: PluginRegistry) -> None:
        size = len(queue.encode("utf-8", "surrogateescape"))
        most = _NAME_BYTES - len(_LONGEST_SUFFIX)
        if not 1 <= size <= most:
            raise ConfigurationError(
                f"the name of queue {printable(queue, 64)!r} has {size} bytes; with retry queues, whose names begin "
                f"with it, it must have 1 to {most}",
                option="queue",
            )
        if queue.startswith("amq."):
            # The broker chose it, and keeps the prefix for itself.
            raise ConfigurationError(
                f"queue {queue!r} cannot have retry queues: names that begin with 'amq.' are the broker's",
                option="queue",
            )
        self.queue = queue
        self.parked = f"{queue}.parked"
        self._link = link
        self._registry = registry
        self._producer: Producer | None = None
        self._opening = asyncio.Lock()
        # The retry queues by their milliseconds, and all that are known to exist.
        self._delays: dict[int, str] = {}
        self._declared: set[str] = set()
        self._declaring: dict[str, asyncio.Lock] = {}
        self._closed = False

    def __repr__(self) -> str:
        return f"<RetryQueues of {self.queue!r}: {len(self._declared)} declared>"

    async def retry(
        self, message: Message, action: Retry, error: BaseException
    ) -> Literal["retried", "dead_letter", "park", "drop"]:
        """Publishes a copy of a message to the retry queue of its next delay.

        Args:
            message: A delivery of the queue, not settled yet.
            action: Says how often and when.
            error: What the handler raised.

        Returns:
            "retried" when the broker has confirmed the copy: acknowledge the original. When the message has failed more
            than `max_attempts` times, `action.then`, which the caller does; nothing was published.

        Raises:
            PublishError: The copy was not confirmed.
            ChannelClosed: The retry queue could not be declared. `PreconditionFailed`: it exists with other arguments.
            BodyTooLarge: The body was larger than this side takes, and was not kept.
            EncodeFailed: Properties and headers do not fit a frame any more.
            TableSyntaxError: The headers are malformed.
            LeveretError: There is no connection.
        """
        attempts = attempts_of(message)
        if attempts >= action.max_attempts:
            return action.then
        milliseconds = self._nearest(round(action.delays[attempts] * 1000))
        name = self._delays[milliseconds]
        await self._publish(message, name, milliseconds, attempts + 1, error)
        return "retried"

    async def park(self, message: Message, error: BaseException) -> None:
        """Publishes a copy of a message to the parking queue; acknowledge the original when this returns.

        Args:
            message: A delivery of the queue, not settled yet.
            error: What the handler raised.

        Raises:
            LeveretError: As `retry`.
        """
        await self._publish(message, self.parked, None, attempts_of(message) + 1, error)

    async def close(self) -> None:
        """Waits for publishings in flight, for at most `confirm_timeout` seconds, and closes the producer."""
        self._closed = True
        async with self._opening:
            producer, self._producer = self._producer, None
        if producer is not None:
            await producer.close()

    # ------------------------------------------------------------------ publishing

    async def _publish(
        self, message: Message, name: str, milliseconds: int | None, attempt: int, error: BaseException
    ) -> None:
        body = message.body
        if body is None:
            raise BodyTooLarge(f"the body has {message.body_size} bytes, more than max_body_size; it cannot be copied")
        if not isinstance(body, bytes):
            body = bytes(body)  # a view of memory that is used again
        raw = _copied(message, self.queue, attempt, error)
        producer = await self._open()
        await self._declare(name, milliseconds)
        try:
            await producer.publish_raw(body, name, raw)
        except MessageReturned:
            # The queue was deleted. It is declared once more only: if it is deleted again, that is intended.
            self._declared.discard(name)
            await self._declare(name, milliseconds)
            await producer.publish_raw(body, name, raw)

    async def _open(self) -> Producer:
        producer = self._producer
        if producer is None or not producer.is_open:
            async with self._opening:
                if self._closed:
                    raise PublishError("not sent: the retry queues are closed", outcome=Outcome.NOT_SENT)
                producer = self._producer
                if producer is None or not producer.is_open:
                    settings = ProducerSettings(
                        serializer="bytes", mandatory=True, max_outstanding=1000, max_body_size=2**40
                    )
                    producer = await Producer(self._link, settings, self._registry).open()
                    self._producer = producer
        return producer

    # ------------------------------------------------------------------ queues

    def _nearest(self, milliseconds: int) -> int:
        """This delay, or when there are as many queues as there may be, the next longer one, or else the longest."""
        if milliseconds in self._delays:
            return milliseconds
        if len(self._delays) < _MOST_QUEUES:
            self._delays[milliseconds] = f"{self.queue}.retry.{milliseconds}"
            return milliseconds
        longest = max(self._delays)
        nearest = min((delay for delay in self._delays if delay >= milliseconds), default=longest)
        logger.debug("queue %r has %d retry queues: %d ms becomes %d", self.queue, _MOST_QUEUES, milliseconds, nearest)
        return nearest

    async def _declare(self, name: str, milliseconds: int | None) -> None:
        if name in self._declared:
            return
        async with self._declaring.setdefault(name, asyncio.Lock()):
            if name in self._declared:
                return
            connection = await self._link()
            channel = await connection.channel()
            try:
                await channel.queue_declare(name, arguments=self._arguments(connection, milliseconds))
            except ChannelClosed as error:
                raise _named(error, name) from error
            finally:
                await channel.close()
            self._declared.add(name)

    def _arguments(self, connection: Connection, milliseconds: int | None) -> Mapping[str, Any]:
        if milliseconds is None:
            return Quorum(delivery_limit=_NEVER).x_arguments()
        lossless: dict[str, Any] = {}
        if connection.negotiated.server_properties.get("product") == "RabbitMQ":
            # It needs reject-publish (RabbitMQ: quorum queues, at-least-once dead lettering), which changes nothing
            # here: without a length limit nothing is rejected.
            lossless = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
        waiting = Quorum(
            message_ttl=milliseconds / 1000,
            dead_letter_exchange="",
            dead_letter_routing_key=self.queue,
            arguments=lossless,
        )
        return waiting.x_arguments()


def _named(error: ChannelClosed, name: str) -> ChannelClosed:
    """The same error, with a text that says which queue it is about."""
    named = again(error)
    assert isinstance(named, ChannelClosed)
    named.args = (f"retry queue {printable(name, _NAME_BYTES)!r} could not be declared: {error}",)
    return named


def _copied(message: Message, queue: str, attempt: int, error: BaseException) -> bytes:
    """The packed properties of a message's copy; see `RetryQueues`."""
    properties = message.properties
    headers = message.headers
    changes: dict[str, Any] = {ATTEMPT_HEADER: attempt, ERROR_HEADER: error_text(error)}
    if attempt == 1 or "x-leveret-exchange" not in headers:
        changes["x-leveret-exchange"] = message.exchange
        changes["x-leveret-routing-key"] = message.routing_key
    if properties.user_id is not None:
        changes["x-leveret-user-id"] = properties.user_id
    if properties.expiration is not None:
        changes["x-leveret-expiration"] = properties.expiration
    renamed = {"CC": "x-leveret-cc", "BCC": "x-leveret-bcc"}
    dropped = ["x-delivery-count", "x-acquired-count"]
    if "x-death" in headers:
        # It cannot stay. RabbitMQ 4 writes it anew, without what a publisher sent. RabbitMQ 3 continues it, and drops
        # the copy on its way back when the message has expired in this queue before (automatic dead lettering cycles).
        if _has_only_waited(headers["x-death"], queue):
            dropped.append("x-death")
        else:
            renamed["x-death"] = "x-leveret-death"
    return replace_headers(
        message.raw_properties,
        changes,
        drop=dropped,
        rename=renamed,
        drop_properties=("user_id", "expiration"),
    )


def _has_only_waited(deaths: object, queue: str) -> bool:
    """Whether an x-death names nothing but retry queues of this queue: then it says what `x-leveret-attempt` says."""
    return isinstance(deaths, list) and all(
        isinstance(death, dict)
        and death.get("reason") == "expired"
        and str(death.get("queue")).startswith(f"{queue}.retry.")
        for death in deaths
    )
