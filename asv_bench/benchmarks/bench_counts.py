"""Python calls, allocations and copied bytes for each message; they are the same on each run."""

from __future__ import annotations

from .counting import calls, memory
from .workloads import WORKLOADS


class Counts:
    """The difference between a run and one of twice as many messages, over the messages of the first."""

    params = tuple(WORKLOADS)
    param_names = ("workload",)
    #: By hand, so that kept results stay valid: another number when a workload does something else.
    version = "1"

    def setup_cache(self) -> dict[str, dict[str, float]]:
        called = calls()
        return {name: {"calls": called[name], **counts} for name, counts in memory().items()}

    setup_cache.timeout = 1800  # type: ignore[attr-defined] # asv reads it from the function

    def setup(self, counts: dict[str, dict[str, float]], workload: str) -> None:
        if workload not in counts:
            raise NotImplementedError(f"this version cannot run {workload}")

    def track_calls(self, counts: dict[str, dict[str, float]], workload: str) -> float:
        return counts[workload]["calls"]

    def track_allocations(self, counts: dict[str, dict[str, float]], workload: str) -> float:
        return counts[workload]["allocations"]

    def track_copied_bytes(self, counts: dict[str, dict[str, float]], workload: str) -> float:
        return counts[workload]["copied_bytes"]

    track_calls.unit = "calls/message"  # type: ignore[attr-defined] # asv reads these from the functions
    track_calls.pretty_name = "Python functions called per message"  # type: ignore[attr-defined]
    track_allocations.unit = "allocations/message"  # type: ignore[attr-defined]
    track_allocations.pretty_name = "Allocations per message"  # type: ignore[attr-defined]
    track_copied_bytes.unit = "bytes/message"  # type: ignore[attr-defined]
    track_copied_bytes.pretty_name = "Bytes copied per message"  # type: ignore[attr-defined]
