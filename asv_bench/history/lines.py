"""Draws curves over commits as an SVG file, readable on light and on dark pages."""

from __future__ import annotations

import math
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_WIDTH: Final = 900
_LEFT: Final = 64  # room for the scale
_RIGHT: Final = 190  # room for the names and last values of the curves
_TOP: Final = 34
_HEADING: Final = 30
_BOTTOM: Final = 30
_LABEL: Final = 15  # the least distance of two names
#: Pixels for a factor of ten, and the least and greatest height of a panel.
_DECADE, _LOWEST, _HIGHEST = 130, 110, 320
#: What is nothing has no place on a logarithmic scale; it is drawn here.
_LEAST: Final = 0.01
_COLOURS: Final = ("#1f883d", "#0969da", "#bc4c00", "#8250df", "#cf222e", "#9a6700", "#1b7c83", "#6e7781")
_DARK: Final = ("#3fb950", "#58a6ff", "#f0883e", "#bc8cff", "#ff7b72", "#d29922", "#39c5cf", "#8b949e")
_STYLE: Final = """
  text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
  .title { font-weight: 600; font-size: 14px; }
  .heading { font-weight: 600; }
  .faint { fill: #59636e; }
  .grid { stroke: #d1d9e0; stroke-width: 1; }
  polyline { fill: none; stroke-width: 2; stroke-linejoin: round; }
"""


@dataclass(frozen=True, slots=True)
class Line:
    """A curve: its name, and a value for each commit."""

    name: str
    values: Sequence[float]


@dataclass(frozen=True, slots=True)
class Panel:
    """Curves under a heading, on one logarithmic scale."""

    heading: str
    lines: Sequence[Line]


def draw(panels: Sequence[Panel], title: str) -> str:
    """Draws panels one below the other; the commits are numbered from 1 on the left.

    Args:
        panels: The panels, whose curves all have the same number of values, at least 2.
        title: The title of the picture.

    Returns:
        An SVG document.
    """
    parts: list[str] = []
    top = float(_TOP)
    for panel in panels:
        top = _panel(parts, panel, top)
    dark = "\n".join(f"    .c{number} {{ stroke: {colour}; }}" for number, colour in enumerate(_DARK))
    light = "\n".join(f"  .c{number} {{ stroke: {colour}; }}" for number, colour in enumerate(_COLOURS))
    style = (
        f"{_STYLE}{light}\n  @media (prefers-color-scheme: dark) {{\n    text {{ fill: #f0f6fc; }}\n"
        f"    .faint {{ fill: #9198a1; }}\n    .grid {{ stroke: #3d444d; }}\n{dark}\n  }}\n"
    )
    content = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top:.0f}" width="{_WIDTH}" '
        f'height="{top:.0f}" role="img" aria-label="{escape(title)}">\n<style>{style}</style>\n'
        f"{_text(8, 20, title, 'title')}\n{content}\n</svg>\n"
    )


def _panel(parts: list[str], panel: Panel, top: float) -> float:
    """Draws a panel, and returns where the next one begins."""
    values = [max(_LEAST, value) for line in panel.lines for value in line.values]
    marks = list(scale_marks(min(values), max(values)))
    low, high = math.log10(marks[0]), math.log10(marks[-1])
    height = min(_HIGHEST, max(_LOWEST, _DECADE * (high - low)))
    end = top + _HEADING + height
    right = _WIDTH - _RIGHT
    count = len(panel.lines[0].values)

    def across(number: int) -> float:
        return _LEFT + (right - _LEFT) * number / (count - 1)

    def up(value: float) -> float:
        return end - height * (math.log10(max(_LEAST, value)) - low) / (high - low)

    parts.append(_text(8, top + 18, panel.heading, "heading"))
    for mark in marks:
        parts.append(f'<line class="grid" x1="{_LEFT}" y1="{up(mark):.1f}" x2="{right}" y2="{up(mark):.1f}"/>')
        parts.append(_text(_LEFT - 6, up(mark) + 4, f"{mark:,g}", "faint", "end"))
    numbers = [0, *range(4, count - 2, 5), count - 1]
    parts += [_text(across(number), end + 17, str(number + 1), "faint", "middle") for number in numbers]
    ends = []
    for number, line in enumerate(panel.lines):
        points = " ".join(f"{across(at):.1f},{up(value):.1f}" for at, value in enumerate(line.values))
        parts.append(f'<polyline class="c{number}" points="{points}"/>')
        ends.append((up(line.values[-1]), number, f"{line.name} {line.values[-1]:,.4g}"))
    ends.sort()
    for (wanted, number, label), at in zip(ends, apart([y for y, *_ in ends], _LABEL), strict=True):
        parts.append(
            f'<polyline class="c{number}" points="{right},{wanted:.1f} {right + 8},{at:.1f} {right + 14},{at:.1f}"/>'
        )
        parts.append(_text(right + 18, at + 4, label))
    return end + _BOTTOM


def scale_marks(lowest: float, highest: float) -> Iterator[float]:
    """Yields 1, 2 and 5 times powers of ten, from one at or below the lowest value to one at or above the highest."""
    steps = [factor * 10.0**power for power in range(-3, 12) for factor in (1, 2, 5)]
    first = max(number for number, step in enumerate(steps) if step <= lowest)
    last = min(number for number, step in enumerate(steps) if step >= highest)
    yield from (float(f"{step:.12g}") for step in steps[first : max(last, first + 1) + 1])


def apart(positions: Sequence[float], distance: float) -> list[float]:
    """Moves ascending positions so that each is at least `distance` below the one before, and few move far."""
    found = list(positions)
    for _ in range(200):
        moved = False
        for number in range(1, len(found)):
            missing = distance - (found[number] - found[number - 1])
            if missing > 0.01:
                found[number - 1] -= missing / 2
                found[number] += missing / 2
                moved = True
        if not moved:
            break
    return found


def _text(x: float, y: float, content: str, style: str = "", anchor: str = "start") -> str:
    attributes = f' class="{style}"' if style else ""
    return f'<text{attributes} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(content)}</text>'
