"""What `leveret bench` measures and prints: percentiles, CPU, tables and captions."""

from __future__ import annotations

import io
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from leveret.cli import report
from leveret.cli.bench import BenchmarkResult
from leveret.cli.measure import Clocks, Percentiles, peak_rss_bytes, percentile


@given(samples=st.lists(st.integers(0, 10**12), min_size=1), thousandths=st.integers(1, 1000))
def test_percentile_is_the_least_sample_that_covers_the_share(samples: list[int], thousandths: int) -> None:
    found = percentile(sorted(samples), thousandths)
    assert found in samples
    assert sum(sample <= found for sample in samples) * 1000 >= thousandths * len(samples)
    assert sum(sample < found for sample in samples) * 1000 < thousandths * len(samples)


def test_percentile_of_nothing_is_refused() -> None:
    for ordered, share in (([], 500), ([1], 0), ([1], 1001)):
        with pytest.raises(ValueError, match="no percentile"):
            percentile(ordered, share)


def test_percentiles_of_known_samples() -> None:
    found = Percentiles.of(range(1_000_000, 1_001_000_000, 1_000_000))
    assert found == Percentiles(1000, 500_000_000, 990_000_000, 999_000_000, 1_000_000_000)
    assert found.figures("a")["a_p99_9_ms"] == 999.0


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
    figures = whole.figures(10)
    assert figures["client_cpu_us_per_msg"] == pytest.approx(whole.client_cpu_ns / 1e4)
    assert figures["rate_msgs_per_s"] == pytest.approx(10e9 / whole.wall_ns)
    assert figures["broker_cpu_us_per_msg"] is None


def test_peak_rss_is_plausible() -> None:
    assert 5 * 2**20 < peak_rss_bytes() < 2**36


def test_median_leaves_out_what_is_not_known() -> None:
    result = BenchmarkResult("x", 1, [{"a": 3.0, "b": None}, {"a": 1.0, "b": None}, {"a": 2.0, "b": None}])
    assert result.median == {"a": 2.0, "b": None}


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
    assert report.number(value) == text


def figures(**more: float | None) -> dict[str, float | None]:
    common = {"rate_msgs_per_s": 1e6, "client_cpu_us_per_msg": 2.5, "broker_cpu_us_per_msg": None, "peak_rss_mib": 40}
    return common | more


@pytest.mark.parametrize("width", [80, 120])
def test_table_fits_and_has_dashes_for_what_does_not_apply(width: int) -> None:
    latency = {f"publish_to_consume_{share}_ms": 1234.5 for share in ("p50", "p99", "p99_9")}
    results = [
        BenchmarkResult("concurrent-consume", 1_000_000, [figures(**latency, broker_cpu_us_per_msg=1.5)]),
        BenchmarkResult("serialization", 1_000_000, [figures()]),
    ]
    file = io.StringIO()
    Console(width=width, file=file).print(report.bench_table(results, width=width))
    printed = file.getvalue()
    assert "…" not in printed
    assert printed.count("1,234") == 3
    (line,) = [line.split() for line in printed.splitlines() if "serialization" in line]
    assert line == ["serialization", "1,000,000", "1,000,000", "2.50", "-", "-", "-", "40.0"]


def test_table_leaves_out_the_broker_s_cpu_when_nobody_knows_it() -> None:
    assert len(report.bench_table([BenchmarkResult("x", 1, [figures()])], width=120).columns) == 7


def test_captions_say_what_the_figures_depend_on() -> None:
    settings = {
        "smallest_body_bytes": 147, "largest_body_bytes": 154, "confirms": False, "repeat": 3, "queue_type": "quorum",
        "batch_size": 1000, "prefetch": 77, "concurrency": 2,
    }  # fmt: skip
    broker = {"product": "Ra\x1bbbit", "version": "4.0", "embedded": False}
    text = "\n".join(report.captions(settings, broker))
    expected = ("147 to 154 bytes", "NO CONFIRMS", "median of 3", "quorum", "prefetch 77", "batches of 1000", "Python")
    assert all(word in text for word in expected)
    assert "Ra\\x1bbbit 4.0" in text, "what a broker says of itself cannot move the cursor"
    assert "every publishing confirmed" in report.captions(settings | {"confirms": True}, broker)
