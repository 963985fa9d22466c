"""`python -m leveret.cli` is `leveret`."""

from __future__ import annotations

from leveret.cli import main

main()
