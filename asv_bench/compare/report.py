"""Shows results: tables for the console and for Markdown, and JSON."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from asv_bench.compare.job import TUNED
from asv_bench.compare.plan import MAIN_CASES
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from asv_bench.compare.plan import Peer
    from asv_bench.compare.results import Row

_MARKER: Final = re.compile(
    r"(?P<begin><!-- comparison:(?P<name>\w+) -->)(?P<old>(?:(?!<!-- comparison:).)*)(?P<end><!-- comparison:end -->)",
    re.DOTALL,
)
_NOTHING: Final = "-"
#: The short table has at most so many clients: these first, then others in the order of the report.
_SUMMARY_CLIENTS: Final = 6
_SUMMARY_PEERS: Final = ("leveret", "rabbitmq-c", "amqp091-go", "aio-pika", "pika", "amqplib")


class MarkerError(Exception):
    """A file has no place for results, or one of an unknown name."""


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a comparison.

    Attributes:
        rows: The results, cell by cell.
        peers: All peers, also those that could not be run.
        facts: Facts about the measurement, as names and texts.
    """

    rows: Sequence[Row]
    peers: Sequence[Peer]
    facts: Mapping[str, str]

    def cells(self) -> Iterator[list[Row]]:
        """The rows by case and size, in their order."""
        grouped: dict[tuple[str, int], list[Row]] = {}
        for row in self.rows:
            grouped.setdefault((row.case, row.size), []).append(row)
        yield from grouped.values()

    def failures(self) -> list[Row]:
        """Rows of runs that began and failed."""
        return [row for row in self.rows if row.problem is not None and row.how]

    def as_json(self) -> str:
        """Everything, including single rounds. All figures carry their units in their names."""
        document: dict[str, Any] = {
            "schema": 1,
            "facts": dict(self.facts),
            "peers": [dataclasses.asdict(peer) for peer in self.peers],
            "rows": [dataclasses.asdict(row) for row in self.rows],
        }
        return json.dumps(document, indent=1) + "\n"


