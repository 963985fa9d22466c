"""Retry queues: failed messages come back as they were, when they should, and none is lost."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.brokers import Embedded, RabbitMQ
from tests.support.loops import every_loop
from tests.support.queues import taken

import leveret
from leveret import Classic, Retry, Topology
from leveret.consuming.failing.error_policy import attempts_of
from leveret.consuming.failing.retry_queues import RetryQueues
from leveret.errors import BodyTooLarge, MessageReturned, NotFound, PreconditionFailed
from leveret.wire.encoding import FieldValue
from leveret.wire.properties import decode_properties

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.support.brokers import Broker

    from leveret.wire.message import Message

pytestmark = pytest.mark.usefixtures("no_leftovers")


@contextlib.asynccontextmanager
async def retry_queues(client: leveret.Client, queue: str) -> AsyncIterator[RetryQueues]:
    """What a consumer of the queue has, and no queue of it afterwards."""
    queues = RetryQueues(client.publishing_link, queue, client.registry)
    try:
        yield queues
    finally:
        await queues.close()
        for declared in queues._declared:
            await client.delete_queue(declared)


@pytest.fixture
async def queues(client: leveret.Client, queue: str) -> AsyncIterator[RetryQueues]:
    async with retry_queues(client, queue) as made:
        yield made


async def publish(client: leveret.Client, queue: str, *values: Any, **options: Any) -> None:
    async with client.producer() as producer:
        (await producer.publish_batch(values, queue, **options)).raise_for_failures()


async def get(client: leveret.Client, queue: str) -> Message:
    """Waits for the queue's next message, and acknowledges it."""
    async with asyncio.timeout(10), client.consumer(queue, prefetch=1) as consumer:
        message = await anext(consumer)
        message.ack()
        return message


async def fail(queues: RetryQueues, message: Message, delay: float = 0.1, error: Exception | str | None = None) -> None:
    await queues.delay(message, delay, error or ValueError("secret"))


def is_of_the_broker(header: str) -> bool:
    """Whether it is one of the headers that a broker adds to a dead letter; RabbitMQ 4 has the last two."""
    return header == "x-death" or header.startswith(("x-first-death-", "x-last-death-"))


def names_of(message: Message) -> set[str]:
    return {name for name in message.headers if not is_of_the_broker(name)}


# ---------------------------------------------------------------------- coming back


@every_loop
async def test_a_message_comes_back_after_its_delay_and_not_before(
    client: leveret.Client, queue: str, queues: RetryQueues
) -> None:
    await publish(client, queue, {"id": 7})
    first = await get(client, queue)
    for attempt, delay in ((1, 0.3), (2, 0.6)):
        started = time.monotonic()
        await fail(queues, first, delay, ValueError("secret"))
        first = await get(client, queue)
        # A message is published after `started`, so it cannot be here sooner than its delay.
        assert delay <= time.monotonic() - started < delay + 5
        assert first.value == {"id": 7}
        assert first.headers["x-leveret-attempt"] == attempts_of(first) == attempt
        assert first.headers["x-leveret-error"] == "ValueError"
        assert not first.redelivered
    assert await taken(client, queue) == []


async def test_a_parked_message_stays_and_says_why(client: leveret.Client, queue: str, queues: RetryQueues) -> None:
    await publish(client, queue, "a", expiration=30.0)
    message = await get(client, queue)
    error = NotFound("no such exchange", reply_code=404)
    await queues.park(message, error)
    assert queues.parked == f"{queue}.parked"
    parked = await get(client, queues.parked)
    assert parked.value == "a"
    assert parked.headers["x-leveret-error"] == "NotFound: no such exchange"
    assert parked.headers["x-leveret-attempt"] == 1
    assert parked.headers["x-leveret-routing-key"] == queue


async def test_a_parked_message_may_be_put_back_any_number_of_times(
    client: leveret.Client, queue: str, queues: RetryQueues
) -> None:
    await publish(client, queue, 1)
    await queues.park(await get(client, queue), ValueError())
    async with client.consumer(queues.parked) as consumer:
        for _ in range(30):
            message = await consumer.get()
            assert message is not None
            message.requeue()
        message = await consumer.get()
        assert message is not None
        message.ack()


