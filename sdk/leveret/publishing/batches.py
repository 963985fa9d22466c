"""Batches: where their values come from, publishing them in chunks, and collecting them in a block."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterable, Iterable, Mapping, Sized
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from leveret.errors import BackpressureError, CodecError, ConfigurationError, PublishError
from leveret.message import BatchResult
from leveret.publishing.builder import MessageBuilder
from leveret.publishing.options import joined, keep, refuse_confirm_timeout
from leveret.publishing.outcomes import failure, not_sent
from leveret.publishing.publishing import Ticket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from types import TracebackType
    from typing import Self, Unpack

    from leveret.monitoring.meters import ProducerMeter
    from leveret.publishing.options import PublishOptions
    from leveret.publishing.template import PublishTemplate, Template
    from leveret.publishing.writing import MessageWriter

    #: `CompiledPublisher._put_values`: frames, values, start, ticket, index, most bytes, the type that ends it.
    PutValues = Callable[[PublishTemplate, list[Any], int, Ticket, int, int, type], int]

__all__ = ["Batch", "BatchPublisher", "Source"]

logger = logging.getLogger("leveret.publishing")

#: A chunk is encoded before it is sent; bodies of this many bytes are enough to fill the socket.
_CHUNK_BYTES: Final = 1024 * 1024


class Source:
    """The values of a batch, in pieces, from an iterable or an asynchronous one.

    An asynchronous iterable is read by a task of its own, one piece ahead at the most, so that what it gave can be sent
    while it waits for more. Use it with `async with`, which ends that task.

    Args:
        values: The values.
        each: What `take` returns for each value; None for the value itself.

    Attributes:
        length: How many there are, or 0 when that is not known.
        taken_at: When `take` returned last, by the loop's clock.
        error: What the iterable raised; what came before is still taken.

    Raises:
        ConfigurationError: It is neither.
    """

    def __init__(self, values: Iterable[Any] | AsyncIterable[Any], each: Callable[[Any], Any] | None = None) -> None:
        # What text, bytes and mappings iterate over is hardly what their caller wants to publish.
        if isinstance(values, str | bytes | bytearray | memoryview | Mapping):
            raise _no_values(values)
        self.length = len(values) if isinstance(values, Sized) else 0
        self.error: BaseException | None = None
        self._each = each
        self._time = asyncio.get_running_loop().time
        self.taken_at = self._time()
        self._task: asyncio.Task[None] | None = None
        # A list is cut, which costs less than iterating over it.
        self._list: list[Any] | None = None
        if type(values) is list:
            self._list, self._at = values, 0
        elif isinstance(values, AsyncIterable):
            self._ahead: list[Any] = []
            self._wanted = 0
            self._changed = asyncio.Event()
            self._taken = asyncio.Event()
            self._closed = False
            self._task = asyncio.get_running_loop().create_task(self._read(values), name="leveret batch: read values")
            # Not in the task itself, which may be cancelled before it begins.
            self._task.add_done_callback(lambda _: self._changed.set())
        else:
            try:
                self._iterator = iter(values)
            except TypeError as error:
                raise _no_values(values) from error

    async def take(self, count: int) -> list[Any]:
        """Returns the next values, at least one and at most `count`; none at the end or when the iterable raised."""
        chunk: list[Any] = []
        if self._task is not None:
            chunk = await self._take_ahead(self._task, count)
        elif self._list is not None:
            chunk = self._list[self._at : self._at + count]
            self._at += len(chunk)
        elif self.error is None:
            try:
                # list.extend keeps what came before the iterable failed.
                chunk.extend(islice(self._iterator, count))
            except BaseException as error:
                self.error = error
        self.taken_at = self._time()
        return chunk if self._each is None else list(map(self._each, chunk))

    async def _take_ahead(self, task: asyncio.Task[None], count: int) -> list[Any]:
        self._wanted = count
        self._taken.set()
        while not self._ahead and not task.done():
            self._changed.clear()
            await self._changed.wait()
        chunk = self._ahead[:count]
        del self._ahead[:count]
        return chunk

    async def _read(self, values: AsyncIterable[Any]) -> None:
        try:
            async for value in values:
                if self._closed:
                    return  # it took no notice of being cancelled
                self._ahead.append(value)
                self._changed.set()
                while len(self._ahead) >= max(1, self._wanted):
                    self._taken.clear()
                    await self._taken.wait()
        except BaseException as error:
            if self._closed and isinstance(error, asyncio.CancelledError):
                raise
            # Another cancellation is an error like any other: the values did not end there.
            self.error = error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._closed = True
            self._task.cancel()
            await asyncio.wait({self._task})


def _no_values(values: object) -> ConfigurationError:
    return ConfigurationError(
        f"values is a {type(values).__name__}; it must be an iterable of values, or an asynchronous one. `publish` "
        "publishes a single value",
        option="values",
    )


class BatchPublisher:
    """Publishes the values of batches in chunks, and waits once for all outcomes of a batch.

    Args:
        writer: Appends single messages, and has the producer's other parts.
        put_values: Encodes and appends values, one after the other.
        meter: Counts batches.
    """

    def __init__(self, writer: MessageWriter, put_values: PutValues, meter: ProducerMeter) -> None:
        self._writer = writer
        self._meter = meter
        self._settings = writer.settings
        self._life = writer.life
        self._window = writer.window
        self._room = writer.room
        self._tickets = writer.tickets
        self._put_values = put_values

    def identifying(self, routing_key: str | Template, options: PublishOptions) -> Callable[[Any], Any] | None:
        """Returns what gives values their message ids, for values that may be published several times.

        Args:
            routing_key: As for `publish`.
            options: As for `publish`.

        Returns:
            A function for `Source`; None when the producer makes no ids for these values.
        """
        ids = self._writer.packer.ids
        if ids is None or "message_id" in joined(routing_key, options)[1]:
            return None

        def identified(value: Any) -> MessageBuilder:
            message = MessageBuilder(value)
            if isinstance(value, MessageBuilder):
                message.value, message.key, message.options = value.value, value.key, keep(value.options)
            message.options = {"message_id": next(ids), **message.options}
            return message

        return identified

    async def publish(
        self,
        source: Source,
        routing_key: str | Template,
        options: PublishOptions,
        deadline: float | None = None,
        *,
        reporting: set[Ticket] | None = None,
        sends: Sequence[int] | None = None,
    ) -> BatchResult:
        """Publishes values once; see `Producer.publish_batch`.

        Args:
            source: The values.
            routing_key: The routing key or template of values without one of their own.
            options: The options of all values.
            deadline: When to give up on each of them; by default `publish_timeout` seconds after it was taken.
            reporting: The ticket is added to this set while its outcome is waited for.
            sends: How often each value was written before; None for not at all.

        Returns:
            The outcome of each value.
        """
        # Validates before anything is sent.
        template = self._writer.packer.check(routing_key, options)
        self._writer.check_loop()
        settings = self._settings
        batch = self._writer.batch
        # uvloop's clock stands still within a turn of the loop, and counts milliseconds.
        started = time.monotonic()
        log_chunks = logger.isEnabledFor(logging.DEBUG)
        ticket = Ticket()
        ticket.observed = True
        failures: dict[int, Exception] = {}
        size = 1
        index = 0
        chunk: list[Any] = []
        waited = False
        while True:
            if not chunk:
                waited = False
                chunk = await source.take(size)
                if not chunk:
                    break
            until = source.taken_at + settings.publish_timeout if deadline is None else deadline
            try:
                waited = await self._wait_for_room(len(chunk), until) or waited
                before, published = batch.published_bytes, batch.published
                first = self._window.next_delivery_tag
                done = self._put_chunk(template, routing_key, options, chunk, index, ticket, failures, sends)
            except PublishError as error:
                # Nothing more can be sent. The rest of an iterable, which may have no end, is not read.
                start, index = index, max(index + len(chunk), source.length)
                # Its traceback would hold the values for as long as it is held.
                lost = error.with_traceback(None)
                failures.update((i, lost) for i in range(start, index) if i not in failures)
                break
            index += done
            del chunk[:done]
            last = self._window.next_delivery_tag - 1
            if (waited or deadline is not None) and last >= first:
                self._writer.deadlines.limit(until, first, last)
            if batch.published == published:
                self._room.wake()  # the turn passes to the next caller
            # Chunks of large bodies are smaller: 1000 small messages, 100 large ones, by their bytes.
            sent = max(1, batch.published_bytes - before)
            if log_chunks:
                logger.debug(
                    "wrote a chunk of a batch: values %d to %d, %d messages, %d bytes, %d unconfirmed, %.3f s so far",
                    index - done,
                    index - 1,
                    batch.published - published,
                    batch.published_bytes - before,
                    self._window.outstanding,
                    time.monotonic() - started,
                )
            size = max(1, min(settings.batch_size, _CHUNK_BYTES * done // sent, 10 * size))
            if not settings.confirms:
                # Without confirms nothing else in this loop lets other tasks run.
                await asyncio.sleep(0)
        if source.error is not None:
            # The caller gets no result, so `flush` reports what failed of the values before.
            if ticket.pending:
                ticket.observed = False
            elif ticket.failures:
                self._tickets.remember(ticket)
            raise source.error
        future = self._tickets.observe(ticket)
        if future is not None:
            if reporting is not None:
                reporting.add(ticket)
            await future
        if ticket.failures is not None:
            for i, reason in ticket.failures.items():
                failures[i] = failure(reason, 0, settings.confirm_timeout, ticket.attempts(i))
        result = BatchResult(
            count=index,
            confirmed=index - len(failures) if settings.confirms else 0,
            elapsed=time.monotonic() - started,
            failures=failures,
            confirms=settings.confirms,
        )
        self._meter.add_batch(result)
        logger.debug(
            "published a batch: %d confirmed, %d failed in %.3f s (%.0f msgs/s)",
            result.confirmed,
            len(failures),
            result.elapsed,
            result.rate,
        )
        return result

    async def _wait_for_room(self, count: int, deadline: float) -> bool:
        """Waits until a chunk may be written; returns whether it had to wait."""
        room, settings = self._room, self._settings
        limit = settings.batches_in_flight * settings.batch_size
        full = self._window.outstanding + count > limit or room.has_too_much()
        if full or room.waiting or not room.is_writable():
            await room.wait(limit, max(0, limit - count), deadline)
            return True
        return False

    def _put_chunk(
        self,
        template: PublishTemplate | None,
        routing_key: str | Template,
        options: PublishOptions,
        chunk: list[Any],
        start: int,
        ticket: Ticket,
        failures: dict[int, Exception],
        sends: Sequence[int] | None,
    ) -> int:
        """Encodes and appends values until they are enough for a write; records failures under their indexes.

        Returns:
            How many values of the chunk were taken, at least one.
        """
        batch = self._writer.batch
        done = 0
        full = batch.published_bytes + _CHUNK_BYTES
        if not self._life.writable:
            raise self._room.refusal()
        while done < len(chunk) and batch.published_bytes < full and self._life.writable:
            published = batch.published
            left = full - batch.published_bytes
            try:
                if template is not None and sends is None:
                    done += self._put_values(template, chunk, done, ticket, start + done, left, MessageBuilder)
                    published = batch.published
                    if done == len(chunk) or type(chunk[done]) is not MessageBuilder:
                        continue
                before = 0 if sends is None else sends[start + done]
                self._put_one(routing_key, options, chunk[done], start + done, ticket, before)
            except (CodecError, ConfigurationError) as error:
                done += batch.published - published
                failures[start + done] = error.with_traceback(None)  # it would hold the values
            done += 1
        if self._window.outstanding:
            self._writer.start_clock()
        return done

    def _put_one(
        self, routing_key: str | Template, options: PublishOptions, value: Any, index: int, ticket: Ticket, sends: int
    ) -> None:
        """Encodes and appends a value that may have options of its own, or a body of one of several forms."""
        if type(value) is MessageBuilder:
            key, common = joined(routing_key, options)
            refuse_confirm_timeout(value.options)
            routing_key, options, value = value.key or key, {**common, **value.options}, value.value
        template, body = self._writer.packer.pack(value, routing_key, options)
        self._writer.append(template, body, ticket, index, sends)


class Batch:
    """Values that are collected in a block and published when it ends. Made by `Producer.batch`.

    Attributes:
        result: The outcome of each value, when the block has ended.
    """

    result: BatchResult

    def __init__(
        self,
        publish_batch: Callable[..., Awaitable[BatchResult]],
        routing_key: str | Template,
        options: PublishOptions,
        limit: int,
    ) -> None:
        self._publish_batch = publish_batch
        self._routing_key = routing_key
        self._options = options
        self._limit = limit
        self._values: list[Any] = []
        #: Values are taken: its block was entered and has not ended.
        self._open = False

    def __len__(self) -> int:
        return len(self._values)

    def add(self, value: Any, routing_key: str | None = None, **options: Unpack[PublishOptions]) -> int:
        """Adds a value.

        Args:
            value: What the serializer takes, or a `MessageBuilder`.
            routing_key: The routing key; the batch's by default.
            **options: See `PublishOptions`; over those of the batch.

        Returns:
            Its index in the result.

        Raises:
            BackpressureError: There are `max_buffered` values already. `publish_batch` takes an iterable of any length.
            PublishError: Its block was not entered or has ended; the outcome is NOT_SENT.
        """
        if not self._open:
            raise not_sent("the batch is not open; add values inside its `async with` block")
        if len(self._values) >= self._limit:
            raise BackpressureError(
                f"not added: the batch holds {len(self._values)} values (max_buffered); publish_batch takes an "
                "iterable of any length"
            )
        if routing_key is not None or options:
            if isinstance(value, MessageBuilder):
                raise ConfigurationError("a MessageBuilder has its own routing key and options", option="routing_key")
            message = MessageBuilder(value)
            message.key, message.options = routing_key or "", keep(options)
            value = message
        self._values.append(value)
        return len(self._values) - 1

    async def __aenter__(self) -> Self:
        self._open = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open = False
        values, self._values = self._values, []
        if kind is None:
            self.result = await self._publish_batch(values, self._routing_key, **self._options)
