"""A consumer as the broker knows it: its channel, the consumer tags on it, and how it subscribes again after a loss."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from typing import TYPE_CHECKING

from leveret.consuming.consumed_queue import ConsumedQueue
from leveret.consuming.losses import LossRules, is_outage, typed
from leveret.consuming.stand_in import StandIn
from leveret.consuming.states import ConsumerState
from leveret.consuming.streams import confirm
from leveret.errors import (
    ChannelClosed,
    ConfigurationError,
    ConsumerCancelled,
    EncodeFailed,
    LeveretError,
    OperationTimeout,
    again,
)
from leveret.runtime.tasks import one_deadline

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from leveret.connection.channel import Channel, ConsumerSink
    from leveret.connection.connection import Connection
    from leveret.connection.link import Link
    from leveret.consuming.states import ConsumerLife
    from leveret.consuming.streams import StreamPosition
    from leveret.protocol.recovery import Backoff
    from leveret.settings import ConsumerSettings
    from leveret.topology.restoring import Restorer

__all__ = ["Subscription"]

logger = logging.getLogger("leveret.consuming")


class Subscription:
    """The channel of one consumer, and its consumer tags.

    Args:
        link: Opens connections.
        queue: The queue's name when the consumer was made.
        settings: The consumer's.
        restorer: Knows what the client has declared, and declares a queue again that went with its last consumer.
        life: The consumer's state.
        prefetch: How many deliveries the broker sends ahead.
        position: Where the consumer is, when the queue is a stream.
        sink: Gets the deliveries and losses of the channel.
        opened: Called with each channel before the first delivery on it.
        changed: Called when the prefetch or the consumer tags have changed.
        settle: Called before a channel is closed: writes the acknowledgements that are ready.

    Attributes:
        channel: The channel, or None before it was opened and after `detach`.
        prefetch: How many deliveries the broker sends ahead.
        tags: The consumer tags that the broker knows, the newest last.
    """

    def __init__(
        self,
        link: Link,
        queue: str,
        settings: ConsumerSettings,
        restorer: Restorer,
        life: ConsumerLife,
        prefetch: int,
        position: StreamPosition,
        *,
        sink: ConsumerSink,
        opened: Callable[[Channel], None],
        changed: Callable[[], None],
        settle: Callable[[], None],
    ) -> None:
        self.channel: Channel | None = None
        self.prefetch = prefetch
        self.tags: list[str] = []
        self._link = link
        self._queue = ConsumedQueue(queue, link, restorer)
        self._settings = settings
        self._rules = LossRules(settings, link)
        self._life = life
        self._position = position
        self._sink = sink
        self._opened = opened
        self._changed = changed
        self._settle = settle
        self._no_ack = settings.ack == "none"
        self._tag = settings.consumer_tag or f"leveret-{secrets.token_hex(8)}"
        # How often the consumer began on this channel.
        self._begun = 0
        # The tags whose basic.consume was not answered, and the tasks that wait for answers.
        self._unanswered: set[str] = set()
        self._asking: set[asyncio.Task[None]] = set()
        # Made with the first loss.
        self._backoff: Backoff | None = None
        # When the last attempt to subscribe again ended, by the loop's clock.
        self._tried_at = 0.0
        self._reopening: asyncio.Task[None] | None = None
        # Why no deliveries may come although the consumer is CONSUMING, and the task that tells the broker.
        self._reasons: set[object] = set()
        self._adjusting: asyncio.Task[None] | None = None
        # Keeps the queue in use while deliveries are withheld, when it might be deleted otherwise.
        self._stand_in: StandIn | None = None
        # Asks the broker whether the queue is a stream.
        self._confirming: asyncio.Task[None] | None = None
        # One task at a time opens the channel; one at a time changes what the broker knows of this consumer.
        self._opening = asyncio.Lock()
        self._changing = asyncio.Lock()

    @property
    def queue(self) -> str:
        """The queue's name now: a server-named queue gets a new one with each connection."""
        return self._queue.name

    @property
    def is_live(self) -> bool:
        """True when the broker has answered basic.consume, and has the consumer as far as this side knows."""
        return self._has_channel and any(tag not in self._unanswered for tag in self.tags)

    @property
    def _has_channel(self) -> bool:
        return self.channel is not None and self.channel.is_open

    @property
    def has_begun(self) -> bool:
        """True when basic.consume was sent on the channel."""
        return self._begun > 0

    @property
    def is_withheld(self) -> bool:
        """True from `withhold` on until the broker has answered the basic.consume that follows the last `allow`."""
        return bool(self._reasons) or self._adjusting is not None

    @property
    def wants_deliveries(self) -> bool:
        """True when deliveries come on the channel, or may come again."""
        return self._has_channel and not self._life.is_over

    # ------------------------------------------------------------------ changes that a user asks for

    @contextlib.asynccontextmanager
    async def call(self, what: str) -> AsyncIterator[None]:
        """Gives a call of the user one deadline of `operation_timeout` for all that it waits for.

        Args:
            what: Names the call.

        Raises:
            OperationTimeout: It took longer.
            ChannelClosed: It failed because the consumer was closed meanwhile, whatever it waited for.
        """
        try:
            async with one_deadline(self._link.operation_timeout, f"{what} of the consumer of queue {self.queue!r}"):
                yield
        except LeveretError:
            if self._life.state is ConsumerState.CLOSED:
                self._life.check()
            raise

    async def open(self) -> Channel:
        """Opens the channel, unless it is open."""
        # Locked: of several tasks that use a new consumer at once, one opens its channel.
        async with self.call("opening the channel"), self._opening:
            self._life.check()
            if self.channel is None:
                await self._open_channel(await self._connected())
            assert self.channel is not None
            return self.channel

    async def _connected(self) -> Connection:
        if not self._link.auto_recovery:
            return await self._link()
        what = f"the consumer of queue {self.queue!r} was not started"
        return await self._link.within(self._link.operation_timeout, "operation_timeout", what)

    async def begin(self) -> None:
        """Starts the deliveries of a consumer that is NEW."""
        if self._no_ack:
            self._position.check_takes_nothing_back('ack="none"', "ack")
        async with self.call("subscribe"):
            channel = await self.open()
            async with self._changing:
                self._life.check()
                if self._life.state is not ConsumerState.NEW:
                    return
                if self._reasons:
                    self._life.become(ConsumerState.CONSUMING)
                else:
                    await self._consume_or_give_up(channel)

    async def start(self) -> None:
        """Subscribes like `begin`, for `run` and iteration, which wait for deliveries anyway.

        While there is no connection it waits for one, as after a loss. When it is closed meanwhile, it does not start.

        Raises:
            LeveretError: As `begin`, when no further attempt is made.
        """
        self._life.check()
        try:
            self._rules.starts()
            outage = self._link.outage if self._link.may_recover else None
            if outage is not None and self._life.state is ConsumerState.NEW:
                raise again(outage)
            await self.begin()
        except LeveretError as error:
            if self._life.state is ConsumerState.CLOSED:
                return
            if self._reopening is not None or self._life.is_over:
                return self._life.check()
            waits = is_outage(error) or self._queue.is_missing
            if not (waits and self._rules.go_on_after(error)):
                raise
            self._life.become(ConsumerState.CONSUMING)
            self._lost(error)

    async def change_prefetch(self, prefetch: int) -> None:
        """Changes the prefetch; see `Consumer.set_prefetch`."""
        if self._settings.exclusive and self.tags:
            raise ConfigurationError("the prefetch of an exclusive consumer cannot be changed", option="prefetch")
        async with self.call("set_prefetch"), self._changing:
            channel = self.channel
            if not self.tags or channel is None or self._no_ack:
                self._use_prefetch(prefetch)
            elif self._position.is_stream:
                # A second subscription would read the stream beside the first one.
                try:
                    await self._cancel_tags()
                    self._use_prefetch(prefetch)
                    await self._consume_or_give_up(channel)
                finally:
                    self._adjust()  # begins again when nothing was asked for
            else:
                await self._replace(channel, prefetch)

    async def _replace(self, channel: Channel, prefetch: int) -> None:
        """Begins a consumer with another prefetch, and then cancels the old one."""
        before = self.prefetch
        try:
            await self._consume(channel, prefetch)
        except BaseException as error:
            newest = self.tags[-1] if self.tags else ""
            if isinstance(error, OperationTimeout) and newest in self._unanswered and self.is_live:
                self.tags.insert(0, self.tags.pop())  # the old consumer goes on
                self._use_prefetch(before)
            # Otherwise the new one does, whose answer is on its way: RabbitMQ 3.10 ends the connection (541) when it is
            # cancelled right behind basic.consume. The call has no time left to wait for answers.
            self._cancel_others(channel)
            raise
        # The old one, and what was left behind when the channel did not take it.
        await self._cancel_tags(keep=1)

    async def stop_deliveries(self, state: ConsumerState) -> None:
        """Becomes PAUSED, or DRAINING, and stops the deliveries."""
        async with self._changing:
            self._life.become(state)
            await self._cancel_tags()

    async def resume(self) -> None:
        """Starts the deliveries of a consumer that is PAUSED."""
        async with self.call("resume"), self._changing:
            if self._life.state is not ConsumerState.PAUSED:
                return
            self._life.become(ConsumerState.CONSUMING)
            if not self.tags and not self._reasons and self.channel is not None and self.channel.is_open:
                try:
                    await self._consume_or_give_up(self.channel)
                except BaseException:
                    # Nothing was asked for, and nothing else will: `resume` may be called again.
                    if not self.tags and self._reopening is None:
                        self._life.become(ConsumerState.PAUSED)
                    raise

    async def end(self) -> None:
        """Stops the deliveries, and becomes ENDING."""
        async with self._changing:
            try:
                await self._cancel_tags()
            finally:
                self._life.become(ConsumerState.ENDING)

    async def detach(self) -> Channel | None:
        """Gives the channel up, and ends attempts to open another one.

        Returns:
            The channel, for its last acknowledgements.
        """
        channel, self.channel = self.channel, None
        self._queue.leave(self)
        others = (self._reopening, self._adjusting, self._confirming)
        tasks = [*self._asking, *(task for task in others if task is not None)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        return channel

    # ------------------------------------------------------------------ deliveries withheld for a while

    def withhold(self, reason: object) -> None:
        """Stops the deliveries (basic.cancel) until `allow`; the consumer stays CONSUMING.

        The broker is told in a task. Deliveries that are here, or that arrive before the broker has answered, stay
        valid and can be settled. The other calls keep their meaning: a prefetch that is set meanwhile is used later,
        `pause` and `drain` find nothing to cancel, and after a loss a channel is opened without a consumer.

        Args:
            reason: A hashable name for why; several may withhold at once. A reason that is there already changes
                nothing.
        """
        self._reasons.add(reason)
        self._adjust()

    def allow(self, reason: object) -> None:
        """Takes a `withhold` back; without a reason left, basic.consume is sent again, on the same channel.

        Args:
            reason: As in `withhold`. An unknown reason changes nothing.
        """
        self._reasons.discard(reason)
        self._adjust()

    @property
    def _is_adjusted(self) -> bool:
        """True unless `_adjust` has to tell the broker to begin or to stop.

        Only a consumer that is CONSUMING and has an open channel is told; `_reopen` has the others subscribe again.
        """
        return (
            self._life.state is not ConsumerState.CONSUMING
            or self._reopening is not None
            or not self._has_channel
            or bool(self.tags) is not bool(self._reasons)
        )

    def _adjust(self) -> None:
        """Starts the task that tells the broker what `withhold` and `allow` have changed."""
        if self._adjusting is None and not self._is_adjusted:
            self._adjusting = asyncio.get_running_loop().create_task(
                self._tell(), name=f"leveret: withhold or allow {self.queue}"
            )
        self._changed()

    async def _tell(self) -> None:
        error: LeveretError | None = None
        try:
            while error is None and not self._is_adjusted:
                async with self._changing:
                    # Others may have changed something while this task waited for the lock.
                    if not self._is_adjusted:
                        error = await self._tell_once()
        finally:
            self._adjusting = None
            if error is not None:
                self._life.fail(error, ConsumerState.LOST)
            self._changed()

    async def _tell_once(self) -> LeveretError | None:
        """Cancels all tags, or subscribes; returns the error that ends the consumer, if there is one."""
        channel = self.channel
        assert channel is not None
        try:
            if self._reasons:
                await self._withhold_on(channel)
            else:
                await self._consume_or_give_up(channel)
                await self._end_stand_in()
        except LeveretError as failure:
            # A lost channel is taken care of where its loss is noted.
            if not self._is_adjusted:
                return failure
            logger.warning("the consumer of queue %r: withholding or allowing deliveries: %s", self.queue, failure)
        except Exception as failure:
            # A defect in this code must not leave `run` waiting.
            logger.exception("the consumer of queue %r could not withhold or allow deliveries", self.queue)
            error = ChannelClosed(f"deliveries were not begun again: {type(failure).__name__}")
            error.__cause__ = failure
            return error
        return None

    async def _withhold_on(self, channel: Channel) -> None:
        stand_in = None
        # With acknowledgements the prefetch is a limit, too, and nobody withholds what a queue might go with.
        if self._no_ack and self._queue.may_vanish and not self._settings.exclusive:
            stand_in = StandIn(channel, self.queue, self._next_tag(), self._sink)
            await stand_in.begin()
        await self._cancel_tags()
        self._stand_in = stand_in

    async def _end_stand_in(self) -> None:
        stand_in, self._stand_in = self._stand_in, None
        if stand_in is not None:
            await stand_in.end()

    # ------------------------------------------------------------------ streams

    def confirm_stream(self) -> None:
        """Has the broker asked whether the queue is a stream, as one of its deliveries says."""
        if self.channel is not None and (self._confirming is None or self._confirming.done()):
            self._confirming = asyncio.get_running_loop().create_task(
                confirm(self._position, self.queue, self._tag, self.channel.connection),
                name=f"leveret: is {self.queue} a stream",
            )

    # ------------------------------------------------------------------ requests

    async def _open_channel(self, connection: Connection) -> None:
        self._queue.look_up()
        channel = await connection.channel()
        if channel.error is not None:
            raise again(channel.error)  # it was closed in the read that opened it
        if self._life.error is not None:
            # The consumer was closed meanwhile, so the channel has no owner who would close it.
            channel.abandon()
            self._life.check()
        if self._settings.body_view_size is not None:
            connection.transport.reader.view_bodies(channel.number, self._settings.body_view_size)
        channel.consumer = self._sink
        self.channel = channel
        self._begun = 0
        self._opened(channel)

    async def _consume(self, channel: Channel, prefetch: int) -> None:
        """Sends basic.qos and basic.consume; a consumer that the broker knows already stays."""
        if self._confirming is not None:
            await asyncio.wait([self._confirming])  # what it learns says where to begin
        await channel.basic_qos(prefetch)
        await self._queue.find(channel, left=self._rules.is_known and not self.tags and self._stand_in is None)
        tag = self._next_tag()
        # From here on the request is on its way, whether or not its caller waits for the answer.
        was_new = self._life.state is ConsumerState.NEW
        self._life.become(ConsumerState.CONSUMING)
        self.tags.append(tag)
        self._unanswered.add(tag)
        self._use_prefetch(prefetch)
        # A task of its own, so that the answer has a deadline when the caller gives up before.
        task = asyncio.create_task(self._ask(channel, tag), name=f"leveret: consume {self.queue}")
        self._asking.add(task)
        task.add_done_callback(self._asked)
        await asyncio.wait([task])
        if task.cancelled():
            self._life.check()  # the consumer was closed meanwhile
        try:
            task.result()
        except EncodeFailed:
            if was_new:
                self._life.become(ConsumerState.NEW)
            raise
        self._adjust()

    def _next_tag(self) -> str:
        # No name twice on one channel: a quorum queue goes on counting deliveries of a name while some of them are not
        # settled, and RabbitMQ 3.10 ends the connection (541) because it takes the first of the new consumer for a gap.
        tag = f"{self._tag}~{self._begun}" if self._begun else self._tag
        self._begun += 1
        return tag

    async def _consume_or_give_up(self, channel: Channel) -> None:
        """Calls `_consume`; a channel on which nothing is answered is given up."""
        try:
            await self._consume(channel, self.prefetch)
        except OperationTimeout as error:
            if channel is self.channel and channel.is_open:
                self._give_up(channel, error)  # basic.qos was not answered
            raise

    async def _ask(self, channel: Channel, tag: str) -> None:
        """Sends basic.consume, and gives the channel up when the answer does not come."""
        settings = self._settings
        arguments = self._position.arguments()
        if settings.priority is not None:
            arguments["x-priority"] = settings.priority
        try:
            await channel.basic_consume(
                self.queue,
                self._sink,
                consumer_tag=tag,
                no_ack=self._no_ack,
                exclusive=settings.exclusive,
                arguments=arguments or None,
            )
        except LeveretError as error:
            # On another channel, the same tag is another consumer's.
            if tag in self.tags and channel is self.channel:
                if not isinstance(error, OperationTimeout):
                    self._forget(tag)  # it was not sent, or the channel is closed
                elif not self.is_live:  # otherwise the consumer that it was to replace goes on
                    self._give_up(channel, error)
            raise
        if channel is self.channel:
            self._unanswered.discard(tag)
            self._position.begun()
            self._rules.subscribed()
            self._queue.join(self)
            self._changed()

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled():
            # Marks the exception as retrieved: the caller may have given up.
            task.exception()

    def _give_up(self, channel: Channel, error: LeveretError) -> None:
        """Closes a channel on which the broker does not answer, and goes on as after a loss."""
        self._settle()
        channel.abandon()
        self._sink.channel_lost(error)

    def _forget(self, tag: str) -> None:
        self.tags.remove(tag)
        self._unanswered.discard(tag)
        self._changed()

    async def _cancel_tags(self, keep: int = 0) -> None:
        """Sends basic.cancel; deliveries that are on their way arrive before this returns."""
        channel = self.channel
        while len(self.tags) > keep and channel is not None and channel.is_open:
            # For the broker it is done once it is sent, whether or not the caller waits for the answer.
            tag = self.tags[0]
            self._forget(tag)
            try:
                await channel.basic_cancel(tag)
            except OperationTimeout as error:
                if self._position.is_stream and channel is self.channel:
                    # Late deliveries would hide where the next subscription has to begin.
                    self._give_up(channel, error)
                raise
        if not keep:
            await self._end_stand_in()

    def _cancel_others(self, channel: Channel) -> None:
        """Sends basic.cancel for all tags but the newest, without waiting for the answers."""
        while len(self.tags) > 1 and channel.is_open:
            tag = self.tags[0]
            self._forget(tag)
            task = asyncio.create_task(channel.basic_cancel(tag), name=f"leveret: cancel {tag}")
            self._asking.add(task)
            task.add_done_callback(self._asked)

    def _use_prefetch(self, prefetch: int) -> None:
        self.prefetch = prefetch
        self._changed()

    # ------------------------------------------------------------------ losses

    def cancelled_by_broker(self, consumer_tag: str) -> None:
        """Notes that the broker has cancelled one of the tags; subscribes again if it may."""
        if consumer_tag in self.tags:
            self._forget(consumer_tag)
        self._rules.cancelled()
        self._lost(
            ConsumerCancelled(
                f"the broker cancelled the consumer of queue {self.queue!r}: the queue was deleted, its node is "
                "gone, or (RabbitMQ 4.3) a delivery was not acknowledged in the broker's time",
                consumer_tag=consumer_tag,
                queue=self.queue,
            )
        )

    def channel_lost(self, error: LeveretError) -> None:
        """Notes that the channel is gone; subscribes again if it may."""
        self._position.lost()
        self._stand_in = None
        if self._unanswered:
            error = self._position.explained(error, no_ack=self._no_ack)
            if isinstance(error, ConfigurationError):
                self._life.fail(error, ConsumerState.LOST)
        refused = bool(self._unanswered) and self._rules.is_refused(error)
        self.tags.clear()
        self._unanswered.clear()
        self._lost(typed(error, self.queue), refused=refused)

    def _lost(self, error: LeveretError, *, refused: bool = False) -> None:
        self._changed()
        if self._life.error is not None or self._reopening is not None:
            return
        may_try = self._rules.go_on_after(error)
        if may_try and self._life.state is ConsumerState.NEW:
            self.channel = None  # the next use opens another one
        elif may_try and self._life.may_go_on and not refused:
            logger.warning("the consumer of queue %r subscribes again: %s", self.queue, error)
            self._reopening = asyncio.get_running_loop().create_task(
                self._reopen(), name=f"leveret: consume {self.queue} again"
            )
        else:
            self._life.fail(error, ConsumerState.LOST)

    async def _reopen(self) -> None:
        """Subscribes again, in as many attempts as that takes."""
        # A consumer that is lost right after it began continues the sequence, as a link does.
        clock = asyncio.get_running_loop().time
        backoff = self._backoff = self._backoff or self._link.new_backoff()
        backoff.ran_for(clock() - self._tried_at)
        error: LeveretError | None = None
        try:
            while True:
                await asyncio.sleep(self._rules.delay(backoff.delay(), clock()))
                backoff.count_attempt()
                try:
                    # Without the lock, because it may take for ever: others can change something meanwhile.
                    connection = await self._link.recovered()
                    async with self._changing, self.call("subscribing again"):
                        await self._subscribe_again(connection)
                except LeveretError as failure:
                    logger.warning(
                        "the consumer of queue %r: attempt %d to subscribe again failed: %s",
                        self.queue,
                        backoff.attempts,
                        failure,
                    )
                    error = self._rules.end_after(failure, self.queue, clock())
                    if error is not None:
                        return
                except Exception as failure:
                    # A defect in this code must not leave `run` waiting.
                    logger.exception("the consumer of queue %r could not subscribe again", self.queue)
                    error = ChannelClosed(f"not subscribed again: {type(failure).__name__}")
                    error.__cause__ = failure
                    return
                else:
                    # Otherwise what was opened is lost already.
                    if not self._life.may_go_on or (
                        self._has_channel
                        and (self.tags or self._reasons or self._life.state is not ConsumerState.CONSUMING)
                    ):
                        if self._life.may_go_on:
                            logger.info("the consumer of queue %r goes on", self.queue)
                        return
        finally:
            self._tried_at = clock()
            self._reopening = None
            if error is not None:
                self._life.fail(error, ConsumerState.LOST)
            self._adjust()

    async def _subscribe_again(self, connection: Connection) -> None:
        if not self._life.may_go_on:
            return  # it was cancelled or stopped meanwhile
        if not self._has_channel:
            await self._open_channel(connection)
        if self._life.state is ConsumerState.CONSUMING and not self.tags and not self._reasons:
            assert self.channel is not None
            await self._consume_or_give_up(self.channel)
