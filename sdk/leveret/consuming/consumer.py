"""Consuming: a fixed set of workers, one acknowledgement for many deliveries, none before the work is done."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import secrets
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from leveret.codecs.bodies import BodyDecoder
from leveret.consuming.acks import AckWindow
from leveret.consuming.delivering import Generation, Intake, Pace, Worker
from leveret.consuming.error_policy import policy_of
from leveret.consuming.failures import Failures
from leveret.consuming.prefetch import AdaptivePrefetch
from leveret.errors import (
    ChannelClosed,
    CircuitOpen,
    CodecError,
    ConfigurationError,
    ConsumerCancelled,
    DeliveryTimeout,
    EncodeFailed,
    LeveretError,
    ProcessingTimeout,
    again,
    printable,
)
from leveret.monitoring.meters import ConsumerMeter
from leveret.protocol.recovery import may_mend
from leveret.transport.waiting import Waiters
from leveret.wire.content import append_settlement
from leveret.wire.numbers import (
    BASIC_NACK,
    BASIC_REJECT,
    NACK_REQUEUE,
    PRECONDITION_FAILED,
    REJECT_REQUEUE,
    REPLY_SUCCESS,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Hashable
    from types import TracebackType
    from typing import Self

    from leveret.connection.channel import Channel
    from leveret.connection.connection import Connection
    from leveret.connection.link import Link
    from leveret.consuming.error_policy import OnError
    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import ConsumerSettings
    from leveret.wire.message import Message
    from leveret.wire.runs import ContentRun

__all__ = ["Consumer", "ConsumerHealth", "Settled"]

logger = logging.getLogger("leveret.consuming")

T = TypeVar("T")

#: Acknowledgements wait until this share of the prefetch is ready. RabbitMQ's own tests found 5 to 10 % to be
#: near the best rate; a larger share means fewer and longer reads and writes.
_ACK_SHARE: Final = 4
#: How finely processing_timeout is measured: a handler may run this fraction of it too long.
_CLOCK_STEPS: Final = 10
#: Seconds between two looks at whether all is done, while a consumer is drained.
_DRAIN_STEP: Final = 0.005
#: The most seconds that `drain` may take.
_DAY: Final = 86_400
#: How RabbitMQ's text begins when a delivery was not acknowledged in time.
_DELIVERY_TIMEOUT: Final = "delivery acknowledgement on channel"


class Settled:
    """What `ack`, `requeue`, `release` and `dead_letter` return.

    True when the call settled the message, false when it was settled before or its channel is gone. It may be awaited
    and then waits for nothing: the acknowledgement leaves with the next write, and AMQP does not answer it.
    """

    __slots__ = ("_settled",)

    def __init__(self, settled: bool) -> None:
        self._settled = settled

    def __bool__(self) -> bool:
        return self._settled

    def __await__(self) -> Generator[Any, None, bool]:
        yield from ()
        return self._settled

    def __repr__(self) -> str:
        return f"Settled({self._settled})"


_YES, _NO = Settled(True), Settled(False)


@dataclass(frozen=True, slots=True)
class ConsumerHealth:
    """What `Consumer.health` returns. It is true when nothing is wrong.

    Attributes:
        expected: Deliveries should come: it was subscribed, and neither stopped nor paused.
        live: The broker has it among the queue's consumers, as far as this side knows.
        delivery_age: Seconds since the last delivery came, or None when none has.
        working: Messages that handlers are at work on.
        waiting: Messages that wait here for a handler.
    """

    expected: bool
    live: bool
    delivery_age: float | None
    working: int
    waiting: int

    def __bool__(self) -> bool:
        return self.live or not self.expected


class Consumer(Generic[T], Intake):
    """Takes messages from one queue, on a channel of its own. Made by `Client.consumer`.

    Use one of three ways: `run` with a handler, `async for`, or `get`. A message is acknowledged after its handler
    returned, never before unless `ack` says so, so a crash redelivers what was not finished: handlers see messages at
    least once.

    Attributes:
        queue: The queue.
        settings: What it was made with.
    """

    def __init__(
        self,
        connect: Link,
        queue: str,
        model: type[T] | None,
        settings: ConsumerSettings,
        registry: PluginRegistry,
        *,
        ordered_by: Callable[[Message], Hashable] | None = None,
        on_error: OnError = None,
        publishing: Link | None = None,
    ) -> None:
        self.queue = queue
        self.settings = settings
        self._connect = connect
        self._decoder = BodyDecoder(registry, model, settings)
        #: Called by `Message.value`.
        self.decode: Callable[[Message], T] = self._decoder.decode
        #: Called by workers, which decode messages that are like the one before by themselves.
        self.plain_decoder = self._decoder.plain
        self._tag = settings.consumer_tag or f"leveret-{secrets.token_hex(8)}"
        # Those that the broker knows, the newest last, and how often it began on this channel.
        self._tags: list[str] = []
        self._begun = 0
        self._channel: Channel | None = None
        self._connection: Connection
        self._no_ack = settings.ack == "none"
        self._handoff = settings.ack == "handoff"
        self._watchful = self._no_ack or self._handoff or settings.prefetch == "auto"
        self._results_settle = settings.ack in ("coalesced", "each")
        self._ack_each = settings.ack == "each"
        # Delivery tags that were taken over and not acknowledged, because too many are unfinished.
        self._withheld: deque[int] = deque()
        self._ordered_by = ordered_by or _key_function(settings.ordered_by)
        self._adaptive: AdaptivePrefetch | None = None
        self._adapting: asyncio.TimerHandle | None = None
        self._adapted: asyncio.Task[None] | None = None
        # Since the last look: the fewest messages that waited, and the most that the broker counted.
        self._lowest = self._highest = 0
        if settings.prefetch == "auto":
            workers = settings.concurrency
            self._adaptive = AdaptivePrefetch(settings.prefetch_min, settings.prefetch_max, workers, 2 * workers)
            self._prefetch = self._adaptive.limit
            self._measured = True
        else:
            self._prefetch = settings.prefetch
        self._use_prefetch(self._prefetch)
        self._subscribed = False
        self._paused = False
        self._reading_paused = False
        self._error: BaseException | None = None
        # The error policy stopped it.
        self._has_failed = False
        self._reopening: asyncio.Task[None] | None = None
        # Who awaits `run`, the tasks that share its work, and what they are at.
        self._runner: asyncio.Task[Any] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._workers: set[Worker] = set()
        self._clock: asyncio.TimerHandle | None = None
        # What each worker was at when the clock ticked, and how often that was so.
        self._seen: dict[Worker, tuple[int, int]] = {}
        self._threads: ThreadPoolExecutor | None = None
        # What runs in them.
        self._calls: dict[Message, Future[Any]] = {}
        self._loop = asyncio.get_running_loop()
        self._waiters = Waiters(self._loop, asyncio.CancelledError)
        # One at a time opens the channel; one at a time changes what the broker knows of this consumer.
        self._opening = asyncio.Lock()
        self._changing = asyncio.Lock()
        #: Read by `counters` and by the client's monitor.
        self.meter = ConsumerMeter(AckWindow(0))
        self._failures = Failures(
            self.meter, queue, settings, policy_of(on_error), publishing or connect, registry, self._stop_for
        )

    def __repr__(self) -> str:
        return f"<Consumer queue={self.queue!r} unsettled={self.meter.acks.unsettled}>"

    # ------------------------------------------------------------------ what is known

    def counters(self) -> dict[str, int]:
        """Deliveries so far, what became of them, and `unsettled`: those that are being worked on."""
        return self.meter.read()

    @property
    def prefetch(self) -> int:
        """How many deliveries the broker sends ahead now; it moves when the setting is "auto"."""
        return self._prefetch

    def health(self) -> ConsumerHealth:
        """Compares what should be with what is; costs nothing and asks nobody.

        The metrics `consumers_expected` and `consumers_live` tell the same of all consumers of a queue.
        """
        self._note_state()
        return ConsumerHealth(
            expected=self.meter.expected,
            live=self.meter.live,
            delivery_age=None if self._delivered_at is None else self._loop.time() - self._delivered_at,
            working=self._running,
            waiting=self._unstarted,
        )

    def _note_state(self) -> None:
        """Has the meter tell what is expected and what is; called when that may have changed."""
        channel = self._channel
        ended = self._stopping or (self._over and self._error is None)
        self.meter.expected = self._subscribed and not (self._paused or ended)
        self.meter.live = bool(self._tags) and channel is not None and channel.is_open
        self.meter.prefetch = self._prefetch

    @property
    def _unstarted(self) -> int:
        return self._buffered + self._waiting_for_keys()

    # ------------------------------------------------------------------ life

    async def _open(self) -> Channel:
        # Locked: of several tasks that use a new consumer at once, one opens its channel.
        async with self._opening:
            self._check_error()
            if self._channel is None:
                await self._open_channel(await self._connect())
            assert self._channel is not None
            return self._channel

    async def _open_channel(self, connection: Connection) -> None:
        channel = await connection.channel()
        try:
            self._check_error()
        except BaseException:
            # Closed meanwhile: nobody else would close the channel.
            channel.abandon()
            raise
        if self.settings.body_view_size is not None:
            connection.transport.reader.view_bodies(channel.number, self.settings.body_view_size)
        channel.consumer = self
        self._connection = connection
        self._channel = channel
        self._begun = 0
        transport = connection.transport
        self._generation = Generation(self, channel.number, transport.out)
        if self.settings.read_delay:
            self._pace = Pace(self._loop, transport.collect, transport.reader, self.settings.read_delay)
        self.meter.replace(self._generation.acks)

    def _check_error(self) -> None:
        if self._error is not None:
            raise again(self._error) if isinstance(self._error, LeveretError) else self._error

    async def subscribe(self) -> None:
        """Starts the deliveries (basic.consume); `run` and `async for` do it by themselves.

        Messages that come before the first handler or `async for` wait here, up to the prefetch.

        Raises:
            ChannelClosed: The queue cannot be consumed.
        """
        channel = await self._open()
        async with self._changing:
            if not self._subscribed:
                await self._consume(channel, self._prefetch)

    async def _consume(self, channel: Channel, prefetch: int) -> None:
        """Sends basic.qos and basic.consume; a consumer that the broker knows already stays."""
        settings = self.settings
        await channel.basic_qos(prefetch)
        # No name twice on one channel: a quorum queue goes on counting deliveries of a name while some of them are not
        # settled, and RabbitMQ 3.10 ends the connection (541) because it takes the first of the new consumer for a gap.
        tag = f"{self._tag}~{self._begun}" if self._begun else self._tag
        self._begun += 1
        arguments = None if settings.priority is None else {"x-priority": settings.priority}
        # From here on the request is on its way, whether or not its caller waits for the answer.
        self._subscribed = True
        self._tags.append(tag)
        self._use_prefetch(prefetch)
        try:
            await channel.basic_consume(
                self.queue,
                self,
                consumer_tag=tag,
                no_ack=self._no_ack,
                exclusive=settings.exclusive,
                arguments=arguments,
            )
            self._note_state()
        except BaseException as error:
            if isinstance(error, EncodeFailed):
                self._subscribed = bool(len(self._tags) - 1)
            if tag in self._tags and (isinstance(error, EncodeFailed) or not channel.is_open):
                self._tags.remove(tag)
            raise

    async def _cancel_tags(self, keep: int = 0) -> None:
        """Sends basic.cancel; what is on its way comes before this returns."""
        channel = self._channel
        while len(self._tags) > keep and channel is not None and channel.is_open:
            # Whatever is in the way: the answer has to be read.
            self._resume_reading()
            # Sent is done, for the broker, whether or not its caller waits for the answer.
            tag = self._tags.pop(0)
            self._note_state()
            await channel.basic_cancel(tag)
        self._note_state()

    def _use_prefetch(self, prefetch: int) -> None:
        self._prefetch = prefetch
        self._ack_at = max(1, prefetch // _ACK_SHARE)

    async def set_prefetch(self, prefetch: int) -> None:
        """Changes how many deliveries the broker sends ahead, without a stop.

        RabbitMQ applies a prefetch to consumers that begin after it (basic.qos), and quorum queues know no other kind.
        So a new consumer takes the place of the old one on the same channel: first it begins, then the old one is
        cancelled. What was delivered to that stays valid. For as long as that takes both may hold deliveries.

        Args:
            prefetch: 1 to 65535.

        Raises:
            ConfigurationError: The number is out of range, or the consumer is exclusive: two cannot be.
            ChannelClosed: The queue cannot be consumed any more.
        """
        settings = self.settings.replace(prefetch=prefetch)
        if settings.exclusive and self._tags:
            raise ConfigurationError("the prefetch of an exclusive consumer cannot be changed", option="prefetch")
        async with self._changing:
            channel = self._channel
            if self._tags and channel is not None and not self._no_ack:
                try:
                    await self._consume(channel, prefetch)
                finally:
                    # Also what a change that was broken off may have left.
                    await self._cancel_tags(keep=1)
            else:
                self._use_prefetch(prefetch)
        # What would have been enough of them before may be more than enough now.
        self._flush_acks()

    async def pause(self) -> None:
        """Stops the deliveries (basic.cancel) until `resume`.

        Handlers that are at work go on. Messages that wait here for one go back to the queue, where other consumers
        find them. With `ack` "none" and "handoff" they cannot go back, and are handled.

        Raises:
            OperationTimeout: The broker did not answer.
            ChannelClosed: The channel is closed.
        """
        self._check_error()
        async with self._changing:
            self._paused = True
            await self._cancel_tags()
            self._give_back_unstarted()
            self._wake_all()

    async def resume(self) -> None:
        """Starts the deliveries again after `pause`.

        Raises:
            ChannelClosed: The queue cannot be consumed any more.
        """
        self._check_error()
        async with self._changing:
            self._paused = False
            if self._subscribed and not (self._tags or self._over or self._stopping) and self._channel is not None:
                await self._consume(self._channel, self._prefetch)

    async def cancel(self) -> None:
        """Stops the deliveries (basic.cancel) for good; what was delivered is still handled, and then `run` returns.

        Raises:
            OperationTimeout: The broker did not answer.
        """
        async with self._changing:
            try:
                await self._cancel_tags()
            finally:
                self._over = True
                self._wake_all()

    async def drain(self, timeout: float = 30.0) -> bool:
        """Ends the consumer without losing or repeating work.

        It stops the deliveries (basic.cancel), gives messages back that no handler has begun with, waits for the
        handlers that are at work, and writes their acknowledgements. Then `run` returns. With `ack` "none" and
        "handoff" the messages that wait here cannot go back, and are handled, too.

        Args:
            timeout: Seconds for all of it, 0 to 86400. Handlers that take longer are cancelled, and their messages go
                back.

        Returns:
            True when nothing was cut off.

        Raises:
            ConfigurationError: The timeout is out of range.
        """
        if not 0 <= timeout <= _DAY:
            raise ConfigurationError(f"timeout is {timeout:g} s; it must be 0 to {_DAY}", option="timeout")
        complete = False
        try:
            async with asyncio.timeout(timeout):
                self._paused = True
                # Handlers have the rest of the time, whether or not the broker answers.
                with contextlib.suppress(LeveretError):
                    async with self._changing:
                        await self._cancel_tags()
                self._give_back_unstarted()
                self._wake_all()
                # Whatever the way in which messages are taken, they are done when all are settled. It looks again and
                # again, because nothing that is done for each message should have to tell it.
                while self._running or self._unstarted or (self._results_settle and self._is_unsettled()):  # noqa: ASYNC110
                    await asyncio.sleep(_DRAIN_STEP)
                complete = True
        except TimeoutError:
            logger.warning(
                "draining the consumer of queue %r: %d messages were being handled after %g s",
                self.queue,
                self._running,
                timeout,
            )
        finally:
            self.stop()
            if not complete:
                for task in self._tasks:
                    task.cancel()
            self._flush_acks(stragglers=True)
        return complete

    def _is_unsettled(self) -> bool:
        generation = self._generation
        return generation is not None and generation.alive and generation.acks.unsettled > 0

    def stop(self) -> None:
        """Ends `run` or `async for` after the messages that are being worked on; the others go back to the queue.

        With `ack` "none" and "handoff" they cannot go back, and are lost: use `cancel` or `drain`.
        """
        self._stopping = True
        self._note_state()
        self._wake_all()

    async def close(self) -> None:
        """Writes the acknowledgements that are ready and closes the channel; unfinished messages are requeued."""
        self.stop()
        channel, self._channel = self._channel, None
        if self._error is None:
            self._error = ChannelClosed("the consumer is closed", reply_code=REPLY_SUCCESS)
        for timer in (self._timer, self._adapting):
            if timer is not None:
                timer.cancel()
        tasks = [task for task in (self._reopening, self._adapted) if task is not None]
        for task in tasks:
            task.cancel()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        try:
            if tasks:
                await asyncio.wait(tasks)
        finally:
            if channel is not None:
                generation = self._generation
                if channel.is_open and generation is not None:
                    generation.flush(stragglers=True)
                self._read_at_once()
                self._end_generation()
                await channel.close()
            self._tags.clear()
            self._note_state()
            self._take_unstarted()
            await self._failures.close()

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------------ three ways to take messages

    async def run(self, handler: Callable[[T, Message], Awaitable[bool | None] | bool | None]) -> None:
        """Calls a handler for each message until `stop`, `cancel` or `drain` is called or this is cancelled.

        `concurrency` workers share the messages; with one, messages are handled in the queue's order.
        The handler's result settles its message: None or True acknowledges it, False dead-letters it. When it raises,
        `on_error` says what becomes of the message. Without it the message goes back to the queue once, and is
        dead-lettered when it fails again (it is marked redelivered). `CircuitOpen` is no failure: the message is
        released, and its worker waits up to a second.
        A body that cannot be decoded is dead-lettered without a call. A handler may settle the message itself.
        The handlers of a worker run in one task: what one leaves in a context variable, the next finds there.

        Args:
            handler: `async def handler(value, message)`, or a plain function, which runs in a thread: there `message`
                can be read, but not settled.

        Raises:
            ChannelClosed: The queue cannot be consumed (`NotFound`, `AccessRefused`), or the channel was closed.
            DeliveryTimeout: The broker closed the channel, because a handler took too long for it.
            ConnectionClosed, TransportError: The connection was lost.
            ConsumerCancelled: The broker cancelled the consumer, for example because the queue was deleted.
            ConfigurationError: The handler cannot be called.
        """
        call = self._callable(handler)
        if self.settings.processing_timeout is not None:
            self._start_clock()
        try:
            await self.share(lambda: self._work(call))
        finally:
            if self._clock is not None:
                self._clock.cancel()

    async def share(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Has `concurrency` tasks do this work, and closes the consumer when they end.

        Raises:
            LeveretError: As `run`.
        """
        self._runner = asyncio.current_task()
        try:
            await self.subscribe()
            async with asyncio.TaskGroup() as group:
                for _ in range(self.settings.concurrency):
                    task = group.create_task(work())
                    self._tasks.add(task)
                    task.add_done_callback(self._task_ended)
            if not self._stopping or self._has_failed:
                self._check_error()
        finally:
            await self.close()

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.stop()  # the others are cancelled now

    def ends(self, task: asyncio.Task[Any]) -> bool:
        """Whether one of the tasks that share the work is cancelled to end it.

        Any other cancellation is an affair of its handler, which ends with the message: some libraries cancel the task
        that they run in to stop waiting, and never take that back (`Task.uncancel`).
        """
        if task.cancelling() and (self._stopping or (self._runner is not None and self._runner.cancelling())):
            return True
        while task.cancelling():
            task.uncancel()
        return False

    async def _work(self, call: Callable[[Any, Message], Awaitable[object]]) -> None:
        task = asyncio.current_task()
        assert task is not None
        worker = Worker(self, call, task)
        self._workers.add(worker)
        try:
            await worker
        finally:
            self._workers.remove(worker)
            self._seen.pop(worker, None)

    def _callable(self, handler: object) -> Callable[[Any, Message], Awaitable[object]]:
        """The handler as a function that returns something to await."""
        if not callable(handler):
            raise ConfigurationError(
                f"the handler must be a function of (value, message), not {printable(repr(handler), 80)}",
                option="handler",
            )
        if inspect.isgeneratorfunction(handler) or inspect.isasyncgenfunction(handler):
            raise ConfigurationError("the handler must not be a generator", option="handler")
        if (
            inspect.iscoroutinefunction(handler)
            or inspect.iscoroutinefunction(type(handler).__call__)
            or hasattr(handler, "_is_coroutine")  # compiled by Cython
        ):
            return handler
        loop, calls = self._loop, self._calls
        threads = self._threads = ThreadPoolExecutor(
            self.settings.concurrency, thread_name_prefix=f"leveret {self.queue}"[:64]
        )

        def call(value: Any, message: Message) -> Awaitable[object]:
            future = calls[message] = threads.submit(handler, value, message)
            future.add_done_callback(lambda _: calls.pop(message, None))
            return asyncio.wrap_future(future, loop=loop)

        return call

    async def _thread_ends(self, call: Future[Any], failure: Coroutine[Any, Any, None] | None) -> None:
        """Waits for a plain function that took too long: the next message would wait for its thread, and fail."""
        if failure is not None:
            await failure
        with contextlib.suppress(Exception):
            await asyncio.wrap_future(call, loop=self._loop)

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        """The next message; the caller settles it."""
        if self._ordered_by is not None:
            raise ConfigurationError("ordered_by is of use with `run` only", option="ordered_by")
        if not self._subscribed:
            await self.subscribe()
        while not self._stopping:
            message = self._pop()
            if message is not None:
                if self._pressed:
                    self._taken()
                if self._idle:
                    self._wake(self._buffered)
                return message
            self._check_error()
            if self._over:
                break
            self._idle_begins()
            waiter = self._wait()
            try:
                await waiter
            except BaseException:
                # It may have been this one's turn, which passes to the next.
                with contextlib.suppress(ValueError):
                    self._idle.remove(waiter)
                self._wake(self._buffered)
                raise
            finally:
                self._idle_ends()
        raise StopAsyncIteration

    async def take(self, size: int, wait: float) -> list[Message]:
        """Takes up to `size` messages: so many, or what there is `wait` seconds after the first one; `Batches` uses it.

        Args:
            size: The most messages, 1 or more.
            wait: Seconds. A pause ends them.

        Returns:
            At least one message, for the caller to settle; none when the consumer was stopped or cancelled.

        Raises:
            LeveretError: As `run`.
        """
        try:
            messages = [await anext(self)]
        except StopAsyncIteration:
            return []
        deadline = self._loop.time() + wait
        while len(messages) < size and not self._stopping:
            message = self._pop()
            if self._pressed:
                self._taken()
            if message is not None:
                messages.append(message)
                continue
            if self._over or self._paused or self._loop.time() >= deadline:
                break
            waiter = self._wait()
            timer = self._loop.call_at(deadline, waiter.set_result, None)
            try:
                await waiter
            except BaseException:
                self._put_back(messages)
                self._wake(self._buffered)
                raise
            finally:
                timer.cancel()
        if self._idle:
            self._wake(self._buffered)
        return messages

    def decode_all(self, messages: list[Message]) -> tuple[list[T], list[Message]]:
        """Decodes messages; those that cannot be decoded are settled, and left out."""
        values: list[T] = []
        kept: list[Message] = []
        for message in messages:
            try:
                values.append(self.decode(message))
            except CodecError as error:
                self._failures.undecodable(message, error)
            else:
                kept.append(message)
        return values, kept

    def acknowledge(self, messages: list[Message]) -> int:
        """Acknowledges those of some messages that were not settled, and writes that at once.

        Returns:
            How many there were.
        """
        count = 0
        generation = self._generation
        if generation is not None and generation.alive and not self._no_ack:
            self._connection.check_loop()
            for message in messages:
                if not message.is_settled:
                    count += generation.acks.ack(message.delivery_tag)
            generation.flush()
            self._acknowledged()
        return count

    async def fail(self, messages: list[Message], error: BaseException) -> None:
        """Does with the messages of a batch what `run` does with each when its handler raised this."""
        pause: Coroutine[Any, Any, None] | None = None
        for message in messages:
            if self._no_ack or self._handoff or not message.is_settled:
                more = self._failed(message, error)
                if isinstance(error, CircuitOpen):
                    if pause is not None:
                        pause.close()
                    pause = more
                elif more is not None:
                    await more
        if pause is not None:
            await pause

    async def get(self) -> Message | None:
        """Takes one message, if there is one (basic.get). Slow: each call is a round trip.

        Returns:
            The message, for the caller to settle, or None when the queue is empty.

        Raises:
            ConfigurationError: Deliveries come already: what they acknowledge would cover this message, too.
        """
        if self._subscribed:
            raise ConfigurationError("get is of no use while deliveries come", option="get")
        channel = await self._open()
        message = await channel.basic_get(self.queue, no_ack=self._no_ack)
        if message is not None:
            generation = self._generation
            assert generation is not None
            self.meter.delivered += 1
            generation.adopt_one(message, self._loop.time())
            if not self._no_ack:
                generation.acks.track(message.delivery_tag)
        return message

    # ------------------------------------------------------------------ workers call these

    def _written(self) -> None:
        """Something waits to be sent, and there is nothing else to do."""
        self._connection.transport.flush()

    def _taken(self) -> None:
        """A message was taken from a buffer that was too full."""
        if self._reading_paused and self._buffered <= self._prefetch:
            self._resume_reading()
        if self._withheld:
            self._acknowledge_handed_off()
        self._pressed = self._reading_paused or bool(self._withheld)

    def _too_late(self) -> None:
        """A handler returned whose message came on a channel that is gone."""
        self.meter.stale += 1

    def _failed(self, message: Message, error: BaseException | None) -> Coroutine[Any, Any, None] | None:
        """What becomes of a message whose handler raised; None for the error is a handler that took too long."""
        if error is not None:
            return self._failures.failed(message, error)
        call = self._calls.get(message)
        failure = self._failures.failed(message, self.took_too_long())
        return failure if call is None else self._thread_ends(call, failure)

    def took_too_long(self) -> ProcessingTimeout:
        """The error of a handler that was cancelled for its time."""
        return ProcessingTimeout(
            f"the handler took longer than processing_timeout of {self.settings.processing_timeout:g} s"
        )

    def _stop_for(self, error: BaseException) -> None:
        """The error policy ends the consumer."""
        self._fail(error)
        self._has_failed = True
        self.stop()

    def _wake_all(self) -> None:
        self._wake(len(self._idle))

    # ------------------------------------------------------------------ handlers that hang

    def _start_clock(self) -> None:
        limit = self.settings.processing_timeout
        assert limit is not None
        self._clock = self._loop.call_later(limit / _CLOCK_STEPS, self._tick)

    def _tick(self) -> None:
        """Looks at the workers from time to time, so that no message needs a timer of its own."""
        for worker in self._workers:
            if not worker.is_handling:
                continue
            sequence, times = self._seen.get(worker, (0, 0))
            times = times + 1 if sequence == worker.sequence else 0
            self._seen[worker] = (worker.sequence, times)
            if times == _CLOCK_STEPS:
                worker.time_out()
        self._start_clock()

    # ------------------------------------------------------------------ prefetch="auto"

    def _adapt(self) -> None:
        """Tells the controller what was measured, and does what it says."""
        generation, adaptive = self._generation, self._adaptive
        assert adaptive is not None
        self._adapting = None
        if generation is None or not generation.alive or self._stopping or self._over:
            return
        acks = generation.acks
        now = self._loop.time()
        waiting = self._unstarted
        limit = adaptive.update(
            now, acks.acked + acks.rejected, self._idle_seconds(now), min(self._lowest, waiting), self._highest
        )
        self._lowest, self._highest = waiting, acks.unsettled + acks.ready
        if limit != self._prefetch and self._adapted is None and self._tags:
            logger.debug("queue %r: the prefetch goes from %d to %d", self.queue, self._prefetch, limit)
            self._adapted = self._loop.create_task(self._change_prefetch(limit), name=f"leveret: prefetch {self.queue}")
        if self._highest or not self._waiting:
            self._adapting = self._loop.call_later(AdaptivePrefetch.INTERVAL, self._adapt)

    async def _change_prefetch(self, prefetch: int) -> None:
        try:
            await self.set_prefetch(prefetch)
        except LeveretError as error:
            # Whoever consumes is told of a lost channel in any case.
            logger.warning("queue %r: the prefetch could not be changed to %d: %s", self.queue, prefetch, error)
        finally:
            self._adapted = None

    # ------------------------------------------------------------------ settling

    def _settle(self, generation: Generation, message: Message, verb: str) -> Settled:
        """What the verbs of `Message` do; see there."""
        if not generation.alive or self._no_ack:
            self.meter.stale += not generation.alive
            return _NO
        self._connection.check_loop()
        tag = message.delivery_tag
        acks = generation.acks
        if verb == "ack":
            if not acks.ack(tag):
                return _NO
            if self._ack_each:
                generation.flush(stragglers=True)
            else:
                self._acknowledged()
            return _YES
        if not acks.reject(tag):
            return _NO
        if verb == "dead_letter":
            append_settlement(generation.out, generation.channel, BASIC_REJECT, tag)
            self.meter.dead_lettered += 1
        elif verb == "requeue":
            append_settlement(generation.out, generation.channel, BASIC_REJECT, tag, REJECT_REQUEUE)
            self.meter.requeued += 1
        else:
            append_settlement(generation.out, generation.channel, BASIC_NACK, tag, NACK_REQUEUE)
            self.meter.released += 1
        return _YES

    def _end_generation(self) -> None:
        if self._generation is not None and self._generation.alive:
            self._generation.end()
            self.meter.replace(AckWindow(0))

    def _acknowledged(self) -> None:
        """Writes acknowledgements when enough of them are ready, or sees to it that they are not forgotten."""
        generation = self._generation
        if generation is None:
            return
        if generation.acks.ready >= self._ack_at:
            generation.flush()
        if self._timer is None and generation.acks.ready:
            self._start_timer()

    def _flush_acks(self, *, stragglers: bool = False) -> None:
        if self._generation is not None:
            self._generation.flush(stragglers=stragglers)

    def _start_timer(self) -> None:
        self._timer = self._loop.call_later(self.settings.ack_delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._flush_acks(stragglers=True)

    def _give_back_unstarted(self) -> None:
        """Gives messages back that no handler has begun with, and writes the acknowledgements that are ready."""
        if not self._no_ack and not self._handoff:
            for message in self._take_unstarted():
                message.release()
        self._flush_acks(stragglers=True)

    def _acknowledge_handed_off(self) -> None:
        """Acknowledges what was taken over, as far as `handoff_size` allows."""
        generation = self._generation
        assert generation is not None
        room = self.settings.handoff_size - (self._unstarted + self._running - len(self._withheld))
        while self._withheld and room > 0:
            generation.acks.finish(self._withheld.popleft())
            room -= 1
        self._acknowledged()

    # ------------------------------------------------------------------ channel.ConsumerSink

    def _delivered(self, run: ContentRun) -> None:
        """What settings that are not the usual ones do at each read; `delivered` has the rest."""
        if self._adaptive is not None:
            acks = self.meter.acks
            self._lowest = min(self._lowest, self._unstarted - len(run.messages))
            self._highest = max(self._highest, acks.unsettled + acks.ready)
            if self._adapting is None:
                self._adapting = self._loop.call_later(AdaptivePrefetch.INTERVAL, self._adapt)
        if self._handoff:
            self._withheld.extend(message.delivery_tag for message in run.messages)
            self._acknowledge_handed_off()
            self._pressed = bool(self._withheld)
        elif self._no_ack and self._buffered > 10 * self._prefetch and self._tags and not self._reading_paused:
            # Without acknowledgements the broker knows no limit, so the socket has to be it.
            self._reading_paused = self._pressed = True
            self._connection.transport.pause_reading()

    def _read_at_once(self) -> None:
        """The connection may go on without this consumer."""
        self._resume_reading()
        if self._pace is not None:
            self._pace.stop()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._connection.transport.resume_reading()

    def cancelled(self, consumer_tag: str) -> None:
        """The broker cancelled the consumer."""
        if consumer_tag in self._tags:
            self._tags.remove(consumer_tag)
        # RabbitMQ 4.3 cancels for a delivery that took too long, and puts back only that one. Others would time out
        # here as well, and be handled once for each consumer that got them.
        self._give_back_unstarted()
        self._lost(
            ConsumerCancelled(
                f"the broker cancelled the consumer of queue {self.queue!r}: the queue was deleted, its node is "
                "gone, or (RabbitMQ 4.3) a delivery was not acknowledged in the broker's time",
                consumer_tag=consumer_tag,
                queue=self.queue,
            )
        )

    def channel_lost(self, error: LeveretError) -> None:
        """The channel is gone, and with it every unsettled delivery."""
        self._end_generation()
        self._tags.clear()
        self._withheld.clear()
        self._take_unstarted()
        self._read_at_once()
        if (
            isinstance(error, ChannelClosed)
            and error.reply_code == PRECONDITION_FAILED
            and _DELIVERY_TIMEOUT in error.reply_text
            and "timed out" in error.reply_text
        ):
            late = DeliveryTimeout(
                f"a delivery from queue {self.queue!r} was not acknowledged in the broker's time: {error}",
                reply_code=error.reply_code,
                reply_text=error.reply_text,
                class_id=error.class_id,
                method_id=error.method_id,
            )
            late.__cause__ = error
            error = late
        self._lost(error)

    # ------------------------------------------------------------------ when no more deliveries come

    def _lost(self, error: LeveretError) -> None:
        self._note_state()
        if self._error is not None or self._reopening is not None:
            return
        wanted = self.settings.resubscribe and self._subscribed and not (self._stopping or self._over)
        possible = self._connection.settings.auto_recovery or isinstance(error, (ChannelClosed, ConsumerCancelled))
        if wanted and possible and may_mend(error):
            logger.warning("the consumer of queue %r begins again: %s", self.queue, error)
            self._reopening = self._loop.create_task(self._reopen(), name=f"leveret: consume {self.queue} again")
        else:
            self._fail(error)

    async def _reopen(self) -> None:
        """Subscribes again, however often that takes."""
        backoff = self._connect.new_backoff()
        error: LeveretError | None = None
        try:
            while True:
                await asyncio.sleep(backoff.delay())
                backoff.count_attempt()
                try:
                    # Not while others are kept from changing something: it may take for ever.
                    connection = await self._connect.recovered()
                    async with self._changing:
                        await self._subscribe_again(connection)
                except LeveretError as failure:
                    error = failure
                    logger.warning(
                        "the consumer of queue %r: attempt %d to begin again failed: %s",
                        self.queue,
                        backoff.attempts,
                        failure,
                    )
                    if not may_mend(failure):
                        return
                else:
                    if self._tags or self._paused or self._over:
                        logger.info("the consumer of queue %r goes on", self.queue)
                        error = None
                        return
        finally:
            self._reopening = None
            if error is not None:
                self._fail(error)

    async def _subscribe_again(self, connection: Connection) -> None:
        if self._over:
            return  # cancelled meanwhile
        if self._channel is None or not self._channel.is_open:
            await self._open_channel(connection)
        if not self._paused and not self._tags:
            assert self._channel is not None
            await self._consume(self._channel, self._prefetch)

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._over = True
        self._note_state()
        self._wake_all()


def _key_function(ordered_by: str | None) -> Callable[[Message], Hashable] | None:
    """What `ConsumerSettings.ordered_by` says."""
    if ordered_by is None:
        return None
    if ordered_by == "routing_key":
        return lambda message: message.routing_key
    header = ordered_by.partition(":")[2]

    def key(message: Message) -> Hashable:
        value = message.headers.get(header)
        # Tables and arrays of AMQP have no hash.
        return value if isinstance(value, (str, int, bytes, float, type(None))) else repr(value)

    return key
