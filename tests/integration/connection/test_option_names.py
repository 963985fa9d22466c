"""A misspelt option of a call of the client, of a producer or of a message is named, with the one that is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.support.bodies import decoded

from leveret import ProducerSettings, Topology
from leveret.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    import leveret

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_options_of_the_client_s_calls_are_suggested(client: leveret.Client) -> None:
    anything: Any = client
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: anything.producer(exchnge="orders"), "did you mean 'exchange'?"),
        (lambda: anything.producer(circuit_braker="x"), "did you mean 'circuit_breaker'?"),
        (lambda: anything.producer(prefetch=5), "it is an option of ConsumerSettings"),
        (lambda: anything.consumer("q", prefetch_count=5), "did you mean 'prefetch'?"),
        (lambda: anything.consumer("q", on_eror=None), "did you mean 'on_error'?"),
        (lambda: anything.consumer("q", modle=dict), "did you mean 'model'?"),
        (lambda: anything.batches("q", sizee=5), "did you mean 'size'?"),
        (lambda: anything.batches("q", oredered_by=None), "did you mean 'ordered_by'?"),
        (lambda: anything.queue("q").option(concurency=2).consumer(), "did you mean 'concurrency'?"),
    ]
    for call, said in calls:
        with pytest.raises(ConfigurationError, match=r"^unknown option '\w+'") as caught:
            call()
        assert str(caught.value).endswith(said)


async def test_settings_of_another_class_are_refused(client: leveret.Client) -> None:
    anything: Any = client
    for call, said in (
        (lambda: anything.producer("orders"), "settings is a str; it must be ProducerSettings"),
        (
            lambda: anything.consumer("q", dict, ProducerSettings()),
            "is a ProducerSettings; it must be ConsumerSettings",
        ),
    ):
        with pytest.raises(ConfigurationError, match=said):
            call()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"hedaers": {"a": 1}}, "publish has no option 'hedaers'; did you mean 'headers'?"),
        ({"routing_ky": "q"}, "publish has no option 'routing_ky'; did you mean 'routing_key'?"),
        ({"serializer": "text"}, "publish has no option 'serializer'; it is an option of "),
    ],
    ids=["headers", "routing key", "serializer"],
)
async def test_options_of_publish_are_suggested(
    client: leveret.Client, queue: str, wrong: dict[str, Any], said: str
) -> None:
    async with client.producer() as producer:
        anything: Any = producer

        async def in_a_transaction() -> None:
            async with anything.transaction() as transaction:
                await transaction.publish(1, **{"routing_key": queue, **wrong})

        calls: list[Callable[[], Any]] = [
            lambda: anything.publish(1, queue, **wrong),
            lambda: anything.enqueue(1, queue, **wrong),
            lambda: anything.publish_batch([1], queue, **wrong),
            in_a_transaction,
        ]
        for call in calls:
            with pytest.raises(ConfigurationError, match=said.replace("?", r"\?")) as caught:
                await call()
            assert caught.value.option == next(iter(wrong))
        for plain in (anything.publish_nowait, lambda *_, **options: anything.template(queue, **options)):
            with pytest.raises(ConfigurationError, match=said.replace("?", r"\?")):
                plain(1, queue, **wrong)
        await producer.publish(2, queue)
    assert await decoded(client, queue) == 2


async def test_names_of_serializers_and_policies_are_suggested(client: leveret.Client) -> None:
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: client.producer(serializer="jsn"), r"no serializer 'jsn'; known are .*\. Did you mean 'json'\?"),
        (lambda: client.producer(compressor="gzp"), r"no compressor 'gzp'; known are .*\. Did you mean 'gzip'\?"),
        (lambda: client.consumer("q", serializer="msgpck"), r"\. Did you mean 'msgpack'\?"),
        (lambda: client.producer(retry="exponental"), r"\. Did you mean 'exponential'\?"),
    ]
    for call, said in calls:
        with pytest.raises(ConfigurationError, match=said):
            call()


@pytest.mark.parametrize("values", [5, None, "text", b"bytes"])
async def test_values_that_are_no_iterable_are_named(client: leveret.Client, queue: str, values: Any) -> None:
    async with client.producer() as producer:
        with pytest.raises(ConfigurationError, match=f"values is a {type(values).__name__}; it must be an iter"):
            await producer.publish_batch(values, queue)
    assert (await client.declare(Topology().queue(queue))).queues[queue].message_count == 0
