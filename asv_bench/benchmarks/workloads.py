"""What `bench_instructions` runs under callgrind: python -m benchmarks.workloads NAME TOTAL COUNT.

Prepares TOTAL messages and handles COUNT of them, so that the instructions of two runs with different COUNT and the
same TOTAL differ by those messages and by nothing else.
"""

from __future__ import annotations

import gc
import sys
from typing import TYPE_CHECKING

from . import corpus
from .support import discarding_buffer

if TYPE_CHECKING:
    from collections.abc import Callable

#: Messages in one read, or in one batch.
GROUP = 100


def decode(total: int) -> Callable[[], None]:
    """Reads deliveries of 1 KiB and drops them."""
    from leveret.wire.reader import FrameReader

    reader = FrameReader(frame_max=corpus.FRAME_MAX)
    data = corpus.deliveries(GROUP, 1024)
    return lambda: reader.feed(data)


def publish(total: int) -> Callable[[], None]:
    """Appends publishings of 1 KiB, without confirms."""
    from leveret.publishing.publisher import PublishBatch
    from leveret.publishing.template import PublishTemplate

    out = discarding_buffer()
    batch = PublishBatch(out, None)
    template = PublishTemplate("orders", "order.created", corpus.RAW_PROPERTIES)
    bodies = [bytes(1024)] * GROUP
    return lambda: batch.add_many(template, bodies, None)


def confirm(total: int) -> Callable[[], None]:
    """Settles publishings of one ticket with an acknowledgement for each."""
    from leveret.publishing.confirms import ConfirmWindow, Ticket
    from leveret.wire.runs import SettlementRun

    window, ticket = ConfirmWindow(), Ticket()
    for _ in range(total):
        window.track(ticket)
    waiting = iter(
        [
            SettlementRun.of(1, [(tag, False, False, False) for tag in range(first, first + GROUP)])
            for first in range(1, total + 1, GROUP)
        ]
    )
    return lambda: window.settle(next(waiting))


def acknowledge(total: int) -> Callable[[], None]:
    """Notes deliveries, acknowledges each and writes one basic.ack for 100 of them."""
    from leveret.consuming.acks import AckWindow

    out = discarding_buffer()
    window = AckWindow(1)

    def group() -> None:
        first = window.next_delivery_tag
        for tag in range(first, first + GROUP):
            window.track(tag)
        for tag in range(first, first + GROUP):
            window.ack(tag)
        window.flush(out)

    return group


WORKLOADS = {"decode": decode, "publish": publish, "confirm": confirm, "acknowledge": acknowledge}


def main(name: str, total: int, count: int) -> None:
    """Runs a workload."""
    group = WORKLOADS[name](total)
    gc.collect()
    gc.disable()
    for _ in range(count // GROUP):
        group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
