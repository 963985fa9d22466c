"""The error of a publishing that is late names the stage at which it was."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

import pytest
from tests.support.confirming import served
from tests.support.outcomes import awaited, failure
from tests.support.queues import messages

import leveret
from leveret import Outcome
from leveret.errors import ConfirmTimeout, PublishError

if TYPE_CHECKING:
    from tests.support.brokers import Broker

    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_the_stage_is_buffer_when_there_was_no_room_in_time() -> None:
    async with served(max_outstanding=1, max_buffered=1, publish_timeout=0.2) as (server, producer):
        first = producer.publish_nowait(1, "key")
        errors = await asyncio.gather(
            failure(producer.publish(2, "key")), failure(producer.enqueue(3, "key")), return_exceptions=True
        )
        for error in errors:
            assert isinstance(error, PublishError)
            assert (error.outcome, error.stage) == (Outcome.NOT_SENT, "buffer")
            assert "1 publishings of 1 bytes wait for confirms (limit 1)" in str(error)
            assert "waited publish_timeout of 0.2 s" in str(error)
        assert await server.publishings() == [b"1"]  # and neither of the others
        # Its own deadline is the same, but it was written.
        with pytest.raises(PublishError) as late:
            await first
        assert (late.value.outcome, late.value.stage) == (Outcome.UNKNOWN, "confirm")


async def test_the_stage_is_blocked_when_the_broker_blocked_too_long(
    broker: Broker, other: leveret.Client, queue: str
) -> None:
    async with leveret.connect(broker.url, close_timeout=0.3) as client:
        producer = await client.producer(publish_timeout=0.6, confirm_timeout=0.6).open()
        await broker.block()
        try:
            while client.connection.blocked is None:
                with contextlib.suppress(ConfirmTimeout):
                    await producer.publish("the first", queue)
            for call in (producer.publish("blocked", queue), producer.enqueue("blocked", queue)):
                error = await failure(call)
                assert isinstance(error, PublishError)
                assert (error.outcome, error.stage) == (Outcome.NOT_SENT, "blocked")
                assert "waited publish_timeout of 0.6 s" in str(error)
        finally:
            await broker.unblock()
        assert (await producer.publish("after", queue)).outcome is Outcome.CONFIRMED
    read = [message.value for message in await messages(other, queue)]
    assert read[-1] == "after"
    assert "blocked" not in read


async def test_the_stage_is_connection_when_it_did_not_come_back_in_time(
    proxy: FaultProxy, other: leveret.Client, queue: str
) -> None:
    async with (
        leveret.connect(proxy.url, close_timeout=0.3) as client,
        client.producer(publish_timeout=0.2, confirm_timeout=0.2) as producer,
    ):
        await producer.publish("before", queue)
        proxy.close()
        await client.connection._ended
        calls = [
            awaited(await producer.enqueue("lost", queue)),
            awaited(producer.publish_nowait("lost", queue)),
            producer.publish("lost", queue),
        ]
        for call in calls:
            error = await failure(call)
            assert isinstance(error, PublishError)
            assert (error.outcome, error.stage, error.attempts) == (Outcome.NOT_SENT, "connection", 0)
            assert "waited publish_timeout of 0.2 s" in str(error)
        batch = await producer.publish_batch(["lost"], queue)
        (error,) = batch.failures.values()
        assert isinstance(error, PublishError)
        assert (error.outcome, error.stage) == (Outcome.NOT_SENT, "connection")
    assert [message.value for message in await messages(other, queue)] == ["before"]


async def test_the_stage_is_confirm_when_that_did_not_come_in_time(
    proxy: FaultProxy, other: leveret.Client, queue: str
) -> None:
    async with (
        leveret.connect(proxy.url, close_timeout=0.3) as client,
        client.producer(confirm_timeout=0.2) as producer,
    ):
        proxy.swallow()
        for error in await asyncio.gather(
            failure(producer.publish(1, queue)), failure(awaited(producer.publish_nowait(2, queue)))
        ):
            assert isinstance(error, ConfirmTimeout)
            assert (error.outcome, error.stage) == (Outcome.UNKNOWN, "confirm")
    assert await other.purge(queue) == 2
