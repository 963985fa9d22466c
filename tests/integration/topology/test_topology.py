"""Exchanges, queues and bindings: what is declared, what it does, and what happens when it exists in another form."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.queues import taken

import leveret
from leveret import Classic, Quorum, Topology
from leveret.errors import (
    AccessRefused,
    ConfigurationError,
    ConnectionClosed,
    EncodeFailed,
    NotFound,
    PreconditionFailed,
    ResourceLocked,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")

QUEUE_DECLARE, EXCHANGE_DECLARE, QUEUE_BIND = (50, 10), (40, 10), (50, 20)


# ---------------------------------------------------------------------- declare


async def test_declaring_again_changes_nothing_when_everything_exists(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    exchange, queue = name("exchange"), name("queue")
    topology = (
        Topology()
        .bind(queue, exchange, "order.*")  # the order of the calls does not matter
        .queue(queue, Classic(max_length=10, message_ttl=60))
        .exchange(exchange, "topic")
    )

    first = await client.declare(topology)
    assert first.exchanges == (exchange,)
    assert first.bindings == 1
    info = first.queues[queue]
    assert (info.name, info.message_count, info.consumer_count) == (queue, 0, 0)

    async with client.producer(exchange=exchange, mandatory=True) as producer:
        await producer.publish(1, "order.created")
    again = await client.declare(topology)
    assert again.queues[queue].message_count == 1
    assert await taken(client, queue) == [1]


@pytest.mark.parametrize(
    ("exists", "wanted", "argument"),
    [
        ({}, {"durable": False}, "durable"),
        ({}, {"auto_delete": True}, "auto_delete"),
        ({"kind": Classic(message_ttl=1)}, {}, "x-message-ttl"),
        ({"kind": Classic(message_ttl=1)}, {"kind": Classic(message_ttl=2)}, "x-message-ttl"),
        ({}, {"kind": Classic(max_length=5)}, "x-max-length"),
        ({}, {"kind": Classic(dead_letter_exchange="dlx")}, "x-dead-letter-exchange"),
    ],
    ids=["durable", "auto_delete", "ttl_absent", "ttl_differs", "max_length", "dead_letter_exchange"],
)
async def test_the_argument_is_named_when_a_queue_exists_with_another_value(
    client: leveret.Client,
    name: Callable[[str], str],
    exists: dict[str, Any],
    wanted: dict[str, Any],
    argument: str,
) -> None:
    queue = name("queue")
    await client.declare(Topology().queue(queue, **exists))

    with pytest.raises(PreconditionFailed) as refused:
        await client.declare(Topology().queue(queue, **wanted))

    error = refused.value
    assert error.argument == argument
    assert error.wanted
    assert error.actual
    assert error.wanted != error.actual
    assert (error.reply_code, error.class_id, error.method_id) == (406, *QUEUE_DECLARE)
    assert queue in str(error)
    assert error.__notes__ == [f"queue {queue!r}: {argument} is {error.actual}, and {error.wanted} was wanted"]
    # Only the channel of the call was lost.
    assert (await client.declare(Topology().queue(queue, **exists))).queues[queue].name == queue


@pytest.mark.parametrize(
    ("wanted", "argument"),
    [
        ({"type": "topic"}, "type"),
        ({"durable": False}, "durable"),
        ({"auto_delete": True}, "auto_delete"),
        ({"internal": True}, "internal"),
        ({"arguments": {"alternate-exchange": "other"}}, "alternate-exchange"),
    ],
    ids=["type", "durable", "auto_delete", "internal", "argument"],
)
async def test_the_argument_is_named_when_an_exchange_exists_with_another_value(
    client: leveret.Client, name: Callable[[str], str], wanted: dict[str, Any], argument: str
) -> None:
    exchange = name("exchange")
    await client.declare(Topology().exchange(exchange))

    with pytest.raises(PreconditionFailed) as refused:
        await client.declare(Topology().exchange(exchange, **wanted))

    error = refused.value
    assert error.argument == argument
    assert (error.reply_code, error.class_id, error.method_id) == (406, *EXCHANGE_DECLARE)
    assert client.connection.is_open


async def test_what_comes_first_stays_when_something_later_is_refused(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    first, second = name("queue"), name("queue")
    await client.declare(Topology().queue(second))
    with pytest.raises(PreconditionFailed):
        await client.declare(Topology().queue(first).queue(second, durable=False))
    assert await client.delete_queue(first) == 0
    channel = await client.channel()
    await channel.queue_declare(second, passive=True)


async def test_the_missing_end_is_named_when_a_binding_has_one(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    queue = name("queue")
    with pytest.raises(NotFound, match="no exchange 'missing'") as refused:
        await client.declare(Topology().queue(queue).bind(queue, "missing"))
    assert (refused.value.reply_code, refused.value.class_id, refused.value.method_id) == (404, *QUEUE_BIND)
    with pytest.raises(NotFound, match="no queue 'missing'"):
        await client.declare(Topology().bind("missing", "amq.topic"))


async def test_reserved_names_are_refused_when_declared(client: leveret.Client) -> None:
    for topology in (Topology().queue("amq.mine"), Topology().exchange("amq.mine")):
        with pytest.raises(AccessRefused, match=r"amq\.") as refused:
            await client.declare(topology)
        assert refused.value.reply_code == 403


@pytest.mark.parametrize(
    "topology",
    [
        Topology().queue("q" * 256),
        Topology().exchange("é" * 128),
        Topology().bind("q", "x", "k" * 256),
        Topology().queue("q", Classic(arguments={"x-value": object()})),
        Topology().queue("q", Classic(arguments={"x" * 256: 1})),
    ],
    ids=["queue", "exchange", "routing_key", "value", "key"],
)
async def test_the_argument_is_named_when_it_does_not_fit_the_protocol(
    client: leveret.Client, topology: Topology
) -> None:
    with pytest.raises(EncodeFailed) as refused:
        await client.declare(topology)
    assert any(word in str(refused.value) for word in ("256", "object"))
    assert client.connection.is_open


def test_a_topology_is_refused_before_it_is_sent_when_it_cannot_exist() -> None:
    with pytest.raises(ConfigurationError, match="type 'tpoic'"):
        Topology().exchange("x", "tpoic")
    for options in ({"exclusive": True}, {"auto_delete": True}, {"durable": False}):
        with pytest.raises(ConfigurationError, match="quorum queue 'q'"):
            Topology().queue("q", Quorum(), **options)
    with pytest.raises(ConfigurationError, match="named"):
        Topology().queue("", Quorum())
    with pytest.raises(ConfigurationError, match="x-max-length is given twice"):
        Topology().queue("q", Classic(max_length=1, arguments={"x-max-length": 2}))


async def test_the_connection_is_lost_with_its_reason_when_the_broker_says_so(client: leveret.Client) -> None:
    channel = await client.channel()
    with pytest.raises(ConnectionClosed) as refused:
        await channel.flow(False)
    assert refused.value.reply_code == 540
    assert not client.connection.is_open


@pytest.mark.server_version
async def test_an_exchange_type_that_the_broker_does_not_know_is_refused(
    client: leveret.Client, broker: Broker
) -> None:
    topology = Topology().exchange("x", "x-no-such-type")
    refused: pytest.ExceptionInfo[ConnectionClosed | PreconditionFailed]
    if broker.version < (4,):
        with pytest.raises(ConnectionClosed) as refused:
            await client.declare(topology)
        assert refused.value.reply_code == 503
    else:
        with pytest.raises(PreconditionFailed) as refused:
            await client.declare(topology)
        assert refused.value.reply_code == 406
    assert "unknown exchange type 'x-no-such-type'" in str(refused.value)
    assert client.connection.is_open is (broker.version >= (4,))


# ---------------------------------------------------------------------- kinds of queues


async def test_the_server_chooses_a_name_when_a_queue_has_none(client: leveret.Client) -> None:
    topology = Topology().queue(exclusive=True)
    names = [(await client.declare(topology)).queues[""].name for _ in range(2)]
    assert all(name.startswith("amq.gen-") for name in names)
    assert names[0] != names[1]


async def test_an_exclusive_queue_is_locked_when_another_connection_asks_for_it(
    client: leveret.Client, broker: Broker, name: Callable[[str], str]
) -> None:
    queue = name("queue")
    await client.declare(Topology().queue(queue, exclusive=True))
    async with leveret.connect(broker.url) as other:
        for attempt in (other.declare(Topology().queue(queue, exclusive=True)), other.purge(queue)):
            with pytest.raises(ResourceLocked) as refused:
                await attempt
            assert refused.value.reply_code == 405
            assert queue in str(refused.value)
        with pytest.raises(ResourceLocked):
            await anext(other.consumer(queue))
        assert other.connection.is_open


async def test_an_exclusive_queue_is_gone_when_its_connection_ends(
    client: leveret.Client, broker: Broker, name: Callable[[str], str]
) -> None:
    queue = name("queue")
    async with leveret.connect(broker.url) as owner:
        await owner.declare(Topology().queue(queue, exclusive=True))
    channel = await client.channel()
    with pytest.raises(NotFound):
        await channel.queue_declare(queue, passive=True)


async def test_a_quorum_queue_is_declared_again_when_it_exists(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    queue = name("quorum")
    topology = Topology().queue(queue, Quorum(delivery_limit=5))
    await client.declare(topology)
    async with client.producer() as producer:
        assert await producer.publish_batch(range(100), queue)
    await client.declare(topology)
    assert await taken(client, queue) == list(range(100))
    with pytest.raises(PreconditionFailed) as refused:
        await client.declare(Topology().queue(queue))
    assert refused.value.argument in ("x-queue-type", "x-delivery-limit")


async def test_messages_beyond_the_limit_are_dropped_or_refused_when_a_queue_is_full(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    dropping, refusing = name("dropping"), name("refusing")
    topology = (
        Topology()
        .queue(dropping, Classic(max_length=2, overflow="drop-head"))
        .queue(refusing, Classic(max_length=2, overflow="reject-publish"))
    )
    await client.declare(topology)
    async with client.producer() as producer:
        assert await producer.publish_batch(range(4), dropping)
        result = await producer.publish_batch(range(4), refusing)
        assert [result.outcome(index).name for index in range(4)] == ["CONFIRMED", "CONFIRMED", "NACKED", "NACKED"]
        with pytest.raises(leveret.PublishError) as refused:
            await producer.publish(4, refusing)
        assert (refused.value.outcome.name, refused.value.delivery_tag) == ("NACKED", 9)
        assert producer.counters()["nacked"] == 3
    assert await taken(client, dropping) == [2, 3]
    assert await taken(client, refusing) == [0, 1]


# ---------------------------------------------------------------------- kinds of exchanges


async def test_messages_go_where_the_bindings_say_when_exchanges_differ(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    queues = {key: name(key) for key in ("one", "star", "hash", "all", "any")}
    exchanges = {kind: name(kind) for kind in ("direct", "topic", "fanout", "headers")}
    topology = Topology()
    for queue in queues.values():
        topology.queue(queue)
    for kind, exchange in exchanges.items():
        topology.exchange(exchange, kind)
    topology.bind(queues["one"], exchanges["direct"], "a.b")
    topology.bind(queues["one"], exchanges["topic"], "a.b")
    topology.bind(queues["star"], exchanges["topic"], "a.*")
    topology.bind(queues["hash"], exchanges["topic"], "a.#")
    topology.bind(queues["all"], exchanges["headers"], arguments={"x-match": "all", "a": 1, "b": 2})
    topology.bind(queues["any"], exchanges["headers"], arguments={"x-match": "any", "a": 1, "b": 2})
    topology.bind(queues["star"], exchanges["fanout"], "ignored")
    topology.bind(queues["hash"], exchanges["fanout"])
    await client.declare(topology)

    async with client.producer(mandatory=False) as producer:
        for key in ("a", "a.b", "a.b.c"):
            await producer.publish(f"direct {key}", key, exchange=exchanges["direct"])
            await producer.publish(f"topic {key}", key, exchange=exchanges["topic"])
        await producer.publish("fanout", "whatever", exchange=exchanges["fanout"])
        await producer.publish("one header", exchange=exchanges["headers"], headers={"a": 1})
        await producer.publish("both headers", exchange=exchanges["headers"], headers={"a": 1, "b": 2})

    assert {key: await taken(client, queue) for key, queue in queues.items()} == {
        "one": ["direct a.b", "topic a.b"],
        "star": ["topic a.b", "fanout"],
        "hash": ["topic a", "topic a.b", "topic a.b.c", "fanout"],
        "all": ["both headers"],
        "any": ["one header", "both headers"],
    }


async def test_a_message_goes_on_when_exchanges_are_bound_to_each_other(
    client: leveret.Client, queue: str, name: Callable[[str], str]
) -> None:
    source, destination = name("source"), name("destination")
    report = await client.declare(
        Topology()
        .exchange(source, "topic")
        .exchange(destination, "fanout", internal=True)
        .bind_exchange(destination, source, "order.#")
        .bind(queue, destination)
    )
    assert report.bindings == 2
    async with client.producer(exchange=source, mandatory=True) as producer:
        await producer.publish("routed", "order.created")
        with pytest.raises(leveret.PublishError):
            await producer.publish("not routed", "invoice.created")
        # An internal exchange takes messages from exchanges only.
        with pytest.raises(AccessRefused, match=destination):
            await producer.publish("direct", exchange=destination)
    assert await taken(client, queue) == ["routed"]

    channel = await client.channel()
    await channel.exchange_unbind(destination, source, "order.#")
    await channel.queue_unbind(queue, destination)
    await channel.close()


# ---------------------------------------------------------------------- purge, delete


async def test_the_number_of_messages_is_told_when_a_queue_is_purged_or_deleted(
    client: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer:
        await producer.publish_batch(range(5), queue)
        assert await client.purge(queue) == 5
        await producer.publish_batch(range(3), queue)
    assert await client.delete_queue(queue) == 3
    assert await client.delete_queue(queue) == 0
    with pytest.raises(NotFound):
        await client.purge(queue)


async def test_conditions_are_kept_when_something_is_deleted(
    client: leveret.Client, queue: str, name: Callable[[str], str]
) -> None:
    exchange = name("exchange")
    await client.declare(Topology().exchange(exchange).bind(queue, exchange, "key"))
    async with client.producer() as producer:
        await producer.publish(1, queue)
    with pytest.raises(PreconditionFailed):
        await (await client.channel()).queue_delete(queue, if_empty=True)
    with pytest.raises(PreconditionFailed):
        await (await client.channel()).exchange_delete(exchange, if_unused=True)
    await client.delete_exchange(exchange)
    await client.delete_queue(queue)


# ---------------------------------------------------------------------- cancellation


async def test_the_channel_gives_the_right_answers_when_a_declare_before_was_cancelled(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    queues = [name("queue") for _ in range(10)]
    channel = await client.channel()
    for cancelled, kept in zip(queues[::2], queues[1::2], strict=True):
        task = asyncio.create_task(channel.queue_declare(cancelled))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await channel.queue_declare(kept)).queue == kept
    await channel.close()


async def test_channels_are_not_used_up_when_declares_are_cancelled(broker: Broker, name: Callable[[str], str]) -> None:
    queue = name("queue")
    async with leveret.connect(broker.url, channel_max=3) as client:
        for turns in range(20):
            task = asyncio.create_task(client.declare(Topology().queue(queue)))
            for _ in range(turns % 10):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            # A channel that was being opened is closed as soon as the broker has opened it.
            await client.declare(Topology().queue(queue))


async def test_a_declaration_that_fits_no_frame_is_refused_and_the_channel_goes_on(
    client: leveret.Client, name: Callable[[str], str]
) -> None:
    channel = await client.channel()
    with pytest.raises(EncodeFailed, match=r"queue.declare takes \d+ bytes; the negotiated frame_max is 131072"):
        await channel.queue_declare(name("queue"), arguments={"comment": "x" * 200_000})
    assert (await channel.queue_declare(name("queue"), arguments={"comment": "x" * 1000})).message_count == 0
