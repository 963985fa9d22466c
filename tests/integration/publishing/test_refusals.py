"""What cannot be sent is refused with an error that names it, and leaves no trace."""

from __future__ import annotations

import asyncio
import enum
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.queues import messages, taken
from tests.support.secrets import PASSWORD

import leveret
from leveret import Topology
from leveret.errors import BodyTooLarge, ConfigurationError, EncodeFailed, WrongLoopError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.usefixtures("no_leftovers")


WRONG: list[tuple[type[Exception], str, Any, str, dict[str, Any]]] = [
    (EncodeFailed, "headers take .* frame_max", 1, "key", {"headers": {"large": "x" * 200_000}}),
    (BodyTooLarge, "a body of 1002 bytes is larger than max_body_size of 1000", "x" * 1000, "key", {}),
    (EncodeFailed, "routing_key", 1, "k" * 256, {}),
    (EncodeFailed, "exchange", 1, "key", {"exchange": "ü" * 128}),
    (EncodeFailed, "priority is 0 to 255, not 256", 1, "key", {"priority": 256}),
    (EncodeFailed, "priority is 0 to 255, not -1", 1, "key", {"priority": -1}),
    (EncodeFailed, "expiration is 0 to .* seconds, not -1", 1, "key", {"expiration": -1}),
    (EncodeFailed, "delivery_mode", 1, "key", {"delivery_mode": 3}),
    (EncodeFailed, "key", 1, "key", {"headers": {"k" * 256: 1}}),
    (EncodeFailed, "object", object(), "key", {}),
    (ConfigurationError, "no option 'topic'", 1, "key", {"topic": "orders"}),
    *[
        (EncodeFailed, option, 1, "key", {option: "x" * 256})
        for option in (
            "content_type",
            "content_encoding",
            "correlation_id",
            "reply_to",
            "message_id",
            "type",
            "user_id",
            "app_id",
        )
    ],
]


@pytest.mark.parametrize("how", ["publish", "publish_nowait", "enqueue", "message", "publish_batch", "batch"])
async def test_nothing_is_written_and_no_tag_is_taken_when_input_does_not_fit(
    client: leveret.Client, other: leveret.Client, queue: str, how: str
) -> None:
    async def call(value: Any, routing_key: str, options: dict[str, Any]) -> None:
        if how == "publish":
            await producer.publish(value, routing_key, **options)
        elif how == "publish_nowait":
            producer.publish_nowait(value, routing_key, **options)
        elif how == "enqueue":
            await producer.enqueue(value, routing_key, **options)
        elif how == "message":
            message = producer.message(value).routing_key(routing_key)
            message.options.update(options)  # type: ignore[typeddict-item]
            await message.publish()
        elif how == "publish_batch":
            (await producer.publish_batch([value], routing_key, **options)).raise_for_failures()
        else:
            async with producer.batch() as batch:
                batch.add(value, routing_key, **options)
            batch.result.raise_for_failures()

    async with client.producer(max_body_size=1000) as producer:
        await producer.publish("before", queue)
        connection = client.connection
        sent = connection.sent_bytes
        for kind, text, value, routing_key, options in WRONG:
            with pytest.raises(kind, match=text):
                await call(value, routing_key, options)
        assert len(connection.transport.out) == 0
        assert connection.sent_bytes == sent
        assert producer.next_delivery_tag == 2
        assert (await producer.publish("after", queue)).delivery_tag == 2
    assert [message.value for message in await messages(other, queue)] == ["before", "after"]


NOT_ENCODABLE: dict[str, tuple[Any, str, dict[str, Any], list[str]]] = {
    "value": (object(), "q", {}, ["json", "object"]),
    "part of the value": ({1, 2, object()}, "q", {}, ["json"]),
    "routing key": (1, "k" * 256, {}, ["routing_key", "256", "255"]),
    "routing key of wide characters": (1, "é" * 128, {}, ["routing_key", "256", "255"]),
    "routing key that is no text": (1, "q\ud800", {}, ["routing_key", "UTF-8"]),
    "exchange": (1, "q", {"exchange": "x" * 256}, ["exchange", "256", "255"]),
    "short string": (1, "q", {"correlation_id": "c" * 300}, ["correlation_id", "300", "255"]),
    "header key": (1, "q", {"headers": {"k" * 256: 1}}, ["256", "255"]),
    "header value": (1, "q", {"headers": {"bad": object()}}, ["bad", "object"]),
    "header out of range": (1, "q", {"headers": {"large": 2**64}}, ["large"]),
    "headers over frame_max": (1, "q", {"headers": {"x": "x" * 140_000}}, ["headers", "frame_max", "131072"]),
    "headers that are no table": (1, "q", {"headers": "none"}, ["headers", "str"]),
    "priority": (1, "q", {"priority": 256}, ["priority", "256"]),
    "delivery mode": (1, "q", {"delivery_mode": 3}, ["delivery_mode", "3"]),
    "expiration": (1, "q", {"expiration": -1}, ["expiration", "-1"]),
    "timestamp": (1, "q", {"timestamp": "now"}, ["timestamp"]),
    "property of another type": (1, "q", {"reply_to": 5}, ["reply_to", "int"]),
}


@pytest.mark.parametrize(("value", "key", "options", "words"), NOT_ENCODABLE.values(), ids=NOT_ENCODABLE)
async def test_nothing_is_sent_when_a_message_cannot_be_encoded(
    client: leveret.Client, queue: str, value: Any, key: str, options: dict[str, Any], words: list[str]
) -> None:
    async with client.producer() as producer:
        publishes = [
            lambda: producer.publish(value, key, **options),
            lambda: asyncio.sleep(0, producer.publish_nowait(value, key, **options)),
        ]
        for publish in publishes:
            with pytest.raises(EncodeFailed) as refused:
                await publish()
            for word in words:
                assert word in str(refused.value)
        assert producer.next_delivery_tag == 1
        assert (await producer.publish("good", queue)).delivery_tag == 1


