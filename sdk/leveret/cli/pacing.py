"""Calls at times that are fixed beforehand, whatever the event loop is doing (an open loop)."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["pace", "schedule"]


def schedule(count: int, per_second: float, *, start: float = 0.05) -> list[int]:
    """Fixes times of even distance.

    Args:
        count: How many.
        per_second: The rate.
        start: Seconds from now to the first.

    Returns:
        Times of `time.perf_counter_ns`.
    """
    first = time.perf_counter_ns() + round(start * 1e9)
    return [first + round(i * 1e9 / per_second) for i in range(count)]


async def pace(times: Sequence[int], act: Callable[[int], None]) -> None:
    """Calls a function in the event loop at each of the times.

    A thread keeps the time, because uvloop's timers are as coarse as a millisecond. When the loop is late the calls
    are late, but none is left out or moved: a latency that counts from the scheduled time includes the lateness
    (no coordinated omission).

    Args:
        times: Times of `time.perf_counter_ns`, ascending; at least one.
        act: Is called with the time it was scheduled for.

    Raises:
        Exception: What a call raised; it was the last one.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()
    stop = threading.Event()

    def step(due: int) -> None:
        if ended.done():
            return
        try:
            act(due)
        except Exception as error:
            ended.set_exception(error)
        else:
            if due == times[-1]:
                ended.set_result(None)

    def keep_time() -> None:
        for due in times:
            while not stop.is_set() and (left := due - time.perf_counter_ns()) > 0:
                stop.wait(left / 1e9)
            if stop.is_set():
                return
            loop.call_soon_threadsafe(step, due)

    thread = threading.Thread(target=keep_time, name="leveret-pace", daemon=True)
    thread.start()
    try:
        await ended
    finally:
        stop.set()
        thread.join()
