"""The table and the lines below it that `leveret bench` shows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from rich import box
from rich.table import Table

from leveret.cli.bench.baseline import BODY_BYTES
from leveret.cli.bench.comparison import NOISE, change
from leveret.cli.report import number
from leveret.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from leveret.cli.bench.comparison import Comparison
    from leveret.cli.bench.results import Report, Row

__all__ = ["bench_table", "captions", "conditions", "size_line"]

_DASH: Final = "-"
#: Characters from which the table has all columns.
_WIDE: Final = 120
_LONGEST_REASON: Final = 300
_LATENCIES: Final = ("p50", "p99", "p99_9")


def bench_table(report: Report, comparison: Comparison | None = None, *, width: int) -> Table:
    """Makes a table of the medians.

    Args:
        report: The run.
        comparison: An earlier run; None for none.
        width: The width of the output in characters. Below 120 there are fewer columns, and the percentiles stand below
            one another.

    Returns:
        The table.
    """
    wide = width >= _WIDE
    shares = "p50 p99 p99.9" if wide else "p50\np99\np99.9"
    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("msgs/s", lambda row: number(row.rate)),
        ("guide's\nmsgs/s", lambda row: number(row.baseline)),
        ("client\nCPU\nus/msg", lambda row: number(row.median.get("client_cpu_us_per_msg"))),
        (f"latency\nms\n{shares}", lambda row: _latency(row.median, wide)),
        ("peak\nRSS\nMiB", lambda row: number(row.median.get("peak_rss_mib"))),
        ("net-\nwork\nMB/s", lambda row: number(row.median.get("network_mb_per_s"))),
    ]
    if comparison is not None:
        # In a wide table changes take the place of some figures.
        earlier = comparison  # for the type checker: a closure keeps no narrowing
        if wide:
            columns.insert(3, ("since\nthen", lambda row: _change("client_cpu_us_per_msg", row, earlier)))
        columns.insert(1, ("since\nthen", lambda row: _change("rate_msgs_per_s", row, earlier)))
    elif wide:
        columns.insert(3, ("client\nCPU\n%", lambda row: number(row.median.get("client_cpu_percent"))))
        if any(row.median.get("broker_cpu_us_per_msg") is not None for row in report.benchmarks):
            # Only the embedded broker's CPU time can be read.
            columns.insert(4, ("broker\nCPU\nus/msg", lambda row: number(row.median.get("broker_cpu_us_per_msg"))))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1) if wide else 0, show_edge=wide)
    table.add_column("benchmark", no_wrap=True)
    table.add_column("settings", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    last = ""
    for row in report.benchmarks:
        name = "" if row.name == last else row.name
        last = row.name
        table.add_row(name, row.variant, *(_DASH if row.skipped else text(row) for _, text in columns))
    return table


def _latency(median: Mapping[str, float | None], wide: bool) -> str:
    for measured in ("publish_to_confirm", "publish_to_consume"):
        values = [median.get(f"{measured}_{share}_ms") for share in _LATENCIES]
        if None not in values:
            return (" " if wide else "\n").join(map(number, values))
    return _DASH


def _change(figure: str, row: Row, comparison: Comparison) -> str:
    earlier = comparison.row(row)
    return (change(row.median.get(figure), earlier.median.get(figure)) if earlier else "") or _DASH


def _body_size(report: Report) -> str:
    """Returns the size of the bodies, for a reader."""
    settings = report.settings
    smallest, largest = settings.smallest_body_bytes, settings.largest_body_bytes
    return f"{smallest:,} bytes" if smallest == largest else f"{smallest:,} to {largest:,} bytes"


def guide_line(report: Report) -> str:
    """Returns what the guide's rates were stated for."""
    guide = report.baseline
    return f"guide's msgs/s: {guide.environment}, RabbitMQ {guide.rabbitmq}, {guide.message_size}; of another library"


def size_line(report: Report) -> str:
    """Returns what to do for bodies of the size that the guide's rates were stated for; empty when these have it."""
    if report.settings.smallest_body_bytes == report.settings.largest_body_bytes == BODY_BYTES:
        return ""
    return f"bodies here have {_body_size(report)} of JSON: for those of the guide's rates, --size {BODY_BYTES}"


def conditions(report: Report) -> list[str]:
    """Returns the conditions of the figures, apart from the machine."""
    settings, broker = report.settings, report.broker
    paced = f"{settings.paced_messages:,} messages, {settings.paced_rate_msgs_per_s:,} a second"
    runs = f"medians of {settings.repeat} runs" if settings.repeat > 1 else "one run"
    lines = [f"{settings.count:,} messages with JSON bodies of {_body_size(report)}; {runs}"]
    if broker is not None:
        lines = [
            f"{broker}; durable {settings.queue_type} queue, persistent messages",
            "every publishing confirmed" if settings.confirms else "NO CONFIRMS: messages may have been lost",
            f"{settings.concurrency} consumers in concurrent-consume; the benchmarks of publishing have no consumers",
            *lines,
            "latency of publishing: publish to confirm, at full speed",
            f"latency of consuming: publish to consume of {paced}, from when each is due",
        ]
    return lines


def captions(report: Report, comparison: Comparison | None = None) -> list[str]:
    """Returns the lines below the table: settings of each row, conditions of the figures, and the machines."""
    width = max(len(f"{row.name}, {row.variant}") for row in report.benchmarks)
    lines = [f"{f'{row.name}, {row.variant}':{width}}  {_how(row)}" for row in report.benchmarks]
    machine = report.machine
    lines += ["", *conditions(report), f"this machine: {machine.hardware}", machine.software, guide_line(report)]
    lines += filter(None, [size_line(report)])
    if comparison is not None:
        lines.append(f"since then: compared with the run of {comparison.earlier.when}. {NOISE}")
        lines += [f"different then: {line}" for line in comparison.differences]
    return [printable(line, 1000) for line in lines]


def _how(row: Row) -> str:
    return f"not measured: {printable(row.skipped, _LONGEST_REASON)}" if row.skipped else row.how
