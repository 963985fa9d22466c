"""Instructions for each message where there is more of something: queues, or messages that are held in an outage."""

from __future__ import annotations

from .counting import check_counted, counted_instructions
from .workloads import GROWTH


class Growth:
    """Publishes to more and more queues, and holds more and more messages in an outage."""

    params = tuple(GROWTH)
    param_names = ("workload",)
    version = "1"

    def setup_cache(self) -> dict[str, float]:
        return counted_instructions([list(GROWTH)])

    setup_cache.timeout = 1800  # type: ignore[attr-defined] # asv reads it from the function

    def setup(self, counts: dict[str, float], workload: str) -> None:
        check_counted(counts, workload)

    def track_instructions(self, counts: dict[str, float], workload: str) -> float:
        return counts[workload]

    track_instructions.unit = "instructions/message"  # type: ignore[attr-defined]
    track_instructions.pretty_name = "Instructions per message, by how many there are"  # type: ignore[attr-defined]
