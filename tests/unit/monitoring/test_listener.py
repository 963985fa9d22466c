"""A listener passes events on, whatever the function does that it calls."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from leveret.errors import ConfigurationError
from leveret.monitoring.listener import Listener

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.usefixtures("no_leftovers")


async def stopped(listener: Listener) -> None:
    task = listener.task
    listener.stop()
    if task is not None:
        async with asyncio.timeout(5):
            await asyncio.wait([task])
    assert listener.task is None


async def test_a_plain_function_is_called_at_once() -> None:
    got: list[object] = []
    listener = Listener("on_report", got.append)
    listener.tell(1)
    listener.tell(2)
    assert got == [1, 2]
    await stopped(listener)


async def test_an_async_function_gets_one_after_the_other() -> None:
    got: list[object] = []

    async def function(event: object) -> None:
        await asyncio.sleep(0.01)
        got.append(event)

    listener = Listener("on_report", function)
    for event in range(5):
        listener.tell(event)
    async with asyncio.timeout(5):
        while len(got) < 5:  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.002)
    assert got == [0, 1, 2, 3, 4]
    await stopped(listener)


def plain(event: object) -> None:
    raise ValueError(event)


async def later(event: object) -> None:
    await asyncio.sleep(0)
    raise ValueError(event)


@pytest.mark.parametrize("function", [plain, later])
async def test_what_it_raises_is_logged_once(
    caplog: pytest.LogCaptureFixture, function: Callable[[object], object]
) -> None:
    listener = Listener("on_alert", function)
    for event in range(3):
        listener.tell(event)
        await asyncio.sleep(0.01)
    await stopped(listener)
    assert [record.getMessage() for record in caplog.records] == ["on_alert raised (logged once)"]


async def test_one_that_hangs_costs_bounded_memory_and_is_cancelled_by_stop(
    caplog: pytest.LogCaptureFixture,
) -> None:
    called = 0

    async def hang(event: object) -> None:
        nonlocal called
        called += 1
        await asyncio.Event().wait()

    listener = Listener("on_report", hang)
    for event in range(1000):
        listener.tell(event)
    await asyncio.sleep(0)
    assert called == 1
    assert [record.getMessage() for record in caplog.records] == [
        "on_report does not return, and further events are dropped (logged once)"
    ]
    async with asyncio.timeout(5):
        await stopped(listener)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="on_report is a function, not a int") as refusal:
        Listener("on_report", 5)  # type: ignore[arg-type]
    assert refusal.value.option == "on_report"
