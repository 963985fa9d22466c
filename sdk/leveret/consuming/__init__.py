"""Deliveries become handled and acknowledged messages: the consumer, its workers, and what becomes of failures."""

from __future__ import annotations
