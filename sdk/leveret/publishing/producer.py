"""Publishing: one message at a time above, blocks of frames and ranges of confirms below."""

from __future__ import annotations

import asyncio
import logging
import time
from asyncio import _get_running_loop
from bisect import insort
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from leveret.codecs.encoding import BodyEncoder
from leveret.codecs.forms import ORIGINAL_SIZE, Form, OriginalSize
from leveret.errors import (
    BackpressureError,
    ChannelClosed,
    CodecError,
    ConfigurationError,
    ConfirmTimeout,
    EncodeFailed,
    LeveretError,
    MessageNacked,
    MessageReturned,
    OperationTimeout,
    PublishError,
    again,
    printable,
)
from leveret.message import BatchResult, Outcome
from leveret.monitoring.meters import ProducerMeter
from leveret.plugins.builtin import BytesSerializer
from leveret.publishing.adaptive_window import AdaptiveWindow
from leveret.publishing.batches import Batch, Source
from leveret.publishing.confirms import ConfirmWindow, Receipt, Ticket
from leveret.publishing.guard import PublishGuard
from leveret.publishing.options import (
    Publishing,
    PublishOptions,
    Template,
    exchange_error,
    pack_properties,
    refuse_confirm_timeout,
    repeats,
)
from leveret.publishing.publisher import NO_RECEIPT, PublishBatch, Publisher
from leveret.publishing.template import PublishTemplate
from leveret.publishing.transaction import Transaction
from leveret.transport.waiting import Waiters
from leveret.wire.encoding import FieldValue

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable
    from types import TracebackType
    from typing import Self, Unpack

    from leveret.connection.channel import Channel
    from leveret.connection.connection import Connection
    from leveret.connection.link import Link
    from leveret.plugins.interfaces import BreakerPolicy, RetryPolicy
    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import ProducerSettings
    from leveret.wire.message import Message
    from leveret.wire.runs import ContentRun, SettlementRun

    ConfirmListener = Callable[[int, bool], object]
    Forms = dict[Form, PublishTemplate | OriginalSize]

__all__ = ["Producer"]

logger = logging.getLogger("leveret.publishing")

#: How many routing keys, templates and repeated options keep their packed frames.
_TEMPLATES: Final = 1024
#: A chunk of a batch is encoded before it is sent; this many bytes of bodies are enough to fill the socket.
_CHUNK_BYTES: Final = 1024 * 1024
#: How many failed tickets are kept for `flush`; more are counted.
_UNOBSERVED: Final = 100
#: How finely confirm_timeout is measured: a publishing may be given up this fraction of it too late.
_CLOCK_STEPS: Final = 20
#: How many publishings are sent again before the socket is looked at.
_RESEND: Final = 100
#: What a window that adapts begins with.
_FIRST_WINDOW: Final = 200
#: What stands before the end of a reply text that RabbitMQ cut to 255 bytes may be a part of a character, escaped.
_CUT: Final = len("..." + 3 * "\\udc80")


