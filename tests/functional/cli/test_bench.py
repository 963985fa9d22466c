"""`leveret bench` and `leveret demo` as a user runs them, on the embedded broker and on RabbitMQ."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from tests.support.bench import NAMES
from tests.support.command_line import COMMAND, TIMEOUT, ended, leveret, running, start
from tests.support.servers import ON_EVERY_SERVER, node_of

from leveret.cli.report import number

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.rabbitmq import RabbitMQNode


COMMON = {
    "elapsed_s",
    "rate_msgs_per_s",
    "guide_avg_latency_ms",
    "client_cpu_us_per_msg",
    "client_cpu_percent",
    "broker_cpu_us_per_msg",
    "peak_rss_mib",
}
NETWORK = {"sent_bytes_per_msg", "received_bytes_per_msg", "network_mb_per_s"}


def latency(name: str) -> set[str]:
    return {f"{name}_{figure}" for figure in ("samples", "p50_ms", "p99_ms", "p99_9_ms", "max_ms")}


FIGURES = {
    **dict.fromkeys(
        ("basic-publish", "batch-publish", "concurrent-publish"), COMMON | NETWORK | latency("publish_to_confirm")
    ),
    **dict.fromkeys(
        ("basic-consume", "concurrent-consume"),
        COMMON
        | NETWORK
        | latency("publish_to_consume")
        | {"from_subscribe_elapsed_s", "from_subscribe_rate_msgs_per_s"},
    ),
    "serialization": COMMON | {"body_bytes"},
}


def rows_of(report: dict[str, Any]) -> list[tuple[str, str]]:
    return [(row["name"], row["variant"]) for row in report["benchmarks"]]


def check_figures(report: dict[str, Any], *, count: int, repeat: int) -> None:
    assert rows_of(report) == [
        (name, variant)
        for name in NAMES
        for variant in (("json", "msgpack") if name == "serialization" else ("default", "tuned"))
    ]
    for row in report["benchmarks"]:
        assert row["messages"] == count
        assert len(row["runs"]) == repeat
        for figures in [row["median"], *row["runs"]]:
            assert figures.keys() == FIGURES[row["name"]], row["name"]
            assert all(value > 0 for name, value in figures.items() if name != "broker_cpu_us_per_msg")
            for kind in ("publish_to_confirm", "publish_to_consume"):
                if f"{kind}_samples" in figures:
                    assert figures[f"{kind}_samples"] == count
                    values = [figures[f"{kind}_{share}_ms"] for share in ("p50", "p99", "p99_9", "max")]
                    assert values == sorted(values)
                    assert values[-1] < 60_000
        check_series(row, count=count)


def check_series(row: dict[str, Any], *, count: int) -> None:
    """What the charts are drawn from: samples that begin with nothing and end with all messages."""
    series = row["series"]
    assert (series["messages"][0], series["messages"][-1]) == (0, count)
    for name in ("seconds", "messages", "client_cpu_s", "broker_cpu_s", "network_mb"):
        assert series[name] == sorted(series[name]), "none of them falls"
    assert len(series["seconds"]) == len(series["rss_mib"]) >= 2
    if row["name"] == "serialization":
        assert series["network_mb"] == series["broker_cpu_s"] == []
        assert row["latency"] is None
    else:
        sent = series["network_mb"][-1] * 1e6
        assert sent > 150 * count, "an order of the guide has at least 147 bytes"
        assert row["latency"]["samples"] == count


def test_bench_on_the_embedded_broker_reports_all_figures() -> None:
    done = leveret("bench", "--count", "300", "--repeat", "2", "--json", "-")
    report = json.loads(done.stdout)
    check_figures(report, count=300, repeat=2)
    assert report["broker"]["embedded"] is True
    assert report["settings"]["confirms"] is True
    if sys.platform == "linux":
        by_name = {row["name"]: row["median"] for row in report["benchmarks"]}
        assert by_name["basic-publish"]["broker_cpu_us_per_msg"] > 0
        assert by_name["serialization"]["broker_cpu_us_per_msg"] is None
    assert all(name in done.stderr for name in NAMES)
    assert "\x1b" not in done.stderr, "what is no terminal gets no progress bars"


def test_bench_names_this_machine_and_the_guide_s() -> None:
    done = leveret("bench", "basic-publish", "--count", "100", "--json", "-")
    report = json.loads(done.stdout)
    machine = report["machine"]
    assert machine["python"].endswith(".".join(map(str, sys.version_info[:3])))
    assert f"this machine: {machine['cpu']}, {machine['cpu_count']} CPU" in done.stderr
    assert "Standard development machine (8 cores, 16GB RAM)" in done.stderr.replace("\n", " ")
    assert report["baseline"]["rates"] == {
        "basic-publish": 50_000,
        "batch-publish": 180_000,
        "basic-consume": 45_000,
        "concurrent-consume": 120_000,
    }
    assert [row["baseline"] for row in report["benchmarks"]] == [50_000, 50_000]
    assert done.stderr.count("50,000") == 2


def test_bench_of_publishing_has_batches_and_many_awaiting_tasks() -> None:
    done = leveret(
        *("bench", "batch-publish", "concurrent-publish", "--batch-size", "100"),
        *("--count", "2500", "--size", "1024", "--json", "-"),
    )
    report = json.loads(done.stdout)
    assert rows_of(report) == [
        ("batch-publish", "given"),
        ("batch-publish", "tuned"),
        ("concurrent-publish", "default"),
        ("concurrent-publish", "tuned"),
    ]
    assert report["settings"]["smallest_body_bytes"] == report["settings"]["largest_body_bytes"] == 1024
    for row in report["benchmarks"]:
        assert row["messages"] == 2500
        assert row["median"]["rate_msgs_per_s"] > 0
        assert 1024 < row["median"]["sent_bytes_per_msg"] < 1300
    for line in (
        *("the embedded broker in its own process", "every publishing confirmed", "1,024 bytes"),
        *("batch_size=100", "200 tasks", "500 tasks"),
    ):
        assert line in done.stderr


def test_bench_without_confirms_says_so(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = leveret(
        *("bench", "basic-publish", "batch-publish", "concurrent-publish"),
        *("--no-confirms", "--count", "2500", "--size", "1024", "--json", str(file)),
    )
    report = json.loads(file.read_text())
    settings = report["settings"]
    assert settings["confirms"] is False
    assert settings["smallest_body_bytes"] == settings["largest_body_bytes"] == 1024
    for row in report["benchmarks"]:
        assert "publish_to_confirm_p50_ms" not in row["median"]
        assert row["latency"] is None
        assert row["series"]["messages"][-1] == 2500
    assert "NO CONFIRMS" in done.stdout


def test_bench_runs_only_the_rows_that_are_asked_for() -> None:
    done = leveret("bench", "basic-consume", "--settings", "tuned", "--count", "100", "--json", "-", "--quiet")
    assert rows_of(json.loads(done.stdout)) == [("basic-consume", "tuned")]


def test_bench_writes_a_page_and_compares_with_an_earlier_run(tmp_path: Path) -> None:
    earlier, page = tmp_path / "earlier.json", tmp_path / "page.html"
    names = ("basic-publish", "serialization")
    leveret("bench", *names, "--count", "200", "--json", str(earlier), "--quiet")
    done = leveret("bench", *names, "--count", "300", "--compare", str(earlier), "--html", str(page))
    assert "since" in done.stdout
    assert "different then: count: 300, earlier 200" in done.stdout
    assert "different then: machine" not in done.stdout
    root = ET.fromstring(page.read_text().partition("\n")[2])
    assert [heading.text for heading in root.iter("h3") if heading.text in NAMES] == [*names, *names]
    text = "".join(root.itertext())
    assert "Earlier run" in text
    assert "count: 300, earlier 200" in text
    before = json.loads(earlier.read_text())["benchmarks"][0]["median"]["rate_msgs_per_s"]
    assert number(before) in text


def test_files_are_written_though_nobody_reads_the_table(tmp_path: Path) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "page.html"
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*COMMAND, "bench", "serialization", "--count", "100", "--json", figures, "--html", page],
            stdout=writing,
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT,
        )
    finally:
        os.close(writing)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(json.loads(figures.read_text())["benchmarks"]) == 2
    assert page.read_text().endswith("</html>\n")


@pytest.fixture(params=[*ON_EVERY_SERVER, "embedded"])
def node(request: pytest.FixtureRequest) -> RabbitMQNode | None:
    """A RabbitMQ, and None for the embedded broker that `leveret demo` starts by itself."""
    return None if request.param == "embedded" else node_of(request)


def left_on(node: RabbitMQNode) -> list[str]:
    names = [*node.ctl("list_queues", "name").split(), *node.ctl("list_exchanges", "name").split()]
    return [name for name in names if name.startswith(("benchmark-", "demo-"))]


@pytest.mark.integration
def test_bench_on_rabbitmq_reports_all_figures_and_leaves_nothing(rabbitmq: RabbitMQNode) -> None:
    done = leveret("bench", "--broker", rabbitmq.url, "--count", "300", "--concurrency", "3", "--json", "-", "--quiet")
    report = json.loads(done.stdout)
    check_figures(report, count=300, repeat=1)
    assert done.stderr == ""
    assert report["broker"]["product"] == "RabbitMQ"
    assert report["broker"]["embedded"] is False
    assert all(row["median"]["broker_cpu_us_per_msg"] is None for row in report["benchmarks"])
    assert left_on(rabbitmq) == []


@pytest.mark.integration
def test_bench_uses_quorum_queues_when_asked(rabbitmq: RabbitMQNode) -> None:
    done = leveret("bench", "batch-publish", "--broker", rabbitmq.url, "--count", "300", "--queue-type", "quorum")
    assert "quorum queue" in done.stdout


@pytest.mark.integration
def test_bench_removes_its_queue_when_it_is_interrupted(rabbitmq: RabbitMQNode) -> None:
    with running("bench", "basic-publish", "--broker", rabbitmq.url, "--count", "60000") as process:
        deadline = time.monotonic() + TIMEOUT / 2
        while not left_on(rabbitmq):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=TIMEOUT / 2)
    assert process.returncode == 130
    assert (out, error) == ("", "stopped\n")
    assert left_on(rabbitmq) == []


@pytest.mark.integration
def test_bench_fails_in_one_line_when_its_queue_is_taken_away(rabbitmq: RabbitMQNode) -> None:
    with running("demo", "--broker", rabbitmq.url, "--count", "10000000") as process:
        deadline = time.monotonic() + TIMEOUT / 2
        # The exchange is there first.
        while not (queues := [name for name in left_on(rabbitmq) if "exchange" not in name]):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
        rabbitmq.ctl("delete_queue", queues[0])
        out, error = process.communicate(timeout=TIMEOUT / 2)
    assert process.returncode == 1
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    assert out == ""


@pytest.mark.integration
def test_wrong_password_is_one_line(rabbitmq: RabbitMQNode) -> None:
    done = leveret("bench", "--broker", rabbitmq.url.replace(":guest@", ":wrong@"), "--count", "10", status=1)
    assert done.stderr.startswith("Error: ")
    assert "ACCESS_REFUSED" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "wrong" not in done.stderr


def test_demo_accounts_for_every_order(node: RabbitMQNode | None) -> None:
    done = leveret("demo", "--count", "2000", *(("--broker", node.url) if node else ()))
    lines = {line[:27].strip(): line[27:].strip() for line in done.stdout.splitlines() if line.strip()}
    assert lines["orders"] == "2,000"
    assert lines["publishings"] == "confirmed 2,000, returned 0, nacked 0, unknown 0"
    assert lines["deliveries"].startswith("delivered 2,000, acked 2,000, requeued 0")
    assert lines["each order exactly once"].startswith("yes")
    assert done.stderr == ""
    if node:
        assert left_on(node) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="children are found in Linux's /proc")
@pytest.mark.parametrize(
    ("stop", "in_background"), [(signal.SIGINT, False), (signal.SIGTERM, False), (signal.SIGTERM, True)]
)
def test_bench_stops_its_broker_when_it_is_interrupted(stop: signal.Signals, in_background: bool) -> None:
    # A shell without job control starts what stands before an & with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_background else signal.getsignal(signal.SIGINT)
    try:
        process = start("bench", "basic-publish", "--count", "30000")
    finally:
        signal.signal(signal.SIGINT, before)
    with ended(process):
        deadline = time.monotonic() + TIMEOUT / 2
        children: list[str] = []
        while not children:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
            with open(f"/proc/{process.pid}/task/{process.pid}/children") as file:
                children = file.read().split()
        process.send_signal(stop)
        _, error = process.communicate(timeout=TIMEOUT / 2)
    assert process.returncode == 128 + stop
    assert error == "stopped\n"
    assert not any(os.path.exists(f"/proc/{child}") for child in children)
