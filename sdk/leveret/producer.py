"""Publishing: one message at a time above, blocks of frames and ranges of confirms below."""

from __future__ import annotations

import asyncio
import logging
from asyncio import _get_running_loop
from collections import deque
from collections.abc import Sized
from itertools import islice
from typing import TYPE_CHECKING, Any, TypedDict

from leveret._batching import ConfirmWindow, PublishBatch, PublishTemplate, Ticket
from leveret._framing import FieldValue, Properties
from leveret.codecs import ORIGINAL_SIZE, BodyEncoder, Form, OriginalSize
from leveret.errors import (
    BackpressureError,
    BodyTooLarge,
    CodecError,
    ConfigurationError,
    ConfirmTimeout,
    EncodeFailed,
    LeveretError,
    MessageNacked,
    MessageReturned,
    OperationTimeout,
    PublishError,
    printable,
)
from leveret.message import BatchResult, Outcome, Receipt
from leveret.monitoring import ProducerMeter
from leveret.plugins.builtin import BytesSerializer
from leveret.policies import PublishGuard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from datetime import datetime
    from types import TracebackType
    from typing import Self, Unpack

    from leveret._framing import ContentRun, Message, SettlementRun
    from leveret.channel import Channel
    from leveret.connection import Connection
    from leveret.plugins.interfaces import CircuitBreaker, RetryPolicy
    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import ProducerSettings

    Connect = Callable[[], Awaitable[Connection]]

__all__ = ["Producer", "PublishOptions"]

logger = logging.getLogger("leveret.producer")

#: How many routing keys keep their packed frames.
_TEMPLATES = 1024
#: A chunk of a batch is encoded before it is sent; this many bytes of bodies are enough to fill the socket.
_CHUNK_BYTES = 1024 * 1024
#: How many failed tickets are kept for `flush`; more are counted.
_UNOBSERVED = 100
#: The types of values that are ready as they are, with the serializer "bytes".
_ONLY_BYTES = {bytes}
#: How finely confirm_timeout is measured: a publishing may be given up this fraction of it too late.
_CLOCK_STEPS = 20


class PublishOptions(TypedDict, total=False):
    """The keyword arguments of the publish methods, beside value and routing key."""

    exchange: str
    """The exchange; the producer's by default."""
    mandatory: bool
    """Have the broker return the message when no queue takes it; the producer's by default."""
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


