"""What `leveret bench` measures and prints: percentiles, CPU, medians, tables and captions."""

from __future__ import annotations

import asyncio
import io
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.support.bench import NAMES, SETTINGS, figures, report, row

from leveret.cli.bench import recording
from leveret.cli.bench.baseline import BASELINE
from leveret.cli.bench.comparison import Comparison
from leveret.cli.bench.latencies import Counted, Sampled, curve_of, figures_of
from leveret.cli.bench.suite import entries, medians
from leveret.cli.bench.tables import bench_table, captions
from leveret.cli.machine import this_machine
from leveret.cli.measure import Clocks, peak_rss_bytes, percentile
from leveret.cli.report import number
from leveret.cli.stage import Broker
from leveret.monitoring.histogram import Histogram
from leveret.settings import ConsumerSettings, ProducerSettings

if TYPE_CHECKING:
    from leveret.cli.bench.results import Report


@given(samples=st.lists(st.integers(0, 10**12), min_size=1), thousandths=st.integers(1, 1000))
def test_percentile_is_the_least_sample_that_covers_the_share(samples: list[int], thousandths: int) -> None:
    found = percentile(sorted(samples), thousandths / 10)
    assert found in samples
    assert sum(sample <= found for sample in samples) * 1000 >= thousandths * len(samples)
    assert sum(sample < found for sample in samples) * 1000 < thousandths * len(samples)


def test_percentile_of_nothing_is_refused() -> None:
    for ordered, percent in (([], 50.0), ([1], -1.0), ([1], 100.1)):
        with pytest.raises(ValueError, match="no percentile"):
            percentile(ordered, percent)


def test_percentiles_of_known_samples() -> None:
    found = figures_of(Sampled(range(1_000_000, 1_001_000_000, 1_000_000)), "publish to consume")
    assert found == {
        "publish_to_consume_samples": 1000,
        "publish_to_consume_p50_ms": 500.0,
        "publish_to_consume_p99_ms": 990.0,
        "publish_to_consume_p99_9_ms": 999.0,
        "publish_to_consume_max_ms": 1000.0,
    }


def test_percentiles_of_a_histogram_are_those_of_its_samples_within_its_precision() -> None:
    histogram = Histogram()
    samples = range(1_000_000, 1_001_000_000, 1_000_000)
    for sample in samples:
        histogram.record(sample)
    exact = figures_of(Sampled(samples), "publish to confirm")
    assert figures_of(Counted(histogram.read()), "publish to confirm") == pytest.approx(exact, rel=0.035)


@pytest.mark.parametrize("count", [1, 9, 10, 1000, 12_345])
def test_curve_ends_with_the_highest_sample_and_has_no_point_that_no_sample_stands_for(count: int) -> None:
    curve = curve_of(Sampled(range(1_000_000, (count + 1) * 1_000_000, 1_000_000)), "publish to confirm")
    assert (curve.percent[0], curve.percent[-1]) == (0 if count > 1 else 100, 100)
    assert (curve.ms[0], curve.ms[-1]) == (1, count)
    assert curve.samples == count
    assert curve.percent == sorted(set(curve.percent))
    assert curve.ms == sorted(curve.ms)
    assert all(100 - percent >= 99.9 / count for percent in curve.percent[:-1])


def test_meter_leaves_out_what_drawing_took() -> None:
    drawn = 0
    clocks = Clocks(lambda: None, lambda: drawn)
    start = clocks.now()
    until = time.process_time_ns() + 20_000_000
    while time.process_time_ns() < until:
        pass
    whole = clocks.since(start)
    drawn = 20_000_000
    part = clocks.since(start)
    assert whole.client_cpu_ns >= 20_000_000
    assert part.client_cpu_ns < whole.client_cpu_ns
    assert part.broker_cpu_ns is None
    found = whole.figures(10)
    assert found["client_cpu_us_per_msg"] == pytest.approx(whole.client_cpu_ns / 1e4)
    assert found["client_cpu_percent"] == pytest.approx(100 * whole.client_cpu_ns / whole.wall_ns)
    assert found["rate_msgs_per_s"] == pytest.approx(10e9 / whole.wall_ns)
    assert found["broker_cpu_us_per_msg"] is None


