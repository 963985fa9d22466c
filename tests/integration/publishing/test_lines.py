"""What waits in line for room: nothing of it is lost or overtaken, and its values are those of the call."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.confirming import served
from tests.support.queues import taken
from tests.support.reopening import outcomes

import leveret
from leveret.broker import EmbeddedBroker
from leveret.errors import OperationTimeout, PublishError, WrongLoopError
from leveret.message import Outcome
from leveret.plugins.interfaces import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.brokers import Broker

pytestmark = pytest.mark.usefixtures("no_leftovers")


class Retries(RetryPolicy):
    """Tries again soon."""

    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        return 0.1 if attempt < 3 else None


async def test_flush_waits_for_what_waits_for_room(broker: Broker, client: leveret.Client, queue: str) -> None:
    async with client.producer(max_outstanding=2) as producer:
        publishings = [producer.publish(number, queue) for number in range(10)]
        await producer.flush()
        assert all(it.done() for it in publishings)
    assert await taken(client, queue) == list(range(10))


async def test_closing_publishes_what_nobody_awaits(broker: Broker, client: leveret.Client, queue: str) -> None:
    async with client.producer(max_outstanding=2) as producer:
        for number in range(10):
            producer.publish(number, queue)
        producer.enqueue(10, queue)
        producer.publish(11, queue, confirm_timeout=4)
    assert await taken(client, queue) == list(range(12))


async def test_nobody_has_to_await_more_than_the_default_window(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        for number in range(10_500):
            producer.publish(number, queue)
        await producer.flush()
        assert producer.counters()["confirmed"] == 10_500
    assert await client.purge(queue) == 10_500


async def test_flush_says_what_waits_when_its_time_is_over(tight_client: leveret.Client) -> None:
    async with tight_client.producer(max_outstanding=1, confirm_timeout=1) as producer:
        producer._set_limit(0)  # as if the window were full
        waits = producer.publish(1, "q")
        with pytest.raises(OperationTimeout, match=r"1 publishings wait for room after 0\.05 s"):
            await producer.flush(0.05)
        producer._set_limit(1)
        producer._wake()
        assert (await waits).outcome is Outcome.CONFIRMED


@pytest.mark.parametrize("kind", ["batch", "confirm_timeout", "enqueue"])
async def test_those_in_line_are_served_in_the_order_of_their_calls(
    broker: Broker, client: leveret.Client, queue: str, kind: str
) -> None:
    async with client.producer(max_outstanding=3, max_buffered=3) as producer:
        for number in range(3):
            producer.publish_nowait(number, queue)
        calls: dict[str, Callable[[], Any]] = {
            "batch": lambda: producer.publish_batch([4], queue),
            "confirm_timeout": lambda: producer.publish(4, queue, confirm_timeout=4),
            "enqueue": lambda: producer.enqueue(4, queue),
        }
        before = producer.publish(3, queue)
        task = asyncio.create_task(calls[kind]())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        behind = producer.publish(5, queue)
        await asyncio.gather(before, behind, task)
        await producer.flush()
    assert await taken(client, queue) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("retry", [None, Retries()], ids=["no policy", "a policy"])
@pytest.mark.parametrize("window", [1, 1000])
async def test_order_and_values_are_those_of_the_calls(
    client: leveret.Client, queue: str, retry: RetryPolicy | None, window: int
) -> None:
    async with client.producer(retry=retry, max_outstanding=window) as producer:
        value = {"number": 1}
        calls: list[Any] = [
            producer.publish({"number": 0}, queue),
            producer.publish(value, queue, confirm_timeout=4),
            producer.publish({"number": 2}, queue),
            producer.enqueue({"number": 3}, queue),
        ]
        value["number"] = -1
        await asyncio.gather(*calls)
        await producer.flush()
    assert await taken(client, queue) == [{"number": number} for number in range(4)]


async def test_flush_waits_for_what_a_policy_tries_again(tight_client: leveret.Client) -> None:
    async with tight_client.producer(retry=Retries()) as producer:
        assert (await producer.publish("fills it", "full")).outcome is Outcome.CONFIRMED
        refused = producer.publish("refused", "full")
        await asyncio.sleep(0.05)
        assert await tight_client.purge("full") == 1
        await producer.flush()
        assert refused.done()


async def test_what_is_cancelled_before_its_task_begins_is_not_sent(client: leveret.Client, queue: str) -> None:
    async with client.producer(max_outstanding=1) as producer:
        first = producer.publish(1, queue)
        task = asyncio.create_task(producer.publish(2, queue))
        task.cancel()
        await asyncio.wait([task])
        await first
        await producer.flush()
    assert await taken(client, queue) == [1]


@pytest.mark.parametrize("form", ["publish", "enqueue"])
async def test_a_thread_publishes_through_the_loop(client: leveret.Client, queue: str, form: str) -> None:
    loop = asyncio.get_running_loop()
    async with client.producer() as producer:

        def work() -> object:
            return asyncio.run_coroutine_threadsafe(getattr(producer, form)(1, queue), loop).result(10)

        await asyncio.to_thread(work)
        await producer.flush()
    assert await taken(client, queue) == [1]


def test_run_until_complete_takes_a_publishing() -> None:
    loop = asyncio.new_event_loop()

    async def begin() -> tuple[EmbeddedBroker, leveret.Client, leveret.Producer]:
        broker = await EmbeddedBroker().start()
        client = await leveret.connect(broker.url)
        await client.declare(leveret.Topology().queue("q"))
        return broker, client, await client.producer().open()

    broker, client, producer = loop.run_until_complete(begin())
    try:
        assert loop.run_until_complete(producer.publish(1, "q")).outcome is Outcome.CONFIRMED
    finally:
        loop.run_until_complete(client.close())
        loop.run_until_complete(broker.stop())
        loop.close()


async def test_the_traceback_of_a_failure_does_not_grow(client: leveret.Client) -> None:
    async with client.producer() as producer:
        publishing = producer.publish(1, "nowhere")
        lengths = []
        for _ in range(5):
            with pytest.raises(PublishError) as raised:
                await publishing
            lengths.append(len(raised.traceback))
        assert lengths[1:] == [lengths[-1]] * 4


class Shop(enum.StrEnum):
    """Names that are members."""

    NAME = "shop"
    TENANT = "tenant"


async def test_members_of_a_str_enum_are_text_everywhere(client: leveret.Client, queue: str) -> None:
    await client.declare(leveret.Topology().exchange(Shop.NAME, "fanout").bind(queue, Shop.NAME))
    async with client.producer(exchange=Shop.NAME) as producer:
        await producer.publish(1, "", headers={Shop.TENANT: 7, "nested": {Shop.TENANT: 8}})
        await producer.message(2).header(Shop.TENANT, 9).publish()
    async with client.consumer(queue) as consumer:
        first, second = await anext(consumer), await anext(consumer)
        assert first.headers == {"tenant": 7, "nested": {"tenant": 8}}
        assert second.headers == {"tenant": 9}
        first.ack()
        second.ack()


async def test_a_channel_that_refused_something_is_not_left_to_the_next_producer(tight_client: leveret.Client) -> None:
    async with tight_client.producer() as producer:
        await producer.publish("fills it", "full")
        with pytest.raises(PublishError):
            await producer.publish("refused", "full")
    assert len(tight_client.connection.confirm_channels) == 0
    async with tight_client.producer() as producer:
        assert await outcomes([producer.publish("taken", "q")]) == [Outcome.CONFIRMED]
    assert len(tight_client.connection.confirm_channels) == 1


async def test_closing_goes_on_for_as_long_as_the_line_moves() -> None:
    async with served(max_outstanding=1, confirm_timeout=2, publish_timeout=60, mandatory=False) as (server, producer):
        publishings = [producer.publish(number, "key") for number in range(4)]
        closing = asyncio.create_task(producer.close())
        # More than confirm_timeout in all, and less for each.
        for number in range(4):
            assert await server.publishings() == [b"%d" % number]
            await asyncio.sleep(0.8)
            assert not closing.done()
            server.ack(number + 1)
        await closing
        assert await outcomes(publishings) == [Outcome.CONFIRMED] * 4


async def test_nothing_is_lost_in_silence_when_the_loop_is_closed() -> None:
    async def opened() -> leveret.Producer:
        async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
            await client.declare(leveret.Topology().queue("q"))
            async with client.producer() as producer:
                await producer.publish(1, "q")
                return producer

    def elsewhere() -> None:
        producer = asyncio.run(opened())
        for call in (producer.publish, producer.enqueue):
            with pytest.raises(WrongLoopError):
                call(2, "q")

    await asyncio.to_thread(elsewhere)
