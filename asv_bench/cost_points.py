"""The points that `make costs` measures on each axis, and the stopwatch that reads their CPU time."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asv_bench.compare.job import cpu_seconds
from asv_bench.compare.report import size_text

if TYPE_CHECKING:
    from collections.abc import Iterator

KIBIBYTE: Final = 1024
MEBIBYTE: Final = 1024 * 1024
#: Messages of a batch where producers share a load: the default of `batch_size`.
BATCH: Final = 1000
#: Bytes of a body where only the client's own work matters.
SMALL: Final = 64
#: No queue is bound to this exchange: the broker confirms and drops messages, and its memory stays small.
EXCHANGE: Final = "leveret.costs"
#: Seconds for a confirm. The machine may be busy with something else.
PATIENCE: Final = 60.0
_LABELS: Final = {
    "channels": "{:,} channels",
    "connections": "{:,} connections",
    "consumers": "{:,} consumers",
    "queues": "{:,} queues",
    "outage": "outage with {:,} held",
    "window": "window {:,}",
    "bare": "window {:,}, ready-made frames",
    "tickets": "window {:,} full of tickets",
}


@dataclass(frozen=True, slots=True)
class Point:
    """A measurement.

    Attributes:
        axis: `channels`, `connections`, `consumers`, `queues`, `outage`, `window`, `bare`, `tickets`, `size` or
            `copying`.
        value: How many of them, unconfirmed publishings, or bytes.
        count: Messages of a run.
    """

    axis: str
    value: int
    count: int

    @property
    def label(self) -> str:
        """The name in tables and charts."""
        if self.axis in ("size", "copying"):
            return size_text(self.value) + (" copied and written" if self.axis == "copying" else "")
        text = _LABELS[self.axis].format(self.value)
        return text.removesuffix("s") if self.value == 1 else text


class Stopwatch:
    """CPU time of this process, user and system, of all its threads."""

    seconds: float = 0.0

    @contextmanager
    def running(self, sign: int = 1) -> Iterator[None]:
        """Adds the CPU time that the `with` block uses; takes it away where `sign` is -1."""
        gc.collect()
        began = cpu_seconds()
        yield
        self.seconds += sign * (cpu_seconds() - began)
