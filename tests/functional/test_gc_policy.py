"""The garbage collector's policy in a process of its own, and beside a connected client."""

from __future__ import annotations

import gc
import subprocess
import sys

from tests.support.collector import unchanged_collector
from tests.support.metrics import values

import leveret
from leveret.broker import EmbeddedBroker
from leveret.runtime.gc_policy import GcPolicy


def test_s33_nothing_changes_when_nobody_starts_one() -> None:
    program = (
        "import gc; before = gc.get_threshold(), gc.get_freeze_count(), list(gc.callbacks);"
        "import leveret; leveret.GcPolicy(); leveret.connect('amqp://localhost');"
        "print((gc.get_threshold(), gc.get_freeze_count(), list(gc.callbacks)) == before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "True\n"


async def test_s33_a_client_shows_the_counters_among_its_metrics() -> None:
    with unchanged_collector():
        async with EmbeddedBroker() as broker, leveret.connect(broker.url) as client:
            assert not any(sample.metric.name.startswith("gc_") for sample in client.metrics())
            async with GcPolicy(interval=60) as policy:
                policy.attach(client)
                gc.collect(0)
                gc.collect(1)
                seen = values(client.metrics())
            assert seen["gc_collections", "0"] >= 1
            assert seen["gc_collections", "1"] >= 1
            assert seen["connections_open", "publish"] == 1
