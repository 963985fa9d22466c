"""Consuming: a fixed set of workers, one acknowledgement for many deliveries, none before the work is done."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
from collections import deque
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from leveret._batching import AckWindow, append_settlement
from leveret.codecs import BodyDecoder
from leveret.errors import (
    ChannelClosed,
    CircuitOpen,
    CodecError,
    ConfigurationError,
    ConsumerCancelled,
    EncodeFailed,
    LeveretError,
    again,
)
from leveret.monitoring import ConsumerMeter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator
    from types import TracebackType
    from typing import Self

    from leveret._framing import ContentRun, Message
    from leveret.channel import Channel
    from leveret.connection import Connection
    from leveret.plugins.registry import PluginRegistry
    from leveret.settings import ConsumerSettings

__all__ = ["Consumer", "Settled"]

logger = logging.getLogger("leveret.consumer")

T = TypeVar("T")

_REJECT, _NACK = 90, 120
#: basic.reject's requeue bit, and basic.nack's (multiple is bit 0 there).
_REJECT_REQUEUE, _NACK_REQUEUE = 1, 2

#: Acknowledgements wait until this share of the prefetch is ready. RabbitMQ's own tests found 5 to 10 % to be
#: near the best rate; a larger share means fewer and longer reads and writes.
_ACK_SHARE = 4
#: A worker lets others run after this many messages without a pause.
_TURN = 256
#: The longest time in seconds that a worker stands still after its handler raised CircuitOpen.
_BREAKER_PAUSE = 1.0


class Settled:
    """What `ack`, `retry`, `release` and `dead_letter` return.

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


