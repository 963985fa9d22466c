"""Listeners are told of confirms by delivery tag, once for each publishing."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.confirming import served
from tests.support.outcomes import awaited, failure

import leveret
from leveret import Outcome
from leveret.errors import PublishError

if TYPE_CHECKING:
    from leveret.testing import FaultProxy

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_s19_confirm_events_tell_the_tag_and_whether_it_is_about_several() -> None:
    async with served() as (server, producer):
        acks: list[tuple[int, bool]] = []
        nacks: list[tuple[int, bool]] = []
        producer.on_confirm(lambda tag, multiple: acks.append((tag, multiple)))
        end = producer.on_confirm(lambda tag, multiple: nacks.append((tag, multiple)), nacks=True)
        tickets = [producer.publish_nowait(number, "key") for number in range(8)]
        assert len(await server.publishings()) == 8
        server.ack(3, multiple=True)
        server.nack(4)
        server.ack(6)
        server.ack(5)
        server.nack(8, multiple=True)
        results = [await failure(awaited(ticket)) for ticket in tickets]
        assert acks == [(3, True), (6, False), (5, False)]
        assert nacks == [(4, False), (8, True)]
        refused = [result.delivery_tag for result in results if isinstance(result, PublishError)]
        assert refused == [4, 7, 8]
        end()
        ticket = producer.publish_nowait(8, "key")
        assert len(await server.publishings()) == 1
        server.nack(9)
        assert (await failure(awaited(ticket))).outcome is Outcome.NACKED
        assert len(nacks) == 2


async def test_s19_confirm_events_are_about_every_publishing_once(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer:
        open_tags = set(range(1, 1001))
        settled: list[int] = []

        def on_confirm(delivery_tag: int, multiple: bool) -> None:
            now = {tag for tag in open_tags if tag <= delivery_tag} if multiple else {delivery_tag}
            assert now <= open_tags
            open_tags.difference_update(now)
            settled.extend(now)

        producer.on_confirm(on_confirm)
        assert await producer.publish_batch(range(1000), queue)
        assert not open_tags
        assert sorted(settled) == list(range(1, 1001))
    assert await other.purge(queue) == 1000


class ConfirmingProducer:
    """The guide's recipe: a map from delivery tags to futures, which the confirm event resolves."""

    def __init__(self, producer: leveret.Producer, timeout: float = 5.0) -> None:
        self.producer = producer
        self.timeout = timeout
        self.pending: dict[int, asyncio.Future[bool]] = {}
        producer.on_confirm(self.on_confirm)

    async def publish(self, value: Any, routing_key: str) -> bool:
        delivery_tag = self.producer.next_delivery_tag
        future = self.pending[delivery_tag] = asyncio.get_running_loop().create_future()
        ticket = self.producer.publish_nowait(value, routing_key)
        assert ticket.delivery_tag == delivery_tag
        try:
            async with asyncio.timeout(self.timeout):
                return await future
        except TimeoutError:
            del self.pending[delivery_tag]
            return False

    def on_confirm(self, delivery_tag: int, multiple: bool) -> None:
        tags = [tag for tag in self.pending if tag <= delivery_tag] if multiple else [delivery_tag]
        for tag in tags:
            if (future := self.pending.pop(tag, None)) is not None:
                future.set_result(True)


async def test_s21_the_guides_map_of_futures_is_resolved_by_confirm_events(
    client: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with client.producer() as producer:
        recipe = ConfirmingProducer(producer)
        assert all(await asyncio.gather(*(recipe.publish(number, queue) for number in range(500))))
        assert not recipe.pending
    assert await other.purge(queue) == 500


async def test_s21_a_confirm_that_does_not_come_is_dropped_and_the_outcome_is_unknown(
    proxy: FaultProxy, other: leveret.Client, queue: str
) -> None:
    async with (
        leveret.connect(proxy.url, close_timeout=0.2) as client,
        client.producer(confirm_timeout=0.3) as producer,
    ):
        recipe = ConfirmingProducer(producer, timeout=0.2)
        assert await recipe.publish("confirmed", queue)
        proxy.swallow()
        assert await asyncio.gather(*(recipe.publish(number, queue) for number in range(5))) == [False] * 5
        assert not recipe.pending
        # The producer's own clock says the same.
        with pytest.raises(PublishError, match="5 publishings that were not awaited failed") as late:
            await producer.flush()
        assert late.value.outcome is Outcome.UNKNOWN
    # Unknown is the right word: the broker has them.
    assert await other.purge(queue) == 6
