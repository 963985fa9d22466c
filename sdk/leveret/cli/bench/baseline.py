"""The performance guide's baseline, in its own words."""

from __future__ import annotations

from typing import Final

import msgspec

__all__ = ["BASELINE", "BODY_BYTES", "Baseline"]

#: The size of bodies that the rates were stated for. The guide's benchmarks publish smaller orders, as `--size 0` does.
BODY_BYTES: Final = 1024


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """Rates that were stated for another machine, another broker and another library.

    Attributes:
        environment: The machine.
        rabbitmq: The broker.
        message_size: The messages.
        rates: Messages per second, by the name of the benchmark.
    """

    environment: str
    rabbitmq: str
    message_size: str
    rates: dict[str, float]


BASELINE: Final = Baseline(
    environment="Standard development machine (8 cores, 16GB RAM)",
    rabbitmq="3.12.x running in Docker",
    message_size="1KB JSON payload",
    rates={
        "basic-publish": 50_000,
        "batch-publish": 180_000,
        "basic-consume": 45_000,
        "concurrent-consume": 120_000,
    },
)