async def test_long_runs_keep_few_samples_from_the_beginning_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "_INTERVAL", 0.0001)
    monkeypatch.setattr(recording, "_MOST_SAMPLES", 8)
    taken = 0
    enough = asyncio.Event()

    def done() -> int:
        nonlocal taken
        taken += 1
        if taken == 40:
            enough.set()
        return taken

    with recording.Recorder(Clocks(lambda: 7, lambda: 0), done) as recorder:
        await enough.wait()
    series = recorder.series()
    assert 3 <= len(series.seconds) <= 9
    assert (series.messages[0], series.messages[-1]) == (1, taken)
    assert series.seconds == sorted(series.seconds)
    assert len(series.broker_cpu_s) == len(series.seconds)
    assert series.network_mb == [], "there was no client"
    assert "network_mb_per_s" not in recorder.figures(10)


def test_peak_rss_is_plausible() -> None:
    assert 5 * 2**20 < peak_rss_bytes() < 2**36


def test_machine_is_named() -> None:
    machine = this_machine()
    assert machine.cpu
    assert machine.cpu_count >= 1
    assert machine.memory_bytes is None or machine.memory_bytes > 2**26
    assert f"{machine.cpu_count} CPU" in machine.hardware
    assert machine.python in machine.software


def test_median_leaves_out_what_is_not_known() -> None:
    assert medians([{"a": 3.0, "b": None}, {"a": 1.0, "b": None}, {"a": 2.0, "b": None}]) == {"a": 2.0, "b": None}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.00"),
        (0.123, "0.12"),
        (9.99, "9.99"),
        (12.34, "12.3"),
        (123.4, "123"),
        (1.2e6, "1,200,000"),
    ],
)
def test_numbers_have_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_default_rows_have_leveret_s_defaults_and_each_benchmark_has_two_rows() -> None:
    found = entries(NAMES, "both", {"batch_size": None, "prefetch": None})
    assert [(entry.name, entry.way.variant) for entry in found] == [
        (name, variant)
        for name in NAMES
        for variant in (("json", "msgpack") if name == "serialization" else ("default", "tuned"))
    ]
    producer, consumer = ProducerSettings(), ConsumerSettings()
    for entry in found:
        if entry.way.variant == "default":
            settings = consumer if "consume" in entry.name else producer
            assert entry.way.options == {name: getattr(settings, name) for name in entry.way.options}


def test_rows_are_called_given_when_an_option_replaces_their_default() -> None:
    found = entries(NAMES, "default", {"batch_size": 50, "prefetch": 7})
    variants = {entry.name: entry.way.variant for entry in found}
    assert variants == {
        "basic-publish": "default",
        "batch-publish": "given",
        "concurrent-publish": "default",
        "basic-consume": "given",
        "concurrent-consume": "given",
        "serialization": "msgpack",  # it has no default rows, and none that are tuned
    }
    options = {entry.name: entry.way.options for entry in found}
    assert options["batch-publish"] == {"batch_size": 50}
    assert options["basic-consume"] == {"prefetch": 7}
    tuned = entries(NAMES, "tuned", {"batch_size": 50, "prefetch": 7})
    assert {entry.way.variant for entry in tuned} == {"tuned", "json", "msgpack"}


