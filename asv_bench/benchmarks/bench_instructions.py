"""Instructions for each message, counted by callgrind: they do not drift with the load and heat of the machine.

Compare them between versions of Leveret on one machine and compiler, never between machines.
"""

from __future__ import annotations

from .counting import check_counted, counted_instructions
from .workloads import WORKLOADS


class Instructions:
    """The difference between a run and one of twice as many messages, over the messages of the first."""

    params = tuple(WORKLOADS)
    param_names = ("workload",)
    #: By hand, so that kept results stay valid: another number when a workload does something else.
    version = "1"

    def setup_cache(self) -> dict[str, float]:
        return counted_instructions()

    setup_cache.timeout = 1800  # type: ignore[attr-defined] # asv reads it from the function

    def setup(self, counts: dict[str, float], workload: str) -> None:
        check_counted(counts, workload)

    def track_instructions(self, counts: dict[str, float], workload: str) -> float:
        return counts[workload]

    track_instructions.unit = "instructions/message"  # type: ignore[attr-defined]
    track_instructions.pretty_name = "Instructions per message"  # type: ignore[attr-defined]
