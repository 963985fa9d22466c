"""`python -m leveret.cli` does the same as `leveret`."""

from __future__ import annotations

from leveret.cli import main

main()
