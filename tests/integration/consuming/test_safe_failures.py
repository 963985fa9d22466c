"""With default options no failed message is lost: it is tried again later, held or parked, and the log says so."""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import Queues, running, until
from tests.support.queues import messages, taken

import leveret
from leveret import DeadLetter, Drop, Park, Retry, Topology
from leveret.consuming.failing.error_policy import attempts_of
from leveret.errors import CircuitOpen, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def publish(client: leveret.Client, queue: str, *values: Any, **options: Any) -> None:
    async with client.producer() as producer:
        (await producer.publish_batch(values, queue, **options)).raise_for_failures()


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    """The warnings of consumers that contain a text."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "leveret.consuming" and text in record.getMessage()
    ]


@pytest.fixture
async def exclusive(client: leveret.Client) -> AsyncIterator[str]:
    """A queue that the server names and that goes with its connection; and no messages in the shared parking queue."""
    report = await client.declare(Topology().queue("", exclusive=True, durable=False))
    await client.delete_queue("leveret.parked")
    yield report.queues[""].name
    await client.delete_queue("leveret.parked")


# ---------------------------------------------------------------------- without an option


async def test_an_outage_of_what_handlers_need_loses_no_message(client: leveret.Client, queue: str) -> None:
    await publish(client, queue, *range(100))
    loop = asyncio.get_running_loop()
    back_at = loop.time() + 0.5
    handled: set[int] = set()
    consumer = client.consumer(queue, int)

    async def handler(value: int, message: leveret.Message) -> None:
        if loop.time() < back_at:
            raise ConnectionError
        handled.add(value)

    async with running(consumer, handler):
        await until(lambda: len(handled) == 100, seconds=20)
        counters = consumer.counters()
    assert counters["retried"] >= 1
    assert {counters[name] for name in ("dead_lettered", "rejected", "dropped", "parked", "requeued")} == {0}


async def test_a_body_that_does_not_decode_is_parked_at_once_with_the_reason(
    client: leveret.Client, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with client.producer(serializer="bytes") as producer:
        await producer.publish(b"not JSON", queue, content_type="application/json", message_id="one")
        await producer.publish(b"<x/>", queue, content_type="application/xml", message_id="two")
        await producer.publish(b"\x1f\x8b", queue, content_type="application/json", content_encoding="gzip")
    consumer = client.consumer(queue, int)

    async def handler(value: int, message: leveret.Message) -> None:
        raise AssertionError("it cannot be decoded")

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["parked"] == 3)
    assert consumer.counters()["undecodable"] == 3
    found = await messages(client, f"{queue}.parked")
    assert [message.body for message in found] == [b"not JSON", b"<x/>", b"\x1f\x8b"]
    assert [message.headers["x-leveret-error"].partition(":")[0] for message in found] == [
        "DecodeFailed",
        "ContentTypeNotAccepted",
        "DecodeFailed",
    ]
    assert {message.headers["x-leveret-queue"] for message in found} == {queue}
    first, second, _ = said(caplog, "parked in")
    assert f"queue {queue!r}: message 'one' (8 bytes) parked in '{queue}.parked': DecodeFailed" in first
    assert "message 'two' (4 bytes)" in second


@pytest.mark.parametrize("declares", [True, False], ids=["this client", "another client"])
async def test_a_refused_message_is_dead_lettered_where_its_queue_is_known_to_have_an_exchange_for_that(
    queues: Queues, other: leveret.Client, declares: bool
) -> None:
    await queues.publish("refused")
    consumer = (queues.client if declares else other).consumer(queues.work)

    async def handler(value: str, message: leveret.Message) -> bool:
        return False

    name = "dead_lettered" if declares else "parked"
    async with running(consumer, handler):
        await until(lambda: consumer.counters()[name] == 1)
    counters = consumer.counters()
    assert sum(counters[each] for each in ("dead_lettered", "rejected", "dropped", "parked")) == 1
    if declares:
        assert await queues.dead_letters(1) == ["refused"]
    else:
        assert await taken(other, f"{queues.work}.parked") == ["refused"]


@pytest.mark.parametrize(
    ("refused", "counter", "text"),
    [
        (
            DeadLetter(),
            "rejected",
            "rejected; lost unless the queue has a dead-letter exchange: refused by the handler",
        ),
        (Drop(), "dropped", "dropped: refused by the handler"),
        (Park(), "parked", "parked in"),
    ],
)
async def test_what_becomes_of_refused_messages_can_be_said(
    queues: Queues, other: leveret.Client, refused: Any, counter: str, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    await queues.publish("refused", message_id="its id")
    consumer = other.queue(queues.work).refused(refused).consumer()

    async def handler(value: str, message: leveret.Message) -> bool:
        return False

    async with running(consumer, handler):
        await until(lambda: consumer.counters()[counter] == 1)
    (record,) = said(caplog, text)
    assert f"queue {queues.work!r}: message 'its id' (9 bytes)" in record
    assert await queues.ready() == 0
    if counter == "rejected":
        assert await queues.dead_letters(1) == ["refused"]


async def test_a_wrong_option_for_refused_messages_is_an_error(client: leveret.Client) -> None:
    with pytest.raises(ConfigurationError, match="refused is a Retry"):
        client.consumer("orders", refused=Retry())  # type: ignore[call-overload]


async def test_a_handler_that_returns_nonsense_is_an_error_of_the_program_and_its_message_is_kept(
    client: leveret.Client, queue: str, program_errors: list[str]
) -> None:
    await publish(client, queue, "value")
    consumer = client.consumer(queue, on_error=Retry([0.1]))
    seen: list[int] = []

    async def handler(value: str, message: leveret.Message) -> Any:
        seen.append(attempts_of(message))
        return "done"

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["parked"] == 1)
    assert seen == [0, 1]
    assert len(program_errors) == 2
    assert "error of the program: a handler returns None, True or False, not str" in program_errors[0]
    (parked,) = await messages(client, f"{queue}.parked")
    assert parked.headers["x-leveret-error"] == "TypeError"


@pytest.mark.parametrize("ack", ["none", "handoff"])
async def test_a_refused_message_is_parked_though_the_broker_has_forgotten_it(
    client: leveret.Client, queue: str, ack: Any, program_errors: list[str]
) -> None:
    await publish(client, queue, "refused", "nonsense", "fine")
    consumer = client.consumer(queue, ack=ack, on_error=Park())
    seen: list[str] = []

    async def handler(value: str, message: leveret.Message) -> Any:
        seen.append(value)
        return {"refused": False, "nonsense": 5}.get(value)

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["parked"] == 2 and len(seen) == 3)
    assert await taken(client, f"{queue}.parked") == ["refused", "nonsense"]
    assert len(program_errors) == 1


# ---------------------------------------------------------------------- what leaves for good


async def test_each_dropped_message_is_in_the_log(
    client: leveret.Client, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with client.producer() as producer:
        for number in range(50):
            await producer.publish(number, queue, message_id=f"id-{number}")
    consumer = client.consumer(queue, on_error=Drop())

    async def handler(value: int, message: leveret.Message) -> None:
        raise KeyError

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["dropped"] == 50)
    records = said(caplog, "dropped: KeyError")
    assert sorted(map(int, re.findall(r"'id-(\d+)'", " ".join(records)))) == list(range(50))
    assert all(f"queue {queue!r}" in record for record in records)


@pytest.mark.parametrize("ack", ["none", "handoff"])
async def test_what_is_lost_at_a_stop_is_counted_and_each_id_is_in_the_log(
    client: leveret.Client, queue: str, ack: Any, caplog: pytest.LogCaptureFixture
) -> None:
    count = 300
    async with client.producer() as producer:
        for number in range(count):
            producer.publish_nowait(number, queue, message_id=f"id-{number}")
        await producer.flush()
    consumer = client.consumer(queue, ack=ack, prefetch=100)
    began = asyncio.Event()
    handled: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        if value == 5:
            began.set()
            await asyncio.Event().wait()
        handled.append(value)

    async with running(consumer, handler):
        await began.wait()
        await until(lambda: consumer.counters()["delivered"] >= 100)
    counters = consumer.counters()
    left = await taken(client, queue)
    assert handled == [0, 1, 2, 3, 4]
    assert counters["dropped"] == count - len(handled) - len(left)
    named = set(map(int, re.findall(r"'id-(\d+)'", " ".join(said(caplog, "dropped")))))
    assert named == set(range(count)) - set(handled) - set(left)


async def test_a_message_that_is_rejected_by_hand_is_in_the_log(
    client: leveret.Client, queue: str, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(client, queue, "a", message_id="its id")
    async with client.consumer(queue) as consumer:
        message = await consumer.get()
        assert message is not None
        assert message.dead_letter("it is too old")
        assert consumer.counters()["rejected"] == 1
        assert consumer.counters()["dead_lettered"] == 0
    (record,) = said(caplog, "rejected; lost unless the queue has a dead-letter exchange: it is too old")
    assert f"queue {queue!r}: message 'its id' (3 bytes)" in record


# ---------------------------------------------------------------------- queues that go with a connection


async def test_a_message_of_a_transient_queue_is_held_and_then_parked_with_all_others(
    client: leveret.Client, exclusive: str, caplog: pytest.LogCaptureFixture
) -> None:
    await publish(client, exclusive, "bad", "good")
    consumer = client.consumer(exclusive, on_error=Retry([0.2, 0.3]))
    seen: list[tuple[str, int]] = []
    times: list[float] = []

    async def handler(value: str, message: leveret.Message) -> None:
        seen.append((value, attempts_of(message)))
        if value == "bad":
            times.append(asyncio.get_running_loop().time())
            raise ValueError

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["held"] == 1)
        await until(lambda: consumer.counters()["parked"] == 1)
    # The other one does not wait.
    assert seen == [("bad", 0), ("good", 0), ("bad", 1), ("bad", 2)]
    assert times[1] - times[0] >= 0.199  # the loop counts whole milliseconds
    assert times[2] - times[1] >= 0.299
    counters = consumer.counters()
    assert (counters["retried"], counters["delivered"], counters["rejected"]) == (2, 2, 0)
    (parked,) = await messages(client, "leveret.parked")
    assert parked.value == "bad"
    assert parked.headers["x-leveret-queue"] == exclusive
    assert parked.headers["x-leveret-attempt"] == 3
    assert said(caplog, "parked in 'leveret.parked'")


@pytest.mark.parametrize("options", [{"auto_delete": True}, {}], ids=["auto-delete", "a name without room"])
async def test_no_queues_are_left_behind_by_messages_of_other_transient_queues(
    client: leveret.Client, name: Callable[[str], str], options: dict[str, Any]
) -> None:
    transient = name("transient") if options else name("long").ljust(250, "q")
    await client.declare(Topology().queue(transient, **options))
    await publish(client, transient, "value")
    consumer = client.consumer(transient, on_error=Retry([0.1]), prefetch=1)

    async def handler(value: str, message: leveret.Message) -> None:
        if not attempts_of(message):
            raise ValueError

    async with running(consumer, handler):
        # The only message that may be held is held, and an auto-delete queue is there all the same.
        await until(lambda: consumer.counters()["acked"] == 1)
    await client.delete_queue(transient)
    with pytest.raises(leveret.errors.NotFound):
        async with client.channels.acquire() as channel:
            await channel.queue_declare(f"{transient[:239]}.retry.100"[:255], passive=True)


# ---------------------------------------------------------------------- retry and park by hand


async def test_a_handler_retries_and_parks_its_message_itself(client: leveret.Client, queue: str) -> None:
    await publish(client, queue, "retry", "park", "fine")
    consumer = client.consumer(queue)
    seen: list[tuple[str, int]] = []

    async def handler(value: str, message: leveret.Message) -> None:
        seen.append((value, attempts_of(message)))
        if value == "park":
            assert message.park("it is for a person")
            assert not message.park()
            assert not message.ack()
        elif value == "retry" and not attempts_of(message):
            assert await message.retry(0.1)
            assert message.is_settled

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["acked"] == 4)
    assert seen == [("retry", 0), ("park", 0), ("fine", 0), ("retry", 1)]
    counters = consumer.counters()
    assert (counters["retried"], counters["parked"], counters["handler_errors"]) == (1, 1, 0)
    (parked,) = await messages(client, f"{queue}.parked")
    assert (parked.value, parked.headers["x-leveret-error"]) == ("park", "it is for a person")


@pytest.mark.parametrize("way", ["iterating", "get"])
async def test_a_caller_that_takes_messages_itself_retries_and_parks_them(
    client: leveret.Client, exclusive: str, queue: str, way: str
) -> None:
    async def take(consumer: leveret.Consumer[Any]) -> leveret.Message:
        async with asyncio.timeout(5):
            if way == "iterating":
                return await anext(consumer)
            while (message := await consumer.get()) is None:  # noqa: ASYNC110 - the queue has no event
                await asyncio.sleep(0.01)
            return message

    for source, parking in ((queue, f"{queue}.parked"), (exclusive, "leveret.parked")):
        await publish(client, source, "value")
        async with client.consumer(source) as consumer:
            message = await take(consumer)
            with pytest.raises(ConfigurationError, match=r"delay is 0.01 s; it must be 0.1 to 604800 s"):
                message.retry(0.01)
            assert await message.retry(0.1)
            again = await take(consumer)
            assert (again.value, attempts_of(again)) == ("value", 1)
            assert await again.park()
            assert not again.retry(1)
        (parked,) = await messages(client, parking)
        assert parked.headers["x-leveret-error"] == "parked by the handler"


async def test_messages_of_a_batch_are_refused_retried_and_parked_one_by_one(
    client: leveret.Client, queue: str
) -> None:
    await publish(client, queue, *range(5))
    async with client.batches(queue, int, size=5, wait=2) as batches:
        batch = await anext(batches)
        assert batch.fail(0)
        assert batch.fail(1, "park", reason="odd")
        assert batch.fail(2, "retry", delay=0.1)
        assert not batch.fail(2)
        for options, option in (
            ({"verb": "retry"}, "delay"),
            ({"verb": "park", "delay": 1}, "delay"),
            ({"verb": "requeue", "reason": "x"}, "reason"),
            ({"verb": "bury"}, "verb"),
        ):
            with pytest.raises(ConfigurationError) as refused:
                batch.fail(3, **options)
            assert refused.value.option == option
        assert batch.ack() == 2
        batch = await anext(batches)
        assert batch.values == [2]
        batch.ack()
        await until(lambda: batches.consumer.counters()["parked"] == 2)
    found = {message.value: message.headers["x-leveret-error"] for message in await messages(client, f"{queue}.parked")}
    assert found == {0: "refused by the handler", 1: "odd"}


async def test_a_handler_of_batches_is_checked_before_anything_is_sent_and_may_refuse(
    client: leveret.Client, queue: str
) -> None:
    await publish(client, queue, 1, 2)
    batches = client.batches(queue, int, size=2, wait=2)
    with pytest.raises(ConfigurationError, match=r"must take \(values, batch\)"):
        await batches.run(lambda values: None)  # type: ignore[arg-type, misc]

    async def handler(values: list[int], batch: Any) -> bool:
        return False

    task = asyncio.create_task(batches.run(handler))
    await until(lambda: batches.consumer.counters()["parked"] == 2)
    batches.consumer.stop()
    await task
    assert await taken(client, f"{queue}.parked") == [1, 2]


async def test_a_message_is_held_while_the_circuit_breaker_is_open(client: leveret.Client, queue: str) -> None:
    await publish(client, queue, *range(20))
    consumer = client.consumer(queue, prefetch=4)
    loop = asyncio.get_running_loop()
    closed_at = loop.time() + 0.5
    handled: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        if loop.time() < closed_at:
            raise CircuitOpen("the circuit breaker is open", retry_after=0.1)
        assert not message.redelivered
        handled.append(value)

    async with running(consumer, handler):
        await until(lambda: len(handled) == 20)
        counters = consumer.counters()
    assert sorted(handled) == list(range(20))
    assert (counters["delivered"], counters["released"], counters["handler_errors"]) == (20, 0, 0)
