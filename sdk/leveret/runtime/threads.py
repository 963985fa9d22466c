"""Calls of plain functions that may hang, in threads that are not waited for."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["in_daemon_thread"]


async def in_daemon_thread(function: Callable[[], Any], name: str) -> Any:
    """Calls a function in a thread of its own. One that hangs keeps neither the event loop nor the process.

    The threads of the event loop's executor, and of `loop.getaddrinfo`, are waited for when the process ends.

    Args:
        function: What to call.
        name: The thread's name.

    Returns:
        What the function returns; it raises what the function raises. The caller sets the deadline.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def finish(answer: Any, error: BaseException | None) -> None:
        if done.done():
            if inspect.iscoroutine(answer):
                answer.close()
        elif error is None:
            done.set_result(answer)
        else:
            done.set_exception(error)

    def work() -> None:
        answer: Any = None
        failure: BaseException | None = None
        try:
            answer = function()
        except BaseException as error:
            failure = error
            if isinstance(error, StopIteration) or not isinstance(error, Exception):
                # No future can carry that, or it would end the event loop.
                failure = RuntimeError(f"it raised {type(error).__name__}")
                failure.__cause__ = error
        with contextlib.suppress(RuntimeError):  # the loop is closed, so no task waits for the answer
            loop.call_soon_threadsafe(finish, answer, failure)

    threading.Thread(target=work, name=name, daemon=True).start()
    return await done
