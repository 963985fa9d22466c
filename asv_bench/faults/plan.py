"""Draws the faults of a run from a seed."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Final

#: Of 100 faults, how many are of a kind; each kind comes at least once.
SHARES: Final = {
    "reset": 22,
    "half-close": 14,
    "stall": 16,
    "kill": 6,
    "stop": 4,
    "alarm": 6,
    "refused login": 4,
    "queue deleted": 6,
    "channel 404": 12,
    "delivery timeout": 4,
    "outage": 6,
}
#: What each kind is, for the table.
MEANINGS: Final = {
    "reset": "all connections of the client are reset (RST)",
    "half-close": "they end in one direction or both (FIN)",
    "stall": "no byte passes, in one direction or both",
    "kill": "the broker gets SIGKILL, and starts again",
    "stop": "the broker is shut down, and starts again",
    "alarm": "the broker is short of memory, and blocks publishers",
    "refused login": "the password is changed, and connections are closed",
    "queue deleted": "an empty queue with a consumer is deleted, and made again",
    "channel 404": "a message is published to an exchange that is not there",
    "delivery timeout": "a handler takes longer than the broker waits for an acknowledgement",
    "outage": "for 3 s every handler fails",
}
#: The shortest and longest time that a kind lasts, in seconds.
_LASTS: Final = {"stall": (0.5, 7.0), "kill": (0.0, 2.0), "stop": (0.0, 2.0), "alarm": (2.0, 4.0)} | {
    "refused login": (2.0, 4.0),
    "queue deleted": (1.0, 3.0),
    "outage": (3.0, 3.0),
}
_DIRECTED: Final = ("half-close", "stall")


@dataclass(frozen=True, slots=True)
class Step:
    """One fault.

    Attributes:
        kind: One of `SHARES`.
        direction: Which bytes it concerns, as for `FaultProxy`.
        seconds: How long it lasts.
        gap: How much time passes before the next fault, as a share of the mean.
    """

    kind: str
    direction: str
    seconds: float
    gap: float


def shares(count: int) -> Counter[str]:
    """Returns how many faults of each kind there are among so many."""
    total = sum(SHARES.values())
    parts = Counter({kind: max(1, share * count // total) for kind, share in SHARES.items()})
    while (missing := count - parts.total()) != 0:
        step = 1 if missing > 0 else -1
        # Those whose share is furthest away in that direction; each kind keeps one.
        kinds = [kind for kind in parts if parts[kind] + step >= 1]
        parts[max(kinds, key=lambda kind: step * (SHARES[kind] * count / total - parts[kind]))] += step
    return parts


def draw(seed: int, count: int) -> list[Step]:
    """Draws the faults. The same arguments give the same ones.

    Args:
        seed: Of the random numbers.
        count: How many. With fewer than there are kinds, some kinds are left out.
    """
    chance = random.Random(seed)
    kinds = [*shares(count).elements()] if count >= len(SHARES) else chance.sample(list(SHARES), count)
    chance.shuffle(kinds)
    steps = []
    for kind in kinds:
        direction = chance.choice(["to_client", "to_broker", "both"]) if kind in _DIRECTED else "both"
        steps.append(Step(kind, direction, chance.uniform(*_LASTS.get(kind, (0.0, 0.0))), chance.uniform(0.5, 1.5)))
    return steps
