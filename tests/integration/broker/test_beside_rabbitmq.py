"""The embedded broker beside RabbitMQ: the same conversations must get the same answers, reply texts included.

Every conversation runs once against each broker, through pika, and what it saw is compared. Differences that are meant
are in docs/embedded-broker.md.

The embedded broker imitates RabbitMQ 3.10. Where a newer version answers otherwise, NEWER says what it must answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any, TypeAlias

import pika
import pika.exceptions
import pytest
from tests.support.conversations import Conversation

if TYPE_CHECKING:
    from collections.abc import Callable

    from pika.adapters.blocking_connection import BlockingChannel
    from tests.support.rabbitmq import RabbitMQNode

    from leveret.broker import EmbeddedBroker

pytestmark = [pytest.mark.integration, pytest.mark.server_version]


CONVERSATIONS: dict[str, Callable[[Conversation], None]] = {}


def conversation(function: Callable[[Conversation], None]) -> Callable[[Conversation], None]:
    CONVERSATIONS[function.__name__] = function
    return function


# ---------------------------------------------------------------------- entities that do not exist


@conversation
def missing_entities(c: Conversation) -> None:
    c.try_(lambda: c.channel.queue_declare(c.name, passive=True))
    c.try_(lambda: c.channel.queue_declare("", passive=True))
    c.try_(lambda: c.channel.exchange_declare(c.name, passive=True))
    c.try_(lambda: c.channel.exchange_declare("", passive=True))
    c.try_(lambda: c.channel.queue_purge(c.name))
    c.try_(lambda: c.channel.queue_delete(c.name))
    c.try_(lambda: c.channel.exchange_delete(c.name))
    c.try_(lambda: c.channel.basic_get(c.name))
    c.try_(lambda: c.channel.basic_consume(c.name, lambda *_: None))
    c.try_(lambda: c.channel.basic_get(""))
    c.try_(lambda: c.channel.queue_purge(""))
    c.try_(lambda: c.channel.queue_bind(c.name, "amq.direct", "key"))
    queue = c.declare()
    c.try_(lambda: c.channel.queue_bind(queue, c.name + ".x", "key"))
    c.try_(lambda: c.channel.queue_bind(queue, "amq.direct", "key"))
    c.try_(lambda: c.channel.queue_unbind(queue, "amq.direct", "other"))
    c.try_(lambda: c.channel.queue_unbind(queue, c.name + ".x", "other"))
    c.try_(lambda: c.channel.exchange_bind(c.name + ".a", "amq.direct"))
    c.try_(lambda: c.channel.exchange_unbind(c.name + ".a", "amq.direct"))
    channel = c.channel
    channel.confirm_delivery()
    c.try_(lambda: channel.basic_publish(c.name + ".x", "key", b""))


@conversation
def publish_to_missing_exchange_without_confirms(c: Conversation) -> None:
    channel = c.channel
    channel.basic_publish(c.name, "key", b"")
    c.try_(lambda: channel.queue_declare(c.name, passive=True))


# ---------------------------------------------------------------------- names that are taken


@conversation
def reserved_names(c: Conversation) -> None:
    c.try_(lambda: c.channel.queue_declare("amq.mine"))
    c.try_(lambda: c.channel.exchange_declare("amq.mine"))
    c.try_(lambda: c.channel.exchange_declare("", "direct"))
    c.try_(lambda: c.channel.exchange_delete(""))
    c.try_(lambda: c.channel.exchange_delete("amq.direct"))
    c.try_(lambda: c.channel.exchange_declare("amq.direct", "direct", durable=True))
    c.try_(lambda: c.channel.exchange_declare("amq.direct", "fanout", durable=True))
    c.try_(lambda: c.channel.exchange_declare("amq.match", "headers", durable=True))
    c.try_(lambda: c.channel.exchange_declare(c.name, "x-nothing"))
    queue = c.declare()
    c.try_(lambda: c.channel.queue_bind(queue, "", "key"))
    c.try_(lambda: c.channel.queue_unbind(queue, "", "key"))
    c.try_(lambda: c.channel.exchange_bind("", "amq.direct"))


@conversation
def inequivalent_queues(c: Conversation) -> None:
    queue = c.declare()
    c.try_(lambda: c.channel.queue_declare(queue))
    c.try_(lambda: c.channel.queue_declare(queue, durable=True))
    c.try_(lambda: c.channel.queue_declare(queue, auto_delete=True))
    c.try_(lambda: c.channel.queue_declare(queue, exclusive=True))
    c.try_(lambda: c.channel.queue_declare(queue, durable=True, exclusive=True))
    c.try_(lambda: c.channel.queue_declare(queue, arguments={"x-max-length": 5}))
    c.try_(lambda: c.channel.queue_declare(queue, arguments={"x-queue-type": "classic"}))
    c.try_(lambda: c.channel.queue_declare(queue, arguments={"x-queue-type": "quorum"}))
    c.try_(lambda: c.channel.queue_declare(queue, arguments={"tenant": "a"}))
    limited = c.declare(
        ".a",
        durable=True,
        arguments={
            "x-max-length": 5,
            "x-overflow": "reject-publish",
            "x-dead-letter-exchange": "",
            "x-message-ttl": 60000,
        },
    )
    same = {"x-max-length": 5, "x-overflow": "reject-publish", "x-dead-letter-exchange": "", "x-message-ttl": 60000}
    c.try_(lambda: c.channel.queue_declare(limited, durable=True, arguments=same))
    c.try_(lambda: c.channel.queue_declare(limited, durable=True))
    for key, value in (
        ("x-max-length", 6), ("x-max-length", "5"), ("x-max-length", 1 << 40), ("x-overflow", "drop-head"),
        ("x-dead-letter-exchange", "amq.direct"), ("x-message-ttl", 1), ("x-expires", 100000),
        ("x-single-active-consumer", True),
    ):  # fmt: skip
        c.try_(c.channel.queue_declare, limited, durable=True, arguments={**same, key: value})
    c.try_(lambda: c.channel.queue_declare(limited, durable=True, arguments={**same, "other": 1}))


@conversation
def inequivalent_exchanges(c: Conversation) -> None:
    c.channel.exchange_declare(c.name, "topic", durable=True, arguments={"alternate-exchange": "amq.fanout"})
    same = {"alternate-exchange": "amq.fanout"}
    c.try_(lambda: c.channel.exchange_declare(c.name, "topic", durable=True, arguments=same))
    c.try_(lambda: c.channel.exchange_declare(c.name, "direct", durable=True, arguments=same))
    c.try_(lambda: c.channel.exchange_declare(c.name, "topic", durable=False, arguments=same))
    c.try_(lambda: c.channel.exchange_declare(c.name, "topic", durable=True, auto_delete=True, arguments=same))
    c.try_(lambda: c.channel.exchange_declare(c.name, "topic", durable=True, internal=True, arguments=same))
    c.try_(lambda: c.channel.exchange_declare(c.name, "topic", durable=True))
    c.try_(
        lambda: c.channel.exchange_declare(
            c.name, "topic", durable=True, arguments={"alternate-exchange": "amq.direct"}
        )
    )
    c.try_(lambda: c.channel.exchange_declare(c.name + ".a", "topic", arguments={"alternate-exchange": 5}))


@conversation
def wrong_arguments(c: Conversation) -> None:
    for arguments in (
        {"x-max-length": -1}, {"x-max-length": "5"}, {"x-max-length-bytes": -5}, {"x-overflow": "drop-tail"},
        {"x-overflow": 5}, {"x-message-ttl": -1}, {"x-message-ttl": 315_360_000_001}, {"x-message-ttl": "5"},
        {"x-expires": 0}, {"x-expires": -1}, {"x-dead-letter-exchange": 5}, {"x-dead-letter-routing-key": "a"},
        {"x-dead-letter-exchange": "", "x-dead-letter-routing-key": 5}, {"x-queue-type": "queer"}, {"x-queue-type": 5},
        {"x-single-active-consumer": "yes"}, {"x-delivery-limit": 5},
        {"x-queue-type": "quorum", "x-max-priority": 5},
    ):  # fmt: skip
        c.try_(c.channel.queue_declare, c.name, durable=True, arguments=arguments)
        with contextlib.suppress(pika.exceptions.AMQPError):
            c.channel.queue_delete(c.name)
    quorum = {"x-queue-type": "quorum"}
    c.try_(lambda: c.channel.queue_declare(c.name, arguments=quorum))
    c.try_(lambda: c.channel.queue_declare(c.name, durable=True, auto_delete=True, arguments=quorum))
    c.try_(lambda: c.channel.queue_declare(c.name, durable=True, exclusive=True, arguments=quorum))
    c.try_(lambda: c.channel.queue_declare("", durable=True, arguments=quorum))
    queue = c.declare()
    c.try_(lambda: c.channel.queue_bind(queue, "amq.headers", arguments={"x-match": "some"}))
    c.try_(lambda: c.channel.queue_bind(queue, "amq.headers", arguments={"x-match": 5}))
    c.try_(lambda: c.channel.basic_consume(queue, lambda *_: None, arguments={"x-priority": "high"}))
    c.try_(lambda: c.channel.basic_consume(queue, lambda *_: None, arguments={"x-stream-offset": "first"}))


# ---------------------------------------------------------------------- who may use what


@conversation
def exclusive_queues(c: Conversation) -> None:
    owner = c.connect().channel()
    owner.queue_declare(c.name, exclusive=True)
    c.try_(lambda: owner.queue_declare(c.name, exclusive=True))
    c.try_(lambda: c.channel.queue_declare(c.name, passive=True))
    c.try_(lambda: c.channel.queue_declare(c.name, exclusive=True))
    c.try_(lambda: c.channel.queue_declare(c.name))
    c.try_(lambda: c.channel.basic_get(c.name))
    c.try_(lambda: c.channel.basic_consume(c.name, lambda *_: None))
    c.try_(lambda: c.channel.queue_delete(c.name))
    c.try_(lambda: c.channel.queue_purge(c.name))
    c.try_(lambda: c.channel.queue_bind(c.name, "amq.direct", "key"))
    c.try_(lambda: owner.queue_declare(c.name))
    owner.connection.close()
    c.try_(lambda: c.channel.queue_declare(c.name, passive=True))


@conversation
def exclusive_consumers(c: Conversation) -> None:
    queue = c.declare()
    first = c.connect().channel()
    first.basic_consume(queue, lambda *_: None, exclusive=True)
    c.try_(lambda: c.channel.basic_consume(queue, lambda *_: None))
    c.try_(lambda: c.channel.basic_consume(queue, lambda *_: None, exclusive=True))
    c.try_(lambda: c.channel.queue_delete(queue, if_unused=True))
    first.connection.close()
    channel = c.channel
    c.try_(lambda: channel.basic_consume(queue, lambda *_: None, consumer_tag="one"))
    c.try_(lambda: channel.basic_consume(queue, lambda *_: None, exclusive=True))


@conversation
def internal_exchange(c: Conversation) -> None:
    c.channel.exchange_declare(c.name, "fanout", internal=True)
    channel = c.channel
    channel.confirm_delivery()
    c.try_(lambda: channel.basic_publish(c.name, "", b""))


@conversation
def delete_in_use(c: Conversation) -> None:
    queue = c.declare()
    c.channel.exchange_declare(c.name, "fanout")
    c.channel.queue_bind(queue, c.name)
    c.channel.basic_publish(c.name, "", b"1")
    c.depth(queue, 1)
    c.try_(lambda: c.channel.exchange_delete(c.name, if_unused=True))
    c.try_(lambda: c.channel.queue_delete(queue, if_empty=True))
    c.try_(lambda: c.channel.queue_delete(queue, if_unused=True, if_empty=True))
    c.try_(lambda: c.channel.queue_purge(queue))
    c.try_(lambda: c.channel.queue_delete(queue, if_unused=True, if_empty=True))
    c.try_(lambda: c.channel.exchange_delete(c.name, if_unused=True))
    quorum = c.declare(".a", durable=True, arguments={"x-queue-type": "quorum"})
    c.try_(lambda: c.channel.queue_delete(quorum, if_unused=True))
    c.try_(lambda: c.channel.queue_delete(quorum, if_empty=True))


# ---------------------------------------------------------------------- settling and modes


@conversation
def unknown_delivery_tags(c: Conversation) -> None:
    queue = c.declare()

    def settle(verb: str, tag: int, **options: Any) -> None:
        channel = c.channel
        for _ in range(2):
            channel.basic_publish("", queue, b"")
        c.depth(queue, 2)
        channel.basic_get(queue)
        channel.basic_get(queue)
        getattr(channel, verb)(tag, **options)
        c.try_(lambda: channel.queue_declare(queue, passive=True))
        if channel.is_open:
            channel.close()
        else:
            c.depth(queue, 2)
        c.channel.queue_purge(queue)

    settle("basic_ack", 7)
    settle("basic_ack", 7, multiple=True)
    settle("basic_ack", 0)
    settle("basic_ack", 0, multiple=True)
    settle("basic_nack", 7)
    settle("basic_reject", 7)
    channel = c.channel
    c.try_(lambda: channel.basic_ack(1) or channel.queue_declare(queue, passive=True))
    channel = c.channel
    channel.basic_ack(0, multiple=True)
    c.try_(lambda: channel.queue_declare(queue, passive=True))


@conversation
def confirm_and_transaction_modes(c: Conversation) -> None:
    channel = c.channel
    c.try_(channel.confirm_delivery)
    c.try_(channel.tx_select)
    channel = c.channel
    c.try_(channel.tx_select)
    c.try_(channel.tx_select)
    c.try_(channel.confirm_delivery)
    c.try_(c.channel.tx_commit)
    c.try_(c.channel.tx_rollback)


@conversation
def not_implemented(c: Conversation) -> None:
    c.try_(lambda: c.channel.basic_qos(prefetch_size=5))
    c.try_(lambda: c.channel.basic_recover(requeue=False))
    c.try_(lambda: c.channel.flow(False))
    c.try_(lambda: c.channel.flow(True))
    quorum = c.declare(".a", durable=True, arguments={"x-queue-type": "quorum"})
    channel = c.channel
    channel.basic_qos(prefetch_count=5, global_qos=True)
    c.try_(lambda: channel.basic_consume(quorum, lambda *_: None))


@conversation
def consumer_tags(c: Conversation) -> None:
    queue = c.declare()
    channel = c.channel
    channel.basic_consume(queue, lambda *_: None, consumer_tag="mine")
    # pika itself refuses a tag that is in use; another channel may use it.
    c.try_(lambda: c.connect().channel().basic_consume(queue, lambda *_: None, consumer_tag="mine"))
    c.try_(lambda: channel.connection.channel().basic_consume(queue, lambda *_: None, consumer_tag="mine"))
    c.try_(lambda: channel.basic_cancel("mine"))
    c.try_(lambda: channel.queue_declare(queue, passive=True))


@conversation
def publish_properties(c: Conversation) -> None:
    queue = c.declare()
    for properties in (
        {"user_id": "guest"}, {"user_id": "other"}, {"expiration": "60000"}, {"expiration": "soon"},
        {"expiration": "5s"}, {"expiration": "-1"}, {"expiration": "999999999999"}, {"expiration": ""},
        {"expiration": "+5000"}, {"reply_to": "amq.rabbitmq.reply-to"},
    ):  # fmt: skip
        channel = c.channel
        channel.confirm_delivery()
        c.try_(channel.basic_publish, "", queue, b"", pika.BasicProperties(**properties))


@conversation
def too_long_a_reply_text(c: Conversation) -> None:
    c.try_(lambda: c.channel.queue_declare("q" * 240, passive=True))
    c.try_(lambda: c.channel.queue_declare("\u00e9" * 125, passive=True))


# ---------------------------------------------------------------------- what messages look like


def _seen(answer: tuple[Any, Any, Any]) -> tuple[object, ...]:
    method, properties, body = answer
    if method is None:
        return (None,)
    headers = dict(properties.headers or {})
    for death in headers.get("x-death", []):
        death["time"] = type(death["time"]).__name__
    return method.exchange, method.routing_key, method.redelivered, body, headers, properties.expiration


@conversation
def dead_letters(c: Conversation) -> None:
    dead = c.declare(".b")
    queue = c.declare(".a", arguments={"x-dead-letter-exchange": "amq.direct", "x-dead-letter-routing-key": c.name})
    c.channel.queue_bind(dead, "amq.direct", c.name)
    c.channel.queue_bind(queue, "amq.direct", c.name + ".again")
    c.channel.basic_publish(
        "amq.direct",
        c.name + ".again",
        b"body",
        pika.BasicProperties(
            expiration="60000",
            message_id="m",
            content_type="text/plain",
            priority=3,
            correlation_id="c",
            delivery_mode=2,
            headers={"tenant": 5, "deep": {"list": [1, "two", None, True]}},
        ),
    )
    for _ in range(2):
        method, _, _ = c.get(queue)
        c.channel.basic_reject(method.delivery_tag, requeue=False)
        answer = c.get(dead)
        c.note(_seen(answer), answer[1].message_id, answer[1].content_type, answer[1].delivery_mode)
        c.channel.basic_publish("amq.direct", c.name + ".again", answer[2], answer[1])
        c.channel.basic_ack(answer[0].delivery_tag)
    c.channel.queue_unbind(dead, "amq.direct", c.name)
    method, _, _ = c.get(queue)
    c.channel.basic_nack(method.delivery_tag, requeue=False)
    c.note(c.depth(queue), c.depth(dead))


@conversation
def expired_and_dropped_letters(c: Conversation) -> None:
    dead = c.declare(".b")
    queue = c.declare(
        ".a",
        arguments={
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": dead,
            "x-max-length": 2,
            "x-message-ttl": 300,
        },
    )
    for body in (b"1", b"2", b"3"):
        c.channel.basic_publish("", queue, body)
    c.note(_seen(c.get(dead, auto_ack=True)))
    c.note(_seen(c.get(dead, auto_ack=True)))
    c.note(_seen(c.get(dead, auto_ack=True)))
    c.channel.basic_publish("", queue, b"4", pika.BasicProperties(expiration="50"))
    c.note(_seen(c.get(dead, auto_ack=True)))
    c.note(c.depth(queue))


@conversation
def dead_letter_cycle(c: Conversation) -> None:
    queue = c.declare(
        ".a", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": c.name + ".b", "x-message-ttl": 20}
    )
    c.declare(".b", arguments={"x-dead-letter-exchange": "", "x-dead-letter-routing-key": queue, "x-message-ttl": 20})
    c.channel.basic_publish("", queue, b"round and round")
    time.sleep(0.3)
    c.note(c.depth(queue), c.depth(c.name + ".b"))


@conversation
def reject_publish(c: Conversation) -> None:
    queue = c.declare(".a", arguments={"x-max-length": 2, "x-overflow": "reject-publish"})
    other = c.declare(".b")
    c.channel.exchange_declare(c.name, "fanout")
    c.channel.queue_bind(queue, c.name)
    c.channel.queue_bind(other, c.name)
    channel = c.channel
    channel.confirm_delivery()
    for _ in range(4):
        c.try_(lambda: channel.basic_publish(c.name, "", b"body"))
    c.note(c.depth(queue, 2), c.depth(other, 4))
    c.channel.basic_get(queue, auto_ack=True)
    c.try_(lambda: channel.basic_publish("", queue, b"body"))


@conversation
def requeue_order(c: Conversation) -> None:
    queue = c.declare()
    for body in (b"1", b"2", b"3", b"4"):
        c.channel.basic_publish("", queue, body)
    c.depth(queue, 4)
    channel = c.channel
    tags = [channel.basic_get(queue)[0].delivery_tag for _ in range(3)]
    channel.basic_nack(tags[1], requeue=True)
    c.depth(queue, 2)
    channel.basic_reject(tags[0], requeue=True)
    c.depth(queue, 3)
    c.note(*[_seen(c.get(queue, auto_ack=True))[2:4] for _ in range(3)])
    channel.basic_recover(requeue=True)
    c.note(_seen(c.get(queue, auto_ack=True))[2:4])


@conversation
def delivery_limit(c: Conversation) -> None:
    dead = c.declare(".b")
    queue = c.declare(
        ".a",
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": 2,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": dead,
        },
    )
    c.channel.basic_publish("", queue, b"1", pika.BasicProperties(headers={"a": 1}))
    for _ in range(3):
        answer = c.get(queue)
        c.note(_seen(answer))
        c.channel.basic_nack(answer[0].delivery_tag, requeue=True)
    c.note(_seen(c.get(dead)))


@conversation
def topic_and_headers(c: Conversation) -> None:
    c.channel.exchange_declare(c.name, "topic")
    c.channel.exchange_declare(c.name + ".a", "headers")
    patterns = ("#", "*", "a.*", "a.#", "#.b", "*.*.b", "a.#.b", "#.#", "", "a..b", "*.#")
    for pattern in patterns:
        name = c.channel.queue_declare("", exclusive=True).method.queue
        c.channel.queue_bind(name, c.name, pattern)
        for key in ("", "a", "a.b", "a.b.b", "b", "a..b", ".", "a.c.d.b", "#", "*", "a.#"):
            c.channel.basic_publish(c.name, key, key.encode())
        c.channel.basic_publish("", name, b"end")
        bodies = []
        while (body := c.get(name, auto_ack=True)[2]) != b"end":
            bodies.append(body)
        c.note(pattern, bodies)
    for arguments in (
        {"x-match": "all", "a": 1, "b": "two"}, {"x-match": "any", "a": 1, "b": "two"}, {"x-match": "any"}, {"a": 1},
        {"x-match": "any-with-x", "x-a": 1}, {"x-match": "all-with-x", "x-a": 1}, {"x-match": "all", "x-a": 1}, {},
        {"a": None}, {"a": True},
    ):  # fmt: skip
        name = c.channel.queue_declare("", exclusive=True).method.queue
        c.channel.queue_bind(name, c.name + ".a", arguments=arguments)
        for number, headers in enumerate(
            (None, {}, {"a": 1}, {"a": 2}, {"a": 1, "b": "two"}, {"b": "two"}, {"x-a": 1}, {"a": True}, {"a": "1"})
        ):
            c.channel.basic_publish(c.name + ".a", "", str(number).encode(), pika.BasicProperties(headers=headers))
        c.channel.basic_publish("", name, b"end")
        bodies = []
        while (body := c.get(name, auto_ack=True)[2]) != b"end":
            bodies.append(body)
        c.note(arguments, bodies)


@conversation
def alternates_and_auto_delete(c: Conversation) -> None:
    c.channel.exchange_declare(c.name, "fanout")
    c.channel.exchange_declare(c.name + ".a", "direct", auto_delete=True, arguments={"alternate-exchange": c.name})
    queue = c.declare(".a")
    rest = c.declare(".b")
    c.channel.queue_bind(queue, c.name + ".a", "key")
    c.channel.queue_bind(rest, c.name)
    c.channel.basic_publish(c.name + ".a", "key", b"1")
    c.channel.basic_publish(c.name + ".a", "other", b"2")
    c.note(_seen(c.get(queue)), _seen(c.get(rest)))
    c.channel.exchange_bind(c.name + ".a", c.name, "")
    c.channel.basic_publish(c.name, "key", b"3")
    c.note(_seen(c.get(queue)), _seen(c.get(rest)))
    c.channel.queue_unbind(queue, c.name + ".a", "key")
    c.try_(lambda: c.channel.exchange_declare(c.name + ".a", passive=True))


@conversation
def transactions(c: Conversation) -> None:
    queue = c.declare()
    channel = c.channel
    channel.tx_select()
    channel.basic_publish("", queue, b"1")
    c.note(c.connect().channel().queue_declare(queue, passive=True).method.message_count)
    channel.tx_rollback()
    channel.basic_publish("", queue, b"2")
    channel.tx_commit()
    c.note(c.depth(queue, 1))
    method, _, body = channel.basic_get(queue)
    channel.basic_ack(method.delivery_tag)
    channel.tx_rollback()
    channel.basic_ack(method.delivery_tag)
    channel.tx_commit()
    c.note(body, c.depth(queue))
    c.try_(lambda: channel.basic_ack(method.delivery_tag) or channel.tx_commit())


@conversation
def cancellation(c: Conversation) -> None:
    queue = c.declare(".a", auto_delete=True)
    channel = c.channel
    cancelled: list[str] = []
    channel.add_on_cancel_callback(lambda frame: cancelled.append(frame.method.consumer_tag))
    channel.basic_consume(queue, lambda *_: None, consumer_tag="one")
    c.connect().channel().queue_delete(queue)
    channel.connection.process_data_events(time_limit=5)
    c.note(cancelled)
    queue = c.declare(".a", auto_delete=True)
    channel.basic_consume(queue, lambda *_: None, consumer_tag="two")
    channel.basic_cancel("two")
    c.try_(lambda: c.channel.queue_declare(queue, passive=True))


@conversation
def prefetch(c: Conversation) -> None:
    queue = c.declare()
    for number in range(6):
        c.channel.basic_publish("", queue, str(number).encode())
    c.depth(queue, 6)
    got: list[tuple[str, bytes, int]] = []

    def take_all(channel: BlockingChannel) -> None:
        before = -1
        while len(got) > before:
            before = len(got)
            # pika returns at the first delivery, and others may come behind it.
            quiet_at = time.monotonic() + 1
            while (left := quiet_at - time.monotonic()) > 0:
                channel.connection.process_data_events(time_limit=left)

    def consume(channel: BlockingChannel, tag: str) -> None:
        channel.basic_consume(queue, lambda _, m, __, b: got.append((tag, b, m.delivery_tag)), consumer_tag=tag)
        take_all(channel)
        c.note(list(got))

    channel = c.channel
    channel.basic_qos(prefetch_count=2)
    consume(channel, "one")
    channel.basic_qos(prefetch_count=3, global_qos=True)
    consume(channel, "two")
    channel.basic_ack(got[0][2])
    take_all(channel)
    c.note(sorted(got))
    channel.basic_qos(prefetch_count=0, global_qos=True)
    take_all(channel)
    c.note(sorted(body for _, body, _ in got))


# ---------------------------------------------------------------------- connections


@conversation
def handshake(c: Conversation) -> None:
    c.try_(c.connect, virtual_host="nowhere")
    c.try_(c.connect, credentials=pika.PlainCredentials("guest", "wrong"))
    c.try_(c.connect, credentials=pika.PlainCredentials("nobody", "guest"))
    connection = c.connect(heartbeat=7, frame_max=8192, channel_max=3)
    impl = connection._impl
    c.note(impl.params.heartbeat, impl.params.frame_max, impl.params.channel_max)
    channels = [connection.channel() for _ in range(3)]
    c.note(len(channels))
    c.note(sorted(set(impl.server_capabilities) - {"direct_reply_to"}))


# ---------------------------------------------------------------------- what newer versions of RabbitMQ answer

Seen: TypeAlias = list[Any]


def _each_letter(seen: Seen, change: Callable[[Any], Any]) -> Seen:
    """Changes the notes of messages and not the others, which are counts."""
    return [change(note) if isinstance(note[0], tuple) else note for note in seen]


def _with_headers(answer: Any, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The same note of a message with other headers; see `_seen`."""
    (exchange, key, redelivered, body, headers, expiration), *rest = answer
    return ((exchange, key, redelivered, body, change(dict(headers)), expiration), *rest)


