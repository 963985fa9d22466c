"""What users get: a wheel built from the sdist, installed where nothing of the checkout is in reach."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from dataclasses import dataclass
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTENSIONS = ["_batching", "_buffers", "_framing"]


def run(*command: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command that sees nothing of this checkout or its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=600
    )


def run_or_fail(*command: object, cwd: Path) -> str:
    done = run(*command, cwd=cwd)
    assert done.returncode == 0, f"{command} failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout.strip()


@dataclass(frozen=True)
class Built:
    """The distributions and the environment they were installed in."""

    sdist: list[str]  # names below its top folder
    wheel: list[str]
    metadata: str
    python: Path
    folder: Path  # outside the checkout

    def python_prints(self, program: str) -> str:
        return run_or_fail(self.python, "-I", "-c", program, cwd=self.folder)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("packaging")
    # A copy with what builds leave behind, none of which may reach the sdist; but without the egg-info, from which
    # setuptools would take the file list of some earlier build.
    unwanted = shutil.ignore_patterns(".git", ".venv", ".*_cache", ".hypothesis", ".asv", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=unwanted)
    (folder / "source" / "cext" / "leveret" / "_buffers.c").write_text("generated\n")
    # Without --sdist or --wheel, `build` makes the wheel from the sdist, with the declared build requirements only.
    run_or_fail(sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "source", cwd=folder)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    shutil.rmtree(folder / "source")

    run_or_fail(sys.executable, "-m", "virtualenv", "--quiet", folder / "venv", cwd=folder)
    bin_folder = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    run_or_fail(bin_folder / "python", "-m", "pip", "install", "--quiet", wheel, cwd=folder)
    with tarfile.open(sdist) as archive:
        sdist_names = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    with zipfile.ZipFile(wheel) as archive:
        wheel_names = archive.namelist()
        (metadata_name,) = (name for name in wheel_names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(metadata_name).decode()
    return Built(sdist_names, wheel_names, metadata, bin_folder / "python", folder)


def test_sdist_carries_sources_and_nothing_generated(built: Built) -> None:
    sources = {f"cext/leveret/{name}{suffix}" for name in EXTENSIONS for suffix in (".pyx", ".pxd")}
    assert sources | {"cext/leveret/__init__.pxd", "setup.py", "LICENSE", "tests/conftest.py"} <= set(built.sdist)
    assert [name for name in built.sdist if name.endswith((".c", ".so", ".pyd", ".pyc"))] == []
    assert [name for name in built.sdist if name.startswith(("build/", ".venv/"))] == []


def test_wheel_carries_types_and_no_sources_of_extensions(built: Built) -> None:
    assert {"leveret/py.typed", *(f"leveret/{name}.pyi" for name in EXTENSIONS)} <= set(built.wheel)
    assert [name for name in built.wheel if name.endswith((".pyx", ".pxd", ".c", ".h", ".pyc"))] == []
    tops = {name.split("/")[0] for name in built.wheel}
    assert tops == {"leveret", f"leveret-{PROJECT['version']}.dist-info"}


def test_metadata_names_requirements_by_name_only(built: Built) -> None:
    metadata = HeaderParser().parsestr(built.metadata)
    requirements = metadata.get_all("Requires-Dist")
    assert {re.split(r"[^\w-]", line)[0] for line in requirements} == {
        "click", "msgspec", "pamqp", "pluggy", "rich", "uvloop",
    }  # fmt: skip
    assert [line for line in requirements if "@" in line or "file:" in line] == []
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"


def test_installed_package_works_when_outside_the_checkout(built: Built) -> None:
    modules = ", ".join(f"leveret.{name}" for name in EXTENSIONS)
    printed = built.python_prints(f"import leveret, {modules}; print(leveret.__file__)")
    assert Path(printed).is_relative_to(built.folder / "venv")


def test_version_is_one_everywhere(built: Built) -> None:
    version = PROJECT["version"]
    assert built.python_prints("import leveret; print(leveret.__version__)") == version
    releases = re.findall(r"^## \[(?!Unreleased)([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == version


@pytest.mark.parametrize("module", ["click", "pluggy", "rich"])
def test_import_leveret_does_not_import(built: Built, module: str) -> None:
    assert built.python_prints(f"import leveret, sys; print({module!r} in sys.modules)") == "False"


def test_command_says_what_to_install_when_its_extra_is_missing(built: Built) -> None:
    done = run(built.python.with_name("leveret"), "--version", cwd=built.folder)
    assert done.returncode != 0
    assert "leveret[cli]" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
