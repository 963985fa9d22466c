"""Instructions for each message where there is more of something: queues, consumers, or messages held in an outage."""

from __future__ import annotations

from . import counting
from .workloads import GROWTH


class Growth(counting.Counted):
    """Publishes to more and more queues, holds more and more messages in an outage, has more and more consumers."""

    params = tuple(GROWTH)
    pretty_name = "Instructions per message, by how many there are"

    def setup_cache(self) -> dict[str, float]:
        return counting.counted_instructions([list(GROWTH)])

    setup_cache.timeout = 1800  # type: ignore[attr-defined] # asv reads it from the function
