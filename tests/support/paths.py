"""Where the checkout is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


def path_for(folder: Path) -> str:
    # A unix socket's path has some 100 bytes at the most; pytest's folders may be longer.
    return os.path.relpath(folder / "b")
