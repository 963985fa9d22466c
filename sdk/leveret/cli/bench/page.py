"""The page of a run: one HTML file that loads nothing else and needs no JavaScript."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Final

from leveret.cli.bench.charts import Axis, Line, draw, linear, logarithmic, percentiles, short
from leveret.cli.bench.comparison import NOISE, change
from leveret.cli.bench.markup import Markup, tag
from leveret.cli.bench.style import STYLE
from leveret.cli.bench.tables import conditions, size_line
from leveret.cli.report import number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from leveret.cli.bench.comparison import Comparison
    from leveret.cli.bench.results import Report, Row, Series
    from leveret.cli.machine import Machine

__all__ = ["page"]

#: Steps of a line over time.
_STEPS: Final = 40
#: Seconds of the shortest step: what is shorter has no rate.
_SHORTEST: Final = 1e-6
#: Rates that differ by more than this are drawn on a logarithmic axis.
_LINEAR_RANGE: Final = 8
_WHAT: Final = {
    "basic-publish": "Messages one by one, each confirmed.",
    "batch-publish": "Batches, every message confirmed.",
    "concurrent-publish": "Many tasks that publish at once. An addition to the guide's five.",
    "basic-consume": "One consumer acknowledges each message after its handler.",
    "concurrent-consume": "Several consumers share one queue.",
    "serialization": "Orders are encoded and decoded again, without a broker.",
}
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def page(report: Report, comparison: Comparison | None = None) -> str:
    """Writes the page.

    Args:
        report: The run.
        comparison: An earlier run; None for none.

    Returns:
        HTML that is well-formed as XML, too.
    """
    groups = [(name, list(rows)) for name, rows in groupby(report.benchmarks, lambda row: row.name)]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("title", f"Leveret benchmarks, {report.when}"),
        tag("style", Markup(STYLE)),
    )
    main = tag(
        "main",
        tag(
            "header",
            tag("h1", "Leveret benchmarks"),
            tag("p", f"{report.when}, leveret {report.machine.leveret}", class_="faint"),
        ),
        _machines(report, comparison),
        tag("h2", "Messages per second"),
        tag("div", *(_rates(name, rows, comparison) for name, rows in groups), class_="cards rates"),
        tag("h2", "All figures"),
        _figures(groups, comparison, report.settings.repeat),
        tag("h2", "While they ran"),
        tag("p", "Time is in per cent of each run, because runs differ in length.", class_="faint"),
        *(_benchmark(name, rows, comparison) for name, rows in groups),
        tag("h2", "How it was measured"),
        _method(report),
        tag("footer", "Made by leveret bench --html.", class_="faint"),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', main), lang='en')}\n"


# ---------------------------------------------------------------------- machines


def _machines(report: Report, comparison: Comparison | None) -> Markup:
    guide = report.baseline
    cards = [
        _card("This run", _facts(report.machine, str(report.broker or "none"))),
        _card(
            "The guide's rates",
            [
                ("machine", guide.environment),
                ("broker", f"RabbitMQ {guide.rabbitmq}"),
                ("messages", guide.message_size),
                ("library", "another one; not measured here"),
            ],
        ),
    ]
    parts = [
        tag(
            "p",
            "The guide's rates were stated for another machine, broker and library, so a ratio to them says little "
            "about Leveret.",
        )
    ]
    if size := size_line(report):
        parts.append(tag("p", f"{size[0].upper()}{size[1:]}."))
    if comparison is not None:
        earlier = comparison.earlier
        cards.insert(1, _card(f"Earlier run, {earlier.when}", _facts(earlier.machine, str(earlier.broker or "none"))))
        parts.append(tag("p", NOISE))
        if comparison.differences:
            parts.append(tag("p", "These differ between the two runs, too, and may be why figures do:"))
            parts.append(tag("ul", *(tag("li", line) for line in comparison.differences)))
    return Markup(tag("div", *cards, class_="cards machines") + tag("div", *parts, class_="card note", role="note"))


def _facts(machine: Machine, broker: str) -> list[tuple[str, str]]:
    return [
        ("machine", machine.hardware),
        ("Python", f"{machine.python}, {machine.event_loop}"),
        ("leveret", machine.leveret),
        ("broker", broker),
    ]


def _card(title: str, facts: Iterable[tuple[str, str]]) -> Markup:
    pairs = [part for name, text in facts for part in (tag("dt", name), tag("dd", text))]
    return tag("section", tag("h3", title), tag("dl", *pairs), class_="card")


# ---------------------------------------------------------------------- rates


def _rates(name: str, rows: Sequence[Row], comparison: Comparison | None) -> Markup:
    guide = next((row.baseline for row in rows if row.baseline), None)
    before = {row.variant: comparison.row(row) for row in rows} if comparison is not None else {}
    highest = max(
        [row.rate or 0 for row in rows]
        + [earlier.rate or 0 for earlier in before.values() if earlier is not None]
        + [guide or 0, 1e-9]
    )
    parts: list[Markup] = []
    for row, style in zip(rows, _styles(rows), strict=True):
        if row.skipped:
            parts += [tag("span", row.variant), tag("span", f"not measured: {row.skipped}", class_="reason faint")]
            continue
        earlier = before.get(row.variant)
        since = change(row.rate, earlier.rate) if earlier is not None else ""
        parts += _bar(
            row.variant, row.rate, highest, style, f"{since}  {number(row.rate)}" if since else number(row.rate)
        )
        if earlier is not None:
            parts += _bar("earlier", earlier.rate, highest, f"{style} earlier", number(earlier.rate), faint=True)
    if guide is not None:
        parts += _bar("guide", guide, highest, "guide", number(guide), faint=True)
    return tag(
        "section",
        tag("h3", name),
        tag("p", _WHAT[name], class_="faint"),
        tag("div", *parts, class_="bars"),
        class_="card",
    )


def _bar(label: str, rate: float | None, highest: float, style: str, text: str, *, faint: bool = False) -> list[Markup]:
    width = f"width: {100 * (rate or 0) / highest:.1f}%"
    kind = "faint" if faint else None
    return [
        tag("span", label, class_=kind),
        tag("span", tag("span", style=width), class_=f"track {style}", aria_hidden="true"),
        tag("span", text, class_=f"value {kind}" if kind else "value"),
    ]


def _styles(rows: Sequence[Row]) -> list[str]:
    """The first row of a benchmark has the first colour, the others have the second."""
    return ["first" if index == 0 else "second" for index in range(len(rows))]


# ---------------------------------------------------------------------- figures


def _figures(groups: Iterable[tuple[str, Sequence[Row]]], comparison: Comparison | None, repeat: int) -> Markup:
    def figure(name: str) -> Callable[[Row], str]:
        return lambda row: number(row.median.get(name))

    def latency(share: str) -> Callable[[Row], str]:
        def text(row: Row) -> str:
            if row.latency is None:
                return "-"
            return number(row.median.get(f"{row.latency.measured.replace(' ', '_')}_{share}_ms"))

        return text

    columns: list[tuple[str, Callable[[Row], str]]] = [
        ("msgs/s", lambda row: number(row.rate)),
        ("guide's msgs/s (ratio)", _guide),
        ("client CPU us/msg", figure("client_cpu_us_per_msg")),
        ("client CPU %", figure("client_cpu_percent")),
        ("broker CPU us/msg", figure("broker_cpu_us_per_msg")),
        ("latency p50 ms", latency("p50")),
        ("p99 ms", latency("p99")),
        ("p99.9 ms", latency("p99_9")),
        ("max ms", latency("max")),
        ("peak RSS MiB", figure("peak_rss_mib")),
        ("network MB/s", figure("network_mb_per_s")),
        ("bytes/msg sent / received", _bytes),
    ]
    if comparison is not None:
        columns.insert(3, ("since the earlier run", partial(_since, comparison, "client_cpu_us_per_msg")))
        columns.insert(1, ("since the earlier run", partial(_since, comparison, "rate_msgs_per_s")))
    if repeat > 1:
        columns.insert(1, ("lowest to highest", _range))
    heading = tag(
        "tr",
        tag("th", "benchmark", class_="name", scope="col"),
        tag("th", "settings", class_="name", scope="col"),
        *(tag("th", name, scope="col") for name, _ in columns),
    )
    bodies = []
    for name, rows in groups:
        lines = []
        for index, row in enumerate(rows):
            cells = [tag("td", "-" if row.skipped else text(row)) for _, text in columns]
            first = None if index else tag("th", name, scope="rowgroup", rowspan=len(rows), class_="name")
            lines.append(tag("tr", first, tag("td", row.variant, class_="name"), *cells))
        bodies.append(tag("tbody", *lines))
    table = tag("table", tag("thead", heading), *bodies)
    return tag(
        "div", table, class_="card scroll", tabindex="0", role="region", aria_label="All figures, scrolls sideways"
    )


def _guide(row: Row) -> str:
    if not row.baseline:
        return "-"
    return f"{number(row.baseline)} ({row.rate / row.baseline:.2f})" if row.rate is not None else number(row.baseline)


def _bytes(row: Row) -> str:
    sent, received = row.median.get("sent_bytes_per_msg"), row.median.get("received_bytes_per_msg")
    return "-" if sent is None and received is None else f"{number(sent)} / {number(received)}"


def _since(comparison: Comparison, figure: str, row: Row) -> str:
    earlier = comparison.row(row)
    return (change(row.median.get(figure), earlier.median.get(figure)) if earlier else "") or "-"


def _range(row: Row) -> str:
    rates = row.rates
    return f"{short(rates[0])} to {short(rates[-1])}" if rates else "-"


# ---------------------------------------------------------------------- charts


def _benchmark(name: str, rows: Sequence[Row], comparison: Comparison | None) -> Markup | None:
    shown = _shown(rows, comparison)
    if not shown:
        return None
    charts = [
        _over_time(name, "Rate, msgs/s", shown, _rate),
        _latencies(name, shown),
        _over_time(name, "Network, sent and received, MB/s", shown, _network),
        _over_time(name, "CPU of the client, % of a core", shown, _cpu),
        _over_time(name, "CPU of the broker, % of a core", shown, _broker_cpu),
        _over_time(name, "Memory of the client (RSS), MiB", shown, _memory),
    ]
    legend = [
        tag("li", _sample(style), f"{label}, {number(series.seconds[-1])} s")
        for label, style, _, series in shown
        if series.seconds
    ]
    return tag(
        "section",
        tag("h3", name),
        tag("ul", *legend, class_="legend"),
        tag("div", *charts, class_="charts"),
        class_="card benchmark",
    )


#: Label, style, row and samples of each line; those of an earlier run come first, so that they are drawn below.
Shown = list[tuple[str, str, "Row", "Series"]]


def _shown(rows: Sequence[Row], comparison: Comparison | None) -> Shown:
    found: Shown = []
    for row, style in zip(rows, _styles(rows), strict=True):
        if row.series is None:
            continue
        earlier = comparison.row(row) if comparison is not None else None
        if earlier is not None and earlier.series is not None:
            found.append((f"{row.variant}, earlier", f"{style} earlier", earlier, earlier.series))
        found.append((row.variant, style, row, row.series))
    return found


def _sample(style: str) -> Markup:
    return tag("svg", tag("path", class_=f"line {style}", d="M1 5 L25 5"), viewBox="0 0 26 10", aria_hidden="true")


def _over_time(
    name: str, what: str, shown: Shown, values: Callable[[Series], list[tuple[float, float]]]
) -> Markup | None:
    lines = [Line(label, style, values(series)) for label, style, _, series in shown]
    if not any(line.points for line in lines):
        return None
    highest = max(y for line in lines for _, y in line.points)
    peaks = [max(y for _, y in line.points) for line in lines if line.points]
    axis = linear(highest)
    if values in (_rate, _network) and min(peaks) > 0 and highest / min(peaks) > _LINEAR_RANGE:
        what += " (log scale)"
        axis = logarithmic(min(y for line in lines for _, y in line.points if y > 0), highest)
    time = Axis(lambda share: share, [(share / 4, f"{25 * share} %") for share in range(5)])
    return _figure(name, what, lines, time, axis)


def _latencies(name: str, shown: Shown) -> Markup | None:
    curves = [(label, style, row.latency) for label, style, row, _ in shown if row.latency is not None]
    lines = [
        Line(label, style, list(zip(curve.percent, curve.ms, strict=True)))
        for label, style, curve in curves
        if curve.ms
    ]
    if not lines:
        return None
    values = [ms for line in lines for _, ms in line.points]
    lowest = min((ms for ms in values if ms > 0), default=1.0)
    what = f"{curves[-1][2].measured.capitalize()}, ms by percentile"
    samples = max(curve.samples for _, _, curve in curves)
    return _figure(name, what, lines, percentiles(samples), logarithmic(lowest, max(values)))


def _figure(name: str, what: str, lines: Sequence[Line], x: Axis, y: Axis) -> Markup:
    told = "; ".join(
        f"{line.name}: {number(min(values))} to {number(max(values))}"
        for line in lines
        if (values := [value for _, value in line.points])
    )
    return tag("figure", tag("figcaption", what), draw(lines, x, y, label=f"{name}: {what}. {told}."))


def _rate(series: Series) -> list[tuple[float, float]]:
    return _steps(series, series.messages, 1)


def _cpu(series: Series) -> list[tuple[float, float]]:
    return _steps(series, series.client_cpu_s, 100)


def _broker_cpu(series: Series) -> list[tuple[float, float]]:
    return _steps(series, series.broker_cpu_s, 100)


def _network(series: Series) -> list[tuple[float, float]]:
    return _steps(series, series.network_mb, 1)


def _memory(series: Series) -> list[tuple[float, float]]:
    length = max(series.seconds, default=0)
    if not length or not series.rss_mib:
        return []
    return [(at / length, rss) for at, rss in zip(series.seconds, series.rss_mib, strict=True)]


def _steps(series: Series, values: Sequence[float], scale: float) -> list[tuple[float, float]]:
    """The increase of values per second, as steps of at least a fortieth of the run."""
    length = max(series.seconds, default=0)
    points: list[tuple[float, float]] = []
    if not length or not values:
        return points
    since, before = series.seconds[0], values[0]
    for at, value in zip(series.seconds, values, strict=True):
        if at - since >= max(length / _STEPS, _SHORTEST):
            height = max(0.0, scale * (value - before) / (at - since))
            points += [(since / length, height), (at / length, height)]
            since, before = at, value
    return points


# ---------------------------------------------------------------------- method


def _method(report: Report) -> Markup:
    ways = [
        part
        for row in report.benchmarks
        for part in (
            tag("dt", f"{row.name}, {row.variant}"),
            tag("dd", f"not measured: {row.skipped}" if row.skipped else row.how),
        )
    ]
    return tag(
        "section",
        tag("ul", *(tag("li", line) for line in conditions(report))),
        tag("dl", *ways, class_="ways"),
        class_="card",
    )
