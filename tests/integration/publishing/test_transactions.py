"""Transactions: everything when the block ends, nothing when it does not, and the truth when nobody can know."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Channel, Confirm, Tx
from tests.support.loops import every_loop
from tests.support.peers import FakeServer, Peer
from tests.support.queues import taken

import leveret
from leveret import Classic, Outcome, Topology
from leveret.errors import (
    BodyTooLarge,
    ChannelClosed,
    ConfigurationError,
    ConfirmTimeout,
    ConnectionClosed,
    ConnectionLost,
    EncodeFailed,
    ExchangeNotFound,
    MessageReturned,
    NotFound,
    PreconditionFailed,
    PublishError,
    WrongLoopError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.brokers import Broker

    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.fixture
async def producer(client: leveret.Client) -> AsyncIterator[leveret.Producer]:
    async with client.producer() as opened:
        yield opened


@pytest.fixture
async def hasty(broker: Broker, name: Callable[[str], str]) -> AsyncIterator[leveret.Client]:
    """A client that does not wait long for the answer of a broker that blocks; afterwards it does not block."""
    async with leveret.connect(broker.url, close_timeout=0.3) as connected:
        try:
            yield connected
        finally:
            await broker.unblock()


async def block(broker: Broker, producer: leveret.Producer, queue: str) -> None:
    """Has the broker block publishers; RabbitMQ says so to a connection that publishes, and may take that message."""
    await broker.block()
    while producer._connection.blocked is None:
        with contextlib.suppress(ConfirmTimeout):
            await producer.publish("tells that this connection publishes", queue, confirm_timeout=0.1)


async def ready(client: leveret.Client, queue: str) -> int:
    """How many messages the broker has in a queue."""
    channel = await client.channel()
    try:
        count = (await channel.queue_declare(queue, passive=True)).message_count
        assert count is not None
        return count
    finally:
        await channel.close()


async def read(producer: leveret.Producer) -> None:
    """Returns when the broker has read what the transaction published.

    A connection's frames are read in order, so it is whatever comes back for something behind it.
    """
    channel = await producer._connect()
    probe = await channel.channel()
    await probe.close()


# ---------------------------------------------------------------------- all


@every_loop
async def test_messages_are_in_the_queue_in_order_when_the_block_has_ended(
    producer: leveret.Producer, other: leveret.Client, queue: str
) -> None:
    async with producer.transaction() as transaction:
        for number in range(100):
            await transaction.publish({"id": number}, queue)
            assert transaction.count == number + 1
    assert transaction.count == 100
    assert await taken(other, queue) == [{"id": number} for number in range(100)]


async def test_nothing_is_visible_before_the_block_ends(
    producer: leveret.Producer, other: leveret.Client, queue: str
) -> None:
    async with producer.transaction() as transaction:
        await transaction.publish(1, queue)
        await transaction.publish(2, queue)
        await read(producer)
        assert await ready(other, queue) == 0
    assert await ready(other, queue) == 2


async def test_messages_have_their_options_when_published_in_a_transaction(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer(compressor="gzip") as producer:
        template = producer.template(queue, priority=3)
        async with producer.transaction() as transaction:
            await transaction.publish("a" * 5000, template, headers={"tenant": 7}, message_id="first")
            await transaction.publish("small", template)
    async with other.consumer(queue) as consumer:
        first, second = await anext(consumer), await anext(consumer)
        assert (first.value, first.priority, first.message_id) == ("a" * 5000, 3, "first")
        assert (first.content_encoding, first.headers) == ("gzip", {"tenant": 7, "original-size": 5002})
        assert (second.value, second.priority, second.headers) == ("small", 3, {})
        assert first.ack()
        assert second.ack()


async def test_more_than_the_socket_takes_is_committed(broker: Broker, other: leveret.Client, queue: str) -> None:
    async with (
        leveret.connect(broker.url, write_high_watermark=200_000, write_low_watermark=50_000) as client,
        client.producer(serializer="bytes") as producer,
        producer.transaction() as transaction,
    ):
        for number in range(100):
            await transaction.publish(bytes([number]) * 100_000, queue)
            assert client.connection.transport.pending_bytes < 500_000
    assert await taken(other, queue) == [bytes([number]) * 100_000 for number in range(100)]


async def test_nothing_is_sent_for_a_commit_when_the_block_was_empty() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select, Channel.Open)
        await peer.expect(Tx.Select)
        peer.send(Tx.SelectOk(), 2)
        await peer.answer(Channel.Close)  # no tx.commit before
        await peer.linger()

    async with FakeServer(script) as server, leveret.connect(server.url) as client, client.producer() as producer:
        async with producer.transaction() as transaction:
            pass
        assert transaction.count == 0


# ---------------------------------------------------------------------- nothing


async def test_nothing_is_in_the_queue_when_the_block_raises(
    producer: leveret.Producer, other: leveret.Client, queue: str
) -> None:
    async def transact() -> None:
        async with producer.transaction() as transaction:
            await transaction.publish(1, queue)
            await read(producer)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        await transact()
    assert await ready(other, queue) == 0
    # The producer is as it was.
    assert (await producer.publish("normal", queue)).delivery_tag == 1
    assert await taken(other, queue) == ["normal"]


async def test_nothing_is_in_the_queue_when_the_block_is_cancelled(
    producer: leveret.Producer, other: leveret.Client, queue: str
) -> None:
    published = asyncio.Event()

    async def publish() -> None:
        async with producer.transaction() as transaction:
            await transaction.publish(1, queue)
            published.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(publish())
    await published.wait()
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await ready(other, queue) == 0
    async with producer.transaction() as transaction:
        await transaction.publish("another", queue)
    assert await taken(other, queue) == ["another"]


@pytest.mark.parametrize("turns", range(6))
async def test_all_or_nothing_is_in_the_queue_when_cancelled_at_any_moment(
    producer: leveret.Producer, other: leveret.Client, queue: str, turns: int
) -> None:
    async def publish() -> None:
        async with producer.transaction() as transaction:
            for number in range(10):
                await transaction.publish(number, queue)

    channels = len(producer._connection._channels)
    task = asyncio.create_task(publish())
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await producer.publish("behind", queue)
    values = await taken(other, queue)
    assert values in (["behind"], [*range(10), "behind"])
    await read(producer)  # by then the answer to channel.close has come
    assert len(producer._connection._channels) == channels


async def test_nothing_is_committed_when_an_exchange_does_not_exist(
    producer: leveret.Producer, other: leveret.Client, queue: str
) -> None:
    async def transact() -> None:
        async with producer.transaction() as transaction:
            await transaction.publish("before", queue)
            await transaction.publish("nowhere", "key", exchange="missing")
            await transaction.publish("behind", queue)

    with pytest.raises(ExchangeNotFound, match="no exchange 'missing'") as refused:
        await transact()
    error = refused.value
    assert isinstance(error, NotFound)
    assert (error.outcome, error.reply_code, error.class_id, error.method_id) == (Outcome.NOT_SENT, 404, 60, 40)
    assert isinstance(error.__cause__, NotFound)
    assert await ready(other, queue) == 0
    assert (await producer.publish("normal", queue)).outcome is Outcome.CONFIRMED


async def test_the_next_publish_tells_when_an_exchange_does_not_exist(
    producer: leveret.Producer, other: leveret.Client, queue: str
) -> None:
    transaction = producer.transaction()

    async def transact() -> None:
        async with transaction:
            await transaction.publish("nowhere", "key", exchange="missing")
            await read(producer)
            with pytest.raises(ExchangeNotFound):
                await transaction.publish("behind", queue)
            # Whoever looks away in the block is told when it ends.

    with pytest.raises(ExchangeNotFound, match="no exchange 'missing'") as refused:
        await transact()
    assert refused.value.outcome is Outcome.NOT_SENT
    assert transaction.count == 1
    assert await ready(other, queue) == 0


async def test_nothing_is_committed_when_the_connection_is_lost_before_the_commit(
    proxy: FaultProxy, other: leveret.Client, queue: str
) -> None:
    async with leveret.connect(proxy.url) as client, client.producer() as producer:

        async def transact() -> None:
            async with producer.transaction() as transaction:
                await transaction.publish(1, queue)
                channel = await client.channel()
                proxy.reset()
                with pytest.raises(ConnectionLost):
                    await channel.basic_qos(1)

        with pytest.raises(PublishError, match="nothing was committed") as lost:
            await transact()
        assert lost.value.outcome is Outcome.NOT_SENT
        assert isinstance(lost.value.__cause__, ConnectionLost)
        # The next one has the next connection.
        async with producer.transaction() as transaction:
            await transaction.publish(2, queue)
    assert await taken(other, queue) == [2]


async def test_nothing_is_committed_when_the_client_is_closed_in_the_block(
    broker: Broker, other: leveret.Client, queue: str
) -> None:
    client = await leveret.connect(broker.url)
    producer = await client.producer().open()

    async def transact() -> None:
        async with producer.transaction() as transaction:
            await transaction.publish(1, queue)
            await client.close()

    with pytest.raises(PublishError, match="nothing was committed") as closed:
        await transact()
    assert closed.value.outcome is Outcome.NOT_SENT
    assert isinstance(closed.value.__cause__, ConnectionClosed)
    assert await ready(other, queue) == 0


# ---------------------------------------------------------------------- nobody knows, or not all


async def test_the_others_are_committed_when_mandatory_messages_come_back(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer(mandatory=True) as producer:
        transaction = producer.transaction()

        async def transact() -> None:
            async with transaction:
                await transaction.publish("first", queue)
                await transaction.publish("lost", "nowhere")
                await transaction.publish("lost", "nowhere else")
                await transaction.publish("last", queue)

        with pytest.raises(MessageReturned, match=r"without 2 of 4 messages.*NO_ROUTE") as returned:
            await transact()
    error = returned.value
    assert (error.outcome, error.reply_code, error.routing_key) == (Outcome.RETURNED, 312, "nowhere")
    assert [message.routing_key for message in transaction.returned_messages] == ["nowhere", "nowhere else"]
    assert [message.body for message in transaction.returned_messages] == [b'"lost"', b'"lost"']
    assert await taken(other, queue) == ["first", "last"]


async def test_the_outcome_is_unknown_when_the_connection_is_lost_during_the_commit(
    proxy: FaultProxy, other: leveret.Client, queue: str
) -> None:
    async with leveret.connect(proxy.url) as client, client.producer() as producer:

        async def publish() -> None:
            async with producer.transaction() as transaction:
                await transaction.publish(1, queue)
                proxy.swallow()  # the commit goes out, and its answer does not come

        task = asyncio.create_task(publish())
        async with asyncio.timeout(5):
            while not await ready(other, queue):  # now the broker has committed
                pass
        assert not task.done()
        proxy.reset()
        with pytest.raises(PublishError, match="may be committed") as lost:
            await task
        assert lost.value.outcome is Outcome.UNKNOWN
        assert isinstance(lost.value.__cause__, ConnectionLost)
    assert await taken(other, queue) == [1]


async def test_the_outcome_is_unknown_when_the_commit_is_not_answered_in_time(
    proxy: FaultProxy, other: leveret.Client, queue: str
) -> None:
    async with leveret.connect(proxy.url, operation_timeout=0.3, close_timeout=0.3) as client:
        producer = await client.producer(confirm_timeout=0.3).open()

        async def transact() -> None:
            async with producer.transaction() as transaction:
                await transaction.publish(1, queue)
                proxy.swallow()

        with pytest.raises(ConfirmTimeout, match=r"operation_timeout of 0\.3 s") as late:
            await transact()
        assert (late.value.outcome, late.value.stage) == (Outcome.UNKNOWN, "confirm")
    assert await taken(other, queue) == [1]  # here it was


async def test_the_outcome_is_unknown_when_a_queue_refuses_a_message(
    client: leveret.Client, producer: leveret.Producer, other: leveret.Client, name: Callable[[str], str], queue: str
) -> None:
    full = name("full")
    await client.declare(Topology().queue(full, Classic(max_length=1, overflow="reject-publish")))
    await producer.publish("fills it", full)

    async def transact() -> None:
        async with producer.transaction() as transaction:
            await transaction.publish("taken", queue)
            await transaction.publish("refused", full)

    with pytest.raises(PublishError, match="may be committed, all or a part of it") as refused:
        await transact()
    assert refused.value.outcome is Outcome.UNKNOWN
    assert isinstance(refused.value.__cause__, PreconditionFailed)
    assert await ready(other, full) == 1
    assert await taken(other, queue) == ["taken"]


async def test_it_waits_and_names_the_stage_when_the_broker_blocks(
    broker: Broker, hasty: leveret.Client, other: leveret.Client, queue: str
) -> None:
    producer = await hasty.producer(publish_timeout=0.3).open()

    async def transact() -> None:
        async with producer.transaction() as transaction:
            await transaction.publish("before", queue)
            await block(broker, producer, queue)
            with pytest.raises(PublishError, match="blocks publishers") as in_the_block:
                await transaction.publish("blocked", queue)
            assert (in_the_block.value.outcome, in_the_block.value.stage) == (Outcome.NOT_SENT, "blocked")
            assert transaction.count == 1

    with pytest.raises(PublishError, match=r"waited publish_timeout of 0\.3 s") as at_the_end:
        await transact()
    assert (at_the_end.value.outcome, at_the_end.value.stage) == (Outcome.NOT_SENT, "blocked")
    await broker.unblock()
    await hasty.close()
    assert "before" not in await taken(other, queue)


async def test_it_goes_on_when_the_broker_does(
    broker: Broker, hasty: leveret.Client, other: leveret.Client, queue: str
) -> None:
    producer = await hasty.producer().open()
    async with producer.transaction() as transaction:
        await block(broker, producer, queue)
        publishing = asyncio.create_task(transaction.publish("after", queue))
        await asyncio.sleep(0)
        assert not publishing.done()
        await broker.unblock()
        await publishing
    assert (await taken(other, queue))[-1] == "after"


# ---------------------------------------------------------------------- beside others


async def test_two_transactions_of_one_producer_do_not_see_each_other(
    producer: leveret.Producer, other: leveret.Client, queue: str
) -> None:
    async with producer.transaction() as outer:
        await outer.publish("outer", queue)
        async with producer.transaction() as inner:
            await inner.publish("inner", queue)
        assert await ready(other, queue) == 1

        async def transact() -> None:
            async with producer.transaction() as undone:
                await undone.publish("undone", queue)
                _ = 1 / 0

        with pytest.raises(ZeroDivisionError):
            await transact()
    assert await taken(other, queue) == ["inner", "outer"]


async def test_publishings_beside_a_transaction_are_confirmed_at_once(
    producer: leveret.Producer, other: leveret.Client, queue: str
) -> None:
    async with producer.transaction() as transaction:
        await transaction.publish("committed", queue)
        assert (await producer.publish("beside", queue)).delivery_tag == 1
        assert await ready(other, queue) == 1
    assert producer.next_delivery_tag == 2
    assert producer.counters()["published"] == 1
    assert await taken(other, queue) == ["beside", "committed"]


async def test_the_transaction_goes_on_when_the_producer_loses_its_channel(
    producer: leveret.Producer, other: leveret.Client, queue: str
) -> None:
    async with producer.transaction() as transaction:
        await transaction.publish("first", queue)
        with pytest.raises(ExchangeNotFound):
            await producer.publish("nowhere", "key", exchange="missing")
        await transaction.publish("second", queue)
    assert await taken(other, queue) == ["first", "second"]


async def test_a_producer_without_confirms_has_transactions(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer(confirms=False) as producer, producer.transaction() as transaction:
        await transaction.publish(1, queue)
    assert await taken(other, queue) == [1]


# ---------------------------------------------------------------------- wrong


async def test_nothing_is_written_when_a_value_or_an_option_does_not_fit(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer(max_body_size=100) as producer, producer.transaction() as transaction:
        await transaction.publish(1, queue)
        connection = client.connection
        connection.transport.flush()
        sent = connection.sent_bytes
        wrong: list[tuple[type[Exception], Any, str, dict[str, Any]]] = [
            (EncodeFailed, object(), queue, {}),
            (BodyTooLarge, "x" * 200, queue, {}),
            (EncodeFailed, 1, "k" * 256, {}),
            (EncodeFailed, 1, queue, {"priority": 256}),
            (EncodeFailed, 1, queue, {"headers": {"large": "x" * 200_000}}),
            (ConfigurationError, 1, queue, {"prioritaet": 1}),
            (ConfigurationError, 1, queue, {"confirm_timeout": 1.0}),
        ]
        for kind, value, key, options in wrong:
            with pytest.raises(kind):
                await transaction.publish(value, key, **options)
        connection.transport.flush()
        assert connection.sent_bytes == sent
        assert transaction.count == 1
        await transaction.publish(2, queue)
    assert await taken(other, queue) == [1, 2]


async def test_nothing_can_be_published_when_the_block_has_not_begun_or_has_ended(
    producer: leveret.Producer, other: leveret.Client, queue: str
) -> None:
    transaction = producer.transaction()
    for state in ("has not begun", "has ended"):
        with pytest.raises(PublishError, match=state) as refused:
            await transaction.publish(1, queue)
        assert refused.value.outcome is Outcome.NOT_SENT
        if state == "has not begun":
            async with transaction:
                pass
    with pytest.raises(ConfigurationError, match="entered once"):
        await transaction.__aenter__()
    assert await ready(other, queue) == 0


async def test_what_still_waits_is_not_sent_when_the_block_has_ended(
    broker: Broker, hasty: leveret.Client, other: leveret.Client, queue: str
) -> None:
    producer = await hasty.producer().open()
    late: list[asyncio.Task[None]] = []

    async def transact() -> None:
        async with producer.transaction() as transaction:
            await block(broker, producer, queue)
            late.append(asyncio.create_task(transaction.publish("too late", queue)))
            await asyncio.sleep(0)
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        await transact()
    await broker.unblock()
    with pytest.raises(PublishError) as refused:
        await late[0]
    assert refused.value.outcome is Outcome.NOT_SENT
    assert "too late" not in await taken(other, queue)


@pytest.mark.parametrize("state", ["not open", "closed"])
async def test_no_transaction_begins_when_the_producer_is_not_open_or_closed(
    client: leveret.Client, state: str
) -> None:
    producer = client.producer()
    if state == "closed":
        await producer.open()
        await producer.close()

    async def transact() -> None:
        async with producer.transaction():
            pass

    with pytest.raises(PublishError, match=state) as refused:
        await transact()
    assert refused.value.outcome is Outcome.NOT_SENT


async def test_no_transaction_begins_when_all_channels_are_in_use(
    broker: Broker, other: leveret.Client, queue: str
) -> None:
    async with leveret.connect(broker.url, channel_max=2) as client, client.producer() as producer:
        async with producer.transaction() as transaction:
            await transaction.publish("committed", queue)
            with pytest.raises(ConfigurationError, match=r"all 2 channels .*channel_max"):
                await producer.transaction().__aenter__()
        async with producer.transaction() as another:
            await another.publish("committed behind it", queue)
    assert await taken(other, queue) == ["committed", "committed behind it"]


async def test_no_transaction_begins_when_the_broker_refuses_it() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select, Channel.Open)
        await peer.expect(Tx.Select)
        peer.send(Channel.Close(540, "NOT_IMPLEMENTED", 90, 10), 2)
        await peer.expect(Channel.CloseOk)
        await peer.linger()

    async with FakeServer(script) as server, leveret.connect(server.url) as client, client.producer() as producer:

        async def transact() -> None:
            async with producer.transaction():
                pass

        with pytest.raises(ChannelClosed, match=r"tx\.select: 540"):
            await transact()


async def test_nothing_is_committed_when_the_channel_is_lost_as_soon_as_it_is_open() -> None:
    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select, Channel.Open)
        await peer.expect(Tx.Select)
        # Both in one write, so that nobody runs between them.
        peer.send(Tx.SelectOk(), 2)
        peer.send(Channel.Close(541, "INTERNAL_ERROR", 0, 0), 2)
        await peer.expect(Channel.CloseOk)
        await peer.linger()

    async with FakeServer(script) as server, leveret.connect(server.url) as client, client.producer() as producer:

        async def transact() -> None:
            async with producer.transaction() as transaction:
                await transaction.publish(1, "queue")

        with pytest.raises(PublishError, match=r"nothing was committed.*541"):
            await transact()


async def test_another_event_loop_is_refused(producer: leveret.Producer, other: leveret.Client, queue: str) -> None:
    async with producer.transaction() as transaction:
        with pytest.raises(WrongLoopError):
            await asyncio.to_thread(asyncio.run, transaction.publish(1, queue))
        await transaction.publish(2, queue)
    assert await taken(other, queue) == [2]
