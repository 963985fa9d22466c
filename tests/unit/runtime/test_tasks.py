"""Work that is seen through goes on when its caller is cancelled."""

from __future__ import annotations

import asyncio

import pytest

from leveret.runtime.tasks import see_through

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def test_work_goes_on_when_its_caller_is_cancelled_and_its_failure_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go_on.wait()
        raise OSError("the reason")

    caller = asyncio.create_task(see_through(work(), "the work"))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "the work")
    go_on.set()
    await asyncio.wait([task])
    await asyncio.sleep(0)
    assert "the work: it failed after its caller was cancelled: the reason" in caplog.text


async def test_the_caller_gets_what_the_work_returns_or_raises() -> None:
    async def work(divisor: int) -> float:
        return 1 / divisor

    assert await see_through(work(2), "halves") == 0.5
    with pytest.raises(ZeroDivisionError):
        await see_through(work(0), "nothing")
