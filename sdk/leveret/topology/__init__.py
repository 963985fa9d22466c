"""What is declared: exchanges, queues and bindings."""

from __future__ import annotations
