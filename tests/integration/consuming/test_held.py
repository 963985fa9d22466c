"""Messages behind failed ones that the consumer holds: they are handled, whatever the prefetch."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import running, until
from tests.support.queues import taken

import leveret
from leveret import Retry, Topology
from leveret.consuming.failing import held_messages
from leveret.consuming.failing.held_messages import Intake
from leveret.errors import CircuitOpen

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.time_limit(60)]

BAD = -1
#: Nothing that is held is due before a test ends.
LONG = Retry([600.0])


async def publish(client: leveret.Client, queue: str, *values: Any, **options: Any) -> None:
    async with client.producer() as producer:
        (await producer.publish_batch(values, queue, **options)).raise_for_failures()


class Handler:
    """Fails for BAD until it is mended, and notes the others."""

    def __init__(self) -> None:
        self.good: list[int] = []
        self.is_mended = False

    async def __call__(self, value: int, message: leveret.Message) -> None:
        if value != BAD:
            self.good.append(value)
        elif not self.is_mended:
            raise ValueError


@pytest.fixture
async def queue(client: leveret.Client, name: Callable[[str], str]) -> AsyncIterator[str]:
    """A durable queue without room for the names of retry queues: what fails is held, with any rights."""
    queue = name("held").ljust(250, "q")
    await client.declare(Topology().queue(queue))
    yield queue
    await client.delete_queue(queue)


@pytest.mark.parametrize("exclusive", [False, True], ids=["shared", "exclusive"])
@pytest.mark.parametrize(("prefetch", "bad"), [(1, 1), (1, 5), (4, 20), (100, 50)])
async def test_good_messages_are_handled_while_bad_ones_are_held(
    client: leveret.Client, queue: str, prefetch: int, bad: int, exclusive: bool
) -> None:
    await publish(client, queue, *[BAD] * bad, *range(5))
    consumer = client.consumer(queue, int, prefetch=prefetch, exclusive=exclusive, on_error=LONG)
    handler = Handler()
    async with running(consumer, handler):
        await until(lambda: len(handler.good) == 5, seconds=20)
        assert handler.good == list(range(5))
        counters = consumer.counters()
        assert (counters["held"], counters["delivered"], counters["released"]) == (bad, bad + 5, 0)
        assert consumer.prefetch == prefetch
        await until(lambda: consumer.health().live)
    assert await taken(client, queue) == [BAD] * bad


@pytest.mark.parametrize("options", [{"auto_delete": True}, {"exclusive": True}], ids=["auto-delete", "exclusive"])
async def test_good_messages_of_a_transient_queue_are_handled_while_a_bad_one_is_held(
    client: leveret.Client, name: Callable[[str], str], options: dict[str, Any]
) -> None:
    transient = name("transient")
    await client.declare(Topology().queue(transient, **options))
    await publish(client, transient, BAD, BAD, *range(5))
    consumer = client.consumer(transient, int, prefetch=1, on_error=LONG)
    handler = Handler()
    async with running(consumer, handler):
        await until(lambda: len(handler.good) == 5, seconds=20)
        assert consumer.counters()["held"] == 2
    await client.delete_queue(transient)


async def test_messages_that_wait_are_handled_before_one_that_is_due_again(client: leveret.Client, queue: str) -> None:
    await publish(client, queue, BAD, 0, 1, 2)
    consumer = client.consumer(queue, int, prefetch=10, on_error=Retry([0.1]))
    seen: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        seen.append(value)
        if value == BAD and seen.count(BAD) == 1:
            raise ValueError
        if value == 0:
            await until(lambda: not consumer.counters()["held"])  # the bad one is due

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["acked"] == 4)
    assert seen == [BAD, 0, 1, 2, BAD]


async def test_messages_that_a_circuit_breaker_refuses_bring_no_others(client: leveret.Client, queue: str) -> None:
    await publish(client, queue, *range(12))
    consumer = client.consumer(queue, int, prefetch=4)
    is_open = True
    handled: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        if is_open:
            raise CircuitOpen("the circuit breaker is open", retry_after=0.2)
        handled.append(value)

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["held"] == 4)
        await asyncio.sleep(0.5)
        assert consumer.counters()["delivered"] == 4
        is_open = False
        await until(lambda: len(handled) == 12)


async def test_a_consumer_that_holds_as_many_as_it_may_is_not_healthy_and_goes_on_when_one_is_handled(
    client: leveret.Client, queue: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(held_messages, "MOST_HELD", 10)
    await publish(client, queue, *[BAD] * 30, *range(5))
    consumer = client.consumer(queue, int, prefetch=20, on_error=Retry([1.0] * 60))
    handler = Handler()
    report = client.report(every=0.5, alert_silence=1.0)
    with caplog.at_level(logging.WARNING, "leveret"):
        async with running(consumer, handler):
            await until(lambda: consumer._held.intake is Intake.FULL and not consumer.health().live)
            # What was on its way is held, too, and then nothing comes.
            await until(lambda: "silence" in report.firing, seconds=20)
            delivered = consumer.counters()["delivered"]
            assert 20 <= delivered <= 30
            health = consumer.health()
            assert (health.expected, health.live, bool(health)) == (True, False, False)
            assert not client.health().ready
            assert handler.good == []
            handler.is_mended = True
            await until(lambda: len(handler.good) == 5, seconds=20)
            await until(lambda: client.health().ready)
    assert caplog.text.count("failed messages are held, which is the most") == 1
    assert await taken(client, queue) == []


async def test_a_pause_of_the_user_is_expected_of_nobody(client: leveret.Client, queue: str) -> None:
    await publish(client, queue, BAD, BAD)
    consumer = client.consumer(queue, int, prefetch=1, on_error=LONG)
    async with running(consumer, Handler()):
        await until(lambda: consumer.counters()["held"] == 2)
        await consumer.pause()
        assert not consumer.health().expected
        assert client.health().ready
        assert consumer.counters()["held"] == 0


@pytest.mark.parametrize("end", ["stop", "cancel", "drain", "pause"])
async def test_nothing_is_lost_or_waited_for_when_a_consumer_ends_while_its_subscription_is_renewed(
    client: leveret.Client, queue: str, end: str
) -> None:
    await publish(client, queue, *[BAD] * 20)
    consumer = client.consumer(queue, int, prefetch=1, on_error=LONG)
    async with running(consumer, Handler()):
        await until(lambda: consumer.counters()["held"] >= 3 and consumer._renewal._task is not None)
        if end == "stop":
            consumer.stop()
        elif end == "drain":
            assert await consumer.drain(20)
        else:
            await getattr(consumer, end)()
    assert await taken(client, queue) == [BAD] * 20


async def test_a_prefetch_that_is_set_while_the_subscription_is_renewed_stays(
    client: leveret.Client, queue: str
) -> None:
    await publish(client, queue, *[BAD] * 10)
    consumer = client.consumer(queue, int, prefetch=1, on_error=LONG)
    async with running(consumer, Handler()):
        await until(lambda: consumer._renewal._task is not None)
        await consumer.set_prefetch(7)
        await until(lambda: consumer.counters()["held"] == 10)
        assert consumer.prefetch == 7


async def test_an_undecodable_message_is_counted_once_however_often_it_is_tried(
    client: leveret.Client, name: Callable[[str], str], caplog: pytest.LogCaptureFixture
) -> None:
    queue = name("undecodable")
    await client.declare(Topology().queue(queue))
    # Its headers leave no room in a frame for those of a copy, so it cannot be parked.
    await publish(client, queue, "no number", headers={"large": "x" * 130_900})
    consumer = client.consumer(queue, int, on_error=None)
    async with running(consumer, Handler()):
        await until(lambda: caplog.text.count("is held, because it could not be copied") == 2, seconds=20)
        assert consumer.counters()["undecodable"] == 1
    assert caplog.text.count("1 message could not be decoded") == 1
    await client.delete_queue(queue)
