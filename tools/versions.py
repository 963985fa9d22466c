"""Runs the tests with other Python versions, and with the oldest dependencies that the distributions allow.

    python tools/versions.py pythons [--only VERSION ...] [--tests PATH ...] [-- PYTEST ARGUMENTS]
    python tools/versions.py floors [--tests PATH ...] [-- PYTEST ARGUMENTS]

Each run has an environment of its own in .venvs/. Leveret and its plugins are installed there as wheels, built from a
copy, so neither the tree nor .venv changes. Interpreters are looked for on PATH, in pyenv's folder, and where
tools/debian.sh puts them. Run this program with .venv's Python: its virtualenv makes the environments.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from packaging.utils import NormalizedName

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".venvs"
BIN = Path(sys.executable).parent
PLUGINS = sorted((ROOT / "plugins").glob("leveret-*"))

#: The tests of the compiled modules that need no RabbitMQ; pytest reads their paths from this file.
WITHOUT_RABBITMQ = "@tests/without_rabbitmq.txt"
#: The tests for each version without `--tests`; an empty list stands for all tests.
PYTHONS: dict[str, list[str]] = {
    "3.11": [],
    "3.12": [],
    "3.13": [],
    "3.14": [],
    "3.14t": [WITHOUT_RABBITMQ],
    "3.15": [WITHOUT_RABBITMQ],
}
FLOORS = [WITHOUT_RABBITMQ, "tests/functional/cli", "tests/packaging", "plugins"]
#: Prints an interpreter's version; a free-threaded one gets the suffix "t".
IDENTITY = """
import sys, sysconfig
print("%d.%d" % sys.version_info[:2] + "t" * bool(sysconfig.get_config_var("Py_GIL_DISABLED")))
"""


@dataclass(frozen=True)
class Result:
    name: str
    result: str
    seconds: float
    failed: bool


def interpreters(version: str) -> Iterator[Path]:
    """Yields the paths where an interpreter of this version may be."""
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    # Sorted as text, so not always the newest first; which patch version is used matters little.
    yield from sorted(pyenv.glob(f"versions/{version.removesuffix('t')}.*/bin/python"), reverse=True)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = Path(os.environ.get("LEVERET_CACHE") or caches / "leveret")
    yield cache / f"python-{version}" / "bin" / f"python{version}"


def find(version: str) -> Path | None:
    """Returns an interpreter that runs and has this version: those of pyenv on PATH may fail or have another one."""
    for python in interpreters(version):
        with contextlib.suppress(OSError):
            done = subprocess.run([python, "-c", IDENTITY], capture_output=True, text=True)
            if done.returncode == 0 and done.stdout.strip() == version:
                return python
    return None


def project(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def requirements() -> list[Requirement]:
    """Returns all requirements of the distributions, their extras, their builds and their tests."""
    texts: list[str] = []
    for folder in (ROOT, *PLUGINS):
        data = project(folder)
        texts += data["build-system"]["requires"]
        texts += data["project"]["dependencies"]
        for table in (data["project"].get("optional-dependencies", {}), data.get("dependency-groups", {})):
            texts += [text for group in table.values() for text in group]
    found = [Requirement(text) for text in texts]
    return [each for each in found if canonicalize_name(each.name) != "leveret"]


def floors() -> list[str]:
    """Returns the oldest allowed versions of direct requirements, and the newest of indirect ones.

    Raises:
        SystemExit: A floor cannot be installed: no such version exists, or other requirements exclude it.
    """
    options = ("--quiet", "--resolution", "lowest-direct", "--python", sys.executable, "--no-annotate", "--no-header")
    done = subprocess.run(
        [BIN / "uv", "pip", "compile", *options, "-"],
        input="\n".join(map(str, requirements())),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = {canonicalize_name(each.name): each for each in map(Requirement, done.stdout.splitlines())}
    highest: dict[NormalizedName, Version] = {}
    for requirement in requirements():
        for each in requirement.specifier:
            if each.operator == ">=":
                name = canonicalize_name(requirement.name)
                highest[name] = max(Version(each.version), highest.get(name, Version("0")))
    wrong = [
        f"{name}>={low}: {found[name]}" for name, low in highest.items() if not found[name].specifier.contains(low)
    ]
    if wrong:
        sys.exit(f"these floors cannot be installed; the oldest that can is: {', '.join(wrong)}")
    return [str(each) for each in found.values()]


def sources() -> list[str]:
    """Returns the files that belong to the repository. Builds see no other files."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return [name for name in names if name and (ROOT / name).is_file()]


