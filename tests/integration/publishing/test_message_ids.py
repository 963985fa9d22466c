"""With `message_ids=True` each message has an id of its own, which it keeps."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from tests.support.confirming import served
from tests.support.queues import messages

if TYPE_CHECKING:
    import leveret

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def ids_in(client: leveret.Client, queue: str) -> list[str]:
    """The ids of the messages in a queue, all of them UUIDs of version 7."""
    found = [message.message_id or "" for message in await messages(client, queue)]
    assert {UUID(one).version for one in found} == {7}
    return found


@pytest.mark.parametrize(
    "options", [{}, {"compressor": "gzip"}, {"sent_at_header": True}, {"confirms": False}], ids=str
)
async def test_each_message_has_an_id_and_later_ones_are_greater(
    client: leveret.Client, other: leveret.Client, queue: str, options: dict[str, Any]
) -> None:
    async with client.producer(message_ids=True, compression_threshold=0, **options) as producer:
        template = producer.template(queue, priority=3)
        await producer.publish("a" * 100, queue)
        await producer.publish("b" * 100, queue, headers={"a": 1})
        producer.publish_nowait("c", template)
        producer.publish_nowait("d", template, type="t")
        await producer.enqueue("e", queue)
        await producer.message("f").queue(queue).header("a", 1).publish()
        await producer.publish_batch(["g", producer.message("h").priority(1), "i"], queue)
        await producer.publish_batch(["j", "k"], template)
        await producer.flush()
    found = await ids_in(other, queue)
    assert len(found) == 11
    assert all(earlier < later for earlier, later in pairwise(found))


async def test_an_id_of_the_caller_goes_first(client: leveret.Client, other: leveret.Client, queue: str) -> None:
    async with client.producer(message_ids=True) as producer:
        await producer.publish("a", queue, message_id="mine")
        await producer.publish("b", producer.template(queue, message_id="the template's"))
        await producer.publish("c", queue, message_id=None)
    assert [message.message_id for message in await messages(other, queue)] == ["mine", "the template's", None]


async def test_two_producers_make_different_ids(client: leveret.Client, other: leveret.Client, queue: str) -> None:
    async with client.producer(message_ids=True) as one, client.producer(message_ids=True) as two:
        for number in range(100):
            one.publish_nowait(number, queue)
            two.publish_nowait(number, queue)
    assert len(set(await ids_in(other, queue))) == 200


async def test_a_transaction_gives_ids(client: leveret.Client, other: leveret.Client, queue: str) -> None:
    async with client.producer(message_ids=True) as producer, producer.transaction() as transaction:
        await transaction.publish("a", queue)
        await transaction.publish("b", queue)
    assert len(set(await ids_in(other, queue))) == 2


class Once:
    """A retry policy of one more attempt, at once."""

    def next_delay(self, attempt: int, error: BaseException) -> float | None:
        return 0.0 if attempt == 1 else None


async def attempts(server: Any, count: int) -> None:
    """Refuses the first attempt of so many messages, and confirms the second one."""
    for settle in (server.nack, server.ack):
        while len(server.message_ids) % count or not server.message_ids:
            await server.publishings()
        settle(len(server.message_ids), multiple=True)
        seen = len(server.message_ids)
        while settle == server.nack and len(server.message_ids) < seen + count:
            await server.publishings()


async def test_all_attempts_of_a_retry_policy_have_the_same_ids() -> None:
    async with served(message_ids=True, retry=Once()) as (server, producer):
        one = asyncio.create_task(producer.publish("a", "q"))
        await attempts(server, 1)
        await one
        first, again = server.message_ids
        assert first is not None
        assert first == again


async def test_all_attempts_of_a_batch_have_the_same_ids() -> None:
    async with served(message_ids=True, retry=Once()) as (server, producer):
        values = ["a", producer.message("b").header("x", 1), producer.message("c").message_id("mine"), "d"]
        many = asyncio.create_task(producer.publish_batch(values, "q"))
        await attempts(server, 4)
        assert (await many).confirmed == 4
        assert server.message_ids[:4] == server.message_ids[4:]
        assert server.message_ids[2] == "mine"
        assert len(set(server.message_ids)) == 4


async def test_a_message_that_is_sent_again_keeps_its_id(
    proxy: leveret.testing.FaultProxy, proxied: leveret.Client, other: leveret.Client, queue: str
) -> None:
    async with proxied.producer(message_ids=True) as producer:
        tickets = [producer.publish_nowait(number, queue) for number in range(100)]
        proxy.reset()
        for ticket in tickets:
            await ticket
    found = await messages(other, queue)
    by_value = {message.value: message.message_id for message in found}
    assert sorted(by_value) == list(range(100))
    assert all(message.message_id == by_value[message.value] for message in found)
    assert len(set(by_value.values())) == 100
