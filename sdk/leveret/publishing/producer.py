"""Publishing: what a user holds. Its parts have modules of their own; the compiled publisher has the ordinary calls."""

from __future__ import annotations

import asyncio
import logging
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from leveret.codecs.encoding import BodyEncoder
from leveret.errors import LeveretError, OperationTimeout, PublishError, WrongLoopError
from leveret.message import BatchResult, Outcome
from leveret.monitoring.meters import ProducerMeter
from leveret.plugins.builtin import BytesSerializer
from leveret.publishing.adaptive_window import AdaptiveWindow
from leveret.publishing.batches import Batch, BatchPublisher, Source
from leveret.publishing.confirm_listeners import ConfirmListeners
from leveret.publishing.confirms import ConfirmWindow
from leveret.publishing.culprits import Culprits
from leveret.publishing.deadlines import CLOCK_STEPS, Deadlines
from leveret.publishing.given_up import GivenUp
from leveret.publishing.guard import PublishGuard
from leveret.publishing.lifecycle import (
    ProducerLife,
    ProducerState,
    Reopening,
    first_channel,
    idle_channel,
    publishing_channel,
)
from leveret.publishing.long_way import LongWay
from leveret.publishing.nack_doubt import NackDoubt
from leveret.publishing.options import keep, refuse_confirm_timeout
from leveret.publishing.outcomes import TicketBook, closed_by_publishing, error_of, not_sent
from leveret.publishing.packing import Packer
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.publisher import CompiledPublisher
from leveret.publishing.publishing import NO_RECEIPT, Publishing, Receipt, Ticket
from leveret.publishing.resending import Resender
from leveret.publishing.returns import ReturnLog
from leveret.publishing.room import Room, max_span
from leveret.publishing.template import Template
from leveret.publishing.transaction import Transaction
from leveret.publishing.writing import MessageWriter
from leveret.transport.waiting import Waiters

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable, Iterator
    from types import TracebackType
    from typing import Self, Unpack

    from leveret.connection.channel import Channel
    from leveret.connection.connection import Connection
    from leveret.connection.link import Link
    from leveret.plugins.interfaces import BreakerPolicy, RetryPolicy
    from leveret.plugins.registry import PluginRegistry
    from leveret.publishing.confirm_listeners import ConfirmListener
    from leveret.publishing.options import PublishOptions
    from leveret.settings import ProducerSettings
    from leveret.wire.runs import ContentRun, SettlementRun


__all__ = ["Producer"]

logger = logging.getLogger("leveret.publishing")

#: Seconds that `flush` waits longer than the deadline of each publishing, which is noticed late in a busy event loop.
_FLUSH_SLACK: Final = 1.0
#: The first size of a window that adapts.
_FIRST_WINDOW: Final = 200


@contextmanager
def _failing(publishing: Publishing[Any]) -> Iterator[None]:
    """Keeps errors for the task that awaits a publishing."""
    try:
        yield
    except WrongLoopError:
        raise
    except Exception as error:
        publishing.fail(error)


