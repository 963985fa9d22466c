"""The `leveret` command. It needs the extra `cli`, which is click and rich; nothing else in Leveret does."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command; without the extra `cli` it says how to install it, and the exit status is 2."""
    missing = [name for name in ("click", "rich") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"leveret: {' and '.join(missing)} not installed; run: pip install 'leveret[cli]'", file=sys.stderr)
        sys.exit(2)
    from leveret.cli.app import app

    app(prog_name="leveret")