async def test_the_options_are_named_when_publish_has_no_such(client: leveret.Client, queue: str) -> None:
    async with client.producer() as producer:
        with pytest.raises(ConfigurationError, match="routing_keys") as refused:
            await producer.publish(1, queue, routing_keys="x")  # type: ignore[call-arg]
        assert refused.value.option == "routing_keys"


async def test_the_size_and_the_limit_are_named_when_a_body_is_too_large(client: leveret.Client, queue: str) -> None:
    async with client.producer(serializer="bytes", max_body_size=1000) as producer:
        await producer.publish(bytes(1000), queue)
        with pytest.raises(BodyTooLarge, match=r"1001 bytes.*1000"):
            await producer.publish(bytes(1001), queue)
        with pytest.raises(BodyTooLarge):
            producer.publish_nowait(bytes(1001), queue)
        bodies = [bytes(1), bytes(1001), bytes(2), bytes(1001), bytes(5000)]
        result = await producer.publish_batch(bodies, queue)
        assert sorted(result.failures) == [1, 3, 4]
        assert all(type(error) is BodyTooLarge for error in result.failures.values())
        assert result.confirmed == 2
        assert (await producer.publish(b"good", queue)).delivery_tag == 4
    assert await client.purge(queue) == 4


async def test_no_value_is_shown_when_it_cannot_be_encoded(client: leveret.Client, queue: str) -> None:
    class Account:
        def __init__(self) -> None:
            self.password = PASSWORD

        def __repr__(self) -> str:
            return f"Account({self.password!r})"

    async with client.producer() as producer:
        with pytest.raises(EncodeFailed) as refused:
            await producer.publish({"account": Account()}, queue)
        assert PASSWORD not in str(refused.value)
        assert PASSWORD not in str(refused.value.__cause__)
        with pytest.raises(EncodeFailed) as refused:
            await producer.publish(1, queue, headers={"authorization": [PASSWORD, Account()]})
        assert PASSWORD not in str(refused.value)
    with pytest.raises(EncodeFailed) as refused:
        await client.declare(Topology().queue("q", leveret.Classic(arguments={"x-password": Account()})))
    assert PASSWORD not in str(refused.value)


@pytest.mark.parametrize(
    ("routing_key", "options", "text"),
    [
        (5, {}, "routing_key is text, not int"),
        (None, {}, "routing_key is text, not NoneType"),
        (["q"], {}, "routing_key is text, not list"),
        (b"q", {"priority": 1}, "routing_key is text, not bytes"),
        ("q", {"exchange": None}, "exchange is text, not NoneType"),
        ("q", {"mandatory": "no"}, "mandatory is True or False, not str"),
        ("q", {"mandatory": None}, "mandatory is True or False, not NoneType"),
    ],
)
async def test_a_name_or_bit_of_another_type_is_refused(
    tight_client: leveret.Client, routing_key: Any, options: Any, text: str
) -> None:
    async with tight_client.producer() as producer:
        for call in (
            lambda: producer.publish(1, routing_key, **options),
            lambda: producer.enqueue(1, routing_key, **options),
            lambda: producer.publish_batch([1], routing_key, **options),
        ):
            with pytest.raises(EncodeFailed, match=text):
                await call()
        with pytest.raises(EncodeFailed, match=text):
            producer.publish_nowait(1, routing_key, **options)
        with pytest.raises(EncodeFailed, match=text):
            producer.template(routing_key, **options)
        no_text: Any = 5
        message = producer.message(2).routing_key(no_text if routing_key is None else routing_key)
        message.options.update(options)
        result = await producer.publish_batch([1, message, 3], "q")
        assert list(result.failures) == [1]
    assert await taken(tight_client, "q") == [1, 3]


async def test_every_call_is_refused_in_another_thread(tight_client: leveret.Client) -> None:
    async with tight_client.producer() as producer:
        await producer.publish(1, "q")
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: producer.publish(1, "q"),
            lambda: producer.publish(1, "q", priority=1),
            lambda: producer.enqueue(1, "q"),
            lambda: producer.publish_batch([1], "q"),
            producer.flush,
            producer.close,
        ]

        async def run(call: Callable[[], Awaitable[Any]]) -> None:
            await call()

        def elsewhere() -> None:
            for call in calls:
                with pytest.raises(WrongLoopError):
                    asyncio.run(run(call))
            with pytest.raises(WrongLoopError):
                producer.publish_nowait(1, "q")
            with pytest.raises(WrongLoopError):
                producer.publish_nowait(1, "q", priority=1)

        await asyncio.to_thread(elsewhere)
        await producer.publish(2, "q")
    assert await taken(tight_client, "q") == [1, 2]


class Key(enum.StrEnum):
    """Routing keys as programs name them."""

    QUEUE = "q"


async def test_members_of_a_str_enum_are_text(tight_client: leveret.Client) -> None:
    async with tight_client.producer() as producer:
        await producer.publish(1, Key.QUEUE)
        await producer.publish(2, Key.QUEUE, type=Key.QUEUE, headers={"a": Key.QUEUE})
        await producer.publish(3, "q", exchange=type("Name", (str,), {})(""))
        assert await producer.publish_batch([4], Key.QUEUE)
        await producer.publish(5, Key.QUEUE)
    assert await taken(tight_client, "q") == [1, 2, 3, 4, 5]
