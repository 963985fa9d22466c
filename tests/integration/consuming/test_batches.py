"""Messages are handled and acknowledged in batches, and none is lost when a batch is broken off."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tests.support.handling import Queues, ends, until

import leveret
from leveret.errors import CircuitOpen, ConfigurationError

pytestmark = pytest.mark.usefixtures("no_leftovers")


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
    assert await queues.remaining(f"{queues.work}.parked") == ["two"]
    assert await queues.remaining() == []


async def test_the_error_policy_decides_about_what_does_not_decode_for_a_batch(
    queues: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    await queues.publish(1, "two", 3, message_id="m-1")
    async with queues.client.batches(
        queues.work, int, size=3, wait=0.2, on_error={leveret.errors.CodecError: leveret.Drop()}
    ) as batches:
        batch = await anext(batches)
        assert batch.values == [1, 3]
        batch.ack()
        assert batches.consumer.counters()["dropped"] == 1
    assert await queues.remaining() == []
    first, second = [each.getMessage() for each in caplog.records if each.name == "leveret.consuming"]
    assert "1 message could not be decoded, the last one with message id 'm-1': " in first
    assert "message 'm-1' (5 bytes) dropped: DecodeFailed" in second


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


async def test_a_batch_has_failed_when_its_handler_takes_too_long(
    queues: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    await queues.publish("hangs", 1, 2)
    batches = queues.client.batches(queues.work, size=1, processing_timeout=0.1, on_error=leveret.Requeue())

    async def handler(values: list[Any], batch: leveret.DeliveryBatch[Any]) -> None:
        if values == ["hangs"]:
            await asyncio.Event().wait()
        elif values == [2]:
            raise TimeoutError("the handler's own")

    task = asyncio.create_task(batches.run(handler))
    await until(lambda: batches.consumer.counters()["dead_lettered"] == 2)
    task.cancel()
    await ends(task)
    assert sorted(map(str, await queues.dead_letters(2))) == ["2", "hangs"]
    assert caplog.text.count("processing_timeout of 0.1 s") == 2
    assert await queues.remaining() == []


async def test_a_result_settles_no_batch_when_acknowledging_is_manual(queues: Queues) -> None:
    await queues.publish(*range(6))
    batches = queues.client.batches(queues.work, size=2, wait=0.1, ack="manual", prefetch=10)
    seen: list[int] = []

    async def handler(values: list[int], batch: leveret.DeliveryBatch[int]) -> bool | None:
        seen.extend(values)
        if 5 in values:
            batches.consumer.stop()
        return False if 0 in values else None

    await batches.run(handler)
    assert seen == list(range(6))
    assert await queues.remaining() == list(range(6))


async def test_a_batch_is_held_when_its_handler_says_that_a_circuit_is_open(queues: Queues) -> None:
    await queues.publish(*range(20))
    batches = queues.client.batches(queues.work, size=20, wait=1)
    calls: list[float] = []

    async def handler(values: list[int], batch: leveret.DeliveryBatch[int]) -> None:
        calls.append(asyncio.get_running_loop().time())
        if len(calls) == 1:
            raise CircuitOpen("try again", retry_after=0.1)
        batches.consumer.stop()

    await batches.run(handler)
    assert 0.09 <= calls[1] - calls[0] < 1.5
    assert batches.consumer.counters()["delivered"] == 20
    assert batches.consumer.counters()["released"] == 0
    assert await queues.remaining() == []


async def test_a_batch_is_cut_off_when_draining_takes_too_long(queues: Queues) -> None:
    await queues.publish(1)
    batches = queues.client.batches(queues.work, size=1)
    began = asyncio.Event()

    async def handler(values: list[int], batch: leveret.DeliveryBatch[int]) -> None:
        began.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(batches.run(handler))
    await began.wait()
    assert not await batches.consumer.drain(0.1)
    await ends(task)
    assert await queues.remaining() == [1]


async def test_a_batch_that_waits_for_more_is_handled_when_its_consumer_is_drained(queues: Queues) -> None:
    await queues.publish(1, 2)
    batches = queues.client.batches(queues.work, size=10, wait=60)
    seen: list[int] = []

    async def handler(values: list[int], batch: leveret.DeliveryBatch[int]) -> None:
        seen.extend(values)

    task = asyncio.create_task(batches.run(handler))
    await until(lambda: batches.consumer.counters()["unsettled"] == 2 and not batches.consumer.health().waiting)
    assert await batches.consumer.drain(5)
    await task
    assert seen == [1, 2]
    assert await queues.remaining() == []


async def test_no_message_is_lost_when_a_batch_without_acknowledgements_is_cancelled(queues: Queues) -> None:
    await queues.publish(1, 2)
    async with queues.client.batches(queues.work, size=10, wait=60, ack="none") as batches:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await anext(batches)
        await queues.publish(3)
        batches.wait = 0.3
        assert (await anext(batches)).values == [1, 2, 3]