async def test_thousand_messages_come_back_once_when_they_fail_at_once(
    client: leveret.Client, queue: str, queues: RetryQueues
) -> None:
    await publish(client, queue, *range(1000))
    seen: Counter[int] = Counter()
    async with asyncio.timeout(25), client.consumer(queue, prefetch=1000) as consumer:
        first = [await anext(consumer) for _ in range(1000)]

        async def settle(message: Message) -> None:
            await fail(queues, message, 0.2 + 0.1 * (message.value % 3))
            assert message.ack()

        await asyncio.gather(*map(settle, first))
        for _ in range(1000):
            message = await anext(consumer)
            seen[message.value] += 1
            assert attempts_of(message) == 1
            message.ack()
    assert seen == Counter(range(1000))
    assert await taken(client, queue) == []


# ---------------------------------------------------------------------- what a copy keeps


async def test_every_property_and_header_survives_when_a_message_comes_back(
    client: leveret.Client, queue: str, queues: RetryQueues
) -> None:
    headers = {
        "text": "é", "bytes": b"\xff\x00", "none": None, "yes": True, "small": FieldValue("b", -1),
        "octet": FieldValue("B", 200), "short": FieldValue("s", -300), "long": 2**40, "single": FieldValue("f", 0.5),
        "double": 1.25, "time": datetime(2026, 1, 2, tzinfo=UTC), "table": {"a": [1, {"b": [None, "c"]}]},
        "list": [1, "x"],
    }  # fmt: skip
    async with client.producer(serializer="bytes", delivery_mode=1) as producer:
        await producer.publish(
            b"\x00\xffbody",
            queue,
            headers=headers,
            content_type="application/x-own",
            content_encoding="identity",
            priority=7,
            correlation_id="c",
            reply_to="r",
            message_id="m",
            timestamp=datetime(2026, 1, 1, tzinfo=UTC),
            type="t",
            app_id="a",
        )
    before = await get(client, queue)
    await fail(queues, before)
    after = await get(client, queue)
    assert after.body == before.body == b"\x00\xffbody"
    was, now = decode_properties(before.raw_properties), decode_properties(after.raw_properties)
    assert was.headers is not None
    assert now.headers is not None
    added = {name for name in now.headers if name.startswith("x-leveret-") or is_of_the_broker(name)}
    assert {name: value for name, value in now.headers.items() if name not in added} == was.headers
    was.headers = now.headers = None
    assert now == was


async def test_the_first_exchange_and_routing_key_are_kept_over_all_attempts(
    client: leveret.Client, queue: str, queues: RetryQueues, name: Callable[[str], str]
) -> None:
    exchange = name("orders")
    await client.declare(Topology().exchange(exchange, "topic").bind(queue, exchange, "order.*"))
    async with client.producer(exchange=exchange) as producer:
        await producer.publish(1, "order.created")
    message = await get(client, queue)
    for _ in range(2):
        await fail(queues, message)
        message = await get(client, queue)
        assert message.headers["x-leveret-exchange"] == exchange
        assert message.headers["x-leveret-routing-key"] == "order.created"
    assert (message.exchange, message.routing_key) == ("", queue)


async def test_a_message_does_not_expire_while_it_waits(
    client: leveret.Client, queue: str, queues: RetryQueues
) -> None:
    await publish(client, queue, 1, expiration=0.2)
    message = await get(client, queue)
    started = time.monotonic()
    await fail(queues, message, 0.6)
    message = await get(client, queue)
    assert time.monotonic() - started >= 0.6
    assert message.headers["x-leveret-expiration"] == "200"
    assert message.properties.expiration is None