class Producer(CompiledPublisher):
    """Publishes values on a channel of its own. Made by `Client.producer`; use it with `async with`.

    When it is closed and all is confirmed, the next producer on the connection gets its channel.

    Every publishing ends in exactly one `Outcome`. With `confirms` (the default) a message that ends CONFIRMED was
    taken over by the broker: persistent messages in durable queues are on disk (RabbitMQ: publisher confirms).
    A message may be in the broker and yet end UNKNOWN, when its confirm was lost or late: publishing it again may
    then make a duplicate.

    When its connection or channel is lost, the producer goes on with the next one (`auto_recovery`). What was in flight
    is sent again before anything new, in its order, with the header `x-leveret-resent`: some of it may be in queues
    twice. Only messages that the broker closed the channel for fail. With `on_loss="unknown"` what was in flight ends
    UNKNOWN instead. Meanwhile `publish` and batches wait, `publish_nowait` and `enqueue` keep messages for the next
    channel, and each message has until its `publish_timeout`.

    Attributes:
        settings: Its options.
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
        self._loop = asyncio.get_running_loop()
        self._encoder = BodyEncoder(registry, settings)
        # The serializer's own function, called for each message.
        self._encode = self._encoder.encode
        self._ready = self._encode is BytesSerializer.encode
        self._waiters = Waiters(self._loop, asyncio.CancelledError, asyncio.InvalidStateError)
        self._channel: Channel | None = None
        self._connection: Connection
        self._window = ConfirmWindow()
        #: Read by `counters` and by the client's monitor.
        self.meter = ProducerMeter(self._window, self._encoder.compressor)
        self._life = ProducerLife()
        self._closed = asyncio.Event()
        self._packer = Packer(settings, self._encoder, self._encoded)
        self._tickets = TicketBook(self._window, self._loop, settings.confirm_timeout)
        self._deadlines = Deadlines(settings.publish_timeout, settings.confirm_timeout)
        self._room = Room(
            self._life,
            self._window,
            settings,
            self._waiters,
            self._run_clock,
            self.meter,
            write=self._write_in_turn,
            link=connect,
        )
        self._open_channel = partial(publishing_channel, confirms=settings.confirms)
        self._reopening = Reopening(connect, self._open_channel, self._take_over, self._give_up)
        self._culprits = Culprits(self._window, settings.on_loss)
        self._resender = Resender(self._window, self._culprits, self._tickets, self._hand_out, settings.confirm_timeout)
        self._doubt = NackDoubt(connect, partial(self._reopen, None, paced=True))
        self._returns = ReturnLog()
        self._writer = MessageWriter(
            settings,
            self._life,
            self._window,
            self._room,
            self._packer,
            self._tickets,
            self._deadlines,
            owner=self,
            hand_out=self._hand_out,
            start_clock=self._run_clock,
            guarded=self._guarded,
        )
        self._batches = BatchPublisher(self._writer, self._put_values, self.meter)
        self._guard = None
        self._breaker = circuit_breaker
        self._publish_timeout = settings.publish_timeout
        if retry is not None or circuit_breaker is not None:
            self._guard = PublishGuard(retry, circuit_breaker, settings, self._tickets, self._window, self._life)
        self._long_way = LongWay(
            settings, self._packer, self._writer, self._guard, lambda: Publishing(self, self._waiters)
        )
        self._listeners = ConfirmListeners(self._update_caches)
        self._adaptive: AdaptiveWindow | None = None
        if settings.max_outstanding == "auto":
            self._adaptive = AdaptiveWindow(
                min(_FIRST_WINDOW, settings.max_buffered), settings.max_buffered, settings.confirm_timeout / 4
            )
            self._set_limit(self._adaptive.limit)
        else:
            self._set_limit(settings.max_outstanding)
        # What the compiled publisher looks at.
        self._last_key = None
        self._waiting = self._room.waiting
        self._flushing = self._tickets.flushing
        self._max_buffered = settings.max_buffered
        self._max_bytes = settings.max_outstanding_bytes
        self._max_span = max_span(settings)
        self._confirms = settings.confirms
        self._timer = None
        self._update_caches()

    def _update_caches(self) -> None:
        """Computes what the compiled publisher reads instead of the state and the parts."""
        #: Messages can be written.
        self._alive = self._life.writable
        #: Confirms concern more than their tickets.
        self._watched = bool(self._listeners or self._adaptive is not None or self._doubt.armed)

    def _move(self, state: ProducerState) -> None:
        self._life.move(state)
        self._update_caches()

    def _set_limit(self, limit: int) -> None:
        self._limit = self._room.limit = limit

    # ------------------------------------------------------------------ life

    async def open(self) -> Self:
        """Opens the channel unless it is open; waits for a lost connection, and while the broker blocks publishers.

        Raises:
            PublishError: `publish_timeout` passed; the outcome is NOT_SENT, the stage "connection" or "blocked".
            LeveretError: No connection or channel could be opened; it may be tried again.
            ConfigurationError: Another task is opening it, or it was closed or lost.
        """
        if self._life.usable:
            return self
        self._life.check_may_open()
        self._move(ProducerState.OPENING)
        try:
            channel = idle_channel(self._connect, confirms=self._confirms)
            if channel is None:
                channel = await first_channel(self._connect, self._open_channel, self.settings, "the producer")
            if not self._life.at(ProducerState.OPENING):
                channel.abandon()
                raise not_sent("the producer was closed while it was opened", cause=self._life.error)
        except BaseException:
            if self._life.at(ProducerState.OPENING):
                self._move(ProducerState.NEW)
            raise
        self._batch = self.meter.batch = PublishBatch(
            channel.connection.transport.out,
            self._window if self._confirms else None,
            held=self._window,
            max_body_size=self.settings.max_body_size,
        )
        self._window.begin_at(channel.published)
        self._use(channel)
        self._move(ProducerState.OPEN)
        self._wake()
        return self

    def _use(self, channel: Channel) -> None:
        """Writes messages on this channel from now on."""
        connection = channel.connection
        channel.publisher = self
        self._channel = channel
        self._connection = connection
        self._transport = connection.transport
        self._batch.attach(self._transport.out, channel.number, connection.negotiated.frame_max)
        self._writer.use(self._batch, connection)

    async def close(self) -> None:
        """Waits for the outcomes of what was published, and closes.

        It takes up to `confirm_timeout` seconds. While messages wait for room and others are confirmed, it goes on: for
        up to `publish_timeout` and `confirm_timeout` seconds in all. What has no outcome by then ends UNKNOWN or
        NOT_SENT, and the log names it. A failure of `publish_nowait` that no task awaited is logged. It does not wait
        when the callers of all that has no outcome were cancelled. A client that is closed gives its producers
        `close_timeout` for the same.
        """
        if self._life.at(ProducerState.DRAINING, ProducerState.CLOSING, ProducerState.CLOSED):
            # Another task closes it, and must not be cancelled with this one.
            await self._closed.wait()
            return
        if self._channel is not None:
            self._connection.check_loop()
        self._move(ProducerState.DRAINING if self._life.at(ProducerState.OPEN) else ProducerState.CLOSING)
        # The clock may give up two of its steps late.
        patience = self.settings.confirm_timeout * (1 + 2 / CLOCK_STEPS)
        deadline = self._loop.time() + patience
        deserted = not self._waiting and not self._long_way.tasks and self._window.is_deserted()
        try:
            if self._channel is not None and not deserted:
                await self._drain(patience)
                deadline = self._loop.time() + patience
        except (PublishError, OperationTimeout) as error:
            logger.warning("closing a producer: %s", error)
        finally:
            reopening = self._reopening.task
            if self._life.at(ProducerState.DRAINING):
                self._move(ProducerState.CLOSING)
            self._give_up(PublishError("the producer was closed", outcome=Outcome.UNKNOWN))
            try:
                if self._channel is not None and deserted:
                    self._channel.abandon()
                elif self._channel is not None and not self._leave(self._channel):
                    await self._channel.close(max(0.0, deadline - self._loop.time()))
                if ending := self._long_way.tasks | ({reopening} if reopening is not None else set()):
                    await asyncio.wait(ending)
            finally:
                self._move(ProducerState.CLOSED)
                self._closed.set()

    async def _drain(self, patience: float) -> None:
        """Flushes, and goes on after `patience` seconds while the line for room moves; raises as `flush`."""
        until = self._loop.time() + self.settings.publish_timeout
        while True:
            before = self._window.first, self._window.next_delivery_tag
            try:
                return await self.flush(patience)
            except OperationTimeout:
                stands = before == (self._window.first, self._window.next_delivery_tag)
                if stands or not self._waiting or self._loop.time() >= until:
                    raise

    def _leave(self, channel: Channel) -> bool:
        """Leaves the channel to the next producer, unless confirms may still come or none will; returns whether so."""
        published = self._window.published if self._confirms else None
        if published is None or not channel.connection.confirm_channels.give(channel):
            return False
        channel.published = published
        return True

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
        return self._life.usable

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
        return self.meter.counters()

    def on_confirm(self, listener: ConfirmListener, *, nacks: bool = False) -> Callable[[], None]:
        """Calls a function for each confirm that comes, with the delivery tag and `multiple`.

        With `multiple` it is about every publishing up to this tag that was not settled before. Outcomes are known when
        it is called. It runs in the event loop between two reads, so it must be quick; its errors are logged.
        Tickets and receipts tell the same at less cost; listeners are for code that keeps its own records by tag.

        Args:
            listener: The function; it is not awaited.
            nacks: False for basic.ack, True for basic.nack.

        Returns:
            A function that ends it.

        Raises:
            ConfigurationError: The listener is no function, or an `async def`.
        """
        return self._listeners.add(listener, nacks=nacks)

    # ------------------------------------------------------------------ publishing

    def template(self, routing_key: str = "", **options: Unpack[PublishOptions]) -> Template:
        """Packs a routing key and options once, to be given to the publish methods in place of a routing key.

        Messages published with a template cost as much as messages with a routing key alone.

        Args:
            routing_key: The routing key.
            **options: See `PublishOptions`.

        Returns:
            The template. Other producers take it as well, but pack it with their own defaults.

        Raises:
            EncodeFailed: The routing key or an option does not fit.
            PublishError: The producer is not open; the outcome is NOT_SENT.
        """
        refuse_confirm_timeout(options)
        template = Template(routing_key, keep(options))
        frames = self._packer.check(template, {})
        if frames is not None:
            template.pack(self._encoder, frames)
        return template

    def publish_raw(self, body: bytes, routing_key: str, raw_properties: bytes) -> Publishing[Receipt]:
        """Publishes a body as it is, with properties that are packed already.

        No retry policy or circuit breaker hears of it.

        Args:
            body: The body.
            routing_key: The routing key.
            raw_properties: What `Properties.encode` returns.

        Returns:
            As `publish`, which also tells what is raised.
        """
        publishing = Publishing[Receipt](self, self._waiters)
        with _failing(publishing):
            self._check_takes()
            self._long_way.publish_raw(publishing, body, routing_key, raw_properties)
        return publishing

    def publish_by(
        self, deadline: float, /, value: Any, routing_key: str | Template = "", **options: Unpack[PublishOptions]
    ) -> Publishing[Receipt]:
        """Publishes as `publish` does, with a deadline by the event loop's clock in place of `publish_timeout`."""
        publishing = Publishing[Receipt](self, self._waiters)
        with _failing(publishing):
            self._publish(publishing, value, routing_key, options, deadline)
        return publishing

    def enqueue_by(
        self, deadline: float, /, value: Any, routing_key: str | Template = "", **options: Unpack[PublishOptions]
    ) -> Publishing[Ticket]:
        """Publishes as `enqueue` does, with a deadline by the event loop's clock in place of `publish_timeout`."""
        publishing = Publishing[Ticket](self, self._waiters, gives_ticket=True)
        with _failing(publishing):
            self._enqueue(publishing, value, routing_key, options, deadline)
        return publishing

    def _publish(
        self,
        publishing: Publishing[Receipt],
        value: Any,
        routing_key: str | Template,
        options: PublishOptions,
        deadline: float | None = None,
    ) -> None:
        """The long way of `publish`, for whatever the compiled way does not take."""
        if self._begins_later(self._publish, publishing, value, routing_key, options, deadline):
            return
        self._check_takes()
        self._long_way.publish(publishing, value, routing_key, options, deadline)

    def _enqueue(
        self,
        publishing: Publishing[Ticket],
        value: Any,
        routing_key: str | Template,
        options: PublishOptions,
        deadline: float | None = None,
    ) -> None:
        """The long way of `enqueue`, for whatever the compiled way does not take."""
        if self._begins_later(self._enqueue, publishing, value, routing_key, options, deadline):
            return
        self._check_takes()
        self._long_way.enqueue(publishing, value, routing_key, options, deadline)

    def _begins_later(self, begin: Callable[..., None], publishing: Publishing[Any], *arguments: Any) -> bool:
        """Has a publishing begin in the producer's loop when it was called where none runs; returns whether so.

        `asyncio.run_coroutine_threadsafe` and `run_until_complete` are called like that.
        """
        if self._channel is None or not self._writer.is_outside():
            return False

        def in_its_loop() -> None:
            with _failing(publishing):
                begin(publishing, *arguments)

        self._loop.call_soon_threadsafe(in_its_loop)
        return True

    def _try_again(self, publishing: Publishing[Receipt]) -> None:
        """Has the policies decide what becomes of a publishing that was written and failed."""
        packed = publishing.template, publishing.body
        self._long_way.try_again(publishing, packed, self._outcome_error(publishing.again()))

    def _publish_nowait(self, value: Any, routing_key: str | Template, options: PublishOptions) -> Ticket:
        """The long way of `publish_nowait`, for whatever the compiled way does not take."""
        self._check_takes()
        return self._guarded(lambda: self._writer.publish_nowait(value, routing_key, options))

    def _guarded(self, publish: Callable[[], Ticket]) -> Ticket:
        """Publishes without waiting, if the circuit breaker allows it."""
        guard = self._guard
        return guard.publish_trial(publish, self._loop) if guard is not None and guard.ask() else publish()

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
        return Batch(self.publish_batch, routing_key, keep(options), self._max_buffered)

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
            values: What the serializer takes, or `MessageBuilder` objects, which have their own routing key and
                options.
            routing_key: The routing key of the others, or what `template` made.
            **options: See `PublishOptions`; of all of them.

        Returns:
            The outcome of each value. It is true when none failed. Each value has `publish_timeout` seconds from when
            it is taken to its outcome; the batch as a whole has no deadline. When nothing can be sent any more (the
            producer is lost, or a value was not written in its time), the values that are left end NOT_SENT; of an
            iterator only those count that were read from it by then.

        Raises:
            EncodeFailed: The routing key or an option does not fit; nothing was sent.
            CircuitOpen: The producer's circuit breaker does not allow it; nothing was sent.
            Exception: What the iterable itself raised; what came before is in flight, and `flush` reports its failures.
        """
        refuse_confirm_timeout(options)
        options = keep(options)
        guard = self._guard
        each = None if guard is None else self._batches.identifying(routing_key, options)
        async with Source(values, each) as source:
            if guard is None:
                return await self._batches.publish(source, routing_key, options)
            return await guard.publish_batch(
                source,
                lambda part, deadline, sends: self._batches.publish(
                    part, routing_key, options, deadline, reporting=guard.reporting, sends=sends
                ),
            )

    def transaction(self) -> Transaction:
        """Publishes in a transaction: when its block ends all is committed, and when it raises nothing is.

            async with producer.transaction() as transaction:
                await transaction.publish(order, "order.created")

        It has a channel of its own, which is opened when the block is entered: its publishings take no delivery tags of
        this producer, are not in `counters`, and no retry policy or circuit breaker sees them. It is slow, and
        RabbitMQ guarantees less than its name says; see `Transaction`.

        Returns:
            The transaction, to be used with `async with`.
        """
        refusal = self._room.refusal
        return Transaction(self._connect, self.settings, self._packer, lambda: None if self._life.usable else refusal())

    async def flush(self, timeout: float | None = None) -> None:
        """Waits until everything published before this call has its outcome.

        Args:
            timeout: Seconds; by default `publish_timeout`, within which all of them have their outcome.

        Raises:
            OperationTimeout: Not everything has an outcome yet; it goes on being waited for.
            PublishError: Publishings of `publish_nowait` that no caller awaited did not end confirmed; the text
                counts them, and the error is that of the first.
        """
        if self._channel is None:
            return
        self._connection.check_loop()
        self._connection.transport.flush()
        seconds = timeout if timeout is not None else self.settings.publish_timeout + _FLUSH_SLACK
        if self._waiting or self._long_way.tasks:
            began = self._loop.time()
            await self._all_written(seconds)
            seconds -= self._loop.time() - began
        await self._tickets.flush(seconds)

    async def _all_written(self, seconds: float) -> None:
        """Waits until what waits for room is written, and for publishings of several steps; raises as `flush`."""
        steps = set(self._long_way.tasks)
        try:
            async with asyncio.timeout(seconds):
                await self._room.passed()
                if steps:
                    await asyncio.wait(steps)
        except TimeoutError:
            why = self._room.obstacle(self._limit)[1]
            raise OperationTimeout(
                f"{len(self._waiting)} publishings wait for room after {seconds:g} s: {why}"
            ) from None

    def _check_takes(self) -> None:
        """Refuses a new message when the producer is not open, or belongs to another event loop."""
        self._packer.check_open()
        self._writer.check_loop()
        if self._life.over:
            self.meter.unwritten += 1
            raise self._room.refusal()

    # ------------------------------------------------------------------ called by the compiled publisher

    async def wait_for(self, ticket: Ticket) -> Receipt:
        """What awaiting a ticket does; see `publish_nowait`."""
        self._connection.check_loop()
        future = self._tickets.observe(ticket)
        if future is not None:
            # Shielded: other tasks may wait for the same ticket, and must not be cancelled with this one.
            await asyncio.shield(future)
        if ticket.failures is not None:
            raise self._outcome_error(ticket)
        return Receipt(ticket.delivery_tag, Outcome.CONFIRMED, ticket.attempts()) if self._confirms else NO_RECEIPT

    def _outcome_error(self, ticket: Ticket) -> PublishError:
        """Makes the error of a ticket that failed."""
        return error_of(ticket, self.settings.confirm_timeout)

    def _refusal(self, error: BaseException) -> PublishError:
        """What `flush` raises for a message that was not written because of this error."""
        return error if isinstance(error, PublishError) else not_sent(str(error), cause=error)

    def _write_in_turn(self, publishing: Publishing[Any], deadline: float) -> None:
        self._writer.write(publishing, deadline)

    def _remember(self, ticket: Ticket) -> None:
        """Keeps a failed ticket that no task observed, for `flush`."""
        self._tickets.remember(ticket)

    def _forget(self, ticket: Ticket) -> None:
        """A task asks for a failed ticket that was kept for `flush`."""
        self._tickets.observe(ticket)

    def _settle(self, run: SettlementRun) -> None:
        """Applies confirms, when more has to be done than `settled` does."""
        if self._doubt.armed:
            if self._doubt.leaves(self._loop.time(), self._channel, run):
                return
            self._update_caches()
        told: list[tuple[int, bool, bool]] | None = [] if self._listeners else None
        finished = self._window.settle(run, told)
        if self._adaptive is not None:
            limited = bool(self._waiting)
            limit = self._adaptive.update(self._loop.time(), self._window.confirmed, limited=limited)
            if limit != self._limit:
                logger.debug("the confirm window is %d now; confirms took %.3f s", limit, self._adaptive.latency)
            self._set_limit(limit)
        # Wakes waiting callers first, or completed publishers would overtake them.
        self._wake()
        self._hand_out(finished)
        if told:
            self._listeners.tell(told)

    def _hand_out(self, finished: list[Ticket] | None) -> None:
        if finished is not None:
            self._complete(finished)

    def _wake(self) -> None:
        """Wakes the callers that may publish now, and calls of `flush` that are done."""
        if self._waiting:
            self._room.wake()
        if self._flushing:
            self._tickets.wake()

    # ------------------------------------------------------------------ called by the channel (PublisherSink)

    def returned(self, run: ContentRun) -> None:
        """Ties returned messages to their publishings."""
        for message in run.messages:
            if not self._window.tie_return(message):
                self._returns.add(self._loop.time(), message)

    def channel_lost(self, error: LeveretError) -> None:
        """Ends what cannot be sent again, and goes on with another channel unless that is impossible."""
        connection = self._connection
        if self._life.error is not None:
            return
        if connection.error is not None and not connection.settings.auto_recovery:
            self._give_up(error)
            return
        paced = connection.error is not None or closed_by_publishing(error)
        with GivenUp(self._window, self._life, self.settings.exchange, error):
            finished = self._culprits.judge(error) if self._confirms else None
        self._reopen(finished, paced=paced)

    def _reopen(self, finished: list[Ticket] | None, *, paced: bool) -> None:
        """Goes on with another channel; see `Reopening.begin`."""
        if self._life.at(ProducerState.OPEN):
            self._move(ProducerState.REOPENING)
        elif self._life.at(ProducerState.DRAINING):
            self._move(ProducerState.CLOSING)
        self._deadlines.lost()
        self._hand_out(finished)
        self._reopening.begin(paced=paced)
        self._wake()

    async def _take_over(self, channel: Channel) -> None:
        """Goes on with another channel, and sends again what still has no outcome."""
        if channel.connection is not self._connection and self._confirms and self.settings.on_loss == "resend":
            self._doubt.reconnected()
            self._update_caches()
        self._use(channel)
        count = self._window.outstanding
        await self._resender.write_all(self._batch, self._connection)
        self._deadlines.resent(self._loop.time())
        self._wake()
        logger.info("a producer goes on with a new channel of %r; %d publishings went first", self._connection, count)
        self._reopening.end()
        if self._life.at(ProducerState.REOPENING):
            self._move(ProducerState.OPEN)
            self._wake()
        elif self._life.at(ProducerState.CLOSING) and self._life.error is None:
            self._move(ProducerState.DRAINING)
            self._wake()

    def _give_up(self, error: LeveretError) -> None:
        """Ends all that is in flight or waits: there will be no other channel."""
        life = self._life
        if life.error is None:
            life.error = error
        if life.at(ProducerState.OPEN, ProducerState.REOPENING):
            self._move(ProducerState.LOST)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._reopening.cancel()
        if self._guard is not None:
            self._guard.end()
        self._room.close(self._loop.time())
        unsent = not_sent("the producer is closed", cause=error)
        with GivenUp(self._window, life, self.settings.exchange, error):
            self._hand_out(self._window.expire(self._window.next_delivery_tag, error, unsent))
        self._deadlines.clear()
        self._wake()

    # ------------------------------------------------------------------ time

    def _run_clock(self) -> None:
        """Starts the clock unless it runs."""
        if self._timer is None:
            self._start_clock()

    def _start_clock(self) -> None:
        self._timer = self._loop.call_later(self._deadlines.step, self._tick)

    def _tick(self) -> None:
        """Gives up on publishings and waiting callers whose deadline has passed; one timer for all of them."""
        self._timer = None
        window, deadlines = self._window, self._deadlines
        now = self._loop.time()
        self._room.expire(now)
        if not window.outstanding and not self._waiting:
            deadlines.clear()
            return
        connected = self._reopening.task is None
        sent = self._transport.progress if connected else None
        deadlines.tick(now, window.first, window.next_delivery_tag - 1, sent)
        with GivenUp(window, self._life, self.settings.exchange, "no confirm came in time"):
            for finished in deadlines.expire(now, window, connected=connected, outage=self._connect.no_connection):
                self._hand_out(finished)
                self._wake()
        self._start_clock()
