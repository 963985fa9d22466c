"""Error paths that leak do so for each bad frame that a peer sends: 20,000 times each, and memory must not grow."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from tests.corpus import frames, malformed

from leveret.consuming.acks import AckWindow
from leveret.errors import LeveretError
from leveret.publishing.confirms import ConfirmWindow
from leveret.publishing.publish_batch import PublishBatch
from leveret.publishing.publishing import Ticket
from leveret.publishing.template import PublishTemplate
from leveret.wire.buffers import SendBuffer
from leveret.wire.decoding import decode_arguments, decode_table
from leveret.wire.encoding import FieldValue, encode_method, encode_table
from leveret.wire.properties import Properties, decode_properties
from leveret.wire.reader import FrameReader
from leveret.wire.runs import SettlementRun

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMES = 20_000
WARM_UP = 500
#: What free lists and caches may take after the warm-up.
ALLOWED = 64 * 1024

NOTHING: Any = None
SOMEBODY_WAITS: Any = "somebody waits"

refused = contextlib.suppress(LeveretError, TypeError, ValueError)


def anything() -> Any:
    """A new object each time: one that is leaked takes memory. It stands for an owner or a message."""
    return object()


def table_with(value: object) -> bytes:
    return encode_table({"some-key": [1.5, "text", value]})


def bad_streams() -> Iterator[Callable[[], object]]:
    for case in malformed.STREAMS:
        # The receive buffer makes a reader expensive; small ones do.
        def read(case: malformed.Stream = case) -> None:
            reader = FrameReader(server=case.server, frame_max=case.frame_max, max_body_size=case.max_body_size)
            reader.feed(frames.delivery(8, 1) + case.data)

        yield read


def bad_blocks() -> Iterator[Callable[[], object]]:
    for decode, cases in ((decode_table, malformed.TABLES), (decode_properties, malformed.PROPERTIES)):
        for case in cases:
            if len(case.data) < 10_000:
                yield partial(decode, case.data, **case.limits)
    for case in malformed.ARGUMENTS:
        yield partial(decode_arguments, case.types, case.data)


def bad_values() -> Iterator[Callable[[], object]]:
    for value in (2**64, object(), FieldValue("b", 200), FieldValue("D", 1), {"k": [object()]}, {5: 1}, "\ud800"):
        yield partial(table_with, value)
    yield lambda: Properties(priority=256, headers={"a": {"b": 1}}, message_id="m").encode()
    yield lambda: Properties(message_id="m" * 256, headers={"a": {"b": 1}}).encode()
    yield lambda: encode_method(1, 50, 10, "sT", ("q", {"k": object()}))
    yield lambda: encode_method(1, 50, 10, "h", (70_000,))
    yield lambda: PublishTemplate("e" * 256, "r")
    yield lambda: PublishTemplate("e", "r", bytes(5000), frame_max=4096)
    yield lambda: FieldValue("Z", 1)


def publishing() -> Iterator[Callable[[], object]]:
    out = SendBuffer(lambda: None, lambda: None)
    window = ConfirmWindow()
    batch = PublishBatch(out, window, max_body_size=100)
    template = PublishTemplate("e", "r")
    yield lambda: batch.add(template, bytes(101), Ticket())
    yield lambda: batch.add(template, NOTHING, Ticket())
    yield lambda: batch.add(template, memoryview(b"abcd")[::2], Ticket())

    def dropped_ticket() -> None:
        batch.add(template, b"x", Ticket(anything()))
        out.take()
        window.settle(SettlementRun.of(1, [(window.first, False, True, False)]))

    def dropped_run() -> None:
        batch.add_run(template, [b"x", b"y", b"z"], 0, Ticket(anything()), 0, 10)
        out.take()
        window.settle(SettlementRun.of(1, [(window.next_delivery_tag - 1, True, False, False)]))

    def returned_ticket() -> None:
        batch.add(template, b"x", ticket := Ticket(anything()))
        ticket.future = SOMEBODY_WAITS
        out.take()
        window.mark_returned(window.first, anything())
        window.settle(SettlementRun.of(1, [(0, True, False, False), (7, False, False, False)]))

    def dropped_window() -> None:
        lost: Any = ConfirmWindow()
        publishing = PublishBatch(out, lost)
        publishing.add(template, b"x", Ticket(lost))
        publishing.add(template, b"x", Ticket(anything()))
        publishing.add_run(template, [b"y", b"z"], 0, Ticket(anything()), 0, 10)
        out.take()
        lost.expire(1)

    def half_read() -> None:
        reader = FrameReader(capacity=65_536)
        reader.feed(frames.deliver(1, 1) + frames.header(1, 200) + frames.body(1, b"x"))
        reader.forget(1)
        reader.feed(frames.deliver(1, 1) + frames.header(1, 200) + frames.body(1, b"x"))

    def impossible_deliveries() -> None:
        run = frames.run_of(FrameReader().feed(frames.delivery(1, 0)))
        acks = AckWindow(1)
        acks.delivered(run)
        acks.ack(5)
        acks.flush(out)

    yield from (dropped_ticket, dropped_run, returned_ticket, dropped_window, half_read, impossible_deliveries)


@pytest.mark.parametrize("paths", [bad_streams, bad_blocks, bad_values, publishing], ids=lambda paths: paths.__name__)
def test_memory_does_not_grow_when_the_same_errors_happen_20000_times(paths: Callable) -> None:
    functions = list(paths())

    def go_round(times: int) -> None:
        for i in range(times):
            with refused:
                functions[i % len(functions)]()

    go_round(WARM_UP)
    gc.collect()
    tracemalloc.start()
    try:
        go_round(WARM_UP)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        go_round(TIMES)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < ALLOWED
