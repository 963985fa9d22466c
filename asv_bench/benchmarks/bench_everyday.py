"""Instructions for each message of everyday usage, beside the best usage (`bench_instructions`)."""

from __future__ import annotations

from . import counting
from .workloads import EVERYDAY


class Everyday(counting.Counted):
    """Counts options, many keys and other kinds of handlers, which the main workloads do not have."""

    params = tuple(EVERYDAY)
    pretty_name = "Instructions per message of everyday usage"

    def setup_cache(self) -> dict[str, float]:
        return counting.counted_instructions([list(EVERYDAY)])

    setup_cache.timeout = 1800  # type: ignore[attr-defined] # asv reads it from the function
