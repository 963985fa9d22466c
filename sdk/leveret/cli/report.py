"""What the commands print: tables for people, JSON for programs."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rich import box
from rich.markup import escape
from rich.table import Table

from leveret import __version__
from leveret.cli.bench import PACED_RATE, PUBLISHING_TASKS
from leveret.cli.measure import cpu_count
from leveret.errors import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from leveret.cli.bench import Result
    from leveret.cli.demo import Outcome
    from leveret.cli.measure import Figures

__all__ = ["bench_json", "bench_table", "captions", "demo_table", "info_lines", "machine", "number"]

_DASH = "-"
_WIDE = 110
_LATENCIES = ("p50", "p99", "p99_9")


def number(value: float | None) -> str:
    """Writes a figure with three significant digits, or all digits before the point; a dash for None."""
    if value is None:
        return _DASH
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2}f}"


def _event_loop() -> str:
    """Names the event loop that `leveret.run` takes."""
    try:
        import uvloop
    except ImportError:
        return "asyncio (uvloop cannot be imported)"
    return f"uvloop {metadata.version(uvloop.__name__)}"


def machine() -> dict[str, Any]:
    """The versions and the CPUs that every figure depends on."""
    return {
        "leveret": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "event_loop": _event_loop(),
        "cpu_count": cpu_count(),
    }


def bench_json(
    results: Sequence[Result], settings: Mapping[str, Any], broker: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The benchmarks' figures as an object for JSON: every run, and the medians."""
    return {
        **machine(),
        "broker": broker,
        "settings": dict(settings),
        "benchmarks": [
            {"name": result.name, "messages": result.messages, "median": result.median, "runs": result.runs}
            for result in results
        ],
    }


def bench_table(results: Sequence[Result], *, width: int) -> Table:
    """The medians of the benchmarks as a table.

    Args:
        results: The benchmarks.
        width: Characters that there is room for; with less than 110 the percentiles stand below one another.

    Returns:
        The table.
    """
    wide = width >= _WIDE
    shares = "p50 p99 p99.9 ms" if wide else "p50\np99\np99.9 ms"
    columns: list[tuple[str, Callable[[Result, Figures], str]]] = [
        ("messages", lambda result, _: f"{result.messages:,}"),
        ("msgs/s", lambda _, median: number(median["rate_msgs_per_s"])),
        ("client\nCPU\nus/msg", lambda _, median: number(median["client_cpu_us_per_msg"])),
        ("broker\nCPU\nus/msg", lambda _, median: number(median["broker_cpu_us_per_msg"])),
        (f"publish to\nconfirm\n{shares}", lambda _, median: _latency(median, "publish_to_confirm", wide)),
        (f"publish to\nconsume\n{shares}", lambda _, median: _latency(median, "publish_to_consume", wide)),
        ("peak\nRSS\nMiB", lambda _, median: number(median["peak_rss_mib"])),
    ]
    medians = [result.median for result in results]
    if all(median["broker_cpu_us_per_msg"] is None for median in medians):
        del columns[3]  # another machine's, or another user's
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1) if wide else 0, show_edge=wide)
    table.add_column("benchmark", no_wrap=True)
    for heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for result, median in zip(results, medians, strict=True):
        table.add_row(result.name, *(text(result, median) for _, text in columns))
    return table


def _latency(median: Mapping[str, float | None], name: str, wide: bool) -> str:
    values = [median.get(f"{name}_{share}_ms") for share in _LATENCIES]
    return _DASH if None in values else (" " if wide else "\n").join(map(number, values))


def captions(settings: Mapping[str, Any], broker: Mapping[str, Any] | None) -> list[str]:
    """The lines below a table: what its figures depend on."""
    smallest, largest = settings["smallest_body_bytes"], settings["largest_body_bytes"]
    size = str(smallest) if smallest == largest else f"{smallest} to {largest}"
    runs = f"median of {settings['repeat']} runs" if settings["repeat"] > 1 else "one run"
    lines = [f"JSON bodies of {size} bytes; {runs}"]
    if broker is not None:
        kind = "the embedded broker in its own process: " if broker["embedded"] else ""
        product = printable(f"{broker['product']} {broker['version']}", 128)
        many = f"batches of {settings['batch_size']}, prefetch {settings['prefetch']}"
        lines = [
            f"{kind}{product}; durable {settings['queue_type']} queue, persistent messages",
            "every publishing confirmed"
            if settings["confirms"]
            else "NO CONFIRMS: whether a message is safe is unknown",
            f"{many}, {settings['concurrency']} consumers in concurrent-consume",
            f"{PUBLISHING_TASKS} tasks in concurrent-publish; the benchmarks of publishing have no consumers",
            *lines,
            f"publish to consume at {PACED_RATE} messages per second, from the time each was due",
        ]
    here = machine()
    return [*lines, f"{here['python']}, leveret {here['leveret']}, {here['event_loop']}, {here['cpu_count']} CPUs"]


def demo_table(outcome: Outcome, count: int, broker: Mapping[str, Any]) -> Table:
    """What the demo found, as a table of two columns."""
    sent, taken = outcome.producer, outcome.consumer
    publishing, consuming = outcome.publishing.figures(count), outcome.consuming.figures(count)
    here = machine()
    table = Table(box=box.SIMPLE, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    rows = {
        "orders": f"{count:,}",
        "seconds": number(consuming["elapsed_s"]),
        "published and confirmed": f"{number(publishing['rate_msgs_per_s'])} msgs/s",
        "consumed and acknowledged": f"{number(consuming['rate_msgs_per_s'])} msgs/s",
        "client CPU": f"{number(consuming['client_cpu_us_per_msg'])} us/msg, with making and checking the orders",
        "broker CPU": f"{number(consuming['broker_cpu_us_per_msg'])} us/msg",
        "publishings": ", ".join(f"{name} {sent[name]:,}" for name in ("confirmed", "returned", "nacked", "unknown")),
        "deliveries": ", ".join(
            f"{name.replace('_', ' ')} {taken[name]:,}"
            for name in ("delivered", "acked", "requeued", "dead_lettered", "undecodable")
        ),
        "each order exactly once": "; ".join(outcome.errors) or "yes, and the sums of their amounts are equal",
        "broker": f"{printable(broker['product'], 64)} {printable(broker['version'], 64)}",
        "client": f"{here['python']}, leveret {here['leveret']}, {here['event_loop']}, {here['cpu_count']} CPUs",
    }
    for name, text in rows.items():
        table.add_row(name, escape(text))
    return table


def info_lines() -> list[tuple[str, str]]:
    """What `leveret info` prints: names and texts."""
    from leveret.consuming import delivering
    from leveret.publishing import publisher
    from leveret.wire import buffers, reader

    here = machine()
    lines = [(name, str(here[name])) for name in ("leveret", "python", "event_loop", "cpu_count")]
    for package in ("uvloop", "pamqp", "msgspec", "pluggy", "click", "rich"):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "not installed"
        lines.append((package, version))
    lines = [(name.replace("_", " "), text) for name, text in lines]
    return lines + [(module.__name__, str(module.__file__)) for module in (buffers, reader, publisher, delivering)]
