"""What is counted, in plain numbers that are read on demand."""

from __future__ import annotations