def printed(made: Report, comparison: Comparison | None = None, *, width: int) -> str:
    file = io.StringIO()
    Console(width=width, file=file).print(bench_table(made, comparison, width=width))
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("compared", [False, True])
def test_table_fits_and_has_dashes_for_what_does_not_apply(width: int, compared: bool) -> None:
    latency = {f"publish_to_consume_{share}_ms": 1234.5 for share in ("p50", "p99", "p99_9")}
    made = report(
        [
            row("concurrent-consume", runs=[figures(**latency, broker_cpu_us_per_msg=1.5, network_mb_per_s=250.0)]),
            row("serialization", "msgpack", baseline=None),
        ]
    )
    comparison = (
        Comparison(made, report([row("serialization", "msgpack", runs=[figures(500_000)])])) if compared else None
    )
    text = printed(made, comparison, width=width)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= width
    assert text.count("1,234") == 3
    (line,) = [line.split() for line in text.splitlines() if "serialization" in line]
    changes = ["+100", "%"] if compared else []
    wide = (["0", "%"] if compared else ["75.0", "-"]) if width == 120 else []
    assert line == ["serialization", "msgpack", "1,000,000", *changes, "-", "2.50", *wide, "-", "40.0", "-"]


def test_the_guide_s_rates_stand_beside_the_results() -> None:
    text = printed(report(), width=120)
    assert all(f"{rate:,}" in text for rate in (50_000, 180_000, 45_000, 120_000))
    assert BASELINE.rates.keys() < set(NAMES)


def test_table_leaves_out_the_broker_s_cpu_when_nobody_knows_it() -> None:
    assert "broker" not in printed(report([row()]), width=120)


def test_row_that_was_not_measured_says_why() -> None:
    made = report([row("serialization", "msgpack", median={}, runs=[], skipped="install\x1b[2J leveret-msgpack")])
    line = printed(made, width=120).splitlines()[-2]
    assert set(line.split()) == {"serialization", "msgpack", "-"}
    text = "\n".join(captions(made))
    assert "not measured: install\\x1b[2J leveret-msgpack" in text


def said(**changes: Any) -> str:
    return "\n".join(captions(report([row()], **changes)))


def test_captions_say_what_the_figures_depend_on() -> None:
    settings = msgspec.structs.replace(
        SETTINGS, smallest_body_bytes=147, largest_body_bytes=154, confirms=False, repeat=3, queue_type="quorum"
    )
    text = said(settings=settings, broker=Broker(product="Ra\x1bbbit", version="4.0", embedded=False))
    words = (
        "147 to 154 bytes",
        "NO CONFIRMS",
        "medians of 3",
        "quorum",
        "Some Processor, 2 CPUs, 8.0 GiB RAM",
        "CPython",
    )
    assert all(word in text for word in words)
    assert "Ra\\x1bbbit 4.0" in text, "what a broker says of itself cannot move the cursor"
    assert "every publishing confirmed" in said()


def test_captions_name_the_guide_s_machine_and_the_size_of_its_messages() -> None:
    settings = msgspec.structs.replace(SETTINGS, smallest_body_bytes=147, largest_body_bytes=154)
    text = said(settings=settings)
    guide = (
        "Standard development machine (8 cores, 16GB RAM)",
        "RabbitMQ 3.12.x running in Docker",
        "1KB JSON payload",
    )
    assert all(words in text for words in guide)
    assert "--size 1024" in text
    assert "--size 1024" not in said(), "bodies have the size of the guide's rates"


def test_captions_name_what_differs_from_the_earlier_run() -> None:
    earlier = report(
        machine=msgspec.structs.replace(report().machine, cpu="Another\nProcessor"),
        settings=msgspec.structs.replace(SETTINGS, confirms=False),
        broker=None,
    )
    made = report()
    text = "\n".join(captions(made, Comparison(made, earlier)))
    assert "compared with the run of 2026-11-30 12:30 UTC" in text
    assert (
        "different then: machine: Some Processor, 2 CPUs, 8.0 GiB RAM, Linux x86_64, earlier Another\\nProcessor"
        in text
    )
    assert "different then: broker: RabbitMQ 4.0.5, earlier none" in text
    assert "different then: confirms: True, earlier False" in text
    assert "different then" not in "\n".join(captions(made, Comparison(made, report())))
