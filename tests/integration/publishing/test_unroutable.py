"""A message that reaches no queue is an error for its publisher without any option, whichever way it is published."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from leveret import Outcome
from leveret.errors import MessageReturned

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import leveret

pytestmark = pytest.mark.usefixtures("no_leftovers")

NOWHERE = "no queue has this name"


async def enqueued(producer: leveret.Producer) -> leveret.Receipt:
    return await (await producer.enqueue("lost", NOWHERE))


async def ticket(producer: leveret.Producer) -> leveret.Receipt:
    return await producer.publish_nowait("lost", NOWHERE)


async def batch(producer: leveret.Producer) -> None:
    result = await producer.publish_batch(["lost"], NOWHERE)
    assert result.outcome(0) is Outcome.RETURNED
    result.raise_for_failures()


@pytest.mark.parametrize(
    "publish",
    [
        pytest.param(lambda producer: producer.publish("lost", NOWHERE), id="publish"),
        pytest.param(lambda producer: producer.publish("lost", producer.template(NOWHERE)), id="template"),
        pytest.param(ticket, id="publish_nowait"),
        pytest.param(enqueued, id="enqueue"),
        pytest.param(batch, id="publish_batch"),
    ],
)
async def test_a_message_that_reaches_no_queue_is_returned_by_default(
    client: leveret.Client, publish: Callable[[leveret.Producer], Awaitable[Any]]
) -> None:
    async with client.producer() as producer:
        with pytest.raises(MessageReturned) as returned:
            await publish(producer)
        assert returned.value.outcome is Outcome.RETURNED
        assert producer.counters()["returned"] == 1


async def test_a_fluent_message_that_reaches_no_queue_is_returned_by_default(client: leveret.Client) -> None:
    with pytest.raises(MessageReturned):
        await client.message("lost").routing_key(NOWHERE).publish()
