"""How long reads wait for more: what a consumer tells the kernel, without a kernel and a clock."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from tests.corpus import frames
from tests.support.unconnected import made

from leveret.consuming.read_collector import ReadCollector
from leveret.wire.reader import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable

#: Long, so that a busy machine reads fast.
DELAY = 0.05
BODY = 1000
READS = 8
SIZE = len(frames.delivery(1, 1, bytes(BODY)))


class Loop:
    """Keeps the one timer, for the test to fire."""

    def __init__(self) -> None:
        self.timer: Callable[[], object] | None = None

    def call_later(self, delay: float, callback: Callable[[], object]) -> Any:
        assert delay == DELAY
        assert self.timer is None, "one timer at a time"
        self.timer = callback
        return self

    def cancel(self) -> None:
        self.timer = None

    def look(self) -> None:
        timer, self.timer = self.timer, None
        assert timer is not None
        timer()


class Socket:
    """A consumer whose socket and clock are the test's."""

    def __init__(self, **options: Any) -> None:
        self.loop, self.reader = Loop(), FrameReader()
        self.told: list[int] = []
        self.consumer = made(**options)
        self.collector = ReadCollector(self.loop, self.told.append, self.reader, DELAY)  # type: ignore[arg-type]
        self.consumer._collector = self.collector
        self.tag = 0
        self.read(1)  # it counts from here on
        self.handle_all()

    def read(self, count: int) -> None:
        """One read brings so many messages."""
        data = b""
        for _ in range(count):
            self.tag += 1
            data += frames.delivery(1, self.tag, bytes(BODY))
        run = frames.run_of(self.reader.feed(data))
        self.consumer.delivered(run)

    def handle_all(self) -> None:
        acks = self.consumer.meter.acks
        for tag in range(acks.first, acks.next_delivery_tag):
            acks.ack(tag)

    def read_fast(self, count: int = 30) -> None:
        """As many reads as it needs to know the rate, which is high. They are handled at once."""
        for _ in range(READS):
            self.read(count)
            self.handle_all()


async def test_nothing_is_told_and_no_timer_runs_when_few_messages_come() -> None:
    socket = Socket(prefetch=100)
    for _ in range(3 * READS):
        socket.read(1)
        socket.handle_all()
        await asyncio.sleep(DELAY / 10)  # 10 messages in each `delay`, or fewer
    assert socket.told == []
    assert socket.loop.timer is None


async def test_what_comes_in_the_time_is_waited_for_after_some_reads() -> None:
    socket = Socket(prefetch=100)
    for _ in range(READS):
        assert socket.told == []
        socket.read(30)
        socket.handle_all()
    # The credit is the bound of so many.
    assert socket.told == [40 * SIZE]


async def test_what_came_between_two_looks_is_waited_for() -> None:
    socket = Socket(prefetch=1000)
    socket.read_fast()
    for count in (60, 90, 60, 120):
        socket.read(count)
        socket.handle_all()
        socket.loop.look()
    assert socket.told[1:] == [60 * SIZE, 90 * SIZE, 60 * SIZE, 120 * SIZE]


async def test_it_reads_at_once_again_when_less_comes() -> None:
    socket = Socket(prefetch=100)
    socket.read_fast()
    socket.read(15)
    socket.handle_all()
    socket.loop.look()
    assert socket.told == [40 * SIZE, 1]
    assert socket.loop.timer is None, "no timer runs while nothing comes"


async def test_it_reads_at_once_again_when_nothing_came() -> None:
    socket = Socket(prefetch=100)
    socket.read_fast()
    socket.loop.look()
    assert socket.told == [40 * SIZE, 1]
    socket.read_fast()
    assert socket.told == [40 * SIZE, 1]
    socket.read(30)
    assert socket.told == [40 * SIZE, 1, 40 * SIZE], "the first read begins the time"


@pytest.mark.parametrize(("held", "most"), [(0, 40), (50, 20), (90, 1)])
async def test_it_waits_for_less_than_the_broker_may_send(held: int, most: int) -> None:
    socket = Socket(prefetch=100)
    if held:
        socket.read(held)
    for _ in range(READS + 1):
        socket.read(100)  # more than there can be: only the bound counts
        for tag in range(socket.tag - 99, socket.tag + 1):
            socket.consumer.meter.acks.ack(tag)
    assert socket.told == ([most * SIZE] if most > 1 else [])


async def test_the_kernel_is_not_told_of_a_few_bytes_more_or_less() -> None:
    socket = Socket(prefetch=1000)
    socket.read_fast()
    for count in (40, 44, 36, 40, 80):
        socket.read(count)
        socket.handle_all()
        socket.loop.look()
    assert socket.told[1:] == [40 * SIZE, 80 * SIZE]


async def test_it_reads_at_once_when_it_is_stopped() -> None:
    socket = Socket(prefetch=100)
    socket.read_fast()
    socket.collector.stop()
    assert socket.told == [40 * SIZE, 1]
    assert socket.loop.timer is None
