"""Everything is counted in the core, under metrics that are described."""

from __future__ import annotations

import asyncio
import gc
import re
from typing import TYPE_CHECKING

import pytest
from tests.support.metrics import values
from tests.support.paths import ROOT

import leveret
from leveret.monitoring.catalogue import METRICS
from leveret.monitoring.monitor import Monitor

if TYPE_CHECKING:
    from leveret.broker import EmbeddedBroker

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_everything_is_counted_and_stays_counted_when_its_owner_is_gone(embedded: EmbeddedBroker) -> None:
    async with leveret.connect(embedded.url, client_name="billing") as client:
        await client.declare(leveret.Topology().queue("orders"))
        async with client.producer() as producer:
            await producer.publish_batch(range(100), "orders")
        async with client.consumer("orders") as consumer:
            async for message in consumer:
                message.ack()
                if message.value == 9:
                    break
            before = values(client.metrics())
        del producer, consumer, message
        await asyncio.sleep(0)  # until its next turn the loop may hold what ended a wait, and frames with it
        gc.collect()
        after = values(client.metrics())

    assert before["publishings", ""] == before["publishings_confirmed", ""] == 100
    assert before["publishing", ""] == 190  # bytes: ten of one digit, ninety of two
    assert before["deliveries", "orders"] == 100
    assert before["deliveries_unsettled", "orders"] == 90
    assert before["connections_open", "publish"] == before["connections_open", "consume"] == 1
    assert before["received", "consume"] > 1000
    assert after.items() >= {key: value for key, value in before.items() if "connection" in key[0]}.items()
    assert after["publishings", ""] == 100
    assert after["deliveries", "orders"] == 100
    assert after["deliveries_acked", "orders"] == 10
    assert ("deliveries_unsettled", "orders") not in after
    assert {sample.labels[0] for sample in client.metrics()} == {"billing"}


async def test_counters_of_many_queues_are_bounded() -> None:
    class Owner: ...

    class One:
        def read(self) -> dict[str, int]:
            return {"delivered": 1}

    monitor = Monitor("c")
    for number in range(3000):
        monitor.add(Owner(), "consumer", f"queue-{number}", One())
    samples = monitor.snapshot()
    assert len(samples) == 1001
    assert sum(sample.value for sample in samples) == 3000
    assert values(samples)["deliveries", "(other)"] == 2000
    assert len(monitor._meters) == 0


def test_metrics_are_described_and_unique() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.help.endswith(".")
        assert metric.labels[0] == "client"


def test_the_page_lists_every_metric_as_it_is() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text()
    rows = [line for line in page.splitlines() if re.match(r"\| `\w+` \| (counter|gauge|histogram) ", line)]
    assert rows == [f"| `{metric.name}` | {metric.kind} | {metric.unit} | `{metric.labels[1]}` |" for metric in METRICS]