@pytest.mark.integration
async def test_a_message_is_not_routed_to_its_cc_queues_again(rabbitmq: Any, unique_name: Callable[[str], str]) -> None:
    # The embedded broker refuses CC and BCC.
    queue, other = unique_name("queue"), unique_name("other")
    async with leveret.connect(rabbitmq.url) as client, retry_queues(client, queue) as queues:
        try:
            await client.declare(Topology().queue(queue).queue(other))
            await publish(client, queue, 1, headers={"CC": [other], "BCC": [other]})
            message = await get(client, queue)
            assert await taken(client, other) == [1]
            for _ in range(2):
                await fail(queues, message)
                message = await get(client, queue)
                assert message.headers["x-leveret-cc"] == [other]
                assert "CC" not in message.headers
            assert await taken(client, other) == []
            assert await taken(client, queue) == []
        finally:
            await client.delete_queue(queue)
            await client.delete_queue(other)


async def test_another_users_message_comes_back_without_the_user_id(
    broker: Broker, client: leveret.Client, queue: str, name: Callable[[str], str]
) -> None:
    user = name("user")
    if isinstance(broker, RabbitMQ):
        await asyncio.to_thread(broker.node.ctl, "add_user", user, "password")
        await asyncio.to_thread(broker.node.ctl, "set_permissions", user, ".*", ".*", ".*")
    else:
        assert isinstance(broker, Embedded)
        broker.broker.users[user] = "password"
    async with (
        leveret.connect(broker.url, username=user, password="password") as other,
        retry_queues(other, queue) as queues,
    ):
        await publish(client, queue, 1, user_id="guest")
        message = await get(other, queue)
        assert message.properties.user_id == "guest"
        for _ in range(2):
            await fail(queues, message)
            message = await get(other, queue)
            assert message.properties.user_id is None
            assert message.headers["x-leveret-user-id"] == "guest"
    if isinstance(broker, RabbitMQ):
        await asyncio.to_thread(broker.node.ctl, "delete_user", user)


