"""`leveret doctor` finds out which rights a user lacks, by trying, and makes nothing for it in the end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
from tests.support.brokers import RabbitMQ
from tests.support.doctor import by_state, examined, of_doctor, queues_of
from tests.support.secrets import PASSWORD

import leveret
from leveret import Quorum, Topology
from leveret.cli.doctor.finding import State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.rabbitmq import RabbitMQNode

    from leveret.cli.doctor.finding import Finding

# The embedded broker knows no permissions.
pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.integration, pytest.mark.time_limit(60)]


@dataclass
class Restricted:
    """A user with few rights, and a queue.

    Attributes:
        node: The broker.
        admin: A client that may do everything.
        user: The user's name.
        queue: The queue.
    """

    node: RabbitMQNode
    admin: leveret.Client
    user: str
    queue: str

    async def grant(self, *, configure: str = "", write: str = "", read: str = "") -> None:
        patterns = (f"^({pattern})$" for pattern in (configure, write, read))
        await asyncio.to_thread(self.node.ctl, "set_permissions", "-p", "/", self.user, *patterns)

    async def examined(self) -> dict[str, Finding]:
        before = await queues_of(RabbitMQ(self.node))
        findings = await examined(self.node.url, self.queue, username=self.user, password=PASSWORD)
        after = await queues_of(RabbitMQ(self.node))
        assert after == before
        assert of_doctor(after) == set()
        assert PASSWORD not in str(findings)
        return findings


@pytest.fixture
async def restricted(rabbitmq: RabbitMQNode, unique_name: Callable[[str], str]) -> AsyncIterator[Restricted]:
    user, queue = unique_name("user"), unique_name("billing")
    await asyncio.to_thread(rabbitmq.ctl, "add_user", user, PASSWORD)
    async with leveret.connect(rabbitmq.url) as admin:
        await admin.declare(Topology().queue(queue, Quorum()))
        it = Restricted(rabbitmq, admin, user, queue)
        await it.grant()
        yield it
        for name in (queue, f"{queue}.parked", f"{queue}.retry.1000"):
            await admin.delete_queue(name)
    await asyncio.to_thread(rabbitmq.ctl, "delete_user", user)


async def test_a_user_without_rights_lacks_each_of_them(restricted: Restricted) -> None:
    findings = await restricted.examined()
    assert by_state(findings)["failed"] == ["queue", "retry queues", "parking"]
    assert findings["permissions"].state is State.WARNING
    assert "may not publish to the default exchange" in findings["permissions"].found
    for name in ("alarms", "round trip", "retry", "clock"):
        assert findings[name].state is State.SKIPPED
    for delay in (1000, 5000, 30_000, 60_000):
        assert f"no right to configure '{restricted.queue}.retry.{delay}'" in findings["retry queues"].found
    for name in (f"{restricted.queue}.parked", "leveret.parked"):
        assert f"no right to configure {name!r}" in findings["parking"].found
    assert "no right to write to amq.default" in findings["retry queues"].found
    assert "set_permissions" in findings["parking"].advice


async def test_a_user_who_may_only_read_the_queue_may_consume(restricted: Restricted) -> None:
    await restricted.grant(read=restricted.queue)
    findings = await restricted.examined()
    assert findings["queue"].state is State.OK
    assert findings["queue"].found.endswith("may consume")
    assert by_state(findings)["failed"] == ["retry queues", "parking"]


async def test_the_right_to_read_is_asked_for_where_a_queue_has_a_dead_letter_exchange(restricted: Restricted) -> None:
    queue = restricted.queue
    await restricted.grant(configure=rf"{queue}\..*|leveret\.parked", write=r"amq\.default", read=queue)
    findings = await restricted.examined()
    assert by_state(findings)["failed"] == ["retry queues"]
    assert f"no right to read '{queue}.retry.1000'" in findings["retry queues"].found
    assert "configure" not in findings["retry queues"].found
    assert findings["parking"].state is State.OK


async def test_with_the_rights_of_the_docs_all_checks_pass(restricted: Restricted) -> None:
    queue = restricted.queue
    extra = rf"{queue}\.retry\..*|{queue}\.parked|leveret\.parked"
    await restricted.grant(configure=extra, write=rf"amq\.default|{extra}", read=f"{queue}|{extra}")
    findings = await restricted.examined()
    states = by_state(findings)
    assert "failed" not in states
    assert states["skipped"] == ["TLS"], "the queue of the round trip has a name of the retry queues"
    assert f"'{queue}.retry.9" in findings["permissions"].found
    assert "may not declare 'leveret.doctor." in findings["permissions"].found


async def test_a_retry_queue_that_may_not_be_declared_is_a_failed_retry(restricted: Restricted) -> None:
    own = r"leveret\.doctor\.[0-9a-f]{8}"
    await restricted.grant(configure=own, write=r"amq\.default", read=rf"{own}|{restricted.queue}")
    findings = await restricted.examined()
    assert findings["round trip"].state is State.OK
    assert findings["retry"].state is State.FAILED
    assert "ACCESS_REFUSED" in findings["retry"].found


async def test_parking_for_transient_queues_alone_is_a_warning(restricted: Restricted) -> None:
    queue = restricted.queue
    await restricted.grant(configure=rf"{queue}\..*", write=r"amq\.default", read=rf"{queue}|{queue}\.retry\..*")
    findings = await restricted.examined()
    assert "failed" not in by_state(findings)
    assert findings["parking"].state is State.WARNING
    assert findings["parking"].found == "no right to configure 'leveret.parked'"
    assert "transient" in findings["parking"].advice


async def test_queues_that_exist_with_other_arguments_are_named(restricted: Restricted) -> None:
    queue = restricted.queue
    await restricted.admin.declare(Topology().queue(f"{queue}.retry.1000").queue(f"{queue}.parked"))
    await restricted.grant(configure=".*", write=".*", read=".*")
    findings = await restricted.examined()
    assert by_state(findings)["failed"] == ["retry queues", "parking"]
    assert findings["retry queues"].found.startswith(f"'{queue}.retry.1000' exists with another ")
    assert findings["parking"].found.startswith(f"'{queue}.parked' exists with another ")


async def test_queues_that_exist_as_leveret_declares_them_are_fine(restricted: Restricted) -> None:
    queue = restricted.queue
    await restricted.grant(configure=".*", write=".*", read=".*")
    parked = Quorum(delivery_limit=1_000_000_000)
    await restricted.admin.declare(Topology().queue(f"{queue}.parked", parked))
    findings = await restricted.examined()
    assert findings["parking"].state is State.OK


async def test_a_queue_that_is_exclusive_to_another_connection_is_told(
    rabbitmq: RabbitMQNode, unique_name: Callable[[str], str]
) -> None:
    name = unique_name("exclusive")
    async with leveret.connect(rabbitmq.url) as owner:
        channel = await owner.channel()
        await channel.queue_declare(name, durable=False, exclusive=True)
        findings = await examined(rabbitmq.url, name)
    assert findings["queue"].state is State.FAILED
    assert "exclusive" in findings["queue"].found
