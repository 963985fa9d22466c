"""A plugin of coverage.py for `make coverage`: it adapts Cython's own plugin.

Cython's plugin looks for generated C beside the sources. Here the C lies in build/trace/cython, so that the tree stays
clean and other builds do not find it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from Cython.Coverage import Plugin

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "cext"
GENERATED = ROOT / "build" / "trace" / "cython" / "cext"


class Lines(Plugin):
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
        registry: The registry to add the plugin to.
        options: The plugin's options in the configuration; there are none.
    """
    lines = Lines()
    registry.add_configurer(lines)
    registry.add_file_tracer(lines)
