"""With the API alone everything works and does nothing; and the process's meter provider may be set last."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_SDK = """
import asyncio
import sys

sys.modules["opentelemetry.sdk"] = None  # importing it fails, as if it was not installed

import leveret
from leveret.broker import EmbeddedBroker
from leveret_opentelemetry import TracingPublisher, traced
from opentelemetry import trace

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def main():
    monitoring = leveret.MonitoringSettings(sinks=["opentelemetry"])
    async with EmbeddedBroker() as broker, leveret.connect(broker.url, monitoring=monitoring) as client:
        await client.declare(leveret.Topology().queue("work").queue("next"))
        seen = []
        consumer = client.consumer("work", concurrency=1)

        async def handle(value, message):
            seen.append((value, message.headers, trace.get_current_span().get_span_context().span_id))
            if len(seen) == 4:
                await publisher.publish(5, "next")
                consumer.stop()

        async with client.producer() as producer:
            publisher = TracingPublisher(producer)
            await publisher.publish(1, "work")
            publisher.publish_nowait(2, "work")
            await publisher.publish_batch([3], "work")
            await publisher.publish(4, "work", headers={"traceparent": PARENT})
            await publisher.flush()
            await consumer.run(traced(handle))
        passed_on = await client.consumer("next").get()
        assert passed_on.headers == {"traceparent": PARENT}, passed_on.headers
    assert seen == [(1, {}, 0), (2, {}, 0), (3, {}, 0), (4, {"traceparent": PARENT}, 0xB7AD6B7169203331)], seen


asyncio.run(main())
"""

SET_LATER = """
from leveret.plugins import Metric, Sample
from leveret_opentelemetry import OpenTelemetrySink
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

METRIC = Metric("publishings", "counter", "messages", "", ("client",))


class Source:
    metrics = (METRIC,)

    def snapshot(self):
        return [Sample(METRIC, ("billing",), 3)]


before = OpenTelemetrySink()
before.start(Source())
reader = InMemoryMetricReader()
provider = MeterProvider([reader])
metrics.set_meter_provider(provider)
OpenTelemetrySink().start(Source())
OpenTelemetrySink(provider).start(Source())

((metric,),) = [
    scope.metrics for resource in reader.get_metrics_data().resource_metrics for scope in resource.scope_metrics
]
assert [point.value for point in metric.data.data_points] == [9], metric
"""


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""


def test_everything_works_and_does_nothing_when_there_is_no_sdk() -> None:
    run(WITHOUT_SDK)


def test_all_sinks_share_instruments_when_the_meter_provider_is_set_after_the_first() -> None:
    run(SET_LATER)
