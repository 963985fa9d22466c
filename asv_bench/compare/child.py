"""Runs a Python driver, as a process of its own: `python -m asv_bench.compare.child DRIVER describe|run ...`.

The protocol is in `asv_bench.compare.drivers`.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from asv_bench.compare.job import Job, Task

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType


def describe(driver: ModuleType) -> dict[str, Any]:
    """Returns the description of a driver."""
    return {
        "event": "described",
        "title": driver.TITLE,
        "version": ", ".join(f"{name} {version(name)}" for name in driver.DISTRIBUTIONS),
        "entries": [
            {"kind": entry.kind, "how": entry.how, "share": entry.share, "cases": entry.cases}
            for entry in driver.ENTRIES
        ],
        "not_possible": driver.NOT_POSSIBLE,
    }


def run(driver: ModuleType, task: Task) -> dict[str, Any]:
    """Runs one entry, first to warm up and then to measure, on one connection.

    Raises:
        LookupError: The driver has no such entry.
    """
    found = [entry.function for entry in driver.ENTRIES if (entry.kind, entry.how) == (task.kind, task.how)]
    if not found:
        raise LookupError(f"{driver.TITLE} has no entry {task.kind!r}, {task.how!r}")
    warm_up, job = task.warm_up(), task.job()
    jobs = [warm_up, job] if warm_up.count else [job]
    if hasattr(driver, "run"):
        driver.run(_run_async(driver, found[0], task, jobs))
    else:
        with driver.connect(task.address) as connection:
            for part in jobs:
                found[0](connection, part)
    if job.figures is None:
        raise RuntimeError("the driver measured nothing")
    return {"event": "measured", **job.figures}


async def _run_async(driver: ModuleType, function: Any, task: Task, jobs: list[Job]) -> None:
    async with driver.connect(task.address) as connection:
        for part in jobs:
            await function(connection, part)


def main(arguments: Sequence[str]) -> int:
    """Runs the command of the arguments, and prints its outcome.

    Returns:
        The exit status.
    """
    name, command, *rest = arguments
    try:
        driver = importlib.import_module(f"asv_bench.compare.drivers.{name}")
        outcome = describe(driver) if command == "describe" else run(driver, Task.parse(rest))
    except Exception as error:
        outcome = {"event": "failed", "reason": _reason(error)}
    print(json.dumps(outcome), flush=True)
    return 1 if outcome["event"] == "failed" else 0


def _reason(error: BaseException) -> str:
    # The first exception of a group is the cause; the others mostly follow from it.
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:500]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
