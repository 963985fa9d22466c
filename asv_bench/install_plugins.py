"""Installs the plugins of a checkout into this environment, in place of those of another commit: asv calls it.

python install_plugins.py CHECKOUT
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path


def pip(*arguments: str) -> None:
    # pip takes no constraints for builds together with --no-build-isolation.
    variables = {key: value for key, value in os.environ.items() if key != "PIP_BUILD_CONSTRAINT"}
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    subprocess.run(command, env=variables, check=True)


def main() -> None:
    before = sorted({name for each in distributions() if (name := each.metadata["Name"]).startswith("leveret-")})
    if before:
        pip("uninstall", "--yes", *before)
    plugins = sorted(map(str, (Path(sys.argv[1]) / "plugins").glob("leveret-*")))
    if plugins:
        # One build tool for all, instead of downloading one for each.
        pip("install", "setuptools>=77.0.1")
        pip("install", "--no-build-isolation", *plugins)


if __name__ == "__main__":
    main()