def size_text(size: int) -> str:
    """Bytes in the largest unit that divides them."""
    for unit, factor in (("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"


def _number(value: float | None, form: str) -> str:
    return _NOTHING if value is None else format(value, form)


def cpu_text(value: float | None) -> str:
    """Microseconds with about three digits."""
    if value is None:
        return _NOTHING
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _milliseconds(seconds: float | None) -> str:
    return _NOTHING if seconds is None else f"{1e3 * seconds:.2f}"


def _spread(row: Row) -> str:
    return _NOTHING if row.cpu_us_low is None else f"{cpu_text(row.cpu_us_low)} to {cpu_text(row.cpu_us_high)}"


def _mebibytes(row: Row) -> str:
    return _NOTHING if row.peak_rss_bytes is None else f"{row.peak_rss_bytes / 2**20:,.0f}"


#: The columns of the console's tables and of Markdown: their headings, and how their cells are written.
_COLUMNS: Final[Mapping[str, Callable[[Row], str]]] = {
    "client": lambda row: row.label,
    "messages/s": lambda row: _number(row.rate, ",.0f"),
    "CPU us/message": lambda row: cpu_text(row.cpu_us),
    "lowest to highest": _spread,
    "peak MiB": _mebibytes,
    "p50 ms": lambda row: _milliseconds(row.latency_p50_s),
    "p99 ms": lambda row: _milliseconds(row.latency_p99_s),
    "CPU : rabbitmq-c": lambda row: _number(row.cpu_to_rabbitmq_c, ".2f"),
    "CPU : ceiling": lambda row: _number(row.cpu_to_ceiling, ".2f"),
    "rate : ceiling": lambda row: _number(row.rate_to_ceiling, ".2f"),
}
#: Those that are left out of tables where they would be empty.
_SOMETIMES: Final = ("messages/s", "p50 ms", "p99 ms", "CPU : ceiling", "rate : ceiling")


def _columns(rows: Sequence[Row]) -> dict[str, Callable[[Row], str]]:
    return {
        heading: text
        for heading, text in _COLUMNS.items()
        if heading not in _SOMETIMES or any(text(row) != _NOTHING for row in rows)
    }


def tables(report: Report) -> Iterator[Table]:
    """A table for each case and size."""
    for rows in report.cells():
        columns = _columns(rows)
        table = Table(title=f"{rows[0].title}, {size_text(rows[0].size)}", title_justify="left")
        for heading in columns:
            table.add_column(heading, justify="left" if heading == "client" else "right")
        for row in rows:
            if row.problem is None:
                table.add_row(*(escape(text(row)) for text in columns.values()))
        yield table


def problems(report: Report) -> Table | None:
    """Returns a table of missing results with their reasons, or None when none is missing."""
    missing: dict[tuple[str, str], list[str]] = {}
    for row in report.rows:
        if row.problem is not None:
            missing.setdefault((row.label, row.problem), []).append(f"{row.case} {size_text(row.size)}")
    if not missing:
        return None
    table = Table(title="not measured", title_justify="left")
    for heading in ("client", "why", "cases"):
        table.add_column(heading, overflow="fold")
    for (label, why), cases in missing.items():
        table.add_row(escape(label), escape(why), ", ".join(cases))
    return table


def _markdown_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---" if index == 0 else "---:" for index, _ in enumerate(headings)], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def full_markdown(report: Report) -> str:
    """Returns facts and all tables, with the reasons for missing results."""
    parts = [_facts(report)]
    for rows in report.cells():
        columns = _columns(rows)
        parts.append(f"### {rows[0].title[0].upper()}{rows[0].title[1:]}, {size_text(rows[0].size)}")
        body = []
        for row in rows:
            failed = [row.label, row.problem or "", *[""] * (len(columns) - 2)]
            body.append([text(row) for text in columns.values()] if row.problem is None else failed)
        parts.append(_markdown_table(list(columns), body))
    return "\n\n".join(parts)


def summary_markdown(report: Report) -> str:
    """One short table: a row for each of six clients, and for each main case its CPU, rate and latency, at one size.

    Each client is shown with its own row, and the tuned one below it; `full_markdown` has the others, and all clients.
    """
    size, cases = summary_size(report), summary_cases(report)
    rows = [row for row in report.rows if row.size == size and row.case in cases and (row.best or row.how == TUNED)]
    peers = list(dict.fromkeys(row.peer for row in rows))
    peers.sort(key=lambda peer: _SUMMARY_PEERS.index(peer) if peer in _SUMMARY_PEERS else len(_SUMMARY_PEERS))
    found = {(row.label, row.case): row for row in rows}
    labels = dict.fromkeys(row.label for peer in peers[:_SUMMARY_CLIENTS] for row in rows if row.peer == peer)
    body = [[label, *(_short(found.get((label, case))) for case in cases)] for label in labels]
    return f"{_facts(report)}\n\n{_markdown_table(['client', *cases.values()], body)}"


def summary_cases(report: Report) -> dict[str, str]:
    """The names and titles of the cases that a short table and the chart show: the main ones, or all without them."""
    everything = {row.case: row.title for row in report.rows}
    return {case: title for case, title in everything.items() if case in MAIN_CASES} or everything


def _short(row: Row | None) -> str:
    if row is None:
        return ""
    if row.problem is not None:
        return row.problem
    parts = [f"{cpu_text(row.cpu_us)} us"]
    if row.rate is not None:
        parts.append(f"{row.rate:,.0f}/s")
    if row.latency_p50_s is not None:
        parts.append(f"{_milliseconds(row.latency_p50_s)} ms")
    return ", ".join(parts)


def summary_size(report: Report) -> int:
    """The size that a short table and the chart show: 1 KiB, or the first there is."""
    sizes = list(dict.fromkeys(row.size for row in report.rows))
    return 1024 if 1024 in sizes or not sizes else sizes[0]


def _facts(report: Report) -> str:
    return " ".join(f"{name}: {text}." for name, text in report.facts.items())


def places(path: Path) -> list[str]:
    """The names of the places in a Markdown file that `fill` fills; all of them for a file that is not there.

    Raises:
        MarkerError: The file has no marked place, or one of another name than `summary` and `full`.
    """
    if not path.exists():
        return list(_WRITERS)
    names = [match["name"] for match in _MARKER.finditer(path.read_text())]
    unknown = [name for name in names if name not in _WRITERS]
    if unknown:
        raise MarkerError(f"{path}: a comparison has no part {unknown[0]!r}; there are {', '.join(_WRITERS)}")
    if not names:
        raise MarkerError(
            f"{path} has no place for results: write <!-- comparison:summary --> or <!-- comparison:full -->, and "
            "<!-- comparison:end --> behind it"
        )
    return names


def fill(path: Path, report: Report) -> None:
    """Writes results into the marked places of a Markdown file; a file that is not there gets everything.

    Raises:
        MarkerError: As `places`; nothing is written.
    """
    places(path)
    if not path.exists():
        path.write_text(f"# Comparison\n\n{summary_markdown(report)}\n\n## All cases\n\n{full_markdown(report)}\n")
        return

    def replaced(match: re.Match[str]) -> str:
        return f"{match['begin']}\n{_WRITERS[match['name']](report)}\n{match['end']}"

    path.write_text(_MARKER.sub(replaced, path.read_text()))


#: The functions that fill the places between `<!-- comparison:NAME -->` and `<!-- comparison:end -->`.
_WRITERS: Final = {"summary": summary_markdown, "full": full_markdown}
