"""Clients that do anything they like, in any order: the embedded broker must not fail, nor lose count of anything."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.corpus import strategies
from tests.support.session import Client, publishing

from leveret.broker import EmbeddedBroker
from leveret.broker.virtual_host import Scheduler, VirtualHost
from leveret.protocol.commands import Basic, Channel, Confirm, Connection, Exchange, Queue, Tx
from leveret.wire.runs import ContentRun

if TYPE_CHECKING:
    from leveret.protocol.commands import Method

assert strategies  # its import loads the hypothesis profile

queues = st.sampled_from(["a", "b", "c", "d", ""])
exchanges = st.sampled_from(["x", "y", "amq.topic", "amq.headers", "amq.fanout", ""])
keys = st.sampled_from(["a", "b", "c", "a.b", "#", "*.b", ""])
tags = st.one_of(st.integers(0, 12), st.just(0))
flags = st.booleans()
consumers = st.sampled_from(["one", "two", ""])
arguments = st.fixed_dictionaries(
    {},
    optional={
        "x-max-length": st.integers(0, 3),
        "x-max-length-bytes": st.integers(0, 20),
        "x-overflow": st.sampled_from(["drop-head", "reject-publish", "reject-publish-dlx"]),
        "x-dead-letter-exchange": exchanges,
        "x-dead-letter-routing-key": keys,
        "x-message-ttl": st.integers(0, 3),
        "x-single-active-consumer": flags,
        "x-expires": st.integers(1, 1000),
    },
)
quorum = st.fixed_dictionaries(
    {"x-queue-type": st.just("quorum")},
    optional={"x-delivery-limit": st.integers(0, 2), "x-dead-letter-exchange": exchanges, "x-max-length": st.just(2)},
)


def method(cls: type[Method], **values: Any) -> st.SearchStrategy[tuple[str, Any]]:
    fields = {name: value if isinstance(value, st.SearchStrategy) else st.just(value) for name, value in values.items()}
    return st.tuples(st.just("method"), st.tuples(st.just(cls), st.fixed_dictionaries(fields)))


publishings = st.tuples(
    st.just("publish"),
    st.fixed_dictionaries(
        {
            "body": st.binary(max_size=12),
            "exchange": exchanges,
            "key": keys,
            "mandatory": flags,
            "headers": st.none() | st.dictionaries(st.sampled_from(["k", "x-death"]), st.integers(0, 2), max_size=2),
            "expiration": st.sampled_from([None, None, None, "0", "5", "60000"]),
        }
    ),
)
steps = st.one_of(
    publishings,
    publishings,
    publishings,
    method(Queue.Declare, queue=queues, passive=flags, exclusive=st.just(False), arguments=st.just({})),
    method(Queue.Declare, queue=queues, auto_delete=flags, exclusive=flags, arguments=arguments),
    method(Queue.Declare, queue=queues, durable=True, arguments=quorum),
    method(Queue.Bind, queue=queues, exchange=exchanges, routing_key=keys, arguments=st.sampled_from([{}, {"k": 1}])),
    method(Queue.Unbind, queue=queues, exchange=exchanges, routing_key=keys, arguments=st.sampled_from([{}, {"k": 1}])),
    method(Queue.Purge, queue=queues),
    method(Queue.Delete, queue=queues, if_unused=flags, if_empty=flags),
    method(Exchange.Declare, exchange=exchanges, exchange_type=st.sampled_from(["direct", "topic", "headers"]),
           auto_delete=flags, arguments=st.sampled_from([{}, {"alternate-exchange": "y"}])),
    method(Exchange.Bind, destination=exchanges, source=exchanges, routing_key=keys, arguments={}),
    method(Exchange.Unbind, destination=exchanges, source=exchanges, routing_key=keys, arguments={}),
    method(Exchange.Delete, exchange=exchanges, if_unused=flags),
    method(Basic.Consume, queue=queues, consumer_tag=consumers, no_ack=flags, exclusive=st.sampled_from([False, True]),
           arguments=st.sampled_from([{}, {}, {"x-priority": 3}])),
    method(Basic.Consume, queue=queues, consumer_tag="", arguments={}),
    method(Basic.Cancel, consumer_tag=consumers),
    method(Basic.Get, queue=queues, no_ack=flags),
    method(Basic.Qos, prefetch_count=st.integers(0, 3), global_=flags),
    method(Basic.Ack, delivery_tag=tags, multiple=flags),
    method(Basic.Nack, delivery_tag=tags, multiple=flags, requeue=flags),
    method(Basic.Reject, delivery_tag=tags, requeue=flags),
    method(Basic.Recover, requeue=True),
    method(Confirm.Select),
    method(Tx.Select),
    method(Tx.Commit),
    method(Tx.Rollback),
    method(Channel.Close, reply_code=200, class_id=0, method_id=0),
    st.tuples(st.sampled_from(["lose", "pause", "resume", "block", "unblock", "time"]), st.none()),
)  # fmt: skip


class Guest:
    """A client with two channels that comes back whenever it was thrown out."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.broker = broker
        self.client = Client(broker).open(1, 2)
        self.delivered: Counter[int] = Counter()

    def act(self, channel: int, step: str, what: Any) -> None:
        if step == "publish":
            self.client.feed(publishing(**what, channel=channel))
        elif step == "method":
            cls, values = what
            self.client.send(channel, cls, **values)
            if cls is Channel.Close:
                self.client.send(channel, Channel.Open)
        elif step == "lose":
            self.leave()
        elif step == "pause":
            self.client.transport.pause_writing()
        elif step == "resume":
            self.client.transport.resume_writing()
        self.listen()

    def listen(self) -> None:
        for answer in self.client.answers():
            if isinstance(answer, Channel.Close):
                assert answer.reply_code is not None
                assert answer.reply_code < 500
                # None when what waited while it was blocked brought connection.close as well.
                for number in [n for n, c in self.client.session._channels.items() if c.closing]:
                    self.client.send(number, Channel.CloseOk)
                    self.client.send(number, Channel.Open)
            elif isinstance(answer, Connection.Close):
                assert answer.reply_code in (503, 504, 530, 540), answer.reply_text
                self.leave()
                return
            elif isinstance(answer, ContentRun):
                assert all(message.body is not None for message in answer.messages)

    def leave(self) -> None:
        self.client.lose()
        self.client = Client(self.broker).open(1, 2)


