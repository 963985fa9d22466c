"""The queues in which failed messages wait for their next attempt, or for a person to look at them."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any, Final

from leveret.consuming.failing.error_policy import ATTEMPT_HEADER, ERROR_HEADER, attempts_of, error_text
from leveret.consuming.failing.means import SHARED_PARKING
from leveret.errors import (
    AccessRefused,
    BodyTooLarge,
    ChannelClosed,
    EncodeFailed,
    LeveretError,
    MessageReturned,
    OperationTimeout,
    PublishError,
    TableSyntaxError,
    again,
    printable,
)
from leveret.message import PERSISTENT, Outcome
from leveret.publishing.producer import Producer
from leveret.settings import ProducerSettings
from leveret.topology.topology import Quorum
from leveret.wire.header_bytes import replace_headers
from leveret.wire.own_headers import SENT_AT_HEADER
from leveret.wire.properties import Properties

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from leveret.connection.link import Link
    from leveret.plugins.registry import PluginRegistry
    from leveret.wire.message import Message

__all__ = ["RetryQueues", "parking_queue", "queue_arguments", "retry_queue"]

logger = logging.getLogger("leveret.consuming")

#: The longest that a copy may take in seconds: meanwhile a worker waits for it.
_COPY_TIMEOUT: Final = 5.0
#: After a failure that concerns all copies, and after a refusal, none is tried for so many seconds.
_AWAY_PAUSE: Final = 1.0
_REFUSED_PAUSE: Final = 30.0
#: A policy that is a function may come up with any delay: beyond so many queues it gets the nearest there is.
_MOST_QUEUES: Final = 64
#: Parked messages may be looked at and put back any number of times. RabbitMQ 4.0 and later drop a quorum queue's
#: message after 20, unless told otherwise; 3.10 does not take -1, which 4.x has for "never".
_NEVER: Final = 1_000_000_000


class RetryQueues:
    """Puts copies of failed messages of one queue where they wait. Made by consumers.

    A copy is confirmed by the broker before `delay` or `park` returns, and only then may the caller acknowledge the
    original. So no message is lost; when the process, a channel or a connection goes between the two, there are two of
    it. The same is true when this raises a `PublishError` whose outcome is UNKNOWN: the copy may be in its queue.

    The copy has the body, and every property and header as it came, except:
        `x-leveret-attempt`, `x-leveret-error`: how often it has failed, and what it failed with last.
        `x-leveret-queue`: the queue that it came from.
        `x-leveret-exchange`, `x-leveret-routing-key`: where it was published first; when it comes back, its exchange is
            the default one and its routing key is the queue.
        `CC`, `BCC`: would route it to their queues again; `x-leveret-cc` and `x-leveret-bcc` have them.
        `user_id`: RabbitMQ takes the publisher's own only; `x-leveret-user-id` has it, unchecked from then on.
        `expiration`: would end the wait early, or drop it from the parking queue; `x-leveret-expiration` has it.
        `x-leveret-sent-at`: would count the time until now as one on the way; `x-leveret-first-sent-at` has it.
        `x-delivery-count`, `x-acquired-count`: are the queue's and begin anew.
        `x-death`: `x-leveret-death` has it, unless it only says that the message waited in retry queues; see `_copied`.

    A message whose properties are malformed can be parked only: its copy has none but these headers, and
    `x-leveret-properties` has the packed properties as they came.

    Retry queues are quorum queues, which RabbitMQ replicates in every version from 3.10 on; mirrored classic queues are
    gone in 4.0, and others live on one node. On RabbitMQ they hand messages back at least once
    (`x-dead-letter-strategy`): what the queue does not take, because it is full, unavailable or was deleted, waits on
    and is tried again every three minutes. Other brokers do not know that argument. They have no `x-expires`, which
    would delete waiting messages.

    Args:
        link: The connection that publishes.
        queue: The queue whose consumer has the messages.
        registry: The plugins.
        is_shared: Park in the queue of all transient queues; there are no retry queues then.

    Attributes:
        queue: The queue.
        parked: The name of the parking queue.
        refused: What this user may not do, as the broker has told it when a copy was refused; None until then, and
            again when a copy was confirmed.
    """

    def __init__(self, link: Link, queue: str, registry: PluginRegistry, *, is_shared: bool = False) -> None:
        self.queue = queue
        self.parked = SHARED_PARKING if is_shared else parking_queue(queue)
        self.refused: AccessRefused | None = None
        self._link = link
        self._registry = registry
        self._producer: Producer | None = None
        self._opening = asyncio.Lock()
        # The retry queues by their milliseconds, and all that are known to exist.
        self._delays: dict[int, str] = {}
        self._declared: set[str] = set()
        self._declaring: dict[str, asyncio.Lock] = {}
        self._closed = False
        # Why copies failed last, and until when none is tried again: by their queue, and None for all.
        self._failures: dict[str | None, tuple[float, LeveretError]] = {}

    def __repr__(self) -> str:
        return f"<RetryQueues of {self.queue!r}: {len(self._declared)} declared>"

    async def delay(self, message: Message, seconds: float, error: BaseException | str) -> None:
        """Publishes a copy of a message to a retry queue, from where it comes back; acknowledge the original then.

        Args:
            message: A delivery of the queue, not settled yet.
            seconds: When it comes back.
            error: What the handler raised, or a text.

        Raises:
            PublishError: The copy was not confirmed.
            ChannelClosed: The retry queue could not be declared. `PreconditionFailed`: it exists with other arguments.
            BodyTooLarge: The body was larger than this side takes, and was not kept.
            EncodeFailed: Properties and headers do not fit a frame any more.
            TableSyntaxError: The headers are malformed.
            OperationTimeout: It took longer than 5 s.
            LeveretError: There is no connection.
        """
        body = _body_of(message)
        raw = _copied(message, self.queue, attempts_of(message) + 1, error)
        milliseconds = self._nearest(round(seconds * 1000))
        await self._publish(body, self._delays[milliseconds], milliseconds, raw)

    async def park(self, message: Message, error: BaseException | str) -> None:
        """Publishes a copy of a message to the parking queue; acknowledge the original when this returns.

        Args:
            message: A delivery of the queue, not settled yet.
            error: What the handler raised, or a text.

        Raises:
            LeveretError: As `delay`, but for the TableSyntaxError.
        """
        body = _body_of(message)
        attempt = attempts_of(message) + 1
        try:
            raw = _copied(message, self.queue, attempt, error)
        except TableSyntaxError:
            raw = _packed_up(message, self.queue, attempt, error)
        await self._publish(body, self.parked, None, raw)

    async def prepare_parking(self) -> None:
        """Declares the parking queue.

        Raises:
            LeveretError: It could not be declared.
        """
        await self._guarded(self.parked, lambda: self._declare(self.parked, None))

    async def close(self) -> None:
        """Waits for publishings in flight, for at most `confirm_timeout` seconds, and closes the producer."""
        self._closed = True
        async with self._opening:
            producer, self._producer = self._producer, None
        if producer is not None:
            await producer.close()

    # ------------------------------------------------------------------ publishing

    async def _publish(self, body: bytes, name: str, milliseconds: int | None, raw: bytes) -> None:
        async def publish() -> None:
            producer = await self._open()
            await self._declare(name, milliseconds)
            try:
                await producer.publish_raw(body, name, raw)
            except MessageReturned:
                # The queue was deleted. It is declared once more only: if it is deleted again, that is intended.
                self._declared.discard(name)
                await self._declare(name, milliseconds)
                await producer.publish_raw(body, name, raw)

        await self._guarded(name, publish)
        self.refused = None

    async def _guarded(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Does what needs the broker within `_COPY_TIMEOUT`, and not at all shortly after it has failed.

        Otherwise each failed message would wait as long for a broker that is away, or be refused once more.
        """
        now = asyncio.get_running_loop().time
        for key in (None, name):
            until, error = self._failures.get(key, (0.0, None))
            if error is not None and now() < until:
                raise again(error)
        deadline = asyncio.timeout(_COPY_TIMEOUT)
        try:
            async with deadline:
                await work()
        except (BodyTooLarge, EncodeFailed):
            raise
        except (LeveretError, TimeoutError) as failure:
            if deadline.expired():
                late = OperationTimeout(f"a copy for {printable(name, 255)!r} took longer than {_COPY_TIMEOUT:g} s")
                self._failures[None] = (now() + _AWAY_PAUSE, late)
                raise late from failure
            if isinstance(failure, AccessRefused):
                self.refused = failure
                self._failures[name] = (now() + _REFUSED_PAUSE, failure)
            elif isinstance(failure, LeveretError) and not self._closed:
                key = name if isinstance(failure, ChannelClosed | MessageReturned) else None
                self._failures[key] = (now() + _AWAY_PAUSE, failure)
            raise

    async def _open(self) -> Producer:
        producer = self._producer
        if producer is None or not producer.is_open:
            async with self._opening:
                if self._closed:
                    raise PublishError("not sent: the retry queues are closed", outcome=Outcome.NOT_SENT)
                producer = self._producer
                if producer is None or not producer.is_open:
                    settings = ProducerSettings(
                        serializer="bytes",
                        mandatory=True,
                        max_outstanding=1000,
                        max_body_size=2**40,
                        publish_timeout=_COPY_TIMEOUT,
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
            self._delays[milliseconds] = retry_queue(self.queue, milliseconds)
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
                properties = connection.negotiated.server_properties
                await channel.queue_declare(name, arguments=queue_arguments(self.queue, properties, milliseconds))
            except ChannelClosed as error:
                raise again(error, f"queue {printable(name, 255)!r} could not be declared: {error}") from error
            finally:
                await channel.close()
            self._declared.add(name)


def parking_queue(queue: str) -> str:
    """Returns the name of a durable queue's parking queue."""
    return f"{queue}.parked"


def retry_queue(queue: str, milliseconds: int) -> str:
    """Returns the name of the queue in which messages of a queue wait so long."""
    return f"{queue}.retry.{milliseconds}"


def queue_arguments(queue: str, server_properties: Mapping[str, Any], milliseconds: int | None) -> Mapping[str, Any]:
    """Returns the arguments that a retry or parking queue is declared with.

    Args:
        queue: The queue whose messages it takes.
        server_properties: What the broker has told of itself.
        milliseconds: How long messages wait there; None for a parking queue.
    """
    if milliseconds is None:
        return Quorum(delivery_limit=_NEVER).x_arguments()
    lossless: dict[str, Any] = {}
    if server_properties.get("product") == "RabbitMQ":
        # It needs reject-publish (RabbitMQ: quorum queues, at-least-once dead lettering), which changes nothing
        # here: without a length limit nothing is rejected.
        lossless = {"x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"}
    waiting = Quorum(
        message_ttl=milliseconds / 1000,
        dead_letter_exchange="",
        dead_letter_routing_key=queue,
        arguments=lossless,
    )
    return waiting.x_arguments()


def _body_of(message: Message) -> bytes:
    """The body of a message's copy."""
    body = message.body
    if body is None:
        raise BodyTooLarge(f"the body has {message.body_size} bytes, more than max_body_size; it cannot be copied")
    return body if isinstance(body, bytes) else bytes(body)  # a view of memory that is used again


def _how_it_failed(queue: str, attempt: int, error: BaseException | str) -> dict[str, Any]:
    text = error_text(error) if isinstance(error, BaseException) else printable(error, 200)
    return {ATTEMPT_HEADER: attempt, ERROR_HEADER: text, "x-leveret-queue": queue}


def _where_it_came_from(message: Message) -> dict[str, Any]:
    return {"x-leveret-exchange": message.exchange, "x-leveret-routing-key": message.routing_key}


def _packed_up(message: Message, queue: str, attempt: int, error: BaseException | str) -> bytes:
    """The packed properties of a copy of a message whose own cannot be read."""
    headers = {
        **_how_it_failed(queue, attempt, error),
        **_where_it_came_from(message),
        "x-leveret-properties": message.raw_properties,
    }
    return Properties(headers=headers, delivery_mode=PERSISTENT).encode()


def _copied(message: Message, queue: str, attempt: int, error: BaseException | str) -> bytes:
    """The packed properties of a message's copy; see `RetryQueues`."""
    properties = message.properties
    headers = message.headers
    changes = _how_it_failed(queue, attempt, error)
    if attempt == message.failed_here + 1 or "x-leveret-exchange" not in headers:
        changes.update(_where_it_came_from(message))
    if properties.user_id is not None:
        changes["x-leveret-user-id"] = properties.user_id
    if properties.expiration is not None:
        changes["x-leveret-expiration"] = properties.expiration
    # A reader of the copy would take its queue for a stream.
    renamed = {"CC": "x-leveret-cc", "BCC": "x-leveret-bcc", "x-stream-offset": "x-leveret-stream-offset"}
    renamed[SENT_AT_HEADER] = "x-leveret-first-sent-at"
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
