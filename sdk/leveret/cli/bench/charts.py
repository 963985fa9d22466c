"""Draws line charts as SVG. Colours and fonts are in the page's style sheet."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from leveret.cli.bench.markup import Markup, tag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["Axis", "Line", "draw", "linear", "logarithmic", "percentiles", "short"]

_WIDTH: Final = 300
_HEIGHT: Final = 180
_LEFT: Final = 42
_RIGHT: Final = 10
_TOP: Final = 8
_BOTTOM: Final = 22
#: Values up to this count as 0.
_SMALLEST: Final = 1e-9
#: The widest range of a logarithmic axis, in powers of ten.
_MOST_DECADES: Final = 9


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a chart.

    Attributes:
        name: Its name, for readers who cannot see it.
        style: Its classes in the style sheet.
        points: Pairs of x and y, with x ascending.
    """

    name: str
    style: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis.

    Attributes:
        place: Returns where a value is, from 0 to 1.
        ticks: Values and their labels.
    """

    place: Callable[[float], float]
    ticks: Sequence[tuple[float, str]]


def short(value: float) -> str:
    """Formats a label: 1500 is "1.5k"."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def linear(highest: float) -> Axis:
    """Makes an axis from 0 to a round number above the highest value."""
    top = highest if highest > _SMALLEST else 1.0
    step = 10.0 ** math.floor(math.log10(top / 4))
    step *= next(factor for factor in (1, 2, 2.5, 5, 10) if top / (step * factor) <= 4)
    count = max(1, math.ceil(top / step - 1e-9))
    return Axis(lambda value: value / (count * step), [(i * step, short(i * step)) for i in range(count + 1)])


def logarithmic(lowest: float, highest: float) -> Axis:
    """Makes an axis of whole powers of ten around the values; those of 0 are at its lower end."""
    to = math.ceil(math.log10(highest) - 1e-9) if highest > _SMALLEST else 0
    begin = math.floor(math.log10(lowest) + 1e-9) if lowest > _SMALLEST else to - 1
    begin = max(min(begin, to - 1), to - _MOST_DECADES)
    step = 1 if to - begin <= 5 else 2

    def place(value: float) -> float:
        return max(0.0, (math.log10(value) - begin) / (to - begin)) if value > _SMALLEST else 0.0

    return Axis(place, [(10.0**power, short(10.0**power)) for power in range(begin, to + 1, step)])


def percentiles(samples: int) -> Axis:
    """Makes the axis of a percentile curve, on which 90 %, 99 %, 99.9 % ... have equal distances.

    Args:
        samples: The number of samples; the highest of them is the right end.
    """
    end = math.log10(max(10, samples))
    labels = ["0", "90", "99", "99.9", "99.99", "99.999"]
    # Without the fifth where it would be over the fourth.
    nines = [number for number in range(len(labels)) if number <= (end if number < 5 else end - 0.3) + 1e-9]
    ticks = [(100 - 100 * 10.0**-number, labels[number]) for number in nines]

    def place(percent: float) -> float:
        return min(1.0, -math.log10(1 - percent / 100) / end) if percent < 100 else 1.0

    return Axis(place, ticks)


def draw(lines: Sequence[Line], x: Axis, y: Axis, *, label: str) -> Markup:
    """Draws a chart.

    Args:
        lines: The lines; later ones are drawn over earlier ones.
        x: The horizontal axis.
        y: The vertical axis.
        label: What the chart shows, for readers who cannot see it.

    Returns:
        The SVG element.
    """
    inner, high = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def across(value: float) -> float:
        return round(_LEFT + x.place(value) * inner, 1)

    def down(value: float) -> float:
        return round(_TOP + (1 - y.place(value)) * high, 1)

    parts: list[Markup] = []
    for value, text in y.ticks:
        at = down(value)
        parts.append(tag("line", class_="grid", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=at, y2=at))
        parts.append(tag("text", text, class_="y", x=_LEFT - 6, y=at + 4))
    for value, text in x.ticks:
        at = across(value)
        # The outermost labels stay inside.
        anchor = "start" if at < _LEFT + 8 else "end" if at > _WIDTH - _RIGHT - 16 else "middle"
        parts.append(tag("text", text, x=at, y=_HEIGHT - 6, text_anchor=anchor))
    for line in lines:
        path = " ".join(f"{'L' if i else 'M'}{across(a):g} {down(b):g}" for i, (a, b) in enumerate(line.points))
        if path:
            parts.append(tag("path", class_=f"line {line.style}", d=path))
    return tag("svg", tag("title", label), *parts, viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=label)
