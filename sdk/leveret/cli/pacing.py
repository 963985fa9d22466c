"""Calls a function at times that are fixed beforehand, independent of the event loop's load (an open loop)."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["pace", "schedule"]


def schedule(count: int, per_second: float, *, start: float = 0.05) -> list[int]:
    """Returns evenly spaced times.

    Args:
        count: The number of times.
        per_second: Times per second.
        start: Seconds from now to the first time.

    Returns:
        Times of `time.perf_counter_ns`.
    """
    first = time.perf_counter_ns() + round(start * 1e9)
    return [first + round(i * 1e9 / per_second) for i in range(count)]


async def pace(times: Sequence[int], act: Callable[[int], None]) -> None:
    """Calls a function in the event loop at each of the times.

    A thread keeps the time, because uvloop's timers have a resolution of one millisecond. When the loop is late the
    calls are late, but none is skipped or rescheduled. A latency that counts from the scheduled time therefore includes
    the lateness (no coordinated omission).

    Args:
        times: Times of `time.perf_counter_ns`, ascending; at least one.
        act: The function. It gets the time that it was scheduled for.

    Raises:
        Exception: A call raised it. No call follows.
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
