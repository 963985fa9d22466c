"""Leveret beside other AMQP clients, in turn, on one private broker: `make compare`; see docs/comparison.md."""

from __future__ import annotations

import argparse
import contextlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asv_bench.compare import chart
from asv_bench.compare import report as reports
from asv_bench.compare.broker import BROKERS, FAILURES, Queues
from asv_bench.compare.children import ChildError, Program
from asv_bench.compare.environment import MissingError, driver_files, prepare
from asv_bench.compare.job import CONSUME, HEADER, HEADER_TABLE, HEADERS, STEADY_CONSUME, headers
from asv_bench.compare.plan import CASES, COMMON_SIZE, MAIN_CASES, SIZES, Case, Cell, Peer, Runner, make_plan, rotated
from asv_bench.compare.results import Row, Sample, Series, summarize
from asv_bench.outputs import require_folders
from asv_bench.programs import choose, execute, facts, progress_bars, read_sizes, screen
from rich.markup import escape

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from asv_bench.compare.job import Address
    from rich.console import Console

ROUNDS: Final = 5
QUICK_PEERS: Final = ("leveret", "rabbitmq-c")
QUICK_ROUNDS: Final = 3
QUICK_SCALE: Final = 0.25
#: Seconds until a child is killed.
TIMEOUT: Final = 120.0
#: Kinds whose runs take all messages from the queue, and the headers of those that they leave there.
_EMPTIED: Final = frozenset({CONSUME, STEADY_CONSUME})
_HEADERS: Final[Mapping[str, Collection[str]]] = {HEADER: HEADER_TABLE, HEADERS: headers(0)}


class Comparison:
    """Runs a plan on a broker.

    Args:
        address: The broker.
        queues: Its queues.
        programs: The drivers' programs, by the names of their peers.
        rounds: Rounds that are counted, after one that is not.
        scale: Factor of all counts.
        timeout: Seconds until a child is killed.
    """

    def __init__(
        self,
        address: Address,
        queues: Queues,
        programs: Mapping[str, Program],
        *,
        rounds: int,
        scale: float = 1.0,
        timeout: float = TIMEOUT,
    ) -> None:
        self._address = address
        self._queues = queues
        self._programs = programs
        self._rounds = rounds
        self._scale = scale
        self._timeout = timeout

    def run(self, cell: Cell, progress: Callable[[Runner], None] = lambda runner: None) -> list[Row]:
        """Runs all runners of a cell in turn, round by round. A runner that failed is left out of later rounds.

        Args:
            cell: The case, the size and the runners.
            progress: Called before each run, and for runners that are left out.

        Returns:
            The rows, in the order of the cell's runners.
        """
        all_series = [Series(runner, problem=runner.problem) for runner in cell.runners]
        for turn in range(self._rounds + 1):
            for series in rotated(all_series, turn):
                progress(series.runner)
                if series.problem is not None:
                    continue
                try:
                    sample = self._measure(cell, series.runner, first_round=turn == 0)
                except (ChildError, ValueError, KeyError, *FAILURES) as error:
                    series.problem = f"failed in round {turn}: {error or type(error).__name__}"
                else:
                    if turn:  # the first is a warm-up
                        series.samples[turn] = sample
        return summarize(cell, all_series)

    def _measure(self, cell: Cell, runner: Runner, *, first_round: bool) -> Sample:
        """Runs a runner once on new queues, and checks that every message arrived."""
        assert runner.way is not None
        queues, kind = self._queues, cell.case.kind
        queue, warm_up_queue = queues.make(), queues.make()
        try:
            task = cell.task(
                runner.way,
                first_round=first_round,
                scale=self._scale,
                host=self._address.host,
                port=self._address.port,
                queue=queue,
                warm_up_queue=warm_up_queue,
            )
            if kind == CONSUME:
                queues.fill(queue, task.size, task.count)
                queues.fill(warm_up_queue, task.size, task.warm_up_count)
            figures = self._programs[runner.peer.name].measure(task.arguments(), self._timeout)
            queues.expect(queue, 0 if kind in _EMPTIED else task.count)
            queues.expect(warm_up_queue, 0 if kind in _EMPTIED else task.warm_up_count)
            if kind not in _EMPTIED:
                queues.check_sample(warm_up_queue, task.size, _HEADERS.get(kind, ()))
            return Sample.of(figures, task.count)
        finally:
            queues.remove()


