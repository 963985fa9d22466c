"""Work that the command supervises is given up when nothing moves, and paced work keeps its schedule."""

from __future__ import annotations

import asyncio
import time

import pytest
from rich.console import Console

from leveret.cli.failures import Incomplete
from leveret.cli.pacing import pace, schedule
from leveret.cli.progress import Bars, supervise
from leveret.cli.stage import together


def bars() -> Bars:
    return Bars(Console(stderr=True), enabled=False)


async def test_supervised_work_returns_or_raises_its_own() -> None:
    async def work(fail: bool) -> int:
        await asyncio.sleep(0)
        return 1 // (not fail)

    assert await supervise(work(False), bars(), name="x", stall=1) == 1
    with pytest.raises(ZeroDivisionError):
        await supervise(work(True), bars(), name="x", stall=1)


async def test_supervised_work_is_given_up_when_nothing_moves() -> None:
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            cleaned = True

    shown = bars()
    with shown.bar("x", 10, lambda: 7), pytest.raises(Incomplete, match=r"x: no progress for 0\.01 s, at 7 messages"):
        await supervise(work(), shown, name="x", stall=0.01)
    assert cleaned
    assert shown.counts() == []


async def test_works_together_raise_the_first_error_itself() -> None:
    async def endless() -> None:
        await asyncio.Event().wait()

    async def failing() -> None:
        raise Incomplete("lost")

    with pytest.raises(Incomplete, match="lost"):
        await together(endless(), together(failing(), endless()))


async def test_pace_calls_at_every_scheduled_time_though_the_loop_is_late() -> None:
    times = schedule(50, 10_000, start=0)
    calls: list[tuple[int, int]] = []

    def act(due: int) -> None:
        calls.append((due, time.perf_counter_ns()))
        if len(calls) == 10:
            while time.perf_counter_ns() < times[20]:
                pass

    await pace(times, act)
    assert [due for due, _ in calls] == times
    assert all(at >= due for due, at in calls)


async def test_pace_ends_with_the_error_of_a_call() -> None:
    calls = 0

    def act(due: int) -> None:
        nonlocal calls
        calls += 1
        raise Incomplete("full")

    with pytest.raises(Incomplete, match="full"):
        await pace(schedule(1000, 1000), act)
    assert calls == 1


async def test_pace_stops_when_it_is_cancelled() -> None:
    waiting = asyncio.ensure_future(pace(schedule(1, 1, start=3600), lambda due: None))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
