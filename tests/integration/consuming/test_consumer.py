"""Consuming: what becomes of a message for each thing that a handler can do, and what is never acknowledged."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from pamqp.commands import Basic
from tests.support.conversation import PROTOCOL_HEADER, nested_table
from tests.support.handling import Queues, running
from tests.support.loops import every_loop
from tests.support.peers import Peer
from tests.support.servers import ON_EVERY_SERVER

import leveret
from leveret.errors import AccessRefused, ConfigurationError, ConsumerCancelled, DecodeFailed, NotFound

if TYPE_CHECKING:
    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


class Order(msgspec.Struct):
    id: int


# ---------------------------------------------------------------------- what a handler's result does


@pytest.mark.parametrize("result", [None, True])
async def test_a_message_is_gone_when_its_handler_returns_none_or_true(queues: Queues, result: bool | None) -> None:
    await queues.publish(*range(10))
    consumer = queues.client.consumer(queues.work)
    seen = []

    async def handler(value: int, message: leveret.Message) -> bool | None:
        assert value == message.value
        seen.append(value)
        if value == 9:
            consumer.stop()
        return result

    await consumer.run(handler)
    assert seen == list(range(10))
    assert consumer.counters() == {
        "delivered": 10,
        "acked": 10,
        "unsettled": 0,
        "undecodable": 0,
        "handler_errors": 0,
        "requeued": 0,
        "released": 0,
        "dead_lettered": 0,
        "delayed": 0,
        "parked": 0,
        "dropped": 0,
        "stale_acks": 0,
        "prefetch": 0,
        "expected": 0,
        "live": 0,
    }
    assert await queues.remaining() == []


async def test_a_message_is_dead_lettered_when_its_handler_returns_false(queues: Queues) -> None:
    await queues.publish("refused", "taken")
    consumer = queues.client.consumer(queues.work)

    async def handler(value: str, message: leveret.Message) -> bool:
        if value == "taken":
            consumer.stop()
        return value == "taken"

    await consumer.run(handler)
    assert await queues.dead_letters(1) == ["refused"]
    assert await queues.remaining() == []
    assert consumer.counters()["dead_lettered"] == 1


async def test_a_message_is_tried_twice_and_dead_lettered_when_its_handler_raises(
    queues: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    await queues.publish("poison", "good")
    consumer = queues.client.consumer(queues.work)
    seen: list[tuple[str, bool]] = []

    async def handler(value: str, message: leveret.Message) -> None:
        seen.append((value, message.redelivered))
        if value == "poison":
            if message.redelivered:
                consumer.stop()
            raise ValueError("the text of the application's error")

    await consumer.run(handler)
    assert sorted(seen) == [("good", False), ("poison", False), ("poison", True)]
    assert await queues.dead_letters(1) == ["poison"]
    assert await queues.remaining() == []
    counters = consumer.counters()
    assert (counters["handler_errors"], counters["requeued"], counters["dead_lettered"]) == (2, 1, 1)
    warnings = [record for record in caplog.records if record.name == "leveret.consuming"]
    assert len(warnings) == 2
    assert all("ValueError" in record.getMessage() for record in warnings)


async def test_not_every_failure_is_logged_when_thousands_fail(
    queues: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    count = 2000
    await queues.publish(*map(str, range(count)))
    consumer = queues.client.consumer(queues.work, on_error=leveret.ErrorPolicy({}, default=leveret.Drop()))
    failed = 0
    all_failed = asyncio.Event()

    async def handler(value: str, message: leveret.Message) -> None:
        nonlocal failed
        failed += 1
        if failed == count:
            all_failed.set()
        if failed > count:
            consumer.stop()
        raise ValueError

    began = time.monotonic()
    running = asyncio.create_task(consumer.run(handler))
    await all_failed.wait()
    seconds = time.monotonic() - began
    said = [record.getMessage() for record in caplog.records if "the handler failed" in record.getMessage()]
    assert 20 <= len(said) <= 20 * (seconds + 1), f"{len(said)} records in {seconds:.1f} s"
    # The next one that is logged says how many were not.
    await asyncio.sleep(1.1)
    await queues.publish("one more")
    await running
    assert "failures were not logged one by one" in caplog.text
    assert consumer.counters()["handler_errors"] == count + 1


async def test_the_consumer_goes_on_when_a_handler_returns_nonsense(queues: Queues) -> None:
    await queues.publish("nonsense", "good")
    consumer = queues.client.consumer(queues.work)

    async def handler(value: str, message: leveret.Message) -> Any:
        if message.redelivered:
            consumer.stop()
        return "ok" if value == "nonsense" else None

    await consumer.run(handler)
    assert await queues.dead_letters(1) == ["nonsense"]


async def test_the_consumer_goes_on_when_a_handler_cancels_itself(queues: Queues) -> None:
    await queues.publish("cancelled", "good")
    consumer = queues.client.consumer(queues.work)

    async def handler(value: str, message: leveret.Message) -> None:
        if message.redelivered:
            consumer.stop()
        if value == "cancelled":
            raise asyncio.CancelledError

    await consumer.run(handler)
    assert await queues.dead_letters(1) == ["cancelled"]


async def test_a_body_is_dead_lettered_and_counted_when_it_cannot_be_decoded(queues: Queues) -> None:
    await queues.publish({"id": "one"}, {"no": "id"}, {"id": 2})  # the first two are no orders
    async with queues.client.producer(serializer="bytes") as producer:
        await producer.publish(b"not JSON", queues.work, content_type="application/json")
        await producer.publish(b"<order/>", queues.work, content_type="application/xml")
        await producer.publish(b"\x1f\x8b", queues.work, content_type="application/json", content_encoding="gzip")
        await producer.publish(b'{"id": 3}', queues.work, content_type="application/json; charset=utf-8")
    consumer = queues.client.consumer(queues.work, Order)
    seen = []

    async def handler(order: Order, message: leveret.Message) -> None:
        seen.append(order.id)
        if order.id == 3:
            consumer.stop()

    await consumer.run(handler)
    assert seen == [2, 3]
    assert consumer.counters()["undecodable"] == 5
    assert consumer.counters()["dead_lettered"] == 5
    async with queues.client.consumer(queues.dead, serializer="bytes") as dead:
        bodies = []
        async with asyncio.timeout(5):
            while len(bodies) < 5:
                message = await anext(dead)
                bodies.append(message.body)
                message.ack()
    assert bodies == [b'{"id":"one"}', b'{"no":"id"}', b"not JSON", b"<order/>", b"\x1f\x8b"]
    assert await queues.remaining() == []


@pytest.mark.parametrize("broker", ON_EVERY_SERVER, indirect=True)
async def test_the_consumer_survives_when_a_message_has_headers_over_the_limits(queues: Queues, broker: Broker) -> None:
    # Our own publisher refuses to make such headers and the embedded broker to take them; others do not.
    await queues.publish("before")
    await publish_raw_headers(broker.url, queues.work, nested_table(100))
    await queues.publish("after")
    consumer = queues.client.consumer(queues.work)
    seen = []

    async def handler(value: str, message: leveret.Message) -> None:
        seen.append(value)
        if value == "after":
            consumer.stop()

    await consumer.run(handler)
    assert seen == ["before", "after"]
    assert consumer.counters()["undecodable"] == 1
    assert consumer.counters()["dead_lettered"] == 1


async def publish_raw_headers(url: str, queue: str, headers: bytes) -> None:
    """Publishes a message whose header table is exactly these bytes."""
    settings = leveret.ConnectionSettings.from_url(url)
    reader, writer = await asyncio.open_connection(settings.endpoints[0].host, settings.endpoints[0].port)
    peer = Peer(reader, writer)
    from pamqp.commands import Channel, Confirm, Connection

    peer.send_bytes(PROTOCOL_HEADER)
    await peer.expect(Connection.Start)
    peer.send(Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"))
    tune = await peer.expect(Connection.Tune)
    peer.send(Connection.TuneOk(tune.channel_max, tune.frame_max, 0))
    peer.send(Connection.Open("/"))
    await peer.expect(Connection.OpenOk)
    peer.send(Channel.Open(), 1)
    await peer.expect(Channel.OpenOk)
    peer.send(Confirm.Select(), 1)
    await peer.expect(Confirm.SelectOk)
    peer.send(Basic.Publish(exchange="", routing_key=queue), 1)
    payload = b"\0\x3c\0\0" + (2).to_bytes(8, "big") + b"\x20\0" + headers
    peer.send_bytes(b"\x02\0\1" + len(payload).to_bytes(4, "big") + payload + b"\xce")
    peer.send_bytes(b"\x03\0\1\0\0\0\2{}\xce")
    await peer.expect(Basic.Ack)
    peer.send(Connection.Close(200, "", 0, 0))
    await peer.expect(Connection.CloseOk)
    peer.hang_up()
    await writer.wait_closed()


async def test_a_handler_may_settle_its_message_when_it_knows_better(queues: Queues) -> None:
    await queues.publish("ack", "dead_letter", "requeue", "release", "last")
    consumer = queues.client.consumer(queues.work, prefetch=1)
    seen = []

    async def handler(value: str, message: leveret.Message) -> None:
        seen.append((value, message.redelivered))
        if value == "last":
            consumer.stop()
        elif message.redelivered:
            assert message.ack()
        else:
            settle = getattr(message, value)
            assert settle()
            assert not settle()  # settled is settled
            assert not message.ack()

    await consumer.run(handler)
    assert [pair for pair in seen if pair[0] in ("ack", "dead_letter")] == [("ack", False), ("dead_letter", False)]
    for verb in ("requeue", "release"):
        assert [pair for pair in seen if pair[0] == verb] == [(verb, False), (verb, True)]
    assert await queues.dead_letters(1) == ["dead_letter"]
    assert await queues.remaining() == []
    assert consumer.counters()["unsettled"] == 0


async def test_settling_twice_does_nothing_when_a_message_is_settled(queues: Queues) -> None:
    await queues.publish("once")
    async with queues.client.consumer(queues.work) as consumer:
        message = await consumer.get()
        assert message is not None
        assert await message.ack() is True
        for settle in (message.ack, message.requeue, message.release, message.dead_letter):
            assert await settle() is False
        # No second acknowledgement was sent: the broker would have closed the channel (406).
        assert await consumer.get() is None
    assert not message.ack()  # its channel is gone


@pytest.mark.parametrize("ack", ["coalesced", "none"])
async def test_nothing_is_left_on_the_broker_when_a_consumer_needs_no_acknowledgement(queues: Queues, ack: str) -> None:
    await queues.publish(*range(100))
    consumer = queues.client.consumer(queues.work, ack=ack)
    seen = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)
        if len(seen) == 50:
            consumer.stop()
        if ack == "none":
            assert not message.ack()

    await consumer.run(handler)
    assert seen == list(range(50))
    assert await queues.remaining() == ([] if ack == "none" else list(range(50, 100)))


@pytest.mark.parametrize("way", ["run", "run_and_fail", "run_undecodable", "async_for"])
async def test_everything_arrives_when_a_consumer_without_acknowledgements_is_slower_than_the_broker(
    queues: Queues, way: str
) -> None:
    # More than ten times the prefetch in the buffer stops reading from the socket; it has to go on again.
    count = 300
    values = [{"id": number} for number in range(count)]
    if way == "run_undecodable":
        values = [{"id": "wrong"}] * (count - 1) + [{"id": count - 1}]
    await queues.publish(*values)
    consumer = queues.client.consumer(queues.work, Order, ack="none", prefetch=1)
    seen = []

    async def handler(order: Order, message: leveret.Message) -> None:
        seen.append(order.id)
        if order.id == count - 1:
            consumer.stop()
        if way == "run_and_fail":
            raise ValueError("failed")

    async with asyncio.timeout(10):
        if way == "async_for":
            async for message in consumer:
                seen.append(message.value.id)
                if len(seen) == count:
                    consumer.stop()
            await consumer.close()
        else:
            await consumer.run(handler)
    assert seen == ([count - 1] if way == "run_undecodable" else list(range(count)))
    # The connection is shared: another consumer still hears from the broker.
    await queues.publish("more")
    assert await queues.remaining() == ["more"]


# ---------------------------------------------------------------------- stop, cancel, close


async def test_the_rest_goes_back_when_a_consumer_is_stopped(queues: Queues) -> None:
    await queues.publish(*range(20))
    consumer = queues.client.consumer(queues.work, prefetch=10)

    async def handler(value: int, message: leveret.Message) -> None:
        if value == 4:
            consumer.stop()

    await consumer.run(handler)
    assert await queues.remaining() == list(range(5, 20))


async def test_the_rest_goes_back_when_a_loop_is_stopped(queues: Queues) -> None:
    await queues.publish(*range(20))
    seen = []
    async with queues.client.consumer(queues.work) as consumer:
        async for message in consumer:
            seen.append(message.value)
            message.ack()
            if message.value == 4:
                consumer.stop()
    assert seen == list(range(5))
    assert await queues.remaining() == list(range(5, 20))


@every_loop
async def test_what_was_not_done_goes_back_when_run_is_cancelled(queues: Queues) -> None:
    await queues.publish(*range(10))
    consumer = queues.client.consumer(queues.work, concurrency=2)
    others_are_done = asyncio.Event()

    async def handler(value: int, message: leveret.Message) -> None:
        if value == 5:
            await asyncio.Event().wait()
        if value == 9:
            others_are_done.set()

    async with running(consumer, handler) as task:
        await others_are_done.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert consumer.counters()["acked"] == 9
    assert await queues.remaining() == [5]


async def test_run_ends_when_the_client_is_closed_elsewhere(broker: Broker, queues: Queues) -> None:
    await queues.publish("unfinished")
    started = asyncio.Event()
    finish = asyncio.Event()

    async def handler(value: str, message: leveret.Message) -> None:
        started.set()
        await finish.wait()

    async with leveret.connect(broker.url) as other:
        task = asyncio.create_task(other.consumer(queues.work).run(handler))
        await started.wait()
    finish.set()
    async with asyncio.timeout(5):
        await task
    assert await queues.remaining() == ["unfinished"]


async def test_no_connection_is_left_when_the_client_is_closed_while_a_consumer_connects(
    broker: Broker, queues: Queues
) -> None:
    client = await leveret.connect(broker.url)
    task = asyncio.create_task(anext(client.consumer(queues.work)))
    for _ in range(3):
        await asyncio.sleep(0)  # the consumer's connection is being made
    await client.close()
    async with asyncio.timeout(5):
        with pytest.raises((leveret.LeveretError, StopAsyncIteration)):
            await task
    link = client.consuming_link
    assert link.connection is None or not link.connection.is_open


# ---------------------------------------------------------------------- async for, get


async def test_the_next_message_comes_when_waiting_for_it_was_cancelled_before(queues: Queues) -> None:
    async with queues.client.consumer(queues.work) as consumer:
        for _ in range(5):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await anext(consumer)
        waiting = asyncio.create_task(anext(consumer))
        await asyncio.sleep(0)
        await queues.publish("at last")
        async with asyncio.timeout(5):
            message = await waiting
        assert message.value == "at last"
        message.ack()


async def test_the_next_task_gets_the_message_when_the_one_that_was_woken_for_it_is_cancelled(queues: Queues) -> None:
    await queues.publish("for one of them")
    async with queues.client.consumer(queues.work) as consumer:
        message = await anext(consumer)
        first = asyncio.create_task(anext(consumer))
        second = asyncio.create_task(anext(consumer))
        await asyncio.sleep(0)  # now both wait
        consumer._put_back([message])
        consumer._wake_more()
        first.cancel()  # its turn has come, and it has not run yet
        async with asyncio.timeout(5):
            assert await second is message
        message.ack()
        assert first.cancelled()


@pytest.mark.parametrize("turns", range(0, 16, 3))
async def test_the_next_message_comes_when_starting_was_cancelled(queues: Queues, turns: int) -> None:
    await queues.publish("here")
    async with queues.client.consumer(queues.work) as consumer:
        task = asyncio.create_task(anext(consumer))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(5):
            message = await anext(consumer) if task.cancelled() else task.result()
        assert message.value == "here"
        message.ack()
    assert await queues.remaining() == []


async def test_each_message_goes_to_one_of_them_when_several_tasks_take_from_a_consumer(queues: Queues) -> None:
    await queues.publish(*range(100))
    async with queues.client.consumer(queues.work, prefetch=10) as consumer:

        async def take() -> list[int]:
            values = []
            while len(values) < 25:
                message = await anext(consumer)
                values.append(message.value)
                assert message.ack()
            return values

        async with asyncio.timeout(10):
            taken = await asyncio.gather(*(take() for _ in range(4)))
    assert sorted(itertools.chain.from_iterable(taken)) == list(range(100))
    assert await queues.remaining() == []


async def test_every_message_can_be_settled_when_gets_run_at_once(queues: Queues) -> None:
    await queues.publish(*range(5))
    async with queues.client.consumer(queues.work) as consumer:
        messages = await asyncio.gather(*(consumer.get() for _ in range(6)))
        assert [message.value for message in messages if message] == list(range(5))
        assert messages[5] is None
        assert all(message.ack() for message in messages if message)
    assert await queues.remaining() == []


async def test_no_message_is_lost_when_a_get_is_cancelled(queues: Queues) -> None:
    # basic.get cannot be taken back: its message has no taker, and must not be acknowledged with the next ones.
    await queues.publish(*range(4))
    async with queues.client.consumer(queues.work) as consumer:
        first = await consumer.get()
        assert first is not None
        first.ack()
        task = asyncio.create_task(consumer.get())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        async with asyncio.timeout(5):
            rest = []
            while len(rest) < 3:
                if message := await consumer.get():
                    rest.append((message.value, message.redelivered))
                    assert message.ack()
    assert sorted(rest) == [(1, True), (2, False), (3, False)]
    assert await queues.remaining() == []


async def test_a_message_of_get_says_how_many_follow_when_there_are_more(queues: Queues) -> None:
    await queues.publish("a", "b", "c")
    async with queues.client.consumer(queues.work) as consumer:
        left = []
        while message := await consumer.get():
            left.append(message.message_count)
            message.ack()
    assert left == [2, 1, 0]


# ---------------------------------------------------------------------- concurrency, prefetch


async def test_handlers_run_at_once_when_concurrency_is_higher_than_one(queues: Queues) -> None:
    await queues.publish(*range(8))
    consumer = queues.client.consumer(queues.work, concurrency=4)
    barrier = asyncio.Barrier(4)
    done = 0

    async def handler(value: int, message: leveret.Message) -> None:
        nonlocal done
        async with asyncio.timeout(5):
            await barrier.wait()  # passes only four at a time
        done += 1
        if done == 8:
            consumer.stop()

    await consumer.run(handler)
    assert consumer.counters()["handler_errors"] == 0
    assert consumer.counters()["acked"] == 8


async def test_handlers_run_one_after_the_other_when_concurrency_is_one(queues: Queues) -> None:
    await queues.publish(*range(20))
    consumer = queues.client.consumer(queues.work)
    at_work = 0

    async def handler(value: int, message: leveret.Message) -> None:
        nonlocal at_work
        at_work += 1
        assert at_work == 1
        await asyncio.sleep(0)
        at_work -= 1
        if value == 19:
            consumer.stop()

    await consumer.run(handler)
    assert consumer.counters()["handler_errors"] == 0


@pytest.mark.parametrize("prefetch", [1, 7])
async def test_the_broker_keeps_the_rest_when_the_prefetch_is_used_up(queues: Queues, prefetch: int) -> None:
    await queues.publish(*range(30))
    async with queues.client.consumer(queues.work, prefetch=prefetch) as consumer:
        held = [await anext(consumer) for _ in range(prefetch)]
        assert await queues.ready() == 30 - prefetch
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await anext(consumer)
        for message in held:
            message.ack()
        async with asyncio.timeout(5):
            for _ in range(prefetch):
                (await anext(consumer)).ack()


@pytest.mark.parametrize("prefetch", [2, 3, 5, 8, 20])
async def test_the_others_go_on_when_the_first_message_is_slow(queues: Queues, prefetch: int) -> None:
    await queues.publish(*range(100))
    consumer = queues.client.consumer(queues.work, prefetch=prefetch, concurrency=2)
    others_are_done = asyncio.Event()
    most = 0
    seen = []

    async def handler(value: int, message: leveret.Message) -> None:
        nonlocal most
        most = max(most, consumer.counters()["unsettled"])
        if value == 0:
            async with asyncio.timeout(10):
                await others_are_done.wait()
            consumer.stop()
            return
        seen.append(value)
        if value == 99:
            others_are_done.set()

    async with asyncio.timeout(20):
        await consumer.run(handler)
    assert seen == list(range(1, 100))
    assert most <= prefetch
    assert consumer.counters()["handler_errors"] == 0
    assert await queues.remaining() == []


async def test_exactly_what_was_not_done_comes_back_when_the_connection_ends(broker: Broker, queues: Queues) -> None:
    await queues.publish(*range(40))
    slow = {3, 4, 17, 30}
    finished: list[int] = []
    others_are_done = asyncio.Event()

    async def handler(value: int, message: leveret.Message) -> bool:
        if value in slow:
            await asyncio.Event().wait()
        finished.append(value)
        if len(finished) == 36:
            others_are_done.set()
        return value != 20  # one is dead-lettered, in the middle

    async with leveret.connect(broker.url) as other:
        consumer = other.consumer(queues.work, prefetch=16, concurrency=5)
        async with running(consumer, handler):
            await others_are_done.wait()
    assert sorted(await queues.remaining()) == sorted(slow)
    assert await queues.dead_letters(1) == [20]


async def test_work_is_shared_when_two_consumers_take_from_one_queue(queues: Queues, broker: Broker) -> None:
    seen: Counter[int] = Counter()
    by_whom: Counter[str] = Counter()

    async with leveret.connect(broker.url) as other:
        consumers = {
            "one": queues.client.consumer(queues.work, prefetch=5),
            "two": other.consumer(queues.work, prefetch=5),
        }

        def handler_of(who: str) -> Any:
            async def handler(value: int, message: leveret.Message) -> None:
                seen[value] += 1
                by_whom[who] += 1
                await asyncio.sleep(0)
                if len(seen) == 200:
                    for consumer in consumers.values():
                        consumer.stop()

            return handler

        tasks = [asyncio.create_task(consumer.run(handler_of(who))) for who, consumer in consumers.items()]
        await queues.publish(*range(200))
        async with asyncio.timeout(10):
            await asyncio.gather(*tasks)
    assert seen == Counter(range(200))
    assert min(by_whom.values()) > 20


async def test_other_consumers_are_refused_when_one_is_exclusive(queues: Queues) -> None:
    await queues.publish("mine", "mine too")
    async with queues.client.consumer(queues.work, exclusive=True) as first:
        (await anext(first)).ack()
        async with queues.client.consumer(queues.work) as second:
            with pytest.raises(AccessRefused, match=queues.work):
                await anext(second)
        (await anext(first)).ack()


# ---------------------------------------------------------------------- ends that the application did not ask for


async def test_a_consumer_ends_with_an_error_when_its_queue_is_deleted(queues: Queues) -> None:
    consumer = queues.client.consumer(queues.work)
    iterating = queues.client.consumer(queues.work)
    waiting = asyncio.create_task(anext(iterating))

    async def handler(value: str, message: leveret.Message) -> None:
        raise AssertionError("the queue is empty")

    async with running(consumer, handler) as task:
        channel = await queues.client.channel()
        while (await channel.queue_declare(queues.work, passive=True)).consumer_count != 2:
            pass
        await queues.client.delete_queue(queues.work)
        async with asyncio.timeout(5):
            for ended in (task, waiting):
                with pytest.raises(ConsumerCancelled) as cancelled:
                    await ended
                assert cancelled.value.queue == queues.work
                assert cancelled.value.consumer_tag
    with pytest.raises(ConsumerCancelled):
        await anext(iterating)


async def test_a_consumer_ends_with_not_found_when_there_is_no_queue(client: leveret.Client) -> None:
    async def handler(value: Any, message: leveret.Message) -> None:
        pass

    with pytest.raises(NotFound, match="no queue 'missing'") as missing:
        await client.consumer("missing").run(handler)
    assert (missing.value.reply_code, missing.value.class_id, missing.value.method_id) == (404, 60, 20)
    iterating = client.consumer("missing")
    for _ in range(2):
        with pytest.raises(NotFound):
            async with asyncio.timeout(5):
                await anext(iterating)
    with pytest.raises(NotFound):
        await client.consumer("missing").get()


async def test_a_consumer_is_refused_at_once_when_it_cannot_work(client: leveret.Client, queue: str) -> None:
    async def generator(value: Any, message: leveret.Message) -> Any:
        yield value

    for handler in (None, "handler", generator):
        with pytest.raises(ConfigurationError, match="the handler must"):
            await client.consumer(queue).run(handler)
    with pytest.raises(ConfigurationError, match="no serializer reads 'application/xml'"):
        client.consumer(queue, accept=("application/xml",))
    with pytest.raises(ConfigurationError, match="prefetch"):
        client.consumer(queue, prefetch=0)
    with pytest.raises(ConfigurationError, match="prefetsch"):
        client.consumer(queue, prefetsch=1)
    async with asyncio.timeout(5):
        for _ in range(2):
            with pytest.raises(leveret.errors.EncodeFailed, match="255"):
                await anext(client.consumer("q" * 256))


async def test_the_value_raises_when_a_message_that_was_taken_cannot_be_decoded(queues: Queues) -> None:
    await queues.publish({"id": "one"})
    async with queues.client.consumer(queues.work, Order) as consumer:
        message = await consumer.get()
        assert message is not None
        for _ in range(2):
            with pytest.raises(DecodeFailed, match=r"Expected `int`, got `str` - at `\$.id`"):
                _ = message.value
        assert message.body == b'{"id":"one"}'
        assert message.dead_letter()
    assert await queues.dead_letters(1) == [{"id": "one"}]


# ---------------------------------------------------------------------- handlers that a circuit breaker stops


async def test_a_message_is_released_and_handled_later_when_its_handler_raises_circuit_open(
    queues: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    await queues.publish("value")
    consumer = queues.client.consumer(queues.work)
    seen = []

    async def handler(value: str, message: leveret.Message) -> None:
        seen.append((value, message.redelivered))
        if len(seen) <= 3:
            raise leveret.errors.CircuitOpen("the circuit breaker is open", retry_after=0.01)
        consumer.stop()

    async with asyncio.timeout(10):
        await consumer.run(handler)
    assert seen == [("value", False), ("value", True), ("value", True), ("value", True)]
    assert consumer.counters() == {
        "delivered": 4,
        "acked": 1,
        "unsettled": 0,
        "undecodable": 0,
        "handler_errors": 0,
        "requeued": 0,
        "released": 3,
        "dead_lettered": 0,
        "delayed": 0,
        "parked": 0,
        "dropped": 0,
        "stale_acks": 0,
        "prefetch": 0,
        "expected": 0,
        "live": 0,
    }
    assert [record for record in caplog.records if record.name == "leveret.consuming"] == []
    assert await queues.remaining() == []
    # Dead letters keep their order, so what comes first shows that nothing was before it.
    await queues.publish("refused")
    async with queues.client.consumer(queues.work) as other:
        assert await (await anext(other)).dead_letter()
    assert await queues.dead_letters(1) == ["refused"]
