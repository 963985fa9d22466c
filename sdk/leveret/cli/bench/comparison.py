"""Compares a run of `leveret bench` with an earlier one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from leveret.errors import printable

if TYPE_CHECKING:
    from leveret.cli.bench.results import Report, Row

__all__ = ["NOISE", "Comparison", "change"]

_LONGEST_VALUE: Final = 120
#: How far a change may be trusted.
NOISE: Final = "Rates and latencies depend on what else both machines did; CPU per message depends on it less."


class Comparison:
    """Two runs.

    Args:
        now: The run.
        earlier: The earlier run.

    Attributes:
        earlier: The earlier run.
        differences: A sentence for each difference in machine, broker and options, apart from Leveret's own version:
            where there are any, a change of a figure may come from them.
    """

    def __init__(self, now: Report, earlier: Report) -> None:
        self.earlier = earlier
        self.differences = _differences(now, earlier)
        self._rows = earlier.named()

    def row(self, row: Row) -> Row | None:
        """Returns the earlier row of the same benchmark and variant; None when there is none."""
        return self._rows.get((row.name, row.variant))


def change(now: float | None, earlier: float | None) -> str:
    """Returns a change in per cent; empty when one of the values is not known or the earlier one is 0."""
    if now is None or not earlier:
        return ""
    percent = 100 * (now / earlier - 1)
    return f"{percent:+,.0f} %" if abs(percent) >= 0.5 else "0 %"


def _differences(now: Report, earlier: Report) -> list[str]:
    pairs: list[tuple[str, object, object]] = [
        ("machine", now.machine.hardware, earlier.machine.hardware),
        ("Python", now.machine.python, earlier.machine.python),
        ("event loop", now.machine.event_loop, earlier.machine.event_loop),
        ("broker", now.broker or "none", earlier.broker or "none"),
    ]
    before = msgspec.structs.asdict(earlier.settings)
    pairs += [(name, value, before[name]) for name, value in msgspec.structs.asdict(now.settings).items()]
    return [
        f"{name}: {_short(value)}, earlier {_short(other)}" for name, value, other in pairs if str(value) != str(other)
    ]


def _short(value: object) -> str:
    return "each row's own" if value is None else printable(str(value), _LONGEST_VALUE)
