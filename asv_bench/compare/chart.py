"""Draws CPU per message as an SVG file, readable on light and on dark pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

from asv_bench.compare.report import cpu_text, size_text, summary_cases, summary_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asv_bench.compare.report import Report

_WIDTH: Final = 860
_LEFT: Final = 250  # where bars begin
_RIGHT: Final = 90  # room for the figure behind the longest bar
_ROW: Final = 22
_BAR: Final = 14
_TITLE: Final = 34
_AXIS: Final = 26
_GAP: Final = 14
_TOP: Final = 30
_STYLE: Final = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
  .title { font-weight: 600; font-size: 14px; }
  .heading { font-weight: 600; }
  .faint { fill: #59636e; }
  .grid { stroke: #d1d9e0; stroke-width: 1; }
  .bar { fill: #8c959f; }
  .leveret { fill: #1f883d; }
  .ceiling { fill: #b6bec7; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .faint { fill: #9198a1; }
    .grid { stroke: #3d444d; }
    .bar { fill: #6e7681; }
    .leveret { fill: #3fb950; }
    .ceiling { fill: #484f58; }
  }
"""


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar.

    Attributes:
        label: The text before the bar.
        value: The bar's value; None when it was not measured.
        note: The text in place of a bar without a value.
        style: `bar`, `leveret` or `ceiling`.
    """

    label: str
    value: float | None
    note: str = ""
    style: str = "bar"


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars under a heading."""

    heading: str
    bars: Sequence[Bar]


def panels(report: Report) -> list[Panel]:
    """CPU per message of each client in the main cases, at one size; the cheapest first, missing values last."""
    size, cases = summary_size(report), summary_cases(report)
    found = []
    for rows in report.cells():
        if rows[0].size != size or rows[0].case not in cases:
            continue
        bars = [
            Bar(
                row.label,
                row.cpu_us,
                row.problem or "",
                {"leveret": "leveret", "ready-made": "ceiling"}.get(row.peer, "bar"),
            )
            for row in rows
        ]
        bars.sort(key=lambda bar: math.inf if bar.value is None else bar.value)
        found.append(Panel(f"{rows[0].title}, {size_text(size)}", bars))
    return found


def decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten between which all values lie, as exponents; at least one decade."""
    if not values:
        return 0, 1
    low = math.floor(math.log10(min(values)))
    return low, max(low + 1, math.ceil(math.log10(max(values))))


def draw(panels: Sequence[Panel], title: str) -> str:
    """Draws bars on a common logarithmic scale, with the values written behind them.

    Args:
        panels: The panels; values must be above 0.
        title: The chart's title, with the unit.

    Returns:
        An SVG document.
    """
    low, high = decades([bar.value for panel in panels for bar in panel.bars if bar.value])
    scale = (_WIDTH - _LEFT - _RIGHT) / (high - low)
    parts: list[str] = []
    top = _TOP
    for panel in panels:
        parts.append(_text(8, top + 20, panel.heading, "heading"))
        begin, end = top + _TITLE, top + _TITLE + _ROW * len(panel.bars)
        for exponent in range(low, high + 1):
            x = _LEFT + scale * (exponent - low)
            parts.append(f'<line class="grid" x1="{x:.1f}" y1="{begin - 4}" x2="{x:.1f}" y2="{end}"/>')
            parts.append(_text(x, end + 16, f"{10.0**exponent:g}", "faint", "middle"))
        for number, bar in enumerate(panel.bars):
            y = begin + _ROW * number
            parts.append(_text(_LEFT - 8, y + 12, _shortened(bar.label), "", "end"))
            if bar.value:
                length = max(1.0, scale * (math.log10(bar.value) - low))
                parts.append(
                    f'<rect class="{bar.style}" x="{_LEFT}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2"/>'
                )
                parts.append(_text(_LEFT + length + 6, y + 12, cpu_text(bar.value)))
            else:
                parts.append(_text(_LEFT + 6, y + 12, _shortened(bar.note or "not measured", 80), "faint"))
        top = end + _AXIS + _GAP
    content = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" height="{top}" '
        f'role="img" aria-label="{escape(title)}">\n<style>{_STYLE}</style>\n'
        f"{_text(8, 20, title, 'title')}\n{content}\n</svg>\n"
    )


def _text(x: float, y: float, content: str, style: str = "", anchor: str = "start") -> str:
    attributes = f' class="{style}"' if style else ""
    return f'<text{attributes} x="{x:.1f}" y="{y}" text-anchor="{anchor}">{escape(content)}</text>'


def _shortened(text: str, most: int = 38) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"
