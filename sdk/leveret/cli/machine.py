"""The machine that figures were measured on, and the versions that they depend on."""

from __future__ import annotations

import contextlib
import os
import platform
from importlib import metadata
from typing import Annotated

import msgspec

from leveret import __version__
from leveret.cli.measure import cpu_count

__all__ = ["Machine", "this_machine"]


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """A machine, and the versions on it.

    Attributes:
        cpu: The processor's name.
        cpu_count: How many CPUs the process may use.
        memory_bytes: Memory of the machine; None where the system does not tell.
        system: The operating system and the architecture.
        python: The interpreter and its version.
        event_loop: The event loop that `leveret.run` uses.
        leveret: The version of Leveret.
    """

    cpu: str
    cpu_count: Annotated[int, msgspec.Meta(ge=1, le=2**20)]
    memory_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**60)] | None
    system: str
    python: str
    event_loop: str
    leveret: str

    @property
    def hardware(self) -> str:
        """The processor, its cores and the memory, for a reader."""
        memory = "" if self.memory_bytes is None else f", {self.memory_bytes / 2**30:.1f} GiB RAM"
        return f"{self.cpu}, {self.cpu_count} CPU{'' if self.cpu_count == 1 else 's'}{memory}, {self.system}"

    @property
    def software(self) -> str:
        """The versions, for a reader."""
        return f"{self.python}, leveret {self.leveret}, {self.event_loop}"


def this_machine() -> Machine:
    """Returns the machine that runs this process."""
    return Machine(
        cpu=_cpu(),
        cpu_count=cpu_count(),
        memory_bytes=_memory(),
        system=f"{platform.system()} {platform.machine()}",
        python=f"{platform.python_implementation()} {platform.python_version()}",
        event_loop=_event_loop(),
        leveret=__version__,
    )


def _cpu() -> str:
    # Linux on x86 has the name here; `platform` has none on Linux.
    with contextlib.suppress(OSError), open("/proc/cpuinfo", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return " ".join(line.partition(":")[2].split())
    return platform.processor() or "unknown processor"


def _memory() -> int | None:
    with contextlib.suppress(OSError, ValueError, AttributeError):  # what the system does not have
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _event_loop() -> str:
    try:
        import uvloop
    except ImportError:
        return "asyncio (uvloop cannot be imported)"
    return f"uvloop {metadata.version(uvloop.__name__)}"
