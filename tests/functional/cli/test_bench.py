"""`leveret bench` and `leveret demo` as a user runs them, on the embedded broker and on RabbitMQ."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.command_line import TIMEOUT, ended, leveret, running, start
from tests.support.servers import ON_EVERY_SERVER, node_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.rabbitmq import RabbitMQNode


# The guide's, and concurrent-publish.
NAMES = ["basic-publish", "batch-publish", "concurrent-publish", "basic-consume", "concurrent-consume", "serialization"]


COMMON = {
    "elapsed_s",
    "rate_msgs_per_s",
    "guide_avg_latency_ms",
    "client_cpu_us_per_msg",
    "broker_cpu_us_per_msg",
    "peak_rss_mib",
}


def latency(name: str) -> set[str]:
    return {f"{name}_{figure}" for figure in ("samples", "p50_ms", "p99_ms", "p99_9_ms", "max_ms")}


def check_figures(report: dict[str, Any], *, count: int, repeat: int) -> None:
    assert [benchmark["name"] for benchmark in report["benchmarks"]] == NAMES
    expected = dict.fromkeys(NAMES, COMMON)
    expected["basic-publish"] = COMMON | latency("publish_to_confirm")
    expected["batch-publish"] = COMMON | {"batches"}
    for name in ("basic-consume", "concurrent-consume"):
        from_subscribe = {"from_subscribe_elapsed_s", "from_subscribe_rate_msgs_per_s"}
        expected[name] = COMMON | latency("publish_to_consume") | from_subscribe
    for benchmark in report["benchmarks"]:
        assert benchmark["messages"] == count
        assert len(benchmark["runs"]) == repeat
        for figures in [benchmark["median"], *benchmark["runs"]]:
            assert figures.keys() == expected[benchmark["name"]], benchmark["name"]
            assert all(value > 0 for name, value in figures.items() if name != "broker_cpu_us_per_msg")
            for kind in ("publish_to_confirm", "publish_to_consume"):
                if f"{kind}_samples" in figures:
                    assert figures[f"{kind}_samples"] == count
                    values = [figures[f"{kind}_{share}_ms"] for share in ("p50", "p99", "p99_9", "max")]
                    assert values == sorted(values)
                    assert values[-1] < 60_000


def test_bench_on_the_embedded_broker_reports_all_figures() -> None:
    done = leveret("bench", "--count", "300", "--repeat", "2", "--json", "-")
    report = json.loads(done.stdout)
    check_figures(report, count=300, repeat=2)
    assert report["broker"]["embedded"] is True
    assert report["settings"]["confirms"] is True
    if sys.platform == "linux":
        by_name = {benchmark["name"]: benchmark["median"] for benchmark in report["benchmarks"]}
        assert by_name["basic-publish"]["broker_cpu_us_per_msg"] > 0
        assert by_name["serialization"]["broker_cpu_us_per_msg"] is None
    assert all(name in done.stderr for name in NAMES)
    assert "\x1b" not in done.stderr, "what is no terminal gets no progress bars"


def test_bench_of_publishing_has_batches_and_many_awaiting_tasks() -> None:
    done = leveret("bench", "batch-publish", "concurrent-publish", "--count", "2500", "--size", "1024", "--json", "-")
    report = json.loads(done.stdout)
    assert [benchmark["name"] for benchmark in report["benchmarks"]] == ["batch-publish", "concurrent-publish"]
    assert report["settings"]["smallest_body_bytes"] == report["settings"]["largest_body_bytes"] == 1024
    for benchmark in report["benchmarks"]:
        assert benchmark["messages"] == 2500
        assert benchmark["median"]["rate_msgs_per_s"] > 0
    for line in ("the embedded broker in its own process", "every publishing confirmed", "200 tasks", "1024 bytes"):
        assert line in done.stderr


def test_bench_without_confirms_says_so(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = leveret(
        *("bench", "basic-publish", "batch-publish"),
        *("--no-confirms", "--count", "2500", "--size", "1024", "--json", str(file)),
    )
    report = json.loads(file.read_text())
    settings = report["settings"]
    assert settings["confirms"] is False
    assert settings["smallest_body_bytes"] == settings["largest_body_bytes"] == 1024
    assert "publish_to_confirm_p50_ms" not in report["benchmarks"][0]["median"]
    assert report["benchmarks"][1]["median"]["batches"] == 3
    assert "NO CONFIRMS" in done.stdout


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
    assert all(benchmark["median"]["broker_cpu_us_per_msg"] is None for benchmark in report["benchmarks"])
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
