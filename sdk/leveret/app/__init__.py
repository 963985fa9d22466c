"""Handlers that are registered once, and a process that keeps them running."""

from __future__ import annotations
