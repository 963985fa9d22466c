"""What the tests of distributions share: commands that see nothing of the checkout, and environments to run them in."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from tests.support.paths import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

SOURCES = ROOT / "cext" / "leveret"
EXTENSIONS = sorted(str(path.relative_to(SOURCES).with_suffix("")) for path in SOURCES.rglob("*.pyx"))


def run(
    *command: object, cwd: Path, variables: Mapping[str, str] = MappingProxyType({})
) -> subprocess.CompletedProcess[str]:
    """Runs a command that sees nothing of this checkout or its environment, but these variables."""
    unwanted = ("PYTHON", "VIRTUAL_ENV", "LEVERET_", "PYTEST_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    return subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        timeout=600,
    )


def run_or_fail(*command: object, cwd: Path, variables: Mapping[str, str] = MappingProxyType({})) -> str:
    """Runs a command as `run` does, and returns what it printed."""
    done = run(*command, cwd=cwd, variables=variables)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Environment:
    """A virtual environment outside the checkout."""

    folder: Path  # to work in; the environment itself lies below it

    @classmethod
    def make(cls, folder: Path) -> Environment:
        run_or_fail(sys.executable, "-m", "virtualenv", "--quiet", folder / "venv", cwd=folder)
        return cls(folder)

    @property
    def programs(self) -> Path:
        return self.folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")

    @property
    def python(self) -> Path:
        return self.programs / "python"

    def __call__(self, program: str, *arguments: object, cwd: Path | None = None) -> str:
        """Runs one of its programs, which must succeed; returns what it printed."""
        return run_or_fail(self.programs / program, *arguments, cwd=cwd or self.folder)

    def install(self, *arguments: object, cwd: Path | None = None) -> None:
        self("python", "-m", "pip", "install", "--quiet", "--no-compile", *arguments, cwd=cwd)

    def prints(self, program: str) -> str:
        return self("python", "-I", "-c", program)


@dataclass(frozen=True)
class Built:
    """The distributions, and an environment with the core and nothing else."""

    sdist: list[str]  # names below its top folder
    wheel: list[str]
    wheel_file: Path
    metadata: str
    environment: Environment
