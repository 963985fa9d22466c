"""A channel on an event loop: requests that are awaited, and where deliveries, confirms and returns go."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from leveret.connection.credit import Credit
from leveret.errors import ChannelClosed, EncodeFailed, LeveretError, OperationTimeout, RemoteProtocolError, again
from leveret.protocol import commands
from leveret.protocol.channel import CancelNotice, ChannelEnded, ChannelPhase, ChannelState, Reply
from leveret.protocol.commands import Basic, Confirm, Exchange, Queue, Tx
from leveret.protocol.commands import Channel as ChannelMethods
from leveret.wire.content import append_settlement
from leveret.wire.numbers import BASIC_DELIVER, BASIC_GET_OK, BASIC_NACK, NACK_REQUEUE, REPLY_SUCCESS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from leveret.connection.connection import Connection
    from leveret.wire.message import Message
    from leveret.wire.runs import ContentRun, MethodFrame, SettlementRun

__all__ = ["Channel", "ConsumerSink", "PublisherSink"]

M = TypeVar("M", bound=commands.Method)

# After these a channel is as it was, but for the queue that it declared last.
_LEAVES_NO_TRACE = (
    Exchange.Declare,
    Exchange.Delete,
    Exchange.Bind,
    Exchange.Unbind,
    Queue.Declare,
    Queue.Delete,
    Queue.Bind,
    Queue.Unbind,
    Queue.Purge,
)


# After these the client has something less to declare again.
_UNDECLARES = (Exchange.Delete, Exchange.Unbind, Queue.Delete, Queue.Unbind)


class PublisherSink(Protocol):
    """Gets the confirms and returns of a channel. Its methods do not block or raise."""

    def settled(self, run: SettlementRun) -> None:
        """basic.ack and basic.nack came."""

    def returned(self, run: ContentRun) -> None:
        """Mandatory messages came back."""

    def channel_lost(self, error: LeveretError) -> None:
        """No more confirms will come; called once."""


class ConsumerSink(Protocol):
    """Gets the deliveries of a consumer. Its methods do not block or raise."""

    def delivered(self, run: ContentRun) -> None:
        """Messages came."""

    def cancelled(self, consumer_tag: str) -> None:
        """The broker cancelled the consumer."""

    def channel_lost(self, error: LeveretError) -> None:
        """No more deliveries will come; called once."""


class Channel:
    """One AMQP channel. Made by `Connection.channel`.

    Every request has a deadline of the connection's `operation_timeout` seconds and raises:
        OperationTimeout: No answer in time; the channel stays usable.
        ChannelClosed: The channel was closed, by the server for this request or earlier. `NotFound`,
            `AccessRefused`, `ResourceLocked` and `PreconditionFailed` say more.
        ConnectionClosed, TransportError: The connection was lost.
        EncodeFailed: An argument does not fit AMQP, or the queue's name is empty and no queue was declared on the
            channel; nothing was sent.

    Attributes:
        number: The channel number.
        connection: The connection it lives on.
        error: Why it is closed, or None while it is open.
        publisher: Where its confirms and returned messages go, if anywhere.
        published: Publishings in confirm mode of producers that are closed: the broker's delivery tags go on from here.
        consumer: Told of the channel's end also while it has no consumer tag.
        credit: How many deliveries its consumers may have unsettled.
        on_end: Called by the connection once the channel is closed on both sides, so that its number is free, or the
            connection is lost; it does not raise.
    """

    def __init__(self, connection: Connection, number: int) -> None:
        settings = connection.settings
        self.number = number
        self.connection = connection
        self.error: LeveretError | None = None
        self.publisher: PublisherSink | None = None
        self.published = 0
        self.consumer: ConsumerSink | None = None
        self.on_end: Callable[[Channel], object] | None = None
        self._state = ChannelState(
            connection.transport.out,
            number,
            frame_max=connection.negotiated.frame_max,
            max_table_depth=settings.max_table_depth,
            max_table_entries=settings.max_table_entries,
        )
        self.consumers: dict[str, ConsumerSink] = {}
        self.credit = Credit(settings.max_body_size)
        self._is_as_new = True
        self._has_declared = False

    def __repr__(self) -> str:
        return f"<Channel {self.number} {self._state.phase.value}>"

    @property
    def is_open(self) -> bool:
        """True when requests and publishings can be sent."""
        return self._state.phase is ChannelPhase.OPEN

    @property
    def is_reusable(self) -> bool:
        """True when it is open and, after `renew`, works as a new channel does.

        It is not when it was put into confirm or transaction mode, got a consumer, a publisher, a prefetch or a message
        (which would be unacknowledged for ever), or when an answer is still to come (which may close it).
        """
        return self.is_open and self._is_as_new and self.publisher is None and not self._state.unanswered

    def renew(self) -> None:
        """Forgets which queue was declared last, before the channel goes to its next user."""
        self._has_declared = False

    # ------------------------------------------------------------------ requests

    async def _answer(self, future: asyncio.Future[Reply], name: str, timeout: float | None = None) -> Reply:
        limit = self.connection.settings.operation_timeout if timeout is None else timeout
        try:
            async with asyncio.timeout(limit):
                return await future
        except TimeoutError:
            # A blocked broker reads nothing from this connection.
            reason = self.connection.blocked
            raise OperationTimeout(
                f"{name} on channel {self.number} was not answered within operation_timeout of {limit:g} s"
                + ("" if reason is None else f": the broker blocks publishers: {reason}")
            ) from None
        finally:
            # An error refers to this frame. With the future, which has the error, that would be a cycle.
            del future

    async def call(self, method: commands.Method) -> Reply:
        """Sends a method and waits for its answer.

        Args:
            method: From `commands.make`.

        Returns:
            The answer.
        """
        return await self._answer(self._request(method), commands.spec_of(type(method)).name)

    async def call_all(
        self, methods: Sequence[commands.Method], answered: Callable[[int, commands.Method | None], object]
    ) -> None:
        """Sends many methods at once, and then waits for their answers: a round trip for all of them.

        The broker carries them out in their order. When it refuses one, it closes the channel and carries out none of
        those after it.

        Args:
            methods: From `commands.make`.
            answered: Called with the index of a method and its answer, in the methods' order.

        Raises:
            OperationTimeout: An answer did not come within `operation_timeout` seconds of the one before it.
            ChannelClosed: The first method that `answered` was not called for was refused.
            LeveretError: As for any request.
        """
        futures: list[asyncio.Future[Reply]] = []
        failure: LeveretError | None = None
        try:
            for method in methods:
                try:
                    futures.append(self._request(method))
                except LeveretError as error:
                    failure = error  # those before it are on their way
                    break
            for index, future in enumerate(futures):
                name = commands.spec_of(type(methods[index])).name
                reply = future.result() if future.done() else await self._answer(future, name)
                answered(index, reply.method)
        finally:
            for future in futures:
                if not future.done():
                    future.cancel()
                elif not future.cancelled():
                    future.exception()  # marks it as retrieved: the first one's is raised
        if failure is not None:
            raise failure

    def _request(self, method: commands.Method) -> asyncio.Future[Reply]:
        self.connection.check_loop()
        if self.error is not None:
            raise again(self.error)
        if isinstance(method, Queue.Declare):
            self._has_declared = True
        elif not self._has_declared and getattr(method, "queue", None) == "":
            # An empty name means the queue that the channel declared last (AMQP 0-9-1 section 1.7.2). A broker would
            # take that of the channel's user before, and empty or delete it.
            name = commands.spec_of(type(method)).name
            raise EncodeFailed(f"{name} names no queue, and none was declared on channel {self.number}")
        if not isinstance(method, _LEAVES_NO_TRACE):
            self._is_as_new = False
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._state.request(method, future)
        return future

    async def _call(self, expected: type[M], request: type[commands.Method], **values: object) -> M:
        request_made = commands.make(request, **values)
        method = (await self.call(request_made)).method
        assert isinstance(method, expected)  # the state machine paired them
        if isinstance(request_made, _UNDECLARES) and self.connection.undeclared is not None:
            self.connection.undeclared(request_made)
        return method

    async def open(self) -> None:
        """Opens the channel (channel.open)."""
        try:
            await self._answer(self._opening(), "channel.open")
        except BaseException:
            self.abandon()
            raise

    def _opening(self) -> asyncio.Future[Reply]:
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._state.open(future)
        return future

    def abandon(self) -> None:
        """Closes an unowned channel without waiting; one that is being opened is closed right after that.

        Its consumers get no more deliveries, and are not told that it is lost.
        """
        self.consumers.clear()
        self.consumer = None
        unread: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        unread.cancel()
        self._state.abandon(unread)

    async def close(self, timeout: float | None = None) -> None:
        """Closes the channel (channel.close) and waits for the answer.

        Acknowledgements that were appended before are sent before. Does nothing when it is closed, and raises nothing
        when it is closed by other means meanwhile or the answer does not come.

        Args:
            timeout: Seconds to wait, `close_timeout` at most and by default.
        """
        if not self.is_open:
            return
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._state.close(future)
        most = self.connection.settings.close_timeout
        with contextlib.suppress(LeveretError):
            await self._answer(future, "channel.close", most if timeout is None else min(timeout, most))

    async def confirm_select(self) -> None:
        """Turns publisher confirms on (RabbitMQ: confirm.select)."""
        await self._call(Confirm.SelectOk, Confirm.Select)

    async def basic_qos(self, prefetch_count: int, *, global_: bool = False) -> None:
        """Limits unacknowledged deliveries (basic.qos): for each new consumer, or for the channel when `global_`."""
        if not global_:
            self.credit.prefetch = prefetch_count
        await self._call(Basic.QosOk, Basic.Qos, prefetch_size=0, prefetch_count=prefetch_count, global_=global_)

    async def exchange_declare(
        self,
        exchange: str,
        type: str = "direct",  # noqa: A002 - AMQP's word
        *,
        passive: bool = False,
        durable: bool = True,
        auto_delete: bool = False,
        internal: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Declares an exchange (exchange.declare)."""
        await self._call(
            Exchange.DeclareOk,
            Exchange.Declare,
            exchange=exchange,
            exchange_type=type,
            passive=passive,
            durable=durable,
            auto_delete=auto_delete,
            internal=internal,
            arguments=arguments,
        )

    async def exchange_delete(self, exchange: str, *, if_unused: bool = False) -> None:
        """Deletes an exchange (exchange.delete)."""
        await self._call(Exchange.DeleteOk, Exchange.Delete, exchange=exchange, if_unused=if_unused)

    async def exchange_bind(
        self, destination: str, source: str, routing_key: str = "", *, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Binds an exchange to another (RabbitMQ: exchange.bind)."""
        await self._call(
            Exchange.BindOk,
            Exchange.Bind,
            destination=destination,
            source=source,
            routing_key=routing_key,
            arguments=arguments,
        )

    async def exchange_unbind(
        self, destination: str, source: str, routing_key: str = "", *, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Undoes `exchange_bind` (RabbitMQ: exchange.unbind)."""
        await self._call(
            Exchange.UnbindOk,
            Exchange.Unbind,
            destination=destination,
            source=source,
            routing_key=routing_key,
            arguments=arguments,
        )

    async def queue_declare(
        self,
        queue: str = "",
        *,
        passive: bool = False,
        durable: bool = True,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> Queue.DeclareOk:
        """Declares a queue (queue.declare); an empty name lets the server choose one.

        Returns:
            Its `queue` name, `message_count` and `consumer_count`.
        """
        return await self._call(
            Queue.DeclareOk,
            Queue.Declare,
            queue=queue,
            passive=passive,
            durable=durable,
            exclusive=exclusive,
            auto_delete=auto_delete,
            arguments=arguments,
        )

    async def queue_bind(
        self, queue: str, exchange: str, routing_key: str = "", *, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Binds a queue to an exchange (queue.bind)."""
        await self._call(
            Queue.BindOk, Queue.Bind, queue=queue, exchange=exchange, routing_key=routing_key, arguments=arguments
        )

    async def queue_unbind(
        self, queue: str, exchange: str, routing_key: str = "", *, arguments: Mapping[str, Any] | None = None
    ) -> None:
        """Undoes `queue_bind` (queue.unbind)."""
        await self._call(
            Queue.UnbindOk, Queue.Unbind, queue=queue, exchange=exchange, routing_key=routing_key, arguments=arguments
        )

    async def queue_purge(self, queue: str) -> int:
        """Drops a queue's ready messages (queue.purge); returns how many there were."""
        return (await self._call(Queue.PurgeOk, Queue.Purge, queue=queue)).message_count or 0

    async def queue_delete(self, queue: str, *, if_unused: bool = False, if_empty: bool = False) -> int:
        """Deletes a queue (queue.delete); returns how many messages it had."""
        reply = await self._call(Queue.DeleteOk, Queue.Delete, queue=queue, if_unused=if_unused, if_empty=if_empty)
        return reply.message_count or 0

    async def basic_consume(
        self,
        queue: str,
        sink: ConsumerSink,
        *,
        consumer_tag: str,
        no_ack: bool = False,
        exclusive: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts a consumer (basic.consume).

        Args:
            queue: The queue.
            sink: Gets the deliveries, which may come before this returns.
            consumer_tag: Unique on the channel; chosen here, so that no delivery comes before its tag is known.
            no_ack: The broker forgets messages as it sends them.
            exclusive: No other consumer on the queue.
            arguments: For example `x-priority`.
        """
        self.consumers[consumer_tag] = sink
        self.credit.begin(consumer_tag)
        try:
            await self._call(
                Basic.ConsumeOk,
                Basic.Consume,
                queue=queue,
                consumer_tag=consumer_tag,
                no_ack=no_ack,
                exclusive=exclusive,
                arguments=arguments,
            )
        except BaseException as error:
            if self.error is not None or isinstance(error, EncodeFailed):
                self.consumers.pop(consumer_tag, None)
                self.credit.end(consumer_tag)
            raise

    async def basic_cancel(self, consumer_tag: str) -> None:
        """Ends a consumer (basic.cancel). Deliveries on their way are still handed over before this returns."""
        await self._call(Basic.CancelOk, Basic.Cancel, consumer_tag=consumer_tag)
        self.consumers.pop(consumer_tag, None)
        self.credit.end(consumer_tag)

    async def basic_get(self, queue: str, *, no_ack: bool = False) -> Message | None:
        """Takes one message (basic.get), or None when the queue is empty.

        When this is cancelled or its deadline passes, the message that may still come goes back to its queue; with
        `no_ack` it is lost.
        """
        future = self._request(commands.make(Basic.Get, queue=queue, no_ack=no_ack))
        try:
            return (await self._answer(asyncio.shield(future), "basic.get")).message
        except (asyncio.CancelledError, OperationTimeout):
            if not no_ack:
                future.add_done_callback(self._give_back)
            raise

    def _give_back(self, future: asyncio.Future[Reply]) -> None:
        if future.exception() is None and (message := future.result().message) is not None and self.is_open:
            append_settlement(
                self.connection.transport.out, self.number, BASIC_NACK, message.delivery_tag, NACK_REQUEUE
            )

    async def basic_recover(self, *, requeue: bool = True) -> None:
        """Gives all unacknowledged deliveries back (basic.recover)."""
        await self._call(Basic.RecoverOk, Basic.Recover, requeue=requeue)

    async def flow(self, active: bool) -> bool:
        """Asks the server to pause or resume deliveries (channel.flow); RabbitMQ refuses to pause with 540."""
        return (await self._call(ChannelMethods.FlowOk, ChannelMethods.Flow, active=active)).active or False

    async def tx_select(self) -> None:
        """Makes the channel transactional (tx.select)."""
        await self._call(Tx.SelectOk, Tx.Select)

    async def tx_commit(self) -> None:
        """Commits the publishings and acknowledgements since the last commit (tx.commit)."""
        await self._call(Tx.CommitOk, Tx.Commit)

    async def tx_rollback(self) -> None:
        """Undoes them (tx.rollback)."""
        await self._call(Tx.RollbackOk, Tx.Rollback)

    # ------------------------------------------------------------------ the connection calls these

    def method_received(self, frame: MethodFrame) -> None:
        """A method frame of this channel."""
        event = self._state.receive(frame)
        if isinstance(event, Reply):
            _resolve(event)
        elif isinstance(event, CancelNotice):
            sink = self.consumers.pop(event.consumer_tag, None)
            self.credit.end(event.consumer_tag)
            if sink is not None:
                sink.cancelled(event.consumer_tag)
        elif isinstance(event, ChannelEnded):
            self._ended(event)

    def content_received(self, run: ContentRun) -> None:
        """Messages of this channel."""
        if run.method_id == BASIC_DELIVER:
            sink = self.consumers.get(run.consumer_tag)
            if sink is not None:
                sink.delivered(run)
            elif self.is_open:
                raise RemoteProtocolError(f"a delivery on channel {self.number} for a consumer that it does not have")
        elif run.method_id == BASIC_GET_OK:
            for reply in self._state.receive_get(run):
                _resolve(reply)
        elif self.publisher is not None:
            self.publisher.returned(run)

    def settled(self, run: SettlementRun) -> None:
        """Confirms of this channel."""
        if self.publisher is not None:
            self.publisher.settled(run)
        elif self.is_open:
            raise RemoteProtocolError(f"a confirm on channel {self.number}, which is not in confirm mode")

    def lost(self, error: LeveretError) -> None:
        """The connection is over."""
        if self.error is None:
            self._ended(self._state.lost(error))

    def _ended(self, end: ChannelEnded) -> None:
        self.error = end.error or ChannelClosed(
            f"channel {self.number} was closed by this side", reply_code=REPLY_SUCCESS
        )
        self.connection.forget_channel(self, by_server=end.by_server, crossed=end.crossed)
        for future in end.tokens:
            if not future.done():
                future.set_exception(again(self.error))
        sinks = dict.fromkeys([*self.consumers.values(), self.consumer, self.publisher])
        self.consumers.clear()
        self.consumer = self.publisher = None
        for sink in sinks:
            if sink is not None:
                sink.channel_lost(self.error)


def _resolve(reply: Reply) -> None:
    # A future that is done belongs to a caller who gave up; its answer ends here.
    if not reply.token.done():
        reply.token.set_result(reply)
