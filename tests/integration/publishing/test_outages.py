"""While there is no connection publishings wait or are kept, each within its deadline; then they go in their order."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Confirm
from pamqp.header import ContentHeader
from tests.support.outcomes import awaited, failure
from tests.support.peers import ANSWERS, FakeServer, Peer
from tests.support.queues import messages, taken

import leveret
from leveret import Outcome
from leveret.errors import (
    BackpressureError,
    ConnectionClosed,
    EncodeFailed,
    LeveretError,
    MessageNacked,
    PublishError,
    TransportError,
)
from leveret.plugins.interfaces import RetryPolicy
from leveret.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tests.support.brokers import Broker

    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.fixture
async def patient(proxy: FaultProxy) -> AsyncIterator[leveret.Client]:
    """A client behind the proxy that tries again often."""
    async with leveret.connect(
        proxy.url, close_timeout=0.5, recovery_initial_delay=0.01, recovery_max_delay=0.05
    ) as connected:
        yield connected


async def anything(call: Awaitable[Any]) -> Any:
    return await call


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - there is no event for this
            await asyncio.sleep(0.001)


async def cut(proxy: FaultProxy, client: leveret.Client) -> None:
    """Ends the connection; no other one can be made until the proxy accepts again."""
    proxy.refuse()
    proxy.reset()
    await client.connection._ended


async def publish_in_a_transaction(producer: leveret.Producer, queue: str) -> None:
    async with producer.transaction() as transaction:
        await transaction.publish("transaction", queue)


async def publish_with_a_new_producer(client: leveret.Client, queue: str) -> leveret.Receipt:
    async with client.producer() as producer:
        return await producer.publish("new producer", queue)


async def test_every_form_waits_for_the_connection_and_then_succeeds(
    proxy: FaultProxy, patient: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with patient.producer() as producer:
        await patient.message("before").queue(queue).publish()
        await cut(proxy, patient)
        kept = producer.publish_nowait("nowait", queue)
        also = await producer.enqueue("enqueue", queue)
        calls: list[Awaitable[Any]] = [
            producer.publish("publish", queue),
            producer.publish_batch(["batch"], queue),
            publish_in_a_transaction(producer, queue),
            publish_with_a_new_producer(patient, queue),
            patient.message("fluent").queue(queue).publish(),
        ]
        tasks = [asyncio.create_task(anything(call)) for call in calls]
        done, _ = await asyncio.wait(tasks, timeout=0.2)
        assert not done
        assert not kept.done
        assert not also.done
        proxy.accept()
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks, awaited(kept), awaited(also))
        assert producer.counters()["unknown"] == 0
    found = await taken(other, queue)
    assert sorted(found) == sorted(
        ["before", "nowait", "enqueue", "publish", "batch", "transaction", "new producer", "fluent"]
    )
    assert found.index("nowait") < found.index("enqueue") < found.index("publish") < found.index("batch")


async def test_the_first_fluent_message_waits_as_well(
    proxy: FaultProxy, patient: leveret.Client, other: leveret.Client, queue: str
) -> None:
    await cut(proxy, patient)
    task = asyncio.create_task(patient.message("fluent").queue(queue).publish())
    done, _ = await asyncio.wait([task], timeout=0.1)
    assert not done
    proxy.accept()
    assert (await task).outcome is Outcome.CONFIRMED
    assert await taken(other, queue) == ["fluent"]


@pytest.mark.parametrize("form", ["publish", "nowait", "enqueue", "batch", "transaction", "new", "fluent", "first"])
async def test_every_form_ends_at_its_deadline_with_a_publish_error(proxy: FaultProxy, queue: str, form: str) -> None:
    settings = Settings(
        connection=leveret.ConnectionSettings.from_url(proxy.url, close_timeout=0.5),
        producer=leveret.ProducerSettings(publish_timeout=0.3),
    )
    async with leveret.connect(settings) as client, client.producer() as producer:
        if form == "fluent":
            await client.message("before").queue(queue).publish()
        await cut(proxy, client)
        started = time.monotonic()
        error: Any
        if form == "publish":
            error = await failure(producer.publish(1, queue))
        elif form == "nowait":
            error = await failure(awaited(producer.publish_nowait(1, queue)))
        elif form == "enqueue":
            error = await failure(awaited(await producer.enqueue(1, queue)))
        elif form == "batch":
            error = (await producer.publish_batch([1], queue)).failures[0]
        elif form == "transaction":
            error = await failure(publish_in_a_transaction(producer, queue))
        elif form == "new":
            error = await failure(publish_with_a_new_producer(client, queue))
        else:
            error = await failure(client.message(1).queue(queue).publish())
        assert 0.25 < time.monotonic() - started < 3
        assert isinstance(error, PublishError), error
        assert (error.outcome, error.stage) == (Outcome.NOT_SENT, "connection")
        # Why there is no connection.
        assert isinstance(error.__cause__, TransportError | ConnectionClosed)
        assert str(error.__cause__) in str(error)
        proxy.accept()


async def test_every_form_fails_at_once_with_a_publish_error_when_nothing_recovers(
    proxy: FaultProxy, queue: str
) -> None:
    async with leveret.connect(proxy.url, close_timeout=0.5, auto_recovery=False) as client:
        producer = await client.producer().open()
        await client.message("before").queue(queue).publish()
        await cut(proxy, client)
        with pytest.raises(PublishError) as refused:
            producer.publish_nowait(1, queue)
        assert refused.value.outcome is Outcome.NOT_SENT
        for call in (
            producer.publish(1, queue),
            producer.enqueue(1, queue),
            publish_in_a_transaction(producer, queue),
            client.message(1).queue(queue).publish(),
        ):
            error = await failure(call)
            assert isinstance(error, PublishError), error
            assert error.outcome is Outcome.NOT_SENT
        await producer.close()
        proxy.accept()


async def test_what_is_kept_is_bounded_as_when_connected(
    proxy: FaultProxy, patient: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with (
        patient.producer(max_buffered=10) as few,
        patient.producer(serializer="bytes", max_outstanding_bytes=1000) as small,
        patient.producer(confirms=False, max_buffered=10) as unconfirmed,
    ):
        await cut(proxy, patient)
        tickets = [few.publish_nowait(n, queue) for n in range(10)]
        with pytest.raises(BackpressureError, match=r"10 publishings .*limit 10"):
            few.publish_nowait("refused", queue)
        tickets += [small.publish_nowait(bytes(500), queue) for _ in range(2)]
        with pytest.raises(BackpressureError, match="1000 bytes"):
            small.publish_nowait(b"", queue)
        tickets += [unconfirmed.publish_nowait(n, queue) for n in range(10)]
        with pytest.raises(BackpressureError, match=r"10 publishings .*limit 10"):
            unconfirmed.publish_nowait("refused", queue)
        proxy.accept()
        await asyncio.gather(*(awaited(ticket) for ticket in tickets))
        assert unconfirmed.outstanding == 0
        assert [producer.counters()["published"] for producer in (few, small, unconfirmed)] == [10, 2, 10]
        await unconfirmed.flush()
    assert await other.purge(queue) == 22


async def test_nothing_is_sent_again_without_confirms(
    proxy: FaultProxy, patient: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with patient.producer(confirms=False) as producer:
        assert (await producer.publish("written", queue)).outcome is Outcome.UNKNOWN
        await flushed_through(producer)
        await cut(proxy, patient)
        kept = producer.publish_nowait("kept", queue)
        proxy.accept()
        assert (await kept).outcome is Outcome.UNKNOWN
        await flushed_through(producer)
    found = await messages(other, queue)
    assert [message.value for message in found] == ["written", "kept"]
    assert all("x-leveret-resent" not in (message.headers or {}) for message in found)


async def flushed_through(producer: leveret.Producer) -> None:
    """Returns when the broker has read what was written: it answers what comes behind on the same connection."""
    await (await producer._connection.channel()).close()


async def test_what_was_in_flight_ends_unknown_and_what_was_kept_goes_when_nothing_is_sent_again(
    proxy: FaultProxy, patient: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with patient.producer(on_loss="unknown") as producer:
        await producer.publish("before", queue)
        proxy.swallow()
        in_flight = [producer.publish_nowait(n, queue) for n in range(5)]
        await asyncio.sleep(0)
        await cut(proxy, patient)
        await until(lambda: all(ticket.done for ticket in in_flight))
        kept = producer.publish_nowait("kept", queue)
        proxy.resume()
        proxy.accept()
        for ticket in in_flight:
            error = await failure(awaited(ticket))
            assert isinstance(error, PublishError)
            assert (error.outcome, error.attempts) == (Outcome.UNKNOWN, 1)
        assert (await kept).attempts == 1
    found = await messages(other, queue)
    assert all("x-leveret-resent" not in (message.headers or {}) for message in found)
    values = [message.value for message in found]
    assert (values[0], values[-1]) == ("before", "kept")
    assert len(values) == len(set(values))


async def test_the_count_grows_with_every_loss() -> None:
    headers: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        await peer.expect(Basic.Publish)
        headers.append((await peer.expect(ContentHeader)).properties.headers)
        await peer.expect(ContentBody)
        if len(headers) < 4:
            peer.hang_up()
            return
        peer.send(Basic.Ack(1), 1)
        await peer.linger()

    async with FakeServer(script) as server, leveret.connect(server.url) as client, client.producer() as producer:
        receipt = await producer.publish(1, "q", headers={"tenant": 7})
    assert receipt.attempts == 4
    assert headers == [{"tenant": 7}, *({"tenant": 7, "x-leveret-resent": count} for count in (1, 2, 3))]


class Twice(RetryPolicy):
    """Tries a second time, at once."""

    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        return 0.0 if attempt < 2 else None


async def answer_publishings(peer: Peer, answers: Callable[[int, Any], list[Any]]) -> None:
    """Confirms or refuses each publishing as told, and answers all requests."""
    count = 0
    while True:
        channel, value = await peer.receive()
        if isinstance(value, ContentHeader):
            if value.body_size:
                await peer.receive()
            count += 1
            for answer in answers(count, value):
                peer.send(answer, channel)
        elif getattr(value, "name", "") in ANSWERS:
            if isinstance(value, Channel.Open):
                count = 0
            peer.send(ANSWERS[value.name](value), channel)


async def test_what_a_retry_policy_publishes_again_says_so() -> None:
    headers: list[Any] = []

    async def script(peer: Peer) -> None:
        await peer.handshake()

        def answers(count: int, header: Any) -> list[Any]:
            headers.append(header.properties.headers)
            return [Basic.Nack(count) if count in (1, 3, 4) else Basic.Ack(count)]

        await answer_publishings(peer, answers)

    async with (
        FakeServer(script) as server,
        leveret.connect(server.url) as client,
        client.producer(retry=Twice()) as producer,
    ):
        receipt = await producer.publish(1, "q")
        assert receipt.attempts == 2
        result = await producer.publish_batch([1, 2, 3], "q", headers={"a": 1})
        assert result.confirmed == 3
    resent = [(each or {}).get("x-leveret-resent") for each in headers]
    assert resent == [None, 1, None, None, None, 1, 1]


async def test_a_message_that_the_header_makes_too_large_for_the_next_connection_ends_unknown() -> None:
    connections = 0

    async def script(peer: Peer) -> None:
        nonlocal connections
        connections += 1
        await peer.handshake(frame_max=4096)
        await peer.answer(Channel.Open, Confirm.Select)
        if connections == 1:
            for _ in range(3):
                await peer.expect(Basic.Publish)
                await peer.expect(ContentHeader)
                await peer.expect(ContentBody)
            peer.hang_up()
            return
        await answer_publishings(peer, lambda count, header: [Basic.Ack(count)])

    async with FakeServer(script) as server, leveret.connect(server.url) as client, client.producer() as producer:
        # 4096 bytes are the whole frame of its header.
        room = 4096 - 8 - 12 - 2 - len("application/json") - 1 - 1 - 4 - 2 - 1 - 4
        large = producer.template("q", headers={"x": "y" * room})
        tickets = [producer.publish_nowait("x", key) for key in ("q", large, "q")]
        ended = await asyncio.gather(*map(awaited, tickets), return_exceptions=True)
    assert [getattr(each, "outcome", None) for each in ended] == [
        Outcome.CONFIRMED,
        Outcome.UNKNOWN,
        Outcome.CONFIRMED,
    ]
    assert isinstance(ended[1], PublishError)
    assert isinstance(ended[1].__cause__, EncodeFailed)


# ---------------------------------------------------------------------------------------- nacks after a reconnect


class Refusing:
    """A server whose channels of one connection refuse everything, until enough of them were opened."""

    def __init__(self, good_from: int) -> None:
        self.connections = 0
        self.channels = 0
        self._good_from = good_from

    async def __call__(self, peer: Peer) -> None:
        self.connections += 1
        first = self.connections == 1
        await peer.handshake()
        opened = 0
        count: dict[int, int] = {}
        while True:
            channel, value = await peer.receive()
            if isinstance(value, Channel.Open):
                opened += 1
                self.channels += not first
                count[channel] = 0
                peer.send(Channel.OpenOk(), channel)
            elif isinstance(value, ContentHeader):
                await peer.receive()
                count[channel] += 1
                if first:
                    peer.hang_up()
                    return
                good = self.channels >= self._good_from
                peer.send(Basic.Ack(count[channel]) if good else Basic.Nack(count[channel]), channel)
            elif getattr(value, "name", "") in ANSWERS:
                peer.send(ANSWERS[value.name](value), channel)


async def test_nacks_right_after_a_reconnect_lead_to_another_channel_where_all_is_sent_again() -> None:
    script = Refusing(good_from=2)
    async with FakeServer(script) as server, leveret.connect(server.url) as client, client.producer() as producer:
        tickets = [producer.publish_nowait(n, "q") for n in range(20)]
        receipts = await asyncio.gather(*map(awaited, tickets))
        assert {receipt.outcome for receipt in receipts} == {Outcome.CONFIRMED}
        assert (script.connections, script.channels) == (2, 2)
        assert producer.counters()["nacked"] == 0


async def test_nacks_stand_when_the_other_channel_refuses_as_well() -> None:
    script = Refusing(good_from=1000)
    async with FakeServer(script) as server, leveret.connect(server.url) as client, client.producer() as producer:
        tickets = [producer.publish_nowait(n, "q") for n in range(20)]
        errors = await asyncio.gather(*map(awaited, tickets), return_exceptions=True)
        assert {type(error) for error in errors} == {MessageNacked}
        assert (script.connections, script.channels) == (2, 2)


async def test_nacks_of_a_full_queue_cost_one_channel_after_a_reconnect(
    broker: Broker, client: leveret.Client, other: leveret.Client, name: Callable[[str], str]
) -> None:
    full = name("full")
    await other.declare(leveret.Topology().queue(full, leveret.Classic(max_length=1, overflow="reject-publish")))
    async with client.producer() as producer:
        await producer.publish("fills it", full)
        connection = client.connection
        await broker.close_connections()
        await connection._ended
        for _ in range(3):
            error: LeveretError = await failure(producer.publish("refused", full))
            assert isinstance(error, MessageNacked)
        # Those of the first call on the new connection were sent again once, on another channel.
        assert error.attempts == 1  # type: ignore[attr-defined]
