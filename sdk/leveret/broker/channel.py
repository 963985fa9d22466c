"""The broker's side of a channel: topology, publishing with confirms and transactions, consuming, settling."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Any, ClassVar, Final

from leveret.broker.arguments import consumer_priority, expiry_error
from leveret.broker.queues import UNLIMITED, BrokerConsumer
from leveret.broker.refusals import Refusal, access_refused, not_implemented, precondition_failed
from leveret.broker.tables import arguments_of, check_arguments, check_table
from leveret.broker.unacked import Piece, Unacked
from leveret.errors import TableSyntaxError
from leveret.protocol.commands import Basic, Channel, Confirm, Exchange, Method, Queue, Tx, decode, encode, make
from leveret.wire.content import append_content, append_deliveries, append_settlement
from leveret.wire.numbers import (
    BASIC,
    BASIC_ACK,
    BASIC_NACK,
    COMMAND_INVALID,
    NO_ROUTE,
    NOT_ALLOWED,
    NOT_FOUND,
    NOT_IMPLEMENTED,
    PRECONDITION_FAILED,
    REPLY_CODES,
    SYNTAX_ERROR,
)
from leveret.wire.properties import decode_properties

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leveret.broker.queues import BrokerQueue
    from leveret.broker.session import BrokerSession
    from leveret.wire.message import Message
    from leveret.wire.runs import ContentRun, MethodFrame, SettlementRun

__all__ = ["BrokerChannel"]

# Flags of the properties that the broker must check (AMQP 0-9-1 section 4.2.6.1): headers, reply-to, expiration, user.
_LOOKED_AT: Final = 0x2000 | 0x0200 | 0x0100 | 0x0010

#: RabbitMQ's pseudo-queue for answers (direct reply-to).
_REPLY_TO: Final = "amq.rabbitmq.reply-to"


class BrokerChannel:
    """One open channel.

    Args:
        session: The session of its connection.
        number: The channel number.

    Attributes:
        closing: True after channel.close was sent. All frames but channel.close-ok are then ignored.
    """

    def __init__(self, session: BrokerSession, number: int) -> None:
        self.session = session
        self.number = number
        self.closing = False
        self._vhost = session.vhost
        self._consumers: dict[str, BrokerConsumer] = {}
        self._unacked = Unacked()
        self._next_tag = 1
        # Unacknowledged deliveries to consumers: what basic.qos with `global` limits.
        self._delivered = 0
        self._prefetch_count = 0
        self._global_prefetch_count = 0
        # queue.declare-ok's name stands for an empty queue name (AMQP 0-9-1 section 1.7.2.3).
        self._last_queue = ""
        self._confirms = False
        self._published = 0
        # Confirms that are not written yet: refused, last tag, how many.
        self._outcomes: list[tuple[bool, int, int]] = []
        # The packed properties that were checked last, and their expiration. Messages in a row share one object.
        self._checked: bytes | None = None
        self._checked_expiration: int | None = None
        # In a transaction: publishings and settlements that wait for tx.commit.
        self._transactional = False
        self._tx_publishings: list[
            tuple[list[Message], tuple[BrokerQueue, ...], ContentRun, list[int | None] | None]
        ] = []
        self._tx_settlements: list[tuple[list[Piece], bool, bool]] = []

    # ------------------------------------------------------------------ called by the session

    def method(self, frame: MethodFrame) -> None:
        """Handles any method but basic.publish and settlements.

        Raises:
            Refusal: The channel or the connection has to be closed.
            RemoteProtocolError: The method does not exist or is malformed.
        """
        method = decode(frame)
        handler = self._handlers.get(type(method))
        if handler is None:
            raise Refusal(COMMAND_INVALID, "unimplemented method")
        check_arguments(method)
        # Confirms of earlier publishings must precede the answer.
        self.flush()
        handler(self, method, frame)

    def release(self) -> None:
        """Removes the channel's consumers and requeues its unacknowledged deliveries. Sends nothing."""
        self.closing = True
        consumers = list(self._consumers.values())
        self._consumers.clear()
        pieces = self._unacked.take_all()
        for settled, _, _ in self._tx_settlements:
            pieces += settled
        self._tx_settlements.clear()
        self._tx_publishings.clear()
        self._outcomes.clear()
        for piece in pieces:
            piece.queue.requeue(piece.messages, piece.sequences, lost=True)
        for consumer in consumers:
            consumer.queue.remove_consumer(consumer)

    def wake(self) -> None:
        """Lets the queues of the channel's consumers deliver again."""
        for consumer in self._consumers.values():
            self._vhost.wake(consumer.queue)

    def flush(self) -> None:
        """Writes the waiting confirms: one frame for consecutive publishings with the same outcome."""
        for refused, tag, count in self._outcomes:
            # Earlier publishings have their outcome, so `multiple` covers these only.
            append_settlement(
                self.session.out, self.number, BASIC_NACK if refused else BASIC_ACK, tag, 1 if count > 1 else 0
            )
        self._outcomes.clear()

    def _send(self, cls: type[Method], **values: object) -> None:
        self.session.out.append(encode(self.number, make(cls, **values)))

    def _reply(self, request: Method, cls: type[Method], **values: object) -> None:
        if not getattr(request, "nowait", False):
            self._send(cls, **values)

    # ------------------------------------------------------------------ publishing

    def publish(self, run: ContentRun) -> None:
        """Publishes messages that share exchange and routing key. They are routed once and confirmed together.

        Raises:
            Refusal: A message cannot be published. The messages before it were published.
        """
        if run.immediate:
            raise Refusal(NOT_IMPLEMENTED, "immediate=true")
        queues = self._vhost.route(run.exchange, run.routing_key)
        good, expirations, failure = self._check(run)
        messages = run.messages if failure is None else run.messages[:good]
        if queues is None:
            self._publish_by_headers(run, messages, expirations)
        elif messages:
            self._publish(run, messages, queues, expirations)
        if failure is not None:
            raise failure

    def _publish_by_headers(
        self, run: ContentRun, messages: list[Message], expirations: list[int | None] | None
    ) -> None:
        exchange = self._vhost.exchange(run.exchange)
        start = 0
        raw = b""
        route: tuple[BrokerQueue, ...] = ()
        for index, message in enumerate(messages):
            if message.raw_properties is raw:
                continue
            raw = message.raw_properties
            headers = decode_properties(raw).headers or {}
            queues = self._vhost.route_by_headers(exchange, run.routing_key, headers)
            if queues != route:
                if index > start:
                    part = None if expirations is None else expirations[start:index]
                    self._publish(run, messages[start:index], route, part)
                start, route = index, queues
        if len(messages) > start:
            self._publish(run, messages[start:], route, None if expirations is None else expirations[start:])

    def _publish(
        self,
        run: ContentRun,
        messages: list[Message],
        queues: tuple[BrokerQueue, ...],
        expirations: list[int | None] | None,
    ) -> None:
        if self._transactional:
            self._tx_publishings.append((messages, queues, run, expirations))
            return
        taken = self._distribute(run, messages, queues, expirations)
        if self._confirms:
            self._confirm(False, taken)
            self._confirm(True, len(messages) - taken)

    def _distribute(
        self,
        run: ContentRun,
        messages: list[Message],
        queues: tuple[BrokerQueue, ...],
        expirations: list[int | None] | None,
    ) -> int:
        """Publishes messages to queues, or returns mandatory ones to their publisher.

        Returns:
            How many messages no queue refused.
        """
        if queues:
            # Each queue gets the messages, also when one refuses: RabbitMQ's nack means that at least one queue did.
            return min([queue.publish(messages, expirations) for queue in queues])
        if run.mandatory:
            frame = encode(
                self.number,
                make(
                    Basic.Return,
                    reply_code=NO_ROUTE,
                    reply_text=REPLY_CODES[NO_ROUTE],
                    exchange=run.exchange,
                    routing_key=run.routing_key,
                ),
            )
            session = self.session
            for message in messages:
                append_content(session.out, frame, message, channel=self.number, frame_max=session.frame_max)
        return len(messages)

    def _confirm(self, refused: bool, count: int) -> None:
        if not count:
            return
        self._published += count
        outcomes = self._outcomes
        if outcomes and outcomes[-1][0] is refused:
            outcomes[-1] = (refused, self._published, outcomes[-1][2] + count)
        else:
            outcomes.append((refused, self._published, count))
        self.session.confirming[self] = None

    def _check(self, run: ContentRun) -> tuple[int, list[int | None] | None, Refusal | None]:
        """Checks sizes and properties of messages.

        Returns:
            How many messages are valid; their expirations, or None when no message has one; and the refusal of the
            first invalid message, or None.
        """
        messages = run.messages
        if run.common_properties is self._checked is not None and self._checked_expiration is None:
            # The usual case costs nothing per message.
            return len(messages), None, None
        expirations: list[int | None] = []
        try:
            for message in messages:
                if message.raw_properties is not self._checked:
                    self._checked_expiration = self._check_properties(message.raw_properties)
                    self._checked = message.raw_properties
                if message.body is None:
                    raise precondition_failed(
                        f"message size {message.body_size} is larger than configured max size "
                        f"{self.session.broker.max_message_size}"
                    )
                expirations.append(self._checked_expiration)
        except Refusal as refusal:
            return len(expirations), expirations, refusal
        return len(messages), expirations if any(e is not None for e in expirations) else None, None

    def _check_properties(self, raw: bytes) -> int | None:
        """Returns the expiration in milliseconds, or None."""
        # Always decoded, because malformed properties must not reach a consumer.
        try:
            properties = decode_properties(raw)
        except TableSyntaxError as error:
            raise Refusal(SYNTAX_ERROR, str(error)) from error
        if not int.from_bytes(raw[:2]) & _LOOKED_AT:
            return None
        check_table(properties.headers)
        headers = properties.headers or {}
        for name in ("CC", "BCC"):
            if name in headers:
                raise not_implemented(f"header '{name}' (sender-selected distribution)")
        if properties.reply_to == _REPLY_TO:
            raise precondition_failed("fast reply consumer does not exist")
        user = self.session.user
        if properties.user_id is not None and properties.user_id != user:
            raise precondition_failed(
                f"user_id property set to '{properties.user_id}' but authenticated user was '{user}'"
            )
        return None if properties.expiration is None else _milliseconds(properties.expiration)

    # ------------------------------------------------------------------ consuming

    def capacity(self, consumer: BrokerConsumer) -> int:
        """Returns how many messages a consumer may get now; see `Deliverer`."""
        if self.closing or self.session.transport.paused:
            return 0
        room = UNLIMITED
        if not consumer.no_ack:
            if consumer.prefetch_count:
                room = consumer.prefetch_count - consumer.unacked
            if self._global_prefetch_count:
                room = min(room, self._global_prefetch_count - self._delivered)
        return room

    def deliver(self, consumer: BrokerConsumer, messages: list[Message], sequences: Sequence[int]) -> None:
        """Sends messages to a consumer; see `Deliverer`."""
        tag = self._next_tag
        count = len(messages)
        self._next_tag = tag + count
        if not consumer.no_ack:
            consumer.unacked += count
            self._delivered += count
            self._unacked.add(consumer.queue, consumer, messages, sequences, tag)
        session = self.session
        append_deliveries(session.out, self.number, consumer.tag, tag, messages, frame_max=session.frame_max)

    def cancelled(self, consumer: BrokerConsumer) -> None:
        """Tells the client that a consumer's queue was deleted (RabbitMQ: consumer cancellation notifications)."""
        if self._consumers.pop(consumer.tag, None) is not None and self.session.capable("consumer_cancel_notify"):
            self._send(Basic.Cancel, consumer_tag=consumer.tag, nowait=True)

    def settle(self, run: SettlementRun) -> None:
        """Applies acknowledgements.

        Raises:
            Refusal: 406 for a delivery tag that is not outstanding. Earlier acknowledgements were applied.
        """
        for tag, multiple, nack, requeue in run:
            pieces = self._unacked.take(tag, multiple=multiple)
            if pieces is None:
                raise Refusal(
                    PRECONDITION_FAILED, f"unknown delivery tag {tag}", cause=(BASIC, BASIC_NACK if nack else BASIC_ACK)
                )
            if self._transactional:
                self._tx_settlements.append((pieces, nack, requeue))
            else:
                self._settle(pieces, nack, requeue)

    def _settle(self, pieces: list[Piece], nack: bool, requeue: bool) -> None:
        for piece in pieces:
            queue = piece.queue
            if piece.consumer is not None:
                piece.consumer.unacked -= len(piece.messages)
                self._delivered -= len(piece.messages)
            if not nack:
                queue.forget(piece.sequences)
            elif requeue:
                queue.requeue(piece.messages, piece.sequences, lost=False)
            else:
                queue.reject(piece.messages, piece.sequences)
            if len(queue):
                self._vhost.wake(queue)
        if self._global_prefetch_count:
            self.wake()

    # ------------------------------------------------------------------ handlers of methods

    def _close(self, method: Channel.Close, frame: MethodFrame) -> None:
        self.release()
        self._send(Channel.CloseOk)
        self.session.forget(self)

    def _flow(self, method: Channel.Flow, frame: MethodFrame) -> None:
        if not method.active:
            raise Refusal(NOT_IMPLEMENTED, "active=false")
        self._send(Channel.FlowOk, active=True)

    def _exchange_declare(self, method: Exchange.Declare, frame: MethodFrame) -> None:
        if method.passive:
            self._vhost.check_exchange(method.exchange)
        else:
            self._vhost.declare_exchange(
                method.exchange,
                method.exchange_type,
                durable=method.durable,
                auto_delete=method.auto_delete,
                internal=method.internal,
                arguments=arguments_of(frame.payload, 2),
            )
        self._reply(method, Exchange.DeclareOk)

    def _exchange_delete(self, method: Exchange.Delete, frame: MethodFrame) -> None:
        self._vhost.delete_exchange(method.exchange, if_unused=method.if_unused)
        self._reply(method, Exchange.DeleteOk)

    def _exchange_bind(self, method: Exchange.Bind, frame: MethodFrame) -> None:
        arguments = arguments_of(frame.payload, 3)
        self._vhost.bind(method.source, "exchange", method.destination, method.routing_key, arguments, self.session)
        self._reply(method, Exchange.BindOk)

    def _exchange_unbind(self, method: Exchange.Unbind, frame: MethodFrame) -> None:
        arguments = arguments_of(frame.payload, 3)
        self._vhost.unbind(method.source, "exchange", method.destination, method.routing_key, arguments, self.session)
        self._reply(method, Exchange.UnbindOk)

    def _queue_name(self, name: str) -> str:
        if name:
            return name
        if not self._last_queue:
            raise Refusal(NOT_FOUND, "no previously declared queue")
        return self._last_queue

    def _queue_declare(self, method: Queue.Declare, frame: MethodFrame) -> None:
        session = self.session
        if method.queue.startswith(_REPLY_TO):
            raise not_implemented("direct reply-to")
        if method.passive:
            queue = self._vhost.queue(method.queue.replace("\n", "").replace("\r", ""), session)
        else:
            queue = self._vhost.declare_queue(
                method.queue,
                session,
                durable=method.durable,
                exclusive=method.exclusive,
                auto_delete=method.auto_delete,
                arguments=arguments_of(frame.payload, 1),
            )
            if queue.owner is not None:
                session.exclusive_queues[queue] = None
        self._last_queue = queue.name
        queue.dispatch()
        self._reply(
            method,
            Queue.DeclareOk,
            queue=queue.name,
            message_count=len(queue),
            consumer_count=queue.consumer_count,
        )

    def _queue_bind(self, method: Queue.Bind, frame: MethodFrame) -> None:
        arguments = arguments_of(frame.payload, 3)
        self._vhost.bind(method.exchange, "queue", *self._bind_names(method), arguments, self.session)
        self._reply(method, Queue.BindOk)

    def _queue_unbind(self, method: Queue.Unbind, frame: MethodFrame) -> None:
        arguments = arguments_of(frame.payload, 3, bits=False)
        self._vhost.unbind(method.exchange, "queue", *self._bind_names(method), arguments, self.session)
        self._reply(method, Queue.UnbindOk)

    def _bind_names(self, method: Queue.Bind | Queue.Unbind) -> tuple[str, str]:
        queue = self._queue_name(method.queue)
        # Both empty: the key is the name of the queue declared last (AMQP 0-9-1 section 1.7.2.3).
        routing_key = queue if not method.queue and not method.routing_key else method.routing_key
        return queue, routing_key

    def _queue_purge(self, method: Queue.Purge, frame: MethodFrame) -> None:
        queue = self._vhost.queue(self._queue_name(method.queue), self.session)
        self._reply(method, Queue.PurgeOk, message_count=queue.purge())

    def _queue_delete(self, method: Queue.Delete, frame: MethodFrame) -> None:
        name = self._queue_name(method.queue)
        count = 0
        if name in self._vhost.queues:
            queue = self._vhost.queue(name, self.session)
            queue.dispatch()
            count = len(queue)
            for flag, word in ((method.if_unused, "if-unused"), (method.if_empty, "if-empty")):
                if flag and queue.options.queue_type == "quorum":
                    raise Refusal(
                        NOT_IMPLEMENTED,
                        f"cannot delete {queue.what}. queue.delete operations with {word} flag set are not supported "
                        "by quorum queues",
                    )
            if method.if_empty and count:
                raise precondition_failed(f"{queue.what} not empty")
            if method.if_unused and queue.consumer_count:
                raise precondition_failed(f"{queue.what} in use")
            self._vhost.delete_queue(queue)
        self._reply(method, Queue.DeleteOk, message_count=count)

    def _basic_qos(self, method: Basic.Qos, frame: MethodFrame) -> None:
        if method.prefetch_size:
            raise Refusal(NOT_IMPLEMENTED, f"prefetch_size!=0 ({method.prefetch_size})")
        if method.global_:
            self._global_prefetch_count = method.prefetch_count
        else:
            # As in RabbitMQ: it applies to consumers that start later, and removes the channel's own limit.
            self._prefetch_count = method.prefetch_count
            self._global_prefetch_count = 0
        self._send(Basic.QosOk)
        self.wake()

    def _basic_consume(self, method: Basic.Consume, frame: MethodFrame) -> None:
        if method.no_local:
            raise not_implemented("no_local")
        if method.consumer_tag in self._consumers:
            raise Refusal(NOT_ALLOWED, f"attempt to reuse consumer tag '{method.consumer_tag}'")
        name = self._queue_name(method.queue)
        if name == _REPLY_TO:
            raise not_implemented("direct reply-to")
        queue = self._vhost.queue(name, self.session)
        priority = consumer_priority(arguments_of(frame.payload, 2), queue.what, queue.options.queue_type)
        if self._global_prefetch_count and queue.options.queue_type == "quorum":
            raise Refusal(NOT_IMPLEMENTED, f"{queue.what} does not support global qos")
        if queue.exclusive_consumer is not None or (
            method.exclusive and (queue.consumer_count or queue.options.single_active_consumer)
        ):
            raise access_refused(f"{queue.what} in exclusive use")
        consumer = BrokerConsumer(
            self,
            method.consumer_tag or f"amq.ctag-{secrets.token_urlsafe(16)}",
            queue,
            no_ack=method.no_ack,
            prefetch_count=self._prefetch_count,
            priority=priority,
        )
        self._consumers[consumer.tag] = consumer
        self._reply(method, Basic.ConsumeOk, consumer_tag=consumer.tag)
        queue.add_consumer(consumer, exclusive=method.exclusive)

    def _basic_cancel(self, method: Basic.Cancel, frame: MethodFrame) -> None:
        consumer = self._consumers.pop(method.consumer_tag or "", None)
        self._reply(method, Basic.CancelOk, consumer_tag=method.consumer_tag)
        if consumer is not None:
            consumer.queue.remove_consumer(consumer)

    def _basic_get(self, method: Basic.Get, frame: MethodFrame) -> None:
        queue = self._vhost.queue(self._queue_name(method.queue), self.session)
        got = queue.get()
        if got is None:
            self._send(Basic.GetEmpty)
            return
        message, sequence = got
        tag = self._next_tag
        self._next_tag = tag + 1
        if method.no_ack:
            queue.forget((sequence,))
        else:
            self._unacked.add(queue, None, [message], range(sequence, sequence + 1), tag)
        answer = make(
            Basic.GetOk,
            delivery_tag=tag,
            redelivered=message.redelivered,
            exchange=message.exchange,
            routing_key=message.routing_key,
            message_count=len(queue),
        )
        session = self.session
        append_content(
            session.out, encode(self.number, answer), message, channel=self.number, frame_max=session.frame_max
        )

    def _basic_recover(self, method: Basic.Recover, frame: MethodFrame) -> None:
        if not method.requeue:
            raise Refusal(NOT_IMPLEMENTED, "requeue=false")
        self._settle(self._unacked.take_all(), True, True)
        if isinstance(method, Basic.Recover):
            self._send(Basic.RecoverOk)

    def _confirm_select(self, method: Confirm.Select, frame: MethodFrame) -> None:
        if self._transactional:
            raise precondition_failed("cannot switch from tx to confirm mode")
        self._confirms = True
        self._reply(method, Confirm.SelectOk)

    def _tx_select(self, method: Tx.Select, frame: MethodFrame) -> None:
        if self._confirms:
            raise precondition_failed("cannot switch from confirm to tx mode")
        self._transactional = True
        self._send(Tx.SelectOk)

    def _assert_transactional(self) -> None:
        if not self._transactional:
            raise precondition_failed("channel is not transactional")

    def _tx_commit(self, method: Tx.Commit, frame: MethodFrame) -> None:
        self._assert_transactional()
        publishings, self._tx_publishings = self._tx_publishings, []
        settlements, self._tx_settlements = self._tx_settlements, []
        refused = 0
        for messages, queues, run, expirations in publishings:
            refused += len(messages) - self._distribute(run, messages, queues, expirations)
        for pieces, nack, requeue in settlements:
            self._settle(pieces, nack, requeue)
        if refused:
            raise precondition_failed("partial tx completion")
        self._send(Tx.CommitOk)

    def _tx_rollback(self, method: Tx.Rollback, frame: MethodFrame) -> None:
        self._assert_transactional()
        settlements, self._tx_settlements = self._tx_settlements, []
        self._tx_publishings = []
        # Deliveries settled in the transaction are outstanding again. As in RabbitMQ they are not redelivered.
        self._unacked.put_back([piece for pieces, _, _ in settlements for piece in pieces])
        self._send(Tx.RollbackOk)

    _handlers: ClassVar[dict[type[Method], Callable[[BrokerChannel, Any, MethodFrame], None]]] = {
        Channel.Close: _close,
        Channel.Flow: _flow,
        Exchange.Declare: _exchange_declare,
        Exchange.Delete: _exchange_delete,
        Exchange.Bind: _exchange_bind,
        Exchange.Unbind: _exchange_unbind,
        Queue.Declare: _queue_declare,
        Queue.Bind: _queue_bind,
        Queue.Unbind: _queue_unbind,
        Queue.Purge: _queue_purge,
        Queue.Delete: _queue_delete,
        Basic.Qos: _basic_qos,
        Basic.Consume: _basic_consume,
        Basic.Cancel: _basic_cancel,
        Basic.Get: _basic_get,
        Basic.Recover: _basic_recover,
        Basic.RecoverAsync: _basic_recover,
        Confirm.Select: _confirm_select,
        Tx.Select: _tx_select,
        Tx.Commit: _tx_commit,
        Tx.Rollback: _tx_rollback,
    }


def _milliseconds(expiration: str) -> int:
    """Returns the milliseconds of an expiration.

    Raises:
        Refusal: The text is no valid expiration; it has RabbitMQ's words.
    """
    digits = expiration[1:] if expiration[:1] in ("+", "-") else expiration
    count = len(digits) - len(digits.lstrip("0123456789"))
    if not count:
        reason: str | None = "no_integer"
    elif count < len(digits):
        reason = f'{{leftover_string,"{digits[count:]}"}}'
    else:
        reason = expiry_error(int(expiration))
    if reason is not None:
        raise precondition_failed(f"invalid expiration '{expiration}': {reason}")
    return int(expiration)
