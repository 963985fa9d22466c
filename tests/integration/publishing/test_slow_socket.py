"""`confirm_timeout` begins when the socket has taken the message, not when it was appended."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from pamqp.commands import Basic, Channel, Confirm
from pamqp.header import ContentHeader
from tests.support.peers import FakeServer, Peer

import leveret
from leveret import Outcome
from leveret.errors import ConfirmTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

pytestmark = pytest.mark.usefixtures("no_leftovers")

#: More than the kernel's buffers hold.
BODY = bytes(16 * 1024 * 1024)
#: Seconds.
CONFIRM_TIMEOUT, BEGINS_TO_READ = 0.4, 0.8


async def plain(producer: leveret.Producer) -> Any:
    return await producer.publish(BODY, "q")


async def with_headers(producer: leveret.Producer) -> Any:
    return await producer.publish(BODY, "q", headers={"a": 1})


async def with_template(producer: leveret.Producer) -> Any:
    return await producer.publish(BODY, producer.template("q", headers={"a": 1}))


async def with_a_timeout_of_its_own(producer: leveret.Producer) -> Any:
    return await producer.publish(BODY, "q", confirm_timeout=0.3)


async def without_waiting(producer: leveret.Producer) -> Any:
    return await producer.publish_nowait(BODY, "q")


async def batch(producer: leveret.Producer) -> Any:
    (await producer.publish_batch([BODY], "q")).raise_for_failures()


WAYS = [plain, with_headers, with_template, with_a_timeout_of_its_own, without_waiting, batch]


@asynccontextmanager
async def slow(*, confirms: bool, **options: Any) -> AsyncIterator[leveret.Producer]:
    """A producer whose server begins to read late, and then confirms or says nothing."""

    async def script(peer: Peer) -> None:
        await peer.handshake()
        await peer.answer(Channel.Open, Confirm.Select)
        await asyncio.sleep(BEGINS_TO_READ)
        await peer.expect(Basic.Publish, ContentHeader)
        size = 0
        while size < len(BODY):
            _, part = await peer.receive()
            size += len(part.value)
        if confirms:
            peer.send(Basic.Ack(1), 1)
        await peer.linger()

    async with (
        FakeServer(script) as server,
        leveret.connect(server.url) as client,
        client.producer(serializer="bytes", confirm_timeout=CONFIRM_TIMEOUT, **options) as producer,
    ):
        yield producer


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_a_message_is_confirmed_when_writing_takes_longer_than_confirm_timeout(
    way: Callable[[leveret.Producer], Awaitable[Any]],
) -> None:
    async with slow(confirms=True) as producer:
        await way(producer)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
async def test_confirm_timeout_ends_it_when_no_confirm_comes_after_the_writing(
    way: Callable[[leveret.Producer], Awaitable[Any]],
) -> None:
    async with slow(confirms=False) as producer:
        began = time.monotonic()
        with pytest.raises(ConfirmTimeout, match="confirm_timeout") as late:
            await way(producer)
        assert BEGINS_TO_READ + 0.3 <= time.monotonic() - began <= BEGINS_TO_READ + CONFIRM_TIMEOUT + 1.0
        assert (late.value.outcome, late.value.stage) == (Outcome.UNKNOWN, "confirm")


async def test_publish_timeout_ends_it_while_it_is_written() -> None:
    async with slow(confirms=True, publish_timeout=0.3) as producer:
        began = time.monotonic()
        with pytest.raises(ConfirmTimeout, match="publish_timeout"):
            await producer.publish(BODY, "q")
        assert 0.3 <= time.monotonic() - began < BEGINS_TO_READ
