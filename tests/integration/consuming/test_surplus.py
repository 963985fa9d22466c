"""A server that sends more than a consumer asked for cannot fill its memory: the connection ends with a typed error."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Connection
from tests.corpus.frames import NO_PROPERTIES, body, deliver, header
from tests.support.handling import Held, running, until
from tests.support.outcomes import refusal
from tests.support.scripted import Scripted, connected

from leveret.errors import RemoteProtocolError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Iterable

    import leveret

pytestmark = pytest.mark.usefixtures("no_leftovers")

#: `max_body_size`, which is also what a server may send beyond the prefetch. A message counts for 512 bytes more.
LIMIT = 10_000
COST = 512 + len(NO_PROPERTIES)
#: Messages that may be on their way when a consumer without acknowledgements is cancelled.
SENT_AHEAD = 1024


@pytest.fixture
async def client_of_script(scripted: Scripted) -> AsyncIterator[leveret.Client]:
    """A client of the scripted broker, which does not come back."""
    options = {"max_body_size": LIMIT, "auto_recovery": False, "close_timeout": 0.2, "operation_timeout": 5}
    async with connected(scripted, **options) as client:
        yield client


def send(scripted: Scripted, first: int, sizes: Iterable[int]) -> int:
    """Sends deliveries with bodies of these sizes to the consumer that began last; returns the next delivery tag."""
    channel, consume = scripted.got("Basic.Consume")[-1]
    data = b""
    for size in sizes:
        data += deliver(channel, first, consumer_tag=consume.consumer_tag) + header(channel, size)
        data += body(channel, bytes(size)) if size else b""
        first += 1
    scripted.peers[-1].send_bytes(data)
    return first


async def farewell(scripted: Scripted) -> int:
    """The reply code that the client ends the connection with."""
    await until(lambda: bool(scripted.got("Connection.Close")))
    close = scripted.got("Connection.Close")[-1][1]
    assert isinstance(close, Connection.Close)
    return close.reply_code or 0


async def delivered(consumer: leveret.Consumer[Any], count: int) -> None:
    """Waits until so many messages were delivered."""
    await until(lambda: consumer.counters()["delivered"] == count)


async def assert_refused(
    scripted: Scripted, task: asyncio.Task[Any], handler: Held, code: int = 506
) -> RemoteProtocolError:
    assert await farewell(scripted) == code
    handler.go.set()
    error = await refusal(task, within=10)
    assert isinstance(error, RemoteProtocolError), repr(error)
    assert error.reply_code == code
    return error


@pytest.mark.parametrize("reads", [1, 2])
@pytest.mark.parametrize("beyond", [-1, 0, 1])
async def test_server_that_ignores_the_prefetch(
    scripted: Scripted, client_of_script: leveret.Client, beyond: int, reads: int
) -> None:
    consumer = client_of_script.consumer("q", serializer="bytes", prefetch=10)
    surplus = [86] * 10 + [LIMIT - 10 * (COST + 86) - COST + beyond]
    handler = Held()
    async with running(consumer, handler) as task:
        await until(lambda: consumer.health().live)
        tag = send(scripted, 1, [0] * 10)
        for part in [surplus] if reads == 1 else [surplus[:6], surplus[6:]]:
            await delivered(consumer, tag - 1)
            tag = send(scripted, tag, part)
        if beyond <= 0:
            await until(lambda: consumer.counters()["delivered"] == 21)
            assert not task.done()
        else:
            error = await assert_refused(scripted, task, handler)
            assert f"11 deliveries of {LIMIT + 1} bytes" in str(error)
            assert "max_body_size" in str(error)


async def test_surplus_that_was_settled_counts_no_more(scripted: Scripted, client_of_script: leveret.Client) -> None:
    consumer = client_of_script.consumer("q", serializer="bytes", prefetch=10)

    async def handler(value: bytes, message: leveret.Message) -> None:
        """Does nothing."""

    async with running(consumer, handler):
        await until(lambda: consumer.health().live)
        tag = 1
        for _ in range(10):
            tag = send(scripted, tag, [400] * 18)
            await delivered(consumer, tag - 1)
            await until(lambda: consumer.counters()["unsettled"] == 0)
        assert consumer.counters()["acked"] == 180


@pytest.mark.parametrize("beyond", [-1, 0, 1])
async def test_consumer_that_takes_the_place_of_another_has_its_own_prefetch(
    scripted: Scripted, client_of_script: leveret.Client, beyond: int
) -> None:
    consumer = client_of_script.consumer("q", serializer="bytes", prefetch=10)
    handler = Held()
    async with running(consumer, handler) as task:
        await until(lambda: consumer.health().live)
        tag = send(scripted, 1, [0] * 10)
        await until(lambda: consumer.counters()["delivered"] == 10)
        await consumer.set_prefetch(20)
        tag = send(scripted, tag, [0] * 20)
        await until(lambda: consumer.counters()["delivered"] == 30)
        send(scripted, tag, [LIMIT - COST + beyond])
        if beyond <= 0:
            await until(lambda: consumer.counters()["delivered"] == 31)
            assert not task.done()
        else:
            await assert_refused(scripted, task, handler)


@pytest.mark.parametrize("beyond", [-1, 0, 1])
async def test_server_that_ignores_basic_cancel(
    scripted: Scripted, client_of_script: leveret.Client, beyond: int
) -> None:
    scripted.unanswered["Basic.Cancel"] = float("inf")
    consumer = client_of_script.consumer("q", serializer="bytes", prefetch=1, ack="none")
    handler = Held()
    async with running(consumer, handler) as task:
        await until(lambda: consumer.health().live)
        tag = send(scripted, 1, [0] * 50)
        await until(lambda: consumer.counters()["delivered"] == 50)
        send(scripted, tag, [0] * (SENT_AHEAD + beyond))
        if beyond <= 0:
            await until(lambda: consumer.counters()["delivered"] == 50 + SENT_AHEAD + beyond)
            assert not task.done()
        else:
            error = await assert_refused(scripted, task, handler)
            assert "beyond basic.cancel" in str(error)


async def test_delivery_tag_that_comes_again_is_refused(scripted: Scripted, client_of_script: leveret.Client) -> None:
    consumer = client_of_script.consumer("q", serializer="bytes", prefetch=10)
    handler = Held()
    async with running(consumer, handler) as task:
        await until(lambda: consumer.health().live)
        send(scripted, 1, [0, 0])
        await until(lambda: consumer.counters()["delivered"] == 2)
        send(scripted, 2, [0])
        await assert_refused(scripted, task, handler, 503)
