"""A user who may only read one queue loses no message, and the log says which right is missing."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.handling import running, until
from tests.support.queues import messages, taken

import leveret
from leveret import Quorum, Retry, Topology
from leveret.consuming.failing.error_policy import attempts_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.rabbitmq import RabbitMQNode

# The embedded broker knows no permissions.
pytestmark = [pytest.mark.usefixtures("no_leftovers"), pytest.mark.integration, pytest.mark.time_limit(60)]


@dataclasses.dataclass
class Restricted:
    """A user who may read one queue and nothing else, and an administrator who has declared it.

    Attributes:
        node: The broker.
        admin: A client that may do everything.
        user: The user's name.
        client: The user's client.
        queue: The queue.
    """

    node: RabbitMQNode
    admin: leveret.Client
    user: str
    client: leveret.Client
    queue: str

    async def grant(self, configure: str, write: str, read: str) -> None:
        await asyncio.to_thread(
            self.node.ctl, "set_permissions", "-p", "/", self.user, f"^({configure})$", f"^({write})$", f"^({read})$"
        )

    async def publish(self, *values: Any, **options: Any) -> None:
        async with self.admin.producer() as producer:
            (await producer.publish_batch(values, self.queue, **options)).raise_for_failures()


@pytest.fixture(params=["quorum"])
async def restricted(
    request: pytest.FixtureRequest, rabbitmq: RabbitMQNode, unique_name: Callable[[str], str]
) -> AsyncIterator[Restricted]:
    user, queue = unique_name("user"), unique_name("billing")
    await asyncio.to_thread(rabbitmq.ctl, "add_user", user, "password")
    async with leveret.connect(rabbitmq.url) as admin:
        await admin.declare(Topology().queue(queue, Quorum() if request.param == "quorum" else None))
        await asyncio.to_thread(rabbitmq.ctl, "set_permissions", "-p", "/", user, "^$", "^$", f"^{queue}$")
        async with leveret.connect(rabbitmq.url, username=user, password="password") as client:
            yield Restricted(rabbitmq, admin, user, client, queue)
        for name in (queue, f"{queue}.parked", f"{queue}.retry.200", f"{queue}.retry.1000"):
            await admin.delete_queue(name)
    await asyncio.to_thread(rabbitmq.ctl, "delete_user", user)


def said(caplog: pytest.LogCaptureFixture, text: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if text in record.getMessage()]


@pytest.mark.parametrize("restricted", ["classic", "quorum"], indirect=True)
async def test_nothing_is_lost_and_the_log_says_what_is_missing(
    restricted: Restricted, caplog: pytest.LogCaptureFixture
) -> None:
    it = restricted
    await it.publish("fails", "undecodable", "refused", *map(str, range(20)), message_id="its id")
    consumer = it.client.consumer(it.queue, prefetch=20)
    handled: list[tuple[str, int]] = []

    async def handler(value: str, message: leveret.Message) -> bool:
        if value == "undecodable":
            raise leveret.errors.DecodeFailed("it is raised by the handler, for the same way")
        if value == "fails":
            raise ConnectionError
        handled.append((value, attempts_of(message)))
        return value != "refused"

    with caplog.at_level(logging.WARNING, "leveret"):
        async with running(consumer, handler):
            # Those that failed wait, and hold up no other.
            await until(lambda: len(handled) >= 21 and consumer.counters()["held"] == 3)
            assert consumer.counters()["delivered"] == 23
            # A second later they are handled again.
            await until(lambda: consumer.counters()["handler_errors"] >= 4, seconds=15)
            counters = consumer.counters()
    assert {counters[name] for name in ("rejected", "dead_lettered", "dropped", "parked", "requeued", "released")} == {
        0
    }
    assert counters["delivered"] == 23, "none went back to the queue"
    assert sorted(await taken(it.admin, it.queue)) == ["fails", "refused", "undecodable"]
    (text,) = said(caplog, "Grant the user")
    assert f"queue {it.queue!r}" in text
    assert f"user '{it.user}'" in text
    assert f"configure, write and read on '{it.queue}.retry.*', '{it.queue}.parked' and 'leveret.parked'" in text


@pytest.mark.parametrize("restricted", ["classic", "quorum"], indirect=True)
@pytest.mark.parametrize(("prefetch", "bad"), [(1, 1), (6, 3), (6, 30)])
async def test_good_messages_are_handled_whatever_part_of_the_prefetch_is_held(
    restricted: Restricted, prefetch: int, bad: int
) -> None:
    it = restricted
    await it.publish(*[-1] * bad, *range(5))
    consumer = it.client.consumer(it.queue, int, prefetch=prefetch)
    handled: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        if value < 0:
            raise ConnectionError
        handled.append(value)

    async with running(consumer, handler):
        await until(lambda: len(handled) == 5, seconds=20)
        # Those that are held are tried again, and none goes back meanwhile.
        await until(lambda: consumer.counters()["handler_errors"] >= 2 * bad, seconds=20)
        counters = consumer.counters()
        assert (counters["delivered"], counters["released"]) == (bad + 5, 0)
    # At the stop all go back, and none by basic.reject.
    counters = consumer.counters()
    assert (counters["requeued"], counters["rejected"], counters["held"]) == (0, 0, 0)
    assert handled == list(range(5))
    assert await taken(it.admin, it.queue) == [-1] * bad


async def test_messages_are_retried_and_parked_by_the_broker_when_the_rights_of_the_docs_are_granted(
    restricted: Restricted,
) -> None:
    it = restricted
    extra = rf"{it.queue}\.retry\..*|{it.queue}\.parked|leveret\.parked"
    await it.grant(extra, rf"amq\.default|{extra}", f"{it.queue}|{extra}")
    await it.publish("bad")
    consumer = it.client.consumer(it.queue, on_error=Retry([0.2]))
    seen: list[int] = []

    async def handler(value: str, message: leveret.Message) -> None:
        seen.append(attempts_of(message))
        raise ValueError

    async with running(consumer, handler):
        await until(lambda: consumer.counters()["parked"] == 1, seconds=20)
    assert seen == [0, 1]
    assert consumer.counters()["held"] == 0
    (parked,) = await messages(it.admin, f"{it.queue}.parked")
    assert (parked.value, parked.headers["x-leveret-attempt"]) == ("bad", 2)


@pytest.mark.server_version(since=(4,))
async def test_one_warning_comes_from_half_of_the_delivery_limit_on_when_messages_cannot_be_parked(
    restricted: Restricted, caplog: pytest.LogCaptureFixture
) -> None:
    it = restricted
    await it.publish("crashes")
    returned = 0
    async with asyncio.timeout(20), it.admin.consumer(it.queue) as taker:
        while returned < 10:
            if (message := await taker.get()) is not None:
                message.requeue()
                returned += 1
    consumer = it.client.consumer(it.queue)
    seen = asyncio.Event()

    async def handler(value: str, message: leveret.Message) -> None:
        assert message.headers["x-delivery-count"] == 10
        seen.set()

    with caplog.at_level(logging.WARNING, "leveret"):
        async with running(consumer, handler):
            await seen.wait()
            await until(lambda: said(caplog, "the broker drops it after 20"))
    (text,) = said(caplog, "the broker drops it after 20")
    assert "a message has come back 10 times" in text
