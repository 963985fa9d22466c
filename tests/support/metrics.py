"""Reads samples of metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from leveret.plugins import Sample


def values(samples: Iterable[Sample]) -> dict[tuple[str, str], int]:
    return {(sample.metric.name, sample.labels[1]): sample.value for sample in samples}
