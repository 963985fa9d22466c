"""The error policy decides what becomes of a message whose handler raises."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
from tests.support.handling import Queues, running, until
from tests.support.queues import taken

import leveret

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_a_message_is_tried_twice_and_refused_when_the_policy_says_requeue(
    queues: Queues, caplog: pytest.LogCaptureFixture
) -> None:
    await queues.publish("poison", "good")
    consumer = queues.client.consumer(queues.work, on_error=leveret.Requeue())
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


class Flaky(Exception):
    pass


async def test_each_error_has_its_action_when_the_policy_has_rules(queues: Queues) -> None:
    await queues.publish("retry", "park", "drop", "dead", "again", "fine")
    rules: dict[type[BaseException], Any] = {
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
    assert {name: counters[name] for name in ("retried", "parked", "dropped", "dead_lettered", "requeued")} == {
        "retried": 2,
        "parked": 1,
        "dropped": 1,
        "dead_lettered": 1,
        "requeued": 1,
    }
    assert await queues.dead_letters(1) == ["dead"]
    assert await taken(queues.client, f"{queues.work}.parked") == ["park"]
    assert await queues.remaining() == []


async def test_then_is_done_when_a_message_failed_too_often(queues: Queues) -> None:
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

    policy = leveret.ErrorPolicy(on_error, default=leveret.Requeue())
    consumer = queues.client.queue(queues.work, str).on_error(policy).consumer()
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


async def test_no_other_message_is_begun_with_when_the_policy_stops_the_consumer(queues: Queues) -> None:
    await queues.publish(*range(200))
    consumer = queues.client.consumer(queues.work, prefetch=50, on_error={MemoryError: leveret.Stop()})
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)
        if value == 3:
            raise MemoryError

    with pytest.raises(MemoryError):
        await consumer.run(handler)
    assert seen == [0, 1, 2, 3]
    assert sorted(await queues.remaining()) == list(range(3, 200))


async def test_a_message_is_held_and_handled_later_when_its_handler_raises_circuit_open(
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
    assert seen == [("value", False)] * 4
    counted = {name: count for name, count in consumer.counters().items() if count}
    assert counted == {"delivered": 1, "acked": 1}
    assert [record for record in caplog.records if record.name == "leveret.consuming"] == []
    assert await queues.remaining() == []
    # Dead letters keep their order, so what comes first shows that nothing was before it.
    await queues.publish("refused")
    async with queues.client.consumer(queues.work) as other:
        assert await (await anext(other)).dead_letter()
    assert await queues.dead_letters(1) == ["refused"]