def death_of(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """An entry of x-death, of this queue unless `fields` say otherwise."""
    usual = {
        "count": 1,
        "queue": name,
        "exchange": "",
        "routing-keys": [name],
        "time": datetime(2026, 1, 1, tzinfo=UTC),
    }
    return {**usual, **fields, "queue": fields.get("queue", name).replace("{queue}", name)}


@pytest.mark.parametrize(
    ("deaths", "moved"),
    [
        ([{"reason": "rejected"}], True),
        # RabbitMQ 3.10 would take these for a circle on the way back, and drop the message.
        ([{"reason": "expired"}], True),
        ([{"queue": "elsewhere", "reason": "rejected"}, {"reason": "expired"}], True),
        ([{"queue": "elsewhere", "reason": "maxlen"}, {"queue": "{queue}.retry.100", "reason": "expired"}], True),
        # RabbitMQ 3.10 would fail to count these up.
        ([{"queue": "{queue}.retry.100", "reason": "rejected", "count": "many"}], True),
        (["nonsense"], True),
        ("nonsense", True),
        # These say that it waited, and no more.
        ([{"queue": "{queue}.retry.100", "reason": "expired"}], False),
        (
            [{"queue": "{queue}.retry.100", "reason": "expired"}, {"queue": "{queue}.retry.9", "reason": "expired"}],
            False,
        ),
        ([], False),
    ],
)
@pytest.mark.server_version
async def test_a_message_comes_back_when_it_has_died_before(
    client: leveret.Client, queue: str, queues: RetryQueues, deaths: Any, moved: bool
) -> None:
    if isinstance(deaths, list):
        deaths = [death_of(queue, death) if isinstance(death, dict) else death for death in deaths]
    await publish(client, queue, 1, headers={"x-death": deaths})
    message = await get(client, queue)
    for attempt in (1, 2, 3):
        await fail(queues, message)
        message = await get(client, queue)
        assert attempts_of(message) == attempt
        assert message.headers.get("x-leveret-death") == (deaths if moved else None)
        (death,) = message.headers["x-death"]
        assert (death["queue"], death["reason"], death["count"]) == (f"{queue}.retry.100", "expired", 1)


@pytest.mark.server_version
async def test_what_the_broker_wrote_of_earlier_deaths_is_kept_over_all_attempts(
    client: leveret.Client, queue: str, queues: RetryQueues, name: Callable[[str], str]
) -> None:
    first = name("first")
    await client.declare(Topology().queue(first, Classic(dead_letter_exchange="", dead_letter_routing_key=queue)))
    await publish(client, first, 1)
    async with asyncio.timeout(10), client.consumer(first) as consumer:
        (await anext(consumer)).dead_letter()
    message = await get(client, queue)
    deaths = message.headers["x-death"]
    assert [(death["queue"], death["reason"], death["count"]) for death in deaths] == [(first, "rejected", 1)]
    for attempt in (1, 2, 3):
        await fail(queues, message)
        message = await get(client, queue)
        assert attempts_of(message) == attempt
        assert message.headers["x-leveret-death"] == deaths
    await queues.park(message, ValueError())
    parked = await get(client, queues.parked)
    assert parked.headers["x-leveret-death"] == deaths
    assert "x-death" not in parked.headers


@pytest.mark.server_version
async def test_attempts_are_counted_and_end_on_every_broker(
    client: leveret.Client, queue: str, name: Callable[[str], str]
) -> None:
    handled: list[int] = []

    async def handler(value: int, message: leveret.Message) -> None:
        handled.append(attempts_of(message))
        raise ValueError

    await publish(client, queue, 1)
    consumer = client.consumer(queue, on_error=Retry([0.1] * 4))
    running = asyncio.create_task(consumer.run(handler))
    async with asyncio.timeout(20):
        while consumer.counters()["parked"] < 1:  # noqa: ASYNC110 - a counter has no event
            await asyncio.sleep(0.01)
    consumer.stop()
    await running
    assert handled == [0, 1, 2, 3, 4]
    assert attempts_of(await get(client, f"{queue}.parked")) == 5
    for declared in (f"{queue}.retry.100", f"{queue}.parked"):
        await client.delete_queue(declared)


# ---------------------------------------------------------------------- queues that are not as they should be


async def test_the_queue_is_declared_again_when_it_was_deleted(
    client: leveret.Client, queue: str, queues: RetryQueues
) -> None:
    await publish(client, queue, *range(20))
    async with client.consumer(queue) as consumer:
        messages = [await anext(consumer) for _ in range(20)]
        await fail(queues, messages[0])
        assert await client.delete_queue(f"{queue}.retry.100") <= 1
        await asyncio.gather(*(fail(queues, message) for message in messages))
        await queues.park(messages[0], ValueError())
        await client.delete_queue(queues.parked)
        await queues.park(messages[0], ValueError())
        for message in messages:
            message.ack()
    back = Counter([(await get(client, queue)).value for _ in range(20)])
    assert set(back) == set(range(20))
    assert (await get(client, queues.parked)).value == 0


async def test_the_error_says_so_when_the_queue_is_deleted_again_and_again(
    client: leveret.Client, queue: str, queues: RetryQueues, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(client, queue, 1)
    message = await get(client, queue)
    declare = queues._declare

    async def deleted(name: str, milliseconds: int | None) -> None:
        await declare(name, milliseconds)
        await client.delete_queue(name)

    monkeypatch.setattr(queues, "_declare", deleted)
    with pytest.raises(MessageReturned) as returned:
        await fail(queues, message)
    assert returned.value.reply_code == 312
    assert returned.value.outcome is leveret.Outcome.RETURNED


async def test_the_error_names_the_queue_when_it_exists_in_another_form(
    client: leveret.Client, queue: str, queues: RetryQueues, name: Callable[[str], str]
) -> None:
    other = f"{queue}.retry.100"
    await client.declare(Topology().queue(other, Classic(message_ttl=100)))
    try:
        await publish(client, queue, 1)
        message = await get(client, queue)
        for _ in range(2):
            with pytest.raises(PreconditionFailed, match=other) as refused:
                await fail(queues, message)
            assert refused.value.reply_code == 406
            assert refused.value.argument.startswith("x-")
        # The others work.
        await fail(queues, message, 0.2)
        assert (await get(client, queue)).value == 1
    finally:
        await client.delete_queue(other)


@pytest.mark.integration
async def test_a_waiting_message_is_kept_until_its_queue_is_there_again(
    rabbitmq: Any, unique_name: Callable[[str], str]
) -> None:
    # At-least-once dead lettering is RabbitMQ's. How long it waits is read when a retry queue is declared.
    setting = "application:set_env(rabbit, dead_letter_worker_publisher_confirm_timeout, {})."
    await asyncio.to_thread(rabbitmq.ctl, "eval", setting.format(500))
    queue = unique_name("queue")
    try:
        async with leveret.connect(rabbitmq.url) as client, retry_queues(client, queue) as queues:
            await client.declare(Topology().queue(queue))
            await publish(client, queue, 1)
            await fail(queues, await get(client, queue))
            await client.delete_queue(queue)
            await asyncio.sleep(0.5)  # nothing tells when it has expired
            await client.declare(Topology().queue(queue))
            assert (await get(client, queue)).value == 1
            await client.delete_queue(queue)
    finally:
        await asyncio.to_thread(rabbitmq.ctl, "eval", setting.format(180_000))


# ---------------------------------------------------------------------- names


async def test_the_longest_name_and_the_longest_delay_fit(client: leveret.Client, name: Callable[[str], str]) -> None:
    queue = name("queue").ljust(239, "q")
    async with retry_queues(client, queue) as queues:
        try:
            await client.declare(Topology().queue(queue))
            await publish(client, queue, 1)
            await fail(queues, await get(client, queue), 604_800)
            assert queues._declared == {f"{queue}.retry.604800000"}
        finally:
            await client.delete_queue(queue)


async def test_there_are_no_more_than_64_queues_however_many_delays_there_are(
    client: leveret.Client, queue: str, queues: RetryQueues
) -> None:
    await publish(client, queue, 1)
    message = await get(client, queue)
    for number in range(63):
        queues._nearest(1000 + 10 * number)
    await fail(queues, message, 0.1)
    assert queues._nearest(1005) == 1010
    assert queues._nearest(99) == 100
    assert queues._nearest(10**6) == 1000 + 10 * 62
    message = await get(client, queue)
    assert message.headers["x-death"][0]["queue"] == f"{queue}.retry.100"


# ---------------------------------------------------------------------- what breaks


async def test_nothing_is_published_after_close(client: leveret.Client, queue: str) -> None:
    await publish(client, queue, 1)
    message = await get(client, queue)
    async with retry_queues(client, queue) as queues:
        await queues.close()
        await queues.close()
        with pytest.raises(leveret.PublishError, match="closed") as refused:
            await fail(queues, message)
        assert refused.value.outcome is leveret.Outcome.NOT_SENT


async def test_a_message_is_retried_again_when_the_connection_was_lost(
    broker: Broker, client: leveret.Client, queue: str, queues: RetryQueues
) -> None:
    await publish(client, queue, 1)
    message = await get(client, queue)
    await fail(queues, message)
    message = await get(client, queue)
    attempt = asyncio.create_task(fail(queues, message))
    await broker.close_connections()
    with contextlib.suppress(leveret.LeveretError):  # it was in flight
        await attempt
    async with asyncio.timeout(10):
        while True:
            try:
                await fail(queues, message)
            except leveret.LeveretError:
                # None is tried for a second after one has failed.
                await asyncio.sleep(0.1)
            else:
                break
    assert attempts_of(await get(client, queue)) == 2


async def test_a_body_that_was_not_kept_is_not_copied(broker: Broker, queue: str) -> None:
    async with leveret.connect(broker.url) as sender:
        await publish(sender, queue, "x" * 5000)
    async with leveret.connect(broker.url, max_body_size=1000) as client, retry_queues(client, queue) as queues:
        message = await get(client, queue)
        assert message.body is None
        with pytest.raises(BodyTooLarge, match="5002 bytes"):
            await fail(queues, message)
