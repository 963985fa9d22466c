"""The consumer: what a user holds to take messages from a queue.

Its parts do the work. `Subscription` has the channel and the broker's side of it. `Workers` runs handlers.
`Acknowledger` and `Settler` settle messages. `FailureActions` takes care of those that were not handled. The compiled
`DeliveryBuffer`, which `Consumer` derives from, holds what was delivered.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from leveret.codecs.decoding import BodyDecoder
from leveret.consuming.acks import AckWindow
from leveret.consuming.batch_actions import BatchActions
from leveret.consuming.channel_deliveries import Acknowledger, ChannelDeliveries
from leveret.consuming.delivery_buffer import DeliveryBuffer
from leveret.consuming.failing.actions import FailureActions
from leveret.consuming.failing.error_policy import checked_refusal, policy_of
from leveret.consuming.failing.held_messages import HeldMessages, Intake
from leveret.consuming.failing.renewal import Renewal
from leveret.consuming.ordering import key_function
from leveret.consuming.prefetch_tuner import Load, PrefetchTuner
from leveret.consuming.read_collector import ReadCollector
from leveret.consuming.settling import Handoff, Settler, Unlimited
from leveret.consuming.states import ConsumerHealth, ConsumerLife, ConsumerState
from leveret.consuming.streams import StreamPosition
from leveret.consuming.subscription import Subscription
from leveret.consuming.workers import Workers
from leveret.errors import ChannelClosed, ConfigurationError, LeveretError
from leveret.monitoring.meters import ConsumerMeter
from leveret.settings.functions import name_of
from leveret.topology.declared import Declared
from leveret.topology.restoring import Restorer
from leveret.transport.waiting import Waiters
from leveret.wire.numbers import REPLY_SUCCESS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Hashable
    from types import TracebackType
    from typing import Self

    from leveret.connection.channel import Channel
    from leveret.connection.connection import Connection
    from leveret.connection.link import Link
    from leveret.consuming.failing.error_policy import DeadLetter, Drop, OnError, Park
    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import ConsumerSettings
    from leveret.wire.message import Message
    from leveret.wire.runs import ContentRun

__all__ = ["Consumer"]

logger = logging.getLogger("leveret.consuming")

T = TypeVar("T")

#: Acknowledgements wait until this share of the prefetch is ready. RabbitMQ's own tests found 5 to 10 % to be
#: near the best rate; a larger share means fewer and longer reads and writes.
_ACK_SHARE: Final = 4
#: Seconds between two looks at whether all is done, while a consumer is drained.
_DRAIN_STEP: Final = 0.005
#: The most seconds that `drain` may take.
_DAY: Final = 86_400


class Consumer(Generic[T], DeliveryBuffer):
    """Takes messages from one queue, on a channel of its own. Made by `Client.consumer`.

    Use one of three ways: `run` with a handler, `async for`, or `get`. A message is acknowledged after its handler
    returned, never before unless `ack` says so, so a crash redelivers what was not finished: handlers see messages at
    least once.

    Attributes:
        settings: What it was made with.
        batch_actions: What `Batches` does with messages.
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
        refused: DeadLetter | Park | Drop | None = None,
        publishing: Link | None = None,
        restorer: Restorer | None = None,
    ) -> None:
        loop = asyncio.get_running_loop()
        meter = ConsumerMeter(AckWindow(0))
        restorer = restorer or Restorer(Declared())
        declared = restorer.declared
        position = StreamPosition(queue, settings.stream_offset, functools.partial(declared.is_stream, queue))
        held = HeldMessages(
            loop,
            meter,
            share=lambda: self._prefetch // 2,
            unstarted=lambda: self._unstarted,
            give=self._give_due,
            renewal=lambda: self._renewal,
        )
        failures = FailureActions(
            meter,
            queue,
            settings,
            policy_of(on_error),
            checked_refusal(refused),
            publishing or connect,
            registry,
            declared,
            position,
            held=held,
            may_hold=lambda: self._life.state in (ConsumerState.NEW, ConsumerState.CONSUMING),
            stop=self._stop_for,
        )
        waiters = Waiters(loop, asyncio.CancelledError, asyncio.InvalidStateError)
        acks = Acknowledger(waiters, meter, settings.ack_delay, settings.ack == "each")
        keys = ordered_by or key_function(settings.ordered_by)
        no_ack, is_handed_off = settings.ack == "none", settings.ack == "handoff"
        super().__init__(
            acks=acks,
            failures=failures,
            meter=meter,
            waiters=waiters,
            ordered_by=keys,
            no_ack=no_ack,
            watched=True,
            measured=settings.prefetch == "auto",
        )
        self.settings = settings
        self._connection: Connection
        self._loop = loop
        self._decoder = BodyDecoder(registry, model, settings)
        self._is_ordered = keys is not None
        self._no_ack = no_ack
        self._acks = acks
        self._failures = failures
        self._held = held
        self._position = position
        self._settler = Settler(
            acks, meter, failures, self._check_loop, position, no_ack=no_ack, each=settings.ack == "each"
        )
        self._life = ConsumerLife(self._note_state)
        self._workers = Workers(queue, settings, loop, self._life, failures)
        self._tuner: PrefetchTuner | None = None
        if settings.prefetch == "auto":
            self._tuner = PrefetchTuner(queue, settings, loop, meter, self._load, self._watch)
            prefetch = self._tuner.initial
        else:
            prefetch = settings.prefetch
        self._subscription = Subscription(
            connect,
            queue,
            settings,
            restorer,
            self._life,
            prefetch,
            self._position,
            sink=self,
            opened=self._channel_opened,
            changed=self._note_state,
            settle=lambda: acks.flush(stragglers=True),
        )
        self._renewal = Renewal(self._subscription, settings, declared, held)
        self._limit: Handoff | Unlimited | None = None
        if is_handed_off:
            self._limit = Handoff(acks, settings.handoff_size)
        elif no_ack:
            self._limit = Unlimited(self._subscription)
        self.batch_actions: BatchActions[T] = BatchActions(
            failures, self._settler, self._workers, give_again=self._give_again, is_last=no_ack or is_handed_off
        )
        self._note_state()

    def __repr__(self) -> str:
        return f"<Consumer queue={self.queue!r} {self._life.state.value} unsettled={self.meter.acks.unsettled}>"

    # ------------------------------------------------------------------ counters and health

    def counters(self) -> dict[str, int]:
        """Returns the deliveries so far, what became of them, and `unsettled`: those that are being worked on."""
        return self.meter.counters()

    @property
    def queue(self) -> str:
        """The queue; the server may name a queue of its own again with each connection."""
        return self._subscription.queue

    @property
    def prefetch(self) -> int:
        """How many deliveries the broker sends ahead now; it moves when the setting is "auto"."""
        return self._subscription.prefetch

    @property
    def state(self) -> ConsumerState:
        """What it is at."""
        return self._life.state

    def health(self) -> ConsumerHealth:
        """Compares what should be with what is, without a round trip.

        The metrics `consumers_expected` and `consumers_live` say the same of all consumers of a queue.
        """
        self._note_state()
        return ConsumerHealth(
            expected=self.meter.expected,
            live=self.meter.live,
            delivery_age=None if self._delivered_at is None else time.monotonic() - self._delivered_at,
            working=self._running,
            waiting=self._unstarted,
        )

    def _note_state(self) -> None:
        """Computes the caches of the state: the attributes of the compiled part, and the gauges of the meter."""
        life, subscription = self._life, self._subscription
        self._note_end(over=life.is_over, stopping=life.is_stopped)
        if life.is_over and self._held:
            self._failures.give_back(self._held.take())
        # Deliveries should come to a consumer that holds too many failed messages to get them.
        wanted = self._held.intake is Intake.FULL or not subscription.is_withheld
        self.meter.expected = life.state is ConsumerState.LOST or (life.state is ConsumerState.CONSUMING and wanted)
        self.meter.live = subscription.is_live
        if self._prefetch != subscription.prefetch:
            self._prefetch = self.meter.prefetch = subscription.prefetch
            self._acks.write_at = max(1, subscription.prefetch // _ACK_SHARE)
            # Fewer than would have been enough before may be enough now.
            self._acks.write_in_time()

    def _load(self) -> Load:
        return Load(self._unstarted, self._waiting, self._idle_seconds(), *self._take_extremes())

    # ------------------------------------------------------------------ life

    async def subscribe(self) -> None:
        """Starts the deliveries (basic.consume); `run` and `async for` do it by themselves.

        Messages that come before the first handler or `async for` wait here, up to the prefetch.

        Raises:
            OperationTimeout: It was not done within `operation_timeout`, all waits together. Where basic.consume was
                sent, the consumer goes on by itself, on another channel if need be; otherwise call it again.
            ChannelClosed: The queue cannot be consumed, or the consumer was closed meanwhile.
        """
        await self._subscription.begin()

    async def set_prefetch(self, prefetch: int) -> None:
        """Changes how many deliveries the broker sends ahead, without a stop.

        RabbitMQ applies a prefetch to consumers that begin after it (basic.qos), and quorum queues know no other kind.
        So a new consumer takes the place of the old one on the same channel: first it begins, then the old one is
        cancelled. Deliveries to the old one stay valid. During the change both may hold deliveries.

        Args:
            prefetch: 1 to 65535.

        Raises:
            ConfigurationError: The number is out of range, or the consumer is exclusive: two cannot be.
            OperationTimeout: It was not done within `operation_timeout`; the old consumer goes on, or the new one where
                basic.consume was sent and its answer is only late: see `prefetch`.
            ChannelClosed: The queue cannot be consumed any more.
        """
        self.settings.replace(prefetch=prefetch)  # raises when it is out of range
        async with self._subscription.call("set_prefetch"), self._renewal.lock:
            await self._subscription.change_prefetch(prefetch)

    async def pause(self) -> None:
        """Stops the deliveries (basic.cancel) until `resume`.

        Handlers that are at work go on. Messages that wait here for one go back to the queue, where other consumers
        find them. With `ack` "none" and "handoff" they cannot go back, and are handled.

        Raises:
            OperationTimeout: The broker did not answer.
            ChannelClosed: The channel is closed.
        """
        self._life.check()
        try:
            await self._subscription.stop_deliveries(ConsumerState.PAUSED)
        finally:
            # Whether or not the broker answers.
            if self._life.state is ConsumerState.PAUSED:
                self._give_back_unstarted()
                self._wake_all()

    async def resume(self) -> None:
        """Starts the deliveries again after `pause`.

        Raises:
            OperationTimeout: As `subscribe`.
            ChannelClosed: The queue cannot be consumed any more.
        """
        self._life.check()
        await self._subscription.resume()

    async def cancel(self) -> None:
        """Stops the deliveries (basic.cancel) for good; what was delivered is still handled, and then `run` returns.

        Raises:
            OperationTimeout: The broker did not answer.
        """
        await self._subscription.end()

    async def drain(self, timeout: float = 30.0) -> bool:
        """Ends the consumer without losing or repeating work.

        It stops the deliveries (basic.cancel), gives messages back that no handler has begun with, waits for the
        handlers that are at work, and writes their acknowledgements. Then `run` returns. With `ack` "none" and
        "handoff" the messages that wait here cannot go back, and are handled, too. A handler that awaits `drain` waits
        for itself until the timeout cancels it: call `stop` there, or await `drain` in a task of your own.

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
                self._life.become(ConsumerState.DRAINING)
                # Handlers have the rest of the time, whether or not the broker answers.
                with contextlib.suppress(LeveretError):
                    await self._subscription.stop_deliveries(ConsumerState.DRAINING)
                self._give_back_unstarted()
                self._wake_all()
                # Looking again and again keeps every message from having to say that it is done.
                while self._is_at_work():  # noqa: ASYNC110
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
                self._workers.cancel()
            self._give_back_unstarted()
        return complete

    def _is_at_work(self) -> bool:
        """Returns whether messages wait or are being worked on, by `run`, `async for` or `get`."""
        if self._running or self._unstarted:
            return True
        if self.settings.ack not in ("coalesced", "each"):
            return False
        deliveries = self._acks.current
        return deliveries is not None and deliveries.alive and deliveries.acks.unsettled > 0

    def stop(self) -> None:
        """Ends `run` or `async for` after the messages that are being worked on; the others go back to the queue.

        With `ack` "none" and "handoff" they cannot go back, and are lost: use `cancel` or `drain`.
        """
        self._life.become(ConsumerState.STOPPING)

    async def close(self) -> None:
        """Writes the acknowledgements that are ready and closes the channel; unfinished messages are requeued."""
        self._life.fail(ChannelClosed("the consumer is closed", reply_code=REPLY_SUCCESS), ConsumerState.CLOSED)
        self._acks.stop()
        self._workers.close()
        channel = self._subscription.channel
        try:
            await self._failures.finish()
            if self._no_ack and channel is not None and channel.is_open:
                # What the broker has sent and forgotten is counted, too.
                with contextlib.suppress(LeveretError):
                    await self._subscription.end()
            await self._subscription.detach()
            await self._renewal.close()
            if self._tuner is not None:
                await self._tuner.close()
        finally:
            try:
                if channel is not None:
                    if channel.is_open:
                        # With basic.nack, because RabbitMQ counts what a closed channel gives back as failed.
                        self._give_back_unstarted()
                    self._read_at_once()
                    self._end_deliveries()
                    await channel.close()
            finally:
                self._subscription.tags.clear()
                self._note_state()
                self._failures.note_lost(self._kept(self._take_unstarted()))
                await self._failures.close()

    async def __aenter__(self) -> Self:
        await self._subscription.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------------ three ways to take messages

    async def run(self, handler: Callable[[T, Message], Awaitable[bool | None] | bool | None]) -> None:
        """Calls a handler for each message until `stop`, `cancel` or `drain` is called or this is cancelled.

        `concurrency` workers share the messages; with one, messages are handled in the queue's order.
        The handler's result settles its message: None or True acknowledges it. False refuses it: it is dead-lettered
        where the client has declared the queue with a dead-letter exchange, and parked otherwise, unless `refused` says
        something else. When it raises, the error policy `on_error` says what happens to its message; without a policy
        it is tried again after 1, 5, 30 and 60 s, and then parked. `CircuitOpen` is no failure: the message is held
        until the breaker may be closed. A body that cannot be decoded is parked without a call. A handler may settle
        the message itself.
        The handlers of a worker run in one task, so a context variable that one sets is seen by the next.

        Args:
            handler: `async def handler(value, message)`, or a plain function, which runs in a thread: there `message`
                can be read, but not settled.

        Raises:
            ChannelClosed: The queue could not be consumed from the start (`NotFound`, `AccessRefused`).
            NotFound: The queue has been missing for `queue_missing_timeout`.
            ConsumerCancelled: The broker cancelled the consumer, and `on_cancel` is "stop".
            ConnectionClosed, TransportError, ChannelClosed: With `auto_recovery=False`: why it was lost.
            ConfigurationError: The handler cannot be called with a value and a message. Nothing was sent.
        """
        work = self._workers.work_of(self, self._acks, handler)
        self._failures.handler_name = name_of(handler)
        self._workers.start_clock()
        try:
            await self.share(work)
        finally:
            self._workers.stop_clock()

    async def share(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs `concurrency` tasks that do this work, and closes the consumer when they end; `Batches` uses it.

        Raises:
            LeveretError: As `run`.
        """
        try:
            await self._subscription.start()
            await self._workers.share(work)
            if self._life.state in (ConsumerState.LOST, ConsumerState.FAILED):
                self._life.check()
        finally:
            await self.close()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        """Returns the next message; the caller settles it."""
        if (message := self._next()) is not None:
            return message
        if self._is_ordered:
            raise ConfigurationError("ordered_by is of use with `run` only", option="ordered_by")
        if self._life.state is ConsumerState.NEW:
            await self._subscription.start()
        self._iterates = True
        while not self._stopping:
            if (message := self._next()) is not None:
                return message
            self._life.check()
            if self._over:
                break
            self._idle_begins()
            waiter = self._wait()
            try:
                await waiter
            except BaseException:
                self._give_up_waiting(waiter)
                raise
            finally:
                self._idle_ends()
        raise StopAsyncIteration

    async def take(self, size: int, wait: float) -> list[Message]:
        """Takes up to `size` messages: as many, or those that came within `wait` seconds of the first; for `Batches`.

        Args:
            size: The most messages, 1 or more.
            wait: Seconds. A pause ends the wait.

        Returns:
            At least one message, for the caller to settle; none when the consumer was stopped or cancelled.

        Raises:
            LeveretError: As `run`.
        """
        messages: list[Message] = []
        deadline = 0.0
        while not messages or (len(messages) < size and not self._stopping):
            if not messages:
                try:
                    messages.append(await anext(self))
                except StopAsyncIteration:
                    return []
                deadline = self._loop.time() + wait
                continue
            message = self._pop()
            if message is not None:
                messages.append(message)
                continue
            if self._life.state is not ConsumerState.CONSUMING or self._loop.time() >= deadline:
                break
            waiter = self._wait()
            timer = self._loop.call_at(deadline, waiter.set_result, None)
            try:
                await waiter
            except BaseException:
                self._put_back(messages)
                self._give_up_waiting(waiter)
                raise
            finally:
                timer.cancel()
            # Without those whose channel was lost meanwhile and that the broker delivers again: perhaps all of them.
            messages = self._kept(messages)
        self._wake_more()
        return messages

    async def get(self) -> Message | None:
        """Takes one message, if there is one (basic.get). Slow: each call is a round trip.

        Returns:
            The message, for the caller to settle, or None when the queue is empty.

        Raises:
            ConfigurationError: Deliveries come already: what they acknowledge would cover this message, too.
        """
        if self._subscription.has_begun or self._life.state is ConsumerState.CONSUMING:
            raise ConfigurationError("get is of no use while deliveries come", option="get")
        self._position.check_takes_nothing_back("get", "get")
        async with self._subscription.call("get"):
            channel = await self._subscription.open()
            if (due := self._pop()) is not None:
                return due  # it was held here
            message = await channel.basic_get(self.queue, no_ack=self._no_ack)
        if message is not None:
            deliveries = self._acks.current
            assert deliveries is not None
            self.meter.delivered.add()
            deliveries.adopt_one(message, time.monotonic())
            if not self._no_ack:
                deliveries.acks.track(message.delivery_tag)
        return message

    # ------------------------------------------------------------------ the parts call these

    def _check_loop(self) -> None:
        self._connection.check_loop()

    def _give_again(self, messages: list[Message]) -> None:
        """Puts messages that were taken before those that wait."""
        self._put_back(messages)
        self._wake_more()

    def _give_due(self, messages: list[Message]) -> None:
        """Puts messages that were held behind those that wait."""
        self._put_back([*self._take_unstarted(), *messages])
        self._wake_more()

    def _stop_for(self, error: BaseException) -> None:
        """Ends the consumer with an error, because the error policy said so."""
        self._life.fail(error, ConsumerState.FAILED)

    def _channel_opened(self, channel: Channel) -> None:
        self._connection = channel.connection
        transport = channel.connection.transport
        deliveries = ChannelDeliveries(
            self.queue, channel.number, transport.out, self._decoder, self._settler.settle, channel.credit
        )
        self._acks.begin(deliveries, transport)
        self._position.opened(deliveries)
        self._watched = True
        self.meter.replace(deliveries.acks)
        self._failures.connected(channel.connection)
        if self.settings.read_delay:
            self._collector = ReadCollector(self._loop, transport.collect, transport.reader, self.settings.read_delay)

    def _give_back_unstarted(self) -> None:
        """Gives messages back that no handler has begun with, and writes the acknowledgements that are ready."""
        self._failures.give_back(self._held.take())
        if self._limit is None:
            self._failures.give_back_unstarted(self._take_unstarted())
        self._acks.flush(stragglers=True)

    def _end_deliveries(self) -> None:
        deliveries = self._acks.current
        if deliveries is not None and deliveries.alive:
            deliveries.end()
            self.meter.replace(AckWindow(0))

    # ------------------------------------------------------------------ the compiled part calls these

    def _delivered(self, run: ContentRun) -> None:
        """Notes the deliveries of a read, when the settings need that."""
        if self._position.is_watching:
            self._position.delivered(run.messages)
            if self._position.needs_confirmation:
                self._subscription.confirm_stream()
        if self._tuner is not None:
            self._tuner.begin(self._subscription)
        if self._limit is not None:
            self._limit.delivered(run.messages, self._unstarted, self._running)
            self._pressed = self._limit.is_full
        self._watched = self._limit is not None or self._position.is_watching

    def _taken(self) -> None:
        """Notes that a message was taken while there were too many."""
        assert self._limit is not None
        self._limit.taken(self._unstarted, self._running)
        self._pressed = self._limit.is_full

    # ------------------------------------------------------------------ the channel calls these, and `delivered`

    def cancelled(self, consumer_tag: str) -> None:
        """Notes that the broker has cancelled the consumer."""
        # RabbitMQ 4.3 cancels for a delivery that took too long, and puts back only that one. Others would time out
        # here as well, and be handled once for each consumer that got them.
        self._give_back_unstarted()
        self._subscription.cancelled_by_broker(consumer_tag)

    def channel_lost(self, error: LeveretError) -> None:
        """Notes that the channel is gone; the broker delivers again what was not settled."""
        self._end_deliveries()
        if self._limit is not None:
            self._limit.forget()
        # What the broker has forgotten, with `ack` "none" and "handoff", is handled all the same.
        self._held.forget(self._kept)
        self._put_back(self._take_unstarted())
        self._wake_more()
        self._read_at_once()
        self._subscription.channel_lost(error)

    def _read_at_once(self) -> None:
        """Lets the connection go on without this consumer."""
        if self._collector is not None:
            self._collector.stop()