class Consumer(Generic[T]):
    """Takes messages from one queue, on a channel of its own. Made by `Client.consumer`.

    Use one of three ways: `run` with a handler, `async for`, or `get`. A message is acknowledged after its handler
    returned, never before, so a crash redelivers what was not finished: handlers see messages at least once.

    Attributes:
        queue: The queue.
        settings: What it was made with.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        queue: str,
        model: type[T] | None,
        settings: ConsumerSettings,
        registry: PluginRegistry,
    ) -> None:
        self.queue = queue
        self.settings = settings
        self._connect = connect
        self._decoder = BodyDecoder(registry, model, settings)
        #: Called by `Message.value`.
        self.decode: Callable[[Message], T] = self._decoder.decode
        self._tag = settings.consumer_tag or f"leveret-{secrets.token_hex(8)}"
        self._channel: Channel | None = None
        self._connection: Connection
        self._acks = AckWindow(0)
        self._ack_at = max(1, settings.prefetch // _ACK_SHARE)
        self._buffer: deque[Message] = deque()
        self._idle: deque[asyncio.Future[None]] = deque()
        self._consuming = False
        self._stopping = False
        self._reading_paused = False
        self._error: LeveretError | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._opening = asyncio.Lock()
        #: Read by `counters` and by the client's monitor.
        self.meter = ConsumerMeter(self._acks)

    def __repr__(self) -> str:
        return f"<Consumer queue={self.queue!r} unsettled={self._acks.unsettled}>"

    def counters(self) -> dict[str, int]:
        """Deliveries so far, what became of them, and `unsettled`: those that are being worked on."""
        return self.meter.read()

    # ------------------------------------------------------------------ life

    async def _open(self) -> Channel:
        # Locked: of several tasks that use a new consumer at once, one opens its channel.
        async with self._opening:
            self._check_error()
            if self._channel is None:
                self._connection = await self._connect()
                channel = await self._connection.channel()
                try:
                    self._check_error()
                except LeveretError:
                    # Closed meanwhile: nobody else would close the channel.
                    channel.abandon()
                    raise
                self._acks = self.meter.acks = AckWindow(channel.number)
                self._channel = channel
            return self._channel

    def _check_error(self) -> None:
        if self._error is not None:
            raise again(self._error)

    async def subscribe(self) -> None:
        """Starts the deliveries (basic.consume); `run` and `async for` do it by themselves.

        Messages that come before the first handler or `async for` wait here, up to the prefetch.

        Raises:
            ChannelClosed: The queue cannot be consumed.
        """
        channel = await self._open()
        settings = self.settings
        if not self._consuming:
            await channel.basic_qos(settings.prefetch)
        if self._consuming:  # before, or by another task while this one waited
            return
        # From here on the request is on its way, whether or not its caller waits for the answer.
        self._consuming = True
        arguments = None if settings.priority is None else {"x-priority": settings.priority}
        try:
            await channel.basic_consume(
                self.queue,
                self,
                consumer_tag=self._tag,
                no_ack=not settings.ack,
                exclusive=settings.exclusive,
                arguments=arguments,
            )
        except EncodeFailed:
            self._consuming = False
            raise

    def stop(self) -> None:
        """Ends `run` or `async for` after the messages that are being worked on; the others go back to the queue."""
        self._stopping = True
        self._wake_all()

    async def close(self) -> None:
        """Writes the acknowledgements that are ready and closes the channel; unfinished messages are requeued."""
        self.stop()
        channel, self._channel = self._channel, None
        if self._error is None:
            self._error = ChannelClosed("the consumer is closed", reply_code=200)
        if self._timer is not None:
            self._timer.cancel()
        if channel is not None:
            if channel.is_open:
                self._acks.flush(self._connection.transport.out, stragglers=True)
            self._resume_reading()
            await channel.close()
        self._buffer.clear()

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # ------------------------------------------------------------------ three ways to take messages

    async def run(self, handler: Callable[[T, Message], Awaitable[bool | None]]) -> None:
        """Calls a handler for each message until `stop` is called or this is cancelled.

        `concurrency` workers share the messages; with one, messages are handled in the queue's order.
        The handler's result settles its message: None or True acknowledges it, False dead-letters it. When it raises,
        the message goes back to the queue once, and is dead-lettered when it fails again (it is marked redelivered).
        `CircuitOpen` is no failure: the message is released, and its worker waits up to a second.
        A body that cannot be decoded is dead-lettered without a call. A handler may settle the message itself.

        Args:
            handler: `async def handler(value, message)`.

        Raises:
            ChannelClosed: The queue cannot be consumed (`NotFound`, `AccessRefused`), or the channel was closed.
            ConnectionClosed, TransportError: The connection was lost.
            ConsumerCancelled: The broker cancelled the consumer, for example because the queue was deleted.
            ConfigurationError: The handler is not a coroutine function.
        """
        candidate: object = handler  # the type promises a coroutine function; a caller without a type checker may not
        if not (
            inspect.iscoroutinefunction(candidate)
            or (callable(candidate) and inspect.iscoroutinefunction(type(candidate).__call__))
        ):
            raise ConfigurationError(
                f"the handler must be an `async def` function of (value, message), not {handler!r}", option="handler"
            )
        try:
            await self.subscribe()
            async with asyncio.TaskGroup() as group:
                for _ in range(self.settings.concurrency):
                    group.create_task(self._work(handler))
            if self._error is not None and not self._stopping:
                raise again(self._error)
        finally:
            await self.close()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        """The next message; the caller settles it."""
        if not self._consuming:
            await self.subscribe()
        while not self._stopping:
            if self._buffer:
                if self._reading_paused and len(self._buffer) <= self.settings.prefetch:
                    self._resume_reading()
                return self._buffer.popleft()
            self._check_error()
            try:
                await self._wait()
            except BaseException:
                # It may have been this one's turn, which passes to the next.
                self._wake(len(self._buffer))
                raise
        raise StopAsyncIteration

    async def get(self) -> Message | None:
        """Takes one message, if there is one (basic.get). Slow: each call is a round trip.

        Returns:
            The message, for the caller to settle, or None when the queue is empty.
        """
        channel = await self._open()
        no_ack = not self.settings.ack
        message = await channel.basic_get(self.queue, no_ack=no_ack)
        if message is not None:
            self.meter.delivered += 1
            message._adopt(self)
            if not no_ack:
                self._acks.track(message.delivery_tag)
        return message

    # ------------------------------------------------------------------ workers

    async def _work(self, handler: Callable[[T, Message], Awaitable[bool | None]]) -> None:
        buffer = self._buffer
        decode = self.decode
        acks = self._acks
        no_ack = not self.settings.ack
        turn = 0
        while not self._stopping:
            if self._reading_paused and len(buffer) <= self.settings.prefetch:
                self._resume_reading()
            if not buffer:
                if self._error is not None:
                    return
                turn = 0
                await self._wait()
                continue
            if turn >= _TURN:
                turn = 0
                await asyncio.sleep(0)
                continue
            turn += 1
            message = buffer.popleft()
            try:
                value = decode(message)
            except CodecError as error:
                self._undecodable(message, error)
                continue
            try:
                result: object = await handler(value, message)
            except CircuitOpen as error:
                # Not tried, so it is no failure. The pause keeps what comes back from going round and round.
                if no_ack:
                    self._handler_failed(message, error)  # it cannot come again
                self._unless_settled(message, "release")
                await asyncio.sleep(min(error.retry_after, _BREAKER_PAUSE) if error.retry_after > 0 else _BREAKER_PAUSE)
                continue
            except Exception as error:
                self._handler_failed(message, error)
                continue
            except asyncio.CancelledError as error:
                if (task := asyncio.current_task()) is not None and task.cancelling():
                    raise
                # The handler cancelled itself; its worker goes on.
                self._handler_failed(message, error)
                continue
            if no_ack:
                pass
            elif result is None or result is True:
                # 0 when the handler settled its message itself, which was counted then.
                ready = acks.finish(message.delivery_tag)
                if ready and (ready >= self._ack_at or self._timer is None):
                    self._acknowledged()
            elif result is False:
                self.settle(message, "dead_letter")
            else:
                nonsense = TypeError(f"a handler returns None, True or False, not {type(result).__name__}")
                self._handler_failed(message, nonsense)

    def _undecodable(self, message: Message, error: CodecError) -> None:
        self.meter.undecodable += 1
        if self.meter.undecodable in (1, 10, 100) or self.meter.undecodable % 1000 == 0:
            logger.warning(
                "queue %r: %d bodies could not be decoded and were dead-lettered; the last: %s",
                self.queue,
                self.meter.undecodable,
                error,
            )
        self._unless_settled(message, "dead_letter")

    def _handler_failed(self, message: Message, error: BaseException) -> None:
        self.meter.handler_errors += 1
        logger.warning(
            "queue %r: the handler failed for %r: %s", self.queue, message, type(error).__name__, exc_info=error
        )
        self._unless_settled(message, "dead_letter" if message.redelivered else "retry")

    def _unless_settled(self, message: Message, verb: str) -> None:
        if self._acks.is_open(message.delivery_tag):
            self.settle(message, verb)

    def _wait(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._idle.append(future)
        return future

    def _wake(self, count: int) -> None:
        idle = self._idle
        while idle and count:
            future = idle.popleft()
            # One that is done belongs to somebody who was cancelled, and takes nothing.
            if not future.done():
                future.set_result(None)
                count -= 1

    def _wake_all(self) -> None:
        while self._idle:
            future = self._idle.popleft()
            if not future.done():
                future.set_result(None)

    # ------------------------------------------------------------------ settling

    def settle(self, message: Message, verb: str) -> Settled:
        """What the verbs of `Message` do; see there."""
        channel = self._channel
        acks = self._acks
        if channel is None or not channel.is_open or not self.settings.ack:
            return _NO
        self._connection.check_loop()
        tag = message.delivery_tag
        if verb == "ack":
            return _YES if self._acknowledge(tag) else _NO
        if not acks.settle(tag):
            return _NO
        out = self._connection.transport.out
        if verb == "dead_letter":
            append_settlement(out, channel.number, _REJECT, tag)
            self.meter.dead_lettered += 1
        elif verb == "retry":
            append_settlement(out, channel.number, _REJECT, tag, _REJECT_REQUEUE)
            self.meter.retried += 1
        else:
            append_settlement(out, channel.number, _NACK, tag, _NACK_REQUEUE)
            self.meter.released += 1
        return _YES

    def _acknowledge(self, delivery_tag: int) -> bool:
        acks = self._acks
        settled = acks.ack(delivery_tag)
        self._acknowledged()
        return settled

    def _acknowledged(self) -> None:
        """Writes acknowledgements when enough of them are ready, or sees to it that they are not forgotten."""
        if self._acks.ready >= self._ack_at:
            self._flush_acks()
        if self._timer is None and self._acks.ready:
            self._start_timer()

    def _flush_acks(self, *, stragglers: bool = False) -> None:
        channel = self._channel
        if channel is not None and channel.is_open:
            self._acks.flush(self._connection.transport.out, stragglers=stragglers)

    def _start_timer(self) -> None:
        self._timer = self._loop.call_later(self.settings.ack_delay, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._flush_acks(stragglers=True)

    # ------------------------------------------------------------------ channel.ConsumerSink

    def delivered(self, run: ContentRun) -> None:
        """Takes the deliveries of one read."""
        messages = run.messages
        run.adopt(self)
        if self.settings.ack:
            self._acks.delivered(run)
        self.meter.delivered += len(messages)
        buffer = self._buffer
        buffer.extend(messages)
        if self._idle:
            self._wake(len(buffer))
        if not self.settings.ack and len(buffer) > 10 * self.settings.prefetch and not self._reading_paused:
            # Without acknowledgements the broker knows no limit, so the socket has to be it.
            self._reading_paused = True
            self._connection.transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._connection.transport.resume_reading()

    def cancelled(self, consumer_tag: str) -> None:
        """The broker cancelled the consumer."""
        self._fail(
            ConsumerCancelled(
                f"the broker cancelled the consumer of queue {self.queue!r} (was the queue deleted?)",
                consumer_tag=consumer_tag,
                queue=self.queue,
            )
        )

    def channel_lost(self, error: LeveretError) -> None:
        """The channel is gone, and with it every unsettled delivery."""
        self._buffer.clear()
        self._fail(error)

    def _fail(self, error: LeveretError) -> None:
        if self._error is None:
            self._error = error
        self._wake_all()
