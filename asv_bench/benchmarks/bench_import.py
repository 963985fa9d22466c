"""The cost of importing Leveret, each time in a new interpreter."""

from __future__ import annotations

from .counting import IMPORT, has_valgrind, import_instructions


def timeraw_import_leveret() -> str:
    return "import leveret"


def timeraw_import_and_connect() -> str:
    return IMPORT


def track_import_instructions() -> float:
    """Millions of instructions of importing what a program that connects needs, counted by callgrind."""
    if not has_valgrind():
        raise NotImplementedError("valgrind is not installed")
    return round(import_instructions() / 1e6, 2)


timeraw_import_leveret.operation = "import"  # type: ignore[attr-defined] # asv reads these from the functions
timeraw_import_and_connect.operation = "import"  # type: ignore[attr-defined]
track_import_instructions.unit = "million instructions"  # type: ignore[attr-defined]
track_import_instructions.pretty_name = "Import"  # type: ignore[attr-defined]
track_import_instructions.version = "1"  # type: ignore[attr-defined]
track_import_instructions.timeout = 600  # type: ignore[attr-defined]
