"""What users get: a wheel built from the sdist, installed where nothing of the checkout is in reach."""

from __future__ import annotations

import re
import tomllib
from email.parser import HeaderParser
from pathlib import Path

import pytest
from tests.support.packaging import EXTENSIONS, Built, run
from tests.support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_sdist_carries_sources_and_nothing_generated(built: Built) -> None:
    sources = {f"cext/leveret/{name}{suffix}" for name in EXTENSIONS for suffix in (".pyx", ".pxd")}
    assert sources | {"cext/leveret/__init__.pxd", "setup.py", "LICENSE", "tests/conftest.py"} <= set(built.sdist)
    by_hand = {
        f"asv_bench/{name}.c" for name in ("benchmarks/callgrind", "benchmarks/memory", "compare/drivers/rabbitmq_c")
    }
    assert {name for name in built.sdist if name.endswith((".c", ".so", ".pyd", ".pyc"))} == by_hand
    assert [name for name in built.sdist if name.startswith(("build/", ".venv/"))] == []


def test_wheel_carries_types_and_no_sources_of_extensions(built: Built) -> None:
    assert {"leveret/py.typed", *(f"leveret/{name}.pyi" for name in EXTENSIONS)} <= set(built.wheel)
    assert [name for name in built.wheel if name.endswith((".pyx", ".pxd", ".c", ".h", ".pyc"))] == []
    tops = {name.split("/")[0] for name in built.wheel}
    assert tops == {"leveret", f"leveret-{PROJECT['version']}.dist-info"}


def test_metadata_names_requirements_by_name_only(built: Built) -> None:
    metadata = HeaderParser().parsestr(built.metadata)
    requirements = metadata.get_all("Requires-Dist", [])
    assert {re.split(r"[^\w-]", line)[0] for line in requirements} == {
        "click", "msgspec", "pamqp", "pluggy", "pytest", "rich", "uvloop",
    }  # fmt: skip
    assert [line for line in requirements if "@" in line or "file:" in line] == []
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"


def test_installed_package_works_when_outside_the_checkout(built: Built) -> None:
    modules = ", ".join(f"leveret.{name.replace('/', '.')}" for name in EXTENSIONS)
    printed = built.environment.prints(f"import leveret, {modules}; print(leveret.__file__)")
    assert Path(printed).is_relative_to(built.environment.folder / "venv")


def test_version_is_one_everywhere(built: Built) -> None:
    version = PROJECT["version"]
    assert built.environment.prints("import leveret; print(leveret.__version__)") == version
    releases = re.findall(r"^## \[(?!Unreleased)([^]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert releases[0] == version


@pytest.mark.parametrize("module", ["click", "pluggy", "rich"])
def test_import_leveret_does_not_import(built: Built, module: str) -> None:
    assert built.environment.prints(f"import leveret, sys; print({module!r} in sys.modules)") == "False"


def test_command_says_what_to_install_when_its_extra_is_missing(built: Built) -> None:
    done = run(built.environment.programs / "leveret", "--version", cwd=built.environment.folder)
    assert done.returncode != 0
    assert "leveret[cli]" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
