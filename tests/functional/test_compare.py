"""The comparison's harness (asv_bench/compare): its plan, arithmetic, children, reports and options."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
import sys
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Any

import pytest
from asv_bench.compare import chart, environment, report, run
from asv_bench.compare.children import ChildError, Program
from asv_bench.compare.environment import MissingError
from asv_bench.compare.job import TUNED, Task
from asv_bench.compare.plan import CASES, MAIN_CASES, SIZES, Cell, Peer, Runner, Way, make_plan, rotated
from asv_bench.compare.report import MarkerError, Report
from asv_bench.compare.results import Sample, Series, ratio, summarize
from tests.support.comparison import BY_NAME, MEBIBYTE, TASK, peer, program
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from asv_bench.compare.results import Row


def sample(cpu_us: float, rate: float = 1000.0, latency: float | None = None) -> Sample:
    return Sample(rate, cpu_us, 10 * MEBIBYTE, latency, latency)


def series(name: str, *cpu_us: float, problem: str | None = None) -> Series:
    runner = Runner(peer(name), peer(name).ways[1])
    return Series(runner, {turn: sample(us) for turn, us in enumerate(cpu_us, 1)}, problem)


def rows(*found: Series, case: str = "confirmed", size: int = 1024) -> list[Row]:
    return summarize(Cell(BY_NAME[case], size, tuple(each.runner for each in found)), found)


# ---------------------------------------------------------------------- plan


def test_a_run_has_fewer_messages_when_they_are_large() -> None:
    counts = [BY_NAME["publish"].messages(size) for size in SIZES]
    assert counts == sorted(counts, reverse=True)
    assert counts[0] == 20_000
    assert counts[-1] * MEBIBYTE <= 100 * MEBIBYTE


def test_a_run_has_ten_messages_at_least_however_small_the_scale() -> None:
    assert BY_NAME["publish"].messages(MEBIBYTE, 0.0001) == 10


def test_the_window_is_1000_unless_the_bodies_in_it_would_be_large() -> None:
    case = BY_NAME["confirmed"]
    assert [case.window(size) for size in SIZES] == [1000, 1000, 16]
    assert BY_NAME["tasks"].window(64) == BY_NAME["headers"].window(64) == 200
    assert BY_NAME["one-by-one"].window(64) == 1
    assert BY_NAME["publish"].window(64) == BY_NAME["consume-100"].window(64) == 0


def test_without_sizes_only_the_main_cases_run_with_all_of_them() -> None:
    found: dict[str, list[int]] = {}
    for cell in make_plan([peer()], CASES, None):
        found.setdefault(cell.case.name, []).append(cell.size)
    everywhere = [name for name, sizes in found.items() if sizes == list(SIZES)]
    assert everywhere == ["confirmed", "consume-100"]
    assert all(sizes == [1024] for name, sizes in found.items() if name not in everywhere)
    assert list(found) == [case.name for case in CASES]


def test_every_case_runs_with_the_sizes_that_were_asked_for() -> None:
    plan = make_plan([peer()], CASES, [100, 200])
    assert [(cell.case.name, cell.size) for cell in plan] == [(case.name, n) for case in CASES for n in (100, 200)]


def test_variants_run_at_the_common_size_only_and_tuned_ones_at_each() -> None:
    ways = tuple(Way("confirmed", how, 1.0, best=how == "best") for how in ("best", TUNED, "other"))
    plan = make_plan([Peer("one", "One", ways=ways)], [BY_NAME["confirmed"]], None)
    labels = {cell.size: [runner.label for runner in cell.runners] for cell in plan}
    large = ["One", "One: tuned"]
    assert labels == {1024: [*large, "One: other"], 16384: large, MEBIBYTE: large}
    (cell,) = make_plan([Peer("one", "One", ways=ways)], [BY_NAME["confirmed"]], [5], variants=False)
    assert [runner.label for runner in cell.runners] == ["One"]


def test_a_way_for_some_cases_is_in_no_other_one() -> None:
    entries = [
        {"kind": "consume", "how": "a", "share": 1},
        {"kind": "consume", "how": "b", "share": 1, "cases": ["consume-500"]},
    ]
    described = Peer.described("x", {"title": "X", "version": "1", "entries": entries, "not_possible": {}})
    plan = make_plan([described], [BY_NAME["consume-100"], BY_NAME["consume-500"]], [1024])
    assert [[runner.label for runner in cell.runners] for cell in plan] == [["X"], ["X", "X: b"]]


def test_a_peer_that_cannot_take_part_is_in_the_plan_with_the_reason() -> None:
    peers = [
        Peer("absent", "absent", problem="cannot be run: no such library"),
        peer("partly", ("publish",), not_possible={"confirmed": "it waits for each"}),
        peer("silent", ("publish",)),
    ]
    (cell,) = make_plan(peers, [BY_NAME["confirmed"]], [1024])
    assert [(runner.label, runner.problem) for runner in cell.runners] == [
        ("absent", "cannot be run: no such library"),
        ("partly", "it waits for each"),
    ]
    assert all(runner.way is None for runner in cell.runners)
    assert make_plan([peers[2]], [BY_NAME["confirmed"]], [1024]) == []


def test_each_round_begins_with_another_one_and_has_everyone() -> None:
    orders = [rotated("abc", turn) for turn in range(6)]
    assert [order[0] for order in orders] == list("abcabc")
    assert all(sorted(order) == list("abc") for order in orders)
    assert rotated([], 3) == []


def test_a_small_scale_makes_runs_shorter_and_leaves_warm_ups_as_they_are() -> None:
    cell = Cell(BY_NAME["consume-100"], 1024, ())
    way = Way("consume", "how", 1.0, best=True)
    place: dict[str, Any] = {"host": "h", "port": 1, "queue": "q", "warm_up_queue": "w"}
    whole = cell.task(way, first_round=False, scale=1.0, **place)
    small = cell.task(way, first_round=False, scale=0.1, **place)
    first = cell.task(way, first_round=True, scale=1.0, **place)
    assert (whole.count, small.count, first.count) == (20_000, 2000, 5000)
    assert whole.warm_up_count == small.warm_up_count == first.warm_up_count == 2000
    assert (whole.prefetch, whole.ack_every) == (100, 25)


def test_a_very_slow_client_gets_its_share_of_the_messages() -> None:
    cell = Cell(BY_NAME["one-by-one"], 1024, ())
    task = cell.task(
        Way("one-by-one", "how", 0.1, best=True),
        first_round=False,
        scale=1.0,
        host="h",
        port=1,
        queue="q",
        warm_up_queue="w",
    )
    assert (task.count, task.warm_up_count) == (150, 15)


@pytest.mark.parametrize("rate", [1000, 5000])
def test_messages_at_a_steady_rate_are_due_for_two_seconds(rate: int) -> None:
    for name in (f"steady-confirm-{rate}", f"steady-consume-{rate}"):
        task = Cell(BY_NAME[name], 1024, ()).task(
            Way(BY_NAME[name].kind, "how", 1.0, best=True),
            first_round=False,
            scale=1.0,
            host="h",
            port=1,
            queue="q",
            warm_up_queue="w",
        )
        assert (task.rate, task.count) == (rate, 2 * rate)


def test_the_main_cases_are_cases() -> None:
    assert set(MAIN_CASES) < set(BY_NAME)


def test_the_first_way_of_a_kind_is_the_best() -> None:
    entries = [
        {"kind": kind, "how": how, "share": 1} for kind, how in [("publish", "a"), ("publish", "b"), ("consume", "c")]
    ]
    described = Peer.described("x", {"title": "X", "version": "1", "entries": entries, "not_possible": {}})
    assert [(way.how, way.best) for way in described.ways] == [("a", True), ("b", False), ("c", True)]


# ---------------------------------------------------------------------- jobs


def test_a_task_comes_back_from_its_arguments() -> None:
    assert Task.parse(TASK.arguments()) == TASK


@pytest.mark.parametrize("argument", ["color=red", "count"])
def test_a_task_refuses_an_argument_that_it_does_not_know(argument: str) -> None:
    with pytest.raises(ValueError, match=f"no argument '{argument}'"):
        Task.parse([*TASK.arguments(), argument])


def test_a_job_measures_what_it_encloses_once() -> None:
    job = TASK.job()
    job.latencies = [0.003, 0.001, 0.002, 0.1]
    with job.measured():
        pass
    assert job.figures is not None
    assert job.figures["messages"] == 7
    assert job.figures["cpu_seconds"] >= 0
    assert job.figures["peak_rss_bytes"] > MEBIBYTE
    with pytest.raises(RuntimeError, match="measured once"), job.measured():
        pass


def test_a_job_reports_the_median_and_the_99th_percentile_of_its_latencies() -> None:
    job = TASK.job()
    with job.measured():
        job.latencies = [number / 1000 for number in range(200, 0, -1)]
    assert job.figures is not None
    assert (job.figures["latency_p50_s"], job.figures["latency_p99_s"]) == (0.1, 0.198)


def test_a_job_that_failed_has_measured_nothing() -> None:
    job = TASK.job()
    with pytest.raises(KeyError), job.measured():
        raise KeyError
    assert job.figures is None


@pytest.mark.parametrize(
    ("counted", "text"),
    [({"messages": 6}, "6 messages were counted where 7"), ({"messages": 7, "size": 34}, "34 bytes in all, not 7 x 5")],
)
def test_a_job_fails_when_something_is_missing(counted: dict[str, int], text: str) -> None:
    with pytest.raises(RuntimeError, match=text):
        TASK.job().check(**counted)
    TASK.job().check(messages=7, size=35)


# ---------------------------------------------------------------------- results


def test_a_ratio_is_the_median_of_the_rounds_and_not_the_ratio_of_medians() -> None:
    # The machine is three times slower in the second round, for both.
    ours, theirs = series("a", 2.0, 6.0, 2.0), series("b", 4.0, 12.0, 1.0)
    assert ratio(ours, theirs, lambda found: found.cpu_us) == 0.5


def test_a_ratio_takes_only_rounds_that_both_have() -> None:
    ours, theirs = series("a", 2.0, 6.0), series("b", 4.0)
    assert ratio(ours, theirs, lambda found: found.cpu_us) == 0.5
    assert ratio(ours, Series(theirs.runner), lambda found: found.cpu_us) is None


def test_rows_have_medians_bounds_and_ratios_to_both_references() -> None:
    ours, c, ceiling = rows(series("leveret", 1, 9, 2), series("rabbitmq-c", 4, 4, 4), series("ready-made", 1, 1, 1))
    assert (ours.cpu_us, ours.cpu_us_low, ours.cpu_us_high) == (2, 1, 9)
    assert (ours.cpu_to_rabbitmq_c, ours.cpu_to_ceiling) == (0.5, 2)
    assert (ours.rate_to_rabbitmq_c, ours.rate_to_ceiling) == (1, 1)
    assert (c.cpu_to_rabbitmq_c, ceiling.cpu_to_ceiling) == (1, 1)
    assert ours.rounds == 3


def test_a_variant_of_a_reference_is_no_reference() -> None:
    other = series("rabbitmq-c", 100.0)
    other.runner = Runner(other.runner.peer, Way("confirmed", "worse", 1.0, best=False))
    ours, *_ = rows(series("leveret", 1.0), other, series("rabbitmq-c", 2.0))
    assert ours.cpu_to_rabbitmq_c == 0.5


def test_what_failed_has_its_reason_and_no_figures() -> None:
    ours, failed = rows(series("leveret", 1.0, 2.0), series("rabbitmq-c", 1.0, problem="failed in round 2: lost"))
    assert failed.problem == "failed in round 2: lost"
    assert failed.cpu_us is failed.rate is failed.cpu_to_rabbitmq_c is None
    assert failed.rounds == 0
    assert ours.cpu_to_rabbitmq_c is None


@pytest.mark.parametrize(
    ("figures", "text"),
    [
        ({"messages": 6, "seconds": 1, "cpu_seconds": 1}, "6 messages were measured where 7"),
        ({"messages": 7, "seconds": 0, "cpu_seconds": 1}, "0.0 s and 1.0 s of CPU"),
    ],
)
def test_figures_that_cannot_be_are_refused(figures: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Sample.of({**figures, "peak_rss_bytes": 1}, 7)


def test_figures_are_per_message() -> None:
    found = Sample.of({"messages": 4, "seconds": 2, "cpu_seconds": 0.001, "peak_rss_bytes": 5}, 4)
    assert found == Sample(rate=2, cpu_us=250, peak_rss_bytes=5)


# ---------------------------------------------------------------------- children


def test_the_last_event_of_a_child_counts(tmp_path: Path) -> None:
    child = program(tmp_path, 'print(\'{"event": "begun"}\\n{"event": "measured", "messages": 3}\')')
    assert child.measure([], 30.0) == {"event": "measured", "messages": 3}


def test_a_child_gets_its_task_and_none_of_our_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEVERET_PLUGINS_ALLOW", "none")
    code = (
        "import json, os, sys; print(json.dumps({'event': 'measured', 'words': sys.argv[1:], 'names': [*os.environ]}))"
    )
    child = program(tmp_path, code)
    child = dataclasses.replace(child, environment={"MORE": "1"})
    said = child.measure(TASK.arguments(), 30.0)
    assert said["words"] == ["run", *TASK.arguments()]
    assert "MORE" in said["names"]
    assert "LEVERET_PLUGINS_ALLOW" not in said["names"]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ('import sys; print(\'{"event": "failed", "reason": "no luck"}\'); sys.exit(1)', "no luck"),
        ("raise SystemExit('out of paper')", "status 1: out of paper"),
        ("print('hello')", "no event: hello"),
        ("print('[1]')", "no event: "),
        ('print(\'{"event": "described"}\')', "without saying 'measured'"),
        ("pass", "without saying 'measured': it said nothing"),
        ("import os; os.kill(os.getpid(), 9)", "status -9"),
    ],
)
def test_a_child_that_does_something_else_fails_with_what_it_said(tmp_path: Path, code: str, text: str) -> None:
    with pytest.raises(ChildError, match=text.replace("[", r"\[")):
        program(tmp_path, code).measure([], 30.0)


def test_a_child_that_hangs_is_killed(tmp_path: Path) -> None:
    number = tmp_path / "pid"
    hanging = Program(("/bin/sh", "-c", f"echo $$ >'{number}'; exec sleep 600"))
    with pytest.raises(ChildError, match="did not end within 1 s"):
        hanging.measure([], 1.0)
    with pytest.raises(ProcessLookupError):
        os.kill(int(number.read_text()), signal.SIGCONT)


def test_a_program_that_is_not_there_is_a_failure() -> None:
    with pytest.raises(ChildError, match="cannot be started: No such file"):
        Program(("/nowhere/driver",)).describe()


# ---------------------------------------------------------------------- environment


def test_adding_a_driver_is_adding_a_file(tmp_path: Path) -> None:
    for name in ("__init__.py", "ready_made.py", "zebra.js", "leveret.py", "rabbitmq_c.c", "ant.py", "notes.txt"):
        (tmp_path / name).touch()
    assert list(environment.driver_files(tmp_path)) == ["leveret", "rabbitmq-c", "ant", "zebra", "ready-made"]


def test_every_requirement_is_pinned() -> None:
    lines = (environment.HERE / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    assert all(line.count("==") == 1 for line in pins)
    assert list(json.loads((environment.HERE / "package.json").read_text())["dependencies"].values()) == ["2.3.1"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("amqplib", "needs Node.js and npm"), ("rabbitmq-c", "needs a C compiler"), ("amqp091-go", "needs Go and")],
)
def test_what_is_not_installed_is_said(name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "FOLDER", tmp_path / "build")
    monkeypatch.setattr(shutil, "which", lambda program: None)
    with pytest.raises(MissingError, match=text):
        environment.prepare(name, environment.driver_files()[name])


def test_a_c_driver_that_does_not_compile_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "FOLDER", tmp_path / "build")
    source = tmp_path / "client.c"
    source.write_text("#include <no_such_header.h>\n")
    with pytest.raises(MissingError, match=r"librabbitmq-dev\): .*no_such_header"):
        environment.prepare("client", source)


def test_a_peer_that_cannot_be_prepared_is_reported_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(name: str, path: Path) -> Program:
        if name == "amqplib":
            raise MissingError("needs Node.js and npm")
        return Program(
            (sys.executable, "-m", "asv_bench.compare.child", "no_such_driver" if name == "pika" else path.stem)
        )

    monkeypatch.setattr(run, "prepare", prepare)
    peers, programs = run.find_peers(["leveret", "amqplib", "pika"], lambda text: None)
    assert list(programs) == ["leveret"]
    assert [found.problem for found in peers][:2] == [None, "cannot be run: needs Node.js and npm"]
    assert "ModuleNotFoundError" in str(peers[2].problem)


# ---------------------------------------------------------------------- reports


@pytest.fixture
def results() -> Report:
    found = [
        *rows(
            series("leveret", 1.5), series("rabbitmq-c", 3.0), series("absent", problem="cannot be run: <no> | luck")
        ),
        *rows(series("leveret", 100.0), size=MEBIBYTE),
        *rows(series("leveret", 5.0), series("rabbitmq-c", 4.0), case="consume-100"),
    ]
    return Report(found, [peer("leveret")], {"Broker": "some broker 1.0", "Date": "today"})


def test_json_has_everything_with_single_rounds(results: Report) -> None:
    document = json.loads(results.as_json())
    assert document["facts"]["Broker"] == "some broker 1.0"
    first = document["rows"][0]
    assert (first["case"], first["size"], first["cpu_us"], first["cpu_to_rabbitmq_c"]) == ("confirmed", 1024, 1.5, 0.5)
    assert first["samples"][0]["cpu_us"] == 1.5
    assert document["rows"][2]["problem"] == "cannot be run: <no> | luck"


def test_the_summary_has_a_row_for_each_client_and_a_column_for_each_case(results: Report) -> None:
    lines = report.summary_markdown(results).splitlines()
    assert lines[0] == "Broker: some broker 1.0. Date: today."
    assert lines[2].startswith("| client | publish, confirmed, many at once | consume")
    assert lines[4] == "| leveret | 1.50 us, 1,000/s | 5.00 us, 1,000/s |"
    assert lines[6] == "| absent | cannot be run: <no> \\| luck |  |"


def test_the_summary_has_six_clients_at_most_with_default_and_tuned_rows() -> None:
    names = ["zeta", "py-amqp", "ready-made frames", "pika", "rabbitmq-c", "aio-pika", "leveret"]
    found = rows(*(series(name, float(place)) for place, name in enumerate(names, 1)))
    other = dataclasses.replace(found[-1], label="leveret: in another way", how="in another way", best=False)
    tuned = dataclasses.replace(found[-1], label="leveret: tuned", how=TUNED, best=False)
    text = report.summary_markdown(Report([other, *found, tuned], [], {}))
    labels = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines()[4:]]
    assert labels == ["leveret", "leveret: tuned", "rabbitmq-c", "aio-pika", "pika", "zeta", "py-amqp"]
    full = report.full_markdown(Report([other, *found, tuned], [], {}))
    assert all(f"| {name} |" in full for name in [*names, other.label, tuned.label])


def test_the_summary_and_the_chart_have_the_main_cases_or_all_without_them() -> None:
    other, main = rows(series("leveret", 1.0), case="publish"), rows(series("leveret", 1.0), case="consume-100")
    both = Report([*other, *main], [], {})
    assert list(report.summary_cases(both)) == ["consume-100"]
    assert [panel.heading for panel in chart.panels(both)] == ["consume and acknowledge, prefetch 100, 1 KiB"]
    assert list(report.summary_cases(Report(other, [], {}))) == ["publish"]


def test_the_readme_has_one_short_table_of_figures_and_the_page_has_all() -> None:
    root = ROOT
    readme = (root / "README.md").read_text()
    assert report.places(root / "README.md") == ["summary"]
    assert report.places(root / "docs" / "comparison.md") == ["full"]
    table = readme.partition("<!-- comparison:summary -->")[2].partition("<!-- comparison:end -->")[0]
    clients = [
        line for line in table.splitlines() if line.startswith("| ") and not line.startswith(("| client", "| ---"))
    ]
    assert 1 <= len(clients) <= 7


def test_the_full_tables_name_what_is_missing(results: Report) -> None:
    text = report.full_markdown(results)
    assert "### Publish, confirmed, many at once, 1 MiB" in text
    assert "| absent | cannot be run: <no> \\| luck |" in text
    assert "| leveret | 1,000 | 1.50 | 1.50 to 1.50 | 10 | 0.50 |" in text
    assert "ceiling" not in text


def test_latencies_have_a_column_where_there_are_any() -> None:
    one = series("leveret", 1.0)
    one.samples = {1: sample(1.0, latency=0.00123)}
    assert "| p50 ms | p99 ms |" in report.full_markdown(Report(rows(one, case="one-by-one"), [], {}))
    steady = report.full_markdown(Report(rows(one, case="steady-confirm-5000"), [], {}))
    assert "| leveret | 1.00 | 1.00 to 1.00 | 10 | 1.23 | 1.23 | - |" in steady
    assert "messages/s" not in steady
    assert "p50 ms" not in report.full_markdown(Report(rows(series("leveret", 1.0)), [], {}))


def test_marked_places_are_filled_again_and_again_and_the_rest_stays(results: Report, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- comparison:summary -->\nold\n<!-- comparison:end -->\nbetween\n"
        "<!-- comparison:full --><!-- comparison:end -->\nafter\n"
    )
    report.fill(page, results)
    once = page.read_text()
    report.fill(page, results)
    assert page.read_text() == once
    assert "old" not in once
    assert [once.count(word) for word in ("before\n", "\nbetween\n", "\nafter\n")] == [1, 1, 1]
    assert once.index("| client |") < once.index("between") < once.index("###")


def test_a_file_that_is_not_there_gets_everything(results: Report, tmp_path: Path) -> None:
    report.fill(tmp_path / "new.md", results)
    text = (tmp_path / "new.md").read_text()
    assert report.summary_markdown(results) in text
    assert report.full_markdown(results) in text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no place at all\n", "has no place for results"),
        ("<!-- comparison:summary -->\nnothing closes it\n", "has no place for results"),
        ("<!-- comparison:half -->\n<!-- comparison:end -->\n", "no part 'half'"),
    ],
)
def test_a_file_without_a_place_is_refused_and_left_alone(results: Report, tmp_path: Path, text: str, why: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(MarkerError, match=why):
        report.fill(page, results)
    assert page.read_text() == text


def test_what_is_missing_is_in_a_table_of_its_own(results: Report) -> None:
    assert report.problems(Report([], [], {})) is None
    table = report.problems(results)
    assert table is not None
    assert table.row_count == 1


def test_only_runs_that_were_begun_count_as_failures(results: Report) -> None:
    never = summarize(Cell(BY_NAME["publish"], 64, ()), [Series(Runner(peer("absent"), None, "no"), problem="no")])
    assert Report(never, [], {}).failures() == []
    assert [row.label for row in results.failures()] == ["absent"]


@pytest.mark.parametrize(("size", "text"), [(64, "64 B"), (1024, "1 KiB"), (1500, "1500 B"), (MEBIBYTE, "1 MiB")])
def test_sizes_are_written_in_the_largest_unit_that_divides_them(size: int, text: str) -> None:
    assert report.size_text(size) == text


# ---------------------------------------------------------------------- chart

SVG = "{http://www.w3.org/2000/svg}"


def test_bars_are_as_long_as_the_logarithms_of_their_values() -> None:
    bars = [chart.Bar("a", 0.1), chart.Bar("b", 1.0), chart.Bar("c", 10.0), chart.Bar("d", 100.0)]
    root = ET.fromstring(chart.draw([chart.Panel("all", bars)], "title"))
    widths = [float(bar.attrib["width"]) for bar in root.iter(f"{SVG}rect")]
    steps = [b - a for a, b in itertools.pairwise(widths[1:])]
    assert steps[0] == pytest.approx(steps[1], abs=0.2)
    assert widths[0] == 1.0


def test_the_chart_shows_all_clients_at_one_size_and_why_some_have_no_bar(results: Report) -> None:
    root = ET.fromstring(chart.draw(chart.panels(results), "CPU <per> message"))
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert [bar.attrib["class"] for bar in root.iter(f"{SVG}rect")] == ["leveret", "bar", "bar", "leveret"]
    assert texts[0] == "CPU <per> message"
    assert {"leveret", "rabbitmq-c", "absent", "cannot be run: <no> | luck", "1.50", "3.00"} <= set(texts)
    assert "100" not in texts


def test_the_chart_has_colours_for_dark_pages(results: Report) -> None:
    assert "prefers-color-scheme: dark" in chart.draw(chart.panels(results), "title")


@pytest.mark.parametrize(
    ("values", "bounds"), [([], (0, 1)), ([1.0], (0, 1)), ([0.27, 96.0], (-1, 2)), ([100.0, 101.0], (2, 3))]
)
def test_the_scale_goes_from_a_power_of_ten_to_another(values: list[float], bounds: tuple[int, int]) -> None:
    low, high = chart.decades(values)
    assert (low, high) == bounds
    assert all(10.0**low <= value <= 10.0**high * (1 + 1e-9) for value in values)
    assert math.isclose(10.0 ** (high - low), 10.0 ** (bounds[1] - bounds[0]))


# ---------------------------------------------------------------------- options


def test_quick_is_small_and_gives_way_to_other_options() -> None:
    quick = run.parse(["--quick"])
    assert (quick.peers, quick.sizes, quick.rounds, quick.variants) == (["leveret", "rabbitmq-c"], [1024], 3, False)
    assert quick.cases == list(MAIN_CASES)
    other = run.parse(["--quick", "--peers", "pika,leveret", "--sizes", "64,1m", "--rounds", "1", "--variants"])
    assert (other.peers, other.sizes, other.rounds, other.variants) == (["leveret", "pika"], [64, MEBIBYTE], 1, True)


def test_without_options_everything_is_run_in_five_rounds() -> None:
    options = run.parse([])
    assert options.peers == list(environment.driver_files())
    assert options.cases == [case.name for case in CASES]
    assert (options.sizes, options.rounds, options.count_scale, options.variants) == (None, 5, 1.0, True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--peers", "leveret,carrier-pigeon"], "there is no peer 'carrier-pigeon'"),
        (["--cases", "juggle"], "there is no case 'juggle'"),
        (["--peers", ","], "there is no peer ','"),
        (["--sizes", "1k,big"], "'big' is no size"),
        (["--sizes", "0"], "'0' is no size"),
        (["--rounds", "0"], "--rounds is at least 1, not 0"),
        (["--count-scale", "0"], "--count-scale is above 0"),
        (["--timeout", "-1"], "--timeout is above 0"),
        (["--json", "no/such/folder/file.json"], "in no folder that exists"),
    ],
)
def test_a_wrong_option_is_named_before_anything_runs(
    arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        run.parse(arguments)
    assert text in f"{raised.value}{capsys.readouterr().err}"


def test_a_page_without_a_place_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text("no place\n")
    with pytest.raises(SystemExit):
        run.parse(["--markdown", str(page)])
    assert "has no place for results" in capsys.readouterr().err
