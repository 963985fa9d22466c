"""How a call ends that may fail: with its result, or with a typed error and in time."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from leveret.errors import LeveretError
from tests.support.secrets import assert_not_shown

if TYPE_CHECKING:
    from collections.abc import Awaitable

    import leveret

#: Seconds that a call may take which is told at once.
AT_ONCE: Final = 2


async def awaited(ticket: leveret.Ticket) -> leveret.Receipt:
    """Makes a coroutine of a ticket, for `asyncio.gather` and tasks."""
    return await ticket


async def failure(awaitable: Awaitable[Any]) -> Any:
    """The error that something ends with, or its result."""
    try:
        return await awaitable
    except LeveretError as error:
        return error


async def failure_at_once(awaitable: Awaitable[Any]) -> Any:
    """As `failure`, and it has to end within two seconds."""
    async with asyncio.timeout(AT_ONCE):
        return await failure(awaitable)


async def refusal(awaitable: Awaitable[Any], *, within: float = 5) -> LeveretError:
    """The error that something ends with, in time, and without a secret in it."""
    started = time.monotonic()
    with pytest.raises(LeveretError) as refused:
        async with asyncio.timeout(within + 5):
            await awaitable
    assert time.monotonic() - started < within
    assert_not_shown(refused.value)
    return refused.value