def _redelivered(answer: Any) -> Any:
    (exchange, key, _, *message), *rest = answer
    return ((exchange, key, True, *message), *rest)


def _last_death(headers: dict[str, Any]) -> dict[str, Any]:
    """RabbitMQ 4 says of the last death what 3.10 says of the first one; here both are the same."""
    if "x-death" not in headers:
        return headers
    return headers | {f"x-last-death-{of}": headers[f"x-first-death-{of}"] for of in ("exchange", "queue", "reason")}


def _dead_letters(seen: Seen, name: str) -> Seen:
    """RabbitMQ 4 does not continue the x-death that a publisher sends: the second letter is as the first."""
    first = _with_headers(seen[0], _last_death)
    again = [
        {key: value for key, value in entry.items() if key != "original-expiration"} for entry in first[0][4]["x-death"]
    ]
    return [first, _with_headers(first, lambda headers: headers | {"x-death": again}), *seen[2:]]


def _exact(index: int, answer: Callable[[str], object]) -> Callable[[Seen, str], Seen]:
    """One note differs."""
    return lambda seen, name: [*seen[:index], answer(name), *seen[index + 1 :]]


def _delivery_limit(seen: Seen, name: str) -> Seen:
    """RabbitMQ 4 has no count in the headers before there is something to count."""
    first = _with_headers(seen[0], lambda headers: {"a": headers["a"]})
    return [first, *seen[1:3], _with_headers(seen[3], _last_death)]


