"""Bytes and frames, without an event loop, a socket or a clock."""

from __future__ import annotations