def check(broker: EmbeddedBroker) -> None:
    """Everything that is counted in two places is counted the same."""
    vhost = broker.vhosts["/"]
    unacked: Counter[object] = Counter()
    for session in broker.sessions:
        for channel in session._channels.values():
            delivered = 0
            slices = channel._unacked._slices[channel._unacked._head :]
            assert len(channel._unacked) == sum(s.live for s in slices)
            pieces = [s.peek(len(s.messages)) for s in slices if s.live]
            pieces += [piece for settled, _, _ in channel._tx_settlements for piece in settled]
            for piece in pieces:
                assert len(piece.messages) == len(piece.sequences) == len(piece.tags)
                if piece.consumer is not None:
                    unacked[piece.consumer] += len(piece.messages)
                    delivered += len(piece.messages)
            assert channel._delivered == delivered
            for tag, consumer in channel._consumers.items():
                assert consumer.tag == tag
                assert consumer.unacked == unacked[consumer]
                assert vhost.queues[consumer.queue.name] is consumer.queue
    for name, queue in vhost.queues.items():
        assert queue.name == name
        assert not queue.deleted
        assert queue.consumer_count == sum(len(lane) for _, lane in queue._lanes)
        if queue._limited:
            ready = [*queue._ready, *[message for _, message in queue._returned]]
            assert queue._ready_bytes == sum(message.body_size for message in ready)
        if queue.options.max_length is not None and queue.options.overflow == "drop-head":
            assert len(queue) <= queue.options.max_length
        assert queue._returned == sorted(queue._returned, key=lambda entry: entry[0], reverse=True)
        assert all(sequence < queue._next for sequence, _ in queue._returned)
        for binding, exchange in queue.inbound.items():
            assert exchange.bindings[binding] is queue
            assert vhost.exchanges[exchange.name] is exchange
    for exchange in vhost.exchanges.values():
        for binding, destination in exchange.bindings.items():
            assert destination.inbound[binding] is exchange


class Errors(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 2), steps), max_size=60))
async def test_nothing_fails_and_everything_adds_up_whatever_clients_do(
    plan: list[tuple[int, int, tuple[str, Any]]],
) -> None:
    errors = Errors()
    logger = logging.getLogger("leveret.broker")
    logger.addHandler(errors)
    broker = EmbeddedBroker()
    broker.scheduler = Scheduler(asyncio.get_running_loop())
    broker.vhosts = {"/": VirtualHost("/", broker.scheduler)}
    try:
        guests = [Guest(broker) for _ in range(3)]
        for who, channel, (step, what) in plan:
            if step == "block":
                broker.block()
            elif step == "unblock":
                broker.unblock()
            elif step == "time":
                await asyncio.sleep(0.002)
            guests[who].act(channel, step, what)
            for guest in guests:
                guest.listen()
            check(broker)
        broker.unblock()
        for guest in guests:
            guest.client.lose()
        broker.scheduler.run()
        check(broker)
        assert broker.sessions == {}
        assert all(queue.owner is None and not queue.consumer_count for queue in broker.vhosts["/"].queues.values())
    finally:
        broker.vhosts["/"].close()
        broker.scheduler.close()
        logger.removeHandler(errors)
    assert errors.texts == []
