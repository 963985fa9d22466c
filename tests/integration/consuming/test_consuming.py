"""Ways of consuming: when messages are acknowledged, their order, batches; pausing, ending and beginning again."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import Queues, running, until
from tests.support.proxy import Proxy
from tests.support.queues import taken

import leveret
from leveret import Outcome, Quorum, Topology
from leveret.errors import CodecError, ConfigurationError, ConsumerCancelled, WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


# ---------------------------------------------------------------------- when messages are acknowledged


@pytest.mark.parametrize("ack", ["coalesced", "each"])
async def test_nothing_comes_back_when_every_handler_returned(queues: Queues, ack: str) -> None:
    await queues.publish(*range(200))
    consumer = queues.client.consumer(queues.work, ack=ack, concurrency=5)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        await asyncio.sleep(0.001 * (value % 3))
        seen.append(value)
        if len(seen) == 200:
            consumer.stop()

    await consumer.run(handler)
    assert sorted(seen) == list(range(200))
    assert consumer.counters()["acked"] == 200
    assert await queues.remaining() == []


async def test_a_result_settles_nothing_when_acknowledging_is_manual(queues: Queues) -> None:
    await queues.publish(*range(10))
    consumer = queues.client.consumer(queues.work, ack="manual")
    held: list[leveret.Message] = []

    async def handler(value: int, message: leveret.Message) -> bool:
        held.append(message)
        if value % 2:
            message.ack()
        if value == 9:
            consumer.stop()
        return False

    await consumer.run(handler)
    assert consumer.counters()["acked"] == 5
    assert consumer.counters()["dead_lettered"] == 0
    assert await queues.remaining() == [0, 2, 4, 6, 8]
    assert not held[0].ack(), "its channel is gone"
    assert consumer.counters()["stale_acks"] == 1


async def test_s24_messages_are_acknowledged_before_they_are_handled_when_that_is_asked_for(queues: Queues) -> None:
    await queues.publish(*range(100))
    consumer = queues.client.consumer(queues.work, ack="handoff", handoff_size=30, prefetch=10)
    go = asyncio.Event()
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        await go.wait()
        seen.append(value)

    async with running(consumer, handler) as task:
        # 30 are taken over, and the broker sends 10 ahead of their acknowledgements; the rest stays there.
        await until(lambda: consumer.counters()["acked"] == 30 and consumer.counters()["delivered"] == 40)
        await asyncio.sleep(0.05)
        assert consumer.counters()["acked"] == 30
        assert await queues.ready() == 60
        assert seen == []
        go.set()
        await until(lambda: len(seen) == 100)
        assert consumer.counters()["acked"] == 100
        assert await consumer.drain(5)
        await task
    assert seen == list(range(100))
    assert await queues.remaining() == []


async def test_s24_nothing_is_lost_when_a_process_ends_and_messages_are_acknowledged_after_processing(
    queues: Queues,
) -> None:
    await queues.publish(*range(50))
    consumer = queues.client.consumer(queues.work, concurrency=4)
    done: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        if value >= 20:
            await asyncio.Event().wait()
        done.append(value)

    async with running(consumer, handler):
        await until(lambda: len(done) == 20)
    assert await queues.remaining() == list(range(20, 50))


# ---------------------------------------------------------------------- handlers


async def test_a_plain_function_runs_in_a_thread_and_its_result_counts(queues: Queues) -> None:
    await queues.publish(*range(20))
    consumer = queues.client.consumer(queues.work, concurrency=4)
    threads: set[str] = set()
    seen: list[int] = []

    def handler(value: int, message: leveret.Message) -> bool:
        time.sleep(0.005)
        threads.add(threading.current_thread().name)
        assert message.routing_key == queues.work
        with pytest.raises(WrongLoopError):
            message.ack()
        seen.append(value)
        if len(seen) == 20:
            consumer._loop.call_soon_threadsafe(consumer.stop)
        return value != 7

    await consumer.run(handler)
    assert sorted(seen) == list(range(20))
    assert threading.current_thread().name not in threads
    assert 1 < len(threads) <= 4
    assert await queues.dead_letters(1) == [7]
    assert await queues.remaining() == []


@pytest.mark.parametrize("concurrency", [1, 3])
async def test_a_handler_is_cancelled_and_has_failed_when_it_takes_too_long(
    queues: Queues, concurrency: int, caplog: pytest.LogCaptureFixture
) -> None:
    await queues.publish("hangs", *range(5))
    consumer = queues.client.consumer(queues.work, processing_timeout=0.2, concurrency=concurrency)
    ended: list[object] = []

    async def handler(value: object, message: leveret.Message) -> None:
        try:
            if value == "hangs":
                await asyncio.Event().wait()
        finally:
            ended.append(value)
            if len(ended) == 7:
                consumer.stop()

    await consumer.run(handler)
    assert Counter(ended) == Counter([*range(5), "hangs", "hangs"])
    assert await queues.dead_letters(1) == ["hangs"]
    assert await queues.remaining() == []
    counters = consumer.counters()
    assert (counters["handler_errors"], counters["acked"]) == (2, 5)
    assert "processing_timeout of 0.2 s" in caplog.text


async def test_a_handler_that_hides_its_cancellation_does_not_keep_run_from_ending(queues: Queues) -> None:
    await queues.publish(1, 2, 3)
    consumer = queues.client.consumer(queues.work)
    began = asyncio.Event()

    async def handler(value: int, message: leveret.Message) -> None:
        began.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    task = asyncio.create_task(consumer.run(handler))
    await began.wait()
    task.cancel()
    async with asyncio.timeout(5):
        await asyncio.wait([task])
    assert task.cancelled()
    assert await queues.remaining() == [2, 3]


async def test_all_workers_are_busy_when_handlers_wait(queues: Queues) -> None:
    await queues.publish(*range(16))
    consumer = queues.client.consumer(queues.work, concurrency=16)
    go = asyncio.Event()

    async def handler(value: int, message: leveret.Message) -> None:
        await go.wait()

    async with running(consumer, handler) as task:
        await until(lambda: consumer.health().working == 16)
        assert consumer.health().waiting == 0
        go.set()
        await until(lambda: consumer.counters()["acked"] == 16)
        consumer.stop()
        await task


# ---------------------------------------------------------------------- error policy


class Flaky(Exception):
    pass


async def test_each_error_has_its_action_when_the_policy_has_rules(failing: Queues) -> None:
    queues = failing
    await queues.publish("retry", "park", "drop", "dead", "again", "fine")
    rules = {
        Flaky: leveret.Retry(delay=0.1),
        ValueError: leveret.Park(),
        KeyError: leveret.Drop(),
        TypeError: leveret.DeadLetter(),
    }
    consumer = queues.client.consumer(queues.work, on_error=leveret.ErrorPolicy(rules, default=leveret.Requeue()))
    errors: dict[str, type[Exception]] = {"park": ValueError, "drop": KeyError, "dead": TypeError}
    seen: list[tuple[str, int]] = []
    began = time.monotonic()

    async def handler(value: str, message: leveret.Message) -> None:
        attempts = message.headers.get("x-leveret-attempt", 0)
        seen.append((value, attempts))
        if value in errors:
            raise errors[value]
        if value == "again" and not message.redelivered:
            raise OSError
        if value == "retry" and attempts < 2:
            raise Flaky
        if value == "retry":
            assert message.headers["x-leveret-error"] == "Flaky"
            consumer.stop()

    async with asyncio.timeout(15):
        await consumer.run(handler)
    assert time.monotonic() - began >= 0.3
    assert [pair for pair in seen if pair[0] == "retry"] == [("retry", 0), ("retry", 1), ("retry", 2)]
    assert Counter(value for value, _ in seen) == Counter(
        {"retry": 3, "park": 1, "drop": 1, "dead": 1, "again": 2, "fine": 1}
    )
    counters = consumer.counters()
    assert {name: counters[name] for name in ("delayed", "parked", "dropped", "dead_lettered", "requeued")} == {
        "delayed": 2,
        "parked": 1,
        "dropped": 1,
        "dead_lettered": 1,
        "requeued": 1,
    }
    assert await queues.dead_letters(1) == ["dead"]
    assert await taken(queues.client, f"{queues.work}.parked") == ["park"]
    assert await queues.remaining() == []


async def test_then_is_done_when_a_message_failed_too_often(failing: Queues) -> None:
    queues = failing
    await queues.publish("never")
    consumer = queues.client.consumer(queues.work, on_error=leveret.Retry(delay=0.1, max_attempts=2, then="park"))
    attempts = 0

    async def handler(value: str, message: leveret.Message) -> None:
        nonlocal attempts
        attempts += 1
        raise Flaky

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["parked"] == 1)
    assert attempts == 3
    assert await taken(queues.client, f"{queues.work}.parked") == ["never"]
    assert await queues.remaining() == []


async def test_the_consumer_ends_with_the_handlers_error_when_the_policy_says_stop(queues: Queues) -> None:
    await queues.publish("broken", "next")
    consumer = queues.client.consumer(queues.work, on_error={MemoryError: leveret.Stop()})

    async def handler(value: str, message: leveret.Message) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        async with asyncio.timeout(5):
            await consumer.run(handler)
    assert await queues.remaining() == ["broken", "next"]


async def test_the_guides_error_handler_decides_when_it_is_a_function(queues: Queues) -> None:
    await queues.publish("retry", "refuse")

    def on_error(error: BaseException, message: leveret.Message) -> bool:
        assert message.queue == queues.work
        return isinstance(error, Flaky)

    consumer = queues.client.queue(queues.work, str).on_error(on_error).consumer()
    seen: list[str] = []

    async def handler(value: str, message: leveret.Message) -> None:
        seen.append(value)
        if message.redelivered:
            consumer.stop()
            return
        raise Flaky if value == "retry" else ValueError

    async with asyncio.timeout(5):
        await consumer.run(handler)
    assert sorted(seen) == ["refuse", "retry", "retry"]
    assert await queues.dead_letters(1) == ["refuse"]
    assert await queues.remaining() == []


async def test_a_body_that_does_not_decode_is_parked_when_the_policy_says_so(failing: Queues) -> None:
    queues = failing
    await queues.publish("not a number", 1)
    consumer = queues.client.consumer(queues.work, int, on_error={CodecError: leveret.Park()})

    async def handler(value: int, message: leveret.Message) -> None:
        pass

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["parked"] == 1)
        await until(lambda: consumer.counters()["acked"] == 2)
    assert await taken(queues.client, f"{queues.work}.parked") == ["not a number"]
    assert consumer.counters()["undecodable"] == 1


# ---------------------------------------------------------------------- order


@pytest.mark.parametrize("how", ["routing_key", "header:customer", "function"])
async def test_messages_of_one_key_keep_their_order_and_others_go_on(
    queues: Queues, name: Callable[[str], str], how: str
) -> None:
    exchange, keys = name("ordered"), [f"k{number}" for number in range(7)]
    await queues.client.declare(Topology().exchange(exchange, "topic").bind(queues.work, exchange, "#"))
    async with queues.client.producer(exchange=exchange) as producer:
        values = [
            producer.message({"key": keys[number % 7], "number": number})
            .routing_key(keys[number % 7])
            .header("customer", keys[number % 7])
            for number in range(350)
        ]
        (await producer.publish_batch(values)).raise_for_failures()
    ordered_by: Any = (lambda message: message.value["key"]) if how == "function" else how
    consumer = queues.client.consumer(queues.work, concurrency=10, prefetch=200, ordered_by=ordered_by)
    seen: dict[str, list[int]] = {key: [] for key in keys}
    working: set[str] = set()
    most = 0

    async def handler(value: dict[str, Any], message: leveret.Message) -> None:
        nonlocal most
        key = value["key"]
        assert key not in working, "two messages of one key at once"
        working.add(key)
        most = max(most, len(working))
        await asyncio.sleep(0.0005 * (value["number"] % 4))
        working.remove(key)
        seen[key].append(value["number"])
        if sum(map(len, seen.values())) == 350:
            consumer.stop()

    await consumer.run(handler)
    assert seen == {key: list(range(index, 350, 7)) for index, key in enumerate(keys)}
    assert most == 7
    assert await queues.remaining() == []


async def test_a_message_is_dead_lettered_when_its_key_cannot_be_found(queues: Queues) -> None:
    await queues.publish(1, 2, 3)

    def key(message: leveret.Message) -> int:
        return 6 // (message.value - 2)

    consumer = queues.client.consumer(queues.work, ordered_by=key)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)
        if value == 3:
            consumer.stop()

    await consumer.run(handler)
    assert seen == [1, 3]
    assert await queues.dead_letters(1) == [2]


async def test_what_waits_for_its_key_goes_back_when_the_consumer_ends(queues: Queues) -> None:
    await queues.publish(*range(10))
    consumer = queues.client.consumer(queues.work, concurrency=3, ordered_by="routing_key")
    began = asyncio.Event()

    async def handler(value: int, message: leveret.Message) -> None:
        if value == 3:
            began.set()
            await asyncio.Event().wait()

    async with running(consumer, handler):
        await began.wait()
        await until(lambda: consumer.health().waiting == 6)
    assert await queues.remaining() == list(range(3, 10))


# ---------------------------------------------------------------------- in batches


async def test_a_batch_is_acknowledged_at_once_and_its_failures_are_not(queues: Queues) -> None:
    await queues.publish(*range(25))
    sizes: list[int] = []
    got: list[int] = []
    async with queues.client.batches(queues.work, size=10, wait=0.2) as batches:
        async with asyncio.timeout(10):
            async for batch in batches:
                sizes.append(len(batch))
                got += batch.values
                assert [message.value for message in batch.messages] == batch.values
                if 13 in batch.values:
                    assert batch.fail(batch.values.index(13))
                    assert not batch.fail(batch.values.index(13), "requeue"), "settled is settled"
                before = batch.messages[0].is_settled
                assert batch.ack() == len(batch) - (13 in batch.values)
                assert (before, batch.ack()) == (False, 0)
                if len(got) == 25:
                    break
        counters = batches.consumer.counters()
    assert sizes == [10, 10, 5]
    assert got == list(range(25))
    assert (counters["acked"], counters["dead_lettered"]) == (24, 1)
    assert await queues.dead_letters(1) == [13]
    assert await queues.remaining() == []


async def test_one_basic_ack_is_written_for_a_batch(queues: Queues) -> None:
    await queues.publish(*range(30))
    async with queues.client.batches(queues.work, size=10, wait=1) as batches:
        for _ in range(3):
            batch = await anext(batches)
            out = batches.consumer._connection.transport.out
            before = len(out)
            batch.ack()
            assert len(out) - before == 21, "the size of one basic.ack"


async def test_what_does_not_decode_is_in_no_batch(queues: Queues) -> None:
    await queues.publish(1, "two", 3)
    async with queues.client.batches(queues.work, int, size=3, wait=0.2) as batches:
        batch = await anext(batches)
        assert batch.values == [1, 3]
        batch.ack()
    assert await queues.dead_letters(1) == ["two"]
    assert await queues.remaining() == []


async def test_the_error_policy_decides_about_what_does_not_decode_for_a_batch(
    queues: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    parked = f"{queues.work}.parked"
    await queues.publish(1, "two", 3, message_id="m-1")
    try:
        async with queues.client.batches(
            queues.work, int, size=3, wait=0.2, on_error={leveret.errors.CodecError: leveret.Park()}
        ) as batches:
            batch = await anext(batches)
            assert batch.values == [1, 3]
            batch.ack()
            assert batches.consumer.counters()["parked"] == 1
        assert await queues.remaining(parked) == ["two"]
        assert await queues.remaining() == []
        (record,) = [each for each in caplog.records if each.name == "leveret.consuming"]
        assert f"1 message could not be decoded; it goes to {parked!r} (message id 'm-1'): " in record.getMessage()
    finally:
        await queues.client.delete_queue(parked)


async def test_a_cancelled_wait_for_a_batch_puts_back_what_was_decoded(queues: Queues) -> None:
    await queues.publish(1, "two", 3)
    parking = asyncio.Event()

    def policy(error: BaseException, message: leveret.Message) -> leveret.Park:
        parking.set()
        return leveret.Park()

    async with queues.client.batches(queues.work, int, size=3, wait=0.2, on_error=policy) as batches:
        waiting = asyncio.create_task(anext(batches))
        await parking.wait()
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()
        batch = await anext(batches)
        assert batch.values == [1, 3]
        batch.ack()


async def test_a_batch_handler_settles_by_its_result_or_each_when_it_raises(queues: Queues) -> None:
    await queues.publish(*range(9))
    batches = queues.client.batches(queues.work, size=3, wait=0.2)
    seen: list[list[int]] = []

    async def handler(values: list[int], batch: leveret.DeliveryBatch[int]) -> bool | None:
        seen.append(values)
        if sum(map(len, seen)) == 11:  # nine, and two of them again
            batches.consumer.stop()
        if any(message.redelivered for message in batch.messages):
            return None
        if 0 in values:
            return False
        if 3 in values:
            batch.messages[0].ack()
            raise ValueError
        return None

    await batches.run(handler)
    assert seen[0] == [0, 1, 2]
    assert sorted(await queues.dead_letters(3)) == [0, 1, 2]
    assert sorted(value for values in seen for value in values) == sorted([*range(9), 4, 5])
    assert await queues.remaining() == []
    assert batches.consumer.counters()["handler_errors"] == 2


async def test_no_message_is_lost_when_waiting_for_a_batch_is_cancelled(queues: Queues) -> None:
    await queues.publish(1, 2)
    async with queues.client.batches(queues.work, size=10, wait=60) as batches:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await anext(batches)
        await queues.publish(3)
        batches.wait = 0.3
        batch = await anext(batches)
        assert sorted(batch.values) == [1, 2, 3]
        batch.ack()
    assert await queues.remaining() == []


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"size": 0}, "size"),
        ({"size": True}, "size"),
        ({"size": 70_000}, "size"),
        ({"wait": -1}, "wait"),
        ({"wait": float("nan")}, "wait"),
        ({"size": 100, "prefetch": 99}, "prefetch"),
        ({"prefetch": "auto"}, "prefetch"),
        ({"ordered_by": "routing_key"}, "ordered_by"),
    ],
)
async def test_a_batch_is_refused_when_it_cannot_be(client: leveret.Client, options: Any, option: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        client.batches("any", **options)
    assert refused.value.option == option


# ---------------------------------------------------------------------- pausing and ending


async def test_others_get_the_messages_when_a_consumer_is_paused(queues: Queues) -> None:
    await queues.publish(*range(20))
    consumer = queues.client.consumer(queues.work, prefetch=10)
    go, began = asyncio.Event(), asyncio.Event()
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        began.set()
        await go.wait()
        seen.append(value)

    async with running(consumer, handler) as task:
        await began.wait()
        await consumer.pause()
        assert consumer.health()
        assert not consumer.health().expected
        assert await taken(queues.client, queues.work) == list(range(1, 20))
        go.set()
        await until(lambda: consumer.counters()["acked"] == 1)
        await queues.publish("while paused")
        await asyncio.sleep(0.05)
        assert seen == [0]
        await consumer.resume()
        await until(lambda: seen == [0, "while paused"])
        assert await consumer.drain(5)
        await task
    assert await queues.remaining() == []


async def test_run_returns_when_everything_delivered_is_handled_after_cancel(queues: Queues) -> None:
    await queues.publish(*range(30))
    consumer = queues.client.consumer(queues.work, prefetch=10)
    go, began = asyncio.Event(), asyncio.Event()
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        began.set()
        await go.wait()
        seen.append(value)

    async with running(consumer, handler) as task:
        await began.wait()
        await consumer.cancel()
        delivered = consumer.counters()["delivered"]
        go.set()
        async with asyncio.timeout(5):
            await task
    assert seen == list(range(delivered))
    assert delivered < 30
    assert await queues.remaining() == list(range(delivered, 30))


@pytest.mark.parametrize("concurrency", [1, 5])
async def test_handlers_end_and_the_rest_goes_back_when_a_consumer_is_drained(queues: Queues, concurrency: int) -> None:
    await queues.publish(*range(40))
    consumer = queues.client.consumer(queues.work, prefetch=20, concurrency=concurrency)
    began = asyncio.Event()
    done: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        began.set()
        await asyncio.sleep(0.05)
        done.append(value)

    async with running(consumer, handler) as task:
        await began.wait()
        assert await consumer.drain(5)
        async with asyncio.timeout(5):
            await task
    assert len(done) == concurrency
    remaining = await queues.remaining()
    assert sorted([*done, *remaining]) == list(range(40))
    assert consumer.counters()["acked"] == concurrency


async def test_draining_says_so_when_a_handler_had_to_be_cut_off(queues: Queues) -> None:
    await queues.publish("hangs", "waits")
    consumer = queues.client.consumer(queues.work)
    began = asyncio.Event()

    async def handler(value: str, message: leveret.Message) -> None:
        began.set()
        await asyncio.Event().wait()

    async with running(consumer, handler) as task:
        await began.wait()
        assert not await consumer.drain(0.1)
        async with asyncio.timeout(5):
            await task
    assert await queues.remaining() == ["hangs", "waits"]


# ---------------------------------------------------------------------- prefetch at run time


@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_s25_the_prefetch_changes_while_messages_are_handled(
    client: leveret.Client, name: Callable[[str], str], kind: str, broker: Broker
) -> None:
    work = name("work")
    await client.declare(Topology().queue(work, Quorum() if kind == "quorum" else None))
    async with client.producer() as producer:
        (await producer.publish_batch(range(3000), work)).raise_for_failures()
    consumer = client.consumer(work, prefetch=5, concurrency=5)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        await asyncio.sleep(0)
        seen.append(value)
        if len(seen) == 3000:
            consumer.stop()

    async with running(consumer, handler) as task:
        for prefetch in (50, 1, 500, 2, 100):
            await consumer.set_prefetch(prefetch)
            assert consumer.prefetch == prefetch
            more = len(seen) + 1
            await until(lambda more=more: len(seen) >= more or task.done())
        async with asyncio.timeout(20):
            await task
    assert sorted(seen) == list(range(3000)), "none is lost, and none comes twice"
    assert await taken(client, work) == []


@pytest.mark.parametrize("how", ["prefetch", "pause"])
async def test_s25_a_quorum_queue_keeps_delivering_when_a_consumer_begins_again_beside_unsettled_deliveries(
    client: leveret.Client, name: Callable[[str], str], how: str
) -> None:
    work = name("work")
    await client.declare(Topology().queue(work, Quorum()))
    async with client.producer() as producer:
        (await producer.publish_batch(range(40), work)).raise_for_failures()
    async with client.consumer(work, prefetch=5, ack="manual") as consumer:
        held = [await anext(consumer)]
        tags = {held[0].consumer_tag}
        async with asyncio.timeout(20):
            # Each time some deliveries of the consumers before are not settled.
            for number in range(6):
                if how == "prefetch":
                    await consumer.set_prefetch(5 + number % 2)
                else:
                    await consumer.pause()
                    await consumer.resume()
                message = await anext(consumer)
                while message.consumer_tag in tags:
                    held.append(message)
                    message.ack()
                    message = await anext(consumer)
                tags.add(message.consumer_tag)
                held.append(message)
        assert len(tags) == 7, "no tag is used twice"
        assert consumer._subscription.channel is not None
        assert consumer._subscription.channel.is_open


async def test_s25_a_smaller_prefetch_holds_when_handlers_are_slow(queues: Queues) -> None:
    await queues.publish(*range(100))
    consumer = queues.client.consumer(queues.work, prefetch=50)
    go = asyncio.Event()

    async def handler(value: int, message: leveret.Message) -> None:
        await go.wait()

    async with running(consumer, handler) as task:
        await until(lambda: consumer.counters()["unsettled"] == 50)
        await consumer.set_prefetch(3)
        go.set()
        await until(lambda: consumer.counters()["acked"] >= 50)
        go.clear()
        await until(lambda: consumer.counters()["acked"] == 100 or consumer.counters()["unsettled"] == 3)
        consumer.stop()
        go.set()
        await task


async def test_s25_the_prefetch_of_an_exclusive_consumer_stays(queues: Queues) -> None:
    async with queues.client.consumer(queues.work, exclusive=True) as consumer:
        await consumer.subscribe()
        with pytest.raises(ConfigurationError, match="exclusive"):
            await consumer.set_prefetch(5)
    for wrong in (0, 70_000):
        with pytest.raises(ConfigurationError, match="prefetch"):
            await queues.client.consumer(queues.work).set_prefetch(wrong)


async def test_s26_the_prefetch_follows_the_handlers_when_it_is_auto(broker: Broker, queues: Queues) -> None:
    await queues.publish(*range(20_000))
    async with Proxy(broker.url, delay=0.05) as proxy, leveret.connect(proxy.url) as client:
        consumer = client.consumer(queues.work, prefetch="auto", concurrency=5)
        assert consumer.prefetch == 10
        seconds = 0.005

        async def handler(value: int, message: leveret.Message) -> None:
            await asyncio.sleep(seconds)

        async with running(consumer, handler) as task:
            # Each worker could do ten messages while an acknowledgement is on its way.
            await until(lambda: consumer.prefetch > 35, seconds=20)
            seconds = 0.1
            await until(lambda: consumer.prefetch <= 20, seconds=20)
            consumer.stop()
            await task
    await queues.client.purge(queues.work)


# ---------------------------------------------------------------------- beginning again


async def test_the_consumer_goes_on_when_its_queue_was_deleted_and_made_again(
    queues: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    await queues.publish("before")
    consumer = queues.client.consumer(queues.work, resubscribe=True)
    seen: list[str] = []

    async def handler(value: str, message: leveret.Message) -> None:
        seen.append(value)

    async with running(consumer, handler) as task:
        await until(lambda: seen == ["before"])
        await queues.client.delete_queue(queues.work)
        await until(lambda: not consumer.health().live)
        assert not consumer.health(), "it is expected and not live"
        await queues.declare()
        await queues.publish("after")
        await until(lambda: seen == ["before", "after"])
        assert consumer.health()
        assert not task.done()
        assert await consumer.drain(5)
        await task
    assert "subscribes again" in caplog.text


async def test_the_consumer_goes_on_with_the_next_connection(broker: Broker, queues: Queues) -> None:
    await queues.publish(*range(10))
    async with Proxy(broker.url) as proxy, leveret.connect(proxy.url, recovery_max_delay=0.2) as client:
        consumer = client.consumer(queues.work, resubscribe=True, concurrency=2)
        go, held = asyncio.Event(), asyncio.Event()
        seen: Counter[int] = Counter()
        messages: list[leveret.Message] = []

        async def handler(value: int, message: leveret.Message) -> None:
            messages.append(message)
            if value == 5 and not go.is_set():
                held.set()
                await go.wait()
            seen[value] += 1

        async with running(consumer, handler) as task:
            await held.wait()
            proxy.reset()
            await until(lambda: not consumer.health().live)
            # The handler of the lost connection returns later, when its message came again already.
            await until(lambda: consumer.health().live and set(seen) >= set(range(10)) - {5})
            go.set()
            await until(lambda: set(seen) == set(range(10)))
            assert await consumer.drain(5)
            await task
        counters = consumer.counters()
        assert counters["stale_acks"] >= 1, "its acknowledgement is dropped, not sent to the new channel"
        assert [message for message in messages if not message.is_settled] == []
    assert await queues.remaining() == []


async def test_the_consumer_ends_when_it_is_told_not_to_begin_again(queues: Queues) -> None:
    consumer = queues.client.consumer(queues.work)

    async def handler(value: int, message: leveret.Message) -> None:
        pass

    async with running(consumer, handler) as task:
        await until(lambda: consumer.health().live)
        await queues.client.delete_queue(queues.work)
        with pytest.raises(ConsumerCancelled):
            async with asyncio.timeout(5):
                await task
    await queues.declare()


async def test_closing_ends_the_attempts_to_begin_again(queues: Queues) -> None:
    consumer = queues.client.consumer(queues.work, resubscribe=True)

    async def handler(value: int, message: leveret.Message) -> None:
        pass

    async with running(consumer, handler) as task:
        await until(lambda: consumer.health().live)
        await queues.client.delete_queue(queues.work)
        await until(lambda: not consumer.health().live)
        consumer.stop()
        async with asyncio.timeout(5):
            await task
    await queues.declare()


# ---------------------------------------------------------------------- put together call by call


async def test_s22_s23_a_consumer_is_put_together_call_by_call(queues: Queues) -> None:
    await queues.publish(*range(10))
    made = queues.client.queue(queues.work, int).concurrency(3).prefetch(20).ack("each").processing_timeout(5)
    consumer = made.consumer_tag("mine").priority(1).consumer()
    settings = consumer.settings
    assert (settings.concurrency, settings.prefetch, settings.ack) == (3, 20, "each")
    assert (settings.processing_timeout, settings.consumer_tag, settings.priority) == (5.0, "mine", 1)
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)
        if len(seen) == 10:
            raise asyncio.CancelledError

    async def consume() -> None:
        await made.consume(handler)

    task = asyncio.create_task(consume())
    await until(lambda: len(seen) >= 10)
    task.cancel()
    await asyncio.wait([task])
    assert sorted(set(seen)) == list(range(10))
    await queues.client.purge(queues.work)
    await queues.client.purge(queues.dead)


async def test_s22_several_consumers_of_one_queue_run_at_once(queues: Queues) -> None:
    await queues.publish(*range(40))
    consumers = [queues.client.consumer(queues.work, prefetch=2, concurrency=2) for _ in range(4)]
    most = working = 0
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        nonlocal most, working
        working += 1
        most = max(most, working)
        await asyncio.sleep(0.01)
        working -= 1
        seen.append(value)
        if len(seen) == 40:
            for consumer in consumers:
                consumer.stop()

    async with asyncio.TaskGroup() as group:
        for consumer in consumers:
            group.create_task(consumer.run(handler))
    assert sorted(seen) == list(range(40))
    assert most == 8
    assert all(consumer.counters()["delivered"] for consumer in consumers)


async def test_s45_a_message_tells_where_and_when_it_came_from(queues: Queues) -> None:
    async with queues.client.producer() as producer:
        receipt = await producer.publish({"id": 1}, queues.work, headers={"tenant": 7}, message_id="m-1")
        assert receipt.outcome is Outcome.CONFIRMED
    consumer = queues.client.consumer(queues.work, consumer_tag="who")
    loop = asyncio.get_running_loop()
    before = loop.time()

    async def handler(value: dict[str, int], message: leveret.Message) -> None:
        assert value == message.value == {"id": 1}
        assert (message.queue, message.exchange, message.routing_key) == (queues.work, "", queues.work)
        assert (message.consumer_tag, message.delivery_tag, message.redelivered) == ("who", 1, False)
        assert (message.headers, message.message_id) == ({"tenant": 7}, "m-1")
        assert before <= message.received_at <= loop.time()
        assert not message.is_settled
        consumer.stop()

    await consumer.run(handler)
    assert consumer.counters()["handler_errors"] == 0
