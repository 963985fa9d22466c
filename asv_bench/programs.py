"""Shared by the programs in this folder: options that take lists, console, progress, verdict, exit status.

Each program runs as a module, from the repository's folder: `python -m asv_bench.costs`, or `make costs`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Columns of tables that go to a file.
WIDTH: Final = 140


def choose(given: str | None, known: Sequence[str], what: str) -> list[str]:
    """Reads a comma-separated list of names, and returns them in the order of the known ones.

    Args:
        given: The list; None for all names.
        known: All names.
        what: What the names are, for the error.

    Raises:
        SystemExit: A name is not known. The text names it.
    """
    if given is None:
        return list(known)
    names = [name.strip() for name in given.split(",") if name.strip()]
    unknown = [name for name in names if name not in known]
    if unknown or not names:
        raise SystemExit(f"there is no {what} {unknown[0] if unknown else given!r}; there are {', '.join(known)}")
    return [name for name in known if name in names]


def read_sizes(given: str | None) -> list[int] | None:
    """Reads a comma-separated list of sizes in bytes; the suffixes `k` and `m` stand for KiB and MiB.

    Raises:
        SystemExit: A word is not a size. The text names it.
    """
    if given is None:
        return None
    sizes = []
    for word in given.split(","):
        digits = word.strip().lower()
        factor = {"k": 1024, "m": 1024 * 1024}.get(digits[-1:], 1)
        digits = digits.rstrip("km") if factor > 1 else digits
        if not digits.isdigit() or not 1 <= int(digits) * factor <= 64 * 1024 * 1024:
            raise SystemExit(f"{word!r} is no size: bytes from 1 to 64m, such as 64, 1k or 1m")
        sizes.append(int(digits) * factor)
    return list(dict.fromkeys(sizes))


def facts(broker: str, clients: str, rounds: int, scale: float = 1.0) -> dict[str, str]:
    """Returns where and how a program measured, by name.

    Args:
        broker: The broker's product and version.
        clients: The clients' names and versions.
        rounds: Rounds that are counted.
        scale: Factor of all message counts.
    """
    processor = ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                processor = f", {line.partition(':')[2].strip()}"
                break
    scaled = "" if scale == 1 else f", message counts x {scale:g}"
    return {
        "Broker": f"{broker}, on the same machine",
        "Machine": f"{os.cpu_count()} CPUs{processor}, {platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
        "Clients": clients,
        "Figures": f"medians of {rounds} rounds after a warm-up{scaled}",
        "Date": datetime.now(UTC).date().isoformat(),
    }


def resident_mib(pid: int | str = "self") -> float:
    """Returns the resident memory of a process; without /proc, the peak of this process."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def screen() -> Console:
    """Makes the console; a file or pipe has `WIDTH` columns."""
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    return console


def progress_bars(console: Console, *, remaining: bool = False) -> Progress:
    """Makes progress bars, which are drawn only when the program asks for it.

    A thread that draws would share the machine with what is measured.

    Args:
        console: Where to draw.
        remaining: Whether the bars estimate the time that remains.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, *([TimeRemainingColumn()] if remaining else []), console=console, auto_refresh=False)


def advance(bars: Progress) -> Callable[[], None]:
    """Returns a function that advances and draws the first bar."""

    def one_more() -> None:
        bars.update(bars.task_ids[0], advance=1, refresh=True)

    return one_more


def judge(console: Console, problems: Sequence[str], all_well: str) -> int:
    """Prints the problems, or one line when there are none.

    Returns:
        The exit status: 1 when there are problems, otherwise 0.
    """
    for problem in problems:
        console.print(problem, style="red", markup=False, soft_wrap=True)
    if not problems:
        console.print(all_well, soft_wrap=True)
    return 1 if problems else 0


def versions(*distributions: str) -> str:
    """Returns the names and versions of installed distributions as one text."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in distributions)


def execute(main: Callable[[Sequence[str]], int]) -> NoReturn:
    """Runs a program and ends this process with its status; Ctrl-C ends it with 130.

    Args:
        main: Takes the arguments of the command line, and returns the exit status.
    """
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
