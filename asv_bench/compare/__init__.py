"""Leveret beside other AMQP clients: `make compare`. What is measured, and how, is in docs/comparison.md."""

from __future__ import annotations
