"""Installs what the peers need, under build/compare: a virtual environment, Node's modules, compiled programs.

`MissingError` says why something cannot be installed. The comparison then leaves that peer out, and reports it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from asv_bench.compare.children import ROOT, Program

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

HERE: Final = Path(__file__).parent
DRIVERS: Final = HERE / "drivers"
FOLDER: Final = ROOT / "build" / "compare"
#: Peers that run with this process's Python: they need the Leveret that is measured, or no package.
_IN_THIS_PYTHON: Final = frozenset({"leveret", "ready-made"})
#: The first and last peers of tables; the others stand between them, by name.
_FIRST: Final = ("leveret", "rabbitmq-c")
_LAST: Final = ("ready-made",)
_INSTALL_TIMEOUT: Final = 600.0
#: Where Debian puts the sources of Go's packages.
_GOPATH: Final = Path("/usr/share/gocode")


class MissingError(Exception):
    """Something that a peer needs is not available; the text names it, and says how to get it."""


def driver_files(folder: Path = DRIVERS) -> dict[str, Path]:
    """All drivers by the names of their peers, in the order of the tables."""
    found = {
        path.stem.replace("_", "-"): path
        for path in sorted(folder.iterdir())
        if path.suffix in _STARTERS and not path.stem.startswith("__")
    }
    middle = [name for name in found if name not in (*_FIRST, *_LAST)]
    return {name: found[name] for name in (*_FIRST, *middle, *_LAST) if name in found}


def prepare(name: str, path: Path) -> Program:
    """Installs what a driver needs.

    Raises:
        MissingError: Something is not available.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    return _STARTERS[path.suffix](name, path)


def _python(name: str, path: Path) -> Program:
    python = sys.executable if name in _IN_THIS_PYTHON else str(_virtual_environment())
    return Program((python, "-m", "asv_bench.compare.child", path.stem))


def _virtual_environment() -> Path:
    """Returns the Python of the peers' environment. Makes it when it is missing or the requirements changed."""
    requirements = HERE / "requirements.txt"
    folder = FOLDER / "venv"
    python = folder / "bin" / "python"
    stamp = folder / ".installed"
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    if python.exists() and stamp.exists() and stamp.read_text() == digest:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(folder)], "cannot make a virtual environment")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    try:
        _run([*install, "--requirement", str(requirements)], "pip")
    except MissingError:
        # One by one, so that a package that fails stops no other. Its own driver then reports that it cannot import.
        for line in requirements.read_text().splitlines():
            if line.strip() and not line.startswith("#"):
                _try([*install, line.strip()])
        return python  # without the stamp, so that the next run tries again
    stamp.write_text(digest)
    return python


def _node(name: str, path: Path) -> Program:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        raise MissingError("needs Node.js and npm (Debian: apt-get install nodejs npm)")
    folder = FOLDER / "node"
    manifest = (HERE / "package.json").read_text()
    stamp = folder / ".installed"
    if not stamp.exists() or stamp.read_text() != manifest:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "package.json").write_text(manifest)
        _run([npm, "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts"], "npm", cwd=folder)
        stamp.write_text(manifest)
    return Program((node, str(path)), {"NODE_PATH": str(folder / "node_modules")})


def _c(name: str, path: Path) -> Program:
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise MissingError("needs a C compiler (Debian: apt-get install gcc)")
    program = FOLDER / path.stem
    hint = "needs rabbitmq-c's headers (Debian: apt-get install librabbitmq-dev)"
    _run([compiler, "-O2", "-o", str(program), str(path), "-lrabbitmq"], hint)
    return Program((str(program),))


def _go(name: str, path: Path) -> Program:
    compiler = shutil.which("go")
    library = _GOPATH / "src/github.com/rabbitmq/amqp091-go"
    if compiler is None or not library.exists():
        raise MissingError(
            "needs Go and amqp091-go (Debian: apt-get install golang-go golang-github-rabbitmq-amqp091-go-dev)"
        )
    # The library does not export its version.
    version = re.search(r'buildVersion\s*=\s*"([^"]+)"', (library / "connection.go").read_text())
    program = FOLDER / path.stem
    flags = f"-X main.libraryVersion={version[1]}" if version else ""
    _run(
        [compiler, "build", "-ldflags", flags, "-o", str(program), str(path)],
        "go build",
        environment={"GOPATH": str(_GOPATH), "GO111MODULE": "off", "GOCACHE": str(FOLDER / "go"), "GOFLAGS": ""},
    )
    return Program((str(program),))


#: The functions that prepare a driver, by the suffix of its file.
_STARTERS: Final[Mapping[str, Callable[[str, Path], Program]]] = {".py": _python, ".js": _node, ".c": _c, ".go": _go}


def _run(command: Sequence[str], what: str, cwd: Path = ROOT, environment: Mapping[str, str] | None = None) -> None:
    done = _try(command, cwd, environment)
    if done is not None:
        raise MissingError(f"{what}: {done}")


def _try(command: Sequence[str], cwd: Path = ROOT, environment: Mapping[str, str] | None = None) -> str | None:
    """Runs a command; returns why it failed, or None."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INSTALL_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)[:300]
    if done.returncode == 0:
        return None
    said = [line.strip() for line in f"{done.stdout}\n{done.stderr}".splitlines()]
    # The first line with the word "error" names the cause; later lines are mostly advice.
    errors = [line for line in said if "error" in line.lower()] or [line for line in said if line]
    return (errors[0] if errors else f"status {done.returncode}")[:300]
