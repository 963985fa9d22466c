"""The cost of importing Leveret, and of a script that publishes one message, each time in a new interpreter."""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys

from .counting import IMPORT, environment, has_valgrind, import_instructions, instructions_of
from .first_publish import PROGRAMS
from .former import need
from .support import Broker, runner

#: How often a script is run to measure its CPU.
RUNS = 5


def timeraw_import_leveret() -> str:
    return "import leveret"


def timeraw_import_and_connect() -> str:
    return IMPORT


def track_import_instructions() -> float:
    """Millions of instructions of importing what a program that connects needs, counted by callgrind."""
    if not has_valgrind():
        raise NotImplementedError("valgrind is not installed")
    return round(import_instructions() / 1e6, 2)


timeraw_import_leveret.operation = "import"  # type: ignore[attr-defined] # asv reads these from the functions
timeraw_import_and_connect.operation = "import"  # type: ignore[attr-defined]
track_import_instructions.unit = "million instructions"  # type: ignore[attr-defined]
track_import_instructions.pretty_name = "Import"  # type: ignore[attr-defined]
track_import_instructions.version = "1"  # type: ignore[attr-defined]
track_import_instructions.timeout = 600  # type: ignore[attr-defined]


class FirstPublish:
    """A script from the start of its process to its end: one message, confirmed. Its peers are other clients' scripts.

    All installed plugins are there, and none is used.
    """

    params = tuple(PROGRAMS)
    param_names = ("client",)
    timeout = 600

    def setup(self, client: str) -> None:
        if importlib.util.find_spec(client) is None:
            raise NotImplementedError(f"{client} is not installed")
        leveret = need("leveret")
        if not hasattr(leveret, "connect"):
            raise NotImplementedError("this version has no leveret.connect")
        self.broker = Broker()
        with runner() as loop:
            loop.run(self._declare(leveret))

    async def _declare(self, leveret: object) -> None:
        async with leveret.connect(self.broker.url) as client:  # type: ignore[attr-defined]
            await client.declare(leveret.Topology().queue("q"))  # type: ignore[attr-defined]

    def teardown(self, client: str) -> None:
        self.broker.close()

    def track_instructions(self, client: str) -> float:
        """Millions of instructions, counted by callgrind."""
        if not has_valgrind():
            raise NotImplementedError("valgrind is not installed")
        return round(instructions_of("-c", PROGRAMS[client], self.broker.url) / 1e6, 1)

    def track_cpu(self, client: str) -> float:
        """Milliseconds of CPU, the kernel's included: the median of some runs after one that writes bytecode files."""
        command = [sys.executable, "-c", PROGRAMS[client], self.broker.url]
        return round(statistics.median([_cpu(command) for _ in range(RUNS + 1)][1:]) * 1000, 1)

    track_instructions.unit = "million instructions"  # type: ignore[attr-defined]
    track_cpu.unit = "ms of CPU"  # type: ignore[attr-defined]


def _cpu(command: list[str]) -> float:
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"the script failed with status {process.returncode}")
    return used.ru_utime + used.ru_stime
