"""Instructions for each message of everyday usage, beside the best usage (`bench_instructions`)."""

from __future__ import annotations

from .counting import check_counted, counted_instructions
from .workloads import EVERYDAY


class Everyday:
    """As `bench_instructions.Instructions`, for what programs do besides: options, many keys, other handlers."""

    params = tuple(EVERYDAY)
    param_names = ("workload",)
    version = "1"

    def setup_cache(self) -> dict[str, float]:
        return counted_instructions([list(EVERYDAY)])

    setup_cache.timeout = 1800  # type: ignore[attr-defined] # asv reads it from the function

    def setup(self, counts: dict[str, float], workload: str) -> None:
        check_counted(counts, workload)

    def track_instructions(self, counts: dict[str, float], workload: str) -> float:
        return counts[workload]

    track_instructions.unit = "instructions/message"  # type: ignore[attr-defined]
    track_instructions.pretty_name = "Instructions per message of everyday usage"  # type: ignore[attr-defined]
