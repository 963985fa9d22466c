"""What a user meets on one version of RabbitMQ and not on another: the rows of docs/rabbitmq-versions.md.

The embedded broker imitates RabbitMQ 3.10, so it runs through the same tests.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import until
from tests.support.queues import ready, taken

import leveret
from leveret import Classic, Quorum, Topology
from leveret.errors import PreconditionFailed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from tests.support.brokers import Broker
    from tests.support.rabbitmq import RabbitMQNode

    from leveret.wire.message import Message

pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.server_version]

MIB = 2**20


async def publish(client: leveret.Client, queue: str, *values: Any, **options: Any) -> None:
    async with client.producer() as producer:
        (await producer.publish_batch(values, queue, **options)).raise_for_failures()


async def deliveries(client: leveret.Client, queue: str, *, quiet: float = 0.7) -> AsyncGenerator[Message]:
    """The deliveries of a queue one by one, until none comes for a while."""
    async with client.consumer(queue, prefetch=1) as consumer:
        with contextlib.suppress(TimeoutError):
            while True:
                async with asyncio.timeout(quiet):
                    message = await anext(consumer)
                yield message


async def test_the_server_is_of_the_version_that_the_test_says(rabbitmq: RabbitMQNode) -> None:
    async with leveret.connect(rabbitmq.url) as client:
        version = client.connection.negotiated.server_properties["version"]
    assert version == ".".join(map(str, rabbitmq.version))


# ---------------------------------------------------------------------- sizes


@pytest.mark.parametrize("size", [16 * MIB, 16 * MIB + 1])
async def test_the_largest_body(client: leveret.Client, queue: str, broker: Broker, size: int) -> None:
    async with client.producer(serializer="bytes", max_body_size=128 * MIB) as producer:
        if broker.version < (4,) or size <= 16 * MIB:
            assert (await producer.publish(bytes(size), queue)).outcome is leveret.Outcome.CONFIRMED
            return
        with pytest.raises(leveret.PublishError, match=r"message size 16777217 is larger than .* 16777216") as refused:
            await producer.publish(bytes(size), queue)
        assert refused.value.outcome is leveret.Outcome.UNKNOWN
        # The broker closed the channel for it, and the producer goes on with another one.
        await producer.publish(b"next", queue)


async def test_the_defaults_that_the_page_names(rabbitmq: RabbitMQNode) -> None:
    names = ("max_message_size", "consumer_timeout")
    values = [await asyncio.to_thread(rabbitmq.ctl, "eval", f"application:get_env(rabbit, {each}).") for each in names]
    size = 134217728 if rabbitmq.version < (4,) else 16777216
    assert values == [f"{{ok,{size}}}", "{ok,1800000}"]


# ---------------------------------------------------------------------- messages that come back


@pytest.mark.parametrize("settle", ["requeue", "release"])
async def test_how_often_a_message_of_a_quorum_queue_comes_back_without_a_delivery_limit(
    client: leveret.Client, broker: Broker, name: Callable[[str], str], settle: str
) -> None:
    queue, dead = name("queue"), name("dead")
    await client.declare(
        Topology().queue(dead).queue(queue, Quorum(dead_letter_exchange="", dead_letter_routing_key=dead))
    )
    await publish(client, queue, 1)
    counted = broker.version >= (4,) and (settle == "requeue" or broker.version < (4, 3))
    counts = []
    async with contextlib.aclosing(deliveries(client, queue)) as coming:
        async for message in coming:
            counts.append((message.headers.get("x-delivery-count"), message.headers.get("x-acquired-count")))
            if len(counts) == 30:  # it would go on
                message.ack()
                break
            getattr(message, settle)()
    assert len(counts) == (21 if counted else 30)
    assert counts[0] == (None, None)
    if broker.version < (4, 3):
        assert counts[1:] == [(number, None) for number in range(1, len(counts))]
    else:
        assert counts[1:] == [(number if settle == "requeue" else None, number) for number in range(1, len(counts))]
    letters = await taken(client, dead)
    assert letters == ([1] if counted else [])


@pytest.mark.parametrize("end", ["close", "drain"])
async def test_whether_it_counts_that_a_consumer_ends_before_it_has_begun_with_a_message(
    client: leveret.Client, broker: Broker, name: Callable[[str], str], end: str
) -> None:
    queue = name("queue")
    await client.declare(Topology().queue(queue, Quorum()))
    await publish(client, queue, 1, 2)
    with contextlib.suppress(TimeoutError):
        for _ in range(45):
            async with client.consumer(queue, prefetch=2) as consumer, asyncio.timeout(1):
                (await anext(consumer)).release()  # the other one waits in the consumer, or is on its way to it
                if end == "drain":
                    await consumer.drain(5)
    # Draining gives it back with basic.nack; closing leaves that to the end of the channel.
    counted = broker.version >= (4,) and (end == "close" or broker.version < (4, 3))
    if not counted:
        await ready(client, queue, 2)
    left = await taken(client, queue)
    assert len(left) < 2 if counted else sorted(left) == [1, 2]


@pytest.mark.parametrize("settle", ["requeue", "release"])
async def test_a_delivery_limit_of_a_billion_is_none(
    client: leveret.Client, name: Callable[[str], str], settle: str
) -> None:
    queue = name("queue")
    await client.declare(Topology().queue(queue, Quorum(delivery_limit=1_000_000_000)))
    await publish(client, queue, 1)
    count = 0
    async with contextlib.aclosing(deliveries(client, queue)) as coming:
        async for message in coming:
            count += 1
            if count == 30:
                message.ack()
                break
            getattr(message, settle)()
    assert count == 30


@pytest.mark.parametrize("source", [Classic, Quorum])
@pytest.mark.parametrize("target", [Classic, Quorum])
async def test_whether_a_dead_letter_is_marked_redelivered_when_it_was_rejected(
    client: leveret.Client,
    broker: Broker,
    name: Callable[[str], str],
    source: type[Classic] | type[Quorum],
    target: type[Classic] | type[Quorum],
) -> None:
    queue, dead = name("queue"), name("dead")
    await client.declare(
        Topology().queue(dead, target()).queue(queue, source(dead_letter_exchange="", dead_letter_routing_key=dead))
    )
    await publish(client, queue, 1)
    async with asyncio.timeout(10), client.consumer(queue) as consumer:
        (await anext(consumer)).dead_letter()
    channel = await client.channel()
    async with asyncio.timeout(10):
        # RabbitMQ 4.3 does not mark some that a consumer of a classic queue is waiting for.
        while (await channel.queue_declare(dead, passive=True)).message_count == 0:  # noqa: ASYNC110 - a queue has no event
            await asyncio.sleep(0.01)
    await channel.close()
    calls: list[bool] = []
    consumer = client.consumer(dead, on_error=leveret.Requeue(), refused=leveret.DeadLetter())

    async def handler(value: int, message: leveret.Message) -> None:
        calls.append(message.redelivered)
        raise ValueError

    running = asyncio.create_task(consumer.run(handler))
    await until(lambda: consumer.counters()["rejected"])
    consumer.stop()
    await running
    marked = broker.version >= (4, 3) or (broker.version >= (4,) and source is Quorum and target is Quorum)
    # `Requeue` gives a message back once, unless it is marked: it is tried once less then.
    assert calls == ([True] if marked else [False, True])


# ---------------------------------------------------------------------- queues


async def test_the_order_of_priorities_in_a_quorum_queue(
    client: leveret.Client, broker: Broker, name: Callable[[str], str]
) -> None:
    queue = name("queue")
    await client.declare(Topology().queue(queue, Quorum()))
    async with client.producer() as producer:
        for number in range(12):
            await producer.publish(number, queue, priority=number % 6 * 2)
    order = []
    async with asyncio.timeout(10), client.consumer(queue, prefetch=1) as consumer:
        for _ in range(12):
            message = await anext(consumer)
            order.append(message.value)
            message.ack()
    if broker.version < (4,):
        assert order == [*range(12)]  # the priority means nothing
    elif broker.version < (4, 3):
        # Two classes, from 0 and from 5 on: two of the higher one, then one of the lower one.
        assert order == [3, 4, 0, 5, 9, 1, 10, 11, 2, 6, 7, 8]
    else:
        assert order == [5, 11, 4, 10, 3, 9, 2, 8, 1, 7, 0, 6]  # the highest first


async def test_the_first_storage_of_classic_queues(rabbitmq: RabbitMQNode, unique_name: Callable[[str], str]) -> None:
    topology = Topology().queue(queue := unique_name("queue"), Classic(arguments={"x-queue-version": 1}))
    async with leveret.connect(rabbitmq.url) as client:
        if rabbitmq.version < (4, 3):
            await client.declare(topology)
            await client.delete_queue(queue)
            return
        with pytest.raises(PreconditionFailed, match="unsupported queue version"):
            await client.declare(topology)


async def test_a_queue_may_be_transient_on_every_version(client: leveret.Client, name: Callable[[str], str]) -> None:
    # The notes of RabbitMQ 4.3.0 say that it refuses them; 4.3.6 with its defaults does not.
    queue = name("queue")
    await client.declare(Topology().queue(queue, durable=False))
    await publish(client, queue, 1)
    assert await taken(client, queue) == [1]