def find_peers(names: Sequence[str], say: Callable[[str], None]) -> tuple[list[Peer], dict[str, Program]]:
    """Prepares the drivers and reads their descriptions. A peer that cannot be run is returned with the reason."""
    files = driver_files()
    peers, programs = [], {}
    for name in names:
        say(f"preparing {name}")
        try:
            program = prepare(name, files[name])
            peers.append(Peer.described(name, program.describe()))
            programs[name] = program
        except (MissingError, ChildError) as error:
            peers.append(Peer(name, name, problem=f"cannot be run: {error}"))
    return peers, programs


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Reads the options."""
    parser = argparse.ArgumentParser(prog="make compare", description=__doc__)
    peers = ", ".join(driver_files())
    cases = ", ".join(case.name for case in CASES)
    add = parser.add_argument
    add("--peers", help=f"some of {peers} (default: all)")
    add("--cases", help=f"some of {cases} (default: all)")
    add(
        "--sizes",
        help="bytes of bodies, such as 64,1k,1m; everything is run with these. Default: the main cases with "
        f"{', '.join(map(reports.size_text, SIZES))}, the others with {reports.size_text(COMMON_SIZE)}",
    )
    add("--rounds", type=int, help=f"counted rounds (default {ROUNDS})")
    add("--count-scale", type=float, help="factor of all message counts (default 1)")
    add("--variants", action=argparse.BooleanOptionalAction, help="run each client's other ways, too (default)")
    add("--broker", choices=sorted(BROKERS), default="rabbitmq", help="a private one of these (default rabbitmq)")
    add("--timeout", type=float, default=TIMEOUT, help="seconds until a client is killed (default %(default)g)")
    add(
        "--quick",
        action="store_true",
        help=f"without other options: {' and '.join(QUICK_PEERS)}, {reports.size_text(COMMON_SIZE)}, "
        f"{', '.join(MAIN_CASES)}, {QUICK_ROUNDS} rounds, fewer messages, no variants; under a minute",
    )
    add("--json", type=Path, metavar="FILE", help="write everything here")
    add(
        "--markdown",
        type=Path,
        metavar="FILE",
        action="append",
        default=[],
        help="fill the marked places of this file, or make it; may be given again",
    )
    add("--chart", type=Path, metavar="FILE.svg", help="draw CPU per message here")
    options = parser.parse_args(arguments)
    quick = options.quick
    options.peers = choose(options.peers or (",".join(QUICK_PEERS) if quick else None), list(driver_files()), "peer")
    options.cases = choose(
        options.cases or (",".join(MAIN_CASES) if quick else None), [case.name for case in CASES], "case"
    )
    options.sizes = read_sizes(options.sizes or (str(COMMON_SIZE) if quick else None))
    options.rounds = options.rounds if options.rounds is not None else QUICK_ROUNDS if quick else ROUNDS
    options.count_scale = options.count_scale if options.count_scale is not None else QUICK_SCALE if quick else 1.0
    options.variants = options.variants if options.variants is not None else not quick
    if options.rounds < 1:
        parser.error(f"--rounds is at least 1, not {options.rounds}")
    if not 0 < options.count_scale <= 100:
        parser.error(f"--count-scale is above 0 and at most 100, not {options.count_scale:g}")
    if options.timeout <= 0:
        parser.error(f"--timeout is above 0, not {options.timeout:g}")
    # Reports problems with files now, and not after the comparison.
    require_folders(parser, (options.json, options.chart, *options.markdown))
    for path in options.markdown:
        try:
            reports.places(path)
        except reports.MarkerError as error:
            parser.error(str(error))
    return options


def compare(options: argparse.Namespace, console: Console) -> reports.Report:
    """Runs the comparison that the options ask for."""
    peers, programs = find_peers(options.peers, console.print)
    for peer in peers:
        if peer.problem:
            console.print(f"[yellow]{escape(peer.name)} {escape(peer.problem)}")
    cases: list[Case] = [case for case in CASES if case.name in options.cases]
    plan = make_plan(peers, cases, options.sizes, variants=options.variants)
    console.print(f"starting {options.broker}")
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(BROKERS[options.broker]())
        queues = stack.enter_context(Queues(address))
        bars = stack.enter_context(progress_bars(console, remaining=True))
        runs = sum(len(cell.runners) for cell in plan) * (options.rounds + 1)
        bar = bars.add_task("comparing", total=runs)
        comparison = Comparison(
            address,
            queues,
            programs,
            rounds=options.rounds,
            scale=options.count_scale,
            timeout=options.timeout,
        )
        for cell in plan:
            name = f"{cell.case.name}, {reports.size_text(cell.size)}"

            def progress(runner: Runner, name: str = name) -> None:
                bars.update(bar, description=f"{name}: {runner.peer.name}", refresh=True)
                bars.advance(bar)

            rows += comparison.run(cell, progress)
        bars.update(bar, description="done", refresh=True)
        broker = queues.identity
    clients = "; ".join(peer.version for peer in peers if peer.version)
    return reports.Report(rows, peers, facts(broker, clients, options.rounds, options.count_scale))


def write(report: reports.Report, options: argparse.Namespace) -> None:
    """Writes the files that were asked for."""
    if options.json:
        options.json.write_text(report.as_json())
    if options.chart:
        title = "CPU of the client, microseconds per message (logarithmic; shorter is better)"
        options.chart.write_text(chart.draw(chart.panels(report), title))
    for path in options.markdown:
        reports.fill(path, report)


def main(arguments: Sequence[str]) -> int:
    """Reads the options, compares, shows.

    Returns:
        The exit status: 1 when a run failed, otherwise 0; a client that could not be installed is no failure.
    """
    options = parse(arguments)
    console = screen()
    began = time.monotonic()
    report = compare(options, console)
    for table in reports.tables(report):
        console.print(table)
    missing = reports.problems(report)
    if missing is not None:
        console.print(missing)
    console.print(f"took {time.monotonic() - began:.0f} s")
    write(report, options)
    failures = report.failures()
    if failures:
        console.print(f"[red]{len(failures)} of {len(report.rows)} rows failed")
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        execute(main)
    except OSError as error:
        sys.exit(f"comparison: {error}")
