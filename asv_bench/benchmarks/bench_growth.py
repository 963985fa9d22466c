"""Instructions for each message where there is more of something: queues, or messages that are held in an outage."""

from __future__ import annotations

from .counting import has_valgrind, instructions
from .workloads import GROWTH


class Growth:
    """As `bench_instructions.Instructions`; the cost should be the same for each number."""

    params = tuple(GROWTH)
    param_names = ("workload",)
    version = "1"

    def setup_cache(self) -> dict[str, float]:
        return instructions(programs=[list(GROWTH)]) if has_valgrind() else {}

    setup_cache.timeout = 1800  # type: ignore[attr-defined] # asv reads it from the function

    def setup(self, counts: dict[str, float], workload: str) -> None:
        if workload not in counts:
            reason = f"this version cannot run {workload}" if has_valgrind() else "valgrind is not installed"
            raise NotImplementedError(reason)

    def track_instructions(self, counts: dict[str, float], workload: str) -> float:
        return counts[workload]

    track_instructions.unit = "instructions/message"  # type: ignore[attr-defined]
    track_instructions.pretty_name = "Instructions per message, by how many there are"  # type: ignore[attr-defined]
