"""The `leveret` command, as far as it needs no broker: options, errors, the workload, and what is computed."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from leveret.cli import main, process, report
from leveret.cli.app import _BENCHMARKS, app
from leveret.cli.bench import BENCHMARKS, BenchmarkResult
from leveret.cli.demo import Ledger
from leveret.cli.failures import Incomplete, reported, uninterrupted
from leveret.cli.measure import Clocks, Percentiles, cpu_of_process_ns, peak_rss_bytes, percentile
from leveret.cli.orders import Order, OrderItem, encode, least_size, orders
from leveret.cli.pacing import pace, schedule
from leveret.cli.process import BrokerProcess, BrokerStartError
from leveret.cli.progress import Bars, supervise
from leveret.cli.stage import together
from leveret.errors import ConfigurationError
from leveret.plugins.builtin import JSONSerializer


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, prog_name="leveret", terminal_width=100)


# ---------------------------------------------------------------------- commands


def test_help_lists_the_commands() -> None:
    result = run("--help")
    assert result.exit_code == 0
    assert all(f"\n  {command} " in result.stdout for command in ("bench", "broker", "demo", "info", "run"))


def test_help_of_bench_lists_the_benchmarks_and_options() -> None:
    printed = run("bench", "--help").stdout
    options = ("broker", "count", "size", "batch-size", "prefetch", "concurrency", "confirms", "no-confirms", "repeat")
    assert all(f"\n  {name} " in printed for name in _BENCHMARKS)
    assert all(f"--{option} " in printed for option in (*options, "queue-type", "json", "quiet"))


def test_version_is_the_package_s() -> None:
    from leveret import __version__

    assert run("--version").stdout == f"leveret, version {__version__}\n"


def test_info_names_versions_and_compiled_modules() -> None:
    lines = dict(line.split(maxsplit=1) for line in run("info").stdout.splitlines())
    assert {"leveret", "python", "uvloop", "pamqp", "msgspec"} <= lines.keys()
    assert all(
        Path(lines[f"leveret.{name}"]).exists() for name in ("wire.buffers", "wire.reader", "publishing.publisher")
    )
    assert "event" in lines


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_command_names_the_extra_when_it_is_not_installed(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as ended:
        main()
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert missing in error
    assert "pip install 'leveret[cli]'" in error
    assert error.count("\n") == 1


def test_import_needs_neither_click_nor_rich() -> None:
    code = "import sys, leveret, leveret.cli; sys.exit(bool({'click', 'rich', 'asyncio'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_unknown_benchmark_is_refused_with_those_there_are() -> None:
    result = run("bench", "basic-publsh")
    assert result.exit_code == 2
    assert "'basic-publsh'" in result.stderr
    assert all(name in result.stderr for name in _BENCHMARKS)


def test_names_in_options_are_the_benchmarks() -> None:
    assert tuple(BENCHMARKS) == _BENCHMARKS


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--size", "-1"), "--size"),
        (("--size", str(2**40)), "--size"),
        (("--count", "0"), "--count"),
        (("--count", "many"), "--count"),
        (("--prefetch", "65536"), "--prefetch"),
        (("--batch-size", "0"), "--batch-size"),
        (("--concurrency", "0"), "--concurrency"),
        (("--repeat", "0"), "--repeat"),
        (("--queue-type", "stream"), "--queue-type"),
        (("--nonsense",), "--nonsense"),
    ],
)
def test_option_out_of_range_is_refused_by_name(arguments: tuple[str, ...], named: str) -> None:
    result = run("bench", *arguments)
    assert result.exit_code == 2
    assert named in result.stderr


def test_size_below_the_least_is_refused_with_the_least() -> None:
    least = least_size(50)
    result = run("bench", "serialization", "--count", "50", "--size", str(least - 1))
    assert result.exit_code == 2
    assert f"the least is {least} bytes" in result.stderr
    assert run("bench", "serialization", "--count", "50", "--size", str(least)).exit_code == 0


def test_json_file_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    result = run("bench", "serialization", "--json", str(tmp_path / "missing" / "file"))
    assert result.exit_code == 2
    assert "--json" in result.stderr


@pytest.mark.parametrize("command", ["bench", "demo"])
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("amqp://guest:secret@127.0.0.1:1", "cannot connect to 127.0.0.1:1"),
        ("http://guest:secret@127.0.0.1", "amqp://"),
        ("amqp://guest:secret@localhost:port", "endpoints"),
        ("amqp://guest:secret@localhost/?heartbeet=3", "heartbeet"),
    ],
)
def test_broker_that_cannot_be_used_is_one_line_without_traceback(command: str, url: str, said: str) -> None:
    result = run(command, "--broker", url, "--count", "10")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert said in result.stderr
    assert "secret" not in result.stderr


def test_serialization_needs_no_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.sys, "executable", "/nonexistent")
    result = run("bench", "serialization", "--count", "1234", "--size", "1024", "--repeat", "3", "--json", "-")
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert figures["broker"] is None
    assert figures["settings"]["smallest_body_bytes"] == figures["settings"]["largest_body_bytes"] == 1024
    (benchmark,) = figures["benchmarks"]
    assert (benchmark["name"], benchmark["messages"], len(benchmark["runs"])) == ("serialization", 1234, 3)
    assert benchmark["median"]["rate_msgs_per_s"] > 0
    assert "serialization" in result.stderr  # the table, out of the JSON's way
    assert "1024 bytes" in result.stderr


def test_quiet_json_on_stdout_is_alone() -> None:
    result = run("bench", "serialization", "--count", "10", "--json", "-", "--quiet")
    assert json.loads(result.stdout)
    assert result.stderr == ""


def test_broker_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    with pytest.raises(BrokerStartError, match="did not start"), BrokerProcess():
        pass
    result = run("bench", "--count", "10")
    assert result.exit_code == 1
    assert "did not start" in result.stderr


def test_interrupt_ends_with_the_status_of_shells() -> None:
    with pytest.raises(SystemExit) as ended, reported():
        raise KeyboardInterrupt
    assert ended.value.code == 130


def test_interrupt_waits_for_what_must_not_be_interrupted() -> None:
    steps = []

    def work() -> None:
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            steps.append("after the signal")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_reported_errors_are_click_errors_and_others_stay() -> None:
    with pytest.raises(click.ClickException, match="two\\\\nlines"), reported():
        raise ConfigurationError("two\nlines")
    with pytest.raises(ZeroDivisionError), reported():
        raise ZeroDivisionError


# ---------------------------------------------------------------------- the workload


@given(count=st.integers(1, 300), more=st.integers(0, 3000))
def test_padded_orders_are_exactly_so_many_bytes(count: int, more: int) -> None:
    size = least_size(count) + more
    bodies = [encode(order) for order in orders(count, size)]
    assert len(bodies) == count
    assert {len(body) for body in bodies} == {size}


@given(count=st.integers(1, 300), size=st.integers(1, 200))
def test_padded_orders_need_at_least_the_least_size(count: int, size: int) -> None:
    if size < least_size(count):
        with pytest.raises(ValueError, match=f"the least is {least_size(count)} bytes"):
            next(orders(count, size))
    else:
        assert len(encode(next(orders(count, size)))) == size


def test_orders_are_the_guide_s() -> None:
    made = list(orders(10_000))
    sizes = [len(encode(order)) for order in made]
    # 147 has an amount of two digits and an index of one; the guide's arithmetic says 148 to 154.
    assert min(sizes) in (147, 148)
    assert max(sizes) == 154
    assert len({order.id for order in made}) == 10_000
    assert all(10 <= order.amount < 1000 and 10 <= order.items[0].price < 100 for order in made)
    plain = json.loads(encode(made[7]))
    assert plain == {
        "Id": str(made[7].id),
        "CustomerName": "Customer 7",
        "Amount": made[7].amount,
        "Items": [{"ProductName": "Product 7", "Quantity": 1, "Price": made[7].items[0].price}],
    }
    assert JSONSerializer().decoder(Order)(encode(made[7])) == made[7]
    assert JSONSerializer().encode(made[7]) == encode(made[7])


def test_orders_are_the_same_each_time_but_for_their_identities() -> None:
    first, second = list(orders(20, 300)), list(orders(20, 300))
    assert [order.amount for order in first] == [order.amount for order in second]
    assert first[0].id != second[0].id
    assert [order.id.int for order in orders(3, first_id=5)] == [5, 6, 7]


# ---------------------------------------------------------------------- figures


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


def test_cpu_of_another_process_is_its_own() -> None:
    # It spins until its standard input ends, and says when it has spun for 50 ms.
    code = "import time\nwhile time.process_time() < 0.05: pass\nprint(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        cpu = cpu_of_process_ns(child.pid)
        child.communicate(b"\n")
    assert cpu is None or 50_000_000 <= cpu < 10**10
    assert cpu is not None or sys.platform != "linux"


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
    console = Console(width=width, file=io.StringIO())
    console.print(report.bench_table(results, width=width))
    printed = console.file.getvalue()
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


# ---------------------------------------------------------------------- the demo's account


def account(count: int) -> tuple[Ledger, list[Order]]:
    ledger = Ledger(count)
    return ledger, list(ledger.outgoing(orders(count, first_id=ledger.first_id)))


def test_ledger_agrees_when_every_order_came_once() -> None:
    ledger, sent = account(1000)
    for order in reversed(sent):
        ledger.incoming(order)
    assert ledger.errors() == []
    assert all(order.id.version == 4 and order.id.variant == uuid.RFC_4122 for order in sent)


def test_ledger_names_what_is_missing_twice_or_strange() -> None:
    ledger, sent = account(1000)
    for order in [*sent[:-2], *[sent[0]] * 300]:
        ledger.incoming(order)
    ledger.incoming(Order(uuid.UUID(int=ledger.first_id - 1), "", 0, [OrderItem("", 1, 1)]))
    ledger.incoming(Order(uuid.UUID(int=ledger.first_id + 1000), "", 0, []))
    errors = "; ".join(ledger.errors())
    assert "orders missing: 2" in errors
    assert "orders delivered more than once: 1" in errors
    assert "orders delivered but not published: 2" in errors
    assert "amounts add up to" in errors


def test_ledger_notices_an_order_in_another_s_place_by_its_amount() -> None:
    ledger, sent = account(2)
    sent[0].amount += 1
    for order in sent:
        ledger.incoming(order)
    assert len(ledger.errors()) == 1


# ---------------------------------------------------------------------- running


def bars() -> Bars:
    return Bars(Console(stderr=True), enabled=False)


async def test_supervised_work_returns_or_raises_its_own() -> None:
    async def work(fail: bool) -> int:
        await asyncio.sleep(0)
        return 1 // (not fail)

    assert await supervise(work(False), bars(), name="x", stall=1) == 1
    with pytest.raises(ZeroDivisionError):
        await supervise(work(True), bars(), name="x", stall=1)


async def test_supervised_work_is_given_up_when_nothing_moves() -> None:
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            cleaned = True

    shown = bars()
    with shown.bar("x", 10, lambda: 7), pytest.raises(Incomplete, match=r"x: no progress for 0\.01 s, at 7 messages"):
        await supervise(work(), shown, name="x", stall=0.01)
    assert cleaned
    assert shown.counts() == []


async def test_works_together_raise_the_first_error_itself() -> None:
    async def endless() -> None:
        await asyncio.Event().wait()

    async def failing() -> None:
        raise Incomplete("lost")

    with pytest.raises(Incomplete, match="lost"):
        await together(endless(), together(failing(), endless()))


async def test_pace_calls_at_every_scheduled_time_though_the_loop_is_late() -> None:
    times = schedule(50, 10_000, start=0)
    calls: list[tuple[int, int]] = []

    def act(due: int) -> None:
        calls.append((due, time.perf_counter_ns()))
        if len(calls) == 10:
            while time.perf_counter_ns() < times[20]:
                pass

    await pace(times, act)
    assert [due for due, _ in calls] == times
    assert all(at >= due for due, at in calls)


async def test_pace_ends_with_the_error_of_a_call() -> None:
    calls = 0

    def act(due: int) -> None:
        nonlocal calls
        calls += 1
        raise Incomplete("full")

    with pytest.raises(Incomplete, match="full"):
        await pace(schedule(1000, 1000), act)
    assert calls == 1


async def test_pace_stops_when_it_is_cancelled() -> None:
    waiting = asyncio.ensure_future(pace(schedule(1, 1, start=3600), lambda due: None))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
