"""Instructions for each message, counted by callgrind: they do not drift with the load and heat of the machine.

Compare them between versions of Leveret on one machine and compiler, never between machines.
"""

from __future__ import annotations

from .counting import PROGRAMS, Programs, has_valgrind, instructions
from .workloads import EVERYDAY, GROWTH, WORKLOADS


def _counted(programs: Programs) -> dict[str, float]:
    return instructions(programs=programs) if has_valgrind() else {}


# Each class has a `setup_cache` of its own: asv keeps one result for each function.
class Instructions:
    """The difference between a run and one of twice as many messages, over the messages of the first."""

    params = tuple(WORKLOADS)
    param_names = ("workload",)
    #: By hand, so that kept results stay valid: another number when a workload does something else.
    version = "1"

    def setup_cache(self) -> dict[str, float]:
        return _counted(PROGRAMS)

    setup_cache.timeout = 1800  # type: ignore[attr-defined] # asv reads it from the function

    def setup(self, counts: dict[str, float], workload: str) -> None:
        if workload not in counts:
            reason = f"this version cannot run {workload}" if has_valgrind() else "valgrind is not installed"
            raise NotImplementedError(reason)

    def track_instructions(self, counts: dict[str, float], workload: str) -> float:
        return counts[workload]

    track_instructions.unit = "instructions/message"  # type: ignore[attr-defined]
    track_instructions.pretty_name = "Instructions per message"  # type: ignore[attr-defined]


class Everyday(Instructions):
    """What programs do besides: options, many keys, other handlers."""

    params = tuple(EVERYDAY)

    def setup_cache(self) -> dict[str, float]:
        return _counted([list(EVERYDAY)])

    setup_cache.timeout = 1800  # type: ignore[attr-defined]


class Growth(Instructions):
    """Publishes to more and more queues, and holds more and more messages in an outage."""

    params = tuple(GROWTH)

    def setup_cache(self) -> dict[str, float]:
        return _counted([list(GROWTH)])

    setup_cache.timeout = 1800  # type: ignore[attr-defined]
