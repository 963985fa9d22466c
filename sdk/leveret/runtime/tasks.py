"""Waiting for events and tasks, always with an end: used wherever something is tried again or brought to a stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final, TypeVar

from leveret.errors import OperationTimeout

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Sequence

__all__ = ["cancel_all", "done_before", "one_deadline", "see_through", "set_within"]

T = TypeVar("T")

#: Seconds by which a deadline for several waits comes after that of one of them.
_SLACK: Final = 0.05

logger = logging.getLogger("leveret.runtime")

#: The tasks of `see_through`: a loop keeps only weak references to tasks.
_seen_through: Final[set[asyncio.Task[Any]]] = set()


async def see_through(work: Coroutine[Any, Any, T], name: str) -> T:
    """Runs work to its end, also when its caller is cancelled meanwhile.

    Args:
        work: The work. It has a deadline of its own, and ends early when it is cancelled itself, as it is at the end of
            `asyncio.run`.
        name: The task's name. The log names it when the work fails after its caller was cancelled.

    Returns:
        What the work returns.

    Raises:
        CancelledError: The caller was cancelled. The work goes on in its task.
        Exception: What the work raises.
    """
    task = asyncio.get_running_loop().create_task(work, name=name)
    _seen_through.add(task)
    task.add_done_callback(_seen_through.discard)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_log_failure)
        raise


def _log_failure(task: asyncio.Task[Any]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("%s: it failed after its caller was cancelled: %s", task.get_name(), error)


@contextlib.asynccontextmanager
async def one_deadline(seconds: float, what: str) -> AsyncIterator[None]:
    """Gives several waits one deadline together.

    Args:
        seconds: How long they may take.
        what: Names the waits, as the beginning of the error's text.

    Raises:
        OperationTimeout: They took longer. A wait inside whose own deadline is as long raises its own error first.
    """
    deadline = asyncio.timeout(seconds + _SLACK)
    try:
        async with deadline:
            yield
    except TimeoutError as error:
        if not deadline.expired():
            raise
        raise OperationTimeout(f"{what} took longer than {seconds:g} s") from error


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Waits until an event is set, for at most some seconds.

    Args:
        event: The event.
        seconds: How long to wait at most.

    Returns:
        Whether it is set.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()


async def done_before(stop: asyncio.Event, work: Coroutine[Any, Any, None], grace: float) -> bool:
    """Runs work until it is done or an event is set.

    Args:
        stop: Cancels the work.
        work: The work; what it raises is raised here.
        grace: Seconds that the work gets to end when it is cancelled.

    Returns:
        Whether the work was done; False when it was cancelled because of the event.
    """
    tasks = [asyncio.create_task(work), asyncio.create_task(stop.wait())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            return False
        tasks[0].result()
        return True
    finally:
        await cancel_all(tasks, grace)


async def cancel_all(tasks: Sequence[asyncio.Task[Any]], timeout: float) -> None:
    """Cancels tasks and waits until they have ended.

    Args:
        tasks: The tasks; their errors are marked as retrieved.
        timeout: Seconds to wait at most. A task that has not ended by then is logged and left alone.
    """
    for task in tasks:
        task.cancel()
    done, left = await asyncio.wait(tasks, timeout=timeout)
    for task in done:
        if not task.cancelled():
            task.exception()
    for task in left:
        logger.error("%r did not end %g s after it was cancelled", task.get_name(), timeout)
