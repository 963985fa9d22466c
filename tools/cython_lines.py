"""A plugin of coverage.py for `make coverage`: Cython's own, which looks for the generated C beside the sources.

Here the C lies in build/trace/cython, so that the tree stays clean and other builds do not find it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from Cython.Coverage import Plugin

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "cext"
GENERATED = ROOT / "build" / "trace" / "cython" / "cext"


class Lines(Plugin):  # type: ignore[misc] # Cython has no types
    """Cython's plugin, told where the generated C is."""

    def _find_source_files(self, filename: str) -> tuple[str | None, str | None]:
        path = Path(filename)
        if path.is_relative_to(SOURCES):
            generated = GENERATED / path.relative_to(SOURCES).with_suffix(".c")
            return (str(generated) if generated.exists() else None), None
        return None, None


def coverage_init(registry: Any, options: dict[str, str]) -> None:
    """Called by coverage.py.

    Args:
        registry: Where plugins are added.
        options: Those of this plugin in the configuration; it has none.
    """
    lines = Lines()
    registry.add_configurer(lines)
    registry.add_file_tracer(lines)
