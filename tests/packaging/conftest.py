"""The distributions, built once for all tests of them, and the environments that they are installed in."""

from __future__ import annotations

import shutil
import sys
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest
from tests.support.packaging import Built, Environment, run_or_fail
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("packaging")
    # A copy with what builds leave behind, none of which may reach the sdist; but without the egg-info, from which
    # setuptools would take the file list of some earlier build.
    unwanted = shutil.ignore_patterns(".git", ".venv*", ".*_cache", ".hypothesis", ".asv", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=unwanted)
    (folder / "source" / "cext" / "leveret" / "wire" / "buffers.c").write_text("generated\n")
    # Without --sdist or --wheel, `build` makes the wheel from the sdist, with the declared build requirements only.
    command = (sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "source")
    run_or_fail(*command, cwd=folder, variables={"LEVERET_BUILD": "quick"})
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    shutil.rmtree(folder / "source")

    environment = Environment.make(folder)
    environment.install(wheel)
    with tarfile.open(sdist) as archive:
        sdist_names = [member.name.partition("/")[2] for member in archive.getmembers() if member.isfile()]
    with zipfile.ZipFile(wheel) as archive:
        wheel_names = archive.namelist()
        (metadata_name,) = (name for name in wheel_names if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(metadata_name).decode()
    return Built(sdist_names, wheel_names, wheel, metadata, environment)


@pytest.fixture(scope="session")
def author(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What a plugin's author has: the core with its command line, setuptools and pytest."""
    environment = Environment.make(tmp_path_factory.mktemp("author"))
    environment.install(f"{built.wheel_file}[cli]", "pip>=25.1", "pytest>=9", "setuptools>=77.0.1")
    return environment


def copy_of_plugin(name: str, folder: Path) -> Path:
    """Copies a plugin, so that what building it leaves behind is not left here."""
    unwanted = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    return shutil.copytree(ROOT / "plugins" / name, folder / name, ignore=unwanted)


@pytest.fixture(scope="session")
def messaging(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What a user has who wants MessagePack, LZ4 and Zstandard: the core and three plugins."""
    folder = tmp_path_factory.mktemp("messaging")
    environment = Environment.make(folder)
    environment.install(built.wheel_file)
    environment.install(*(copy_of_plugin(f"leveret-{name}", folder) for name in ("msgpack", "lz4", "zstd")))
    return environment