class Producer(Publisher):
    """Publishes values on a channel of its own. Made by `Client.producer`; use it with `async with`.

    Every publishing ends in exactly one `Outcome`. With `confirms` (the default) a message that ends CONFIRMED was
    taken over by the broker: persistent messages in durable queues are on disk (RabbitMQ: publisher confirms).
    A message may be in the broker and yet end UNKNOWN, when its confirm was lost or late: publishing it again may
    then make a duplicate.

    When the broker closes its channel, for example because an exchange does not exist, the producer goes on with a new
    one. What was published to that exchange fails, and what else was in flight is sent again, so some of it may be in
    queues twice. When its connection is lost, what was in flight ends UNKNOWN, and the producer goes on with the next
    connection (`auto_recovery`).

    Attributes:
        settings: What it was made with.
    """

    def __init__(
        self,
        connect: Link,
        settings: ProducerSettings,
        registry: PluginRegistry,
        *,
        retry: RetryPolicy | None = None,
        circuit_breaker: BreakerPolicy | None = None,
    ) -> None:
        self.settings = settings
        self._connect = connect
        self._encoder = BodyEncoder(registry, settings)
        # The serializer's own function, called for each message.
        self._encode = self._encoder.encode
        self._form = self._encoder.form
        self._loop = asyncio.get_running_loop()
        self._waiters = Waiters(self._loop, asyncio.CancelledError)
        self._channel: Channel | None = None
        self._connection: Connection
        self._window = ConfirmWindow()
        #: Read by `counters` and by the client's monitor.
        self.meter = ProducerMeter(self._window)
        # Packed frames by routing key, template or repeated options, and those of the last key.
        self._templates = {}
        self._last_key = None
        # The same when bodies have several forms: by key, then by form.
        self._forms: dict[object, Forms] = {}
        self._adaptive: AdaptiveWindow | None = None
        if settings.max_outstanding == "auto":
            self._adaptive = AdaptiveWindow(
                min(_FIRST_WINDOW, settings.max_buffered), settings.max_buffered, settings.confirm_timeout / 4
            )
            self._limit = self._adaptive.limit
        else:
            self._limit = settings.max_outstanding
        self._max_buffered = settings.max_buffered
        self._max_bytes = settings.max_outstanding_bytes
        self._confirms = settings.confirms
        self._ready = self._encode is BytesSerializer.encode
        #: It can publish: it was opened, and is neither closed nor lost.
        self._alive = False
        #: Nothing but the window decides whether the next message can be written: the compiled way is open.
        self._plain = False
        self._opened = False
        self._closed = False
        self._done = asyncio.Event()
        #: Why it will never publish again.
        self._error: LeveretError | None = None
        self._reopening: asyncio.Task[None] | None = None
        # Who waits for room, in the order in which they came: (the number of its call, outstanding publishings from
        # which it goes on, deadline, waiter; its result is false when the deadline came first).
        self._waiting = deque()
        self._calls = 0
        # Those of them who wait for the broker's leave or the socket.
        self._flows: set[asyncio.Timeout] = set()
        # Calls of `flush`: (the first delivery tag that it does not wait for, future).
        self._flushing = []
        # (time, highest tag published by then), to give up on what is not confirmed in time.
        self._clock: deque[tuple[float, int]] = deque()
        self._timer = None
        self._listeners: list[tuple[ConfirmListener, bool]] = []
        # What failed and nobody awaited: the first tickets, and how many more there were.
        self._unobserved: dict[Ticket, None] = {}
        self._unobserved_more = 0
        self._guard: PublishGuard | None = None
        # The tickets whose failures the guard learns from `publish` and `publish_batch`, and those of `publish_nowait`
        # for which it was asked.
        self._guarded: set[Ticket] = set()
        self._trials: set[Ticket] = set()
        if retry is not None or circuit_breaker is not None:
            self._guard = PublishGuard(
                retry, circuit_breaker, lambda: self._window.confirmed, lambda: self._error is None and not self._closed
            )

        self._watched = self._is_watched()

    def _is_watched(self) -> bool:
        return bool(self._listeners) or self._adaptive is not None or self._guard is not None

    # ------------------------------------------------------------------ life

    async def open(self) -> Self:
        """Opens the channel; `async with` does it.

        Raises:
            LeveretError: No connection or channel could be opened; it may be tried again.
            ConfigurationError: It is open, being opened, or closed.
        """
        if self._opened or self._closed:
            raise ConfigurationError("a producer can be opened once")
        self._opened = True
        try:
            channel = await self._open_channel(await self._connect())
            if self._done.is_set():
                channel.abandon()
                raise self._not_sent("the producer was closed while it was opened")
        except BaseException:
            self._opened = False
            raise
        self._batch = self.meter.batch = PublishBatch(
            channel.connection.transport.out,
            self._window if self._confirms else None,
            max_body_size=self.settings.max_body_size,
        )
        self._use(channel)
        self._go_on()
        return self

    async def _open_channel(self, connection: Connection) -> Channel:
        channel = await connection.channel()
        try:
            if self._confirms:
                await channel.confirm_select()
            if channel.error is not None:
                # Lost right behind the answer. Nobody would be told, because it has no publisher yet.
                raise again(channel.error)
        except BaseException:
            channel.abandon()
            raise
        return channel

    def _use(self, channel: Channel) -> None:
        """From now on publishings are written on this channel."""
        channel.publisher = self
        self._channel = channel
        self._connection = channel.connection
        self._transport = channel.connection.transport
        self._batch.attach(self._transport.out, channel.number, channel.connection.negotiated.frame_max)

    def _go_on(self) -> None:
        """Publishings may be written."""
        if self._closed:
            return
        self._alive = True
        self._plain = self._guard is None and self._form is not None
        self._wake()

    def _stop(self) -> None:
        self._alive = self._plain = False

    async def close(self) -> None:
        """Waits for the outcomes of what was published, for at most `confirm_timeout` seconds, and closes.

        What has no outcome by then ends UNKNOWN. A failure of `publish_nowait` that nobody looked at is logged.
        """
        if self._closed:
            # Another task closes it. What is in flight there must not be cut off by whoever waits for this.
            await self._done.wait()
            return
        if self._channel is not None:
            self._connection.check_loop()
        self._closed = True
        self._stop()
        for flow in self._flows:
            if not flow.expired():
                flow.reschedule(self._loop.time())
        reopening: asyncio.Task[None] | None = None
        try:
            if self._channel is not None:
                await self.flush()
        except (PublishError, OperationTimeout) as error:
            logger.warning("closing a producer: %s", error)
        finally:
            reopening = self._reopening
            self._give_up(PublishError("the producer was closed", outcome=Outcome.UNKNOWN))
            try:
                if self._channel is not None:
                    await self._channel.close()
                if reopening is not None:
                    await asyncio.wait({reopening})
            finally:
                self._done.set()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<Producer exchange={self.settings.exchange!r} outstanding={self._window.outstanding}>"

    # ------------------------------------------------------------------ what is known

    @property
    def is_open(self) -> bool:
        """True from `open` to `close`, also while its channel is being made again, unless there will be none."""
        return self._channel is not None and self._error is None and not self._closed

    @property
    def outstanding(self) -> int:
        """Publishings that have no outcome yet."""
        return self._window.outstanding

    @property
    def max_outstanding(self) -> int:
        """Unconfirmed publishings above which `publish` waits now; it moves when the setting is "auto"."""
        return self._limit

    @property
    def next_delivery_tag(self) -> int:
        """The sequence number that the next publishing will get.

        Nothing else is published between reading it and a `publish_nowait` right behind, because neither waits.
        """
        return self._window.next_delivery_tag

    def counters(self) -> dict[str, int]:
        """How many publishings were written and how they ended so far, by outcome."""
        return self.meter.read()

    def on_confirm(self, listener: ConfirmListener, *, nacks: bool = False) -> Callable[[], None]:
        """Has a function called for each confirm that comes, with the delivery tag and `multiple`.

        With `multiple` it is about every publishing up to this tag that was not settled before. Outcomes are known when
        it is called. It runs in the event loop between two reads, so it must be quick; what it raises is logged.
        Tickets and receipts tell the same with less to do; this is for those who keep books of their own.

        Args:
            listener: The function.
            nacks: False for basic.ack, True for basic.nack.

        Returns:
            A function that ends it.
        """
        entry = (listener, nacks)
        self._listeners.append(entry)
        self._watched = True

        def remove() -> None:
            if entry in self._listeners:
                self._listeners.remove(entry)
                self._watched = self._is_watched()

        return remove

    # ------------------------------------------------------------------ publishing

    def message(self, value: Any) -> Publishing:
        """Begins a message that is put together call by call; see `Publishing`."""
        return Publishing(value, self)

    def template(self, routing_key: str = "", **options: Unpack[PublishOptions]) -> Template:
        """Packs a routing key and options once, to be given to the publish methods in place of a routing key.

        It is what makes options free: messages published with a template cost as much as those without options.

        Args:
            routing_key: The routing key.
            **options: See `PublishOptions`.

        Returns:
            The template, for this producer only.

        Raises:
            EncodeFailed: The routing key or an option does not fit.
            PublishError: The producer is not open; the outcome is NOT_SENT.
        """
        refuse_confirm_timeout(options)
        template = Template(routing_key, options)
        self._check(template, {})
        return template

    async def _publish(self, value: Any, routing_key: str | Template, options: PublishOptions) -> Receipt:
        """The long way of `publish`."""
        if self._guard is None:
            return await self._publish_once(value, routing_key, options)
        return await self._guard.publish(lambda: self._publish_once(value, routing_key, options))

    async def _publish_once(self, value: Any, routing_key: str | Template, options: PublishOptions) -> Receipt:
        patience = _confirm_timeout(options, self.settings.confirm_timeout)
        template, body = self._packed(value, routing_key, options)
        return await self._publish_packed(template, body, patience)

    async def _publish_raw(self, body: bytes, routing_key: str, raw_properties: bytes) -> Receipt:
        """Publishes a body with properties that are packed already, once, for `RetryQueues`; raises as `publish`."""
        template = self._make_template(routing_key, {}, Form(""), raw_properties)
        return await self._publish_packed(template, body, self.settings.confirm_timeout)

    async def _publish_packed(self, template: PublishTemplate, body: bytes, patience: float) -> Receipt:
        self._connection.check_loop()
        limit = self._limit
        deadline = float("inf")
        if self._waiting or self._full(limit):
            deadline = self._loop.time() + self.settings.publish_timeout
            await self._room(limit, -1, deadline)
        ticket = Ticket(self)
        try:
            self._put(template, body, ticket)
        except BaseException:
            self._wake()  # its turn passes to the next
            raise
        if not self._confirms:
            return NO_RECEIPT
        future = self._observe(ticket)
        if future is not None:
            if self._guard is not None:
                self._guarded.add(ticket)
            await self._confirmed_by(min(deadline, self._loop.time() + patience), ticket, future)
        if ticket.failures is not None:
            raise self._outcome_error(ticket)
        return Receipt(ticket.delivery_tag)

    async def _confirmed_by(self, deadline: float, ticket: Ticket, future: asyncio.Future[None]) -> None:
        """Waits for the outcome of a ticket; the clock gives up at `confirm_timeout` anyway."""
        seconds = deadline - self._loop.time()
        if seconds >= self.settings.confirm_timeout:
            await future
            return
        try:
            async with asyncio.timeout(seconds):
                await future
        except TimeoutError:
            self._hand_out(self._window.give_up(ticket.delivery_tag, self._late(max(0.0, seconds))))
            self._wake()

    def _publish_nowait(self, value: Any, routing_key: str | Template, options: PublishOptions) -> Ticket:
        """The long way of `publish_nowait`."""
        if self._guard is not None and self._guard.ask():
            return self._publish_trial(value, routing_key, options)
        return self._publish_at_once(value, routing_key, options)

    def _publish_at_once(self, value: Any, routing_key: str | Template, options: PublishOptions) -> Ticket:
        refuse_confirm_timeout(options)
        template, body = self._packed(value, routing_key, options)
        if _get_running_loop() is not self._loop:
            self._connection.check_loop()
        if self._full(self._max_buffered):
            stage, text = self._obstacle(self._max_buffered)
            if not stage:
                raise self._not_sent(text)
            raise BackpressureError(f"not sent: {text}")
        ticket = Ticket(self)
        self._put(template, body, ticket)
        return ticket

    def _publish_trial(self, value: Any, routing_key: str | Template, options: PublishOptions) -> Ticket:
        """Publishes what the circuit breaker was asked for, and tells it the outcome."""
        guard = self._guard
        assert guard is not None
        try:
            ticket = self._publish_at_once(value, routing_key, options)
        except PublishError as error:
            guard.failed(1, error)
            raise
        except BaseException:
            guard.gave_up()
            raise
        if not ticket.pending:  # without confirms there is no better news
            guard.succeeded()
            return ticket
        ticket.future = self._loop.create_future()  # so that the window hands it out, whatever its outcome
        self._trials.add(ticket)
        return ticket

    async def enqueue(self, value: Any, routing_key: str | Template = "", **options: Unpack[PublishOptions]) -> Ticket:
        """Publishes one value as `publish_nowait` does, but waits while there is no room.

        Room is what `max_buffered` and `max_outstanding_bytes` allow; first come, first served.

        Args:
            value: What the serializer takes.
            routing_key: The routing key, or what `template` made.
            **options: See `PublishOptions`.

        Returns:
            A ticket, as `publish_nowait`.

        Raises:
            EncodeFailed, BodyTooLarge: As `publish`; nothing was sent.
            PublishError: With outcome NOT_SENT: there was no room within `publish_timeout` seconds, and `stage` says
                why; or the producer is closed.
            CircuitOpen: The producer's circuit breaker does not allow it; nothing was sent.
        """
        self._check_open()
        self._connection.check_loop()
        limit = self._max_buffered
        if self._waiting or self._full(limit):
            await self._room(limit, limit - 1, self._loop.time() + self.settings.publish_timeout)
        try:
            return self.publish_nowait(value, routing_key, **options)
        except BaseException:
            self._wake()  # its turn passes to the next
            raise

    def batch(self, routing_key: str | Template = "", **options: Unpack[PublishOptions]) -> Batch:
        """Collects values, and publishes them when its block ends.

            async with producer.batch("order.created") as batch:
                for order in orders:
                    batch.add(order)
            print(batch.result.confirmed)

        Args:
            routing_key: The routing key of those that are added without one.
            **options: See `PublishOptions`; of all of them.

        Returns:
            The batch, to be used with `async with`. When its block raises nothing is published.
        """
        return Batch(self.publish_batch, routing_key, options, self._max_buffered)

    async def publish_batch(
        self,
        values: Iterable[Any] | AsyncIterable[Any],
        routing_key: str | Template = "",
        **options: Unpack[PublishOptions],
    ) -> BatchResult:
        """Publishes values and waits once for all their outcomes.

        Values are encoded and sent in chunks of up to `batch_size`, with `batches_in_flight` chunks in flight, so an
        iterable of any length takes bounded memory. Chunks of large bodies are smaller. A value that cannot be encoded
        fails alone; the others go. What an asynchronous iterable gives is sent when it makes the loop wait for more, at
        the latest. With a retry policy or circuit breaker values go in parts of ten chunks, and what fails of a part is
        tried again, out of its turn, before the next part.

        Args:
            values: What the serializer takes, or `Publishing` objects, which have a routing key and options of their
                own.
            routing_key: The routing key of the others, or what `template` made.
            **options: See `PublishOptions`; of all of them.

        Returns:
            The outcome of each value. It is true when none failed. When nothing can be sent any more (the producer is
            lost, or there was no room for `publish_timeout` seconds), the values that are left end NOT_SENT; of an
            iterator only those count that were read from it by then.

        Raises:
            EncodeFailed: The routing key or an option does not fit; nothing was sent.
            CircuitOpen: The producer's circuit breaker does not allow it; nothing was sent.
            Exception: What the iterable itself raised; what came before is in flight, and its failures are for `flush`.
        """
        refuse_confirm_timeout(options)
        async with Source(values) as source:
            if self._guard is None:
                return await self._publish_batch(source, routing_key, options)
            return await self._guard.publish_batch(
                source,
                self.settings.batch_size,
                lambda part: self._publish_batch(Source(part), routing_key, options),
            )

    async def _publish_batch(self, source: Source, routing_key: str | Template, options: PublishOptions) -> BatchResult:
        """One attempt."""
        # What does not fit is said before anything is sent.
        template = self._check(routing_key, options)
        self._connection.check_loop()
        settings = self.settings
        # uvloop's clock stands still within a turn of the loop, and counts milliseconds.
        started = time.monotonic()
        ticket = Ticket(self)
        ticket.observed = True
        failures: dict[int, Exception] = {}
        size = 1
        index = 0
        chunk: list[Any] = []
        while True:
            if not chunk:
                chunk = await source.take(size)
                if not chunk:
                    break
            try:
                limit = max(self._limit, settings.batches_in_flight * settings.batch_size)
                full = self._window.outstanding + len(chunk) > limit or self._too_many_bytes()
                if full or self._waiting or not self._writable():
                    deadline = self._loop.time() + settings.publish_timeout
                    await self._room(limit, max(0, limit - len(chunk)), deadline)
                before, published = self._batch.published_bytes, self._batch.published
                done = self._put_chunk(template, routing_key, options, chunk, index, ticket, failures)
            except PublishError as error:
                # Nothing more can be sent. The rest of an iterable, which may have no end, is not read.
                start, index = index, max(index + len(chunk), source.length)
                # Its traceback would hold the values for as long as it is held.
                lost = error.with_traceback(None)
                failures.update((i, lost) for i in range(start, index) if i not in failures)
                break
            index += done
            del chunk[:done]
            if self._batch.published == published:
                self._wake()  # its turn passes to the next
            # Large bodies go in smaller chunks (S15: 1000 small messages, 100 large ones, by their bytes).
            sent = max(1, self._batch.published_bytes - before)
            size = max(1, min(settings.batch_size, _CHUNK_BYTES * done // sent, 10 * size))
            if not self._confirms:
                # Nothing else in this loop lets other tasks run.
                await asyncio.sleep(0)
        if source.error is not None:
            # Nobody gets a result, so failures of what was sent are for `flush`.
            if ticket.pending:
                ticket.observed = False
            elif ticket.failures:
                self._remember(ticket)
            raise source.error
        future = self._observe(ticket)
        if future is not None:
            if self._guard is not None:
                self._guarded.add(ticket)
            await future
        if ticket.failures is not None:
            for i, reason in ticket.failures.items():
                failures[i] = self._failure(reason, 0)
        result = BatchResult(
            count=index,
            confirmed=index - len(failures) if self._confirms else 0,
            elapsed=time.monotonic() - started,
            failures=failures,
            confirms=self._confirms,
        )
        self.meter.add_batch(result)
        logger.debug(
            "published a batch: %d confirmed, %d failed in %.3f s (%.0f msgs/s)",
            result.confirmed,
            len(failures),
            result.elapsed,
            result.rate,
        )
        return result

    def transaction(self) -> Transaction:
        """Publishes in a transaction: when its block ends all is committed, and when it raises nothing is.

            async with producer.transaction() as transaction:
                await transaction.publish(order, "order.created")

        It has a channel of its own, which is opened when the block is entered: its publishings take no delivery tags of
        this producer, are not in `counters`, and no retry policy or circuit breaker hears of them. It is slow, and
        RabbitMQ guarantees less than its name says; see `Transaction`.

        Returns:
            The transaction, to be used with `async with`.
        """
        return Transaction(self)

    async def flush(self, timeout: float | None = None) -> None:
        """Waits until everything published before this call has its outcome.

        Args:
            timeout: Seconds; `confirm_timeout` by default, after which everything is UNKNOWN anyway.

        Raises:
            OperationTimeout: Not everything has an outcome yet; it goes on being waited for.
            PublishError: Publishings of `publish_nowait` that nobody awaited did not end confirmed; the text
                counts them, and the error is that of the first.
        """
        if self._channel is None:
            return
        self._connection.check_loop()
        self._connection.transport.flush()
        if self._window.outstanding:
            target = self._window.next_delivery_tag
            limit = timeout if timeout is not None else self.settings.confirm_timeout * (1 + 2 / _CLOCK_STEPS)
            try:
                async with asyncio.timeout(limit):
                    if self._window.first < target:
                        future: asyncio.Future[None] = self._loop.create_future()
                        self._flushing.append((target, future))
                        await future
            except TimeoutError:
                raise OperationTimeout(
                    f"{self._window.outstanding} publishings have no outcome after {limit:g} s"
                ) from None
        unobserved, self._unobserved = self._unobserved, {}
        more, self._unobserved_more = self._unobserved_more, 0
        if unobserved:
            error = self._outcome_error(next(iter(unobserved)))
            count = len(unobserved) + more
            error.args = (f"{count} publishings that were not awaited failed; the first: {error}",)
            raise error

    # ------------------------------------------------------------------ encoding

    def _packed(
        self, value: Any, routing_key: str | Template, options: PublishOptions
    ) -> tuple[PublishTemplate, bytes]:
        """The frames and the body of a message."""
        if self._form is None:
            return self._packed_form(self._forms_of(routing_key, options), value, routing_key, options)
        return self._template(routing_key, options), self._encoded(value)

    def _check(self, routing_key: str | Template, options: PublishOptions) -> PublishTemplate | None:
        """Raises when these do not fit; returns their frames when all bodies have one form."""
        if self._form is not None:
            return self._template(routing_key, options)
        self._make_template(*_joined(routing_key, options), Form(""))
        return None

    def _template(self, routing_key: str | Template, options: PublishOptions) -> PublishTemplate:
        """The packed frames of bodies that all have one form."""
        key = _key(routing_key, options)
        template = self._templates.get(key) if key is not None else None
        if template is None:
            assert self._form is not None
            template = self._make_template(*_joined(routing_key, options), self._form)
            if key is not None:
                if len(self._templates) >= _TEMPLATES:
                    # Keys that never repeat: start over rather than grow.
                    self._templates.clear()
                self._templates[key] = template
        return template

    def _forms_of(self, routing_key: str | Template, options: PublishOptions) -> Forms:
        key = _key(routing_key, options)
        if key is None:
            return {}
        forms = self._forms.get(key)
        if forms is None:
            if len(self._forms) >= _TEMPLATES:
                self._forms.clear()
            forms = self._forms[key] = {}
        return forms

    def _packed_form(
        self, forms: Forms, value: Any, routing_key: str | Template, options: PublishOptions
    ) -> tuple[PublishTemplate, bytes]:
        """As `_packed`, for bodies of several forms; what is packed is kept in `forms` for the next."""
        key, options = _joined(routing_key, options)
        body, form, original_size = self._encoder.pack(value, compress=options.get("content_encoding") is None)
        packed = forms.get(form)
        if packed is None:
            if original_size < 0:
                packed = self._make_template(key, options, form)
            else:
                packed = OriginalSize(lambda size: self._properties(options, form, size))
            forms[form] = packed
        if isinstance(packed, OriginalSize):
            return self._make_template(key, options, form, packed.of(original_size)), body
        return packed, body

    def _properties(self, options: PublishOptions, form: Form, original_size: int | None = None) -> bytes:
        defaults: dict[str, Any] = {"content_type": form.content_type, "delivery_mode": self.settings.delivery_mode}
        if original_size is None:
            return pack_properties(options, **defaults)
        compressed: PublishOptions = {
            **options,
            "content_encoding": form.content_encoding,
            "headers": {**(options.get("headers") or {}), ORIGINAL_SIZE: FieldValue("l", original_size)},
        }
        return pack_properties(compressed, **defaults)

    def _make_template(
        self, routing_key: str, options: PublishOptions, form: Form, raw_properties: bytes | None = None
    ) -> PublishTemplate:
        self._check_open()
        mandatory: object = options.get("mandatory", self.settings.mandatory)
        if not isinstance(mandatory, bool):
            raise EncodeFailed(f"mandatory is True or False, not {type(mandatory).__name__}")
        return PublishTemplate(
            _text("exchange", options.get("exchange", self.settings.exchange)),
            _text("routing_key", routing_key),
            self._properties(options, form) if raw_properties is None else raw_properties,
            mandatory=mandatory,
            frame_max=self._connection.negotiated.frame_max,
        )

    def _check_open(self) -> None:
        if self._channel is None:
            raise PublishError("the producer is not open; use `async with`", outcome=Outcome.NOT_SENT)

    # ------------------------------------------------------------------ writing

    def _put(self, template: PublishTemplate, body: bytes, ticket: Ticket, index: int = 0) -> None:
        if self._batch.add(template, body, ticket, index) and self._timer is None:
            self._start_clock()

    def _put_chunk(
        self,
        template: PublishTemplate | None,
        routing_key: str | Template,
        options: PublishOptions,
        chunk: list[Any],
        start: int,
        ticket: Ticket,
        failures: dict[int, Exception],
    ) -> int:
        """Encodes and appends values until they are enough for a write; what fails is noted under its index.

        Returns:
            How many of the chunk that were, at least one.
        """
        batch = self._batch
        done = 0
        full = batch.published_bytes + _CHUNK_BYTES
        if not self._alive:
            raise self._not_sent(self._obstacle(0)[1])
        while done < len(chunk) and batch.published_bytes < full and self._alive:
            published = batch.published
            left = full - batch.published_bytes
            try:
                if template is not None:
                    done += self._put_values(template, chunk, done, ticket, start + done, left, Publishing)
                    published = batch.published
                    if done == len(chunk) or type(chunk[done]) is not Publishing:
                        continue
                self._put_one(routing_key, options, chunk[done], start + done, ticket)
            except (CodecError, ConfigurationError) as error:
                done += batch.published - published
                failures[start + done] = error.with_traceback(None)  # it would hold the values
            done += 1
        if self._timer is None and self._window.outstanding:
            self._start_clock()
        return done

    def _put_one(
        self, routing_key: str | Template, options: PublishOptions, value: Any, index: int, ticket: Ticket
    ) -> None:
        """Encodes and appends a value that may have options of its own, or a body of one of several forms."""
        if type(value) is Publishing:
            key, common = _joined(routing_key, options)
            refuse_confirm_timeout(value.options)
            routing_key, options, value = value.key or key, {**common, **value.options}, value.value
        template, body = self._packed(value, routing_key, options)
        self._put(template, body, ticket, index)

    def _writable(self) -> bool:
        return self._alive and self._connection.obstacle() is None

    def _full(self, limit: int) -> bool:
        return self._window.outstanding >= limit or self._too_many_bytes() or not self._writable()

    def _too_many_bytes(self) -> bool:
        return self._window.outstanding_bytes >= self._max_bytes

    def _obstacle(self, limit: int) -> tuple[str, str]:
        """The stage in which a publishing is held up, and by what. The stage is empty when it is forever."""
        if self._channel is None:
            return "", "the producer is not open"
        if self._error is not None or self._closed:
            return "", "the producer is closed"
        if not self._alive:
            return "connection", "the channel was lost, and another one is not open yet"
        obstacle = self._connection.obstacle()
        if obstacle is not None:
            return obstacle
        window = self._window
        return (
            "buffer",
            f"{window.outstanding} publishings of {window.outstanding_bytes} bytes wait for confirms (limit {limit})",
        )

    def _not_sent(self, text: str, stage: str = "") -> PublishError:
        failure = PublishError(f"not sent: {text}", outcome=Outcome.NOT_SENT, stage=stage)
        failure.__cause__ = self._error
        return failure

    async def _room(self, limit: int, low: int, deadline: float) -> None:
        """Waits until the next publishing may be written.

        First come, first served: whoever comes while others wait waits behind them, and whoever was woken and finds
        that somebody was quicker takes its old place. A `low` of -1 is what the window allows when the turn comes: it
        may have grown by then.
        """
        in_time = True
        self._calls += 1
        number = self._calls
        try:
            while in_time:
                if self._error is not None or self._closed:
                    raise self._not_sent(self._obstacle(limit)[1])
                if self._alive and self._connection.obstacle() is not None:
                    in_time = await self._flowing(deadline)
                elif (
                    not self._alive
                    or self._window.outstanding > (low if low >= 0 else self._limit - 1)
                    or self._too_many_bytes()
                    or (self._waiting and self._waiting[0][0] < number)
                ):
                    # No timer for each: the producer's clock looks after all of them.
                    waiter = self._waiters.new()
                    insort(self._waiting, (number, low, deadline, waiter))
                    if self._timer is None:
                        self._start_clock()
                    in_time = await waiter
                else:
                    return
        except BaseException:
            # It may have been this one's turn, which passes to the next.
            self._wake()
            raise
        self._wake()
        stage, text = self._obstacle(limit)
        seconds = self.settings.publish_timeout
        raise self._not_sent(f"{text}; waited publish_timeout of {seconds:g} s", stage)

    async def _flowing(self, deadline: float) -> bool:
        """Waits until the broker and the socket take publishings; returns false when the deadline came first."""
        try:
            async with asyncio.timeout_at(deadline) as flow:
                self._flows.add(flow)
                try:
                    await self._connection.wait_flowing()
                finally:
                    self._flows.discard(flow)
        except TimeoutError:
            # `close` does not let them wait for their deadlines.
            return self._closed
        return True

    def _wake(self) -> None:
        """Wakes those who may publish now, and calls of `flush` that are done."""
        outstanding = self._window.outstanding
        too_many = self._too_many_bytes()
        waiting = self._waiting
        over = self._error is not None
        limit = self._limit
        while waiting and (over or self._alive):
            _, low, _, future = waiting[0]
            if not future.done():
                if not over and (outstanding > (low if low >= 0 else limit - 1) or (too_many and outstanding)):
                    break
                future.set_result(True)
                # Each one that goes on is about to add a publishing; without confirms it takes no room.
                outstanding += self._confirms
            waiting.popleft()
        if self._flushing:
            first = self._window.first
            for target, flushed in self._flushing:
                if target <= first and not flushed.done():
                    flushed.set_result(None)
            self._flushing = [(target, flushed) for target, flushed in self._flushing if not flushed.done()]

    # ------------------------------------------------------------------ outcomes

    def _observe(self, ticket: Ticket) -> asyncio.Future[None] | None:
        """The future of a ticket that is not finished; from now on its failure is somebody's."""
        ticket.observed = True
        if not ticket.pending:
            self._unobserved.pop(ticket, None)
            return None
        future: asyncio.Future[None] | None = ticket.future
        if future is None:
            future = ticket.future = self._loop.create_future()
        return future

    async def wait_for(self, ticket: Ticket) -> Receipt:
        """What awaiting a ticket does; see `publish_nowait`."""
        self._connection.check_loop()
        future = self._observe(ticket)
        if future is not None:
            # Shielded: somebody else may wait for the same ticket, and must not be cancelled with this one.
            await asyncio.shield(future)
        if ticket.failures is not None:
            raise self._outcome_error(ticket)
        return Receipt(ticket.delivery_tag) if self._confirms else NO_RECEIPT

    def _outcome_error(self, ticket: Ticket) -> PublishError:
        """The first error of a ticket that has one."""
        assert ticket.failures
        return self._failure(next(iter(ticket.failures.values())), ticket.delivery_tag)

    def _failure(self, reason: int | Message | LeveretError, delivery_tag: int) -> PublishError:
        if isinstance(reason, PublishError):
            copy = again(reason)
            assert isinstance(copy, PublishError)
            copy.delivery_tag = delivery_tag
            return copy
        if isinstance(reason, LeveretError):
            lost = PublishError(
                f"no confirm came before the channel was lost: {reason}",
                outcome=Outcome.UNKNOWN,
                delivery_tag=delivery_tag,
            )
            lost.__cause__ = reason
            return lost
        if isinstance(reason, int):
            if reason == Outcome.NACKED:
                return MessageNacked(
                    "the broker refused the message (basic.nack)", outcome=Outcome.NACKED, delivery_tag=delivery_tag
                )
            late = self._late(self.settings.confirm_timeout)
            late.delivery_tag = delivery_tag
            return late
        returned = MessageReturned(
            f"no queue took the message: {reason.reply_code} {printable(reason.reply_text)} (exchange "
            f"{printable(reason.exchange)!r}, routing key {printable(reason.routing_key)!r})",
            outcome=Outcome.RETURNED,
            delivery_tag=delivery_tag,
        )
        returned.reply_code, returned.reply_text = reason.reply_code, printable(reason.reply_text)
        returned.exchange, returned.routing_key = reason.exchange, reason.routing_key
        return returned

    @staticmethod
    def _late(seconds: float) -> ConfirmTimeout:
        return ConfirmTimeout(
            f"no confirm within confirm_timeout of {seconds:g} s; the broker may have the message",
            outcome=Outcome.UNKNOWN,
            stage="confirm",
        )

    def _tell_guard(self, guard: PublishGuard, ticket: Ticket) -> bool:
        """Tells the circuit breaker of a finished ticket; true when nothing else is to be done with it."""
        if ticket in self._guarded:
            # `publish` and `publish_batch` tell it themselves, and were cancelled if the ticket is still here.
            self._guarded.discard(ticket)
            return False
        if ticket.failures:
            guard.failed(len(ticket.failures), self._outcome_error(ticket))
        elif ticket in self._trials:
            guard.succeeded()
        if ticket not in self._trials:
            return False
        self._trials.discard(ticket)
        if ticket.future is not None and not ticket.future.done():
            ticket.future.set_result(None)
        if ticket.failures and not ticket.observed:
            self._remember(ticket)
        return True

    def _remember(self, ticket: Ticket) -> None:
        """Keeps a failed ticket that nobody looked at, for `flush`."""
        if len(self._unobserved) < _UNOBSERVED:
            self._unobserved[ticket] = None
        else:
            self._unobserved_more += 1

    def _hand_out(self, finished: list[Ticket] | None) -> None:
        if finished is None:
            return
        guard = self._guard
        if guard is not None:
            finished = [ticket for ticket in finished if not self._tell_guard(guard, ticket)]
        self._complete(finished)

    # ------------------------------------------------------------------ channel.PublisherSink

    def _settle(self, run: SettlementRun) -> None:
        """Applies confirms, when more has to be done than `settled` does."""
        told: list[tuple[int, bool, bool]] | None = [] if self._listeners else None
        finished = self._window.settle(run, told)
        if self._adaptive is not None:
            limited = bool(self._waiting)
            limit = self._adaptive.update(self._loop.time(), self._window.confirmed, limited=limited)
            if limit != self._limit:
                logger.debug("the confirm window is %d now; confirms took %.3f s", limit, self._adaptive.latency)
            self._limit = limit
        # Before those whose publishing has ended, because they may publish again.
        if self._waiting or self._flushing:
            self._wake()
        if finished is not None:
            self._hand_out(finished)
        for tag, multiple, nack in told or ():
            for listener, nacks in tuple(self._listeners):
                if nack is nacks:
                    self._tell(listener, tag, multiple)

    def _tell(self, listener: ConfirmListener, tag: int, multiple: bool) -> None:
        try:
            listener(tag, multiple)
        except Exception:
            logger.exception("a confirm listener failed")

    def returned(self, run: ContentRun) -> None:
        """Ties returned messages to their publishings."""
        for message in run.messages:
            if not self._window.tie_return(message):
                logger.warning("the broker returned a message that is not in flight: %r", message)

    def channel_lost(self, error: LeveretError) -> None:
        """Ends what cannot be confirmed any more, and goes on with another channel unless that is impossible."""
        connection = self._connection
        if self._error is not None:
            return
        if connection.error is not None and not connection.settings.auto_recovery:
            self._give_up(error)
            return
        self._stop()
        if connection.error is None and self._confirms:
            self._hand_out(self._blame(error))
        else:
            self._hand_out(self._window.expire(self._window.next_delivery_tag, error))
        if self._reopening is not None:
            self._reopening.cancel()
        self._reopening = self._loop.create_task(self._reopen(), name="leveret producer: reopen")
        self._wake()

    def _blame(self, error: LeveretError) -> list[Ticket] | None:
        """Ends the publishings that the broker closed the channel for; all of them when it does not say which."""
        window = self._window
        reason = exchange_error(error, str(error), Outcome.UNKNOWN)
        if reason is not None:
            named = _named(reason.reply_text, window.exchanges())
            if named:
                return [ticket for name in named for ticket in window.give_up_exchange(name, reason) or ()]
        return window.expire(window.next_delivery_tag, error)

    async def _reopen(self) -> None:
        """Opens another channel and sends again what still has no outcome."""
        channel = None
        while channel is None:
            connection: Connection | None = None
            try:
                connection = await self._connect.recovered()
                channel = await self._open_channel(connection)
            except OperationTimeout as error:
                # A broker that blocks does not answer. Each attempt takes its time.
                logger.warning("a producer tries again to open a channel: %s", error)
            except LeveretError as error:
                if connection is None or connection.error is None:
                    self._give_up(error)
                    return
                # It was lost again; the link takes its time.
            except Exception as error:
                # A defect of ours must not leave anybody waiting.
                logger.exception("a producer could not open another channel")
                self._give_up(ChannelClosed(f"no other channel could be opened: {type(error).__name__}"))
                return
        self._use(channel)
        if self._confirms:
            self._hand_out(self._window.renumber())
            while not self._batch.resend(_RESEND):
                await self._transport.drain()
                await self._connection.wait_unblocked()
            self._hand_out(self._window.expire(0))  # what did not fit
            self._wake()
        logger.info("a producer goes on with a new channel on connection %r", self._connection.name)
        self._reopening = None
        self._go_on()

    def _give_up(self, error: LeveretError) -> None:
        self._stop()
        if self._error is None:
            self._error = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._reopening is not None and self._reopening is not asyncio.current_task():
            self._reopening.cancel()
        self._hand_out(self._window.expire(self._window.next_delivery_tag, error))
        self._clock.clear()
        self._wake()

    # ------------------------------------------------------------------ time

    def _start_clock(self) -> None:
        self._timer = self._loop.call_later(self.settings.confirm_timeout / _CLOCK_STEPS, self._tick)

    def _tick(self) -> None:
        """Gives up on publishings and waiters whose deadline has passed; one timer for all of them."""
        self._timer = None
        window, clock = self._window, self._clock
        now = self._loop.time()
        while self._waiting and (self._waiting[0][2] <= now or self._waiting[0][3].done()):
            *_, future = self._waiting.popleft()
            if not future.done():
                future.set_result(False)
        if not window.outstanding and not self._waiting:
            clock.clear()
            return
        clock.append((now, window.next_delivery_tag - 1))
        while clock and now - clock[0][0] >= self.settings.confirm_timeout:
            _, tag = clock.popleft()
            if tag >= window.first:
                self._hand_out(window.expire(tag))
                self._wake()
        self._start_clock()


def _named(reply_text: str, exchanges: Iterable[str]) -> list[str]:
    """Which of these exchanges a reply text names: one, or all that begin like it when the text was cut.

    RabbitMQ: "no exchange 'x' in vhost '/'", and "access to exchange 'x' in vhost '/' refused for user 'guest'".
    """
    text = reply_text.partition("exchange '")[2]
    starts = {exchange: f"{printable(exchange, 1024)}' in vhost '" for exchange in exchanges}
    named = [exchange for exchange, start in starts.items() if text.startswith(start)]
    if named:
        return [max(named, key=len)]
    if not text.endswith("..."):
        return []
    return [exchange for exchange, start in starts.items() if len(text) > _CUT and start.startswith(text[:-_CUT])]


def _key(routing_key: str | Template, options: PublishOptions) -> Any:
    """What the packed frames of these are kept under; None when they are not kept."""
    if not options:
        key: object = routing_key  # whatever its type says
        return key if isinstance(key, str | Template) else None
    return repeats(*_joined(routing_key, options))


def _text(name: str, value: object) -> str:
    """A name as plain text; members of a StrEnum are text as well."""
    if not isinstance(value, str):
        raise EncodeFailed(f"{name} is text, not {type(value).__name__}")
    return value if type(value) is str else str.__str__(value)


def _joined(routing_key: str | Template, options: PublishOptions) -> tuple[str, PublishOptions]:
    """What a template says, and these options over it."""
    if isinstance(routing_key, Template):
        return routing_key.routing_key, {**routing_key.options, **options} if options else routing_key.options
    return routing_key, options


def _confirm_timeout(options: PublishOptions, default: float) -> float:
    seconds: object = options.get("confirm_timeout", default)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0.001 <= seconds <= 86400:
        shown = printable(repr(seconds), 64)
        raise ConfigurationError(f"confirm_timeout is {shown}; it must be 0.001 to 86400 s", option="confirm_timeout")
    return float(seconds)
