"""What a `FaultProxy` can do to connections, as values; and schedules of faults from a seed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from leveret.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Direction", "Fault", "FaultKind", "check_choice", "check_number", "draw_faults"]

#: Which bytes a fault concerns: those that go to the client, those that go to the broker, or both.
Direction = Literal["to_client", "to_broker", "both"]

#: What can happen. The first two happen at once, the others last for a while.
FaultKind = Literal["reset", "half_close", "stall", "swallow", "throttle", "slice", "delay", "refuse"]

_AT_ONCE: Final = ("reset", "half_close")
#: The kinds that have an amount, with the lowest and the highest of those that `draw_faults` draws.
_AMOUNTS: Final = {"throttle": (10_000, 1_000_000), "slice": (1, 100), "delay": (0.01, 0.3)}
#: A reset or a refusal concerns the whole connection.
_WHOLE: Final = ("reset", "refuse")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault of a schedule, for `FaultProxy.play`.

    Attributes:
        kind: What happens: the name of the proxy's method.
        after: How many seconds after the fault before it has ended.
        direction: Which bytes it concerns; `reset` and `refuse` always concern both.
        duration: How many seconds it lasts; 0 for `reset` and `half_close`, which happen at once.
        amount: Bytes per second for `throttle`, bytes for `slice`, seconds for `delay`; 0 for the others.

    Raises:
        ConfigurationError: A value is out of range, or does not go with the kind. The text names it.
    """

    kind: FaultKind
    after: float = 0.0
    direction: Direction = "both"
    duration: float = 0.0
    amount: float = 0.0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, get_args(FaultKind))
        check_choice("direction", self.direction, get_args(Direction))
        check_number("after", self.after, 0, 86_400)
        check_number("duration", self.duration, 0, 86_400)
        check_number("amount", self.amount, 0, 2**31)
        if self.kind in _AT_ONCE and self.duration:
            raise ConfigurationError(
                f"{self.kind} happens at once, so its duration is 0, not {self.duration:g}", option="duration"
            )
        if self.kind in _WHOLE and self.direction != "both":
            raise ConfigurationError(
                f'{self.kind} concerns the whole connection, so its direction is "both", not {self.direction!r}',
                option="direction",
            )
        if bool(self.amount) != (self.kind in _AMOUNTS):
            needs = "needs an amount above 0" if self.kind in _AMOUNTS else "has no amount"
            raise ConfigurationError(f"{self.kind} {needs}, not {self.amount:g}", option="amount")


def draw_faults(
    seed: int,
    count: int,
    *,
    kinds: Sequence[FaultKind] = ("reset", "half_close", "stall", "throttle", "slice", "delay", "refuse"),
    gap: tuple[float, float] = (0.2, 1.0),
    duration: tuple[float, float] = (0.1, 1.0),
) -> tuple[Fault, ...]:
    """Draws a schedule of faults. The same arguments give the same schedule.

    Args:
        seed: Of the random numbers.
        count: How many faults.
        kinds: What may happen. Each kind comes as often as the others, as far as `count` allows, in random order.
        gap: The shortest and the longest time between faults, in seconds.
        duration: The shortest and the longest time that a fault lasts, in seconds.

    Returns:
        The faults, for `FaultProxy.play`. The amounts are 10 kB/s to 1 MB/s for `throttle`, 1 to 100 bytes for
        `slice`, and 0.01 to 0.3 s for `delay`.

    Raises:
        ConfigurationError: A value is out of range. The text names it.
    """
    check_number("count", count, 0, 1_000_000)
    if not kinds:
        raise ConfigurationError("kinds names no kind of faults", option="kinds")
    for kind in kinds:
        check_choice("kinds", kind, get_args(FaultKind))
    for name, (low, high) in (("gap", gap), ("duration", duration)):
        check_number(f"the first of {name}", low, 0, 86_400)
        check_number(f"the second of {name}", high, low, 86_400)
    chance = random.Random(seed)  # noqa: S311 - a schedule is no secret
    drawn: list[Fault] = []
    while len(drawn) < count:
        drawn += [_draw(chance, kind, gap, duration) for kind in chance.sample(list(kinds), len(kinds))]
    return tuple(drawn[:count])


def _draw(chance: random.Random, kind: FaultKind, gap: tuple[float, float], duration: tuple[float, float]) -> Fault:
    lowest, highest = _AMOUNTS.get(kind, (0.0, 0.0))
    # Logarithmic: one byte is as likely as a hundred.
    amount = math.exp(chance.uniform(math.log(lowest), math.log(highest))) if lowest else 0.0
    directions: tuple[Direction, ...] = ("both",) if kind in _WHOLE else get_args(Direction)
    return Fault(
        kind=kind,
        after=chance.uniform(*gap),
        direction=chance.choice(directions),
        duration=0.0 if kind in _AT_ONCE else chance.uniform(*duration),
        amount=amount if kind == "delay" else round(amount),
    )


def check_number(name: str, value: float, least: float, most: float) -> None:
    """Checks an argument.

    Raises:
        ConfigurationError: It is no number, or out of range. The text names it, the range and the value.
    """
    is_number = type(value) in {int, float}
    if not (is_number and least <= value <= most):
        raise ConfigurationError(f"{name} is a number from {least:g} to {most:g}, not {value!r}", option=name)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Checks an argument.

    Raises:
        ConfigurationError: It is none of the choices. The text names it and them.
    """
    if value not in choices:
        raise ConfigurationError(f"{name} is one of {', '.join(choices)}, not {value!r}", option=name)
