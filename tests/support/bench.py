"""Results of `leveret bench`, made up: for tests of what shows and keeps them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from leveret.cli.bench.baseline import BASELINE
from leveret.cli.bench.results import Curve, Report, Row, Series, Settings
from leveret.cli.bench.suite import entries
from leveret.cli.machine import Machine
from leveret.cli.stage import Broker

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leveret.cli.measure import Figures

#: The guide's benchmarks, and concurrent-publish.
NAMES = ("basic-publish", "batch-publish", "concurrent-publish", "basic-consume", "concurrent-consume", "serialization")

MACHINE = Machine(
    cpu="Some Processor",
    cpu_count=2,
    memory_bytes=8 * 2**30,
    system="Linux x86_64",
    python="CPython 3.11.7",
    event_loop="uvloop 0.23.0",
    leveret="0.1.0",
)
SETTINGS = Settings(
    count=1000,
    smallest_body_bytes=1024,
    largest_body_bytes=1024,
    batch_size=None,
    prefetch=None,
    concurrency=2,
    confirms=True,
    queue_type="classic",
    repeat=1,
    paced_messages=1000,
    paced_rate_msgs_per_s=1000,
)


def figures(rate: float = 1e6, **more: float | None) -> Figures:
    common: Figures = {
        "rate_msgs_per_s": rate,
        "client_cpu_us_per_msg": 2.5,
        "client_cpu_percent": 75.0,
        "broker_cpu_us_per_msg": None,
        "peak_rss_mib": 40.0,
    }
    return common | more


def row(name: str = "basic-publish", variant: str = "default", **changes: Any) -> Row:
    runs = changes.pop("runs", None) or [figures()]
    return Row(
        **{
            "name": name,
            "variant": variant,
            "how": "await publish() for each message",
            "messages": 1000,
            "baseline": BASELINE.rates.get(name),
            "median": runs[0],
            "runs": runs,
            **changes,
        }
    )


def series(samples: int = 5, rate: float = 1000.0) -> Series:
    times = [index / 10 for index in range(samples)]
    return Series(
        seconds=times,
        messages=[rate * time for time in times],
        client_cpu_s=[time / 2 for time in times],
        broker_cpu_s=[time / 4 for time in times],
        rss_mib=[40.0 + time for time in times],
        network_mb=[time * 3 for time in times],
    )


def curve(samples: int = 1000) -> Curve:
    return Curve(measured="publish to confirm", samples=samples, percent=[0, 50, 99, 100], ms=[0.1, 0.2, 3.0, 40.0])


def report(rows: Sequence[Row] | None = None, **changes: Any) -> Report:
    """A report with all rows, unless others are given."""
    if rows is None:
        latencies = {f"publish_to_confirm_{share}_ms": 1.0 for share in ("p50", "p99", "p99_9", "max")}
        rows = [
            row(entry.name, entry.way.variant, runs=[figures(**latencies)], series=series(), latency=curve())
            for entry in entries(NAMES, "both", {})
        ]
    made = Report(
        made_at=datetime(2026, 11, 30, 12, 30, tzinfo=UTC),
        machine=MACHINE,
        broker=Broker(product="RabbitMQ", version="4.0.5", embedded=False),
        settings=SETTINGS,
        baseline=BASELINE,
        benchmarks=list(rows),
    )
    return msgspec.structs.replace(made, **changes)