def build_inputs(names: Sequence[str]) -> list[str]:
    parts = ("cext/", "sdk/", "pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in")
    return [name for name in names if name.startswith(parts) or ("plugins/" in name and "/tests/" not in name)]


def prepare(name: str, python: Path, wanted: list[str]) -> Path:
    """Makes or completes an environment; returns its Python."""
    environment = ENVIRONMENTS / name
    inside = environment / "bin" / "python"
    if not inside.exists():
        shutil.rmtree(environment, ignore_errors=True)
        run(sys.executable, "-m", "virtualenv", "--quiet", "--python", python, environment)
    names = build_inputs(sources())
    contents = hashlib.sha256("\n".join([str(python.resolve()), *wanted]).encode())
    for each in names:
        contents.update(each.encode() + b"\0" + (ROOT / each).read_bytes())
    stamp = environment / ".installed"
    if stamp.exists() and stamp.read_text() == contents.hexdigest():
        return inside
    stamp.unlink(missing_ok=True)
    pip = (inside, "-m", "pip")
    run(*pip, "install", "-qq", "--disable-pip-version-check", *wanted)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "source")
        for each in names:
            (copy / each).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / each, copy / each)
        packages = [copy, *(copy / plugin.relative_to(ROOT) for plugin in PLUGINS)]
        wheels = Path(folder, "wheels")
        # Without isolation, so that a build uses the installed build requirements: with floors, these are floors, too.
        run(*pip, "wheel", "-qq", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, *packages)
        run(*pip, "install", "-qq", "--no-deps", "--force-reinstall", *wheels.glob("*.whl"))
    run(*pip, "check")
    stamp.write_text(contents.hexdigest())
    return inside


def run(*command: object) -> None:
    subprocess.run([str(word) for word in command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test(name: str, python: Path, wanted: list[str], tests: Sequence[str], arguments: Sequence[str]) -> Result:
    """Makes an environment and runs the tests in it. The time of the result includes both."""
    print(f"== {name} ({python}): {' '.join(tests) or 'all tests'}", flush=True)
    started = time.monotonic()
    try:
        inside = prepare(name, python, wanted)
    except subprocess.CalledProcessError as error:
        print(error, flush=True)
        return Result(name, "could not be installed", time.monotonic() - started, True)
    command = [
        inside,
        "-m",
        "pytest",
        "-q",
        "-ra",
        "--no-skips",
        "-n",
        "auto",
        "--maxprocesses",
        "4",
        "--dist",
        "loadfile",
        "--no-loadscope-reorder",
    ]
    environment = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    # Tests that start a program by name get the environment's program.
    environment["PATH"] = f"{inside.parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run([*map(str, command), *tests, *arguments], cwd=ROOT, env=environment)
    result = "passed" if done.returncode == 0 else f"failed (exit code {done.returncode})"
    return Result(name, result, time.monotonic() - started, done.returncode != 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=["pythons", "floors"])
    parser.add_argument("--only", nargs="*", metavar="VERSION", help="these Pythons and no others")
    parser.add_argument("--tests", nargs="*", metavar="PATH", help="these tests and no others")
    # Splits here, because argparse of some Python versions refuses a -- behind options that take several values.
    end = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    arguments = sys.argv[end + 1 :]
    options = parser.parse_args(sys.argv[1:end])
    results = []
    if options.what == "floors":
        results.append(test("floors", Path(sys.executable), floors(), options.tests or FLOORS, arguments))
    else:
        wanted = sorted(set(map(str, requirements())))
        for version in options.only or PYTHONS:
            python = find(version)
            if python is None:
                results.append(Result(version, "not found", 0, False))
            else:
                tests = options.tests or PYTHONS.get(version, [])
                results.append(test(version, python, wanted, tests, arguments))
    print(f"\n{'version':8}  {'seconds':>7}  result")
    for each in results:
        print(f"{each.name:8}  {each.seconds:7.0f}  {each.result}")
    return int(any(each.failed for each in results) or all(each.result == "not found" for each in results))


if __name__ == "__main__":
    sys.exit(main())
