"""The watch of an event loop: it beats while it has members, and names what blocks the loop."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest
from tests.support.loops import every_loop

from leveret.runtime.loop_watch import LoopWatch, where_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

NAME = "leveret loop watch"


@pytest.fixture(autouse=True)
def warnings(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    texts: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    handler, logger = Collect(), logging.getLogger("leveret.runtime")
    logger.addHandler(handler)
    yield texts
    logger.removeHandler(handler)


class Member:
    """A member that can be waited for."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self._came = asyncio.Event()

    def beat(self, now: float) -> None:
        self.times.append(now)
        self._came.set()

    async def beats(self, count: int) -> None:
        wanted = len(self.times) + count
        async with asyncio.timeout(5):
            while len(self.times) < wanted:
                self._came.clear()
                await self._came.wait()


def blocks_in_a_helper(seconds: float) -> None:
    time.sleep(seconds)


async def slow_handler(seconds: float) -> None:
    blocks_in_a_helper(seconds)


@every_loop
async def test_each_loop_has_one_watch_that_beats_twice_a_second_for_its_members(warnings: list[str]) -> None:
    watch = LoopWatch.of(asyncio.get_running_loop())
    assert LoopWatch.of(asyncio.get_running_loop()) is watch
    members = [Member(), Member()]
    for member in members:
        watch.add(member.beat)
    await members[0].beats(3)
    assert members[0].times == members[1].times
    gaps = [b - a for a, b in itertools.pairwise(members[0].times)]
    assert all(0.4 < gap < 1.4 for gap in gaps)
    watch.remove(members[1].beat)
    before = len(members[1].times)
    await members[0].beats(1)
    assert len(members[1].times) == before
    watch.remove(members[0].beat)
    watch.remove(members[0].beat)  # again, it does nothing
    assert warnings == []


@every_loop
async def test_the_function_that_blocked_the_loop_is_named_with_the_time(warnings: list[str]) -> None:
    watch, member = LoopWatch.of(asyncio.get_running_loop()), Member()
    watch.add(member.beat)
    await member.beats(1)
    await asyncio.create_task(slow_handler(2.2))
    await member.beats(1)
    watch.remove(member.beat)
    (text,) = warnings
    found = re.fullmatch(
        r"the event loop was blocked for (\d\.\d) s by .*test_loop_watch\.slow_handler \(test_loop_watch\.py:\d+\), "
        r"in .*test_loop_watch\.blocks_in_a_helper \(test_loop_watch\.py:\d+\); meanwhile no message is handled and no "
        r"heartbeat is sent",
        text,
    )
    assert found is not None, text
    assert 1.5 < float(found[1]) < 3.5


async def test_blocks_that_follow_each_other_are_counted_and_not_logged_one_by_one(warnings: list[str]) -> None:
    watch, member = LoopWatch.of(asyncio.get_running_loop()), Member()
    watch.add(member.beat)
    await member.beats(1)
    for _ in range(2):
        await slow_handler(1.7)
        await member.beats(1)
    assert len(warnings) == 1
    # As if ten seconds had passed.
    watch._warned_at -= 10
    await slow_handler(1.7)
    await member.beats(1)
    watch.remove(member.beat)
    assert len(warnings) == 2
    assert re.search(r"\(and 1 times for 1\.\d s in all before that\)", warnings[1])


async def test_a_loop_that_hangs_is_warned_of_before_it_goes_on(
    warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("leveret.runtime.loop_watch._HANGS", 1.5)
    watch, member = LoopWatch.of(asyncio.get_running_loop()), Member()
    watch.add(member.beat)
    await member.beats(1)

    deadline = time.monotonic() + 8
    while not warnings and time.monotonic() < deadline:
        blocks_in_a_helper(0.05)
    assert re.match(
        r"the event loop has been blocked for \d s by .*a_loop_that_hangs.* in .*blocks_in_a_helper", warnings[0]
    )
    watch.remove(member.beat)


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


async def test_its_thread_ends_with_the_last_member() -> None:
    watch, member = LoopWatch.of(asyncio.get_running_loop()), Member()
    before = threads()
    watch.add(member.beat)
    assert threads() == before  # the first beat starts it
    await member.beats(1)
    (thread,) = set(threads()) - set(before)
    watch.remove(member.beat)
    await asyncio.to_thread(thread.join, 5)
    assert not thread.is_alive()


@pytest.mark.parametrize("close", [True, False])
def test_its_thread_ends_with_a_loop_that_was_closed_or_forgotten_with_members(close: bool) -> None:
    loop = asyncio.new_event_loop()

    async def main() -> None:
        member = Member()
        LoopWatch.of(loop).add(member.beat)
        await member.beats(1)

    before = threads()
    loop.run_until_complete(main())
    (thread,) = set(threads()) - set(before)
    if close:
        loop.close()
    else:
        loop.close()
        del loop
    thread.join(5)
    assert not thread.is_alive()


def test_a_loop_that_stands_still_between_two_runs_is_not_taken_for_blocked_by_a_function(warnings: list[str]) -> None:
    loop = asyncio.new_event_loop()
    watch, member = LoopWatch.of(loop), Member()

    async def start() -> None:
        watch.add(member.beat)
        await member.beats(1)

    loop.run_until_complete(start())
    time.sleep(1.8)
    loop.run_until_complete(member.beats(1))
    watch.remove(member.beat)
    loop.close()
    (text,) = warnings
    assert re.match(r"the event loop did not run for \d\.\d s; meanwhile", text)


# ---------------------------------------------------------------------- naming


def frame_here() -> FrameType:
    return sys._getframe(1)


async def named_coroutine() -> str:
    return where_of(frame_here())


async def test_a_coroutine_is_named_by_itself_when_the_loop_runs_it() -> None:
    text = await asyncio.create_task(named_coroutine())
    assert re.fullmatch(r".*test_loop_watch\.named_coroutine \(test_loop_watch\.py:\d+\)", text)


async def test_a_callback_of_the_loop_is_named() -> None:
    told: list[str] = []

    def callback() -> None:
        told.append(where_of(frame_here()))

    asyncio.get_running_loop().call_soon(callback)
    await asyncio.sleep(0)
    assert re.fullmatch(r".*callback \(test_loop_watch\.py:\d+\)", told[0])


def test_nothing_is_named_without_a_frame() -> None:
    assert where_of(None) == ""
