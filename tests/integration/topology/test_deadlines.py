"""A call that waits several times, for a connection, for a channel and for answers, has one deadline for all of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import until

import leveret
from leveret import Topology
from leveret.errors import OperationTimeout
from leveret.runtime.tasks import one_deadline
from leveret.testing import FaultProxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")


@pytest.fixture
async def slow(embedded: EmbeddedBroker) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(embedded.url) as proxy:
        yield proxy


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.declare(Topology().exchange("e").queue("q").bind("q", "e")),
        lambda client: client.purge("q"),
        lambda client: client.delete_queue("q"),
        lambda client: client.delete_exchange("e"),
        lambda client: client.channel(),
    ],
    ids=["declare", "purge", "delete queue", "delete exchange", "channel"],
)
async def test_no_wait_of_a_call_begins_a_deadline_of_its_own(
    slow: FaultProxy, request: pytest.FixtureRequest, call: Callable[[leveret.Client], Awaitable[object]]
) -> None:
    seconds: Any = {"operation_timeout": 1.0, "recovery_initial_delay": 0.01, "recovery_max_delay": 0.01}
    async with leveret.connect(slow.url, close_timeout=0.5, **seconds) as client:
        # Three round trips for the connection, and one for a channel where another follows, are over within the second.
        slow.delay(0.28 if request.node.callspec.id == "channel" else 0.22)
        slow.reset()
        await until(lambda: client.health().connections["publish"] != "open")
        began = asyncio.get_running_loop().time()
        with pytest.raises(OperationTimeout):
            await call(client)
        assert asyncio.get_running_loop().time() - began < 1.5
        slow.resume()


async def test_a_large_topology_has_more_time(embedded: EmbeddedBroker) -> None:
    async with FaultProxy(embedded.url) as proxy, leveret.connect(proxy.url, operation_timeout=0.4) as client:
        topology = Topology()
        for number in range(250):
            topology.queue(f"q{number}").bind(f"q{number}", "amq.direct", str(number))
        proxy.delay(0.15)  # four round trips
        report = await client.declare(topology)
        assert len(report.queues) == 250
        proxy.resume()


async def test_an_error_of_one_of_the_waits_is_the_one_that_is_raised() -> None:
    with pytest.raises(OperationTimeout, match="its own"):
        async with one_deadline(10, "all"):
            raise OperationTimeout("its own")
    with pytest.raises(OperationTimeout, match=r"^all took longer than 0.01 s$"):
        async with one_deadline(0.01, "all"):
            await asyncio.sleep(60)
    with pytest.raises(TimeoutError, match="the user's") as raised:
        async with one_deadline(10, "all"):
            raise TimeoutError("the user's")
    assert type(raised.value) is TimeoutError
