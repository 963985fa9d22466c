"""Instructions for each message, counted by callgrind: they do not drift with the load and heat of the machine.

Compare them between versions of Leveret on one machine and compiler, never between machines.
"""

from __future__ import annotations

from . import counting
from .workloads import WORKLOADS


class Instructions(counting.Counted):
    """The difference between a run and one of twice as many messages, over the messages of the first."""

    params = tuple(WORKLOADS)
    pretty_name = "Instructions per message"

    def setup_cache(self) -> dict[str, float]:
        return counting.counted_instructions()

    setup_cache.timeout = 1800  # type: ignore[attr-defined] # asv reads it from the function
