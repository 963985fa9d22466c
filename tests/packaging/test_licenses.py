"""Every distribution carries the licence: its folder and its wheel."""

from __future__ import annotations

import shutil
import sys
import zipfile
from typing import TYPE_CHECKING

import pytest
from tests.support.packaging import run_or_fail
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.packaging import Built

LICENSE = (ROOT / "LICENSE").read_text()
PLUGINS = sorted(path.parent.name for path in ROOT.glob("plugins/leveret-*/pyproject.toml"))


def test_core_carries_its_licence(built: Built) -> None:
    assert "LICENSE" in built.sdist
    with zipfile.ZipFile(built.wheel_file) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        assert archive.read(name).decode() == LICENSE


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugin_carries_its_licence(plugin: str, tmp_path: Path) -> None:
    unwanted = shutil.ignore_patterns("build", "*.egg-info", "__pycache__", "tests")
    source = shutil.copytree(ROOT / "plugins" / plugin, tmp_path / plugin, ignore=unwanted)
    # setuptools alone builds it, as `build` calls it; the wheels that users get are built in isolation, and the same.
    program = "import setuptools.build_meta as backend; backend.build_wheel('dist')"
    run_or_fail(sys.executable, "-c", program, cwd=source)
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE"))
        assert archive.read(name).decode() == LICENSE
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(metadata).decode()
    assert "License-Expression: MIT\n" in text
    assert "License-File: LICENSE\n" in text
