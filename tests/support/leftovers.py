"""Nothing is left behind by a test: no task, and no error that nobody looked at; and no test waits for ever."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

#: Seconds after which a test that still runs is cancelled, unless it is marked with another `time_limit`.
TEST_DEADLINE = 30
#: Tests until what they have imported meanwhile is left out as well.
_FREEZE_EVERY = 100
_tests = itertools.count()


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"{record.name}: {self.format(record)}")


@asynccontextmanager
async def nothing_left_behind(seconds: float = TEST_DEADLINE) -> AsyncIterator[None]:
    """Fails when tasks are left, or when asyncio or Leveret logged an error, for example "never retrieved"."""
    if next(_tests) % _FREEZE_EVERY == 0:
        # The modules and tests are alive until the end. Looking through all of them after each test would take longer
        # than the tests.
        gc.collect()
        gc.freeze()
    loop = asyncio.get_running_loop()
    before = asyncio.all_tasks()
    collector = _Collector()
    loggers = [logging.getLogger(name) for name in ("asyncio", "leveret")]
    for logger in loggers:
        logger.addHandler(collector)

    def cancel_the_test() -> None:
        for task in asyncio.all_tasks() - before:
            task.cancel("the test took too long")
        alarms.append(loop.call_later(TEST_DEADLINE, cancel_the_test))  # what it does to clean up may hang as well

    alarms = [loop.call_later(seconds, cancel_the_test)]
    try:
        yield
        left = asyncio.all_tasks() - before - {asyncio.current_task()}
        if left:
            # What only needs its turn to end is not left behind.
            _, left = await asyncio.wait(left, timeout=1)
        await asyncio.sleep(0)  # transports that were closed tell their protocols in the next turn
        gc.collect()
    finally:
        alarms[-1].cancel()
        for logger in loggers:
            logger.removeHandler(collector)
    assert not left, f"tasks were left behind: {left}"
    assert not collector.texts, "errors were logged:\n" + "\n".join(collector.texts)
