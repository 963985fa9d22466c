"""What the tests of settings share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    names = {name: str(tmp_path / name) for name in ("cafile", "certfile", "keyfile")}
    for name in names.values():
        Path(name).touch()
    return names
