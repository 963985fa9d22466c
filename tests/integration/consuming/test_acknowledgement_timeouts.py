"""A broker that waits too long for an acknowledgement ends the channel or the consumer, which goes on."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import running, until
from tests.support.queues import taken

import leveret

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.rabbitmq import RabbitMQNode

pytestmark = pytest.mark.usefixtures("no_leftovers")


TIMEOUT = 1.0


@pytest.fixture
async def impatient(rabbitmq: RabbitMQNode) -> AsyncIterator[str]:
    """The URL of a broker that waits a second for acknowledgements."""

    def limit(milliseconds: int, tick: int) -> None:
        for name, value in (("consumer_timeout", milliseconds), ("channel_tick_interval", tick)):
            rabbitmq.ctl("eval", f"application:set_env(rabbit, {name}, {value}).")

    await asyncio.to_thread(limit, round(TIMEOUT * 1000), 200)  # both are read when a channel begins
    yield rabbitmq.url
    await asyncio.to_thread(limit, 1_800_000, 60_000)


@contextlib.asynccontextmanager
async def queue_with_a_message(
    url: str, work: str, kind: leveret.Classic | leveret.Quorum, *, auto_recovery: bool = True
) -> AsyncIterator[Any]:
    async with leveret.connect(url, auto_recovery=auto_recovery) as client:
        await client.declare(leveret.Topology().queue(work, kind))
        async with client.producer() as producer:
            await producer.publish(1, work)
        yield client
        assert await taken(client, work) == []
        await client.delete_queue(work)


@pytest.mark.server_version(before=(4, 3))
@pytest.mark.parametrize("kind", [leveret.Classic(), leveret.Quorum()], ids=["classic", "quorum"])
@pytest.mark.parametrize("goes_on", [False, True])
async def test_the_broker_says_that_a_delivery_was_not_acknowledged_in_time(
    impatient: str,
    unique_name: Callable[[str], str],
    kind: leveret.Classic | leveret.Quorum,
    goes_on: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    work = unique_name("work")
    async with queue_with_a_message(impatient, work, kind, auto_recovery=goes_on) as client:
        consumer = client.consumer(work)
        redelivered: list[bool] = []

        async def handler(value: int, message: leveret.Message) -> None:
            redelivered.append(message.redelivered)
            if not message.redelivered:
                await until(lambda: message.is_settled, seconds=20)

        async with running(consumer, handler) as task:
            if goes_on:
                await until(lambda: consumer.counters()["acked"] == 1, seconds=20)
                assert redelivered == [False, True]
                assert "not acknowledged in the broker's time" in caplog.text
            else:
                await asyncio.wait([task], timeout=20)
                with pytest.raises(leveret.errors.DeliveryTimeout) as late:
                    await task
                assert late.value.reply_code == 406
                assert work in str(late.value)
        assert consumer.counters()["stale_acks"] == 1
        if not goes_on:
            assert await taken(client, work) == [1]


@pytest.mark.server_version(since=(4, 3))
@pytest.mark.parametrize("goes_on", [False, True])
async def test_the_broker_cancels_a_consumer_of_a_quorum_queue_when_a_delivery_was_not_acknowledged_in_time(
    impatient: str, unique_name: Callable[[str], str], goes_on: bool, caplog: pytest.LogCaptureFixture
) -> None:
    work = unique_name("work")
    async with queue_with_a_message(impatient, work, leveret.Quorum()) as client:
        consumer = client.consumer(work, concurrency=2, on_cancel="resubscribe" if goes_on else "stop")
        began = asyncio.get_running_loop().time()
        redelivered: list[bool] = []

        async def handler(value: int, message: leveret.Message) -> None:
            redelivered.append(message.redelivered)
            if message.redelivered:
                return
            if goes_on:
                await until(lambda: len(redelivered) == 2, seconds=20)
            else:
                # The broker has put it back, and hands it to another consumer.
                async with asyncio.timeout(20), client.consumer(work) as other:
                    again = await anext(other)
                    redelivered.append(again.redelivered)
                    again.ack()

        async with running(consumer, handler) as task:
            if goes_on:
                await until(lambda: consumer.counters()["acked"] == 2, seconds=20)
                assert "not acknowledged in the broker's time" in caplog.text
            else:
                await asyncio.wait([task], timeout=20)
                with pytest.raises(leveret.errors.ConsumerCancelled, match="not acknowledged in the broker's time"):
                    await task
        assert redelivered == [False, True]
        assert asyncio.get_running_loop().time() - began >= TIMEOUT
        # The acknowledgement that came too late closed nothing.
        assert client.connection.is_open


@pytest.mark.server_version(since=(4, 3))
async def test_what_waited_in_a_cancelled_consumer_is_handled_once_when_it_goes_on(
    impatient: str, unique_name: Callable[[str], str]
) -> None:
    work = unique_name("work")
    async with queue_with_a_message(impatient, work, leveret.Quorum()) as client:
        async with client.producer() as producer:
            await producer.publish(2, work)
        consumer = client.consumer(work)
        handled: list[int] = []

        async def handler(value: int, message: leveret.Message) -> None:
            handled.append(value)
            if len(handled) == 1:
                await asyncio.sleep(4.5 * TIMEOUT)  # the broker cancels the consumer four times meanwhile

        async with running(consumer, handler):
            await until(lambda: {*handled[1:]} == {1, 2}, seconds=20)
            await asyncio.sleep(0.3)  # what came more often would be handled now
        assert sorted(handled) == [1, 1, 2]


@pytest.mark.server_version(since=(4, 3))
async def test_a_consumer_of_a_classic_queue_has_no_time_limit(
    impatient: str, unique_name: Callable[[str], str]
) -> None:
    work = unique_name("work")
    async with queue_with_a_message(impatient, work, leveret.Classic()) as client:
        consumer = client.consumer(work)
        redelivered: list[bool] = []

        async def handler(value: int, message: leveret.Message) -> None:
            redelivered.append(message.redelivered)
            await asyncio.sleep(3 * TIMEOUT)

        async with running(consumer, handler):
            await until(lambda: consumer.counters()["acked"] == 1, seconds=20)
        assert redelivered == [False]
