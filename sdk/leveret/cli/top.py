"""`leveret top`: what a run does now, drawn again each second, from its health endpoint."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from leveret.cli.output import console
from leveret.cli.probe import EndpointUnreachable, fetch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

__all__ = ["drawn", "show_top"]

_PERCENTILES: Final = ("p50", "p99", "p99.9")


def show_top(url: str, *, every: float, once: bool, timeout: float) -> None:
    """Shows a run until Ctrl-C; off a terminal, or with `once`, one time.

    Args:
        url: The run's health endpoint.
        every: Seconds between two drawings.
        once: Print it once, and end.
        timeout: Seconds to wait for an answer.

    Raises:
        EndpointUnreachable: It did not answer at first. Later ones are shown, and tried again.
    """
    from rich.live import Live

    screen = console()
    first = drawn(fetch(url, "/health", timeout))
    if once or not screen.is_terminal:
        screen.print(first)
        return
    with Live(first, console=screen, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every)
            try:
                page = drawn(fetch(url, "/health", timeout))
            except EndpointUnreachable as error:
                page = Text(f"{error}; trying again", style="bold red")
            live.update(page, refresh=True)


def drawn(page: dict[str, Any]) -> RenderableType:
    """Returns the page of `/health` as tables: the run, its processes, queues and exchanges."""
    report = page["report"]
    parts: list[RenderableType] = [_heading(page), *_reasons(page), _flows(report), _gauges(report), _processes(page)]
    if page["queues"]:
        parts.append(_queues(page["queues"]))
    if page["exchanges"]:
        parts.append(_exchanges(page["exchanges"]))
    return Group(*parts)


def _heading(page: dict[str, Any]) -> Text:
    state, style = ("ready", "bold green") if page["ready"] else ("live, not ready", "bold yellow")
    if not page["live"]:
        state, style = "not live", "bold red"
    process = page["report"]["process"]
    text = Text(f"{page['name']}  ", style="bold")
    text.append(state, style)
    rest = (
        f"  up {_span(page['uptime'])}, {page['failures']:,} failures, {page['restarts']:,} restarts, "
        f"{_size(process['rss_bytes'])} memory, {process['cpu_percent']:.0f} % CPU"
    )
    return text.append(rest, "default")


def _reasons(page: dict[str, Any]) -> Iterable[Text]:
    return (Text(f"  {reason}", style="yellow") for reason in page["reasons"])


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    return table


def _flows(report: dict[str, Any]) -> Table:
    table = _table("messages", f"last {report['seconds']:.0f} s", "per second", "success", "mean", *_PERCENTILES)
    for name, flow, durations in (
        ("published to confirmed", report["published"], report["published"]["duration"]),
        ("read to settled", report["consumed"], report["consumed"]["duration"]),
        ("  waiting for a handler", None, report["waiting"]),
        ("  in the handler", None, report["handling"]),
    ):
        rate, success = ("", "") if flow is None else (f"{flow['rate']:,.0f}", _share(flow["success"]))
        times = [_time(durations[which]) if durations["count"] else "-" for which in ("mean", *_PERCENTILES)]
        table.add_row(name, rate, success, *times)
    return table


def _gauges(report: dict[str, Any]) -> Text:
    return Text(
        f"window {report['outstanding']:,}, unsettled {report['unsettled']:,}, prefetch {report['prefetch']:,}; "
        f"network {_size(report['received_bytes_per_second'])}/s in, {_size(report['sent_bytes_per_second'])}/s out"
    )


def _processes(page: dict[str, Any]) -> Table:
    table = _table("processes", "number", "pid", "state", "connections", "consumers", "last delivery", "memory")
    for process in page["processes"]:
        health = process.get("health")
        state = "ready" if process["ready"] else "live" if process["live"] else "stuck"
        if health is None:
            table.add_row(str(process["process"]), "-", state, "-", "-", "-", "-")
            continue
        connections = health["connections"]
        opened = sum(state == "open" for state in connections.values())
        age = health["delivery_age"]
        table.add_row(
            str(process["process"]),
            str(process["pid"]),
            Text(state, style="green" if process["ready"] else "yellow"),
            f"{opened} of {len(connections)} open",
            f"{health['consumers_live']} of {health['consumers_expected']} live",
            "-" if age is None else f"{_span(age)} ago",
            _size(process["rss_bytes"]),
        )
    return table


def _queues(queues: dict[str, Any]) -> Table:
    columns = ("ready", "per second", "unsettled", "prefetch", "failures", "parked", "handler p50", "p99")
    table = _table("queues", "queue", *columns)
    for name, it in queues.items():
        handling = it["handling"]
        times = [_time(handling[which]) if handling["count"] else "-" for which in ("p50", "p99")]
        counts = (it["unsettled"], it["prefetch"], it["failures"], it["parked"])
        depth = "-" if it["messages"] is None else f"{it['messages']:,}"
        table.add_row(Text(name), depth, f"{it['rate']:,.0f}", *(f"{count:,}" for count in counts), *times)
    return table


def _exchanges(exchanges: dict[str, Any]) -> Table:
    table = _table("exchanges", "exchange", "per second", "confirmed", "window", "confirm p50", "p99")
    for name, it in exchanges.items():
        confirming = it["confirming"]
        times = [_time(confirming[which]) if confirming["count"] else "-" for which in ("p50", "p99")]
        counts = (f"{it['rate']:,.0f}", f"{it['confirmed']:,}", f"{it['outstanding']:,}")
        table.add_row(Text(name or "(default)"), *counts, *times)
    return table


def _share(success: float | None) -> str:
    return "-" if success is None else f"{100 * success:.4g} %"


def _time(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _span(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(count: float | None) -> str:
    if count is None:
        return "-"
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"
