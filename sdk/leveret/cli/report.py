"""Numbers for readers; the outputs of `leveret demo` and `leveret info`."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from leveret.cli.machine import this_machine

if TYPE_CHECKING:
    from leveret.cli.demo import DemoResult
    from leveret.cli.stage import Broker

__all__ = ["demo_table", "info_lines", "number"]

_DASH = "-"


def number(value: float | None) -> str:
    """Formats a figure with three significant digits, or all digits before the point; None is a dash."""
    if value is None:
        return _DASH
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 10 else 2}f}"


def demo_table(outcome: DemoResult, count: int, broker: Broker) -> Table:
    """Makes a table of the demo's result."""
    sent, taken = outcome.producer, outcome.consumer
    publishing, consuming = outcome.publishing.figures(count), outcome.consuming.figures(count)
    here = this_machine()
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
        "broker": str(broker),
        "client": f"{here.software}, {here.hardware}",
    }
    for name, text in rows.items():
        table.add_row(name, escape(text))
    return table


def info_lines() -> list[tuple[str, str]]:
    """Returns the lines of `leveret info`: names and values."""
    from leveret.consuming import worker
    from leveret.publishing import publisher
    from leveret.wire import buffers, reader

    here = this_machine()
    lines = [(name, str(getattr(here, name))) for name in ("leveret", "python", "event_loop", "cpu", "cpu_count")]
    for package in ("uvloop", "pamqp", "msgspec", "pluggy", "click", "rich"):
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            version = "not installed"
        lines.append((package, version))
    lines = [(name.replace("_", " "), text) for name, text in lines]
    return lines + [(module.__name__, str(module.__file__)) for module in (buffers, reader, publisher, worker)]
