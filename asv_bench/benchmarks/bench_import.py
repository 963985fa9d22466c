"""The cost of importing Leveret, each time in a new interpreter."""

from __future__ import annotations


def timeraw_import_leveret() -> str:
    return "import leveret"


def timeraw_import_and_connect() -> str:
    # Names are loaded when first used; this is what a program that connects pays.
    return "import leveret; leveret.connect, leveret.run"


timeraw_import_leveret.operation = "import"  # type: ignore[attr-defined] # asv reads it from the function
timeraw_import_and_connect.operation = "import"  # type: ignore[attr-defined] # asv reads it from the function
