"""What programs here ask git about this repository."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
#: What is built and installed: a commit that changes nothing here costs what the one before it costs.
SOURCES: Final = ("sdk", "cext", "setup.py", "pyproject.toml")


def git(*arguments: str) -> str:
    """Runs git at the root, and returns what it printed.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def commit_of(name: str) -> str | None:
    """Returns the hash of a commit, or None when this clone does not have it."""
    try:
        return git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
    except subprocess.CalledProcessError:
        return None


def changed(before: str, after: str | None = None) -> list[str]:
    """Lists the files in `SOURCES` that differ between two commits, or between a commit and the working tree.

    Files that git does not know and does not ignore count as changed in the working tree.
    """
    found = git("diff", "--name-only", before, *([after] if after else []), "--", *SOURCES).splitlines()
    if after is None:
        found += git("ls-files", "--others", "--exclude-standard", "--", *SOURCES).splitlines()
    return found