class Producer:
    """Publishes values on a channel of its own. Made by `Client.producer`; use it with `async with`.

    Every publishing ends in exactly one `Outcome`. With `confirms` (the default) a message that ends CONFIRMED was
    taken over by the broker: persistent messages in durable queues are on disk (RabbitMQ: publisher confirms).
    A message may be in the broker and yet end UNKNOWN, when its confirm was lost or late: publishing it again may
    then make a duplicate.

    Attributes:
        settings: What it was made with.
    """

    def __init__(
        self,
        connect: Connect,
        settings: ProducerSettings,
        registry: PluginRegistry,
        *,
        retry: RetryPolicy | None = None,
        circuit_breaker: CircuitBreaker | None = None,
    ) -> None:
        self.settings = settings
        self._connect = connect
        self._encoder = BodyEncoder(registry, settings)
        # The serializer's own function, called for each message.
        self._encode = self._encoder.encode
        self._form = self._encoder.form
        self._loop = asyncio.get_running_loop()
        self._channel: Channel | None = None
        self._connection: Connection
        self._window: ConfirmWindow = ConfirmWindow()
        #: Read by `counters` and by the client's monitor.
        self.meter = ProducerMeter(self._window)
        self._batch: PublishBatch
        # Packed frames by routing key, and those of the last one, which mostly is the next one too.
        self._templates: dict[str, PublishTemplate] = {}
        self._last_key: str | None = None
        self._last_template: PublishTemplate
        # The same when bodies have several forms: by routing key, then by form.
        self._forms: dict[str, dict[Form, PublishTemplate | OriginalSize]] = {}
        # Read for each message.
        self._max_buffered = settings.max_buffered
        self._max_outstanding_bytes = settings.max_outstanding_bytes
        self._ready = self._encode is BytesSerializer.encode
        #: It can publish: it was opened, and is neither closed nor lost.
        self._alive = False
        self._opened = False
        self._closed = False
        self._done = asyncio.Event()
        self._error: LeveretError | None = None
        # Who waits for room, in the order in which they came: (outstanding publishings from which it goes on, deadline,
        # future; its result is false when the deadline came first).
        self._waiting: deque[tuple[int, float, asyncio.Future[bool]]] = deque()
        # Calls of `flush`: (the first delivery tag that it does not wait for, future).
        self._flushing: list[tuple[int, asyncio.Future[None]]] = []
        # (time, highest tag published by then), to give up on what is not confirmed in time.
        self._clock: deque[tuple[float, int]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        # Mandatory publishings in flight, oldest first: (tag, exchange, routing key, properties, body).
        self._mandatory: deque[tuple[int, PublishTemplate, bytes]] = deque()
        # What failed and nobody awaited: the first tickets, and how many more there were.
        self._unobserved: dict[Ticket, None] = {}
        self._unobserved_more = 0
        self._guard: PublishGuard | None = None
        # The tickets whose failures the guard learns from `publish` and `publish_batch`, and those of `publish_nowait`
        # for which it was asked.
        self._guarded: set[Ticket] = set()
        self._trials: set[Ticket] = set()
        if retry is not None or circuit_breaker is not None:
            self._guard = PublishGuard(retry, circuit_breaker, lambda: self._window.confirmed, lambda: self._alive)

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
        settings = self.settings
        channel = None
        try:
            self._connection = await self._connect()
            channel = await self._connection.channel()
            if settings.confirms:
                await channel.confirm_select()
            if self._closed:
                raise self._not_sent("the producer was closed while it was opened")
        except BaseException:
            self._opened = False
            if channel is not None:
                channel.abandon()
            raise
        channel.publisher = self
        self._batch = PublishBatch(
            self._connection.transport.out,
            self._window if settings.confirms else None,
            frame_max=self._connection.negotiated.frame_max,
            max_body_size=settings.max_body_size,
        )
        self.meter.batch = self._batch
        self._transport = self._connection.transport
        self._channel = channel
        self._alive = True
        return self

    async def close(self) -> None:
        """Waits for the outcomes of what was published, for at most `confirm_timeout` seconds, and closes.

        What has no outcome by then ends UNKNOWN. A failure of `publish_nowait` that nobody looked at is logged.
        """
        if self._closed:
            # Another task closes it. What is in flight there must not be cut off by whoever waits for this.
            await self._done.wait()
            return
        channel = self._channel
        if channel is not None:
            self._connection.check_loop()
        self._closed = True
        self._alive = False
        try:
            if channel is not None:
                await self.flush()
        except (PublishError, OperationTimeout) as error:
            logger.warning("closing a producer: %s", error)
        finally:
            self._give_up(PublishError("the producer was closed", outcome=Outcome.NOT_SENT))
            try:
                if channel is not None:
                    await channel.close()
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

    # ------------------------------------------------------------------ counters

    @property
    def outstanding(self) -> int:
        """Publishings that have no outcome yet."""
        return self._window.outstanding

    @property
    def next_delivery_tag(self) -> int:
        """The sequence number that the next publishing will get."""
        return self._window.next_delivery_tag

    def counters(self) -> dict[str, int]:
        """How many publishings were written and how they ended so far, by outcome."""
        return self.meter.read()

    # ------------------------------------------------------------------ publishing

    async def publish(self, value: Any, routing_key: str = "", **options: Unpack[PublishOptions]) -> Receipt:
        """Publishes one value and waits for the broker's confirm.

        Many calls may wait at once; up to `max_outstanding` are in flight, and the others wait for their turn.
        When this is cancelled the message may have been written; it is not taken back.

        Args:
            value: What the serializer takes.
            routing_key: The routing key.
            **options: See `PublishOptions`.

        Returns:
            A receipt; the outcome is CONFIRMED, or UNKNOWN when the producer has no confirms.

        Raises:
            EncodeFailed, BodyTooLarge: The value or an option does not fit; nothing was sent.
            MessageNacked: The broker refused it.
            MessageReturned: It was mandatory and no queue took it.
            ConfirmTimeout: No confirm within `confirm_timeout` seconds; the outcome is UNKNOWN.
            PublishError: With outcome NOT_SENT: there was no room within `confirm_timeout` seconds, or the
                producer is closed. With UNKNOWN: the channel or connection was lost; the cause says why.
            CircuitOpen: The producer's circuit breaker does not allow it; nothing was sent.
        """
        if self._guard is None:
            return await self._publish(value, routing_key, options)
        return await self._guard.publish(lambda: self._publish(value, routing_key, options))

    async def _publish(self, value: Any, routing_key: str, options: PublishOptions) -> Receipt:
        """One attempt."""
        template, body = self._encoded(value, routing_key, options)
        self._connection.check_loop()
        limit = self.settings.max_outstanding
        if self._waiting or self._window.outstanding >= limit or self._too_many_bytes() or not self._writable():
            await self._room(limit, limit - 1)
        ticket = Ticket(self)
        try:
            self._put(template, body, ticket)
        except BaseException:
            self._wake()  # its turn passes to the next
            raise
        if not self.settings.confirms:
            return Receipt(0, Outcome.UNKNOWN)
        future = self._observe(ticket)
        if future is not None:
            await (future if self._guard is None else self._guarded_wait(ticket, future))
        if ticket.failures is not None:
            raise self._outcome_error(ticket)
        return Receipt(ticket.delivery_tag)

    def publish_nowait(self, value: Any, routing_key: str = "", **options: Unpack[PublishOptions]) -> Ticket:
        """Publishes one value without waiting; it leaves with the next write.

        Args:
            value: What the serializer takes.
            routing_key: The routing key.
            **options: See `PublishOptions`.

        Returns:
            A ticket. Await it for the receipt; it raises what `publish` raises. `flush` raises for those that
            failed and were not awaited.

        Raises:
            BackpressureError: `max_buffered` publishings or `max_outstanding_bytes` bytes have no outcome yet,
                the socket is full, or the broker blocks publishers; nothing was sent.
            EncodeFailed, BodyTooLarge: As `publish`.
            PublishError: The producer is closed; the outcome is NOT_SENT.
            CircuitOpen: The producer's circuit breaker does not allow it; nothing was sent.
            WrongLoopError: Called from another thread.
        """
        if self._guard is not None and self._guard.ask():
            return self._publish_trial(value, routing_key, options)
        return self._publish_nowait(value, routing_key, options)

    def _publish_nowait(self, value: Any, routing_key: str, options: PublishOptions) -> Ticket:
        template, body = self._encoded(value, routing_key, options)
        window = self._window
        if (
            window.outstanding >= self._max_buffered
            or window.outstanding_bytes >= self._max_outstanding_bytes
            or not self._writable()
        ):
            if not self._alive:
                raise self._not_sent(self._obstacle(self._max_buffered))
            raise BackpressureError(f"not sent: {self._obstacle(self._max_buffered)}")
        if _get_running_loop() is not self._loop:
            self._connection.check_loop()
        ticket = Ticket(self)
        self._put(template, body, ticket)
        return ticket

    def _publish_trial(self, value: Any, routing_key: str, options: PublishOptions) -> Ticket:
        """Publishes what the circuit breaker was asked for, and tells it the outcome."""
        guard = self._guard
        assert guard is not None
        try:
            ticket = self._publish_nowait(value, routing_key, options)
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

    async def publish_batch(
        self, values: Iterable[Any], routing_key: str = "", **options: Unpack[PublishOptions]
    ) -> BatchResult:
        """Publishes values and waits once for all their outcomes.

        Values are encoded and sent in chunks of up to `batch_size`, with two chunks in flight, so an iterable of
        any length takes bounded memory. A value that cannot be encoded fails alone; the others go. With a retry policy
        or circuit breaker they go in parts of ten chunks, and what fails of a part is tried again, out of its turn,
        before the next part.

        Args:
            values: What the serializer takes.
            routing_key: The routing key of all of them.
            **options: See `PublishOptions`; of all of them.

        Returns:
            The outcome of each value. It is true when none failed. When nothing can be sent any more (the channel is
            lost, or there was no room for `confirm_timeout` seconds), the values that are left end NOT_SENT; of an
            iterator only those count that were read from it by then.

        Raises:
            EncodeFailed: The routing key or an option does not fit; nothing was sent.
            CircuitOpen: The producer's circuit breaker does not allow it; nothing was sent.
            Exception: What the iterable itself raised; what came before is in flight, and its failures are for `flush`.
        """
        if self._guard is None:
            return await self._publish_batch(values, routing_key, options)
        return await self._guard.publish_batch(
            values, self.settings.batch_size, lambda part: self._publish_batch(part, routing_key, options)
        )

    async def _publish_batch(self, values: Iterable[Any], routing_key: str, options: PublishOptions) -> BatchResult:
        """One attempt."""
        template = None
        forms: dict[Form, PublishTemplate | OriginalSize] = {}
        if self._form is not None:
            template = self._template(routing_key, options)
        else:
            # What does not fit is said before anything is sent.
            self._make_template(routing_key, options, self._properties(options, Form("")))
            forms = self._forms_of(routing_key, options)
        self._connection.check_loop()
        settings = self.settings
        started = self._loop.time()
        ticket = Ticket(self)
        ticket.observed = True
        failures: dict[int, Exception] = {}
        iterator = iter(values)
        limit = max(settings.max_outstanding, 2 * settings.batch_size)
        size = min(settings.batch_size, 100)
        index = 0
        raised: BaseException | None = None
        while raised is None:
            chunk: list[Any] = []
            try:
                # list.extend keeps what came before the iterable failed.
                chunk.extend(islice(iterator, size))
            except BaseException as error:
                raised = error
            if not chunk:
                break
            start = index
            index += len(chunk)
            try:
                full = self._window.outstanding + len(chunk) > limit or self._too_many_bytes()
                if full or self._waiting or not self._writable():
                    await self._room(limit, max(0, limit - len(chunk)))
                if template is not None:
                    sent = self._put_chunk(template, chunk, start, ticket, failures)
                else:
                    sent = self._put_forms(forms, routing_key, options, chunk, start, ticket, failures)
            except PublishError as error:
                # Nothing more can be sent. The rest of an iterable, which may have no end, is not read.
                index = max(index, len(values)) if isinstance(values, Sized) else index
                failures.update(dict.fromkeys(range(start, index), error))
                break
            # Large bodies go in smaller chunks (S15: 1000 small messages, 100 large ones, by their bytes).
            size = max(1, min(settings.batch_size, _CHUNK_BYTES * len(chunk) // max(1, sent)))
            if not settings.confirms:
                # Nothing else in this loop lets other tasks run.
                await asyncio.sleep(0)
        if raised is not None:
            # Nobody gets a result, so failures of what was sent are for `flush`.
            if ticket.pending:
                ticket.observed = False
            elif ticket.failures:
                self._remember(ticket)
            raise raised
        future = self._observe(ticket)
        if future is not None:
            await (future if self._guard is None else self._guarded_wait(ticket, future))
        if ticket.failures is not None:
            for i, reason in ticket.failures.items():
                failures[i] = self._failure(reason, 0)
        return BatchResult(
            count=index,
            confirmed=index - len(failures) if settings.confirms else 0,
            elapsed=self._loop.time() - started,
            failures=failures,
            confirms=settings.confirms,
        )

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

    def _encoded(self, value: Any, routing_key: str, options: PublishOptions) -> tuple[PublishTemplate, bytes]:
        if self._form is None:
            forms = None if options else self._forms_of(routing_key, options)
            return self._encoded_form(forms, value, routing_key, options)
        try:
            body = self._encode(value)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise self._encoder.failed(error, value)  # noqa: B904 - it has its cause
        if type(body) is not bytes:
            raise self._encoder.not_bytes(body)
        if options or routing_key is not self._last_key:
            return self._template(routing_key, options), body
        return self._last_template, body

    def _template(self, routing_key: str, options: PublishOptions) -> PublishTemplate:
        """The packed frames of bodies that all have one form."""
        if not options and routing_key in self._templates:
            self._last_key, self._last_template = routing_key, self._templates[routing_key]
            return self._last_template
        assert self._form is not None
        template = self._make_template(routing_key, options, self._properties(options, self._form))
        if not options:
            if len(self._templates) >= _TEMPLATES:
                # Routing keys that never repeat: start over rather than grow.
                self._templates.clear()
            self._templates[routing_key] = self._last_template = template
            self._last_key = routing_key
        return template

    def _forms_of(self, routing_key: str, options: PublishOptions) -> dict[Form, PublishTemplate | OriginalSize]:
        if options:
            return {}
        forms = self._forms.get(routing_key)
        if forms is None:
            if len(self._forms) >= _TEMPLATES:
                self._forms.clear()
            forms = self._forms[routing_key] = {}
        return forms

    def _encoded_form(
        self,
        forms: dict[Form, PublishTemplate | OriginalSize] | None,
        value: Any,
        routing_key: str,
        options: PublishOptions,
    ) -> tuple[PublishTemplate, bytes]:
        """Encodes a value whose body may have one of several forms; what is packed is kept in `forms` for the next."""
        body, form, original_size = self._encoder.pack(value, compress=options.get("content_encoding") is None)
        if forms is None:
            size = original_size if original_size >= 0 else None
            return self._make_template(routing_key, options, self._properties(options, form, size)), body
        packed = forms.get(form)
        if packed is None:
            if original_size < 0:
                packed = self._make_template(routing_key, options, self._properties(options, form))
            else:
                packed = OriginalSize(lambda size: self._properties(options, form, size))
            forms[form] = packed
        if isinstance(packed, OriginalSize):
            return self._make_template(routing_key, options, packed.of(original_size)), body
        return packed, body

    def _properties(self, options: PublishOptions, form: Form, original_size: int | None = None) -> bytes:
        unknown = sorted(options.keys() - PublishOptions.__annotations__.keys())
        if unknown:
            raise ConfigurationError(f"publish has no option {unknown[0]!r}", option=unknown[0])
        properties: dict[str, Any] = {k: v for k, v in options.items() if k not in ("exchange", "mandatory")}
        properties.setdefault("content_type", form.content_type)
        properties.setdefault("delivery_mode", self.settings.delivery_mode)
        if original_size is not None:
            properties["content_encoding"] = form.content_encoding
            properties["headers"] = {**(options.get("headers") or {}), ORIGINAL_SIZE: FieldValue("l", original_size)}
        if properties.get("expiration") is not None:
            properties["expiration"] = _milliseconds(properties["expiration"])
        return Properties(**properties).encode()

    def _make_template(self, routing_key: str, options: PublishOptions, raw_properties: bytes) -> PublishTemplate:
        if self._channel is None:
            raise PublishError("the producer is not open; use `async with`", outcome=Outcome.NOT_SENT)
        settings = self.settings
        return PublishTemplate(
            self._channel.number,
            options.get("exchange", settings.exchange),
            routing_key,
            raw_properties,
            mandatory=options.get("mandatory", settings.mandatory),
            frame_max=self._connection.negotiated.frame_max,
        )

    # ------------------------------------------------------------------ writing

    def _put(self, template: PublishTemplate, body: bytes, ticket: Ticket, index: int = 0) -> None:
        tag = self._batch.add(template, body, ticket, index)
        if tag:
            if template.mandatory:
                self._mandatory.append((tag, template, body))
            if self._timer is None:
                self._start_clock()

    def _put_chunk(
        self, template: PublishTemplate, chunk: list[Any], start: int, ticket: Ticket, failures: dict[int, Exception]
    ) -> int:
        """Encodes and appends a chunk; returns its bytes. What fails is noted under its index."""
        if not self._alive:
            raise self._not_sent("the producer is closed")
        before = self._batch.published_bytes
        done = 0
        while done < len(chunk):
            bodies: list[bytes] = []
            error: Exception | None = None
            try:
                if self._ready and not done and set(map(type, chunk)) == _ONLY_BYTES:
                    bodies = chunk
                else:
                    # list.extend keeps what came before a value that fails.
                    bodies.extend(map(self._encode, islice(chunk, done, None)))
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as raised:
                error = self._encoder.failed(raised, chunk[done + len(bodies)])
            first = 0
            while first < len(bodies):
                published = self._batch.published
                tag = self._window.next_delivery_tag
                try:
                    self._batch.add_many(template, bodies, ticket, start + done + first, first)
                    added = len(bodies) - first
                except (BodyTooLarge, TypeError) as raised:
                    added = self._batch.published - published
                    failures[start + done + first + added] = (
                        raised if isinstance(raised, BodyTooLarge) else self._encoder.not_bytes(bodies[first + added])
                    )
                if template.mandatory and self.settings.confirms:
                    self._mandatory.extend((tag + i, template, bodies[first + i]) for i in range(added))
                # Behind what was added, and behind the one that was refused.
                first += added + 1 if first + added < len(bodies) else added
            done += len(bodies)
            if error is not None:
                failures[start + done] = error
                done += 1
        if self._timer is None and self._window.outstanding:
            self._start_clock()
        return self._batch.published_bytes - before

    def _put_forms(
        self,
        forms: dict[Form, PublishTemplate | OriginalSize],
        routing_key: str,
        options: PublishOptions,
        chunk: list[Any],
        start: int,
        ticket: Ticket,
        failures: dict[int, Exception],
    ) -> int:
        """As `_put_chunk`, for bodies of several forms."""
        if not self._alive:
            raise self._not_sent("the producer is closed")
        before = self._batch.published_bytes
        for index, value in enumerate(chunk, start):
            try:
                template, body = self._encoded_form(forms, value, routing_key, options)
                self._put(template, body, ticket, index)
            except CodecError as error:
                failures[index] = error
        return self._batch.published_bytes - before

    def _writable(self) -> bool:
        return self._alive and not self._transport.paused and self._connection.blocked is None

    def _too_many_bytes(self) -> bool:
        return self._window.outstanding_bytes >= self._max_outstanding_bytes

    def _obstacle(self, limit: int) -> str:
        """Names what keeps a publishing from being sent."""
        if self._channel is None:
            return "the producer is not open"
        if self._error is not None or self._closed:
            return "the producer is closed"
        if self._connection.blocked is not None:
            return f"the broker blocks publishers: {self._connection.blocked}"
        if self._transport.paused:
            return f"{self._transport.pending_bytes} bytes wait for the socket"
        window = self._window
        return f"{window.outstanding} publishings of {window.outstanding_bytes} bytes wait for confirms (limit {limit})"

    def _not_sent(self, text: str) -> PublishError:
        failure = PublishError(f"not sent: {text}", outcome=Outcome.NOT_SENT)
        failure.__cause__ = self._error
        return failure

    async def _room(self, limit: int, low: int) -> None:
        """Waits, for at most `confirm_timeout` seconds, until the next publishing may be written.

        First come, first served: whoever comes while others wait waits behind them, and whoever was woken and finds
        that somebody was quicker waits before them.
        """
        seconds = self.settings.confirm_timeout
        deadline = self._loop.time() + seconds
        in_time = True
        woken = False
        try:
            while in_time:
                if not self._alive:
                    raise self._not_sent(self._obstacle(limit))
                if self._connection.blocked is not None or self._transport.paused:
                    in_time = await self._flowing(deadline)
                elif self._window.outstanding > low or self._too_many_bytes() or (self._waiting and not woken):
                    # No timer for each: the producer's clock looks after all of them.
                    future: asyncio.Future[bool] = self._loop.create_future()
                    (self._waiting.appendleft if woken else self._waiting.append)((low, deadline, future))
                    if self._timer is None:
                        self._start_clock()
                    in_time = await future
                    woken = True
                else:
                    return
        except BaseException:
            # It may have been this one's turn, which passes to the next.
            self._wake()
            raise
        self._wake()
        raise self._not_sent(f"{self._obstacle(limit)}; waited confirm_timeout of {seconds:g} s")

    async def _flowing(self, deadline: float) -> bool:
        """Waits until the broker and the socket take publishings; returns false when the deadline came first."""
        try:
            async with asyncio.timeout_at(deadline):
                if self._connection.blocked is not None:
                    await self._connection.wait_unblocked()
                else:
                    await self._transport.drain()
        except TimeoutError:
            return False
        return True

    def _wake(self) -> None:
        """Wakes those who may publish now, and calls of `flush` that are done."""
        outstanding = self._window.outstanding
        too_many = self._too_many_bytes()
        waiting = self._waiting
        while waiting:
            low, _, future = waiting[0]
            if not future.done():
                if self._error is None and (outstanding > low or (too_many and outstanding)):
                    break
                future.set_result(True)
                # Each one that goes on is about to add a publishing.
                outstanding += 1
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

    async def _guarded_wait(self, ticket: Ticket, future: asyncio.Future[None]) -> None:
        self._guarded.add(ticket)
        await future

    async def wait_for(self, ticket: Ticket) -> Receipt:
        """What awaiting a ticket does; see `publish_nowait`."""
        self._connection.check_loop()
        future = self._observe(ticket)
        if future is not None:
            # Shielded: somebody else may wait for the same ticket, and must not be cancelled with this one.
            await asyncio.shield(future)
        if ticket.failures is not None:
            raise self._outcome_error(ticket)
        return Receipt(ticket.delivery_tag, Outcome.CONFIRMED if self.settings.confirms else Outcome.UNKNOWN)

    def _outcome_error(self, ticket: Ticket) -> PublishError:
        """The first error of a ticket that has one."""
        assert ticket.failures
        return self._failure(next(iter(ticket.failures.values())), ticket.delivery_tag)

    def _failure(self, reason: int | Message, delivery_tag: int) -> PublishError:
        if isinstance(reason, int):
            if reason == Outcome.NACKED:
                return MessageNacked(
                    "the broker refused the message (basic.nack)", outcome=Outcome.NACKED, delivery_tag=delivery_tag
                )
            if self._error is not None:
                lost = PublishError(
                    f"no confirm came before the channel was lost: {self._error}",
                    outcome=Outcome.UNKNOWN,
                    delivery_tag=delivery_tag,
                )
                lost.__cause__ = self._error
                return lost
            return ConfirmTimeout(
                f"no confirm within confirm_timeout of {self.settings.confirm_timeout:g} s; the broker may have the "
                "message",
                outcome=Outcome.UNKNOWN,
                delivery_tag=delivery_tag,
            )
        error = MessageReturned(
            f"no queue took the message: {reason.reply_code} {printable(reason.reply_text)} (exchange "
            f"{printable(reason.exchange)!r}, routing key {printable(reason.routing_key)!r})",
            outcome=Outcome.RETURNED,
            delivery_tag=delivery_tag,
        )
        error.reply_code, error.reply_text = reason.reply_code, printable(reason.reply_text)
        error.exchange, error.routing_key = reason.exchange, reason.routing_key
        return error

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
        for ticket in finished or ():
            if self._guard is not None and self._tell_guard(self._guard, ticket):
                continue
            if ticket.future is not None:
                if not ticket.future.done():
                    ticket.future.set_result(None)
            else:
                self._remember(ticket)

    # ------------------------------------------------------------------ channel.PublisherSink

    def settled(self, run: SettlementRun) -> None:
        """Applies confirms."""
        finished = self._window.settle(run)
        # Before those whose publishing has ended, because they may publish again.
        if self._waiting or self._flushing:
            self._wake()
        if finished is not None:
            self._hand_out(finished)
        if self._mandatory:
            self._trim()

    def returned(self, run: ContentRun) -> None:
        """Ties returned messages to their publishings.

        The broker returns in the order of publishing, and before the confirm. So the first mandatory publishing in
        flight with the same bytes is the one, and publishings with the same bytes cannot be told apart by anybody.
        """
        mandatory, window = self._mandatory, self._window
        for message in run.messages:
            for tag, template, body in mandatory:
                if (
                    body == message.body
                    and template.routing_key == message.routing_key
                    and template.exchange == message.exchange
                    and template.raw_properties == message.raw_properties
                    and window.is_open(tag)
                    and not window.is_returned(tag)
                ):
                    window.mark_returned(tag, message)
                    break
            else:
                logger.warning("the broker returned a message that is not in flight: %r", message)

    def _trim(self) -> None:
        """Lets go of the bodies of mandatory publishings that have their outcome."""
        mandatory, window = self._mandatory, self._window
        while mandatory and not window.is_open(mandatory[0][0]):
            mandatory.popleft()

    def channel_lost(self, error: LeveretError) -> None:
        """Ends everything that waits for this channel."""
        self._give_up(error)

    def _give_up(self, error: LeveretError) -> None:
        self._alive = False
        if self._error is None:
            self._error = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._hand_out(self._window.expire(self._window.next_delivery_tag))
        self._mandatory.clear()
        self._clock.clear()
        self._wake()

    # ------------------------------------------------------------------ time

    def _start_clock(self) -> None:
        self._timer = self._loop.call_later(self.settings.confirm_timeout / _CLOCK_STEPS, self._tick)

    def _tick(self) -> None:
        """Gives up on publishings and waiters that are older than `confirm_timeout`; one timer for all of them."""
        self._timer = None
        window, clock = self._window, self._clock
        now = self._loop.time()
        while self._waiting and (self._waiting[0][1] <= now or self._waiting[0][2].done()):
            _, _, future = self._waiting.popleft()
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


def _milliseconds(seconds: object) -> str:
    """The wire's form of an expiration (RabbitMQ: per-message TTL)."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 4294967.295:
        raise EncodeFailed(f"expiration is 0 to 4294967.295 seconds, not {seconds!r}")
    return str(round(seconds * 1000))