def _not_counted(seen: Seen, name: str) -> Seen:
    """To RabbitMQ 4.3 basic.nack is no failure. It counts how often it handed a message out, which has no limit."""

    def acquired(headers: dict[str, Any]) -> dict[str, Any]:
        return {"a": headers["a"], "x-acquired-count": headers["x-delivery-count"]}

    return [seen[0], *(_with_headers(answer, acquired) for answer in seen[1:3]), ((None,),)]


def _own_prefetch(seen: Seen, name: str) -> Seen:
    """To RabbitMQ 4.3 a channel's prefetch is one of each consumer that begins after it."""
    one, two = ("one", b"0", 1), [("two", b"2", 3), ("two", b"3", 4), ("two", b"4", 5)]
    return [
        seen[0],
        ([one, ("one", b"1", 2), *two],),
        ([one, ("one", b"1", 2), ("one", b"5", 6), *two],),
        ([b"0", b"1", b"2", b"3", b"4", b"5"],),
    ]


_INEQUIVALENT = (
    "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue '{}' in vhost '/': "
    "received 'quorum' but current is 'classic'"
)

NEWER: dict[str, list[tuple[tuple[int, ...], Callable[[Seen, str], Seen]]]] = {
    "reserved_names": [
        ((4,), _exact(8, lambda _: ("channel", 406, "PRECONDITION_FAILED - unknown exchange type 'x-nothing'"))),
    ],
    "inequivalent_queues": [
        (
            (4,),
            _exact(
                7,
                lambda name: ("channel", 406, _INEQUIVALENT.format(name)),
            ),
        ),
    ],
    # A text that has to be cut inside of a character.
    "too_long_a_reply_text": [((4,), _exact(1, lambda _: ("connection", 541, "INTERNAL_ERROR")))],
    "not_implemented": [((4, 3), _exact(4, lambda _: "done"))],
    "dead_letters": [
        ((4,), _dead_letters),
        # What was rejected by a consumer is marked redelivered where it comes next.
        ((4, 3), lambda seen, name: _each_letter(seen, _redelivered)),
    ],
    "expired_and_dropped_letters": [
        ((4,), lambda seen, name: _each_letter(seen, lambda answer: _with_headers(answer, _last_death))),
    ],
    "delivery_limit": [((4,), _delivery_limit), ((4, 3), _not_counted)],
    "prefetch": [((4, 3), _own_prefetch)],
}


# ---------------------------------------------------------------------- the tests


def _converse(url: str, name: str, what: str) -> list[object]:
    c = Conversation(url, name)
    try:
        CONVERSATIONS[what](c)
    finally:
        c.close()
    return c.seen


@pytest.mark.parametrize("what", CONVERSATIONS)
async def test_conversation_is_the_same_as_with_rabbitmq(
    rabbitmq: RabbitMQNode, embedded: EmbeddedBroker, unique_name: Callable[[str], str], what: str
) -> None:
    name = unique_name("talk")
    ours, theirs = await asyncio.gather(
        asyncio.to_thread(_converse, embedded.url, name, what), asyncio.to_thread(_converse, rabbitmq.url, name, what)
    )
    expected = list(ours)
    for since, change in NEWER.get(what, ()):
        if rabbitmq.version >= since:
            expected = change(expected, name)
    assert theirs == expected
    assert ours
