"""The `leveret` command: benchmarks, demo, embedded broker, running apps, and plugins.

This package may use all other packages; no other package uses it, nor click and rich, which the extra `cli` installs.
The modules of a command are imported when it runs, so that `leveret --help` is quick. Messages of `bench` and `demo` go
through an ordinary `leveret.Client`, on a `Stage` of their own.
"""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command. Without the extra `cli` it prints how to install it and exits with status 2."""
    missing = [name for name in ("click", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"leveret needs {' and '.join(missing)}; run: pip install 'leveret[cli]'", file=sys.stderr)
        sys.exit(2)
    from leveret.cli.app import app

    app(prog_name="leveret")
