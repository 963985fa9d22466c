"""The options of `leveret bench`. The modules that do the work are imported when it runs."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import click

from leveret.cli.brokers import BROKER, EMBEDDED, QUIET, broker_at, run
from leveret.cli.output import STDOUT, check_writable, console, write_json, write_text

if TYPE_CHECKING:
    from leveret.cli.bench.comparison import Comparison
    from leveret.cli.bench.results import Report, Row

__all__ = ["NAMES", "bench"]

#: The largest body that RabbitMQ 4 accepts by default.
_MAX_SIZE: Final = 16 * 1024 * 1024
#: `leveret.cli.bench.suite.BENCHMARKS`, in the guide's order; a test holds that they agree.
NAMES: Final = (
    *("basic-publish", "batch-publish", "concurrent-publish"),
    *("basic-consume", "concurrent-consume", "serialization"),
)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES), metavar="[NAME]...")
@BROKER
@click.option(
    "--count", default=10_000, show_default=True, type=click.IntRange(1, 1_000_000), help="Messages of each run."
)
@click.option(
    "--size",
    default=0,
    show_default=True,
    type=click.IntRange(0, _MAX_SIZE),
    help="Bytes of each body; 0: the guide's order without padding. The guide's rates are for 1024.",
)
@click.option(
    "--settings",
    default="both",
    show_default=True,
    type=click.Choice(["both", "default", "tuned"]),
    help="Which rows: with default settings, tuned, or both.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(1, 1_000_000),
    help="Messages of a batch in batch-publish, instead of the default of 1000.",
)
@click.option(
    "--prefetch", type=click.IntRange(1, 65_535), help="Prefetch of each consumer, instead of the default of 100."
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 1000),
    help="Consumers of concurrent-consume.  [default: the number of CPUs]",
)
@click.option("--confirms/--no-confirms", default=True, show_default=True, help="Wait for the broker's confirms.")
@click.option(
    "--queue-type",
    default="classic",
    show_default=True,
    type=click.Choice(["classic", "quorum"]),
    help="Type of the queues.",
)
@click.option(
    "--repeat",
    default=1,
    show_default=True,
    type=click.IntRange(1, 1000),
    help="Runs of each row; table and page show medians.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, allow_dash=True),
    help="Write all figures to this file; '-': stdout.",
)
@click.option("--html", "html_file", type=click.Path(dir_okay=False), help="Write a page with charts to this file.")
@click.option(
    "--compare",
    "earlier_file",
    type=click.Path(exists=True, dir_okay=False),
    help="Compare with an earlier run: a file that --json wrote.",
)
@QUIET
def bench(
    names: tuple[str, ...],
    where: str,
    count: int,
    size: int,
    settings: str,
    batch_size: int | None,
    prefetch: int | None,
    concurrency: int | None,
    confirms: bool,
    queue_type: str,
    repeat: int,
    json_file: str | None,
    html_file: str | None,
    earlier_file: str | None,
    quiet: bool,
) -> None:
    """Run the performance guide's five benchmarks and concurrent-publish. Without a NAME all of them run.

    \b
    basic-publish       publish one message at a time and await its confirm
    batch-publish       publish batches that are all started at once
    concurrent-publish  200 tasks publish, each awaits the confirm of its message
    basic-consume       one consumer acknowledges each message after its handler
    concurrent-consume  several consumers share one queue
    serialization       encode and decode with JSON and MessagePack, without a broker

    Each runs with default settings and with tuned ones; the lines below the table say which. Rates, latencies, CPU,
    memory and network traffic are those of this process. The guide's own rates stand beside them: they were stated for
    another machine.

    The benchmarks use queues and exchanges of their own, and delete them at the end. If a message is lost or fails, the
    command ends with an error and shows no figures.
    """  # noqa: D301 - click wants the character
    from leveret.cli.bench import consuming, suite
    from leveret.cli.bench.baseline import BASELINE
    from leveret.cli.bench.comparison import Comparison
    from leveret.cli.bench.page import page
    from leveret.cli.bench.plan import Plan, Workload
    from leveret.cli.bench.results import ForeignFileError, Report, Settings, read_report
    from leveret.cli.machine import this_machine
    from leveret.cli.measure import Clocks, cpu_count
    from leveret.cli.progress import Bars
    from leveret.cli.stage import Broker, Target, identify

    wanted = suite.entries(names or NAMES, settings, {"batch_size": batch_size, "prefetch": prefetch})
    consumers = concurrency or cpu_count()
    needs_broker = not suite.NEEDS_NO_BROKER.issuperset(entry.name for entry in wanted)
    check_writable(json_file, "--json")
    check_writable(html_file, "--html")
    if html_file is not None and html_file == json_file:
        raise click.BadParameter(f"{html_file} is the file of --json, too", param_hint="--html")
    try:
        earlier = None if earlier_file is None else read_report(earlier_file)
    except ForeignFileError as error:
        raise click.BadParameter(str(error), param_hint="--compare") from error
    try:
        workload = Workload(count, size)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--size") from error
    with broker_at(where if needs_broker else None) as (connection, broker_cpu_ns):
        target = Target(connection=connection, embedded=where == EMBEDDED, queue_type=queue_type, count=count)

        async def measure() -> tuple[Broker | None, list[Row]]:
            broker = await identify(target) if needs_broker else None
            with Bars(console(stderr=True), enabled=not quiet) as bars:
                plan = Plan(
                    target=target,
                    workload=workload,
                    clocks=Clocks(broker_cpu_ns, lambda: bars.cpu_ns),
                    bars=bars,
                    concurrency=consumers,
                    confirms=confirms,
                )
                return broker, await suite.run_benchmarks(plan, wanted, repeat)

        broker, rows = run(measure())
    report = Report(
        made_at=datetime.now(UTC).replace(microsecond=0),
        machine=this_machine(),
        broker=broker,
        settings=Settings(
            count=count,
            smallest_body_bytes=workload.smallest_bytes,
            largest_body_bytes=workload.largest_bytes,
            batch_size=batch_size,
            prefetch=prefetch,
            concurrency=consumers,
            confirms=confirms,
            queue_type=queue_type,
            repeat=repeat,
            paced_messages=min(count, consuming.PACED_MESSAGES),
            paced_rate_msgs_per_s=consuming.PACED_RATE,
        ),
        baseline=BASELINE,
        benchmarks=rows,
    )
    comparison = None if earlier is None else Comparison(report, earlier)
    # The files are written even when the reader of stdout has gone, and each even when the other cannot be.
    with contextlib.ExitStack() as outputs:
        if html_file is not None:
            outputs.callback(write_text, html_file, page(report, comparison))
        if json_file is not None:
            outputs.callback(write_json, json_file, report.as_dict())
        _show(report, comparison, stderr=json_file == STDOUT, quiet=quiet)


def _show(report: Report, comparison: Comparison | None, *, stderr: bool, quiet: bool) -> None:
    """Prints the table, to stderr where stdout has the JSON; `quiet` then leaves it out."""
    from leveret.cli.bench import tables

    if stderr and quiet:
        return
    screen = console(stderr=stderr)
    screen.print(tables.bench_table(report, comparison, width=screen.width))
    for line in tables.captions(report, comparison):
        screen.print(line, markup=False, highlight=False)
