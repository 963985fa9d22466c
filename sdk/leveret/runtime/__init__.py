"""Help for long-running processes: a pool of objects, the garbage collector."""

from __future__ import annotations
