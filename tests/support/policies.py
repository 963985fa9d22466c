"""Retry policies that always say the same."""

from __future__ import annotations


class NeverRetries:
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        return None


class RetriesOnce:
    def next_delay(self, attempt: int, error: BaseException, /) -> float | None:
        return 0.0 if attempt == 1 else None
